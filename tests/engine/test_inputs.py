"""What the network gets of a batch: normalised floats of views, and all else as it was."""

from __future__ import annotations

import torch

from tl.data.transforms import normalise
from tl.engine.inputs import to_network
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
