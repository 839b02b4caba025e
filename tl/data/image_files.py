"""Image files as a split's reader, and readers that can decode at a reduced size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tl.data.images import Decoded, Least, read_rgb, read_shrunk


@dataclass(frozen=True, eq=False)
class ReadFiles:
    """Position to image, by the rules of `tl.data.images`."""

    names: Sequence[str]
    """paths, below root if there is one"""
    background: tuple[int, ...]
    """RGB colour behind transparent pixels"""
    root: Path | None = None

    def __call__(self, index: int) -> Image.Image:
        return read_rgb(self._path(index), self._colour())

    def shrunk(self, index: int, least: Least) -> Decoded:
        """The image, decoded no smaller than ``least`` says."""
        return read_shrunk(self._path(index), least, self._colour())

    def _path(self, index: int) -> str | Path:
        name = self.names[index]
        return name if self.root is None else self.root / name

    def _colour(self) -> tuple[int, int, int]:
        red, green, blue = self.background
        return red, green, blue
