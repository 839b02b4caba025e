"""Graphs of every kind of network: what tracing or translating gets wrong goes by family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tl.export.check import TOLERANCE

from .conftest import save_model, tl_export

ARCHITECTURES = [
    "vit_b_16",
    "swin_t",
    "convnext_tiny",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_y_400mf",
    "densenet121",
    "inception_v3",
]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_graph_is_the_network(images: Path, tmp_path: Path, architecture: str) -> None:
    """In ONNX, which torch makes of the graph that --to torch-export writes."""
    size = 96 if architecture == "inception_v3" else 64
    folder = save_model(tmp_path / "model", architecture, size)
    out = tmp_path / "out"
    assert tl_export(folder, "--to", "onnx", "--images", images, "--output", out) == 0
    report = json.loads((out / "export.json").read_text("utf-8"))["comparison"]
    share = report["logits"] / max(1.0, report["largest_logit"])
    assert share < TOLERANCE  # with no help from float64
    assert report["same_class"] == report["images"] == 12
    assert report["largest_logit"] > 0.01
    print(f"{architecture}: {share:.1e} of the largest logit")  # for docs/export.md, with -s
