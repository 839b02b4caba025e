"""Every strategy on few labels: what benchmarks/strategies.md comes from.

    python benchmarks/strategies.py --data DATA --weights FILE [--only NAME;...] [--sets NAME,...]

DATA has hymenoptera/ (with train/ and val/) and pacs/cartoon/, FILE is SqueezeNet 1.0's ImageNet
state_dict. What is compared is in `strategy_recipes.py`. Runs that benchmarks/strategies.json has
are not done again, so it can be stopped and gone on with; ``python benchmarks/strategy_table.py``
then brings that page up to date.

The accuracy is that of the last step's model on images that had no say in the training: no best
epoch is chosen on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import images
import machine
import side_by_side
import strategy_run
import strategy_table
from strategy_recipes import RECIPES, SETS, Set

Runs = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""recipe -> data set -> seed -> what came of it"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="has hymenoptera/ and pacs/")
    parser.add_argument("--weights", type=Path, required=True, help="SqueezeNet 1.0's state_dict")
    parser.add_argument("--output", type=Path, default=strategy_table.RESULTS)
    parser.add_argument("--only", help="some of the recipes, with ; between them")
    parser.add_argument("--sets", help=f"some of {','.join(SETS)}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1, 3 if not given")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side, 2 if not given")
    parser.add_argument("more", nargs="*", help="key=value for all runs, such as epochs=1")
    args = parser.parse_args()
    args.only = args.only.split(";") if args.only else list(RECIPES)
    args.sets = args.sets.split(",") if args.sets else list(SETS)
    for given, known in ((args.only, RECIPES), (args.sets, SETS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{unknown[0]}: there are {', '.join(known)}")
    return args


def main() -> int:
    """Returns the exit code: 1 if a run has failed."""
    args = arguments()
    earlier = strategy_table.read(args.output)
    runs: Runs = earlier["runs"] if earlier else {}
    here = machine.describe()
    more = [f"threads={side_by_side.threads(args.at_once)}", *args.more]
    with tempfile.TemporaryDirectory() as made:
        folders = {name: split(args.data, SETS[name], Path(made, name)) for name in args.sets}
        jobs = [
            strategy_run.Job(
                recipe, name, seed, folders[name], args.weights.resolve(), Path(made), more
            )
            for seed in range(args.seeds)
            for recipe in args.only
            for name in args.sets
            if str(seed) not in runs.get(recipe, {}).get(name, {})
        ]
        # On a CPU a process for each: the peak of its memory is then that of one run.
        done = 0
        for job, found in side_by_side.carry_out(
            strategy_run.carry_out, jobs, args.at_once, new_process_each=not here["gpu"]
        ):
            done += 1
            print(f"{job}: {found}", file=sys.stderr, flush=True)
            by_seed = runs.setdefault(job.recipe, {}).setdefault(job.set_name, {})
            by_seed[str(job.seed)] = found
            whole = {"machine": here, "at_once": args.at_once, "runs": runs}
            args.output.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    print(strategy_table.render(strategy_table.read(args.output)))
    return int(done < len(jobs))


def split(data: Path, of: Set, folder: Path) -> Path:
    """A folder of links with train/ and val/, as the data set is cut here."""
    if of.train_per_class is None:
        images.links_to_what_loads(data / of.folder, folder)
    else:
        images.links_to_few(data / of.folder, folder, of.train_per_class, seed=0)
    return folder


if __name__ == "__main__":
    sys.exit(main())
