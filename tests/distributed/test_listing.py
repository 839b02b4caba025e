"""One process of a node lists the folder of images, and the others find the index it has left."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from gloo_workers import GlooWorkers, WorkerError
from PIL import Image

from tl.arguments import load
from tl.data import tree_index
from tl.data.sources import open_source
from tl.engine import run as engine_run
from tl.engine import runtime
from tl.engine.prepare import identity


def put(root: Path) -> Path:
    for name in (f"train/{c}/{i}.png" for c in ("ants", "bees") for i in range(6)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(root / name)
    return root


def listings_of(root: str, place: str) -> dict[str, Any]:
    """What this process listed, and what it got."""
    here = runtime.start(load(None, [], environ={}).config)
    seen: list[str] = []
    scandir = os.scandir

    def noted(path: Any) -> Any:
        seen.append(str(path))
        return scandir(path)

    os.scandir = noted  # type: ignore[assignment]
    try:
        data = load(None, [f"data.root={root}"], environ={}).config.data
        source = here.first_on_each_node(lambda: open_source(data, 0, Path(place)))
    finally:
        os.scandir = scandir
    return {
        "rank": here.rank,
        "listed": [path for path in seen if path.startswith(root)],
        "source": (identity(source), source.classes, source.notes, list(source.val.names)),
    }


def test_one_of_three_processes_lists_the_folder(gloo_workers: GlooWorkers, tmp_path: Path) -> None:
    root = put(tmp_path / "data")
    time.sleep(tree_index.SETTLED + 0.1)
    results = gloo_workers.run(3, listings_of, str(root), str(tmp_path / "index"))
    assert [bool(result["listed"]) for result in results] == [True, False, False]
    assert results[0]["source"] == results[1]["source"] == results[2]["source"]
    again = gloo_workers.run(3, listings_of, str(root), str(tmp_path / "index"))
    assert not any(result["listed"] for result in again)
    assert again[2]["source"] == results[0]["source"]


def test_without_an_index_all_list_and_have_the_same(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    root = put(tmp_path / "data")
    (tmp_path / "file").touch()
    results = gloo_workers.run(3, listings_of, str(root), str(tmp_path / "file" / "index"))
    assert all(result["listed"] for result in results)
    assert results[0]["source"] == results[1]["source"] == results[2]["source"]


def dry_run(*overrides: str) -> None:
    engine_run.run(load(None, [*overrides], environ={}), dry_run=True)


def test_a_mistake_in_the_folder_reaches_every_process(
    gloo_workers: GlooWorkers, tmp_path: Path
) -> None:
    (put(tmp_path / "data") / "train" / "empty").mkdir()
    with pytest.raises(WorkerError, match="empty has no images") as caught:
        gloo_workers.run(3, dry_run, f"data.root={tmp_path / 'data'}", "model.weights=null")
    assert caught.value.kind == "UserError"
