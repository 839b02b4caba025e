"""What only a GPU can show: that runs on it are right, how fast they are, what they take.

    python benchmarks/gpu.py OUTPUT.json [--tiny] [--only part,part] [--seconds N]

Each part is a process with a time limit of its own (`workers/gpu_*.py`), which prints a line
``RESULT {...}`` for each thing that it has seen: what a part has shown before it fails or is
stopped is kept. OUTPUT.json is written after each of them, and all that was said goes to
OUTPUT.log. Images are made. ``--tiny`` shows on a CPU that the script comes to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import images
import machine
from measure import ROOT

HERE = Path(__file__).parent
MARK = "RESULT "
SIZE = (500, 375)
SHORTEST = 10.0
"""seconds; with fewer left a part is not begun"""


@dataclass(frozen=True)
class Part:
    """A worker, what it is told besides, and how many seconds it has."""

    worker: str
    argument: str
    seconds: float


PARTS = {
    "syncs": Part("gpu_syncs", "", 50),
    "correct": Part("gpu_correct", "without-compile", 130),
    "train": Part("gpu_rates", "train", 180),
    "head": Part("gpu_rates", "head", 60),
    "memory": Part("gpu_rates", "memory", 60),
    "overhead": Part("gpu_overhead", "", 60),
    "compile": Part("gpu_correct", "compile", 100),
}


def main() -> int:
    """Returns the exit code: 1 if something has failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--tiny", action="store_true", help="so little that a CPU can do it")
    parser.add_argument("--only", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--seconds", type=float, default=500, help="for all parts together")
    args = parser.parse_args()
    began = time.monotonic()
    results: dict[str, Any] = {"tiny": args.tiny, "parts": {}}
    failed = False
    with tempfile.TemporaryDirectory() as name, args.output.with_suffix(".log").open("w") as log:
        folder = Path(name)
        count = (48, 20, 1, (160, 120)) if args.tiny else (4096, 256, 6, SIZE)
        images.make_photos(folder / "data", *count)
        sizes = [path.stat().st_size for path in (folder / "data" / "val").glob("*/*")]
        results["images"] = {
            "seconds_to_make": round(time.monotonic() - began, 1),
            "kilobytes": round(sum(sizes) / len(sizes) / 1000, 1),
        }
        say(f"images: {results['images']}")
        results["machine"] = machine.describe()  # only now: processes that fork know no GPU
        say(f"machine: {json.dumps(results['machine'])}")
        for part in args.only.split(","):
            left = args.seconds - (time.monotonic() - began)
            say(f"== {part} (at {time.monotonic() - began:.0f} s)")
            try:
                results["parts"][part] = carried_out(PARTS[part], folder, args.tiny, left, log)
            except Exception:
                results["parts"][part] = {"error": traceback.format_exc()}
                say(results["parts"][part]["error"])
            bad = [r for r in results["parts"][part].get("results", ()) if r.get("right") is False]
            failed |= "error" in results["parts"][part] or bool(bad)
            args.output.write_text(json.dumps(results, indent=1) + "\n")
    say(f"== done in {time.monotonic() - began:.0f} s, {'with failures' if failed else 'all well'}")
    return int(failed)


def carried_out(part: Part, folder: Path, tiny: bool, left: float, log: TextIO) -> dict[str, Any]:
    """Run a part for at most ``left`` seconds: its results, and what it failed of if it did."""
    limit = min(part.seconds * (4 if tiny else 1), left)
    if limit < SHORTEST:
        say("no time is left for it")
        return {"error": "no time was left", "results": []}
    work = folder / f"{part.worker}-{part.argument}"
    work.mkdir(exist_ok=True)
    command = [sys.executable, str(HERE / "workers" / f"{part.worker}.py")]
    command += [part.argument, str(folder / "data"), str(work), "tiny" if tiny else "whole"]
    paths = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=work,
        start_new_session=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "WANDB_MODE": "offline",
            "BENCHMARK_STARTED": repr(time.time()),
        },
    )
    timer = threading.Timer(limit, lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    results: list[dict[str, Any]] = []
    last: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        log.flush()
        if line.startswith(MARK):
            results.append(json.loads(line.removeprefix(MARK)))
            say(f"{time.monotonic() - began:6.1f} s  {_short(results[-1])}")
        else:
            last = [*last[-39:], line]
    code = process.wait()
    timer.cancel()
    done: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "results": results}
    if code:
        why = f"stopped after {limit:.0f} s" if code == -signal.SIGKILL else f"exit code {code}"
        done["error"] = f"{why}; its last words:\n{''.join(last)}"
        say(done["error"][-3000:])
    return done


def _short(result: dict[str, Any]) -> str:
    """A result on a line; of a failure also where."""
    text = json.dumps({key: value for key, value in result.items() if key != "traceback"})
    return text[:1500] + ("\n" + result["traceback"][-2000:] if "traceback" in result else "")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
