"""The folder of a prediction that is under way: what is done stays done, whatever happens.

The images, in their order, are cut into pieces. A process writes the rows of a piece to a file,
which gets its name once it is on the disk. So whoever comes next, after a crash and on any number
of processes, finds which pieces there are and makes the others; and the main process joins them in
their order. A piece carries in its name a digest of all that its content follows from: those of
another model or of other images are never taken.

Imports no torch: what is wrong here is said before that.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from tl.atomic import from_json, sync, to_json, write_json_atomically
from tl.errors import OnOneProcessError, PeerFailed, UserError, brief
from tl.file_lock import lock

PIECES = 256
"""A prediction is cut into at least so many, if it has as many batches: some for each process."""
MOST_IMAGES = 4096
"""and into more if a piece had more images than that, for what a crash loses"""


@dataclass(frozen=True)
class Pieces:
    """How N images are cut, by their number and the batch's size alone."""

    images: int
    batch_size: int
    size: int
    """images of a piece: a multiple of the batch's size, but for the last"""

    @classmethod
    def of(cls, images: int, batch_size: int, as_they_come: bool) -> Pieces:
        """``as_they_come``: for a stream, of which the reader waits for each batch."""
        wanted = 1 if as_they_come else min(images // PIECES, MOST_IMAGES)
        return cls(images, batch_size, batch_size * max(1, -(-wanted // batch_size)))

    def __len__(self) -> int:
        return -(-self.images // self.size)

    def batches(self, number: int) -> Iterator[range]:
        """The positions of the images in each batch of a piece."""
        stop = min((number + 1) * self.size, self.images)
        for start in range(number * self.size, stop, self.batch_size):
            yield range(start, min(start + self.batch_size, stop))


class Work:
    """The folder, for one process. Only the main one makes it, tidies it and takes it away."""

    def __init__(self, folder: Path, lasting: bool) -> None:
        """``lasting``: it is to outlive a crash."""
        self.folder, self.lasting = folder, lasting
        self.key = ""
        """digest of what the pieces follow from; see `begin`"""
        self._lock: TextIO | None = None

    @classmethod
    def make(cls, output: Path | None, overwrite: bool) -> Work:
        """On the main process: beside the output; without one a folder that does not last.

        Args:
            overwrite: throw away what an earlier process has left.

        Raises:
            UserError: another process is at it.
        """
        if output is None:
            return cls(Path(tempfile.mkdtemp(prefix="tl-predict-")), lasting=False)
        work = cls(output.with_name(f"{output.name}.partial"), lasting=True)
        try:
            work.folder.mkdir(exist_ok=True)
            work._lock = (work.folder / "lock").open("a")
        except OSError as error:
            raise UserError(f"cannot make {work.folder}: {error.strerror}") from error
        if not lock(work._lock, seconds=0):
            work._unlock()
            raise UserError(
                f"another process is writing {output}: {work.folder}/lock is locked. Wait for it, "
                "end it, or give another --output"
            )
        with contextlib.suppress(OSError):
            shutil.rmtree(work._trash)
        for file in work.folder.iterdir():
            useless = file.name in ("failed", "joined") or file.suffix == ".tmp"
            if file.name != "lock" and (overwrite or useless):
                file.unlink()
        return work

    def begin(self, job: dict[str, Any]) -> None:
        """On the main process: know what the pieces follow from.

        Raises:
            UserError: there are pieces of another job.
        """
        self.key = hashlib.sha256(to_json(job).encode()).hexdigest()[:12]
        told = self.folder / "job.json"
        try:
            before = from_json(told.read_bytes())
        except (OSError, ValueError):
            before = None
        if isinstance(before, dict) and before != job and any(self.folder.glob("*.rows")):
            raise UserError(
                f"{self.folder} holds a part of another prediction; what differs: "
                f"{'; '.join(_differences(before, job))}. Give the command of before to go on "
                "with it, or --overwrite to throw it away"
            )
        if before != job:
            write_json_atomically(told, job)

    def done(self) -> set[int]:
        """Numbers of the pieces that are there."""
        found = self.folder.glob(f"*.{self.key}.rows")
        return {int(path.name.partition(".")[0]) for path in found}

    def has(self, number: int) -> bool:
        return self._piece(number).exists()

    @contextlib.contextmanager
    def piece(self, number: int) -> Iterator[BinaryIO]:
        """A file for the rows of a piece, which is there when the block has ended well."""
        staged = self.folder / f".{number}.{os.getpid()}.tmp"
        with staged.open("wb") as file:
            yield file
            if self.lasting:
                file.flush()
                os.fsync(file.fileno())
        staged.replace(self._piece(number))
        if self.lasting:
            sync(self.folder)

    def name_bad(self, number: int, reasons: list[str]) -> None:
        """Say, before a piece is there, which of its images could not be decoded."""
        write_json_atomically(self._piece(number).with_suffix(".bad"), reasons)

    def bad(self, number: int) -> list[str]:
        """Why images of a piece could not be decoded, each with its name."""
        try:
            return from_json(self._piece(number).with_suffix(".bad").read_bytes())
        except FileNotFoundError:
            return []

    def copy(self, number: int, descriptor: int) -> None:
        """Write the rows of a piece to an open file; of what does not last, they are then gone."""
        with self._piece(number).open("rb") as file:
            while block := file.read(2**20):
                write_all(descriptor, block)
        if not self.lasting:
            self._piece(number).unlink()

    @contextlib.contextmanager
    def telling_of_failure(self) -> Iterator[None]:
        """Let the main process, which waits for the others' pieces, know if this one fails.

        Raises:
            OnOneProcessError: the disk is full.
            PeerFailed: the main process has failed, and taken the folder away.
        """
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                (self.folder / "failed").touch()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OnOneProcessError(
                    f"cannot write to {self.folder.parent}: {error.strerror}. Make room"
                ) from error
            if isinstance(error, FileNotFoundError) and not self.folder.exists():
                raise PeerFailed from error
            raise

    @property
    def has_failed(self) -> bool:
        """Whether another process has."""
        return (self.folder / "failed").exists()

    def end(self) -> None:
        """On the main process: take the folder away, in one step from the outside."""
        self.folder.rename(self._trash)
        sync(self.folder.parent)
        shutil.rmtree(self._trash, ignore_errors=True)
        self._unlock()

    def leave(self) -> bool:
        """On the main process, which fails: whether there is something to go on with.

        If there is not, the folder goes.
        """
        lasts = self.lasting and any(self.folder.glob("*.rows"))
        if not lasts:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()
        return lasts

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def _trash(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.done")

    def _piece(self, number: int) -> Path:
        return self.folder / f"{number:09}.{self.key}.rows"


def write_all(descriptor: int, content: bytes) -> None:
    """Write to an open file; to a pipe it may take several turns."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in {**before, **now}:
        was, is_now = before.get(key), now.get(key)
        if was != is_now:
            # A hash says nothing to anybody.
            plain = not any(isinstance(v, str) and len(v) == 64 for v in (was, is_now))
            yield f"{key} (now {brief(is_now)}, before {brief(was)})" if plain else f"the {key}"
