"""Training runs on one machine, some of them at once, in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = dict[str, Any]


def carry_out(
    work: Callable[[Job], Result], jobs: Sequence[Job], at_once: int, new_process_each: bool
) -> Iterator[tuple[Job, Result]]:
    """Yield each job with its result as it is done; one that has failed is printed, not yielded.

    ``work`` is a function of a module. Where each job has a process of its own, what the operating
    system says of that process, such as its peak memory, is of that job alone.
    """
    spawn = multiprocessing.get_context("spawn")
    jobs_per_process = 1 if new_process_each else None
    with ProcessPoolExecutor(at_once, spawn, max_tasks_per_child=jobs_per_process) as pool:
        begun = {pool.submit(work, job): job for job in jobs}
        for task in as_completed(begun):
            if error := task.exception():
                print(f"{begun[task]} failed: {error}", file=sys.stderr, flush=True)
            else:
                yield begun[task], task.result()


def threads(at_once: int) -> int:
    """How many threads each of so many runs computes with, that all cores have work.

    Two runs of one thread side by side did 1.5 times as much as two of two threads one after the
    other, adapting on cached features on two cores.
    """
    return max(1, len(os.sched_getaffinity(0)) // at_once)


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send what this process prints in the block to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), before, strict=True):
                os.dup2(saved, number)
                os.close(saved)
