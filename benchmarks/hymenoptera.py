"""The table of hymenoptera.md: each recipe, with several seeds, on one and two processes.

    python benchmarks/hymenoptera.py DATA WEIGHTS OUTPUT

DATA has train/ and val/ of hymenoptera, WEIGHTS is SqueezeNet 1.0's ImageNet state_dict. Runs go
below OUTPUT; those that are done are not done again. Prints a table in Markdown.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = {"feature_extractor": (0, 1, 2), "finetune": (0, 1, 2), "few_labels": (0, 1, 2, 3, 4)}
BIN = Path(sys.executable).parent
LAUNCHERS = {
    1: [sys.executable],
    2: [
        str(BIN / "accelerate"),
        "launch",
        "--config_file",
        str(ROOT / "configs" / "accelerate" / "cpu_2_processes.yaml"),
    ],
}


def main() -> None:
    """Run what is not there yet, and print the table."""
    data, weights, output = sys.argv[1:]
    print("| config | seed | processes | best | last | validation loss of the best |")
    print("|---|---|---|---|---|---|")
    for recipe, seeds in RECIPES.items():
        for seed in seeds:
            for processes, launcher in LAUNCHERS.items():
                run_dir = Path(output) / f"{recipe}-{seed}-{processes}"
                if not (run_dir / "summary.json").exists():
                    arguments = [
                        str(ROOT / "configs" / f"{recipe}.yaml"),
                        f"data.root={data}",
                        "model.name=squeezenet1_0",
                        f"model.weights={weights}",
                        f"seed={seed}",
                        f"run_dir={run_dir}",
                        "tracking.wandb.mode=disabled",
                    ]
                    train = str(ROOT / "launch" / "train.py")
                    subprocess.run([*launcher, train, *arguments], check=True, stdout=sys.stderr)
                summary = json.loads((run_dir / "summary.json").read_text())
                best, last = summary["val/accuracy"], summary["last/val/accuracy"]
                print(
                    f"| {recipe} | {seed} | {processes} | {best:.4f} | {last:.4f} "
                    f"| {summary['val/loss']:.6f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
