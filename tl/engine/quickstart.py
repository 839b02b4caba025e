"""The quickstart: what transfer buys, shown in two minutes on two CPU cores without a network.

A network learns real handwritten digits 0 to 4. Then digits 5 to 9 are learned from two images of
each: from scratch, by a new head on the frozen network, and by fine-tuning all of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from tl import arguments, yaml12
from tl.arguments import Loaded
from tl.atomic import write_json_atomically
from tl.engine import run_dir, runtime
from tl.engine.run import run as run_one
from tl.errors import Preempted, UserError
from tl.tracking.console import open_console
from tl.tracking.tables import table

# What may be said without asking for another run than the quickstart.
OWN_KEYS = {"run_dir", "seed", "tracking", "mixed_precision", "threads", "num_processes"}

COMMON = (
    "model.name=resnet18",
    "data.source=digits",
    "data.image_size=32",
    "augment=none",
    "tracking.wandb.group=quickstart",
)
PRETRAIN = (
    "data.classes=[0,1,2,3,4]",
    "model.weights=null",
    "strategy=full",
    "epochs=4",
    "optimizer.lr=0.03",
    "schedule.warmup_epochs=1",
)
# The same images, steps and learning rate for all three ways, so that what differs is transfer.
TRANSFER = (
    "data.classes=[5,6,7,8,9]",
    "data.train_per_class=2",
    "global_batch_size=8",
    "epochs=10",
    "optimizer.lr=0.1",
)
WAYS = {
    "from scratch": ("model.weights=null", "strategy=full"),
    "head only": ("strategy=head",),
    "fine-tuned": ("strategy=full",),
}


def is_asked_for(file: str | None, loaded: Loaded) -> bool:
    """Whether a command line asks for the quickstart: no config, and no key of another run."""
    return file is None and {path[0] for path in loaded.origins} <= OWN_KEYS


def run(
    loaded: Loaded, overrides: Sequence[str], *, dry_run: bool = False, resume: str = "never"
) -> dict[str, Any]:
    """Carry the quickstart out below ``run_dir``, show the table, and return its summary.

    Args:
        overrides: the command line's, of `OWN_KEYS`; every run of the quickstart gets them.
        dry_run: show the four freeze plans, but neither train nor write.
        resume: ``auto``: go on where it was interrupted; runs that are done are not run again.

    Raises:
        Preempted: it was interrupted; the message has the command that goes on.
    """
    started = time.perf_counter()
    here = runtime.start(loaded.config)
    console = open_console() if here.is_main else open_console(run_dir.nowhere())
    if resume == "auto" and loaded.config.run_dir is None:
        raise UserError("--resume auto needs run_dir: which quickstart should go on?")
    folder = Path(here.from_main(loaded.config.run_dir or str(run_dir.new_name("quickstart"))))
    if here.from_main((folder / "summary.json").exists()):
        raise UserError(f"run_dir {folder} holds another quickstart; give another run_dir")
    own = [override for override in overrides if not override.startswith("run_dir=")]
    launcher = "tl train" if here.world_size == 1 else "accelerate launch -m launch.train"
    words = [*own, f"run_dir={yaml12.dump_inline(str(folder))}", "--resume", "auto"]
    command = " ".join([launcher, *map(quote, words)])

    def one(name: str, *settings: str) -> dict[str, Any]:
        run_dir_setting = f"run_dir={yaml12.dump_inline(str(folder / name))}"
        one_loaded = arguments.load(None, [*COMMON, *settings, *own, run_dir_setting])
        try:
            return run_one(one_loaded, dry_run=dry_run, resume=resume, shared=here)
        except Preempted as stopped:
            what = str(stopped).partition("; ")[0]
            raise Preempted(f"{name} {what}; to go on: {command}") from None
        except KeyboardInterrupt:  # while a run is prepared, or the second one while it trains
            console.say(f"to go on: {command}")
            raise

    console.say(f"{here.describe()}\n\n1 of 4: a network learns digits 0 to 4 from 721 images\n")
    results = {"pretrained": one("pretrained", *PRETRAIN)}
    for number, (way, settings) in enumerate(WAYS.items(), start=2):
        console.say(f"\n{number} of 4: digits 5 to 9 from two images of each, {way}\n")
        # A dry run has no pretrained network, and needs none to show what would train.
        weights = "null" if dry_run else yaml12.dump_inline(str(folder / "pretrained"))
        results[way] = one(way.replace(" ", "-"), *TRANSFER, f"model.weights={weights}", *settings)
    if dry_run:
        return {}
    seconds = time.perf_counter() - started
    console.say("")
    console.show(
        table(
            "digits 5 to 9 from two images of each",
            ["", "accuracy", "training seconds", "trained parameters"],
            [
                (way, s["val/accuracy"], s["training_seconds"], s["trainable_parameters"])
                for way, s in results.items()
                if way in WAYS
            ],
        )
    )
    console.say(
        f"{seconds:.0f} seconds in all; models, records and configs are in {folder}\n"
        "your own images: accelerate launch launch/train.py data.root=FOLDER"
    )
    summary = {"wall_seconds": round(seconds, 3), "num_processes": here.world_size, **results}
    if here.is_main:
        write_json_atomically(folder / "summary.json", summary)
    return summary
