"""The images that a config names: how many there are of what, and whether they can be decoded."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from tl.arguments import Loaded
from tl.data.images import BadImage
from tl.data.split import AnyImages, Source
from tl.engine import run_dir
from tl.engine.doctor.findings import Finding, note, ok, problem
from tl.engine.prepare import describe_source, open_images
from tl.engine.runtime import Runtime
from tl.errors import UserError
from tl.tracking.console import open_console

_NAMED = 20

Bad = tuple[int, str]
"""position among those that are looked at, and the file with what is wrong"""


def scan(loaded: Loaded, here: Runtime) -> tuple[list[Finding], Source | None]:
    """List the images, the same on every process."""
    try:
        with run_dir.nowhere() as nothing:  # what it says is said below, as findings
            source, _ = open_images(loaded, here, open_console(nothing))
    except UserError as error:
        mend = "`tl train CONFIG --dry-run` says the same, until that is mended"
        return [problem("data", str(error), mend)], None
    counts = np.bincount(source.train.labels, minlength=len(source.classes))
    said = describe_source(source).removeprefix("data: ").split("\n")
    said[-1] += f"; {counts.min():,} to {counts.max():,} training images each"
    found = [ok("data", line) for line in said]
    return [*found, *(note("data", line) for line in source.notes)], source


def decode(loaded: Loaded, source: Source, most: int, here: Runtime) -> list[Finding]:
    """Decode ``most`` images, picked evenly from all, each by one of the processes."""
    parts = _parts(source)
    total = sum(map(len, parts))
    chosen = evenly(total, most)
    if not len(chosen):
        return [note("images", f"none of {total:,} was decoded", "--images N decodes N of them")]
    began = time.perf_counter()
    bad: list[Bad] = []
    for position in chosen[here.rank :: here.world_size].tolist():
        if text := _attempt(parts, position):
            bad.append((position, text))
    seconds = time.perf_counter() - began
    bad = sorted(here.from_all(bad))
    speed = len(chosen) / max(here.from_all([seconds]))
    looked = f"{len(chosen):,} of {total:,} decoded, {speed:,.0f} a second"
    if not bad:
        return [ok("images", looked)]
    data = loaded.config.data
    expected = round(len(bad) * total / len(chosen))
    text = f"{looked}; {len(bad):,} cannot be"
    if expected > len(bad):
        text += f", so in all about {expected:,}"
    if data.bad_images == "skip" and expected <= data.max_bad_images:
        head = note("images", text, "they will be left out, as data.bad_images=skip says")
    elif data.bad_images == "skip":
        head = problem(
            "images",
            f"{text}, and data.max_bad_images is {data.max_bad_images}",
            "mend or delete them, or give data.max_bad_images a larger number",
        )
    else:
        mend = "mend or delete them, or leave them out by data.bad_images=skip"
        head = problem("images", text, mend)
    named = [note("images", what) for _, what in bad[:_NAMED]]
    more = [note("images", f"… and {len(bad) - _NAMED:,} more")] if len(bad) > _NAMED else []
    return [head, *named, *more]


def evenly(total: int, most: int) -> np.ndarray:
    """At most ``most`` of the positions below ``total``, rising and evenly apart; (N,) int64."""
    if most >= total:
        return np.arange(total)
    return np.arange(most) * total // max(1, most)


def _parts(source: Source) -> list[AnyImages]:
    parts: list[AnyImages] = [source.train, source.val]
    if source.target is not None:
        parts += [source.target.images, source.target.test]
    return parts


def _attempt(parts: Iterable[AnyImages], position: int) -> str:
    """What is wrong with an image; empty if nothing is."""
    for part in parts:
        if position < len(part):
            break
        position -= len(part)
    try:
        part.read(position)
    except BadImage as error:
        return str(error)
    except Exception as error:  # a source outside the tree may raise what it likes
        return f"{part.names[position]}: {type(error).__name__}: {error}"
    return ""
