"""Cache: the entry point for `python` and `tl cache`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tl.command import Parser, exit_code, is_override

EPILOG = """\
A frozen part of a network makes the same of an image in every epoch and in every run. So that is
computed once and kept, within cache.max_bytes; the least recently used makes room. All of it may be
deleted at any time: what a run needs again is computed again.

  tl cache list
  tl cache clear               everything that no run is using
  tl cache clear 3f2a 91c0     these, by the first characters of their keys
  tl cache list cache.folder=/scratch/me
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl cache",
        description="List or clear the features that runs keep.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("what", choices=["list", "clear"])
    made.add_argument("arguments", nargs="*", metavar="KEY | cache.folder=FOLDER")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl import arguments as config_arguments
    from tl.engine.cache_command import clear_cache, list_cache
    from tl.errors import UserError

    overrides = [word for word in arguments.arguments if is_override(word)]
    keys = [word for word in arguments.arguments if word not in overrides]
    cache = config_arguments.load(None, overrides).config.cache
    if arguments.what == "clear":
        clear_cache(cache, keys)
    elif keys:
        raise UserError(f"tl cache list takes no key; {keys[0]} is one")
    else:
        list_cache(cache)


if __name__ == "__main__":
    sys.exit(main())
