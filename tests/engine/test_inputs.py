"""What the network gets of a batch: normalised floats of views, and all else as it was."""

from __future__ import annotations

from typing import Any

import torch

from tl.data.transforms import normalise
from tl.engine.inputs import give_keys, to_network
from tl.models.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(20, 16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")
CPU = torch.device("cpu")


def test_views_are_normalised_and_their_labels_left_alone() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    batch = {"image": images, "label": torch.tensor([3, 1]), "bad": [("a.png", "truncated")]}
    found = to_network(batch, CPU, PREPROCESSING)
    assert torch.equal(found["image"], normalise(images, PREPROCESSING))
    assert found["image"].is_contiguous(memory_format=torch.channels_last)
    assert found["label"].tolist() == [3, 1]
    assert found["bad"] == [("a.png", "truncated")]
    assert batch["image"] is images  # whoever made the batch still has what was in it


def test_what_is_no_image_of_8_bits_stays_as_it_is() -> None:
    features = torch.randn(2, 5, 4, 4)
    found = to_network({"image": features, "start": 3}, CPU, PREPROCESSING)
    assert found["start"] == 3
    assert torch.equal(found["image"], features)


def two_domains(target: list[int]) -> dict[str, Any]:
    source = {"image": torch.zeros(3, 3, 2, 2, dtype=torch.uint8), "id": torch.arange(3)}
    part = {**source, "image": torch.full((3, 3, 2, 2), 9, dtype=torch.uint8)}
    source |= {"round": torch.full((3,), 4)}
    return {**source, "target": {**part, "id": torch.tensor(target), "round": torch.full((3,), 4)}}


def test_images_of_another_domain_are_normalised_as_well() -> None:
    batch = two_domains([0, 1, 2])
    found = to_network(batch, CPU, PREPROCESSING)
    assert torch.equal(found["target"]["image"], normalise(batch["target"]["image"], PREPROCESSING))
    assert batch["target"]["image"].dtype == torch.uint8


def test_an_image_of_another_domain_has_a_key_of_its_own_by_step_and_id() -> None:
    """Else dropout would drop the same of two images that have the same number."""
    keys = []
    for step, ids in ((5, [0, 1, 2]), (6, [0, 1, 2]), (5, [2, 0, 1])):
        batch = two_domains(ids)
        give_keys(batch, seed=7, step=step, epoch=4)
        keys += [batch["key"].tolist(), batch["target"]["key"].tolist()]
    (source, target), (_, later), (_, turned) = keys[:2], keys[2:4], keys[4:]
    assert not set(source) & set(target)
    assert not set(later) & set(target)
    assert turned == [target[2], target[0], target[1]]
