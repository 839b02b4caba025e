"""What is measured, a function for each part: its rows, its ratios and what has to be said of it.

A part measures its contenders in turn, and what a ratio needs is in the same part, so that both of
its figures come from the same session. ``rows`` has for each contender and value the list over the
rounds; ``ratios`` the spread of each round's own ratio, under the keys of `targets.TARGETS` where
it is one of these.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import contenders
from contenders import ACCELERATE, PYTHON, TWO_PROCESSES, Values, Work
from measure import in_turn, ratio

Part = dict[str, Any]
OWN, COLD, WARM = "this project", "this project, empty cache", "this project, cache of a run before"
OWN_BY_PYTHON = "this project, by python"
ACCELERATE_PEER = "Accelerate's example"
BARE = "bare loop without DDP"
FLAGS = "bare DDP loop with one more small all-reduce"
IN_MEMORY = "limit: step on images in memory"
HEAD_IN_MEMORY = "limit: head on features in memory"


@dataclass(frozen=True)
class Session:
    """What all parts are measured with."""

    work: Work
    """data, network and weights; parts set the rest"""
    rounds: int
    gpu: bool
    quick: bool = False

    @property
    def limit_seconds(self) -> float:
        return 0.5 if self.quick else 10.0

    def but(self, **changes: Any) -> Work:
        """The work of a part; a quick session does as little as shows that it can be done."""
        if self.quick:
            changes["epochs"] = min(2, changes.get("epochs", 1))
        return replace(self.work, **changes)


def limit(what: str, work: Work, seconds: float) -> Values:
    """A rate on what is in memory already, of `workers/limits.py`."""
    arguments = (what, work.data, work.model, work.image_size, work.batch_size, seconds)
    return contenders.worker("limits", *arguments)


def head(session: Session) -> Part:
    """A new head on a frozen network, the view of validation in training, 25 epochs.

    Of the peers Accelerate's example alone: a plain loop and Lightning send each image through the
    network in each epoch just as it does, which takes minutes.
    """
    work = session.but(train="head", augment="none", epochs=25)
    peers = contenders.peers(work, session.gpu)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        measured = {
            COLD: partial(contenders.own_cold, ACCELERATE, work, cache),
            WARM: partial(contenders.own, ACCELERATE, work, cache),
            ACCELERATE_PEER: peers[ACCELERATE_PEER],
            HEAD_IN_MEMORY: partial(limit, "head", work, session.limit_seconds),
        }
        rows = in_turn(measured, session.rounds)
    notes = []
    if not all(rows[COLD]["wrote_cache"]):
        notes.append("no features were written to the cache, so none came from there")
    notes += disagreements(rows, work.images["val"])
    base = rows[ACCELERATE_PEER]["wall_seconds"]
    return {
        "work": describe(work),
        "rows": rows,
        "ratios": {
            "head_cold": ratio(base, rows[COLD]["wall_seconds"]),
            "head_warm": ratio(base, rows[WARM]["wall_seconds"]),
            "head_limit": ratio(
                rows[WARM]["images_per_second"], rows[HEAD_IN_MEMORY]["images_per_second"]
            ),
        },
        "notes": notes,
    }


def disagreements(rows: dict[str, Any], images: int) -> list[str]:
    """Where the last validation accuracy is more than one of ``images`` away from ours."""
    own = median(rows[COLD]["last_accuracy"])
    notes = []
    for name, row in rows.items():
        if "last_accuracy" in row:
            away = max(abs(value - own) * images for value in row["last_accuracy"])
            if away > 1.01:  # they are counts over the number of images, rounded
                notes.append(f"{name}: last validation accuracy is {away:.0f} images from ours")
    return notes


def finetune(session: Session) -> Part:
    """All layers, random resized crop and flip, 3 epochs.

    This project by its launcher, which is a process of its own that imports torch first, and, as
    all peers but Accelerate's example are started, without one.
    """
    work = session.but()
    peers = contenders.peers(work, session.gpu)
    measured = {
        OWN: partial(contenders.own, ACCELERATE, work),
        OWN_BY_PYTHON: partial(contenders.own, PYTHON, work),
        **peers,
        IN_MEMORY: partial(limit, "step", work, session.limit_seconds),
    }
    rows = in_turn(measured, session.rounds)
    seconds = {name: row["wall_seconds"] for name, row in rows.items() if name != IN_MEMORY}
    fastest = min((seconds[name] for name in peers), key=median)
    fastest_by_python = min((seconds[n] for n in peers if n != ACCELERATE_PEER), key=median)
    return {
        "work": describe(work),
        "rows": rows,
        "ratios": {
            "finetune_peers": ratio(fastest, seconds[OWN]),
            "finetune_by_python": ratio(fastest_by_python, seconds[OWN_BY_PYTHON]),
            "finetune_limit": ratio(
                rows[OWN]["images_per_second"], rows[IN_MEMORY]["images_per_second"]
            ),
        },
        "notes": contenders.not_at_hand(work, session.gpu),
    }


def overhead(session: Session) -> Part:
    """Time of a step with networks of almost no arithmetic, images in memory, trackers on."""
    steps, warm_up = (120, 20) if session.quick else (700, 100)
    toys = ("21 layers",) if session.quick else ("one layer", "21 layers")
    measured: dict[str, Callable[[], Values]] = {}
    for toy in toys:
        for processes in (1, 2):
            where = f"{toy}, {processes} process" + ("es" if processes > 1 else "")
            torchrun = [str(contenders.BIN / "torchrun"), "--nproc-per-node", str(processes)]
            arguments = (toy, steps, warm_up)
            own = torchrun if processes > 1 else PYTHON
            measured[f"{where}: {OWN}"] = partial(_own_loop, own, *arguments)
            measured[f"{where}: bare DDP loop"] = partial(
                contenders.worker, "bare_loop", *arguments, "ddp", launcher=torchrun
            )
            if processes > 1:
                measured[f"{where}: {FLAGS}"] = partial(
                    contenders.worker, "bare_loop", *arguments, "flags", launcher=torchrun
                )
            else:
                measured[f"{where}: {BARE}"] = partial(
                    contenders.worker, "bare_loop", *arguments, "alone"
                )
    # How much the machine itself slows down when both cores work, with nothing exchanged.
    alone, apart = "21 layers, 1 process", "21 layers, two separate runs at once"
    for name in (OWN, BARE):
        measured[f"{apart}: {name}"] = partial(_two_at_once, measured[f"{alone}: {name}"])
    rows = in_turn(measured, session.rounds)

    def over_bare(where: str) -> dict[str, float]:
        own, bare = rows[f"{where}: {OWN}"], rows[f"{where}: bare DDP loop"]
        return ratio(own["microseconds"], bare["microseconds"])

    def slow_down(name: str) -> dict[str, float]:
        together, single = rows[f"{apart}: {name}"], rows[f"{alone}: {name}"]
        return ratio(together["microseconds"], single["microseconds"])

    return {
        "work": {"steps": steps - warm_up},
        "rows": rows,
        "ratios": {
            **{
                f"overhead_{'1' if toy == 'one layer' else '21'}_{n}": over_bare(f"{toy}, {where}")
                for toy in toys
                for n, where in ((1, "1 process"), (2, "2 processes"))
            },
            f"21 layers beside a separate run of the same, over alone: {OWN}": slow_down(OWN),
            f"21 layers beside a separate run of the same, over alone: {BARE}": slow_down(BARE),
        },
        "notes": [],
    }


def _own_loop(launcher: list[str], *arguments: object) -> Values:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        return contenders.worker("own_loop", *arguments, run_dir, launcher=launcher)


def _two_at_once(measure: Callable[[], Values]) -> Values:
    """The mean of both."""
    with ThreadPoolExecutor(2) as pool:
        both = [task.result() for task in [pool.submit(measure) for _ in range(2)]]
    return {name: mean(values[name] for values in both) for name in both[0]}


def start(session: Session) -> Part:
    """Seconds from the command to the end of the first step; one epoch of fine-tuning."""
    work = session.but(epochs=1)
    peers = contenders.peers(work, gpu=False)
    measured = {
        "this project, by accelerate launch": partial(contenders.own, ACCELERATE, work),
        f"{ACCELERATE_PEER}, by accelerate launch": peers[ACCELERATE_PEER],
        "this project, by python": partial(contenders.own, PYTHON, work),
        "plain PyTorch loop, by python": peers["plain PyTorch loop"],
    }
    rows = in_turn(measured, session.rounds)
    own, bare, own_python, plain = (row["seconds_to_first_step"] for row in rows.values())
    return {
        "work": describe(work),
        "rows": rows,
        "ratios": {
            "start": ratio(own, bare),
            "by python, over the plain loop": ratio(own_python, plain),
        },
        "notes": [],
    }


def memory(session: Session) -> Part:
    """Peak memory of training ResNet-50 by strategy."""
    work = session.but(model="resnet50", weights=None, epochs=1)
    always = [
        f"data.max_train={3 * work.batch_size}",
        f"data.max_val={work.batch_size}",
        "tracking.wandb.mode=disabled",
    ]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")

        def peak(strategy: str, augment: str, *caching: str) -> Values:
            arguments = contenders.own_arguments(replace(work, train=strategy, augment=augment))
            with tempfile.TemporaryDirectory() as run_folder:
                run_dir = f"run_dir={run_folder}/run"
                return contenders.worker("memory", *arguments, *always, run_dir, *caching)

        in_cache = ("head", "none", f"cache.folder={cache}")
        peak(*in_cache)  # fills it
        measured = {
            name: partial(peak, name, "standard", "cache.features=false")
            for name in ("full", "last_stages(2)", "head")
        }
        from_cache = contenders.has_files(cache)
        if from_cache:
            measured["head, from the cache"] = partial(peak, *in_cache)
        rows = in_turn(measured, session.rounds)
    full = rows["full"]["peak_mb"]
    return {
        "work": {"model": work.model, "batch_size": work.batch_size, "image_size": work.image_size},
        "rows": rows,
        "ratios": {
            f"{name}, over full": ratio(row["peak_mb"], full)
            for name, row in rows.items()
            if name != "full"
        },
        "notes": []
        if from_cache
        else ["head from the cache: not measured, no features were written to the cache"],
    }


def scaling(session: Session) -> Part:
    """Images/s of full fine-tuning on one process and on two, which share the machine's cores."""
    work = session.but(epochs=2)
    measured = {
        "1 process": partial(contenders.own, PYTHON, work),
        "2 processes": partial(contenders.own, TWO_PROCESSES, work),
    }
    rows = in_turn(measured, session.rounds)
    one, two = (rows[name]["images_per_second"] for name in measured)
    return {
        "work": describe(work),
        "rows": rows,
        "ratios": {"images/s on two processes, over one": ratio(two, one)},
        "notes": [],
    }


def limits(session: Session) -> Part:
    """Rates on batches in memory, and of decoding."""
    work = session.but()
    measured = {
        "forward pass": partial(limit, "forward", work, session.limit_seconds),
        "training step": partial(limit, "step", work, session.limit_seconds),
        "training step of the head alone": partial(limit, "head", work, session.limit_seconds),
        "decoding": partial(limit, "decode", work, session.limit_seconds),
        "decoding, crop, flip and normalisation": partial(
            limit, "views", work, session.limit_seconds
        ),
    }
    return {
        "work": describe(work),
        "rows": in_turn(measured, session.rounds),
        "ratios": {},
        "notes": [],
    }


def describe(work: Work) -> dict[str, Any]:
    """The work without this machine's paths."""
    values = asdict(work)
    del values["data"]
    weights = work.weights.name if work.weights else None
    counts = {f"{split}_images": count for split, count in work.images.items()}
    return {**values, "weights": weights, **counts}


PARTS: dict[str, Callable[[Session], Part]] = {
    "head": head,
    "finetune": finetune,
    "limits": limits,
    "overhead": overhead,
    "start": start,
    "memory": memory,
    "scaling": scaling,
}
