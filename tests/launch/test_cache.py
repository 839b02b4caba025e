"""`tl cache` shows what is kept and deletes it, but for what a run is using."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from launch.cache import main
from tl.data.features.draft import Draft
from tl.data.features.entry import open_entry
from tl.data.features.layout import Layout


def make(cache: Path, key: str, **about: object) -> Path:
    draft = Draft(cache / "features" / key, Layout.of(torch.zeros(2, 250), 10))
    assert draft.take(seconds=0)
    draft.prepare()
    block = draft.write(0, torch.arange(10), torch.zeros(10, 250), {})
    draft.close()
    draft.complete({0: block}, {"architecture": "resnet18", "cut": "layer4", "rows": 10, **about})
    return cache / "features" / key


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    make(tmp_path, "aa11" + 28 * "0", data="/data/flowers")
    make(tmp_path, "aa22" + 28 * "0", data="/data/flowers", view=2)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], cache: Path, *words: str) -> tuple[int, str, str]:
    code = main([*words, f"cache.folder={cache}"])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_is_kept_is_listed_on_80_columns(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    code, said, _ = call(capsys, cache, "list")
    assert code == 0
    assert re.search(r"aa11\S*\s+resnet18\s+layer4\s+flowers\s+10\s+10 kB\s+now", said)
    assert re.search(r"aa22\S*\s+resnet18\s+layer4\s+flowers, view 3\s+10\s+10 kB\s+now", said)
    assert f"2 entries, 20 kB of 20 GB (cache.max_bytes), in {cache / 'features'}" in said
    assert all(len(line) <= 80 for line in said.splitlines()[:-1])


def test_an_empty_cache_is_no_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(capsys, tmp_path, "list")[:2] == (
        0,
        f"0 entries, 0 bytes of 20 GB (cache.max_bytes), in {tmp_path / 'features'}\n",
    )
    assert call(capsys, tmp_path, "clear")[:2] == (0, "0 entries deleted, 0 bytes\n")


def test_what_a_run_is_using_is_not_cleared(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    used = open_entry(cache / "features" / ("aa11" + 28 * "0"))
    assert used is not None
    code, said, _ = call(capsys, cache, "clear")
    assert (code, said) == (
        0,
        "1 entry deleted, 10 kB\nin use by a run, and not deleted: aa110000\n",
    )
    used.close()
    assert call(capsys, cache, "clear")[1] == "1 entry deleted, 10 kB\n"
    assert list((cache / "features").iterdir()) == []


def test_indexes_of_folders_are_listed_and_cleared_with_everything(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    index = cache / "index" / "abc"
    index.parent.mkdir()
    index.write_bytes(bytes(2000))
    assert call(capsys, cache, "list")[1].endswith(
        "and 1 of what is in folders of images, 2.0 kB\n"
    )
    call(capsys, cache, "clear", "aa11")
    assert index.exists()
    call(capsys, cache, "clear")
    assert not index.exists()


def test_one_entry_is_cleared_by_the_beginning_of_its_key(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    assert call(capsys, cache, "clear", "aa2")[:2] == (0, "1 entry deleted, 10 kB\n")
    assert [path.name[:4] for path in (cache / "features").iterdir()] == ["aa11"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clear", "aa"), "key aa could be aa110000, aa220000; give more of it"),
        (("clear", "aa33"), "aa220000"),
        (("list", "aa11"), "tl cache list takes no key"),
    ],
)
def test_a_wrong_key_is_said_and_nothing_deleted(
    capsys: pytest.CaptureFixture[str], cache: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, error = call(capsys, cache, *words)
    assert code == 2
    assert message in error
    assert len(list((cache / "features").iterdir())) == 2
