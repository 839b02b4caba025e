"""What every command does around its work: parse, run, say what went wrong once, exit code.

Exit codes: 0 done, 1 failure, 2 usage or bad input, 75 stopped with a checkpoint written (sysexits'
"try again later"). Imports no torch, so that a mistyped key is answered in a fraction of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from tl.errors import LostPeer, OnOneProcessError, PeerFailed, Preempted, UserError, printable

DONE, FAILURE, BAD_INPUT, PREEMPTED = 0, 1, 2, 75


def let_idle_threads_sleep() -> None:
    """Make OpenMP's threads sleep while they wait. To be called before torch is first imported.

    By default they spin, which starves the loader's workers, the other processes of the node and
    whoever else uses it. Training ResNet-18 on 32-pixel images with two threads on two cores, one
    of them busy: 12 images/s spinning, 211 sleeping.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def is_main_process() -> bool:
    """Whether this process is the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def exit_code_of(error: BaseException) -> int:
    """What a command ends with because of ``error``."""
    if isinstance(error, Preempted):
        return PREEMPTED
    return BAD_INPUT if isinstance(error, UserError) else FAILURE


def exit_code(command: Callable[[], object]) -> int:
    """Run ``command`` and turn how it ends into an exit code and, at most, one message.

    A mistake of the user is found by all processes alike, and said by the main one alone. Anything
    else is said by the process that it happened to, with its rank and a traceback.

    ``command`` is what imports torch, after what can be said without it.
    """
    let_idle_threads_sleep()
    try:
        command()
    except UserError as error:
        if is_main_process() or isinstance(error, OnOneProcessError):
            _complain(f"error: {error}")
        return exit_code_of(error)
    except Preempted as stopped:
        if is_main_process():
            print(stopped, file=sys.stderr, flush=True)
        return PREEMPTED
    except LostPeer as lost:
        _complain(f"error: {lost}")
        return FAILURE
    except PeerFailed:
        return FAILURE
    except KeyboardInterrupt:
        if is_main_process():
            print("interrupted", file=sys.stderr, flush=True)
        return FAILURE
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:
        rank = os.environ.get("RANK")
        place = f" on rank {rank}" if rank is not None else ""
        _complain(traceback.format_exc().rstrip())
        _complain(f"error{place}: {type(error).__name__}: {error}")
        return exit_code_of(error)
    return DONE


def _complain(text: str) -> None:
    """On standard error, without what could steer a terminal: file names are in it."""
    print(printable(text, keep="\n\t"), file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Argparse that says a usage error from the main process alone."""

    def error(self, message: str) -> None:  # type: ignore[override]
        if is_main_process():
            self.print_usage(sys.stderr)
            # What parse_intermixed_args calls required though there may be none of it.
            for action in self._actions:
                if action.nargs == "*":
                    message = message.replace(f", {action.metavar}", "")
            # Without the value of an option that there is not: it may be a secret.
            _complain(re.sub(r"(?s)(--?[\w-]+)=.*", r"\1=…", f"error: {message}"))
            _complain(f"{self.prog} --help says more")
        raise SystemExit(BAD_INPUT)

    def print_help(self, file: object = None) -> None:
        if is_main_process():
            super().print_help(file)  # type: ignore[arg-type]


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number, ``least`` or more."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return int(text)

    return parse


def fraction(text: str) -> float:
    """The type of an argument that is a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return number


def fractions(text: str) -> list[float]:
    """The type of an argument that is numbers from 0 to 1, as ``0,0.5,1``."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(0 <= number <= 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 0 to 1 as 0,0.5,1")
    return sorted(set(numbers))


def is_override(word: str) -> bool:
    """Whether an argument is key.path=value, and not a path such as ``runs/lr=0.1``."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key


def split_config(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Tell the CONFIG.yaml, if there is one, from the key.path=value arguments.

    Raises:
        UserError: more than one config.
    """
    overrides = [argument for argument in arguments if is_override(argument)]
    files = [argument for argument in arguments if argument not in overrides]
    if len(files) > 1:
        raise UserError(
            f"{' and '.join(files)}: one config at a time, other arguments are key.path=value"
        )
    return (files[0] if files else None), overrides
