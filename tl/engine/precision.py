"""Which precision a run computes in: the config's, the launcher's, or what the hardware is good at.

``bf16`` and ``fp16`` are mixed precision (Micikevicius et al., ICLR 2018): weights, their sums and
the loss stay float32, matrix products and convolutions are computed from half as many bits.
"""

from __future__ import annotations

import os

import torch

from tl.errors import UserError


def resolve(configured: str, launched: str, hardware: str) -> str:
    """``no``, ``bf16`` or ``fp16`` from the config, the launcher's --mixed_precision, the hardware.

    Raises:
        UserError: config and launcher contradict each other, or the launcher asks for fp8.
    """
    if launched not in ("no", "bf16", "fp16"):
        raise UserError(f"the launcher's --mixed_precision {launched} is none of no, bf16 and fp16")
    if configured == "auto":
        return launched if launched != "no" else hardware
    if launched not in ("no", configured):
        raise UserError(
            f"mixed_precision={configured} is configured, but the launcher was started with "
            f"--mixed_precision {launched}: drop one of them"
        )
    return configured


def of_hardware() -> str:
    """The half precision that the device of this process has in silicon; ``no`` without one.

    A GPU from Ampere on has bf16, an older one fp16. A CPU has bf16 if it has AVX-512 BF16 or AMX
    and torch uses AVX-512, which ``ATEN_CPU_CAPABILITY=avx2`` forbids. Others emulate it, slowly.
    """
    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
        device = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    in_silicon = any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16" if in_silicon and "AVX512" in torch.backends.cpu.get_cpu_capability() else "no"


def use_tf32(allowed: bool) -> None:
    """Let, or do not let, float32 products on a GPU round their factors to TF32 (10 bits)."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
