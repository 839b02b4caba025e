"""A small run with the W&B tracker, in a process of its own since wandb is global to one.

Arguments: the run's folder, a JSON object of options. Prints each message and how long the
calls took; exits as a training would.
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
from tl.config import WandbConfig
from tl.tracking.tracker import RunInfo
from tl.tracking.trackers import Trackers

options = json.loads(sys.argv[2])
tracking.INIT_SECONDS = options.get("init_seconds", 20)
tracking.FINISH_SECONDS = options.get("finish_seconds", 10)
tracking.WAIT_AT_START_SECONDS = options.get("wait_seconds", 20)


def say(text: str) -> None:
    print("say:", text, flush=True)


run = RunInfo({"a": 1}, Path(sys.argv[1]), "abc123", 30, options.get("resumed_at", 0), True)
trackers = Trackers({"wandb": tracking.WandbTracker(WandbConfig(), say)}, say)
began = time.monotonic()
trackers.start(run)
print("start took", time.monotonic() - began, flush=True)
for step in (10, 20, 30):
    trackers.log({"train/loss": 1 / step, "phase": "head"}, step)
    trackers.log({"val/loss": 2 / step}, step)
    if step == 20 and options.get("kill_service"):
        for child in psutil.Process().children(recursive=True):
            if "wandb" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
        time.sleep(0.5)
if options.get("pause"):
    print("pause", flush=True)
    sys.stdin.readline()
began = time.monotonic()
trackers.finish({"val/accuracy": 0.5}, options.get("state", "done"))
print("finish took", time.monotonic() - began, flush=True)
