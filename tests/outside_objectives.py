"""Objectives as somebody outside this project writes them."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tl.objectives import Objective
from tl.objectives.co_tuning import CoTuning
from tl.objectives.dann import DANN
from tl.objectives.supervised import Supervised


class Eventful(Supervised):
    """Notes which images it gets, and lets something happen at a step, as two variables say.

    TEST_NOTES: a folder; each process appends a line to a file of its own for each micro-batch.
    TEST_EVENT: ``PHASE STEP RANK WHAT``, the step counted within the phase from 0. WHAT is a signal
    that the process sends to itself, or nan, inf (the loss), raise, hang or sleep. With a + after
    it, it happens at every step from there on.
    TEST_FULL_DISK: the disk is full from the third tenth of the phase to the seventh.
    """

    _signalled = False

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        rank = os.environ.get("RANK", "0")
        if notes := os.environ.get("TEST_NOTES"):
            digests = [
                hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]
                for image in batch["image"].float()
            ]
            keys = zip(batch["id"].tolist(), batch["round"].tolist(), strict=True)
            seen = {f"{i} {n}": d for (i, n), d in zip(keys, digests, strict=True) if i >= 0}
            line = json.dumps({"phase": self.phase.name, "progress": progress, "seen": seen})
            with Path(notes, f"{rank}.jsonl").open("a") as file:
                file.write(line + "\n")
        if "TEST_FULL_DISK" in os.environ:
            size = 100_000 if 0.3 <= progress < 0.7 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        output = super().forward(batch, progress)
        phase, at, on_rank, what = os.environ.get("TEST_EVENT", "- 0 0 -").split()
        now = progress == pytest.approx(float(at)) or (what.endswith("+") and progress > float(at))
        if now and (phase, on_rank) == (self.phase.name, rank):
            output["loss"] = self._happens(what.rstrip("+"), output["loss"])
        return output

    def _happens(self, what: str, loss: Tensor) -> Tensor:
        if what in ("nan", "inf"):
            return loss + float(what)
        if what == "raise":
            raise ValueError("out of luck")
        if what == "hang":
            time.sleep(1000)
        if what == "sleep":
            time.sleep(5)
        if what.startswith("SIG") and not self._signalled:  # a step has several micro-batches
            self._signalled = True
            os.kill(os.getpid(), getattr(signal, what))
            time.sleep(0.05)  # the thread that hears it takes a moment
        return loss


class Float64(Supervised):
    """For networks that were built in float64: images come in float32."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        first = next(m for m in self.network.model.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))


class Slow(Supervised):
    """Each micro-batch takes a while, so that a job has steps for something to happen at."""

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        time.sleep(0.3)
        return super().forward(batch, progress)


class Loud(Eventful):
    """Writes a line for each micro-batch as a C library does, of each process."""

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        rank = os.environ.get("RANK", "0")
        os.write(2, f"rank {rank} writes, {progress:.3f} of the phase\n".encode())
        time.sleep(0.2)  # for the rows to be drawn, twice a second
        return super().forward(batch, progress)


class EventfulFloat64(Eventful, Float64):
    """Both."""


class PullToStart(Supervised):
    """Cross-entropy and a pull to the starting point, with a learned strength: state of its own."""

    start: Tensor

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        head = next(p for n, p in self.network.model.named_parameters() if p.requires_grad)
        self.register_buffer("start", head.detach().clone())
        self.strength = nn.Parameter(torch.rand(()))

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        output = super().forward(batch, progress)
        head = next(p for n, p in self.network.model.named_parameters() if p.requires_grad)
        distance = (head - self.start).square().sum()
        return {**output, "loss": output["loss"] + 0.01 * self.strength.square() * distance}


class NotesRelationship(CoTuning):
    """Co-Tuning, and each process writes down what it was given."""

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        rank, relationship = os.environ.get("RANK", "0"), self.given.relationship
        assert relationship is not None
        torch.save(relationship, Path(os.environ["TEST_NOTES"], f"{rank}.pt"))
        return super().forward(batch, progress)


class Remembers(Supervised):
    """Cross-entropy, and a list of the images that were trained on, as numbers in the data."""

    seen: ClassVar[list[int]] = []

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        self.seen += batch["id"][batch["weight"] > 0].tolist()
        return super().forward(batch, progress)


class Blind(DANN):
    """DANN, and it fails if a batch of the target has anything in it that tells its classes."""

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        assert "label" in batch
        known = {"image", "id", "round", "weight", "mate", "start", "key", "global_count"}
        assert batch["target"].keys() <= known
        return super().forward(batch, progress)


class Poisoned(Supervised):
    """The loss is a number, its gradient in the last step is none."""

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        output = super().forward(batch, progress)
        if progress >= 0.75:
            head = next(p for p in self.network.model.parameters() if p.requires_grad)
            # The square root of zero has an infinite slope, and zero times that is no number.
            output["loss"] = output["loss"] + (head * 0).sum().abs().sqrt()
        return output


class MovesFrozen(Objective):
    """Trains the head, and moves a frozen weight behind everybody's back."""

    def forward(self, batch: dict[str, Any], progress: float) -> dict[str, Tensor]:
        with torch.no_grad():
            next(iter(self.network.model.parameters())).add_(1e-6)
        return {"loss": self.network(batch["image"]).square().mean()}
