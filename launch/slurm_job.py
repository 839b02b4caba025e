"""What a batch script asks as its job begins and ends: `python -m launch.slurm_job begin|end`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, exit_code


def parser() -> Parser:
    """The command line; scripts use it, see tl/slurm/body.sh."""
    made = Parser(prog="python -m launch.slurm_job", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("begin", help="print folder, step and arguments of the job's run")
    begin.add_argument("job")
    begin.add_argument("words", nargs=argparse.REMAINDER)
    end = commands.add_parser("end", help="end with 75 if the job is to be requeued")
    end.add_argument("run_dir", type=Path)
    end.add_argument("began_at", type=int)
    end.add_argument("code", type=int)
    end.add_argument("--max-requeues", type=int, required=True)
    end.add_argument("--asked", action="store_true")
    end.add_argument("--ended", action="store_true")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_args(argv)
    if arguments.command == "begin":
        return exit_code(lambda: _begin(arguments.job, arguments.words))
    from tl.slurm.job import end

    return end(
        arguments.run_dir,
        arguments.began_at,
        arguments.code,
        max_requeues=arguments.max_requeues,
        asked=arguments.asked,
        ended=arguments.ended,
        environ=os.environ,
    )


def _begin(job: str, words: list[str]) -> None:
    from tl.slurm.job import begin

    print("\n".join(begin(job, words, os.environ)))


if __name__ == "__main__":
    sys.exit(main())
