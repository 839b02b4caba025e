"""tl export: what it refuses, what it leaves behind, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from full_disk import files_end_at
from PIL import Image
from safetensors.torch import load_file, save_file

from tl.data.transforms import plain_view
from tl.errors import UserError
from tl.export import FORMATS, export, safetensors
from tl.export.check import Comparison, compare, original, over, rounding
from tl.export.folder import staged
from tl.export.int8 import Int8, check_loss
from tl.export.needs import needs
from tl.export.wish import RESULT, Wish
from tl.models import saved
from tl.models.saved import SavedModel

from .conftest import save_model, tl_export


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "squeezenet", "squeezenet1_1")


def test_every_format_has_its_file() -> None:
    assert list(FORMATS) == list(export.WRITERS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--to", "onx"], "Did you mean 'onnx'?"),
        (["--to", "timm", "--int8"], "--int8 goes with --to onnx"),
        (["--to", "timm", "--with-preprocessing"], "--with-preprocessing goes with --to onnx"),
        (["--to", "onnx", "--max-accuracy-loss", "0.1"], "is of --int8"),
        (["--to", "onnx", "--max-accuracy-loss", "2"], "no number from 0 to 1"),
        (["--to", "safetensors", "--images", "nowhere"], "--images nowhere is no folder"),
        (["--to", "safetensors"], "that says which data to evaluate on"),
    ],
)
def test_a_mistake_is_said_before_anything_is_written(
    model: Path, words: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        code = tl_export(model, *words)
    except SystemExit as end:  # argparse's
        code = int(str(end.code))
    assert code == 2
    assert expected in capfd.readouterr().err
    assert not (model / "export").exists()


def test_a_folder_without_a_model_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tl_export(tmp_path / "nothing", "--to", "onnx") == 2
    assert "does not exist" in capfd.readouterr().err


def test_only_an_export_is_overwritten_and_only_if_wanted(
    model: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [model, "--to", "safetensors", "--images", images, "--output", out]
    assert tl_export(*words) == 0
    (out / "mine.txt").write_text("of the old one")
    assert tl_export(*words) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert tl_export(*words, "--overwrite") == 0
    assert not (out / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("…")
    assert tl_export(*words[:-1], other, "--overwrite") == 2
    assert "is no export" in capfd.readouterr().err
    assert (other / "dear.txt").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_what_is_interrupted_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    out = tmp_path / "out"
    with staged(out, overwrite=False) as folder:
        (folder / RESULT).write_text("old")

    def write_half() -> None:
        with staged(out, overwrite=True) as folder:
            (folder / RESULT).write_text("new")
            raise error

    with pytest.raises(error):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / RESULT).read_text() == "old"


def test_a_model_that_gives_no_numbers_is_not_exported(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "model", "squeezenet1_1")
    state = load_file(folder / "model.safetensors")
    state["features.0.weight"][:] = 3e38  # finite, as what is read must be, and its sums are not
    save_file(state, folder / "model.safetensors")
    words = ["--to", "safetensors", "--images", images, "--output", tmp_path / "out"]
    assert tl_export(folder, *words) == 2
    assert "no finite numbers" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_computes_something_else_is_not_kept(
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Wrong:
        """A format that loses the last bits of one weight in a thousand."""

        read, snippet = staticmethod(safetensors.read), staticmethod(safetensors.snippet)

        @staticmethod
        def write(model: SavedModel, folder: Path, wish: Wish) -> None:
            safetensors.write(model, folder, wish)
            path = folder / "model.safetensors"
            state = load_file(path)
            for value in state.values():
                value.view(-1)[::1000] *= 1.1
            save_file(state, path)

    monkeypatch.setitem(export.WRITERS, "safetensors", Wrong())
    out = tmp_path / "out"
    assert tl_export(model, "--to", "safetensors", "--images", images, "--output", out) == 2
    assert "does not compute what the run's model does" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["safetensors", "torch-export"])
def test_a_full_disk_is_said_and_leaves_nothing(
    model: Path, images: Path, tmp_path: Path, to: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with files_end_at(100_000):
        assert tl_export(model, "--to", to, "--images", images, "--output", out) == 2
    assert f"cannot write to --output {out}" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["safetensors", "timm", "huggingface"])
def test_a_cut_network_is_sent_to_the_formats_that_hold_a_graph(
    images: Path, tmp_path: Path, to: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "model", "squeezenet1_1", keep="fire3")
    assert tl_export(folder, "--to", to, "--images", images) == 2
    error = capfd.readouterr().err
    assert "its first 3 stages under a new head" in error
    assert "--to onnx or --to torch-export" in error


@pytest.mark.parametrize("to", ["timm", "huggingface"])
def test_a_network_that_the_other_library_lacks_is_refused_with_what_to_do(
    model: Path, images: Path, to: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tl_export(model, "--to", to, "--images", images) == 2
    error = capfd.readouterr().err
    assert "--to safetensors" in error
    assert "model.name=timm:NAME" in error


def test_a_loss_of_accuracy_cannot_be_limited_where_nobody_knows_the_classes(
    model: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [model, "--to", "onnx", "--int8", "--max-accuracy-loss", "0.01", "--output", out]
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for path in images.rglob("*.png"):
        (unlabelled / path.name).symlink_to(path)
    assert tl_export(*words, "--images", unlabelled) == 2
    assert "needs images with labels" in capfd.readouterr().err
    assert not out.exists()


def test_int8_that_loses_more_than_allowed_is_an_error() -> None:
    comparison = Comparison(100, 4.0, 0.5, 0.1, 97)
    measured = Int8(comparison, 0.90, 0.92, 1_000, 4_000, 20.0, 10.0)
    check_loss(measured, None)
    check_loss(measured, 0.03)
    with pytest.raises(UserError, match=r"loses 0\.0200 .* --max-accuracy-loss 0\.01"):
        check_loss(measured, 0.01)


def test_a_missing_library_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"pip install -e '\.\[export\]'"):
        needs("no_such_library", "--to nothing")


def test_a_comparison_is_of_the_largest_difference() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    same = compare(a, a + torch.tensor([[0.0, 1e-5], [0.0, 0.0]]))
    assert same.holds
    assert same.logits == pytest.approx(1e-5, rel=0.05)  # float32 of 2.00001
    assert same.same_class == 2
    assert not compare(a, a + torch.tensor([[0.0, 1e-2], [0.0, 0.0]])).holds
    assert not compare(a, torch.full_like(a, torch.nan)).holds
    assert not compare(a, torch.full_like(a, torch.inf)).holds
    assert compare(a, a.flip(1)).same_class == 0


def test_what_float32_is_off_by_itself_is_rounding(model: Path, images: Path) -> None:
    loaded = saved.load(model)
    view = plain_view(loaded.preprocessing)
    paths = sorted(images.rglob("*.png"))
    pixels = torch.stack([view(Image.open(path)) for path in paths])
    with torch.inference_mode():
        ours = over(original(loaded), pixels, 4)
    off = rounding(loaded, pixels, ours, 4)
    assert 0 < off < 1e-5 * max(1, ours.abs().max())  # of SqueezeNet's 18 layers
    assert next(loaded.network.parameters()).dtype == torch.float32
    assert not Comparison(9, 1.0, 5e-4, 0, 9).holds
    assert Comparison(9, 1.0, 5e-4, 0, 9, rounding=1e-4).holds


def test_batches_of_one_two_and_seven_come_first_also_of_few_images() -> None:
    sizes: list[int] = []

    def reader(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return pixels.float()

    few = torch.arange(3)[:, None]
    assert torch.equal(over(reader, few, 4), few.float())
    assert sizes == [1, 2, 7]
    sizes.clear()
    many = torch.arange(19)[:, None]
    assert torch.equal(over(reader, many, 4), many.float())
    assert sizes == [1, 2, 7, 4, 4, 1]


def test_a_comparison_reads_as_a_line() -> None:
    line = str(Comparison(9, 4.0, 1e-6, 2e-7, 9))
    assert "9 images" in line
    assert "allowed are 0.0004" in line
    assert json.dumps(line)
