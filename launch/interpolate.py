"""Interpolate: for `accelerate launch`, `torchrun`, `python` and `tl interpolate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, at_least, exit_code, fractions

EPILOG = """\
For each ALPHA the weights are (1 - ALPHA) * start + ALPHA * tuned (WiSE-FT: Wortsman et al., CVPR
2022), statistics of BatchNorm as well. Each is evaluated as `tl evaluate` does it: on the run's own
validation data, or on FOLDER. Start is, with --with, that model (of several their mean); else what
the run left in start/, after a first phase that trained the head alone; else the weights that it
began with, under the tuned head.

The best by accuracy, then by loss, goes to --save DIR: a model folder, with interpolation.json in
it. It was chosen on these images, so its accuracy on others will be a little lower.

  tl interpolate runs/flowers --save runs/flowers/between
  tl interpolate runs/flowers photos/ --alphas 0,0.25,0.5,0.75,1
  tl interpolate runs/a --with runs/b runs/c        # 1/3: the mean of the three, a model soup
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl interpolate",
        description="Models between where a run started and where it ended.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", type=Path, metavar="RUN_DIR | MODEL_DIR")
    made.add_argument("arguments", nargs="*", metavar="FOLDER | key.path=value")
    made.add_argument(
        "--alphas", type=fractions, metavar="A,B,…", help="default: 0,0.1,…,1 (and the soup)"
    )
    made.add_argument(
        "--with", dest="others", nargs="+", type=Path, default=[], metavar="RUN_DIR | MODEL_DIR"
    )
    made.add_argument("--save", type=Path, metavar="DIR", help="write the best one there")
    made.add_argument("--batch-size", type=at_least(1), default=64, metavar="N", help="default: 64")
    made.add_argument(
        "--bad-images", choices=("error", "skip"), help="as in tl evaluate; data.bad_images"
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
        batch_size=arguments.batch_size,
        bad_images=arguments.bad_images,
    )

    # Only now: torch and its company take seconds to import.
    from tl.engine.interpolate import interpolate

    interpolate(asked, arguments.others, arguments.alphas, arguments.save)


if __name__ == "__main__":
    sys.exit(main())
