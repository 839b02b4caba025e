"""Batches of a process: bad images leave them, nothing takes their place, and it is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from tl.data.images import BadImage
from tl.data.sampler import PADDING, TrainSampler
from tl.data.split import AnyImages, Split
from tl.data.streams import BadImages, default_workers, open_stream
from tl.errors import OnOneProcessError

SIZE = 4


def view(image: Image.Image) -> Tensor:
    return pil_to_tensor(image)


class Reader:
    """Image i is all i; those of ``bad`` cannot be decoded. (A class, to go to workers.)"""

    def __init__(self, bad: Iterable[int]) -> None:
        self.bad = set(bad)

    def __call__(self, i: int) -> Image.Image:
        if i in self.bad:
            raise BadImage(f"{i}.png", "truncated")
        return Image.new("RGB", (SIZE, SIZE), (i, i, i))


def split(n: int, bad: Iterable[int] = ()) -> Split:
    labels = (np.arange(n) * 7 % 5).astype(np.int64)
    return Split([f"{i}.png" for i in range(n)], labels, Reader(bad))


def batches(
    data: AnyImages, keys: Iterable[list[tuple[int, int]]], workers: int = 0
) -> list[dict[str, Any]]:
    return list(
        open_stream(
            data, view, list(keys), seed=0, size=SIZE, decode="exact", workers=workers,
            pin_memory=False,
        )
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_holds_its_images_with_their_labels_and_ids(workers: int) -> None:
    data = split(10)
    found = batches(data, [[(0, 7), (0, 2)], [(1, 3)]], workers)
    for batch, ids in zip(found, [[7, 2], [3]], strict=True):
        assert batch["id"].tolist() == ids
        assert batch["label"].tolist() == data.labels[ids].tolist()
        assert batch["image"].shape == (len(ids), 3, SIZE, SIZE)
        assert batch["image"][:, 0, 0, 0].tolist() == ids
        assert batch["weight"].tolist() == [1.0] * len(ids)
        assert batch["bad"] == []
        kinds = {name: batch[name].dtype for name in ("image", "label", "id", "weight")}
        floats, ints = torch.float32, torch.int64
        assert kinds == {"image": torch.uint8, "label": ints, "id": ints, "weight": floats}
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_images_without_labels_is_the_same_but_for_these(workers: int) -> None:
    """Padding and bad images as well: no number stands in for a label."""
    data = split(10, bad=[3])
    keys = [[(0, 7), (0, 3), (0, 2)], [(1, PADDING)], [(1, 3)]]
    for batch, labelled in zip(
        batches(data.without_labels(), keys, workers), batches(data, keys, workers), strict=True
    ):
        assert labelled.keys() - batch.keys() == {"label"}
        for name, value in batch.items():
            same = torch.equal if isinstance(value, Tensor) else lambda a, b: a == b
            assert same(value, labelled[name]), name
    assert not hasattr(data.without_labels().take([1, 2]), "labels")


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.sets(st.integers(0, 11)), st.integers(1, 6), st.integers(1, 4))
def test_bad_images_leave_the_batch_and_nothing_takes_their_place(
    n: int, bad: set[int], batch_size: int, world: int
) -> None:
    data = split(n, bad)
    sampler = TrainSampler(n, batch_size, 0, 0, 0, -(-n // batch_size), 0, world)
    seen: list[int] = []
    named: list[str] = []
    for rank in range(world):
        keys = list(TrainSampler(**{**vars(sampler), "rank": rank}))
        found = batches(data, keys)
        assert len(found) == len(keys)  # every process takes part in every step
        for wanted, batch in zip(keys, found, strict=True):
            good = [i for _, i in wanted if i != PADDING and i not in bad]
            assert batch["id"].tolist() == (good or [PADDING])
            assert batch["weight"].tolist() == ([1.0] * len(good) or [0.0])
            assert len(batch["image"]) == len(batch["label"]) == len(batch["weight"])
            seen += good
            named += [name for name, _ in batch["bad"]]
    assert sorted(seen) == sorted(set(range(n)) - bad)
    assert sorted(named) == sorted(f"{i}.png" for i in bad if i < n)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_share_of_bad_images_alone_is_one_empty_image_of_no_weight(workers: int) -> None:
    (batch,) = batches(split(5, {1, 3}), [[(0, 1), (0, 3)]], workers)
    assert torch.equal(batch["image"], torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
    assert (batch["weight"].tolist(), batch["id"].tolist()) == ([0.0], [PADDING])
    assert batch["label"].tolist() == [0]  # a class that is there, so a loss can be computed
    assert batch["bad"] == [("1.png", "1.png: truncated"), ("3.png", "3.png: truncated")]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.sets(st.integers(0, 8)))
def test_an_image_that_is_left_out_moves_no_other_into_another_pair(n: int, bad: set[int]) -> None:
    (batch,) = batches(split(n, bad), [[(0, i) for i in range(n)]])
    ids = batch["id"].tolist()
    for row, mate in enumerate(batch["mate"].tolist()):
        alone = ids[row] ^ 1 not in ids
        assert ids[mate] == (ids[row] if alone else ids[row] ^ 1)


def test_padding_is_no_bad_image() -> None:
    (batch,) = batches(split(5), [[(0, PADDING)]])
    assert (batch["weight"].tolist(), batch["bad"]) == ([0.0], [])


def test_an_error_that_is_no_bad_image_is_not_swallowed() -> None:
    with pytest.raises(IndexError):
        batches(split(3), [[(0, 99)]])


BAD = [("a.png", "a.png: truncated")]


def test_the_error_policy_names_the_file_and_the_mend() -> None:
    with pytest.raises(OnOneProcessError) as caught:
        BadImages("error", 100).meet(BAD)
    message = str(caught.value)
    assert message.startswith("cannot decode a.png: truncated.")
    assert "data.bad_images=skip" in message
    assert BadImages("error", 100).meet([]) == []


def test_skip_counts_each_file_once() -> None:
    bad = BadImages("skip", 1)
    assert bad.meet(BAD) == ["a.png"]
    assert bad.meet(BAD * 3) == []  # the next epoch meets it again
    assert bad.reasons == {"a.png": "a.png: truncated"}


def test_more_bad_images_than_the_cap_end_the_run() -> None:
    bad = BadImages("skip", 2)
    bad.meet([("a", "a: x"), ("b", "b: x")])
    with pytest.raises(OnOneProcessError, match=r"3 images .* data\.max_bad_images=2\. .*c: y"):
        bad.meet([("c", "c: y")])


def test_a_cap_of_zero_allows_none() -> None:
    bad = BadImages("skip", 0)
    assert bad.meet([]) == []
    with pytest.raises(OnOneProcessError, match="max_bad_images=0"):
        bad.meet(BAD)


def test_workers_share_the_cores_and_leave_one_to_train() -> None:
    alone = default_workers(1)
    assert 0 <= alone <= 8
    assert default_workers(10_000) == 0
    assert default_workers(0) == alone


UNCAUGHT = """
import numpy as np
from PIL import Image
from tl.data.split import Split
from tl.data.streams import open_stream
from tl.data.sampler import EvaluationSampler

def view(image, *_): return image
split = Split(["a", "b"], np.zeros(2, np.int64), lambda i: Image.new("RGB", (8, 8)))
stream = iter(open_stream(split, view, EvaluationSampler(2, 1, 0, 1), seed=0, size=8,
                          decode="exact", workers=1, pin_memory=False))
raise RuntimeError("nobody catches this")
"""


def test_an_error_that_nobody_catches_ends_the_process_and_its_workers() -> None:
    """What holds the stream is kept by the traceback, so that it is not closed before the end."""
    done = subprocess.run(
        [sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: nobody catches this")
