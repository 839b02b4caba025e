"""Report: the entry point for `python` and `tl report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, exit_code

EPILOG = """\
Of one run: RUN_DIR/report.html, as the run itself writes it. Of several: how they compare, in
comparison.html here. Both are one file that opens without a network. Pictures are read from the
run's data again; of an image that is gone there is the name.

  tl report runs/flowers
  tl report runs/flowers-head runs/flowers-full --output flowers.html
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl report",
        description="A page on a run, or on several side by side.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    made.add_argument("--output", type=Path, metavar="FILE", help="where the page goes")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    # Only now: torch, which reads the pictures, takes seconds to import.
    from tl.engine.report_command import report

    print(f"written: {report(arguments.runs, arguments.output)}")


if __name__ == "__main__":
    sys.exit(main())
