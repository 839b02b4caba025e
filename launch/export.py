"""Export: the entry point for `python` and `tl export`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, at_least, exit_code, fraction
from tl.export import FORMATS

EPILOG = (
    "\n".join(f"  {name:13} {what}" for name, what in FORMATS.items())
    + """

What was written is loaded afresh and compared with the run's model on real images: the run's own
validation images, or those of --images FOLDER. Only if both say the same does the folder get its
name. With it come README.md (a model card), export.json (what was measured) and the run's config.

  tl export runs/flowers --to onnx
  tl export runs/flowers --to onnx --int8 --max-accuracy-loss 0.01
  tl export runs/flowers --to huggingface --output flowers-resnet18 --images photos/
"""
)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl export",
        description="A run's model in the form of other programs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", type=Path, metavar="RUN_DIR | MODEL_DIR")
    made.add_argument("arguments", nargs="*", metavar="key.path=value")
    made.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    made.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: export/FORMAT in RUN_DIR"
    )
    made.add_argument(
        "--overwrite", action="store_true", help="put it in the place of an export that is there"
    )
    made.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="check on these images; with class folders accuracy is measured too",
    )
    made.add_argument(
        "--num-images",
        type=at_least(1),
        default=500,
        metavar="N",
        help="check on so many at most, chosen by the seed (default: 500)",
    )
    made.add_argument(
        "--int8", action="store_true", help="onnx: a second file with weights of 8 bits, for CPUs"
    )
    made.add_argument(
        "--max-accuracy-loss",
        type=fraction,
        metavar="SHARE",
        help="int8: fail if it loses more accuracy than this, as 0.01",
    )
    made.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="onnx: normalisation and softmax in the graph, which takes uint8",
    )
    made.add_argument(
        "--licence",
        "--license",
        metavar="NAME",
        help="of the weights, for the card, as apache-2.0 (default: unknown)",
    )
    made.add_argument("--batch-size", type=at_least(1), default=16, metavar="N", help="default: 16")
    made.add_argument(
        "--bad-images", choices=("error", "skip"), help="as in tl evaluate; data.bad_images"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl.export.wish import wish

    wished = wish(
        arguments.model,
        arguments.arguments,
        to=arguments.to,
        output=arguments.output,
        images=arguments.images,
        int8=arguments.int8,
        with_preprocessing=arguments.with_preprocessing,
        overwrite=arguments.overwrite,
        num_images=arguments.num_images,
        batch_size=arguments.batch_size,
        max_accuracy_loss=arguments.max_accuracy_loss,
        licence=arguments.licence,
        bad_images=arguments.bad_images,
    )

    # Only now: torch and its company take seconds to import.
    from tl.export.export import export

    export(wished)


if __name__ == "__main__":
    sys.exit(main())
