"""Real images and real weights: SqueezeNet from ImageNet with a new head, on ants and bees."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from PIL import Image

from tl.arguments import load
from tl.engine.prepare import network_for
from tl.models import saved

from .conftest import TOLERANCE, probabilities, said_by_the_card, tl_export


@pytest.mark.slow
def test_photographs_say_the_same_in_onnx(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights" / "squeezenet1_0-imagenet.pth"
    words = ["model.name=squeezenet1_0", f"model.weights={weights}"]
    network, preprocessing, _ = network_for(load(None, words, environ={}).config, ["ants", "bees"])
    folder, out = tmp_path / "model", tmp_path / "out"
    saved.save(network, ["ants", "bees"], preprocessing, folder)
    photos = shared / "data" / "hymenoptera"
    words = ["--to", "onnx", "--with-preprocessing", "--images", str(photos), "--num-images", "10"]
    assert tl_export(folder, *words, "--output", out) == 0
    report = json.loads((out / "export.json").read_text("utf-8"))
    assert report["comparison"]["images"] == 10
    assert report["comparison"]["same_class"] == 10
    # Of a file, by the card's own lines: Pillow decodes it whole, and resizes as the run does.
    photo = Image.open(next((photos / "val" / "bees").glob("*.jpg"))).convert("RGB")
    assert said_by_the_card(out, photo) == pytest.approx(
        probabilities(folder, photo), abs=TOLERANCE
    )
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    noise = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    [shares] = session.run(["probabilities"], {"images": noise.numpy()})
    assert shares.sum(1) == pytest.approx([1.0] * 3, abs=1e-6)
