"""Lists of paths: lines, or what ends with NUL bytes; and a column of a CSV file.

They are read as they come, so a list may be longer than memory. Paths are taken as they are, and
not looked at: one that leads nowhere is an image that cannot be read.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tl.errors import UserError, unknown

LONGEST = 2**16
"""bytes of a path, and of what is read at a time; the longest that Linux takes has 4,096"""


def paths_in(stream: BinaryIO, name: str, null: bool) -> Iterator[str]:
    """The paths in a stream, one a line, or with ``null`` each ended by a NUL byte.

    A line may end as on Windows. Empty ones are passed over.

    Raises:
        UserError: what is in there are no paths. ``name`` is what messages call it.
    """
    end, rest, number = (b"\0" if null else b"\n"), b"", 0
    while block := stream.read(LONGEST):
        *whole, rest = (rest + block).split(end)
        for path in whole:
            number += 1
            yield from _path(path, name, number, null)
        if len(rest) > LONGEST:
            raise UserError(
                f"{name} has a path of more than {LONGEST:,} bytes. Expected one path "
                + ("before each NUL byte" if null else "a line (-0: each ended by a NUL byte)")
            )
    yield from _path(rest, name, number + 1, null)


def _path(path: bytes, name: str, number: int, null: bool) -> Iterator[str]:
    if not null:
        path = path.removesuffix(b"\r")
        if b"\0" in path:
            raise UserError(
                f"line {number:,} of {name} holds a NUL byte. If paths are ended by these, as "
                "those of `find -print0`, give -0"
            )
    if path:
        yield os.fsdecode(path)


def check_column(file: str, column: str) -> None:
    """Raise UserError unless this is a CSV file that can be read and has such a column."""
    for _ in paths_in_csv(file, column):
        return


def paths_in_csv(file: str, column: str) -> Iterator[str]:
    """The values of a column of a CSV file; relative paths are relative to the file's folder.

    Raises:
        UserError: it cannot be read, there is no such column, or a row has nothing in it.
    """
    folder = os.path.dirname(file)  # noqa: PTH120 - a million paths, and "./" stays
    try:
        # What Excel writes begins with a byte order mark.
        with Path(file).open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            rows = csv.DictReader(opened)
            if column not in (rows.fieldnames or ()):
                raise unknown("column", column, rows.fieldnames or (), f"--column, in {file}")
            for row in rows:
                path = row[column]
                if not path or "\0" in path:
                    raise UserError(
                        f"{file}, line {rows.line_num:,}: "
                        + (f"no path in the column {column!r}" if not path else "a NUL byte")
                    )
                yield os.path.join(folder, path)  # noqa: PTH118
    except OSError as error:
        raise UserError(f"cannot read --csv {file}: {error.strerror}") from error
    except csv.Error as error:
        raise UserError(f"--csv {file}, line {rows.line_num:,} is no CSV: {error}") from error
