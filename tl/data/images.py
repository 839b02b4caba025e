"""Any image file to 8-bit RGB, in one documented way, or `BadImage` with the reason.

What a file becomes:

* The first frame of an animation, the first page of a document. EXIF orientation is applied.
* Alpha, a transparent palette entry or a transparent colour: composited over ``background``.
* 16-bit grey: 0…65535 to 0…255, linearly. (Pillow alone would clip it to white.)
* 32-bit integers in 0…65535 and floats in 0…1: scaled like that, from the whole of that range.
  A 32-bit image with any value outside has no known range: its minimum becomes 0, its maximum
  255. NaN and infinity make a `BadImage`.
* All else by Pillow's conversion to RGB: 1-bit, grey, palette, CMYK and YCCK (Adobe's inverted
  JPEGs included), YCbCr, LAB, HSV, and colour of 16 bits, of which the upper 8 count (a
  transparent colour of a 16-bit RGB PNG is not looked for).
* Embedded ICC profiles are not applied, as in torchvision and in the ImageNet training recipes.

`read_shrunk` lets the decoder of JPEG leave out the finest detail, and with it most of its work:
where a half, a quarter or an eighth of an image's size is enough, that is what it decodes.

Decoding takes 25 bytes of memory for each pixel at most (JPEG 2000; most formats take 4 to 12), so
for an image of `MAX_PIXELS` 2.2 GB; what stands beside the pixels is limited by
`tl.data.image_limits`. Each process, and each of its loader workers, decodes one image at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from tl.data.image_limits import (
    BYTES_PER_PIXEL,
    Metered,
    check_scans,
    limit_besides_pixels,
    open_image_file,
)
from tl.errors import printable

MAX_PIXELS = 89_478_485
"""Images of more pixels are refused before they are decoded: Pillow's own limit for a warning,
256 MiB of RGB. A file of a few kilobytes can claim to be larger than any memory."""

MAX_SIDE = 2**20
"""Nor may a side be longer: for each row Pillow keeps a pointer, larger than the pixel of an image
that is one pixel wide."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000")
"""What is read, whatever the file's ending says. A closed list, since Pillow hands some formats
(EPS) to an external program, and what is read must never be executed."""

_PIECE = 2**18  # pixels

# EXIF tag 0x0112 says where row 0 and column 0 of the stored pixels belong.
_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Left, top, right and bottom of an image that was turned like that: which side each of them was.
_SIDES: dict[Image.Transpose | None, tuple[int, int, int, int]] = {
    None: (0, 1, 2, 3),
    Image.Transpose.FLIP_LEFT_RIGHT: (2, 1, 0, 3),
    Image.Transpose.ROTATE_180: (2, 3, 0, 1),
    Image.Transpose.FLIP_TOP_BOTTOM: (0, 3, 2, 1),
    Image.Transpose.TRANSPOSE: (1, 0, 3, 2),
    Image.Transpose.ROTATE_270: (3, 0, 1, 2),
    Image.Transpose.TRANSVERSE: (3, 2, 1, 0),
    Image.Transpose.ROTATE_90: (1, 2, 3, 0),
}

Size = tuple[int, int]
"""width and height"""
Box = tuple[float, float, float, float]
"""left, top, right and bottom"""
Least = Callable[[Size], Size]
"""From the size of an upright image to the smallest that is enough; no less is decoded."""


@dataclass(frozen=True)
class Decoded:
    """An image, at its own size or at a half, a quarter or an eighth of it."""

    image: Image.Image
    """RGB, upright"""
    size: Size
    """its own size, upright"""
    box: Box
    """the whole of it in pixels of `image`: an eighth of 9 pixels is 2, of which 1.125 count"""

    @classmethod
    def whole(cls, image: Image.Image) -> Decoded:
        """An image at its own size."""
        return cls(image, image.size, (0, 0, *image.size))

    @property
    def is_whole(self) -> bool:
        return self.size == self.image.size

    def mirrored(self) -> Decoded:
        """Left for right."""
        left, top, right, bottom = self.box
        turn, width = Image.Transpose.FLIP_LEFT_RIGHT, self.image.width
        return Decoded(
            self.image.transpose(turn), self.size, (width - right, top, width - left, bottom)
        )


class BadImage(Exception):
    """An image that cannot be decoded: the name of the file and, in one line, the reason."""

    def __init__(self, name: str, reason: str = "") -> None:
        super().__init__(name, reason)  # both, so that it survives pickling between processes
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        # One line, whatever the name holds: it is for a log, and for the eye.
        return printable(f"{self.name}: {self.reason}" if self.reason else self.name)


def read_rgb(
    source: str | Path | BinaryIO | Image.Image,
    background: tuple[int, int, int] = (255, 255, 255),
    name: str | None = None,
) -> Image.Image:
    """`read_shrunk` at the image's own size."""
    return read_shrunk(source, None, background, name).image


def read_shrunk(
    source: str | Path | BinaryIO | Image.Image,
    least: Least | None,
    background: tuple[int, int, int] = (255, 255, 255),
    name: str | None = None,
) -> Decoded:
    """Return the image as 8-bit RGB (mode ``"RGB"``), upright, by the rules of this module.

    Args:
        source: a path; a file opened for reading bytes, which stays open; or a Pillow image,
            of which the current frame counts and which is not changed. One that is RGB and
            upright already is returned itself, not copied.
        least: how small, at the least, a JPEG may be decoded; None: at its own size.
        background: the colour behind transparent pixels, R, G and B of 0…255.
        name: what to call the image in an error; by default the path.

    Raises:
        BadImage: it is missing, no file, unreadable, empty, truncated, damaged, of another format
            than `FORMATS`, without pixels, larger than `MAX_PIXELS` or `MAX_SIDE`, or costlier than
            `tl.data.image_limits` allows.
    """
    try:
        # Pillow warns about damaged EXIF blocks and the like, once for each file, which nobody
        # can act on. `catch_warnings` is not thread-safe: with threads that decode at once, the
        # worst is a warning that is shown, or that Pillow's warnings stay ignored.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            if isinstance(source, Image.Image):
                return Decoded.whole(_to_rgb(source, background))
            if isinstance(source, str | Path):
                with open_image_file(Path(source)) as file:
                    return _decode(file, background, least)
            return _decode(source, background, least)
    except Exception as error:  # Pillow's readers raise a dozen kinds on damaged files
        raise BadImage(name or _name_of(source), _reason(error)) from error


def _decode(file: BinaryIO, background: tuple[int, int, int], least: Least | None) -> Decoded:
    metered = Metered(file, limit_besides_pixels(file))
    try:
        image = Image.open(cast(BinaryIO, metered), formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        if not file.read(1):
            raise ValueError("the file is empty (0 bytes)") from None
        raise ValueError(f"damaged, or none of the formats {', '.join(FORMATS)}") from None
    with image:
        metered.left += BYTES_PER_PIXEL * image.width * image.height
        if image.format in ("JPEG", "MPO"):
            check_scans(file)
            if least is not None:
                return _decode_shrunk(image, background, least)
        return Decoded.whole(_to_rgb(image, background))


def _decode_shrunk(image: Image.Image, background: tuple[int, int, int], least: Least) -> Decoded:
    """A JPEG at the smallest of the sizes that its decoder knows which is enough."""
    _check_size(image)  # of the whole: what is smaller passes sooner
    size, sides = image.size, _SIDES[_turn(image)]
    lies = sides[0] % 2 == 1  # a side is what was top or bottom
    wanted = least(size[::-1] if lies else size)
    drafted = image.draft(None, wanted[::-1] if lies else wanted)
    rgb = _to_rgb(image, background)
    if drafted is None or max(image.size) == max(size):
        return Decoded.whole(rgb)
    _, (_, _, right, bottom) = drafted
    beyond = (0, 0, image.width - right, image.height - bottom)
    left, top, right, bottom = (beyond[side] for side in sides)
    box = (left, top, rgb.width - right, rgb.height - bottom)
    return Decoded(rgb, size[::-1] if lies else size, box)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"it has no pixels: {width}×{height}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} is more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{width}×{height} has a side of more than {MAX_SIDE:,} pixels")


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    _check_size(image)
    image.load()
    turn = _turn(image)  # after load: TIFF turns itself there, PNG may have its EXIF at the end
    rgb = _colours(image, background)
    if turn is None:
        return rgb
    rgb = rgb.transpose(turn)
    rgb.info = {}  # or whoever applies the EXIF orientation next would turn it again
    return rgb


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return None


def _colours(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        if image.mode == "La":  # premultiplied grey, which Pillow converts to LA only
            image = image.convert("LA")
        over = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", image.size, tuple(background))
        canvas.paste(over, mask=over)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16- or 32-bit grey as L, or as LA where one value means transparent (PNG's tRNS)."""
    full = 1.0 if image.mode == "F" else 65535.0
    low, high = np.inf, -np.inf
    for _, values in _pieces(image):
        low, high = np.minimum(low, values.min()), np.maximum(high, values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it has pixels that are NaN or infinite")
    if low < 0 or high > full:
        offset, span = low, max(high - low, np.finfo(np.float64).tiny)
    else:
        offset, span = 0.0, full
    transparent = image.info.get("transparency")
    grey = Image.new("L", image.size)
    alpha = Image.new("L", image.size) if isinstance(transparent, int) else None
    for corner, values in _pieces(image):
        scaled = np.rint((values - offset) / span * 255)
        grey.paste(Image.fromarray(scaled.astype(np.uint8)), corner)
        if alpha is not None:
            opaque = np.where(values == transparent, 0, 255)
            alpha.paste(Image.fromarray(opaque.astype(np.uint8)), corner)
    if alpha is not None:
        grey.putalpha(alpha)
    return grey


def _pieces(image: Image.Image) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """The corners and float64 values of parts that make up the image.

    As a whole it would take 32 bytes a pixel to scale.
    """
    width, height = image.size
    columns = min(width, _PIECE)
    rows = max(1, _PIECE // columns)
    for left in range(0, width, columns):
        for top in range(0, height, rows):
            box = (left, top, min(left + columns, width), min(top + rows, height))
            piece = image.crop(box)
            if piece.mode != "F":
                piece = piece.convert("I")
            yield (left, top), np.asarray(piece, dtype=np.float64)


def _name_of(source: str | Path | BinaryIO | Image.Image) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return str(getattr(source, "filename", "") or getattr(source, "name", "") or "image")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims more than {MAX_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
