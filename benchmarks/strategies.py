"""Every strategy on few labels: what the README's table of strategies comes from.

    python benchmarks/strategies.py --data DATA --weights FILE [--only NAME;...] [--sets NAME,...]

DATA has hymenoptera/ (with train/ and val/) and pacs/cartoon/, FILE is SqueezeNet 1.0's ImageNet
state_dict. What is compared is in `strategy_recipes.py`. Runs that benchmarks/strategies.json has
are not done again, so it can be stopped and gone on with; ``python benchmarks/strategy_table.py``
then brings the README up to date.

The accuracy is that of the last step's model on images that had no say in the training: no best
epoch is chosen on them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import images
import machine
import strategy_table
from strategy_recipes import RECIPES, SETS, Set
from strategy_run import Job, carry_out

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
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, 1 if not given")
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
    failed = 0
    with tempfile.TemporaryDirectory() as made:
        folders = {name: split(args.data, SETS[name], Path(made, name)) for name in args.sets}
        jobs = [
            Job(recipe, name, seed, folders[name], args.weights.resolve(), Path(made), args.more)
            for seed in range(args.seeds)
            for recipe in args.only
            for name in args.sets
            if str(seed) not in runs.get(recipe, {}).get(name, {})
        ]
        # On a CPU a process for each: the peak of its memory is then that of one run.
        each = None if here["gpu"] else 1
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.at_once, spawn, max_tasks_per_child=each) as pool:
            begun = {pool.submit(carry_out, job): job for job in jobs}
            for task in as_completed(begun):
                job = begun[task]
                what = f"{job.recipe}, {job.set_name}, seed {job.seed}"
                if error := task.exception():
                    print(f"{what} failed: {error}", file=sys.stderr, flush=True)
                    failed = 1
                    continue
                values = task.result()
                print(f"{what}: {values}", file=sys.stderr, flush=True)
                by_seed = runs.setdefault(job.recipe, {}).setdefault(job.set_name, {})
                by_seed[str(job.seed)] = values
                whole = {"machine": here, "at_once": args.at_once, "runs": runs}
                args.output.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    print(strategy_table.render(strategy_table.read(args.output)))
    return failed


def split(data: Path, of: Set, folder: Path) -> Path:
    """A folder of links with train/ and val/, as the data set is cut here."""
    if of.train_per_class is None:
        images.links_to_what_loads(data / of.folder, folder)
    else:
        images.links_to_few(data / of.folder, folder, of.train_per_class, seed=0)
    return folder


if __name__ == "__main__":
    sys.exit(main())
