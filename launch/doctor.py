"""Doctor: the entry point for `accelerate launch`, `torchrun`, `srun`, `python` and `tl doctor`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tl.command import (
    FAILURE,
    Parser,
    at_least,
    exit_code,
    is_main_process,
    split_config,
)

EPILOG = """\
Looks at versions, GPUs, precision, cores, memory, folders, ports and W&B; with CONFIG.yaml or
key.path=value, those of `tl train`, at the data and the weights too. Trains nothing, downloads
nothing, and leaves no file but the list of the images in the cache. Each line is ok, a note, or a
problem, with what to do about it.

With several processes it sums 16 MB over all of them, checks and times that, and reports each node.

  tl doctor
  tl doctor configs/finetune.yaml data.root=/data/flowers
  accelerate launch launch/doctor.py configs/finetune.yaml
  srun --nodes=2 --ntasks-per-node=1 tl doctor configs/finetune.yaml

Exit code: 0 there is no problem, 1 there is one, 2 the config or the arguments are wrong.
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl doctor",
        description="What this machine, or each node of a job, lacks to run, and how to mend it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("arguments", nargs="*", metavar="CONFIG.yaml | key.path=value")
    made.add_argument(
        "--images",
        type=at_least(0),
        default=1000,
        metavar="N",
        help="decode N images, picked evenly from all; default: 1000",
    )
    made.add_argument(
        "--timeout",
        type=at_least(1),
        default=60,
        metavar="SECONDS",
        help="that the processes may take to find each other; default: 60",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    problems: list[int] = []
    code = exit_code(lambda: problems.append(_run(arguments)))
    return code or (FAILURE if any(problems) else code)


def _run(arguments: argparse.Namespace) -> int:
    """The number of problems."""
    from tl import arguments as config_arguments
    from tl.slurm.step import as_launched

    os.environ.update(as_launched(os.environ))
    file, overrides = split_config(arguments.arguments)
    loaded = config_arguments.load(file, overrides)

    # Only now: torch and its company take seconds to import.
    try:
        from tl.engine import quickstart
        from tl.engine.doctor.examine import examine
    except (ImportError, RuntimeError, OSError) as error:
        if is_main_process():
            print(f"  problem versions   cannot import torch and its company: {error}")
            print("                     → install the project anew, with all from one index: ")
            print("                       pip install -e . --force-reinstall")
        return 1
    return examine(
        loaded,
        with_config=not quickstart.is_asked_for(file, loaded),
        most_images=arguments.images,
        seconds=arguments.timeout,
    )


if __name__ == "__main__":
    sys.exit(main())
