"""Submit: queue a run, or a sweep of runs, as a job of Slurm; `tl submit`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from tl.command import Parser, exit_code

EXAMPLES = """\
examples:
  tl submit flowers.yaml nodes=2 gpus_per_node=8 time=12h partition=gpu
  tl submit flowers.yaml time=1h --sweep optimizer.lr=1e-3,1e-2 seed=0,1,2
  tl submit flowers.yaml gpus_per_node=0 processes_per_node=2 --dry-run

Keys of the run are those of `tl train`. Before the job queues, config, data and weights are checked
here as `tl train --dry-run` does, and whether checkpoints fit the disk and the time to save. The
script goes into the run's folder, and its log beside it. docs/slurm.md says what it does.
"""


def parser() -> Parser:
    """The command line; ``--help`` lists the keys of the job."""
    from tl.config_help import keys_of
    from tl.slurm.settings import JobSettings

    keys = "\n".join(keys_of(JobSettings))
    made = Parser(
        prog="tl submit",
        description="Queue a run, or a sweep of runs, as a job of Slurm.",
        epilog=f"keys of the job:\n\n{keys}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("arguments", nargs="*", metavar="CONFIG.yaml | key=value")
    made.add_argument(
        "--sweep",
        nargs="+",
        default=[],
        metavar="KEY=A,B,…",
        help="a run for each combination of these values, in an array of jobs",
    )
    made.add_argument("--dry-run", action="store_true", help="show script and command, and stop")
    made.add_argument(
        "--no-check", action="store_true", help="queue without a look at data, weights and disk"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl.slurm.job import TABLE_FILE
    from tl.slurm.submit import prepare, submit

    made = prepare(arguments.arguments, arguments.sweep)
    if arguments.dry_run:
        print(made.script)
        print(f"# {shlex.join(made.command())}")
        return
    if not arguments.no_check:
        from tl.engine.submit_checks import check

        check(made.runs[0], made.folder, made.job.lead, print)
    job = submit(made)
    log = "slurm-*.log" if made.swept else f"slurm-{job}.log"
    what = f"{len(made.runs)} runs" if made.swept else "the run"
    print(f"job {job}: {what} in {made.folder}")
    print(f"  what it prints: tail -F {shlex.quote(str(made.folder))}/{log}")
    print(f"  how it stands:  squeue --jobs={job}    end it: scancel {job}")
    if made.swept:
        print(f"  the results:    {made.folder / TABLE_FILE}, as runs end")


if __name__ == "__main__":
    sys.exit(main())
