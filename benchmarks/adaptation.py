"""Domain adaptation, every method both ways: what the README's table of it comes from.

    python benchmarks/adaptation.py --data PACS --weights FILE [--only NAME;...] [--seeds N]

PACS has photo/ and cartoon/, FILE is SqueezeNet 1.0's ImageNet state_dict. What is compared is in
`adaptation_recipes.py`. All but the last fire module, a bottleneck and the head is frozen, so its
features are computed once for all runs. Runs that benchmarks/adaptation.json has are not done
again; ``python benchmarks/adaptation_table.py`` then brings the README up to date.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adaptation_table
import machine
from adaptation_recipes import COMMON, DIRECTIONS, RECIPES, WITHOUT_SOURCE, Keys

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tl.command import let_idle_threads_sleep  # noqa: E402 - the path is known only now

KEPT = ("step", "val/accuracy", "target/im", "target/snd", "target/entropy", "oracle/accuracy")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="has photo/ and cartoon/")
    parser.add_argument("--weights", type=Path, required=True, help="SqueezeNet 1.0's state_dict")
    parser.add_argument("--output", type=Path, default=adaptation_table.RESULTS)
    parser.add_argument("--only", help="some of the recipes, with ; between them")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1, 3 if not given")
    parser.add_argument("more", nargs="*", help="key=value for all runs, such as steps=10")
    args = parser.parse_args()
    args.only = args.only.split(";") if args.only else list(RECIPES)
    if unknown := [name for name in args.only if name not in RECIPES]:
        parser.error(f"{unknown[0]}: there are {'; '.join(RECIPES)}")
    return args


def main() -> int:
    """Returns the exit code: 1 if a run has failed."""
    args = arguments()
    let_idle_threads_sleep()  # before torch is imported
    results = adaptation_table.read(args.output) or {"runs": {}}
    results["machine"] = machine.describe()
    runs, failed = results["runs"], 0
    with tempfile.TemporaryDirectory() as made:
        for seed in range(args.seeds):
            for direction in DIRECTIONS:
                for recipe in args.only:
                    done = runs.setdefault(recipe, {}).setdefault(direction, {})
                    if str(seed) in done:
                        continue
                    try:
                        done[str(seed)] = carry_out(args, Path(made), recipe, direction, seed)
                    except RuntimeError as error:
                        print(
                            f"{recipe}, {direction}, seed {seed} failed: {error}", file=sys.stderr
                        )
                        failed = 1
                        continue
                    last = done[str(seed)]["evaluations"][-1]
                    print(
                        f"{recipe}, {direction}, seed {seed}: {last}", file=sys.stderr, flush=True
                    )
                    args.output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(adaptation_table.render(results))
    return failed


def carry_out(
    args: argparse.Namespace, made: Path, recipe: str, direction: str, seed: int
) -> dict[str, Any]:
    """Train in this process, and return its evaluations.

    Raises:
        RuntimeError: the run has failed; the message has the end of what it said.
    """
    source, target = DIRECTIONS[direction]
    run_dir = made / f"{recipe}-{source}-{seed}".replace(" ", "-")
    keys: Keys = {
        **COMMON,
        "model.weights": args.weights.resolve(),
        "data.root": args.data.resolve(),
        "data.source_domains": f"[{source}]",
        "data.target_domain": target,
        "seed": seed,
        "run_dir": run_dir,
        "cache.folder": made / "cache",
        **RECIPES[recipe],
    }
    if recipe in WITHOUT_SOURCE:
        before = run_dir.with_name(f"{run_dir.name}-source")
        train_source = {**keys, **RECIPES["source only"], "run_dir": before}
        _train(train_source, args.more, before)
        for name in ("data.root", "data.source_domains", "data.target_domain"):
            del keys[name]
        keys["data.target_root"] = args.data.resolve() / target
        keys["model.weights"] = before / "last"
    return _train(keys, args.more, run_dir)


def _train(keys: Keys, more: list[str], run_dir: Path) -> dict[str, Any]:
    from launch import train
    from tl.engine import runtime

    log = run_dir.with_name(f"{run_dir.name}.log")
    with output_to(log):
        code = train.main([f"{key}={value}" for key, value in keys.items()] + more)
        runtime.stop()  # the next one starts anew in this process
    if code:
        raise RuntimeError(log.read_text()[-2000:])
    summary = json.loads((run_dir / "summary.json").read_text())
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    evaluations = [
        {key: round(line[key], 5) for key in KEPT if key in line}
        for line in lines
        if "target/im" in line
    ]
    shutil.rmtree(run_dir / "checkpoints")
    return {"evaluations": evaluations, "training_seconds": summary["training_seconds"]}


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send what this process prints in the block to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), before, strict=True):
                os.dup2(saved, number)
                os.close(saved)


if __name__ == "__main__":
    sys.exit(main())
