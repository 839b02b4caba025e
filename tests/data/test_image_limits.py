"""An image costs what its pixels do, whatever else its file holds or claims."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_files import (
    FORMATS,
    ORIENTED,
    can_be_decoded,
    damaged,
    every_kind,
    exif_bomb,
    many_scans,
    noise,
    pixel,
    put,
    tiff,
    zeros,
)
from image_bytes import chunk, encoded, png
from PIL import Image

from tl.data import images
from tl.data.images import MAX_PIXELS, BadImage, read_rgb

ROOT = Path(__file__).parents[2]


def reason(source: bytes | Path) -> str:
    """Why it is a bad image, and that it is found out at once."""
    began = time.process_time()
    with pytest.raises(BadImage) as caught:
        read_rgb(io.BytesIO(source) if isinstance(source, bytes) else source)
    assert time.process_time() - began < 2
    return caught.value.reason


def test_all_that_pillow_can_decode_is_used_and_nothing_else(tmp_path: Path) -> None:
    good = list(every_kind())
    assert len(good) > 80
    assert images.FORMATS == FORMATS
    for name, content in [*good, *damaged(good, 300, seed=1)]:
        path = put(tmp_path / name, content)
        try:
            used = read_rgb(path).mode == "RGB"
        except BadImage:
            used = False
        assert used == can_be_decoded(path), name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_all_that_pillow_can_decode_is_used_in_a_long_sweep(tmp_path: Path, seed: int) -> None:
    for name, content in damaged(list(every_kind()), 2000, seed):
        path = put(tmp_path / name, content)
        try:
            used = read_rgb(path).mode == "RGB"
        except BadImage:
            used = False
        assert used == can_be_decoded(path), name
        path.unlink()


# ------------------------------------------------------------------------------------ no files


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert reason(tmp_path / "pipe.png") == "it is a named pipe, no file"
    assert reason(tmp_path / "link.png") == "it is a named pipe, no file"
    assert reason(tmp_path / "zero.png") == "it is a device, no file"
    assert reason(tmp_path / "loop.png") == "Too many levels of symbolic links"


def test_a_socket_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        assert reason(tmp_path / "socket.png") == "No such device or address"


@pytest.mark.parametrize("head", [b"RIFF", b"\xff\xd8\xff", b"II*\0", b""])
def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path, head: bytes) -> None:
    path = put(tmp_path / "holes.webp", head)
    os.truncate(path, 2**40)
    assert reason(path) == "the file has 1,099,511,627,776 bytes, more than 1,073,741,824"


# ------------------------------------------------------------------- what stands beside the pixels

GIF = encoded(noise("P"), "GIF")
JPEG = encoded(noise("RGB"), "JPEG")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pixel(chunk(b"zTXt", b"a\0\0" + zeros(2**24))), "too large"),
        (pixel(chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(2**24))), "too large"),
        (pixel(chunk(b"iCCP", b"a\0\0" + zeros(2**24))), "too large"),
        (pixel(*[chunk(b"zTXt", b"%d\0\0" % i + zeros(10**6)) for i in range(70)]), "text chunks"),
        (pixel(chunk(b"prVt", bytes(2**24))), "16,777,216 bytes of it are no pixels"),
        (GIF[:781] + b"\x21\xfe" + (b"\xff" + bytes(255)) * 70_000 + GIF[781:], "no pixels"),
        (JPEG[:2] + (b"\xff\xe1\xff\xff" + bytes(65533)) * 260 + JPEG[2:], "no pixels"),
        (tiff(strips=300_000), "its TIFF tag 273 claims 300,000 values"),
        (tiff((700, 5, 300_000)), "its TIFF tag 700 claims 300,000 values"),
        (png((30_000, 30_000), 1, 0, zeros(3751 * 30_000)), f"{MAX_PIXELS:,} pixels"),
        (png((1, 2**20 + 1), 8, 0, zeros(2**21 + 2)), "a side of more than 1,048,576 pixels"),
    ],
    ids=["zTXt", "iTXt", "iCCP", "texts", "chunk", "comment", "segments", "strips", "rationals",
         "pixels", "side"],
)  # fmt: skip
def test_more_than_an_image_needs_is_refused(content: bytes, expected: str) -> None:
    assert expected in reason(content)


def in_another_layout(content: bytes) -> bytes:
    """The TIFF as a BigTIFF with the most significant byte first."""
    (tags,) = struct.unpack("<H", content[8:10])
    entries = [struct.unpack_from("<HHLL", content, 10 + 12 * i) for i in range(tags)]
    directory = b"".join(struct.pack(">HHQQ", *entry) for entry in entries)
    head = b"MM\0+" + struct.pack(">HHQQ", 8, 0, 16, tags)
    return (head + directory).ljust(1000, b"\0") + content[1000:]


def test_a_big_tiff_is_looked_at_too() -> None:
    assert "claims 300,000 values" in reason(in_another_layout(tiff(strips=300_000)))


@pytest.mark.parametrize(
    "content",
    [
        pixel(chunk(b"zTXt", b"a\0\0" + zeros(900_000))),
        pixel(chunk(b"eXIf", exif_bomb())),
        png((1, 1), 8, 0, zeros(2**24)),  # more rows than the image has
        JPEG[:2] + (b"\xff\xe1\xff\xff" + bytes(65533)) * 100 + JPEG[2:],
        tiff((34377, 7, 3_000_000)),  # what a photo editor keeps there
        tiff((700, 5, 300_000))[:1001],  # claimed, but not there: Pillow passes it over
        GIF[:781] + GIF[781:-1] * 100_000 + b";",  # frames
    ],
    ids=["text", "exif", "rows", "segments", "layers", "cut", "frames"],
)
def test_what_costs_little_is_read(content: bytes) -> None:
    began = time.process_time()
    assert read_rgb(io.BytesIO(content)).mode == "RGB"
    assert time.process_time() - began < 2


def test_a_jpeg_of_many_scans_is_refused_and_a_film_behind_one_is_not_taken_for_scans() -> None:
    content = many_scans((64, 64), 80)
    assert read_rgb(io.BytesIO(content)).size == (64, 64)
    assert reason(many_scans((64, 64), 200)) == "a JPEG of more than 100 scans"
    film = b"\xff\xda\0\x0c" * 5000
    assert read_rgb(io.BytesIO(content + film)).size == (64, 64)
    preview = b"\xff\xe2" + struct.pack(">H", len(film) + 2) + film
    assert read_rgb(io.BytesIO(content[:2] + preview + content[2:])).size == (64, 64)


# ------------------------------------------------------------------------------------------ memory

SIDE = 9459
assert SIDE**2 <= MAX_PIXELS < (SIDE + 1) ** 2


def plain(depth: int, colour: int, channels: int, *extra: bytes) -> bytes:
    """The largest PNG that is decoded."""
    row = 1 + (SIDE * depth * channels + 7) // 8
    return png((SIDE, SIDE), depth, colour, zeros(row * SIDE), *extra)


def large(mode: str, file_format: str, **options: object) -> bytes:
    return encoded(Image.new(mode, (SIDE, SIDE)), file_format, **options)


LARGE: dict[str, Callable[[], bytes]] = {
    "16 bits and a transparent value": lambda: plain(16, 0, 1, chunk(b"tRNS", b"\0\1")),
}
MORE_LARGE: dict[str, Callable[[], bytes]] = {
    "grey with alpha": lambda: plain(8, 4, 2),
    "float": lambda: large("F", "TIFF"),
    "32 bits": lambda: large("I", "TIFF"),
    "transparent palette": lambda: plain(
        8, 3, 1, chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b"\0"), chunk(b"eXIf", ORIENTED)
    ),
    "RGBA": lambda: plain(8, 6, 4),
    "16-bit RGBA": lambda: plain(16, 6, 4),
    "progressive CMYK": lambda: large("CMYK", "JPEG", progressive=True),
    "LZW": lambda: large("RGBA", "TIFF", compression="tiff_lzw"),
    "WebP": lambda: large("RGBA", "WEBP", lossless=True, method=0, quality=0),
    "JPEG 2000": lambda: large("RGBA", "JPEG2000"),
}
# What `tl.data.images` promises, and 64 MB for Pillow's plug-ins and pieces of work.
BOUND = 25 * MAX_PIXELS + 2**26
CHILD = """
import resource, sys
from PIL import Image
from tl.data.images import read_rgb
Image.init()
Image.new("F", (9, 9)).convert("L")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
image = read_rgb(sys.argv[1])
print(image.mode, *image.size, peak() - before)
"""


def decode(path: Path, content: bytes) -> int:
    """Bytes of memory that a process of its own takes at most to decode the image."""
    put(path, content)
    words = [sys.executable, "-c", CHILD, str(path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    mode, width, height, peak = done.stdout.split()
    assert (mode, width, height) == ("RGB", str(SIDE), str(SIDE))
    return int(peak)


@pytest.mark.parametrize("kind", LARGE)
def test_the_largest_image_takes_a_bounded_memory(tmp_path: Path, kind: str) -> None:
    # PNG is decoded row by row: at most 4 bytes a pixel each for what is read, the same with
    # alpha, and the background.
    assert decode(tmp_path / "large", LARGE[kind]()) < 14 * MAX_PIXELS + 2**26 < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE_LARGE)
def test_the_largest_image_of_any_kind_takes_a_bounded_memory(tmp_path: Path, kind: str) -> None:
    assert decode(tmp_path / "large", MORE_LARGE[kind]()) < BOUND


def test_wide_grey_is_scaled_alike_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (37, 53), dtype=np.uint16)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32) * 9)):
        whole = read_rgb(image).tobytes()
        for piece in (1, 10, 53, 100, 1000):
            monkeypatch.setattr(images, "_PIECE", piece)
            assert read_rgb(image).tobytes() == whole
