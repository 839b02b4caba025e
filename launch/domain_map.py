"""Map: the entry point for `accelerate launch`, `torchrun`, `python` and `tl map`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tl.command import Parser, at_least, exit_code

EPILOG = """\
Before is the network as the run began, behind its last stage that was not random then; after is the
run's model, behind the last stage before the head, which is what the head goes by. Looked at are
validation images of the source and the images that the target is tested on. Labels of the target,
where it has them, colour its points and give accuracies; nothing is chosen by them.

The distance is 2 (1 - 2 e), e being the error of a linear classifier of domains on features that it
has not seen: the proxy A-distance (Ben-David et al., NIPS 2006), 0 to 2.

  tl map runs/photo-to-cartoon
  tl map runs/source-only data.target_root=photos/new      # of a run that adapted to nothing
"""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="tl map",
        description="Draw source and target as a network sees them before and after adaptation.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("run", type=Path, metavar="RUN_DIR")
    made.add_argument("arguments", nargs="*", metavar="key.path=value")
    made.add_argument(
        "--images",
        type=at_least(10),
        default=500,
        metavar="N",
        help="at most, of each domain; default: 500",
    )
    made.add_argument("--batch-size", type=at_least(1), default=64, metavar="N", help="default: 64")
    made.add_argument(
        "--bad-images", choices=("error", "skip"), help="as in tl evaluate; data.bad_images"
    )
    made.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="for domain_map.json, domain_map.png and adaptation.png; default: RUN_DIR",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    from tl.engine.evaluation_request import request
    from tl.errors import UserError

    asked = request(
        arguments.run,
        arguments.arguments,
        output=arguments.output or arguments.run,
        batch_size=arguments.batch_size,
        bad_images=arguments.bad_images,
    )
    if asked.folder is not None:
        raise UserError(
            f"{asked.folder} is no key.path=value. To look at another target give "
            f"data.target_root={asked.folder}"
        )

    # Only now: torch and its company take seconds to import.
    from tl.engine.domain_map import map_domains

    map_domains(asked, arguments.images)


if __name__ == "__main__":
    sys.exit(main())
