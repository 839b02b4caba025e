"""The pin of a weights file: its sha256 in a file beside it, which is checked at every loading.

`tl prefetch` writes it, as ``sha256sum`` would, so ``sha256sum -c`` checks it too. It lies beside
the file and not with the user: whoever shares a cache of weights shares its pins.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tl.atomic import write_text_atomically
from tl.errors import UserError

SUFFIX = ".sha256"


def pin_of(file: Path) -> Path:
    """Where the pin of a weights file is, if it has one."""
    return file.with_name(file.name + SUFFIX)


def sha256(file: Path) -> str:
    """Of a file of any size, in hexadecimal digits.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the weights file {file}: {error.strerror}") from error


def check(file: Path) -> str | None:
    """The sha256 of ``file`` if it has a pin and is what was pinned; None without a pin.

    Raises:
        UserError: it is another file than was pinned, or either cannot be read.
    """
    pin = pin_of(file)
    if (pinned := _read(pin)) is None:
        return None
    if (found := sha256(file)) != pinned:
        raise UserError(
            f"weights file {file} is not the one that was pinned: its sha256 is {found}, and {pin} "
            f"says {pinned}. It was altered, cut short or replaced since. Delete the weights file, "
            "and `tl prefetch` it again where there is a network; or, if you trust it as it is, "
            f"delete {pin.name} and `tl prefetch` pins it anew."
        )
    return pinned


def pin(file: Path) -> str:
    """Pin ``file`` as it is now, unless it has been before; returns its sha256.

    Raises:
        UserError: it is another file than was pinned before, or the pin cannot be written.
    """
    if (pinned := check(file)) is not None:
        return pinned
    found = sha256(file)
    try:
        write_text_atomically(pin_of(file), f"{found}  {file.name}\n")
    except OSError as error:
        raise UserError(
            f"cannot write {pin_of(file)}: {error.strerror}. Weights are pinned beside where they "
            "are kept: make that folder writable, or keep them in one of your own, by TORCH_HOME "
            "(torchvision) or HF_HOME (timm)."
        ) from error
    return found


def _read(pin: Path) -> str | None:
    """What a pin says; None if there is none."""
    try:
        with pin.open(encoding="ascii", errors="replace") as opened:
            text = opened.read(4096)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read the pin {pin}: {error.strerror}") from error
    if (found := re.match(r"([0-9a-fA-F]{64})\s", text + "\n")) is None:
        raise UserError(
            f"{pin} does not begin with a sha256 of 64 digits. Delete it, and `tl prefetch` pins "
            "the weights anew."
        )
    return found[1].lower()
