"""The folder of entries stays within its bounds, and nothing that is used is deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tl.data.features.draft import Draft
from tl.data.features.entry import Entry, open_entry
from tl.data.features.folder import PARTIAL, delete, entries, free_bytes, in_words, make_room
from tl.data.features.layout import Layout

SIZE = 1280  # of an entry: ten rows of 128 bytes


def make(folder: Path, key: str, used: int) -> Path:
    draft = Draft(folder / key, Layout.of(torch.zeros(2, 8), 10))
    assert draft.take(seconds=0)
    draft.prepare()
    block = draft.write(0, torch.arange(10), torch.zeros(10, 8), {})
    draft.close()
    draft.complete({0: block}, {"architecture": key})
    os.utime(folder / key, (used, used))
    return folder / key


def keys(folder: Path) -> list[str]:
    return [entry.key for entry in entries(folder)]


def open_it(path: Path) -> Entry:
    entry = open_entry(path)
    assert entry is not None
    return entry


def test_entries_are_listed_by_when_they_were_used(tmp_path: Path) -> None:
    for key, used in (("b", 2), ("a", 3), ("c", 1)):
        make(tmp_path, key, used)
    assert keys(tmp_path) == ["c", "b", "a"]
    assert [entry.bytes for entry in entries(tmp_path)] == [SIZE] * 3
    assert entries(tmp_path)[0].about == {"architecture": "c"}
    open_it(tmp_path / "c").close()
    assert keys(tmp_path) == ["b", "a", "c"]
    assert entries(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("most", "stay"), [(4 * SIZE, "abc"), (3 * SIZE, "bc"), (2 * SIZE, "c"), (0, "")]
)
def test_the_least_recently_used_make_room(tmp_path: Path, most: int, stay: str) -> None:
    for used, key in enumerate("abc"):
        make(tmp_path, key, used)
    gone = make_room(tmp_path, SIZE, most, keep=tmp_path / "new")
    assert "".join(keys(tmp_path)) == stay
    assert "".join(entry.key for entry in gone) + stay == "abc"


def test_what_is_open_stays(tmp_path: Path) -> None:
    for used, key in enumerate("abc"):
        make(tmp_path, key, used)
    entry = open_it(tmp_path / "a")
    os.utime(tmp_path / "a", (0, 0))
    make_room(tmp_path, SIZE, 2 * SIZE, keep=tmp_path / "new")
    assert keys(tmp_path) == ["a"]
    entry.close()
    [listed] = entries(tmp_path)
    assert delete(listed)
    assert keys(tmp_path) == []


def test_the_draft_that_is_being_made_is_no_excess_and_one_that_was_left_goes(
    tmp_path: Path,
) -> None:
    for key in ("mine", "left"):
        draft = Draft(tmp_path / key, Layout.of(torch.zeros(2, 8), 10))
        assert draft.take(seconds=0)
        draft.prepare()
        draft.let_go()
    make_room(tmp_path, SIZE, 0, keep=tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine" + PARTIAL]


def test_free_space_is_that_of_the_disk_where_the_folder_will_be(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    free = stat.f_bavail * stat.f_frsize
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free, rel=0.05)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (84_400_000, "84 MB"),
        (20_000_000_000, "20 GB"),
        (1.5e15, "1500 TB"),
    ],
)
def test_sizes_are_said_in_words(size: float, words: str) -> None:
    assert in_words(size) == words
