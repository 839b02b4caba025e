"""After `kill -9` of all processes at any moment a run goes on; no image is lost or repeated."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from gloo_workers import fork_server, free_port
from safetensors.torch import load_file

from tl.arguments import load
from tl.data.sampler import epoch_order
from tl.engine import checkpoint
from tl.engine import run as engine_run
from tl.tracking.jsonl import read

IMAGES, BATCH, WORLD_SIZE = 10, 4, 2
# A checkpoint after every step, of 90 MB: most of the time one is being written.
COMMON = [
    "data.source=digits",
    "data.image_size=32",
    f"data.max_train={IMAGES}",
    "data.max_val=5",
    "data.workers=1",
    "model.name=resnet18",
    "model.weights=null",
    "strategy=full",
    "batch_norm=frozen",
    "objective=outside_objectives:Eventful",
    f"global_batch_size={BATCH}",
    "checkpoint.every_steps=1",
    "tracking.trackers=[jsonl]",
    "tracking.log_every=1",
    "threads=1",
]


def train(rank: int, port: int, run_dir: str, steps: int, *overrides: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD_SIZE),
        LOCAL_WORLD_SIZE=str(WORLD_SIZE), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        TEST_NOTES=f"{run_dir}-notes",
    )  # fmt: skip
    gc.freeze()  # see gloo_workers.py
    multiprocessing.set_start_method("fork", force=True)
    loaded = load(None, [*COMMON, f"steps={steps}", f"run_dir={run_dir}", *overrides], environ={})
    engine_run.run(loaded, resume="auto")


@contextlib.contextmanager
def started(run_dir: Path, steps: int, *overrides: str) -> Iterator[list[Any]]:
    """The processes of a start of the run. Nothing of them is left at the end."""
    Path(f"{run_dir}-notes").mkdir(exist_ok=True)
    port, context = free_port(), fork_server()
    processes = [
        context.Process(target=train, args=(rank, port, str(run_dir), steps, *overrides))
        for rank in range(WORLD_SIZE)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        kill_all(processes)


def kill_all(processes: list[Any]) -> None:
    """SIGKILL to every process and all it has started."""
    everyone = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            everyone += [root, *root.children(recursive=True)]
    for victim in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    for process in processes:
        process.join()


def finish(run_dir: Path, steps: int, *overrides: str) -> None:
    with started(run_dir, steps, *overrides) as processes:
        for process in processes:
            process.join(timeout=200)
        assert [process.exitcode for process in processes] == [0] * WORLD_SIZE


def wait_for_a_line(run_dir: Path, processes: list[Any]) -> None:
    """Until there is one more in the record."""
    before = record_length(run_dir)
    deadline = time.monotonic() + 60
    while record_length(run_dir) == before:
        assert time.monotonic() < deadline
        assert all(process.is_alive() for process in processes)
        time.sleep(0.005)


def record_length(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def images_of_steps(run_dir: Path) -> list[dict[str, str]]:
    """For each step the images that went in, as which pixels; a step done again had the same."""
    seen: dict[float, dict[str, str]] = {}
    for file in Path(f"{run_dir}-notes").iterdir():
        for text in file.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # the process was killed in the middle of the line
                continue
            images = seen.setdefault(line["progress"], {})
            for name, digest in line["seen"].items():
                assert images.setdefault(name, digest) == digest
    return [seen[progress] for progress in sorted(seen)]


def record(run_dir: Path) -> list[dict[str, Any]]:
    timing = {"time", "images_per_second"}
    lines = read(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def kill_and_go_on(folder: Path, kills: int, steps: int, seed: int) -> int:
    """Kill a run so many times, let it end, and compare; returns how many fell into a write."""
    draw = random.Random(seed)
    finish(folder / "whole", steps, f"checkpoint.every_steps={steps}")
    cut, while_writing, done = folder / "cut", 0, 0
    while done < kills:
        with started(cut, steps) as processes:
            moment = draw.uniform(0, 1.2)
            if draw.random() < 0.8:  # while it trains; else at any moment, also before
                wait_for_a_line(cut, processes)
                moment /= 4
            time.sleep(moment)
            assert all(process.is_alive() for process in processes), "more steps are needed"
            kill_all(processes)
        done += 1
        while_writing += bool(list((cut / "checkpoints").glob(".staging-*")))
    finish(cut, steps)

    order = [epoch_order(IMAGES, 0, epoch) for epoch in range(steps)]
    expected = [{f"{i} {epoch}" for i in ids[start : start + BATCH]}
                for epoch, ids in enumerate(order)
                for start in range(0, IMAGES, BATCH)][:steps]  # fmt: skip
    assert [set(images) for images in images_of_steps(cut)] == expected
    assert images_of_steps(cut) == images_of_steps(folder / "whole")
    assert record(cut) == record(folder / "whole")
    for which in ("last", "model"):
        ours, theirs = (
            load_file(folder / name / which / "model.safetensors") for name in ("cut", "whole")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(checkpoint.committed(cut / "checkpoints")) == 2
    assert not list((cut / "checkpoints").glob(".staging-*"))
    return while_writing


def test_a_process_that_is_killed_is_named_by_the_other(tmp_path: Path) -> None:
    """With a launcher, which then ends all, see `test_failures.py`."""
    run_dir = tmp_path / "run"
    with started(run_dir, 1000, "hang_timeout=20s") as processes:
        wait_for_a_line(run_dir, processes)
        processes[1].kill()
        deadline = time.monotonic() + 60
        while (status := json.loads((run_dir / "status.json").read_text()))["state"] == "running":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert status["state"] == "failed"
    assert f"rank 1 (process {processes[1].pid} on " in status["message"]
    assert "is gone" in status["message"]


def test_a_run_goes_on_after_kill_9(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, kills=1, steps=4, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_goes_on_after_kill_9_at_forty_moments(tmp_path: Path) -> None:
    while_writing = kill_and_go_on(tmp_path, kills=40, steps=70, seed=1)
    print(f"{while_writing} of 40 while a checkpoint was being written")
    assert while_writing > 20
