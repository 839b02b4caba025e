"""What objectives of domain adaptation share: both domains in one pass, and what is added to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tl.data.streams import Batch
from tl.models.network import Network
from tl.models.pooled import pool
from tl.models.reuse import pooled_output
from tl.objectives.objective import Stream
from tl.objectives.supervised import Supervised


@dataclass(frozen=True)
class Domain:
    """What the network made of a domain's share of a batch. Rows of weight 0 are padding."""

    batch: Batch
    """as it went in; of the target it has no label"""
    logits: Tensor
    """(N, C), float32 at least"""
    features: Tensor
    """(N, D), float32 at least: what goes into the head, averaged over places where it is a map"""


class Adaptation(Supervised):
    """Cross-entropy on the labelled source, and terms over both domains.

    Source and target go through the network in one pass, so a BatchNorm that trains sees both. Each
    step has as many images of either. ``loss`` is the source's cross-entropy, as `Supervised` has
    it, and the shares that `terms` returns.
    """

    streams: ClassVar[tuple[Stream, ...]] = ("source", "target")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.keep = (self.network.stages[-2].name,)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        parts = [batch, *(batch[name] for name in self.streams[1:])]
        both = joined(parts)
        self.network.expect(both)
        logits, auxiliary, stages = self.network.forward_with_stages(
            both["image"], both["start"], self.keep
        )
        sizes = [len(part["id"]) for part in parts]
        loss = self._cross_entropy(logits[: sizes[0]], batch, None)
        for weight, auxiliary_logits in auxiliary:
            loss = loss + weight * self._cross_entropy(auxiliary_logits[: sizes[0]], batch, None)
        correct = (logits[: sizes[0]].argmax(1) == batch["label"]) * batch["weight"]
        domains = split(logits, stages[self.keep[0]], parts)
        output = {"accuracy": correct.sum()}
        shares, sums = self._precise_terms(domains, progress)
        for name, share in shares.items():
            loss = loss + share
            output[name] = share.detach() * batch["global_count"]
        return {"loss": loss, **output, **sums}

    # Not compiled: a graph that has a strength in it is one for that number alone, and there is
    # another at each step. The network is compiled all the same.
    @torch.compiler.disable
    def _precise_terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # What is exact in float32 is not in half precision: kernels, variances, log-sum-exps.
        with torch.autocast(domains[0].logits.device.type, enabled=False):
            return self.terms(domains, float(progress))

    def terms(
        self, domains: list[Domain], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What is added to the loss, and what is only logged, each by name.

        Args:
            domains: of each of ``streams``, in that order.
            progress: how much of the phase is done, 0 to 1.

        Returns:
            This share's parts (scalars) of global means; and sums over this share's source images.
        """
        raise NotImplementedError


def feature_width(network: Network) -> int:
    """D of `Domain.features`, for what an objective has on them and makes before `prepare`.

    From one pass of an empty image, in eval mode: it draws nothing and moves no statistics.

    Raises:
        UserError: what is before the head cannot be pooled.
    """
    return pooled_output(network, len(network.stages) - 1)[1]


def joined(parts: list[Batch]) -> Batch:
    """One batch for the network of several: their images, keys and weights, one after another."""
    starts = {part["start"] for part in parts}
    assert len(starts) == 1, f"all are images, or features of one stage, not {starts}"
    both: Batch = {name: torch.cat([p[name] for p in parts]) for name in ("image", "key", "weight")}
    return {**both, "start": starts.pop()}


def split(logits: Tensor, features: Tensor, parts: list[Batch]) -> list[Domain]:
    """The reverse of `joined`, for what came out: logits (N, C) and features (N, …)."""
    sizes = [len(part["id"]) for part in parts]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    features = pool(features)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    pieces = zip(parts, logits.split(sizes), features.split(sizes), strict=True)
    return [Domain(*piece) for piece in pieces]
