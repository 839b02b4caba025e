"""What tl doctor says of servers: asked, for a few seconds at most, and no key is shown."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tl.arguments import load
from tl.engine.doctor import network
from tl.engine.doctor.weights import weights
from tl.models import published

from .stand_in_server import KEY, StandInServer, closed_port


def wandb_finding(monkeypatch: Any, url: str, key: str | None, mode: str = "online") -> Any:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("NETRC", "/dev/null")
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    config = load(None, [f"tracking.wandb.mode={mode}"], environ={}).config
    return network.wandb(config, os.environ, seconds=0.5)


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("", "ok", "answers and takes the key"),
        ("401", "problem", "refuses the key"),
        ("500", "note", "answers 500"),
        ("hangs", "note", "cannot be reached"),
        ("refuses", "note", "cannot be reached"),
    ],
)
def test_the_server_of_wandb_is_asked_and_no_key_is_shown(monkeypatch, fault, kind, says):
    server = StandInServer()
    server.fault = fault
    try:
        began = time.monotonic()
        found = wandb_finding(monkeypatch, server.url, KEY)
        took = time.monotonic() - began
    finally:
        server.close()
    assert found.kind == kind, found
    assert says in found.text
    assert KEY not in str(found)
    assert took < 30  # wandb's own service, which tells the key, takes a second or several


def test_without_a_key_a_run_is_offline_and_a_wrong_mode_is_a_problem(monkeypatch):
    found = wandb_finding(monkeypatch, closed_port(), None)
    assert "offline" in found.text
    assert found.kind != "problem"
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    config = load(None, [], environ={}).config
    assert network.wandb(config, os.environ).kind == "problem"
    off = load(None, ["tracking.wandb.mode=disabled"], environ={}).config
    assert network.wandb(off, os.environ).kind == "ok"


def test_weights_that_can_be_downloaded_are_a_note_and_are_not(monkeypatch, tmp_path):
    server = StandInServer()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(published, "entry", lambda *_: SimpleNamespace(url=f"{server.url}/w.pth"))
    loaded = load(None, ["model.name=resnet18", "data.source=digits"], environ={})
    try:
        (found,) = weights(loaded, None)
    finally:
        server.close()
    assert found.kind == "note"
    assert list(tmp_path.iterdir()) == []


def test_what_hangs_is_left_alone_in_time():
    began = time.monotonic()
    assert network.within(0.1, lambda: time.sleep(20)) is None
    assert time.monotonic() - began < 5
