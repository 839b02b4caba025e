"""An exported folder appears when it is complete and checked, under its own name, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tl.atomic import sync
from tl.errors import UserError
from tl.export.wish import check_place


@contextlib.contextmanager
def staged(output: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside ``output`` to write into, which takes its name if the block ends well.

    However else the block ends (an error, Ctrl-C), it is removed and what was there stays.

    Raises:
        UserError: the disk is full or not writable, or a folder has come to be there meanwhile.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in sorted(partial.rglob("*")):
            sync(file)
        sync(partial)
        check_place(output, overwrite)
        # No system renames a folder over one that is not empty: between these two there is none.
        if output.exists():
            output.rename(old)
        partial.rename(output)
        sync(output.parent)
    except OSError as error:
        if error.errno is None:  # no system's: Transformers says some of its own so
            raise
        raise UserError(f"cannot write to --output {output}: {error.strerror or error}") from error
    finally:
        if old.exists() and not output.exists():  # interrupted between the two
            old.rename(output)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
