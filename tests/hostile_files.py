"""Files that are no good, look no good, or cost too much: what a folder of images may hold."""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from image_bytes import chunk, encoded, png
from PIL import Image

from tl.config import DataConfig


class Evil:
    """Its pickle makes a folder when it is loaded as pickles used to be: the sentinel."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = str(sentinel)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.sentinel,)


MODES = [
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV",
    "I", "I;16", "I;16B", "I;16L", "F",
]  # fmt: skip
ORIENTED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def noise(mode: str, size: tuple[int, int] = (19, 14), seed: int = 0) -> Image.Image:
    """An image of any mode that looks like nothing."""
    width, height = size
    random = np.random.default_rng(seed)
    if mode == "F":
        return Image.fromarray(random.random((height, width), dtype=np.float32))
    channels = len(Image.new(mode, (1, 1)).getbands())
    depth = {"I": 4}.get(mode, 2 if mode.startswith("I;16") else 1)
    if mode == "1":
        return noise("L", size, seed).convert("1")
    image = Image.frombytes(mode, size, random.bytes(width * height * channels * depth))
    if mode in ("P", "PA"):
        image.putpalette(random.bytes(768))
    return image


def every_kind() -> Iterator[tuple[str, bytes]]:
    """An image in every format that `data.extensions` lets count, in every mode it can hold."""
    Image.init()
    for ending in DataConfig().extensions:
        file_format = Image.registered_extensions()[ending]
        for mode in MODES:
            try:
                yield f"{mode.replace(';', '')}{ending}", encoded(noise(mode), file_format)
            except (OSError, ValueError, KeyError):  # no such mode in this format
                continue
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"):
        yield f"{compression}.tif", encoded(noise("RGB"), "TIFF", compression=compression)
    frames = [noise("P", seed=seed) for seed in range(3)]
    for ending, file_format in ((".png", "PNG"), (".webp", "WEBP"), (".tif", "TIFF")):
        animated = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        yield f"animated{ending}", animated
    yield "progressive.jpg", encoded(noise("RGB"), "JPEG", progressive=True)
    yield "turned.jpg", encoded(noise("RGB"), "JPEG", exif=ORIENTED)


def damaged(
    files: list[tuple[str, bytes]], count: int, seed: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Files with some bytes changed, or cut short."""
    random = np.random.default_rng(seed)
    for i in range(count):
        name, content = files[int(random.integers(len(files)))]
        changed = bytearray(content)
        if i % 4 == 0:
            changed = changed[: int(random.integers(len(changed)))]
        else:
            # Half of them in the header, where sizes and offsets stand.
            reach = len(changed) if i % 2 else min(len(changed), 64)
            for _ in range(int(random.integers(1, 9))):
                changed[int(random.integers(reach))] = int(random.integers(256))
        yield f"damaged{i:03}-{name}", bytes(changed)


# ------------------------------------------------------------------------------------------- bombs


def zeros(count: int) -> bytes:
    """That many zero bytes, compressed a thousand times."""
    press, block = zlib.compressobj(), bytes(2**20)
    whole, rest = divmod(count, len(block))
    parts = [press.compress(block) for _ in range(whole)]
    return b"".join([*parts, press.compress(block[:rest]), press.flush()])


def pixel(*extra: bytes) -> bytes:
    """A PNG of one pixel, with more in it than that."""
    return png((1, 1), 8, 0, zlib.compress(b"\0\0"), *extra)


def tiff(*tags: tuple[int, int, int], strips: int = 1) -> bytes:
    """A TIFF one pixel wide of so many strips, with more tags (which, type, number of values)."""
    entries = [(256, 4, 1, 1), (257, 4, 1, strips), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
               (273, 4, strips, 1000), (277, 3, 1, 1), (278, 4, 1, 1)]  # fmt: skip
    entries += [(*tag, 1000) for tag in tags]
    directory = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<LH", 8, len(entries)) + directory + bytes(4)
    values = max([strips, *(count for _, _, count in tags)])
    return head.ljust(1000, b"\0") + struct.pack("<L", 1000) * values


def exif_bomb(tags: int = 5000, size: int = 60_000) -> bytes:
    """An EXIF block in which many tags claim the same long value."""
    entries = [struct.pack("<HHLL", 0x8000 + tag, 7, size, 8) for tag in range(tags)]
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", tags) + b"".join(entries) + bytes(4)
    return block.ljust(size + 8, b"\0")


def many_scans(size: tuple[int, int], scans: int) -> bytes:
    """A progressive JPEG that goes over its pixels that many times more than it needs."""
    content = encoded(Image.new("L", size), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[last:]


# ------------------------------------------------------------------------------------ whole folders


def beside(content: bytes) -> dict[str, bytes]:
    """Files of hand, and what names can be: good images and others."""
    # With é as one letter and as two, the names of two different files.
    names = ["\u00e9", "e\u0301", "line\nfeed", "return\rhere", "\x1b[2Jsteers", "[red]markup[/]",
             "-dash", " space ", "per%cent", "back\\slash", 'quo"te', "\u202egnp", "\ue000",
             "\udcff", "\udcc3(", "x" * 240]  # fmt: skip
    files = {f"{name}.png": content for name in names}
    files |= {f"bad {name[:230]}.png": b"no image" for name in names}
    gif = encoded(noise("P"), "GIF")
    return files | {
        "empty.jpg": b"",
        "gif.png": gif,  # what a file is counts, not its ending
        "png.jpeg": content,
        "jp2.jpg": encoded(noise("RGB"), "JPEG2000"),
        "ico.png": encoded(noise("RGB"), "ICO"),  # Pillow reads it, and we do not
        "eps.jpg": encoded(noise("RGB"), "EPS"),
        "text.png": b"hello",
        "claims.png": png((30_000, 30_000), 1, 0, b""),
        "bomb.png": png((30_000, 30_000), 1, 0, zeros(30_000 * 3751)),
        "huge.png": png((9459, 9459), 1, 0, zeros(9459 * 1184)),  # which is allowed
        "thin.jpg": encoded(Image.new("RGB", (1, 65_000)), "JPEG"),
        "long.png": png((1, 2_000_000), 1, 0, zeros(4_000_000)),
        "text bomb.png": pixel(chunk(b"zTXt", b"a\0\0" + zeros(2**24))),
        "profile bomb.png": pixel(chunk(b"iCCP", b"a\0\0" + zeros(2**24))),
        "exif bomb.png": pixel(chunk(b"eXIf", exif_bomb())),
        "pixels to spare.png": png((1, 1), 8, 0, zeros(2**24)),
        "strips.tif": tiff(strips=300_000),
        "values.tif": tiff((700, 5, 300_000)),
        "scans.jpg": many_scans((64, 64), 200),
        "comments.png": gif[:781] + (b"\x21\xfe\xff" + b"a" * 255 + b"\0") * 70_000 + gif[781:],
    }  # fmt: skip


NO_FILES: dict[str, Callable[[Path], object]] = {
    "dangling.png": lambda path: path.symlink_to("nowhere"),
    "loop.png": lambda path: path.symlink_to(path.name),
    "loop1.png": lambda path: path.symlink_to("loop2.png"),
    "loop2.png": lambda path: path.symlink_to("loop1.png"),
    "pipe.png": os.mkfifo,
    "pipe.jpg": lambda path: path.symlink_to("pipe.png"),
    "zero.png": lambda path: path.symlink_to("/dev/zero"),
    "socket.png": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "holes.webp": lambda path: (path.write_bytes(b"RIFF"), os.truncate(path, 2**30 + 1)),
}
"""Not one of them can be read, and some would be read for ever."""


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def hostile_folder(root: Path, num_damaged: int = 200) -> list[str]:
    """Fill two class folders of train/ and of val/; returns paths of the images below root."""
    good = list(every_kind())
    files = [*good, *damaged(good, num_damaged), *beside(good[0][1]).items()]
    paths = []
    for i, (name, content) in enumerate(files):
        part = "val" if i % 5 == 0 else "train"
        paths.append(put(root / part / "ab"[i % 2] / name, content))
    for i, (name, make) in enumerate(NO_FILES.items()):
        # Those of a pair stand beside each other.
        make(path := root / ("val" if i == 1 else "train") / "a" / name)
        paths.append(path)
    # A link to an image is one, and a folder may be called as an image is.
    (root / "train/b/link.png").symlink_to(root / "train/b/inside.jpg/good.png")
    paths.append(put(root / "train/b/inside.jpg/good.png", good[0][1]))
    paths.append(root / "train/b/link.png")
    (root / "train/b/nothing.jpg").mkdir()
    return [str(path.relative_to(root)) for path in paths]


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000")
COSTLY = ("strips.tif", "values.tif", "scans.jpg", "comments.png")
"""Pillow reads them, and we do not."""


def can_be_decoded(path: Path) -> bool:
    """Whether Pillow can: 89 million pixels, a million in a row or column, and only numbers."""
    if path.name in COSTLY or not path.is_file():
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if max(image.size) > 2**20:
                    return False
                image.load()
                return image.mode != "F" or bool(np.isfinite(np.asarray(image)).all())
    except Exception:
        return False
