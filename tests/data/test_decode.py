"""Decoded at a reduced size, an image is seen nearly the same; one that is too small, the same."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tl.config import DataConfig
from tl.data import images
from tl.data.image_files import ReadFiles
from tl.data.image_paths import Inputs, list_images
from tl.data.images import BadImage, Decoded, Size, read_rgb, read_shrunk
from tl.data.resizing import SPARE
from tl.data.split import Split
from tl.data.streams import Decode, open_stream
from tl.data.transforms import View, augmented_view, plain_view
from tl.models.preprocessing import Preprocessing

RECIPE = Preprocessing(146, 128, (0.5,) * 3, (0.5,) * 3, "bilinear")
BICUBIC = Preprocessing(146, 128, (0.5,) * 3, (0.5,) * 3, "bicubic")
NEAREST = Preprocessing(146, 128, (0.5,) * 3, (0.5,) * 3, "nearest")


def photo(size: Size, seed: int = 0) -> Image.Image:
    """Noise whose amplitude falls with the frequency, as it does in photographs; and an edge."""
    width, height = size
    rng = np.random.default_rng(seed)
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None]
    fall = 1 / np.maximum(np.hypot(across, down), 1 / max(size))
    colours = []
    for _ in range(3):
        spectrum = fall * np.exp(2j * np.pi * rng.random(fall.shape))
        values = np.fft.irfft2(spectrum, s=(height, width))
        colours.append(128 + 50 * values / max(values.std(), 1e-9))
    pixels = np.stack(colours, axis=2)
    pixels[height // 3 : height // 2, width // 4 : width // 2] *= 0.3
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, orientation: int = 1, **options: object) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, "JPEG", quality=92, exif=exif, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photograph of 1501×1003 in all eight orientations; no multiple of 8."""
    folder, image = tmp_path_factory.mktemp("large"), photo((1501, 1003))
    for orientation in range(1, 9):
        (folder / f"{orientation}.jpg").write_bytes(jpeg(image, orientation))
    return folder


def split_of(paths: list[Path]) -> Split:
    names = [str(path) for path in paths]
    labels = np.zeros(len(paths), dtype=np.int64)
    return Split(names, labels, ReadFiles(names, (255, 255, 255)))


def seen(split: Split, view: View, decode: Decode, epochs: int = 1, workers: int = 0) -> Tensor:
    stream = open_stream(
        split, view, [[(epoch, i) for i in range(len(split))] for epoch in range(epochs)],
        seed=0, size=128, decode=decode, workers=workers, pin_memory=False,
    )  # fmt: skip
    return torch.cat([batch["image"] for batch in stream])


VIEWS: dict[str, View] = {
    "plain": plain_view(RECIPE),
    "bicubic": plain_view(BICUBIC),
    "flip": augmented_view(RECIPE, "flip"),
    # Crops of 0.35 to 1 of the image, all of which 1501×1003 pixels are large enough for.
    "standard": augmented_view(RECIPE, "standard", (0.35, 1.0)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_large_jpeg_is_seen_nearly_the_same(name: str, large: Path) -> None:
    split = split_of(sorted(large.iterdir()))
    fast, exact = (seen(split, VIEWS[name], decode, epochs=3) for decode in ("fast", "exact"))
    difference = (fast.float() - exact.float()).abs().flatten(1)
    # In levels of 255, of every single image.
    assert difference.mean(1).max() < 0.8
    assert difference.quantile(0.999, dim=1).max() <= 6
    neighbours = (exact[..., 1:].float() - exact[..., :-1].float()).abs()
    assert neighbours.mean() > 5
    shrunk = (difference > 0).any(1).double().mean()
    assert shrunk > 0.9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_seen_in_the_same_place(orientation: int) -> None:
    """Colours that rise evenly to the right and downwards: a shift would show in their means."""
    width, height = 1501, 1003
    across = np.linspace(0, 255, width)[None].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    pixels = np.stack([across, down, across], axis=2).round().astype(np.uint8)
    data = jpeg(Image.fromarray(pixels), orientation, subsampling=0)
    view = plain_view(RECIPE)
    decoded = read_shrunk(io.BytesIO(data), view.least)
    assert not decoded.is_whole
    difference = view(decoded).double() - view(read_rgb(io.BytesIO(data))).double()
    # A pixel of the view is 1.2 or 1.7 levels wide: a tenth of one would be seen.
    assert difference.mean((1, 2)).abs().max() < 0.1
    assert difference[:, :, :8].mean((1, 2)).abs().max() < 0.2
    assert difference[:, -8:].mean((1, 2)).abs().max() < 0.2


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 583), st.sampled_from([1, 1.5, 2]), st.booleans(), st.integers(1, 8), st.data()
)
def test_what_is_too_small_to_shrink_is_the_same(
    short: int, ratio: float, wide: bool, orientation: int, data: st.DataObject
) -> None:
    assert int(2 * SPARE * RECIPE.resize_size) == 584  # and half of that would be enough
    long = int(short * ratio)
    size = (long, short) if wide else (short, long)
    content = jpeg(photo(size), orientation)
    view = data.draw(st.sampled_from([VIEWS["plain"], VIEWS["flip"], VIEWS["bicubic"]]))
    torch.manual_seed(1)
    decoded = read_shrunk(io.BytesIO(content), view.least)
    assert decoded.is_whole
    torch.manual_seed(1)
    exact = view(read_rgb(io.BytesIO(content)))
    torch.manual_seed(1)
    assert torch.equal(view(decoded), exact)


def test_a_small_part_of_a_large_image_is_cut_from_the_whole(large: Path) -> None:
    split = split_of(sorted(large.iterdir()))
    view = augmented_view(RECIPE, "standard", (0.01, 0.05))
    fast, exact = (seen(split, view, decode, epochs=2) for decode in ("fast", "exact"))
    assert torch.equal(fast, exact)


def test_where_single_pixels_are_picked_nothing_is_shrunk(large: Path) -> None:
    for view in (plain_view(NEAREST), augmented_view(NEAREST, "standard", (0.35, 1.0))):
        assert read_shrunk(large / "1.jpg", view.least).is_whole


def test_other_formats_are_the_same(tmp_path: Path) -> None:
    for ending in ("png", "webp", "bmp", "tif"):
        photo((900, 620)).save(tmp_path / f"a.{ending}")
    split = split_of(sorted(tmp_path.iterdir()))
    fast, exact = (seen(split, VIEWS["plain"], decode) for decode in ("fast", "exact"))
    assert torch.equal(fast, exact)


def test_it_is_the_same_through_any_workers(large: Path) -> None:
    split = split_of(sorted(large.iterdir()))
    alone, workers = (seen(split, VIEWS["standard"], "fast", 2, n) for n in (0, 2))
    assert torch.equal(alone, workers)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.integers(1, 8),
    st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_it_is_no_smaller_than_asked_for(
    size: Size, least: Size, orientation: int, mode: str
) -> None:
    asked: list[Size] = []

    def note(whole: Size) -> Size:
        asked.append(whole)
        return least

    content = jpeg(Image.new(mode, size, 99), orientation, progressive=size[0] % 2 == 0)
    upright = size if orientation < 5 else size[::-1]
    decoded = read_shrunk(io.BytesIO(content), note)
    assert asked == [upright]
    assert decoded.size == upright
    assert decoded.image.mode == "RGB"
    left, top, right, bottom = decoded.box
    for whole, enough, have, covered in zip(
        upright, least, decoded.image.size, (right - left, bottom - top), strict=True
    ):
        assert have >= min(whole, enough)
        assert whole / covered == pytest.approx(upright[0] / (right - left))
        assert have - 1 < covered <= have
    scale = upright[0] / (right - left)
    assert scale in (1, 2, 4, 8)
    # The smallest that is enough.
    if scale < 8:
        assert min(w // n for w, n in zip(upright, least, strict=True)) < 2 * scale


def one_eighth(size: Size) -> Size:
    return (max(1, size[0] // 8), max(1, size[1] // 8))


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_file_is_never_half_a_picture(tenth: int, progressive: bool) -> None:
    content = jpeg(photo((240, 160)), progressive=progressive)
    with pytest.raises(BadImage):
        read_shrunk(io.BytesIO(content[: len(content) * tenth // 10]), one_eighth)


def test_limits_are_those_of_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg(photo((240, 160)))
    monkeypatch.setattr(images, "MAX_PIXELS", 240 * 160 - 1)
    with pytest.raises(BadImage, match="240×160 is more than"):
        read_shrunk(io.BytesIO(content), one_eighth)


def test_an_mpo_is_shrunk_too() -> None:
    file = io.BytesIO()
    photo((240, 160)).save(file, "MPO", save_all=True, append_images=[photo((240, 160), 1)])
    decoded = read_shrunk(file, one_eighth)
    assert (decoded.image.size, decoded.size) == ((30, 20), (240, 160))


def test_a_choice_of_images_and_paths_to_predict_are_shrunk(large: Path, tmp_path: Path) -> None:
    read = split_of(sorted(large.iterdir())).take([3, 1]).take([1]).read
    assert read.shrunk(0, one_eighth).image.size == (188, 126)  # type: ignore[attr-defined]
    paths = list_images(Inputs([str(large / "6.jpg")]), DataConfig(), tmp_path)
    assert paths.read.shrunk(0, one_eighth).image.size == (126, 188)


def _marked(read: Callable[[int], Image.Image], i: int) -> Image.Image:
    image = read(i)
    image.paste((255, 0, 0), (0, 0, *image.size))
    return image


@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_a_reader_from_outside_only_has_to_read(decode: Decode, large: Path) -> None:
    inside = split_of(sorted(large.iterdir()))
    outside = Split(inside.names, inside.labels, partial(_marked, inside.read))
    for split in (outside, outside.take([2])):
        assert (seen(split, VIEWS["plain"], decode)[:, 0] == 255).all()


def test_the_mirror_image_is_that_of_the_whole() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    decoded = Decoded(Image.fromarray(pixels), (18, 15), (0.0, 0.0, 2.25, 1.875))
    mirrored = decoded.mirrored()
    assert (np.asarray(mirrored.image) == pixels[:, ::-1]).all()
    assert (mirrored.size, mirrored.box) == ((18, 15), (0.75, 0.0, 3.0, 1.875))
    assert mirrored.mirrored().box == decoded.box
