"""Files that are no image: `BadImage` with the reason, and never half a picture or a warning."""

import contextlib
import io
import pickle
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import encoded, photo, png
from PIL import Image

from tl.data import images
from tl.data.images import MAX_PIXELS, BadImage, read_rgb


def reason(source) -> str:
    """Why it is a bad image, in one line; and that nothing else is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage) as caught:
            read_rgb(source)
    assert str(caught.value) == f"{caught.value.name}: {caught.value.reason}"
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG2000", {}),
    ],
)
def test_a_truncated_file_is_never_half_a_picture(tmp_path, file_format, options, tenth):
    data = encoded(photo(), file_format, **options)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) * tenth // 10])
    assert reason(path)


@pytest.mark.parametrize("content", [b"x", b"GIF89a", b"\xff\xd8\xff\xe0", b"<html></html>" * 99])
def test_other_files_are_bad_images(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert reason(tmp_path / "a.jpg")


@given(st.data())
def test_a_damaged_file_is_an_image_or_a_bad_image(data):
    file_format = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]))
    content = bytearray(encoded(photo((12, 9)), file_format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(BadImage):
            assert read_rgb(io.BytesIO(bytes(content))).mode == "RGB"


def test_reasons_say_what_is_wrong(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("hello")
    assert reason(tmp_path / "empty.jpg") == "the file is empty (0 bytes)"
    assert reason(tmp_path / "missing.jpg") == "No such file or directory"
    assert reason(tmp_path) == "Is a directory"
    assert reason(tmp_path / "text.png").startswith("damaged, or none of the formats JPEG, PNG")
    assert "no pixels" in reason(Image.new("RGB", (0, 3)))


def test_an_unreadable_file_is_a_bad_image(not_root):
    photo().save(not_root / "a.png")
    (not_root / "a.png").chmod(0)
    assert reason(not_root / "a.png") == "Permission denied"


@pytest.mark.parametrize("size", [(9460, 9460), (13_400, 13_400), (100_000, 100_000)])
def test_a_decompression_bomb_is_refused_in_silence(size):
    assert size[0] * size[1] > MAX_PIXELS
    assert f"{MAX_PIXELS:,} pixels" in reason(io.BytesIO(png(size, 8, 0, b"")))


def test_a_pillow_image_over_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 8)
    assert reason(Image.new("RGB", (3, 3))) == "3×3 is more than 8 pixels"


def test_postscript_is_not_run(tmp_path):
    photo().save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert "none of the formats" in reason(tmp_path / "a.jpg")


def test_a_bad_image_has_its_name_and_survives_pickling():
    with pytest.raises(BadImage, match=r"^cat\.jpg: the file is empty") as caught:
        read_rgb(io.BytesIO(b""), name="cat.jpg")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.name, again.reason, str(again)) == (
        "cat.jpg",
        caught.value.reason,
        str(caught.value),
    )


def open_files() -> int:
    listing = Path("/proc/self/fd")
    return len(list(listing.iterdir())) if listing.exists() else 0


def test_files_are_closed_whether_they_are_good_or_bad(tmp_path):
    photo().save(tmp_path / "a.jpg")
    photo().save(tmp_path / "a.gif", save_all=True, append_images=[photo()])
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "bad.jpg").write_bytes(data[:500])
    before = open_files()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ResourceWarning too
        kept = [read_rgb(tmp_path / "a.jpg"), read_rgb(tmp_path / "a.gif")]
        with pytest.raises(BadImage):
            read_rgb(tmp_path / "bad.jpg")
    assert kept
    assert open_files() == before
