"""Train: the entry point for `accelerate launch`, `torchrun`, `python` and `tl train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tl.command import Parser, exit_code, is_main_process, split_config

if TYPE_CHECKING:
    from tl.arguments import Loaded


def parser() -> Parser:
    """The command line; ``--help`` lists every key."""
    from tl.config_help import describe_keys

    made = Parser(
        prog="tl train",
        description="Transfer a pretrained network to your images. Without a config: a quickstart.",
        epilog=describe_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("arguments", nargs="*", metavar="CONFIG.yaml | key.path=value")
    made.add_argument(
        "--resume",
        default="never",
        metavar="auto|never|DIR",
        help="auto: go on from the newest whole checkpoint of run_dir, start if there is none; "
        "DIR: go on from the run in that folder",
    )
    made.add_argument(
        "--dry-run", action="store_true", help="check everything, show the freeze plan, and stop"
    )
    made.add_argument(
        "--print-config",
        action="store_true",
        help="print the resolved config and where each value came from, and stop",
    )
    made.add_argument(
        "--print-schema",
        action="store_true",
        help="print a JSON schema of the config for editors, and stop",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl import arguments as config_arguments
    from tl.config_help import describe_config, json_schema
    from tl.engine.run_dir import of_command

    file, overrides = split_config(arguments.arguments)
    if arguments.print_schema:
        if is_main_process():
            print(json_schema())
        return
    file, folder = of_command(file, arguments.resume)
    loaded = config_arguments.load(file, overrides, run_dir=folder)
    if arguments.print_config:
        if is_main_process():
            print(describe_config(_spelled_out(loaded)))
        return

    # Only now: torch and its company take seconds to import.
    from tl.engine import quickstart, run, runtime

    if quickstart.is_asked_for(file, loaded):
        quickstart.run(loaded, overrides, dry_run=arguments.dry_run, resume=arguments.resume)
    else:
        run.run(loaded, dry_run=arguments.dry_run, resume=arguments.resume)
    runtime.stop()


def _spelled_out(loaded: Loaded) -> Loaded:
    """With its phases, also where the strategy has to see network and data for that."""
    if loaded.later is None:
        return loaded
    from tl.engine.strategy import spell_out_alone

    return spell_out_alone(loaded)


if __name__ == "__main__":
    sys.exit(main())
