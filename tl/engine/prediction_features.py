"""A file of features, as large as it will be from the start: processes write rows at their places.

Either NumPy's format, to be opened with ``numpy.load(path, mmap_mode="r")``, or safetensors with
one tensor, ``features``. Both are a header and then float32 (images, features), row by row.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np

from tl.errors import UserError


class FeatureFile:
    """Rows of features in a file that is there; see `create`."""

    def __init__(self, path: Path, ending: str, shape: tuple[int, int]) -> None:
        self._start = len(_header(ending, shape))
        self._width = shape[1]
        self._file = path.open("r+b", buffering=0)

    def put(self, positions: range, found: np.ndarray, features: np.ndarray) -> None:
        """Write the rows at ``positions``: those in ``found`` (int), and NaN where there is none.

        Args:
            features: float32 (len(found), features).
        """
        rows = np.full((len(positions), self._width), np.nan, "<f4")
        rows[found - positions.start] = features
        content = memoryview(rows.tobytes())
        at = self._start + 4 * self._width * positions.start
        while content:
            written = os.pwrite(self._file.fileno(), content, at)
            content, at = content[written:], at + written

    def close(self) -> None:
        self._file.close()

    def sync(self) -> None:
        """Put what was written on the disk."""
        os.fsync(self._file.fileno())


def create(path: Path, ending: str, shape: tuple[int, int]) -> None:
    """Make a file for (images, features), with the room that it takes.

    Raises:
        UserError: there is not as much room.
    """
    header = _header(ending, shape)
    size = len(header) + 4 * shape[0] * shape[1]
    try:
        with path.open("wb") as file:
            file.write(header)
            file.flush()
            os.posix_fallocate(file.fileno(), 0, size)
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(
            f"--features takes {size / 1e9:,.3f} GB in {path.parent}: {error.strerror}"
        ) from error


def _header(ending: str, shape: tuple[int, int]) -> bytes:
    if ending == ".npy":
        file = io.BytesIO()
        about = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        return file.getvalue()
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0] * shape[1]]}
    text = json.dumps({"features": tensor}).encode()
    text += b" " * (-len(text) % 8)  # for numbers to start where they may
    return len(text).to_bytes(8, "little") + text
