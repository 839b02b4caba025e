"""A run from its config to its summary: check, prepare, train phase after phase, report."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from tl.arguments import Loaded
from tl.atomic import write_json_atomically
from tl.command import DONE, FAILURE, PREEMPTED, exit_code_of
from tl.config import Config, seconds_of
from tl.data.class_sampling import check_sampling
from tl.data.streams import BadImages, default_workers
from tl.engine import reporting, run_dir, runtime, strategy
from tl.engine.agreement import Agreement
from tl.engine.domain_rules import check_domains, check_head
from tl.engine.findings import keep_findings
from tl.engine.given import given_for
from tl.engine.loop import train_phase
from tl.engine.nonfinite import RollBack
from tl.engine.prepare import (
    describe_weights,
    load_network,
    open_images,
    show_plan,
    weights_table,
)
from tl.engine.resume import (
    check_length,
    check_same_images,
    find_checkpoint,
    restore,
    roll_back,
)
from tl.engine.runtime import Runtime, check_batch
from tl.engine.saving import checkpoint_bytes, finish_writing, make_up_best, save_start
from tl.engine.state import Progress, Run
from tl.engine.stop_requests import STOP_FILE, StopRequests, deadline_of
from tl.engine.summary import show_summary, summarize
from tl.engine.watchdog import Watchdog
from tl.errors import PeerFailed, Preempted, UserError
from tl.freezing import trainable_names
from tl.mistakes import blamed_on
from tl.models import saved
from tl.objectives import check_options, objective_class
from tl.tracking.console import ConsoleTracker, open_console
from tl.tracking.status import LiveStatus, read_status, write_status
from tl.tracking.tracker import RunInfo
from tl.tracking.trackers import Process, open_trackers


def run(
    loaded: Loaded,
    *,
    dry_run: bool = False,
    resume: str = "never",
    shared: Runtime | None = None,
) -> dict[str, Any]:
    """Carry out a run, and return its summary (the content of ``summary.json``).

    Args:
        dry_run: check everything and show the freeze plan, but neither train nor write. Returned is
            about how large a checkpoint would be.
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
    check_phases(loaded, here)
    process = Process(here.rank, here.world_size, here.device.index)
    with blamed_on(loaded.origins, "tracking", "trackers"):
        trackers = open_trackers(config.tracking, console, config.disk_errors, process)
    folder = here.on_main(lambda: run_dir.choose(config, resume))

    # The cheap checks are done. Data and weights take a while.
    source, images = open_images(loaded, here, console)
    network, preprocessing, report = load_network(loaded, source, here)
    console.say(describe_weights(report))
    if (by_stage := weights_table(network, report)) is not None:
        console.show(by_stage)
    if loaded.later is not None:
        earlier = None if resume == "never" else folder
        pretrained = report.loaded > 0
        loaded = strategy.spell_out(
            loaded, source, network, preprocessing, pretrained, earlier, here, console.say
        )
        config = loaded.config
        console.say(loaded.decided["why"])
        check_phases(loaded, here)
    check_domains(loaded, source)
    check_head(loaded, network, report)
    given = here.on_all(lambda: given_for(loaded, source, network))
    plans = []
    for i, phase in enumerate(loaded.phases):
        with blamed_on(loaded.origins, "phases", i, "sampling"):
            check_sampling(phase.sampling, source)
        with blamed_on(loaded.origins, "phases", i, "train"):
            trainable_names(network, phase.train)
        arguments = (source, network, given, preprocessing, report, here, console)
        plans.append(show_plan(loaded, i, *arguments))
    if dry_run:
        console.say("dry run: all of this checks out; nothing was trained or written")
        return {"checkpoint_bytes": checkpoint_bytes(network, loaded.phases)}

    # From here on the run has its folder.
    lock = run_dir.Lock(folder)
    here.on_main(lambda: lock.take(console.say))
    try:
        progress, tensors, found = Progress(), None, None
        if resume != "never":
            found, changed = here.on_main(lambda: find_checkpoint(folder, loaded, console.say))
        if found is not None:
            progress, tensors = here.on_all(lambda: restore(found, network, here))
            console.say(f"going on after step {progress.step}, from {found}")
            check_same_images(progress, images)
            if progress.precision != here.precision:
                changed.append(f"precision: {progress.precision} before, {here.precision} now")
                console.say(f"CHANGED: {changed[-1]}")
            done = progress.phase == len(loaded.phases)
            if done and here.on_main((folder / "summary.json").is_file):
                console.say("the run is done already")
                return here.on_main(lambda: json.loads((folder / "summary.json").read_text()))
            progress.changes += [f"after step {progress.step}: {change}" for change in changed]
        progress.data, progress.precision = images, here.precision
        network.to(here.device).to(memory_format=torch.channels_last)
        given.to(here.device)
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
            status=LiveStatus(folder if here.is_main else None),
            console=console,
            progress=progress,
            bad_images=bad_images,
            workers=default_workers(here.processes_on_node) if workers is None else workers,
            stop_requests=_stop_requests(config, folder, here, console),
            watchdog=Watchdog(here, folder, seconds_of(config.hang_timeout)),
            agreement=Agreement(here),
            given=given,
            started=started - progress.wall_seconds,
        )
        check_length(this)
        run_id = here.on_main(lambda: run_dir.claim(folder, loaded))
        here.on_main(lambda: strategy.record(folder, loaded))
        reporting.begin(this, plans)
        return carry_out(this, run_id, tensors)
    finally:
        lock.release()


def check_phases(loaded: Loaded, here: Runtime) -> None:
    """Raise UserError for what is wrong with a phase whatever the network; cheap."""
    for i, phase in enumerate(loaded.phases):
        check_batch(phase, here.world_size)
        with blamed_on(loaded.origins, "phases", i, "objective"):
            objective_class(phase.objective)
        check_options(phase, i, loaded.origins)


def carry_out(this: Run, run_id: str, tensors: dict[str, Tensor] | None) -> dict[str, Any]:
    """Train, and write down what has come of it; returns the summary.

    Args:
        tensors: of the checkpoint that the run goes on from, if it does.
    """
    here, folder, progress = this.runtime, this.run_dir, this.progress

    def last_words(message: str) -> None:
        write_status(folder, "failed", progress.step, FAILURE, message)

    with (
        this.console,
        this.stop_requests.listening(last_words),
        _recorded(this, run_id, resumed=tensors is not None) as summary,
    ):
        try:
            with this.watchdog.watching(last_words):
                train(this, tensors)
        finally:
            this.writer.wait()  # whatever has failed, a checkpoint that was begun is good
        progress.wall_seconds = time.perf_counter() - this.started
        if here.is_main:
            saved.save(
                this.network,
                this.source.classes,
                this.preprocessing,
                folder / "last",
                data=this.config.data,
            )
            summary.update(summarize(this))
            write_json_atomically(folder / "summary.json", summary)
            keep_findings(this)
        summary.update(here.from_main(summary))
    show_summary(this, summary)
    return summary


def train(this: Run, tensors: dict[str, Tensor] | None) -> None:
    """Carry out what is left of the phases.

    Args:
        tensors: of the checkpoint that the run goes on from, if it does.
    """
    progress = this.progress
    within_phase = progress.phase_step > 0
    if not within_phase:  # else `train_phase` does, which knows what is evaluated
        make_up_best(this)
    while not this.is_over:
        if progress.phase == 1 and progress.phase_step == 0:
            save_start(this)
        try:
            train_phase(this, progress.phase, tensors if within_phase else None)
            within_phase = False
        except RollBack as bad:
            tensors, within_phase = roll_back(this, bad)
        this.runtime.accelerator.free_memory()
    finish_writing(this)


def _stop_requests(
    config: Config, folder: Path, here: Runtime, console: ConsoleTracker
) -> StopRequests:
    """What this process is to watch for; files and clocks are the main one's business."""
    if not here.is_main:
        return StopRequests(launcher=runtime.launcher())
    return StopRequests(
        launcher=runtime.launcher(),
        stop_file=folder / STOP_FILE,
        deadline=deadline_of(config, psutil.Process().create_time()),
        say=console.say,
    )


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
            config={**this.config.model_dump(), "best": this.config.chosen_best.model_dump()},
            run_dir=folder,
            run_id=run_id,
            total_steps=this.total_steps,
            start_step=progress.step,
            best=progress.best,
            phases=this.plan,
            gpu=this.runtime.device.type == "cuda",
            resumed=resumed,
        )
    )
    try:
        yield summary
        this.trackers.finish(summary, "done")
    except Preempted as stopped:
        if this.runtime.is_main:
            write_status(folder, "preempted", progress.step, PREEMPTED, str(stopped))
            this.stop_requests.forget_file()
        this.trackers.finish(summary, "preempted")
        reporting.finish(this, in_a_hurry=True)
        # A launcher that sees one process end with an error ends the others: so all end together.
        this.runtime.wait()
        raise
    except PeerFailed:
        this.trackers.finish(summary, "failed")
        reporting.finish(this, in_a_hurry=True)
        raise
    except BaseException as error:
        with contextlib.suppress(OSError, UserError):  # the error itself matters more
            status = read_status(folder)
            if status is None or status["state"] == "running":  # who fails first says why
                interrupted = isinstance(error, KeyboardInterrupt)
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                message = "interrupted" if interrupted else f"{kind}{error}"
                write_status(folder, "failed", progress.step, exit_code_of(error), message)
        this.trackers.finish(summary, "failed")
        reporting.finish(this, in_a_hurry=True)
        raise
    if this.runtime.is_main:
        write_status(folder, "done", progress.step, DONE)
        this.stop_requests.forget_file()  # it has come too late
        reporting.finish(this)
    this.runtime.wait()
