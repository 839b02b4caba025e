"""Rank: the entry point for `accelerate launch`, `torchrun`, `python` and `tl rank`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, at_least, exit_code, split_config

EPILOG = """\
CONFIG.yaml and key.path=value are those of `tl train`; they say which data, and how images are
prepared. Features are the output of a stage of the network, its mean over space or tokens, of each
training image as in validation. Every cut of a network is looked at in one pass over the images.

LogME (You et al., ICML 2021) is the log evidence, per image, of a linear model of the labels: the
higher the better, also between networks. kNN accuracy is leave-one-out, by cosine. seconds are
those of the pass, which the cuts of a network share, and of the scores.

  tl rank data.root=photos --models resnet18,convnext_tiny,squeezenet1_0=weights.pth
  tl rank run.yaml --cuts all
  accelerate launch launch/rank.py data.root=photos --models resnet18,resnet50 --json > ranking.json
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl rank",
        description="Rank pretrained networks, or cuts of one, for your images, without training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("arguments", nargs="*", metavar="CONFIG.yaml | key.path=value")
    made.add_argument(
        "--models",
        action="append",
        default=[],
        metavar="NAME[=WEIGHTS],…",
        help="candidates; WEIGHTS is what model.weights takes (default: DEFAULT; null: random). "
        "Without it: the config's own network",
    )
    made.add_argument(
        "--cuts",
        metavar="STAGE,…|all",
        help="stages of the network to look behind; default: the last before the head",
    )
    made.add_argument(
        "--neighbours",
        type=at_least(1),
        default=5,
        metavar="K",
        help="for kNN accuracy; default: 5",
    )
    made.add_argument("--batch-size", type=at_least(1), default=64, metavar="N", help="default: 64")
    made.add_argument("--json", action="store_true", help="print JSON in place of the table")
    made.add_argument("--output", type=Path, metavar="FILE", help="write the JSON to a file, too")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl import arguments as config_arguments

    file, overrides = split_config(arguments.arguments)
    loaded = config_arguments.load(file, overrides)

    # Only now: torch and its company take seconds to import.
    from tl.engine.rank import rank

    rank(
        loaded,
        models=[name for words in arguments.models for name in words.split(",")],
        cuts=arguments.cuts,
        neighbours=arguments.neighbours,
        batch_size=arguments.batch_size,
        output=arguments.output,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
