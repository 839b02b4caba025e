"""Exported models, loaded by the programs they are for, say what the run's own model says."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from tl.data.transforms import normalise, plain_view
from tl.export.markdown import plain
from tl.export.onnx import INT8_FILE
from tl.models import saved

from .conftest import (
    CLASSES,
    TOLERANCE,
    picture,
    probabilities,
    said_by_the_card,
    save_model,
    tl_export,
)


def inputs(folder: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images, and what the run's model makes of them."""
    model = saved.load(folder)
    view = plain_view(model.preprocessing)
    x = normalise(torch.stack([view(picture(i)) for i in range(count)]), model.preprocessing)
    with torch.inference_mode():
        return x, model.network(x)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    # 1e-5 of the largest logit: float32, summed in another order, through 26 layers at most.
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


def test_a_lora_run_is_a_plain_state_dict_of_torchvision(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tl_export(run_dir, "--to", "safetensors", "--output", out) == 0
    model = torchvision.models.squeezenet1_1(num_classes=10)
    model.load_state_dict(load_file(out / "model.safetensors"))
    model.classifier[2] = torch.nn.Identity()
    x, expected = inputs(run_dir, 7)
    with torch.inference_mode():
        close(model.eval()(x), expected)
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["classes"] == [str(i) for i in range(10)]
    assert config["preprocessing"]["crop_size"] == 64
    assert said_by_the_card(out, picture(3)) == pytest.approx(
        probabilities(run_dir, picture(3)), abs=TOLERANCE
    )
    assert probabilities(out, picture(3)) == probabilities(run_dir, picture(3))
    card = (out / "README.md").read_text("utf-8")
    assert plain("adapt: trains lora(2), 2 epochs") in card
    assert "| training images | 16 |" in card
    assert "of 12 images" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("inside", [False, True], ids=["normalised", "with-preprocessing"])
def test_onnx_runtime_takes_any_batch(run_dir: Path, tmp_path: Path, inside: bool) -> None:
    out = tmp_path / "out"
    more = ["--with-preprocessing"] if inside else []
    assert tl_export(run_dir, "--to", "onnx", "--output", out, *more) == 0
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    says = session.get_modelmeta().custom_metadata_map
    assert json.loads(says["classes"]) == [str(i) for i in range(10)]
    assert json.loads(says["size"]) == 64
    assert json.loads(says["interpolation"]) == "bilinear"
    model = saved.load(run_dir)
    for count in (1, 2, 7):
        x, expected = inputs(run_dir, count)
        if inside:
            view = plain_view(model.preprocessing)
            pixels = torch.stack([view(picture(i)) for i in range(count)]).numpy()
            logits, shares = session.run(["logits", "probabilities"], {"images": pixels})
            torch.testing.assert_close(torch.from_numpy(shares), expected.softmax(1))
        else:
            [logits] = session.run(["logits"], {"images": x.contiguous().numpy()})
        close(torch.from_numpy(logits), expected)
    assert said_by_the_card(out, picture(3)) == pytest.approx(
        probabilities(run_dir, picture(3)), abs=TOLERANCE
    )


@pytest.mark.slow
def test_int8_is_measured_as_it_is(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tl_export(run_dir, "--to", "onnx", "--int8", "--output", out) == 0
    report = json.loads((out / "export.json").read_text("utf-8"))["int8"]
    small = out / INT8_FILE
    assert report["bytes"] == small.stat().st_size < report["float_bytes"] / 2
    x, expected = inputs(run_dir, 1)
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"images": x.contiguous().numpy()})
    # 8 bits: two per cent of the largest logit, and not float32's 1e-5 either.
    assert 1e-5 < abs(logits - expected.numpy()).max() < 0.3 * expected.abs().max()
    assert report["comparison"]["images"] == 12
    assert report["images_per_second"] > 0


def test_torch_export_takes_any_batch_of_a_cut_network(images: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "resnet18", keep="layer1")
    out = tmp_path / "out"
    assert tl_export(folder, "--to", "torch-export", "--images", images, "--output", out) == 0
    graph = torch.export.load(out / "model.pt2").module()
    for count in (1, 2, 7):
        x, expected = inputs(folder, count)
        with torch.inference_mode():
            close(graph(x), expected)
    assert said_by_the_card(out, picture(3)) == pytest.approx(
        probabilities(folder, picture(3)), abs=TOLERANCE
    )


@pytest.mark.parametrize("architecture", ["timm:test_resnet", "resnet18"])
def test_timm_makes_it_from_the_folder(images: Path, tmp_path: Path, architecture: str) -> None:
    folder = save_model(tmp_path / "model", architecture)
    out = tmp_path / "out"
    assert tl_export(folder, "--to", "timm", "--images", images, "--output", out) == 0
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    x, expected = inputs(folder, 7)
    with torch.inference_mode():
        close(model(x), expected)
    assert model.pretrained_cfg["label_names"] == CLASSES
    report = json.loads((out / "export.json").read_text("utf-8"))
    assert report["from_files"]["probabilities"] < TOLERANCE  # timm resizes with Pillow, too
    said = said_by_the_card(out, picture(3))
    assert said == pytest.approx(probabilities(folder, picture(3)), abs=TOLERANCE)


@pytest.mark.parametrize("architecture", ["timm:test_vit", "resnet18"])
def test_transformers_makes_it_from_the_folder(
    images: Path, tmp_path: Path, architecture: str
) -> None:
    folder = save_model(tmp_path / "model", architecture)
    out = tmp_path / "out"
    assert tl_export(folder, "--to", "huggingface", "--images", images, "--output", out) == 0
    model = AutoModelForImageClassification.from_pretrained(out, local_files_only=True).eval()
    x, expected = inputs(folder, 7)
    with torch.inference_mode():
        close(model(pixel_values=x).logits, expected)
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: i for i, name in enumerate(CLASSES)}
    report = json.loads((out / "export.json").read_text("utf-8"))
    said = said_by_the_card(out, picture(3))
    # torchvision's resize of tensors, which Transformers takes, is another than Pillow's.
    allowed = report["from_files"]["probabilities"] + 0.02
    assert said == pytest.approx(probabilities(folder, picture(3)), abs=allowed)


def test_images_without_labels_do_for_a_check(images: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "squeezenet1_1", classes=["x", "y"])
    out = tmp_path / "out"
    assert tl_export(folder, "--to", "safetensors", "--images", images, "--output", out) == 0
    report = json.loads((out / "export.json").read_text("utf-8"))
    assert report["comparison"]["images"] == 12
    assert report["right"] is None
    assert "have no labels" in (out / "README.md").read_text("utf-8")
