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
    return UserError(f"unknown {kind} {name!r}{place}.{did_you_mean(name, known)} Known: {shown}.")
