"""How much memory the main process of a run takes."""

from __future__ import annotations

import functools

import psutil


def memory_in_use(gpu: bool) -> tuple[str, int]:
    """What is measured, and its bytes: the peak of its GPU, else what is resident of the process.

    Does not wait for the GPU: the host keeps the books of its memory.
    """
    if gpu:
        import torch  # late: what shows progress alone has no use for it

        return "GPU", torch.cuda.max_memory_allocated()
    return "memory", _this_process().memory_info().rss


@functools.cache  # finding it takes four times as long as asking it: 80 µs
def _this_process() -> psutil.Process:
    return psutil.Process()


def in_words(size: int) -> str:
    """``812 MB``, ``3.2 GB``: in powers of a thousand."""
    if size < 999.5e6:
        return f"{size / 1e6:.0f} MB"
    return f"{size / 1e9:.1f} GB"
