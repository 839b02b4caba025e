"""Memory of a step on the CPU is kept for the next; a worker gives back that of one image."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, psutil, torch
from tl import heap

{before}
def step():
    kept = [torch.ones(2**20) for _ in range(40)]  # 4 MB each
    return sum(float(part[0]) for part in kept)

step()
began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step(), step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began
{after}
large = torch.ones(2**27)  # 512 MB, more than has become free
del large
print(faults, psutil.Process().memory_info().rss // 2**20)
"""


def run(before: str, after: str = "") -> tuple[int, int]:
    """Page faults of two steps, and the megabytes that are held at the end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before, after=after)],
        capture_output=True,
        text=True,
        check=True,
    )
    faults, held = map(int, done.stdout.split())
    return faults, held


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_a_step_uses_the_memory_of_the_one_before_and_a_worker_gives_it_back() -> None:
    """Two steps write 320 MB, 80,000 pages of 4 kB."""
    as_usual, _ = run("")
    assert as_usual > 40_000
    faults, held = run("assert heap.keep_memory()")
    # Some blocks do not fit where those of the step before were: it was 0 to 14 % of them.
    assert faults < as_usual / 4
    of_worker, held_by_worker = run("assert heap.keep_memory()", "assert heap.keep_little_memory()")
    assert of_worker < as_usual / 4
    assert held_by_worker < held - 200
