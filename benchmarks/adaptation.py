"""Domain adaptation, every method both ways: what benchmarks/adaptation.md comes from.

    python benchmarks/adaptation.py --data PACS --weights FILE [--only NAME;...] [--seeds N]

PACS has photo/ and cartoon/, FILE is SqueezeNet 1.0's ImageNet state_dict. What is compared is in
`adaptation_recipes.py`. All but the last fire module, a bottleneck and the head is frozen, so its
features are computed once for all runs. Runs that benchmarks/adaptation.json has are not done
again; ``python benchmarks/adaptation_table.py`` then brings that page up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import adaptation_run
import adaptation_table
import machine
import side_by_side
from adaptation_recipes import DIRECTIONS, RECIPES


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="has photo/ and cartoon/")
    parser.add_argument("--weights", type=Path, required=True, help="SqueezeNet 1.0's state_dict")
    parser.add_argument("--output", type=Path, default=adaptation_table.RESULTS)
    parser.add_argument("--only", help="some of the recipes, with ; between them")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1, 3 if not given")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side, 2 if not given")
    parser.add_argument("more", nargs="*", help="key=value for all runs, such as steps=10")
    args = parser.parse_args()
    args.only = args.only.split(";") if args.only else list(RECIPES)
    if unknown := [name for name in args.only if name not in RECIPES]:
        parser.error(f"{unknown[0]}: there are {'; '.join(RECIPES)}")
    return args


def main() -> int:
    """Returns the exit code: 1 if a run has failed."""
    args = arguments()
    results = adaptation_table.read(args.output) or {"runs": {}, "seconds": 0.0}
    results["machine"], results["at_once"] = machine.describe(), args.at_once
    runs, before, began = results["runs"], results["seconds"], time.monotonic()
    more = [f"threads={side_by_side.threads(args.at_once)}", *args.more]
    with tempfile.TemporaryDirectory() as made:
        jobs = [
            adaptation_run.Job(recipe, direction, seed, args.data, args.weights, Path(made), more)
            for seed in range(args.seeds)
            for recipe in args.only
            for direction in DIRECTIONS  # the innermost: the first two share no features
            if str(seed) not in runs.get(recipe, {}).get(direction, {})
        ]
        done = 0
        for job, found in side_by_side.carry_out(
            adaptation_run.carry_out, jobs, args.at_once, new_process_each=False
        ):
            done += 1
            print(f"{job}: {found['evaluations'][-1]}", file=sys.stderr, flush=True)
            runs.setdefault(job.recipe, {}).setdefault(job.direction, {})[str(job.seed)] = found
            results["seconds"] = before + time.monotonic() - began
            args.output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(adaptation_table.render(results))
    return int(done < len(jobs))


if __name__ == "__main__":
    sys.exit(main())
