"""Model folders from anybody: nothing in them is run, and each is used or is one clear error."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from hostile_files import Evil
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import evaluate, predict
from tl.errors import UserError
from tl.models import saved, zoo
from tl.models.preprocessing import Preprocessing, preprocessing_of


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    network = zoo.build("squeezenet1_1", 2)
    saved.save(network, ["a", "b"], preprocessing_of("squeezenet1_1", None), folder)
    return folder


def altered(good: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the model folder, with other content of config.json."""
    config = json.loads((good / "config.json").read_text())
    result = change(config)
    text = result if isinstance(result, bytes) else json.dumps(result or config).encode()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(text)
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors").symlink_to(good / "model.safetensors")
    return folder


def setting(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        *above, last = path
        for key in above:
            config = config[key]
        config[last] = to

    return change


NO_CONFIGS: list[Callable[[dict[str, Any]], object]] = [
    lambda _: b"[" * 100_000,
    lambda _: b'{"format": ' * 100_000,
    lambda _: b'{"format": ' + b"9" * 5000 + b"}",
    lambda _: b"[]",
    lambda _: b"\xff\xfe\xff",
    lambda _: pickle.dumps({}),
    setting("format", to=float("nan")),
    setting("classes", to=[1, 2]),
    setting("classes", to=[["a"], {"b": 1}]),
    setting("classes", to=["a", "a"]),
    setting("architecture", to="os:system"),
    setting("architecture", to="timm:hf-hub:somebody/model"),
    setting("architecture", to="timm:local-dir:/tmp"),
    setting("architecture", to="x" * 10**6),
    *[
        setting("arguments", to={"num_classes": 2, name: value})
        for name, value in {
            "pretrained": True,
            "weights": "DEFAULT",
            "version": "1_0",
            "progress": True,
            "final_relu": "yes",
            "image_size": 10**9,
            "checkpoint_path": "/tmp/a.pth",
            "x" * 10**6: 1,
        }.items()
    ],
    *[setting("arguments", "num_classes", to=n) for n in (2.0, True, "2", [2], -2, 10**400)],
    *[
        setting("preprocessing", key, to=value)
        for key, values in {
            "crop_size": (0, -1, 2.5, "8", 10**9, 10**400, None),
            "mean": (5, "abc", [1], [1] * 5, [10**400] * 3, [{}] * 3),
            "std": ([0] * 3, [float("nan")] * 3, [float("inf")] * 3),
            "interpolation": ("cubic", 3, ["bilinear"], None),
            "antialias": ("no",),
            "code": ("import os",),
        }.items()
        for value in values
    ],
    setting("preprocessing", to=[]),
]


@pytest.mark.parametrize("change", NO_CONFIGS)
def test_a_config_with_absurd_values_is_one_clear_error(
    good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(UserError) as caught:
        saved.load(altered(good, tmp_path / "model", change))
    assert len(str(caught.value)) < 2000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
)


@settings(max_examples=100, deadline=None)
@given(json_values, st.data())
def test_a_config_with_any_value_is_read_or_refused(
    good: Path, tmp_path_factory: pytest.TempPathFactory, value: Any, data: st.DataObject
) -> None:
    config = json.loads((good / "config.json").read_text())
    groups = ("arguments", "preprocessing")
    paths = [(key,) for key in config] + [(g, key) for g in groups for key in (*config[g], "more")]
    change = setting(*data.draw(st.sampled_from(paths)), to=value)
    folder = altered(good, tmp_path_factory.mktemp("model"), change)
    try:
        model = saved.load(folder)
    except UserError:
        return
    assert len(model.classes) == 2
    assert isinstance(model.preprocessing, Preprocessing)


def test_a_model_folder_names_no_file_to_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's builder takes a checkpoint, which timm 1.0.15 unpickles as it comes."""
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **arguments: Any) -> Any:
        asked.append(arguments)
        raise RuntimeError("not here")

    monkeypatch.setattr(timm, "create_model", create_model)
    for name in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "features_only",
                 "cache_dir", "scriptable", "act_layer", "global_pool"):  # fmt: skip
        with pytest.raises(UserError, match=f"'{name}' cannot be"):
            zoo.rebuild("timm:resnet18", {"num_classes": 2, name: str(tmp_path / "evil.pth")})
    assert not asked


@pytest.mark.parametrize("command", [predict.main, evaluate.main])
def test_evaluate_and_predict_run_nothing_in_a_model_folder(
    good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: Callable[..., int]
) -> None:
    folder, sentinel = tmp_path / "model", tmp_path / "ran"
    altered(good, folder, lambda _: None)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil(sentinel)))
    (folder / "model.py").write_text(f"import os; os.mkdir({str(sentinel)!r})")
    (folder / "conftest.py").write_text(f"import os; os.mkdir({str(sentinel)!r})")
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.png").write_bytes(b"")
    assert command([str(folder), str(tmp_path / "images")]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith(f"error: {folder / 'model.safetensors'} is no readable weights file")
    assert "Traceback" not in errors
    assert not sentinel.exists()
