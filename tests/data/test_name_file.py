"""Names in files come back as they were, one by one, in order, in any process."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.data import name_file
from tl.data.name_file import NameFile, repeated, write

# Any bytes but NUL, which no name of a file holds.
NAMES = st.lists(st.binary(max_size=12).map(lambda b: os.fsdecode(b.replace(b"\0", b"\n"))))


@given(names=NAMES)
def test_any_names_come_back(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("names")
    write(place, iter(names))
    found = NameFile(place)
    assert len(found) == len(names)
    assert list(found) == names
    assert [found[i] for i in range(len(names))] == names
    assert [found[-i] for i in range(1, len(names) + 1)] == names[::-1]
    assert list(pickle.loads(pickle.dumps(found))) == names
    with pytest.raises(IndexError):
        found[len(names)]


@given(names=NAMES)
def test_repeated_names_are_those_that_a_set_has_seen(names: list[str]) -> None:
    seen: set[str] = set()
    expected = []
    for i, name in enumerate(names):
        if name.lower() in seen:
            expected.append(i)
        seen.add(name.lower())
    assert repeated(names, str.lower).tolist() == expected


def test_names_of_one_hash_are_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_file, "hash", lambda name: 7, raising=False)
    assert repeated(["a", "b", "a", "c", "b"], str).tolist() == [2, 4]


def test_more_names_than_are_written_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(i) * (i % 5) for i in range(100)]
    whole = write(tmp_path, names)
    monkeypatch.setattr(name_file, "CHUNK", 7)
    opened = NameFile(tmp_path)
    assert write(tmp_path, names) == whole
    assert list(NameFile(tmp_path)) == list(opened) == names
    assert write(tmp_path, names[1:]) != whole
    assert list(opened) == names, "what was open stays what it was"
