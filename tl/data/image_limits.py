"""What a file may cost before and while it is decoded.

A few bytes can stand for gigabytes of memory or hours of work, and not only in the pixels, of
which `tl.data.images` counts no more than it allows. Pillow keeps decompressed text, profiles and
EXIF blocks small by itself; what it leaves open is limited here, by numbers that no camera or
program comes near.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from pathlib import Path
from typing import Any, BinaryIO

MAX_BYTES = 2**30
"""Larger files are refused: some formats are read into memory whole, and a file with holes costs
no space on a disk. The largest image of 89 million pixels, 8 bytes each, is smaller."""

MAX_OTHER_BYTES = 2**24
"""What may stand beside the pixels, such as comments and profiles. An entry can take 35 times its
size in memory, and some are read byte by byte."""

BYTES_PER_PIXEL = 32
"""What a pixel may take in a file. As text of 16 bits a colour it takes 18."""

MAX_TIFF_VALUES = 2**18
"""Strips, tiles and other numbers of one tag. A TIFF of a million strips, 4 MB, takes 15 seconds
and 350 MB to open."""

MAX_SCANS = 100
"""Scans of a JPEG. Encoders write 10 or so. One of 400 bytes goes over all pixels once more, a
tenth of a second for the largest image."""

_TIFF_LAYOUTS = {
    # How it begins: (where the place of the directory stands, its format; format of the number of
    # tags; format of a tag: which, type, number of values).
    b"II*\0": (4, "<L", "<H", "<HHL4x"),
    b"II\0*": (4, "<L", "<H", "<HHL4x"),  # not valid, but Pillow takes it
    b"MM\0*": (4, ">L", ">H", ">HHL4x"),
    b"MM*\0": (4, ">L", ">H", ">HHL4x"),
    b"II+\0": (8, "<Q", "<Q", "<HHQ8x"),
    b"MM\0+": (8, ">Q", ">Q", ">HHQ8x"),
}
_TIFF_BYTES = (1, 2, 6, 7)  # types that stay bytes: profiles, layers, notes of the camera
_TIFF_PLACES = (273, 324)  # of strips and of tiles


def open_image_file(path: Path) -> BinaryIO:
    """Open a file for reading bytes.

    Raises:
        OSError: it is not there, a folder, or may not be read.
        ValueError: it is a named pipe, which would be waited for, or a device, which may not end.
    """
    return open(path, "rb", opener=_open_file)


def _open_file(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # Python itself refuses a folder
        return descriptor
    os.close(descriptor)
    raise ValueError(f"it is {'a named pipe' if stat.S_ISFIFO(mode) else 'a device'}, no file")


def limit_besides_pixels(file: BinaryIO) -> float:
    """How much Pillow may read of ``file`` besides the pixels: `MAX_OTHER_BYTES`, or all.

    Raises:
        ValueError: Pillow had better not look at it: it is too large, or a TIFF whose directory
            claims too many values.
    """
    size = file.seek(0, os.SEEK_END)
    if size > MAX_BYTES:
        raise ValueError(f"the file has {size:,} bytes, more than {MAX_BYTES:,}")
    file.seek(0)
    begins = file.read(4)
    if begins in _TIFF_LAYOUTS:
        _check_tiff(file, size, *_TIFF_LAYOUTS[begins])
    file.seek(0)
    # The directory of a TIFF may stand at its end, and a WebP is read as a whole.
    return math.inf if begins == b"RIFF" or begins in _TIFF_LAYOUTS else MAX_OTHER_BYTES


def _check_tiff(file: BinaryIO, size: int, at: int, place: str, number: str, entry: str) -> None:
    def read(form: str) -> tuple[int, ...]:
        return struct.unpack(form, file.read(struct.calcsize(form)))

    try:
        file.seek(at)
        (directory,) = read(place)
        file.seek(directory)
        (tags,) = read(number)
        for _ in range(min(tags, MAX_TIFF_VALUES)):
            tag, kind, count = read(entry)
            if kind in _TIFF_BYTES and tag not in _TIFF_PLACES:
                continue
            if MAX_TIFF_VALUES < count <= size:  # what cannot be there Pillow passes over
                raise ValueError(f"its TIFF tag {tag} claims {count:,} values")
    except (struct.error, OSError, OverflowError):  # cut short: Pillow knows what to make of that
        return


class Metered:
    """A file that gives no more than ``left`` bytes; more can be allowed at any time."""

    def __init__(self, file: BinaryIO, left: float) -> None:
        self._file, self.left = file, left

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"more than {MAX_OTHER_BYTES:,} bytes of it are no pixels")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def check_scans(file: BinaryIO) -> None:
    """Raise ValueError if a JPEG goes over its pixels too often. Leaves the place as it was."""
    place = file.tell()
    file.seek(0)
    found = 0
    while found <= MAX_SCANS and (block := file.read(2**20)):
        found += block.count(b"\xff\xda")
    if found > MAX_SCANS:  # of the picture, or of something in or behind it, such as a film
        file.seek(0)
        found = _scans(file.read())
    file.seek(place)
    if found > MAX_SCANS:
        raise ValueError(f"a JPEG of more than {MAX_SCANS} scans")


def _scans(data: bytes) -> int:
    """Number of scans up to the end of the picture that ``data`` begins with."""
    marker = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
    scans = position = 0
    while (found := marker.search(data, position)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        # A segment says how long it is; the pixels that follow a scan's have no such markers.
        position = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
    return scans
