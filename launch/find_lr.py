"""Find-lr: the entry point for `accelerate launch`, `torchrun`, `python` and `tl find-lr`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, at_least, exit_code, split_config

EPILOG = """\
CONFIG.yaml and key.path=value are those of `tl train`. Its first phase is trained for N steps while
the learning rate rises by the same factor from each step to the next (Smith, "Cyclical Learning
Rates for Training Neural Networks", WACV 2017), until the smoothed loss is over 4 times its lowest.
The suggestion is a tenth of the rate at which the smoothed loss is lowest, the first 10 steps left
aside. The weights are thrown away; what stays is lr_curve.json and lr_curve.png.

  tl find-lr run.yaml data.root=photos
  accelerate launch launch/find_lr.py run.yaml data.root=photos strategy=full --steps 200
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl find-lr",
        description="Find a learning rate by raising it until the loss does.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("arguments", nargs="*", metavar="CONFIG.yaml | key.path=value")
    made.add_argument("--steps", type=at_least(20), default=100, metavar="N", help="default: 100")
    made.add_argument("--lr-min", type=_rate, default=1e-6, metavar="RATE", help="default: 1e-6")
    made.add_argument("--lr-max", type=_rate, default=10.0, metavar="RATE", help="default: 10")
    made.add_argument(
        "--output",
        type=Path,
        default=Path("find-lr"),
        metavar="DIR",
        help="for lr_curve.json and lr_curve.png; default: find-lr",
    )
    return made


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate above 0")
    return rate


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl import arguments as config_arguments
    from tl.errors import UserError

    lr_min, lr_max, output = arguments.lr_min, arguments.lr_max, arguments.output
    if lr_min >= lr_max:
        raise UserError(f"--lr-min {lr_min:g} is not below --lr-max {lr_max:g}")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give the name of a folder")
    file, overrides = split_config(arguments.arguments)
    loaded = config_arguments.load(file, overrides)

    # Only now: torch and its company take seconds to import.
    from tl.engine.find_lr import find_lr

    find_lr(loaded, steps=arguments.steps, lr_min=lr_min, lr_max=lr_max, output=output)


if __name__ == "__main__":
    sys.exit(main())
