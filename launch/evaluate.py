"""Evaluate: the entry point for `accelerate launch`, `torchrun`, `python` and `tl evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, at_least, exit_code

EPILOG = """\
FOLDER has a folder for each class, or val/ with these in it. The names of its class folders are
those of the model's classes; not every class needs one. Without FOLDER: the run's own validation
data, as its config.yaml says. key.path=value goes before config.yaml, as in `tl train`.

Prints accuracy, loss and a table of the classes. Writes evaluation.json, with the confusion matrix
in it (row: the class, column: what it was called), and confusion_matrix.png.

  tl evaluate runs/flowers
  tl evaluate runs/flowers photos/ --output results
  accelerate launch launch/evaluate.py runs/flowers data.root=/data/flowers data.workers=4
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl evaluate",
        description="Accuracy, loss and confusion matrix of a run's model on labelled images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", type=Path, metavar="RUN_DIR | MODEL_DIR")
    made.add_argument("arguments", nargs="*", metavar="FOLDER | key.path=value")
    made.add_argument(
        "--output", type=Path, metavar="DIR", help="default: evaluation/ in RUN_DIR or MODEL_DIR"
    )
    made.add_argument("--batch-size", type=at_least(1), default=64, metavar="N", help="default: 64")
    made.add_argument(
        "--bad-images",
        choices=("error", "skip"),
        help="an image that cannot be decoded is an error (default), or it is named, counted "
        "and left out; the same as data.bad_images",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl.engine.evaluation_request import request

    asked = request(
        arguments.model,
        arguments.arguments,
        output=arguments.output,
        batch_size=arguments.batch_size,
        bad_images=arguments.bad_images,
    )

    # Only now: torch and its company take seconds to import.
    from tl.engine.score import score

    score(asked)


if __name__ == "__main__":
    sys.exit(main())
