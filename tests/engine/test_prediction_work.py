"""Pieces of a prediction: each image is in one, and those of another job are not taken."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.engine.prediction_work import MOST_IMAGES, PIECES, Pieces, Work
from tl.errors import OnOneProcessError, PeerFailed, UserError


@given(st.integers(1, 10**7), st.integers(1, 512), st.booleans())
def test_pieces_are_of_whole_batches_and_neither_few_nor_large(
    images: int, batch_size: int, as_they_come: bool
) -> None:
    pieces = Pieces.of(images, batch_size, as_they_come)
    assert pieces.size % batch_size == 0
    assert (len(pieces) - 1) * pieces.size < images <= len(pieces) * pieces.size
    assert pieces.size < MOST_IMAGES + batch_size
    if as_they_come:
        assert pieces.size == batch_size
    elif pieces.size > batch_size:  # there are more, unless batches are as large
        assert len(pieces) * 2 > PIECES


@given(st.integers(1, 600), st.integers(1, 7))
def test_each_image_is_in_one_batch_in_order(images: int, batch_size: int) -> None:
    pieces = Pieces.of(images, batch_size, as_they_come=False)
    batches = [batch for number in range(len(pieces)) for batch in pieces.batches(number)]
    assert [i for batch in batches for i in batch] == list(range(images))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


def begun(output: Path, job: dict[str, object], overwrite: bool = False) -> Work:
    work = Work.make(output, overwrite)
    try:
        work.begin(job)
    except UserError:
        work.leave()
        raise
    return work


def put(work: Work, number: int, content: bytes) -> None:
    with work.piece(number) as file:
        file.write(content)


def test_what_is_done_stays_and_of_another_job_is_refused(tmp_path: Path) -> None:
    output, job = tmp_path / "p.csv", {"model": "a" * 64, "--top-k": 3}
    work = begun(output, job)
    assert work.leave() is False, "there is nothing to keep"
    assert list(tmp_path.iterdir()) == []
    work = begun(output, job)
    put(work, 2, b"two")
    with pytest.raises(TypeError), work.piece(3) as file:
        file.write("no bytes")  # type: ignore[arg-type]
    assert list(work.folder.glob(".3.*"))
    assert work.leave() is True
    work = begun(output, job)
    assert work.done() == {2}
    assert not list(work.folder.glob(".3.*")), "half a piece goes"
    work.leave()
    with pytest.raises(UserError, match=r"--top-k \(now 5, before 3\).*--overwrite"):
        begun(output, {**job, "--top-k": 5})
    with pytest.raises(UserError, match=r"what differs: the model\. Give the command of before"):
        begun(output, {**job, "model": "b" * 64})
    work = begun(output, {**job, "--top-k": 5}, overwrite=True)
    assert work.done() == set()
    put(work, 0, b"zero")
    work.end()
    assert list(tmp_path.iterdir()) == []


def test_a_piece_of_another_job_is_not_taken_even_if_it_lies_there(tmp_path: Path) -> None:
    work = begun(tmp_path / "p.csv", {"model": 1})
    put(work, 0, b"")
    (work.folder / "job.json").unlink()
    work.leave()
    assert begun(tmp_path / "p.csv", {"model": 2}).done() == set()


def try_to_make(output: Path, queue: multiprocessing.Queue) -> None:
    try:
        Work.make(output, overwrite=True)
    except UserError as error:
        queue.put(str(error))
    else:
        queue.put("made")


def test_two_at_a_time_are_refused_and_harm_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    work = begun(tmp_path / "p.csv", {})
    put(work, 0, b"zero")
    other = context.Process(target=try_to_make, args=(tmp_path / "p.csv", queue))
    other.start()
    assert "another process is writing" in queue.get(timeout=60)
    other.join()
    assert work.done() == {0}


def test_a_failure_is_told(tmp_path: Path) -> None:
    work = begun(tmp_path / "p.csv", {})
    with pytest.raises(OnOneProcessError, match="No space left"), work.telling_of_failure():
        raise OSError(28, os.strerror(28))
    assert work.has_failed
    work.leave()
    with pytest.raises(PeerFailed), work.telling_of_failure(), work.piece(0):
        raise AssertionError("there is no folder to write to")
