"""Predict: the entry point for `accelerate launch`, `torchrun`, `python` and `tl predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, at_least, exit_code

EPILOG = """\
CSV: a row for each image with path, class, confidence and p(NAME) for every class; with --top-k
class1, p1, class2, p2, ... in place of the latter, the most probable first. JSON lines:
{"path", "class", "confidence", "probabilities": {NAME: p}}, or "top": [{"class", "probability"}].

Of a folder, the files count that counted in training (data.extensions); transparent images are put
on the same colour (data.background).

Images are in the order of the paths, those of a folder sorted, each once however often it is named.
Messages go to standard error. FILE appears when it is complete, in place of an old one.

  tl predict runs/flowers photos/ > predictions.csv
  accelerate launch launch/predict.py runs/flowers photos/ --output predictions.jsonl --top-k 3
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl predict",
        description="Classes and probabilities for images, by a run's model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", type=Path, metavar="RUN_DIR | MODEL_DIR")
    made.add_argument(
        "paths", nargs="+", metavar="PATH", help="an image, or a folder to search at any depth"
    )
    made.add_argument("--output", metavar="FILE", help="default: standard output")
    made.add_argument(
        "--format", choices=("csv", "jsonl"), help="default: by the ending of FILE, else csv"
    )
    made.add_argument(
        "--top-k", type=at_least(1), metavar="K", help="the K most probable classes only"
    )
    made.add_argument("--batch-size", type=at_least(1), default=64, metavar="N", help="default: 64")
    made.add_argument(
        "--workers",
        type=at_least(0),
        metavar="N",
        help="loader processes of each process; default: from the cores of the node",
    )
    made.add_argument(
        "--bad-images",
        choices=("error", "skip"),
        default="error",
        help="an image that cannot be decoded is an error (default), or it is named, counted, "
        "and gets no row",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl.data.image_paths import find_images
    from tl.engine.prediction_file import destination
    from tl.models.folders import data_of

    output = destination(arguments.output, arguments.format)
    images = find_images(arguments.paths, data_of(arguments.model))

    # Only now: torch and its company take seconds to import.
    from tl.engine.predict import predict

    predict(
        arguments.model,
        images,
        output,
        top_k=arguments.top_k,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        bad_images=arguments.bad_images,
    )


if __name__ == "__main__":
    sys.exit(main())
