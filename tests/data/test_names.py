"""Names in arrays are a sequence of strings like any other."""

from __future__ import annotations

import os
import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tl.data.names import Names, hashes, in_chunks, taken
from tl.data.split import Split, hold_out, keep_some

# As the system gives them: any bytes but NUL.
raw = st.binary(max_size=12).map(lambda name: name.replace(b"\0", b"x"))
lists = st.lists(raw.map(os.fsdecode), max_size=20)


@given(lists, st.data())
def test_names_are_the_list_they_were_made_of(names: list[str], data: st.DataObject) -> None:
    made = Names.of(names)
    assert list(made) == names
    assert [made[i] for i in range(len(made))] == names
    assert pickle.loads(pickle.dumps(made)) == made
    chosen = np.array(
        data.draw(st.lists(st.integers(0, len(names) - 1), max_size=9)) if names else [], np.int64
    )
    wanted = [names[i] for i in chosen]
    part = made.take(chosen)
    assert list(part) == wanted == list(taken(names, chosen))
    assert list(pickle.loads(pickle.dumps(part))) == wanted
    assert list(part[1:4]) == wanted[1:4]
    assert np.array_equal(hashes(made, chosen, "salt"), hashes(names, chosen, "salt"))


@given(st.lists(lists, max_size=5))
def test_joined_names_are_one_after_another(parts: list[list[str]]) -> None:
    together = [name for part in parts for name in part]
    assert list(Names.joined([Names.of(part) for part in parts])) == together
    # The same as parts of one.
    whole, at, pieces = Names.of(together), 0, []
    for part in parts:
        pieces.append(Names(whole._blob, whole._ends, range(at, at + len(part))))
        at += len(part)
    assert list(Names.joined(pieces)) == together
    assert list(Names.joined(pieces[::-1])) == [name for part in parts[::-1] for name in part]


def test_names_are_given_in_chunks(monkeypatch) -> None:
    monkeypatch.setattr("tl.data.names.CHUNK", 3)
    names = [f"{i}" for i in range(8)]
    for kind in (names, Names.of(names)):
        assert [len(chunk) for chunk in in_chunks(kind)] == [3, 3, 2]
        assert b"".join(b"".join(chunk) for chunk in in_chunks(kind)) == b"01234567"
    assert list(Names.of(names)) == names


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 3), st.integers(1, 9))
def test_choices_among_names_are_those_among_a_list(
    labels: list[int], seed: int, count: int
) -> None:
    names = [f"image {i}" for i in range(len(labels))]
    plain, compact = (
        Split(kind, np.array(labels, np.int64), read=lambda i: i)
        for kind in (names, Names.of(names))
    )
    for one, other in (
        *zip(hold_out(plain, 0.3, seed), hold_out(compact, 0.3, seed), strict=True),
        (keep_some(plain, seed, count, 2 * count), keep_some(compact, seed, count, 2 * count)),
    ):
        assert list(one.names) == list(other.names)
        assert one.labels.tolist() == other.labels.tolist()


def test_choices_stay_what_they_were() -> None:
    """The images that a run of an earlier version has trained on are not validated on now."""
    names = [f"class/{i}.png" for i in range(20)]
    train, val = hold_out(Split(names, np.zeros(20, np.int64), read=lambda i: i), 0.3, 7)
    assert list(val.names) == [f"class/{i}.png" for i in (2, 3, 10, 12, 14, 16)]
    assert len(train) == 14
