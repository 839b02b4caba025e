"""Sync: the entry point for `python` and `tl sync`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, exit_code

EPILOG = """\
Sends the lines of metrics.jsonl that W&B does not have yet, each once, and summary.json into the
run's own W&B run: of a run that was offline, whose server or network went away, or that goes on
without W&B. A second call sends nothing.

The key and the server are those of `wandb login` or WANDB_API_KEY and WANDB_BASE_URL. With
WANDB_MODE=offline the whole run is written into wandb/ in place of being sent.

  tl sync runs/flowers
  tl sync runs/*/ --dry-run
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl sync",
        description="Send what Weights & Biases lacks of a run's record.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    made.add_argument(
        "--dry-run", action="store_true", help="say how many lines would be sent, and stop"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl.tracking.sync import sync

    sync(arguments.run_dirs, dry_run=arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main())
