"""Promise 8: no secret of the environment reaches a file of a run, nor what it says."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["data.source=digits", "data.image_size=32", "data.max_train=13", "data.max_val=13",
             "data.workers=0", "model.name=squeezenet1_1", "model.weights=null", "epochs=1",
             "tracking.wandb.mode=offline", "run_dir=run"]  # fmt: skip
NAMES = [
    "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "GITHUB_TOKEN", "SLURM_JWT", "SECRET",
    "SLURM_SPANK_AUTH", "PROXY", "DATABASE", "NETRC_LOGIN", "GIT_USER", "GIT_PASSWORD",
]  # fmt: skip
CANARIES = {name: f"canary{i:02}{name.lower().replace('_', '')}" for i, name in enumerate(NAMES)}
KEY = "c0ffee" * 6 + "beef"  # as long as a key of W&B is


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Train, with secrets wherever people have them, in a repository whose remote has one."""
    home, repository = folder / "home", folder / "repository"
    for made in (home, repository):
        made.mkdir()
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (home / ".netrc").chmod(0o600)
    proxy = f"http://user:{CANARIES['PROXY']}@localhost:9"
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "TL_", "SLURM"))}
    environ |= {name: value for name, value in CANARIES.items() if name.isupper()}
    environ |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"), proxy)
    environ |= {
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        "ACCELERATE_USE_CPU": "true",
        "WANDB_API_KEY": KEY,
        "DATABASE_URL": f"postgres://user:{CANARIES['DATABASE']}@host/runs",
        "SLURM_JOB_ID": "4711",
    }
    url = f"https://{CANARIES['GIT_USER']}:{CANARIES['GIT_PASSWORD']}@example.org/code.git"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (
        ["init", "-q"],
        ["commit", "-q", "--allow-empty", "-m", "first"],
        ["remote", "add", "origin", url],
    ):
        subprocess.run([*git, *command], check=True, capture_output=True, env=environ)
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "train.py"), *ARGUMENTS, *arguments],
        cwd=repository, env=environ, capture_output=True, timeout=200,
    )  # fmt: skip


def forms(secret: str) -> Iterator[bytes]:
    """As bytes, as UTF-16, and as base64 at each of the three places it can begin."""
    yield secret.encode()
    yield secret.encode("utf-16-le")
    for shift in range(3):
        yield base64.b64encode(b"\0" * shift + secret.encode())[4:-4]


def contents(path: Path) -> Iterator[bytes]:
    """What is in a file: itself, and what it holds compressed."""
    data = path.read_bytes()
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    # Zlib streams begin so; W&B's file is not compressed now, but it could be.
    for head in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        position = data.find(head)
        while position >= 0 and path.suffix not in (".safetensors", ".png"):
            stream = zlib.decompressobj()
            with contextlib.suppress(zlib.error):
                yield stream.decompress(data[position:])
            position = data.find(head, position + 1)


def leaks(folder: Path, done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Which secrets are where."""
    places = {str(path): path for path in folder.rglob("*") if path.is_file()}
    own = (str(folder / "home/.netrc"), str(folder / "repository/.git"))
    data = {"standard output": [done.stdout], "standard error": [done.stderr]}
    data |= {n: list(contents(p)) for n, p in places.items() if not n.startswith(own)}
    secrets = {**CANARIES, "WANDB_API_KEY": KEY}
    return [
        f"{name} in {place}"
        for place, parts in data.items()
        for name, secret in secrets.items()
        if any(form in part for part in parts for form in forms(secret))
    ]


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    secret = CANARIES["HF_TOKEN"].encode()
    (tmp_path / "a").write_bytes(gzip.compress(b"x" + secret))
    (tmp_path / "b").write_bytes(b"head" + zlib.compress(secret) + b"tail")
    (tmp_path / "c").write_bytes(base64.b64encode(b"a" + secret + b"bc"))
    (tmp_path / "d").write_bytes(secret.decode().encode("utf-16"))
    done = subprocess.CompletedProcess([], 0, b"", b"log: " + secret)
    assert len(leaks(tmp_path, done)) == 5


@pytest.mark.slow
def test_no_secret_is_in_any_file_of_a_run(tmp_path: Path, read_wandb_file: Any) -> None:
    done = start(tmp_path)
    assert done.returncode == 0, done.stderr
    assert leaks(tmp_path, done) == []
    run = tmp_path / "repository" / "run"
    (recorded,) = run.glob("wandb/offline-run-*/*.wandb")
    # What is no secret is there: arguments, config, Slurm's other variables and the commit.
    record = read_wandb_file(recorded)
    assert record["summary"]["steps"] == 1
    head = (tmp_path / "repository/.git").glob("refs/heads/*")
    for known in ("data.max_train=13", "squeezenet1_1", "4711", next(head).read_text().strip()):
        assert known.encode() in record["text"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(
            ["objective=outside_objectives:Poisoned", "global_batch_size=2"],
            1,
            marks=pytest.mark.slow,
        ),
        (["api_key=hunter2", "tracking.wandb.api_key=hunter2"], 2),
        (["api-key=hunter2"], 2),
        (["--api-key=hunter2"], 2),
    ],
)
def test_no_secret_is_said_by_a_run_that_fails(
    tmp_path: Path, arguments: list[str], code: int
) -> None:
    done = start(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    assert leaks(tmp_path, done) == []
    assert b"hunter2" not in done.stdout + done.stderr
    if code == 1:
        assert b"Traceback" in done.stderr
        status = json.loads((tmp_path / "repository/run/status.json").read_text())
        assert status["state"] == "failed"
        assert status["message"]
