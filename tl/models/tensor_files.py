"""Tensors on their way to the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now, in memory of their own on the CPU: what may be written later."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. The tensors are on the CPU and contiguous, as `copies` are.

    Raises:
        OSError: with path and errno, such as that of a full disk.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from None
        raise
