"""The precision that a run gets: what was asked for, else what the hardware is good at."""

from __future__ import annotations

import itertools

import pytest
import torch

from tl.engine import precision
from tl.errors import UserError


@pytest.mark.parametrize(
    ("configured", "launched", "hardware"),
    [*itertools.product(("auto", "no", "bf16", "fp16"), ("no", "bf16", "fp16"), ("no", "bf16"))],
)
def test_config_goes_before_launcher_and_hardware_and_a_contradiction_is_an_error(
    configured: str, launched: str, hardware: str
) -> None:
    """A launcher says `no` when nobody told it anything, so that contradicts nothing."""
    asked = {value for value in (configured, launched) if value not in ("auto", "no")}
    if len(asked) == 2 or (configured == "no" and launched != "no"):
        with pytest.raises(UserError, match="drop one of them"):
            precision.resolve(configured, launched, hardware)
    else:
        expected = asked.pop() if asked else ("no" if configured == "no" else hardware)
        assert precision.resolve(configured, launched, hardware) == expected


def test_eight_bits_of_the_launcher_are_refused() -> None:
    with pytest.raises(UserError, match="fp8 is none of no, bf16 and fp16"):
        precision.resolve("auto", "fp8", "no")


@pytest.mark.parametrize(
    ("able", "kernels", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "AVX512", "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "AVX512", "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False}, "AVX512", "no"),
        ({"avx512_bf16": True, "amx_bf16": True}, "AVX2", "no"),
        ({}, "DEFAULT", "no"),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_it_has_it_in_silicon(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], kernels: str, expected: str
) -> None:
    """The CPUs are told of: the one that runs this has one of these answers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    assert precision.of_hardware() == expected


def test_tests_compute_in_float32_on_any_machine() -> None:
    """Their tolerances are of float32; see tests/conftest.py."""
    assert torch.cuda.is_available() or precision.of_hardware() == "no"
