"""How features lie in a file: a row of bytes for each image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

BLOCK = 64
"""rows that are computed and checked together"""
STRIDE = 128
"""Bytes between two rows are a multiple of it, so blocks begin on a page of memory: two processes,
also on two machines that share a disk, never write into the same page."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Layout:
    """How an entry's rows lie in its file."""

    rows: int
    shape: tuple[int, ...]
    """of the features of one image"""
    dtype: str
    channels_last: bool
    """(C, H, W) lies in memory as (H, W, C), as the network's convolutions have it"""

    @classmethod
    def of(cls, features: Tensor, rows: int) -> Self:
        """The layout for ``rows`` rows of what ``features`` (N, …), with N > 1, are an example."""
        is_last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
        name = str(features.dtype).removeprefix("torch.")
        last = is_last and not features.is_contiguous()
        return cls(rows, tuple(features.shape[1:]), name, last)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def stride(self) -> int:
        return math.ceil(self.row_bytes / STRIDE) * STRIDE

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.rows * self.stride

    @property
    def blocks(self) -> int:
        return math.ceil(self.rows / BLOCK)

    def rows_of(self, block: int) -> range:
        return range(self.rows)[block * BLOCK : (block + 1) * BLOCK]

    def to_bytes(self, features: Tensor) -> Tensor:
        """Features (N, …) as rows of bytes, uint8 (N, row_bytes)."""
        if self.channels_last:
            features = features.permute(0, 2, 3, 1)
        return features.flatten(1).contiguous().view(torch.uint8)

    def from_bytes(self, rows: Tensor) -> Tensor:
        """Features (N, …) from rows of the file, uint8 (N, stride)."""
        flat = rows[:, : self.row_bytes].contiguous().view(DTYPES[self.dtype])
        if not self.channels_last:
            return flat.view(len(rows), *self.shape)
        channels, height, width = self.shape
        return flat.view(len(rows), height, width, channels).permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "channels_last": self.channels_last,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`. Raises ValueError, KeyError or TypeError for anything else."""
        layout = cls(
            int(values["rows"]),
            tuple(int(n) for n in values["shape"]),
            str(values["dtype"]),
            bool(values["channels_last"]),
        )
        if layout.dtype not in DTYPES or layout.rows < 0 or min(layout.shape, default=0) < 0:
            raise ValueError(f"no layout: {values}")
        if layout.channels_last and len(layout.shape) != 3:
            raise ValueError(f"no layout: {values}")
        return layout
