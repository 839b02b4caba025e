"""The report of a run that goes on: what it is made of is kept, and the page is renewed.

Training never fails because of it.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from tl.data.split import Split
from tl.engine.evaluate import Evaluation
from tl.engine.feature_plan import views_of
from tl.engine.state import Run
from tl.freeze_plan import StagePlan
from tl.models.network import Network
from tl.report import kept
from tl.report.page import write_page
from tl.report.pictures import Pictures
from tl.report.record import read_run
from tl.report.seen import Watch
from tl.report.times import Times, peak_memory
from tl.tracking.tracker import REPORT, one_line

LEAST_SECONDS = 20.0
"""between two pages of a run that goes on"""
SHARE = 0.02
"""of a run's time that goes into them, at the most"""


def begin(run: Run, plans: Sequence[Sequence[StagePlan]]) -> None:
    """Write down what is known before training; ``plans`` are the freeze plans of all phases."""
    live = run.report
    live.plans, live.counted = plans, run.progress.training_seconds
    live.pictures = Pictures(run.source, run.preprocessing)
    live.due = time.monotonic() + LEAST_SECONDS
    if _writes(run):
        with _harmless(run):
            live.times = Times.of_dict(kept.read_json(run.run_dir, kept.TIMES))
            live.times.attempts += 1
            kept.write_json(run.run_dir, kept.RUN, facts(run, plans))


def watch(run: Run) -> Watch | None:
    """What looks at the next evaluation's batches, if there is to be a report."""
    if not (run.config.tracking.report and len(run.source.val)):
        return None
    return Watch(len(run.source.val), len(run.source.classes), run.runtime.device)


def evaluated(run: Run, watch: Watch | None, result: Evaluation | None, is_best: bool) -> None:
    """Keep what was seen if it is the best so far, and renew the page. Called by all alike."""
    if not run.config.tracking.report:
        return
    here = run.runtime
    seen = watch.gather(here.all_reduce, here.from_all) if watch and is_best else None
    memory = here.from_all([peak_memory(here.rank, here.device)])
    if not here.is_main:
        return
    run.report.times.memory = memory
    with _harmless(run):
        if seen is not None and result is not None:
            step, names = run.progress.step, run.source.val.names
            kept.write_validation(run.run_dir, step, result.confusion.numpy(), seen, names)
        _keep_times(run)
        if time.monotonic() >= run.report.due:
            _write(run)


def finish(run: Run, in_a_hurry: bool = False) -> None:
    """Write the page at the end, however it came; called once its state is written down.

    Args:
        in_a_hurry: the process may be killed soon, so no image is read any more.
    """
    if not _writes(run):
        return
    with _harmless(run):
        run.report.pictures.reads = not in_a_hurry
        _keep_times(run)
        kept.write_json(run.run_dir, kept.RUN, facts(run, run.report.plans))
        _write(run)


def _writes(run: Run) -> bool:
    return run.config.tracking.report and run.runtime.is_main


def _keep_times(run: Run) -> None:
    progress, live = run.progress, run.report
    name = run.phases[min(progress.phase, len(run.phases) - 1)].name
    # A run that was rolled back counts on from less than it had.
    passed = max(0.0, progress.training_seconds - live.counted)
    live.counted = progress.training_seconds
    live.times.training[name] = live.times.training.get(name, 0.0) + passed
    live.times.first_step = run.seconds_to_first_step or live.times.first_step
    kept.write_json(run.run_dir, kept.TIMES, live.times.to_dict())


def _write(run: Run) -> None:
    began = time.monotonic()
    with run.report.times.of("report"):
        write_page(read_run(run.run_dir), run.report.pictures, run.run_dir / REPORT)
    took = time.monotonic() - began
    run.report.due = time.monotonic() + max(LEAST_SECONDS, took / SHARE)


@contextlib.contextmanager
def _harmless(run: Run) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it is, the run matters more
        said = one_line(error)
        if said not in run.report.said:
            run.report.said.add(said)
            with contextlib.suppress(OSError):  # it may be the screen that has failed
                run.console.say(f"{REPORT} is not written, the run goes on: {said}")


def facts(run: Run, plans: Sequence[Sequence[StagePlan]]) -> dict[str, Any]:
    """The content of ``report/run.json``."""
    source, target = run.source, run.source.target
    phases = [
        {
            **phase.model_dump(),
            "first_epoch": run.first_epoch(i),
            "first_step": sum(map(run.steps_in, range(i))),
            "steps_of_it": run.steps_in(i),
            "steps_per_epoch": run.steps_per_epoch(phase),
            "views": _views(run, phase.augment, run.network),
            "stages": [asdict(row) for row in plan],
        }
        for i, (phase, plan) in enumerate(zip(run.phases, plans, strict=True))
    ]
    return {
        "network": run.config.model.name,
        "weights": run.config.model.weights,
        "data": source.name,
        "classes": list(source.classes),
        "train_images": len(source.train),
        "val_images": len(source.val),
        "target": None
        if target is None
        else {
            "name": target.name,
            "images": len(target.images),
            "test_images": len(target.test),
            "labelled": isinstance(target.test, Split),
        },
        "preprocessing": run.preprocessing.to_dict(),
        "phases": phases,
        "total_steps": run.total_steps,
        "processes": run.runtime.world_size,
        "device": run.runtime.describe(),
        "device_kind": run.runtime.device.type,
        "versions": {"Python": platform.python_version()} | _versions(),
    }


def _views(run: Run, augment: str, network: Network) -> int | None:
    return views_of(run.config.cache, augment) if network.frozen_prefix else None


def _versions() -> dict[str, str]:
    found = {}
    for name in ("transfer-launcher", "torch", "torchvision", "accelerate", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
