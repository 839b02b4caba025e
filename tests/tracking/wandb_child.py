"""A run with record and W&B tracker, in a process of its own since wandb is global to one.

Arguments: the run's folder, a JSON object of options. Says each message, and prints how long the
calls took; what happens at which step is in ``at``. Every tenth step is the end of an epoch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil

import tl.tracking.wandb as tracking
import tl.tracking.wandb_system as system
from tl.arguments import load
from tl.atomic import write_json_atomically
from tl.tracking.jsonl import JsonlTracker
from tl.tracking.status import write_status
from tl.tracking.tracker import RunInfo
from tl.tracking.trackers import Trackers

options = json.loads(sys.argv[2])
tracking.INIT_SECONDS = options.get("init_seconds", 20)
tracking.FINISH_SECONDS = options.get("finish_seconds", 10)
tracking.ANSWER_SECONDS = options.get("answer_seconds", 5)
tracking.MODEL_SECONDS = options.get("model_seconds", 10)
tracking.WAITING_LINES = options.get("waiting_lines", tracking.WAITING_LINES)


def say(text: str) -> None:
    print(f"say: {text}\n", end="", flush=True)  # at once: a thread says something, too


def signal_service(number: int) -> None:
    for child in psutil.Process().children(recursive=True):
        if "wandb" in " ".join(child.cmdline()):
            os.kill(child.pid, number)


def act(what: str) -> None:
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill_service":
            signal_service(signal.SIGKILL)
            time.sleep(0.5)
        case "stop_service":
            signal_service(signal.SIGSTOP)
        case "pause":
            print("pause", flush=True)
            sys.stdin.readline()


folder, last = Path(sys.argv[1]), options.get("steps", 30)
start, every = options.get("resumed_at"), options.get("log_every", 10)
config = load(folder / "config.yaml", environ={}).config
values = {**config.model_dump(), "best": config.chosen_best.model_dump()}
info = RunInfo(values, folder, "abc123", last, start or 0, start is not None)
chosen = {"jsonl": JsonlTracker(), "wandb": tracking.WandbTracker(config.tracking.wandb, say)}
if (rank := options.get("rank")) is not None:
    system.FINISH_SECONDS = tracking.FINISH_SECONDS
    measuring = system.SystemMetrics(config.tracking.wandb, say, rank)
    chosen = {**chosen, "system": measuring} if rank == 0 else {"system": measuring}
is_main = not rank
if is_main:
    write_status(folder, "running", start or 0)
trackers = Trackers({name: chosen[name] for name in options.get("trackers", chosen)}, say)
began = time.monotonic()
trackers.start(info)
print(f"start took {time.monotonic() - began}\n", end="", flush=True)
# Training would go on; what is to happen at a step is to happen to a run that is open.
if is_main and chosen["wandb"]._thread is not None:
    chosen["wandb"]._ready.wait(options.get("wait_seconds", 20))
longest = 0.0
for step in range((start or 0) + 1, last + 1):
    began = time.monotonic()
    if step % every == 0 or step % 10 == 0:
        trackers.log({"phase": "head", "epoch": 1 + step // 11, "train/loss": 1 / step}, step)
    if step % 10 == 0:
        trackers.log({"val/loss": 2 / step, "val/accuracy": step / 100}, step)
    longest = max(longest, time.monotonic() - began)
    act(options.get("at", {}).get(str(step), ""))
    time.sleep(options.get("seconds_per_step", 0))
print(f"log took {longest}\n", end="", flush=True)
summary, state = {"val/accuracy": 0.5, "steps": last}, options.get("state", "done")
if options.get("leaves_models"):
    summary |= {"best_step": last - 10, "last/val/accuracy": 0.25, "model_sha256": "5e1f"}
if is_main and state == "done":
    write_json_atomically(folder / "summary.json", summary)
if is_main:
    write_status(folder, state, last)
if fault := options.get("before_the_end"):
    act(fault)
began = time.monotonic()
trackers.finish(summary if state == "done" else {}, state)
print(f"finish took {time.monotonic() - began}\n", end="", flush=True)
