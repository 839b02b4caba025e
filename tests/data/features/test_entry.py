"""An entry of the feature cache holds what was written, and says so only if it does."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tl.data.features.draft import Draft
from tl.data.features.entry import Entry, open_entry
from tl.data.features.layout import BLOCK, Layout

ABOUT = {"architecture": "toy"}
_fork = multiprocessing.get_context("fork")


def example(rows: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, features: Tensor, bad: dict[int, str] | None = None) -> Entry:
    """An entry with ``features`` (N, …) but for the rows that are bad."""
    bad = bad or {}
    draft = Draft(folder / "key", Layout.of(features[:2], len(features)))
    assert draft.take(seconds=0)
    draft.prepare()
    blocks = {}
    for block in range(draft.layout.blocks):
        rows = draft.layout.rows_of(block)
        good = torch.tensor([row for row in rows if row not in bad], dtype=torch.int64)
        here = {row: bad[row] for row in rows if row in bad}
        blocks[block] = draft.write(block, good, features[good], here)
    draft.close()
    draft.complete(blocks, ABOUT)
    entry = open_entry(folder / "key")
    assert entry is not None
    return entry


@given(
    rows=st.integers(2, 3 * BLOCK),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    channels_last=st.booleans(),
)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    shape: list[int],
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    features = example(rows, *shape).to(dtype)
    if channels_last and len(shape) == 3:
        features = features.contiguous(memory_format=torch.channels_last)
    entry = write(tmp_path_factory.mktemp("cache"), features)
    read = entry.layout.from_bytes(entry.rows())
    assert torch.equal(read, features)
    if len(shape) == 3 and entry.layout.channels_last:
        assert read.is_contiguous(memory_format=torch.channels_last)
    assert entry.is_whole(0, 1, threads=2)
    entry.close()


def test_rows_of_images_that_cannot_be_decoded_are_zeros_with_the_reason(tmp_path: Path) -> None:
    features = example(BLOCK + 3, 4)
    bad = {0: "a.jpg: damaged", BLOCK + 2: "b.jpg: empty"}
    entry = write(tmp_path, features, bad)
    assert entry.bad == bad
    expected = features.clone()
    expected[[0, BLOCK + 2]] = 0
    assert torch.equal(entry.layout.from_bytes(entry.rows()), expected)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_flipped_bit_is_found_by_the_process_that_looks_there(tmp_path: Path, parts: int) -> None:
    entry = write(tmp_path, example(3 * BLOCK, 40))
    data = tmp_path / "key" / "features.bin"
    damaged = bytearray(data.read_bytes())
    damaged[-1] ^= 1
    data.write_bytes(damaged)
    whole = [entry.is_whole(part, parts, threads=2) for part in range(parts)]
    assert whole.count(False) == 1


def test_a_shortened_file_or_a_manifest_of_something_else_is_no_entry(tmp_path: Path) -> None:
    write(tmp_path, example(10, 40)).close()
    data, manifest = (tmp_path / "key" / name for name in ("features.bin", "manifest.json"))
    whole, text = data.read_bytes(), manifest.read_text()
    data.write_bytes(whole[:-1])
    assert open_entry(tmp_path / "key") is None
    data.write_bytes(whole)
    for damaged in ("", "[]", "{}", text[:-5], text.replace("float32", "object"), "9" * 5000):
        manifest.write_text(damaged)
        assert open_entry(tmp_path / "key") is None, damaged[:20]
    manifest.write_text(text)
    assert open_entry(tmp_path / "key") is not None


def test_a_draft_that_was_left_is_gone_on_with_and_its_damaged_blocks_are_not(
    tmp_path: Path,
) -> None:
    features = example(3 * BLOCK, 8)
    layout = Layout.of(features[:2], len(features))
    first = Draft(tmp_path / "key", layout)
    assert first.take(seconds=0)
    first.prepare()
    for block in (0, 2):
        rows = torch.tensor(layout.rows_of(block))
        first.write(block, rows, features[rows], {})
    first.close()
    first.let_go()
    # The disk lost the last block, and a line was being written when the run died.
    data = tmp_path / "key.partial" / "features.bin"
    content = bytearray(data.read_bytes())
    content[-layout.stride :] = bytes(layout.stride)
    data.write_bytes(content)
    [log] = data.parent.glob("*.jsonl")
    log.write_text(log.read_text() + '{"block": 1, "sha')

    second = Draft(tmp_path / "key", layout)
    assert second.take(seconds=0)
    second.prepare()
    assert list(second.finished(0, 1, threads=2)) == [0]
    shares = [set(second.finished(part, 2, threads=1)) for part in range(2)]
    assert shares == [{0}, set()]
    second.let_go()


def test_a_draft_of_another_layout_is_begun_anew(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "key", Layout.of(example(2, 8), 10))
    assert draft.take(seconds=0)
    draft.prepare()
    draft.write(0, torch.arange(10), example(10, 8), {})
    draft.close()
    draft.let_go()
    other = Draft(tmp_path / "key", Layout.of(example(2, 9), 10))
    assert other.take(seconds=0)
    other.prepare()
    assert other.finished(0, 1, threads=1) == {}
    other.let_go()


def _take(entry: Path, seconds: float, result: object) -> None:
    draft = Draft(entry, Layout.of(example(2, 8), 10))
    result.put(draft.take(seconds))  # type: ignore[attr-defined]


def test_of_two_processes_one_makes_an_entry_and_the_other_waits(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "key", Layout.of(example(2, 8), 10))
    assert draft.take(seconds=0)
    result = _fork.Queue()
    for finished in (False, True):
        if finished:
            draft.prepare()
            block = draft.write(0, torch.arange(10), example(10, 8), {})
            draft.close()
            draft.complete({0: block}, ABOUT)
        other = _fork.Process(target=_take, args=(tmp_path / "key", 0.5, result))
        other.start()
        assert result.get(timeout=30) is finished
        other.join()
