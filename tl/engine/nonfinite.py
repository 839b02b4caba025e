"""A loss or a gradient that is NaN or infinite: no weight moves by it, whatever comes next.

The decision falls on the device, before the optimizer's step and without the host, which learns of
it from `tl.engine.agreement`. A fused optimizer takes a tensor that says whether to leave a step
out (it is there for mixed precision's scaler); weights and optimizer state stay bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from tl.engine.agreement import Verdict
from tl.engine.state import Progress

ADVICE = (
    "Try a lower optimizer.lr, a warm-up (schedule.warmup_steps), clip_norm=1 or "
    "mixed_precision=no; nonfinite=skip(n) leaves n such steps out."
)


class RollBack(Exception):
    """Go back to the last checkpoint, and leave out the steps from there to ``step``."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} at step {step}")
        self.step = step


@dataclass(frozen=True)
class Policy:
    """What a run does about such a step."""

    action: str
    """``stop``, ``skip`` or ``rollback``"""
    times: int = 0
    """how often at most"""

    @staticmethod
    def of(text: str) -> Policy:
        """Of a config's ``nonfinite``, such as ``skip(3)``."""
        action, _, times = text.rstrip(")").partition("(")
        return Policy(action, int(times or 0))

    def leave_out(self, step: int, what: str, so_far: int) -> str:
        """What to say of a bad step that is left out, the ``so_far + 1``-th.

        Raises:
            FloatingPointError: the run is to stop, at the first one or after too many.
            RollBack: it is to go back.
        """
        if self.action == "stop":
            raise FloatingPointError(f"{what} at step {step}. {ADVICE}")
        if so_far >= self.times:
            raise FloatingPointError(
                f"{what} at step {step}, once more than nonfinite={self.action}({self.times}) "
                f"allows. {ADVICE}"
            )
        if self.action == "rollback":
            raise RollBack(step, what)
        return f"{what}: step {step} is left out ({so_far + 1} of {self.times})"


class Guard:
    """An optimizer that bad steps do not move, nor the weights, in one phase.

    Accelerate's wrapper of optimizers is left out: on every step it searches the disk for packages
    that are not installed.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scaler: GradScaler | None, policy: Policy
    ) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        # The host learns of it a step later, so the step after a bad one must not move anything
        # either, unless training goes on from there anyway.
        self._for_good = policy.action != "skip"
        self._bad: Tensor | None = None

    def backward(self, loss: Tensor, factor: float) -> None:
        """Add the gradient of ``loss * factor``; it is no number if the loss is none.

        The gradients of all processes are summed up, so each of them then sees it.
        """
        marked = loss * (loss.detach() * 0 + factor)
        (marked if self._scaler is None else self._scaler.scale(marked)).backward()

    def unscale(self) -> None:
        """Make gradients what they are without a scaler (fp16)."""
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)

    def step(self) -> None:
        """Let the optimizer take its step, unless it was judged to be left out."""
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()

    def judge(self, gradient_norm: Tensor) -> Tensor:
        """Whether the next step of the optimizer is left out: a scalar, on the device.

        With a scaler (fp16), the scaler leaves it out, and lowers its scale.
        """
        bad = ~gradient_norm.isfinite()
        if self._for_good and self._bad is not None and self._scaler is None:
            bad = bad | self._bad
        self._bad = bad
        if self._scaler is None:
            self._optimizer.grad_scale = None  # type: ignore[attr-defined]
            self._optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        return bad

    def fault(self, verdict: Verdict) -> str:
        """What was wrong with a step, in words; empty if nothing was.

        A gradient that overflows in fp16 is how its scaler finds the scale: that is no fault until
        the scale is below 1.
        """
        if verdict.bad_loss:
            return "the loss is not finite"
        if not verdict.bad_gradient:
            return ""
        # The host waits for the device to tell the scale: only where it matters.
        overflow = self._scaler is not None and self._scaler.get_scale() >= 1
        return "" if overflow else "the gradient is not finite"


def not_finite(what: str, policy: Policy, progress: Progress) -> NoReturn:
    """End the run, or go back: what has been reached cannot be mended by leaving a step out."""
    if policy.action == "rollback":
        policy.leave_out(progress.step, what, len(progress.left_out))
    raise FloatingPointError(f"{what} at step {progress.step}. {ADVICE}")


def check_weights(
    named: Sequence[tuple[str, nn.Parameter]], policy: Policy, progress: Progress
) -> None:
    """Poisoned weights are never committed. Every process has the same weights, so all agree."""
    finite = torch.stack([parameter.detach().isfinite().all() for _, parameter in named]).tolist()
    bad = [name for (name, _), fine in zip(named, finite, strict=True) if not fine]
    if bad:
        not_finite(f"{len(bad)} parameters, such as {bad[0]}, are not finite", policy, progress)
