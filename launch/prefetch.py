"""Prefetch: the entry point for `python` and `tl prefetch`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tl.command import Parser, exit_code, split_config

EPILOG = """\
CONFIG.yaml and key.path=value are those of `tl train`. To be called on a login node, which has a
network; a run on compute nodes then needs none, if they see the same TORCH_HOME (torchvision's
weights; default: ~/.cache/torch) or HF_HOME (timm's; default: ~/.cache/huggingface).

Prints the sha256 of each weights file. That of published weights is kept beside the file, as
FILE.sha256: a run that loads them compares, and refuses a file that differs. Your own files and
runs' folders are read and hashed, and not pinned.

  tl prefetch configs/finetune.yaml
  tl prefetch model.name=convnext_tiny
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl prefetch",
        description="Fetch the weights that a config names, and pin them by their sha256.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("arguments", nargs="*", metavar="CONFIG.yaml | key.path=value")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl import arguments as config_arguments
    from tl.errors import UserError, printable

    if not arguments.arguments:
        raise UserError("whose weights? Give CONFIG.yaml, or model.name=NAME model.weights=WEIGHTS")
    file, overrides = split_config(arguments.arguments)
    loaded = config_arguments.load(file, overrides)

    # Only now: torch and its company take seconds to import.
    from tl.engine.prefetch import prefetch

    found = prefetch(loaded)
    for each in found:
        pinned = "pinned" if each.pinned else "not pinned: a file of your own"
        print(printable(f"{each.name}  {each.sha256}  {each.path}  ({pinned})"))
        if each.note:
            print(printable(f"note: {each.note}"), file=sys.stderr)
    if not found:
        print("model.weights is null, random: there is nothing to fetch")


if __name__ == "__main__":
    sys.exit(main())
