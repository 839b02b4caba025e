"""A run from its config to its summary: check, prepare, train phase after phase, report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl.arguments import Loaded
from tl.atomic import write_json_atomically
from tl.command import DONE, exit_code_of
from tl.config import Config, TrackingConfig
from tl.data.sources import open_source
from tl.data.streams import BadImages, default_workers
from tl.engine import checkpoint, run_dir, runtime
from tl.engine.interrupt import Interrupt
from tl.engine.loop import save_best, train_phase
from tl.engine.prepare import describe_source, describe_weights, identity, make_network, show_plan
from tl.engine.runtime import Runtime, check_batch
from tl.engine.state import Progress, Run
from tl.errors import UserError
from tl.freeze_plan import count_parameters
from tl.models import published, saved, zoo
from tl.models.network import Network
from tl.objectives import objective_class
from tl.tracking.console import ConsoleTracker, open_console
from tl.tracking.status import read_status, write_status
from tl.tracking.tracker import RunInfo
from tl.tracking.trackers import open_trackers


def run(
    loaded: Loaded,
    *,
    dry_run: bool = False,
    resume: str = "never",
    shared: Runtime | None = None,
) -> dict[str, Any]:
    """Carry out a run, and return its summary (the content of ``summary.json``).

    Args:
        dry_run: check everything and show the freeze plan, but neither train nor write.
        resume: ``never``, ``auto`` or the folder of a run.
        shared: the runtime of an earlier run in this process, to go on with.

    Raises:
        UserError: a mistake in the config, the data or the weights, before anything is trained.
    """
    started = time.perf_counter()
    config = loaded.config
    here = shared or runtime.start(config)
    console = open_console() if here.is_main else open_console(run_dir.nowhere())
    if shared is None:
        console.say(here.describe())
    for phase in loaded.phases:
        check_batch(phase, here.world_size)
        objective_class(phase.objective)
    views = config.tracking if here.is_main else TrackingConfig(trackers=[])
    trackers = open_trackers(views, console)
    folder = here.on_main(lambda: _folder(config, resume))

    # The cheap checks are done. Data and weights take a while.
    source = here.on_all(lambda: open_source(config.data, config.seed))
    images = identity(source)
    here.check_same("images", images)
    for note in (*source.notes, describe_source(source)):
        console.say(note)
    zoo.check_architecture(config.model.name)
    here.first_on_each_node(lambda: published.download(config.model.name, config.model.weights))
    network, preprocessing, report = here.on_all(lambda: make_network(config, source))
    console.say(describe_weights(report))
    for phase in loaded.phases:
        show_plan(network, phase, report, here, console)
    if dry_run:
        console.say("dry run: all of this checks out; nothing was trained or written")
        return {}

    # From here on the run has its folder.
    found = None
    if resume != "never":
        found = here.on_main(lambda: _newest(folder, loaded, console))
    run_id = here.on_main(lambda: run_dir.claim(folder, loaded))
    progress, tensors = Progress(), None
    if found is not None:
        progress, tensors = here.on_all(lambda: restore(found, network, here))
        console.say(f"going on after step {progress.step}, from {found}")
        check_same_images(progress, images)
        if progress.precision != here.precision:
            console.say(f"note: precision was {progress.precision}, and is {here.precision} now")
        done = progress.phase == len(loaded.phases)
        if done and here.on_main((folder / "summary.json").is_file):
            console.say("the run is done already")
            return here.on_main(lambda: json.loads((folder / "summary.json").read_text()))
    progress.data, progress.precision = images, here.precision
    network.to(here.device).to(memory_format=torch.channels_last)
    workers = config.data.workers
    bad_images = BadImages(config.data.bad_images, config.data.max_bad_images)
    bad_images.reasons.update(progress.bad_images)
    this = Run(
        config=config,
        phases=loaded.phases,
        run_dir=folder,
        runtime=here,
        source=source,
        network=network,
        preprocessing=preprocessing,
        trackers=trackers,
        console=console,
        progress=progress,
        bad_images=bad_images,
        workers=default_workers(here.processes_on_node) if workers is None else workers,
        interrupt=Interrupt(),
        started=started - progress.wall_seconds,
    )
    with (
        console,
        this.interrupt.listening(),
        _recorded(this, run_id, resumed=found is not None) as summary,
    ):
        if progress.best.get("step") == progress.step:  # what the run may have died before
            save_best(this)
        for index in range(progress.phase, len(loaded.phases)):
            train_phase(this, index, tensors if progress.phase_step else None)
            tensors = None
            here.accelerator.free_memory()
        progress.wall_seconds = time.perf_counter() - this.started
        if here.is_main:
            saved.save(network, source.classes, preprocessing, folder / "last")
            summary.update(summarize(this))
            write_json_atomically(folder / "summary.json", summary)
        summary.update(here.from_main(summary))
    show_summary(summary, folder, console)
    return summary


# -------------------------------------------------------------------------- beginning and resuming


def _folder(config: Config, resume: str) -> Path:
    """Where the run writes. `--resume DIR` names the folder of the run that goes on.

    Raises:
        UserError: the folder is another run's, or there is no run to go on with.
    """
    if resume in ("never", "auto"):
        if config.run_dir is None and resume == "auto":
            raise UserError("--resume auto needs run_dir: which run should go on?")
        what = f"{config.model.name}-{config.strategy or 'phases'}"
        folder = Path(config.run_dir) if config.run_dir else run_dir.new_name(what)
    else:
        folder = Path(resume)
        if not (folder / run_dir.CONFIG).is_file():
            raise UserError(f"--resume {resume}: no run is in that folder (no {run_dir.CONFIG})")
        if config.run_dir is not None and Path(config.run_dir).resolve() != folder.resolve():
            raise UserError(f"--resume {resume} goes on in that folder; leave run_dir out")
    run_dir.check_free(folder, resume)
    return folder


def restore(found: Path, network: Network, here: Runtime) -> tuple[Progress, dict[str, Tensor]]:
    """Load a checkpoint into the network; returns how far it had come, and all its tensors."""
    state, tensors = checkpoint.read(found)
    progress = Progress(**{f.name: state[f.name] for f in dataclasses.fields(Progress)})
    network.model.load_state_dict(checkpoint.part("network", tensors))
    if here.accelerator.scaler is not None and state["scaler"] is not None:
        here.accelerator.scaler.load_state_dict(state["scaler"])
    return progress, tensors


def check_same_images(progress: Progress, images: str) -> None:
    """Raise UserError if the data is not what the run began with: its order would be another."""
    if progress.data != images:
        raise UserError(
            "the run cannot go on: its images, or their classes, are not those it began with. "
            "Put the data back as it was, or start a new run with another run_dir."
        )


def _newest(folder: Path, loaded: Loaded, console: ConsoleTracker) -> Path | None:
    """The checkpoint to go on from, if there is one."""
    run_dir.check_same_run(folder, loaded)
    return checkpoint.newest(folder / "checkpoints", console.say)


@contextlib.contextmanager
def _recorded(this: Run, run_id: str, resumed: bool) -> Iterator[dict[str, Any]]:
    """Keep ``status.json`` and the trackers right, however the block ends.

    What the block puts into the dictionary that it gets is the summary.
    """
    summary: dict[str, Any] = {}
    folder, progress = this.run_dir, this.progress
    if this.runtime.is_main:
        write_status(folder, "running", progress.step)
    this.trackers.start(
        RunInfo(
            config=this.config.model_dump(),
            run_dir=folder,
            run_id=run_id,
            total_steps=this.total_steps,
            start_step=progress.step,
            resumed=resumed,
        )
    )
    try:
        yield summary
        this.trackers.finish(summary, "done")
    except BaseException as error:
        with contextlib.suppress(OSError, UserError):  # the error itself matters more
            status = read_status(folder)
            if status is None or status["state"] == "running":  # who fails first says why
                interrupted = isinstance(error, KeyboardInterrupt)
                message = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
                write_status(folder, "failed", progress.step, exit_code_of(error), message)
        this.trackers.finish(summary, "failed")
        raise
    if this.runtime.is_main:
        write_status(folder, "done", progress.step, DONE)
    this.runtime.wait()


# ------------------------------------------------------------------------------------ the summary


def summarize(this: Run) -> dict[str, Any]:
    """The content of ``summary.json``."""
    progress = this.progress
    trainable, frozen = count_parameters(this.network)
    digest = saved.sha256(this.run_dir / "model" / "model.safetensors")
    speed = progress.images / progress.training_seconds if progress.training_seconds else 0.0
    return {
        "val/accuracy": progress.best["val/accuracy"],
        "val/loss": progress.best["val/loss"],
        "best_step": progress.best["step"],
        "last/val/accuracy": progress.last["val/accuracy"],
        "last/val/loss": progress.last["val/loss"],
        "steps": progress.step,
        "images": progress.images,
        "num_processes": this.runtime.world_size,
        "wall_seconds": round(progress.wall_seconds, 3),
        "training_seconds": round(progress.training_seconds, 3),
        "images_per_second": round(speed, 2),
        "trainable_parameters": trainable,
        "frozen_parameters": frozen,
        "frozen_unchanged": True,  # or the run had failed: tl.freeze_plan.assert_unchanged
        "bad_images": len(progress.bad_images),
        "model_sha256": digest,
    }


def show_summary(summary: dict[str, Any], folder: Path, console: ConsoleTracker) -> None:
    """What a person wants to know at the end, and what to do next."""
    console.say(
        f"done: validation accuracy {summary['val/accuracy']:.4f} at step {summary['best_step']}, "
        f"last {summary['last/val/accuracy']:.4f}"
    )
    console.say(
        f"{summary['steps']} steps in {summary['wall_seconds']:.1f} s; "
        f"trained {summary['trainable_parameters']:,} parameters; frozen parts unchanged"
    )
    console.say(f"model: {folder / 'model'}")
    console.say(f"use it: tl predict {folder} IMAGE_OR_FOLDER")
