"""Runs of `wandb_child.py` and of `tl sync`, and what they leave on the server and on the disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl.arguments import load
from tl.tracking.jsonl import read
from tl.tracking.wandb_rows import LINES_PER_STEP, PHASE_NUMBER, ROWS_PER_STEP

from .stand_in_server import KEY, StandInServer

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("wandb_child.py")
SECONDS = 60


def new_run(folder: Path, *overrides: str) -> Path:
    """A run's folder, as the engine begins it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(load(None, list(overrides), environ={}).to_yaml())
    (folder / "run_id").write_text("abc123")
    return folder


def environment(folder: Path, server: StandInServer | None, **more: str) -> dict[str, str]:
    """One that knows nothing of the tester's own W&B."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {
        "PYTHONPATH": str(ROOT),
        "NETRC": str(folder / "no-netrc"),
        "WANDB_CONFIG_DIR": str(folder / "no-settings"),
        # wandb sends what has gathered in 15 s. In whole seconds: 0.5 is no different from unset.
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        # What it finds out of the machine takes it half of its time.
        "WANDB_X_DISABLE_META": "true",
        "WANDB_X_DISABLE_STATS": "true",
        "WANDB_X_SAVE_REQUIREMENTS": "false",
    }
    if server is not None:
        clean |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    return {**clean, **more}


def begin(
    folder: Path,
    options: dict[str, Any] | None = None,
    server: StandInServer | None = None,
    **environ: str,
) -> subprocess.Popen[str]:
    """Start a run; in a new folder unless that is one already."""
    if not (folder / "config.yaml").exists():
        new_run(folder)
    return _start(
        [str(CHILD), str(folder), json.dumps(options or {})], environment(folder, server, **environ)
    )


def begin_sync(
    *words: str | Path, server: StandInServer | None = None, **environ: str
) -> subprocess.Popen[str]:
    """Start `tl sync`."""
    command = [str(ROOT / "launch" / "sync.py"), *map(str, words)]
    return _start(command, environment(Path(words[0]), server, **environ))


def _start(words: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """What a process said, once it has ended as it should."""
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


def run(
    folder: Path,
    options: dict[str, Any] | None = None,
    server: StandInServer | None = None,
    **environ: str,
) -> str:
    return ended(begin(folder, options, server, **environ))


def sync(
    *words: str | Path, server: StandInServer | None = None, code: int = 0, **environ: str
) -> str:
    return ended(begin_sync(*words, server=server, **environ), code)


def took(output: str, call: str) -> float:
    match = re.search(rf"^{call} took ([\d.e-]+)$", output, re.MULTILINE)
    assert match, output
    return float(match.group(1))


def said(output: str) -> list[str]:
    return [line.removeprefix("say: ") for line in output.splitlines() if " took " not in line]


def wait_for(process: subprocess.Popen[str], word: str = "pause") -> str:
    """Read on until a line with ``word``; returns what was read."""
    assert process.stdout is not None
    text = ""
    while word not in (line := process.stdout.readline()):
        assert line, f"the run has ended:\n{text}"
        text += line
    return text + line


def go_on(process: subprocess.Popen[str], times: int = 1) -> None:
    """Let a run go on that pauses, so many times."""
    assert process.stdin is not None
    process.stdin.write("go on\n" * times)
    process.stdin.flush()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The lines of the record, without when they were written."""
    lines = read(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def on_server(server: StandInServer, run_id: str = "abc123") -> list[dict[str, Any]]:
    """The lines of a run, without what is added to each, and its tables; each was taken once."""
    run = server.runs[run_id]
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps)), "a row is there twice, or out of order"
    lines = [row for row in run.history if row["_step"] % ROWS_PER_STEP < LINES_PER_STEP]
    added = ("_", PHASE_NUMBER)
    return [{k: v for k, v in row.items() if not k.startswith(added)} for row in lines]
