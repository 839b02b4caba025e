"""What a user did wrong, said once and with the mend; and the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: a bad value, name, file or folder. Ends a command with code 2.

    The message says what is wrong, where (the file and line, or the argument) and what to do.
    """


class OnOneProcessError(UserError):
    """A mistake that only the process that raises it knows of: it has to say so itself."""


class Preempted(Exception):
    """A run was asked to stop and has written a checkpoint. Ends a command with code 75."""


class LostPeer(Exception):
    """Another process is gone without a word. Said by the one process that raises it."""


class PeerFailed(Exception):
    """Another process has failed and says so itself: this one ends without a word."""


def printable(text: str, keep: str = "") -> str:
    """``text`` with escapes for what is no visible letter or space, but for those in ``keep``.

    A file may be called anything: a line feed in its name could pass for a message of ours, and
    other characters steer terminals. A byte that is no UTF-8, in Python a lone surrogate, looks
    like ``\\xff``.
    """
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def brief(value: object, most: int = 200) -> str:
    """``repr`` of a value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest candidate, or ``""`` if none is near."""
    known = sorted(set(map(str, candidates)))
    folded = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).casefold(), list(folded), n=1, cutoff=0.5)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""


def unknown(kind: str, name: str, candidates: Iterable[str], where: str = "") -> UserError:
    """An error for a name that is none of ``candidates``: offers the nearest, lists the rest."""
    known = sorted(set(map(str, candidates)))
    shown = ", ".join(known[:20]) + (f", … ({len(known)} in all)" if len(known) > 20 else "")
    place = f" ({where})" if where else ""
    return UserError(
        f"unknown {kind} {brief(name)}{place}.{did_you_mean(name, known)} Known: {shown}."
    )
