"""Graphs of every kind of network: what tracing or translating gets wrong goes by family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tl.export.check import TOLERANCE

from .conftest import save_model, tl_export

ARCHITECTURES = [
    "resnet50",
    "squeezenet1_0",
    "vgg11_bn",
    "densenet121",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "regnet_y_400mf",
    "inception_v3",
    "timm:test_efficientnet",
]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_graph_is_the_network(images: Path, tmp_path: Path, architecture: str, to: str) -> None:
    size = 96 if architecture == "inception_v3" else 64
    folder = save_model(tmp_path / "model", architecture, size)
    out = tmp_path / "out"
    assert tl_export(folder, "--to", to, "--images", images, "--output", out) == 0
    report = json.loads((out / "export.json").read_text("utf-8"))["comparison"]
    # What a user's export may differ by is ten times and more what these do.
    share = report["logits"] / max(1.0, report["largest_logit"])
    assert share < TOLERANCE / 10
    assert report["same_class"] == report["images"] == 12
    print(f"{architecture} {to}: {share:.1e} of the largest logit")  # for docs/export.md, with -s
