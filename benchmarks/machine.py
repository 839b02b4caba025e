"""On what was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "torchvision", "accelerate", "lightning", "timm", "pillow", "wandb")


def describe() -> dict[str, Any]:
    """CPU, cores, memory, GPU (None without), versions, and the commit of this checkout."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "bf16_in_silicon": _cpu_has_bf16(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_has_bf16() -> bool:
    words = Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in words or "amx_bf16" in words


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with a + if there are changes beside it."""
    here = Path(__file__).parent
    try:
        commit = subprocess.check_output(["git", "rev-parse", "--short=10", "HEAD"], cwd=here)
        changed = subprocess.check_output(["git", "status", "--porcelain", "-uno"], cwd=here)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.decode().strip() + ("+" if changed.strip() else "")
