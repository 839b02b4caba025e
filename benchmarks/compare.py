"""The same work with this project and with what one would write otherwise, in one session.

    python benchmarks/compare.py --data FOLDER --weights FILE

FOLDER has train/ and val/ (hymenoptera), FILE is a state_dict of the network for 1000 classes. What
is measured in each part is said in `parts.py`, the peers are in `peers/`, and what is to be reached
is in `targets.py`. Results go to benchmarks/results.json, part by part; of a file that is there
already the other parts are kept. ``python benchmarks/table.py`` then brings benchmarks/speed.md up
to date.

``--quick`` shows in a few minutes that all of it works, on images that it makes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import images
import machine
import table
from contenders import Work
from measure import CommandFailedError
from parts import PARTS, Part, Session
from targets import verdicts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, help="state_dict of the network; else random")
    parser.add_argument("--model", default="squeezenet1_0", help="a network of torchvision.models")
    parser.add_argument("--output", type=Path, default=table.RESULTS)
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, 3 if not given")
    parser.add_argument("--quick", action="store_true", help="tiny made images, one round")
    args = parser.parse_args()
    args.only = args.only.split(",") if args.only else list(PARTS)
    if unknown := [name for name in args.only if name not in PARTS]:
        parser.error(f"--only {unknown[0]}: there are {', '.join(PARTS)}")
    if args.data is None and not args.quick:
        parser.error("--data FOLDER, or --quick")
    if args.quick and args.output == table.RESULTS:
        parser.error("--quick needs an --output of its own: its figures mean nothing")
    args.repeats = 1 if args.quick else args.repeats
    return args


def main() -> int:
    """Returns the exit code: 1 if a part has failed."""
    args = arguments()
    here = machine.describe()
    gpu = here["gpu"] is not None
    results = {"machine": here, "quick": args.quick, "targets": [], "parts": {}}
    results["parts"] = kept(args.output, results)
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(args, Path(folder), gpu)
        for name in args.only:
            print(f"{name}: {PARTS[name].__doc__}", file=sys.stderr, flush=True)
            results["parts"][name] = measured(name, session)
            ratios: dict[str, Any] = {}
            for part in results["parts"].values():
                ratios |= part.get("ratios", {})
            results["targets"] = verdicts(ratios, gpu)
            save(args.output, results)
    print(table.render(results))
    return int(any("error" in results["parts"][name] for name in args.only))


def prepare(args: argparse.Namespace, folder: Path, gpu: bool) -> Session:
    """The images that all read, and the session on them."""
    data = args.data
    if data is None:
        data = folder / "made"
        images.make_tiny(data)
    counts = images.links_to_what_loads(data, folder / "data")
    print(f"images: {counts}", file=sys.stderr)
    weights = args.weights.resolve() if args.weights else None
    work = Work(folder / "data", args.model, weights)
    if args.quick:
        work = Work(folder / "data", args.model, weights, image_size=64, batch_size=4)
    return Session(work, args.repeats, gpu, args.quick)


def measured(name: str, session: Session) -> Part:
    """A part, with its date, or what it failed of: the others are measured all the same."""
    began = time.perf_counter()
    try:
        part = PARTS[name](session)
    except CommandFailedError as error:
        print(f"{name} failed: {error}", file=sys.stderr)
        part = {"error": str(error)}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.describe()["commit"],
        "rounds": session.rounds,
        "took_seconds": round(time.perf_counter() - began, 1),
        **part,
    }


def kept(output: Path, results: dict[str, Any]) -> dict[str, Part]:
    """The parts of an earlier session, if it was one of the same kind on such a machine."""
    earlier = table.read(output)

    def place(of: dict[str, Any]) -> tuple[Any, ...]:
        return of["quick"], {**of["machine"], "commit": None}

    return earlier["parts"] if earlier and place(earlier) == place(results) else {}


def save(output: Path, results: dict[str, Any]) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False)
    output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
