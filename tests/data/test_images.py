"""Decoding: each rule, with the pixels to expect."""

import io
import pickle
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import chunk, encoded, photo, png
from PIL import Image, ImageOps

from tl.data.images import BadImage, read_rgb

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (40, 80, 120)
SMALL = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14  # no two pixels alike


def pixels(source, *args) -> np.ndarray:
    image = read_rgb(source, *args)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# --- plain files ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.tif", "a.webp", "a.jp2"])
def test_lossless_rgb_comes_back_exactly(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(SMALL).save(tmp_path / name, **options)
    assert (pixels(tmp_path / name) == SMALL).all()


def test_jpeg_is_what_pillow_decodes(tmp_path):
    photo().save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert (pixels(str(tmp_path / "a.jpg")) == np.asarray(image)).all()


def test_a_stream_is_read_and_left_open():
    file = io.BytesIO(encoded(Image.fromarray(SMALL), "PNG"))
    assert (pixels(file) == SMALL).all()
    assert not file.closed


def test_a_pillow_image_is_read_and_not_changed():
    image = Image.fromarray(SMALL)
    assert read_rgb(image) is image
    grey = Image.new("L", (2, 2), 7)
    assert (pixels(grey) == 7).all()
    assert grey.mode == "L"


def test_the_result_can_be_used_and_pickled_after_the_file_is_closed(tmp_path):
    photo().save(tmp_path / "a.jpg")
    image = read_rgb(tmp_path / "a.jpg")
    again = pickle.loads(pickle.dumps(image))
    assert again.tobytes() == image.tobytes()
    assert image.resize((3, 3)).size == image.crop((0, 0, 3, 3)).size


# --- grey, wide grey and colour spaces -----------------------------------------------------


def test_one_bit_and_grey(tmp_path):
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1").save(tmp_path / "1.png")
    assert pixels(tmp_path / "1.png").tolist() == [[[0] * 3, [255] * 3]]
    Image.fromarray(np.array([[0, 77]], dtype=np.uint8)).save(tmp_path / "l.png")
    assert pixels(tmp_path / "l.png").tolist() == [[[0] * 3, [77] * 3]]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, ending):
    values = np.array([[0, 128, 129, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    assert pixels(tmp_path / f"a.{ending}")[0, :, 0].tolist() == [0, 0, 1, 100, 255]


def test_big_endian_16_bit_grey_is_scaled():
    big = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 257, 65535))
    assert pixels(big)[0, :, 1].tolist() == [1, 255]


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_16_bit_grey_is_linear_to_half_a_step(values):
    wide = Image.fromarray(np.array([values], dtype=np.uint16))
    assert np.abs(pixels(wide)[0, :, 2] - np.array(values) * 255 / 65535).max() <= 0.5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535]], dtype=np.int32), [0, 255]),
        (np.array([[257, 25700]], dtype=np.int32), [1, 100]),
        (np.array([[-100, 0, 100]], dtype=np.int32), [0, 128, 255]),
        (np.array([[-(2**31), 2**31 - 1]], dtype=np.int32), [0, 255]),
        (np.array([[0.0, 0.2, 1.0]], dtype=np.float32), [0, 51, 255]),
        (np.array([[0.2, 0.2]], dtype=np.float32), [51, 51]),
        (np.array([[0.0, 100.0, 500.0]], dtype=np.float32), [0, 51, 255]),
        (np.array([[7.0, 7.0]], dtype=np.float32), [0, 0]),
        (np.array([[-3e38, 3e38]], dtype=np.float32), [0, 255]),
    ],
)
def test_32_bit_grey_by_its_stated_range_or_from_its_own(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == expected


def test_nan_is_a_bad_image(tmp_path):
    Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="NaN"):
        read_rgb(tmp_path / "a.tif")


def test_16_bit_colour_keeps_its_upper_byte():
    file = io.BytesIO(
        png((1, 1), 16, 2, zlib.compress(b"\0" + struct.pack(">3H", 0, 0x1234, 65535)))
    )
    assert pixels(file).tolist() == [[[0, 0x12, 255]]]


def test_cmyk_jpeg_and_tiff(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()  # which stores its inks inverted
    assert np.abs(pixels(tmp_path / "a.jpg") - RED).max() <= 3
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif").tolist() == [[list(RED)]]


def test_ycck_jpeg_is_converted_by_its_adobe_marker():
    # Stored: 255 - ink. The marker's last byte says that the first three are Y, Cb and Cr.
    stored_y, stored_cb, stored_cr = 128, 128, 228
    inks = (255 - stored_y, 255 - stored_cb, 255 - stored_cr, 0)
    data = bytearray(encoded(Image.new("CMYK", (16, 16), inks), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2
    red, green, blue = stored_y + 1.402 * 100, stored_y - 0.714 * 100, stored_y
    expected = 255 - np.clip([red, green, blue], 0, 255)
    assert np.abs(pixels(io.BytesIO(bytes(data))) - expected).max() <= 3


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB"])
def test_other_colour_spaces_are_converted(mode):
    from PIL import ImageCms

    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
        image = ImageCms.applyTransform(Image.new("RGB", (1, 1), GREY), transform)
    else:
        image = Image.new("RGB", (1, 1), GREY).convert(mode)
    if mode != "HSV":  # which no file holds
        image = io.BytesIO(encoded(image, "TIFF"))
    assert np.abs(pixels(image) - GREY).max() <= 6  # LAB in 8 bits is that coarse


# --- transparency --------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_over_the_background(file_format):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 100, 0, 0), (200, 100, 0, 51), (200, 100, 0, 255)])
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    file = io.BytesIO(encoded(image, file_format, **options))
    assert pixels(file, (0, 100, 200)).tolist() == [[[0, 100, 200], [40, 100, 160], [200, 100, 0]]]


def test_the_background_is_white_by_default():
    assert pixels(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).tolist() == [[[255] * 3]]


def test_grey_with_alpha():
    file = io.BytesIO(encoded(Image.new("LA", (1, 1), (100, 51)), "PNG"))
    assert pixels(file, RED).tolist() == [[[224, 20, 20]]]


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_alpha(mode):
    straight = {"RGBa": ("RGBA", (100, 100, 100, 51)), "La": ("LA", (100, 51))}[mode]
    image = Image.new(straight[0], (1, 1), straight[1]).convert(mode)
    assert np.abs(pixels(image, RED) - [224, 20, 20]).max() <= 1


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *BLUE])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_a_transparent_palette_entry_shows_the_background(tmp_path, transparency):
    palette_image().save(tmp_path / "a.png", transparency=transparency)
    assert pixels(tmp_path / "a.png", GREY).tolist() == [[list(GREY), list(BLUE)]]


def test_a_palette_entry_may_be_half_transparent(tmp_path):
    palette_image().save(tmp_path / "a.png", transparency=b"\x33\xff")
    assert pixels(tmp_path / "a.png", RED).tolist() == [[[204, 51, 0], list(BLUE)]]


def test_a_palette_with_alpha():
    image = palette_image().convert("PA")
    image.putalpha(51)
    assert pixels(image, RED).tolist() == [[[204, 51, 0], [204, 0, 51]]]


def test_a_plain_palette(tmp_path):
    palette_image().save(tmp_path / "a.bmp")
    assert pixels(tmp_path / "a.bmp").tolist() == [[list(GREEN), list(BLUE)]]


def test_one_transparent_colour_of_rgb_grey_and_16_bit_grey():
    rgb = encoded(Image.new("RGB", (1, 1), GREEN), "PNG", transparency=GREEN)
    assert pixels(io.BytesIO(rgb), GREY).tolist() == [[list(GREY)]]
    grey = encoded(Image.fromarray(np.array([[9, 10]], dtype=np.uint8)), "PNG", transparency=9)
    assert pixels(io.BytesIO(grey), GREY).tolist() == [[list(GREY), [10] * 3]]
    transparent = chunk(b"tRNS", struct.pack(">H", 300))
    wide = png((2, 1), 16, 0, zlib.compress(b"\0" + struct.pack(">2H", 300, 301)), transparent)
    assert pixels(io.BytesIO(wide), GREY).tolist() == [[list(GREY), [1] * 3]]


# --- frames and orientation ----------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_counts(file_format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert (pixels(io.BytesIO(data)) == RED).all()


def test_the_first_picture_of_an_mpo_counts(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(pixels(tmp_path / "a.jpg") - RED).max() <= 3


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(file_format, orientation):
    stored = SMALL.repeat(16, axis=0).repeat(16, axis=1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encoded(Image.fromarray(stored), file_format, exif=exif, **options.get(file_format, {}))
    image = read_rgb(io.BytesIO(data))
    expected = UPRIGHT[orientation](stored.astype(int))
    assert np.asarray(image).shape == expected.shape
    assert np.abs(np.asarray(image) - expected).max() <= 4
    assert ImageOps.exif_transpose(image).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0rubbish"]
)
def test_a_damaged_exif_block_is_passed_over_in_silence(exif):
    data = encoded(photo(), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(io.BytesIO(data)).shape == (90, 120, 3)


def test_threads_decode_at_once(tmp_path):
    photo().save(tmp_path / "a.jpg")
    expected = read_rgb(tmp_path / "a.jpg").tobytes()
    results: list[bool] = []

    def work() -> None:
        results.extend(read_rgb(tmp_path / "a.jpg").tobytes() == expected for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80
