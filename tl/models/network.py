"""A network together with its stages: what is trained, frozen, cut and saved."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from tl.models.adapters import Adapters
from tl.models.batch_norm import accept_single_values
from tl.models.dropout import give_images_their_own
from tl.models.stages import Stage, owner, run, run_stage


class Network(nn.Module):
    """A classification network, run stage by stage.

    ``model`` is the network of torchvision or timm, and parameter names everywhere in this project
    are those of ``model``. ``architecture`` and ``arguments`` (of JSON) build it again.

    Freezing sets two attributes. ``frozen_prefix`` is the number of leading stages in which nothing
    trains: they run without autograd. ``eval_modules`` are names of submodules of ``model`` that
    stay in eval mode, with all below them, whatever ``train()`` is called with: statistics of a
    frozen BatchNorm do not move and frozen dropout does not fire.

    ``adapters`` (LoRA) are weights beside those of ``model``, or None: see ``tl.models.lora``. All
    methods that run the network run it with them.
    ``left_out`` are stages that `tl.models.reuse` has cut off, of which weights may know.

    `expect` says which images come next: dropout is then a function of the image, see
    ``tl.models.dropout``, and synchronized BatchNorm leaves padding out.

    Every method that takes ``start`` takes images (N, channels, H, W) when it is 0, and else the
    output of ``features(images, start)``: what a cache of a frozen prefix holds.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: str,
        arguments: dict[str, Any],
        stages: Sequence[Stage],
    ) -> None:
        super().__init__()
        self.model = model
        self.architecture = architecture
        self.arguments = arguments
        self.stages = tuple(stages)
        self.left_out: tuple[Stage, ...] = ()
        self.frozen_prefix = 0
        self.eval_modules: frozenset[str] = frozenset()
        self.adapters: Adapters | None
        self.register_module("adapters", None)
        self.draws = give_images_their_own(model)
        self.weight: Tensor | None = None
        accept_single_values(model)

    @property
    def in_channels(self) -> int:
        """Channels of the images that go in."""
        return self.arguments.get("in_channels", 3)

    def expect(self, batch: Mapping[str, Any]) -> None:
        """Say which images go through next in training.

        ``key`` (N,) int64 is a number for each image and step, ``weight`` (N,) is 0 for padding.
        """
        self.draws.keys, self.weight = batch["key"], batch["weight"]

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Logits (N, C)."""
        _check_input(x, start)
        x = self._frozen(x, start, len(self.stages))
        with self.adapted():
            return run(self.stages[max(start, self.frozen_prefix) :], self.model, x)

    def forward_with_aux(
        self, x: Tensor, start: int = 0
    ) -> tuple[Tensor, list[tuple[float, Tensor]]]:
        """Logits (N, C), and weight and logits (N, C) of every auxiliary classifier that trains.

        One trains if it is in training mode and has a parameter that requires a gradient; in eval
        mode the list is empty.
        """
        logits, auxiliary, _ = self.forward_with_stages(x, start)
        return logits, auxiliary

    def forward_with_stages(
        self, x: Tensor, start: int = 0, keep: Collection[str] = ()
    ) -> tuple[Tensor, list[tuple[float, Tensor]], dict[str, Tensor]]:
        """What `forward_with_aux` returns, and the outputs (N, …) of the stages named in ``keep``.

        Those of the frozen prefix are constants. With ``start`` there is nothing of the stages
        before the one whose output goes in.
        """
        _check_input(x, start)
        auxiliary, kept = [], {}
        if start and self.stages[start - 1].name in keep:
            kept[self.stages[start - 1].name] = x
        cut = max(start, self.frozen_prefix)
        with torch.no_grad():
            for stage in self.stages[start:cut]:
                x = run_stage(stage, self.model, x)
                if stage.name in keep:
                    kept[stage.name] = x
        # An auxiliary classifier's parameters belong to its stage, so none that trains hangs on a
        # stage of the frozen prefix.
        with self.adapted():
            for stage in self.stages[cut:]:
                x = run_stage(stage, self.model, x)
                if stage.name in keep:
                    kept[stage.name] = x
                if stage.aux and self._trains(stage.aux.name):
                    logits = self.model.get_submodule(stage.aux.name)(x)
                    auxiliary.append((stage.aux.weight, logits))
        return x, auxiliary, kept

    def features(self, x: Tensor, upto: int) -> Tensor:
        """The output of the first ``upto`` stages for images ``x`` (N, 3, H, W)."""
        if not 0 <= upto <= len(self.stages):
            raise ValueError(f"upto is {upto}, but the network has {len(self.stages)} stages")
        x = self._frozen(x, 0, upto)
        if upto <= self.frozen_prefix:
            return x
        with self.adapted():
            return run(self.stages[self.frozen_prefix : upto], self.model, x)

    def adapted(self) -> contextlib.AbstractContextManager[None]:
        """A block in which ``model`` runs with its adapters, if it has any."""
        if self.adapters is None:
            return contextlib.nullcontext()
        return self.adapters.in_place(self.model)

    def merge(self) -> None:
        """Add the adapters, if there are any, to the weights of ``model``, and drop them."""
        if self.adapters is not None:
            self.adapters.merge_into(self.model)
            self.adapters = None

    def merged_state(self) -> dict[str, Tensor]:
        """The ``state_dict`` that ``model`` has after `merge`."""
        merged = {} if self.adapters is None else self.adapters.merged(self.model)
        return {**self.model.state_dict(), **merged}

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and parameter of ``model``, by its own names, and then of the adapters."""
        yield from self.model.named_parameters()
        if self.adapters is not None:
            yield from self.adapters.named().items()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but ``eval_modules``, which stay in eval mode."""
        super().train(mode)
        for name in self.eval_modules:
            self.model.get_submodule(name).eval()
        return self

    def stage_of(self, parameter_name: str) -> str:
        """The stage a parameter or buffer of ``model`` belongs to; KeyError if there is none."""
        return owner(self.stages, parameter_name)

    def depth_of(self, parameter_name: str) -> int:
        """How many stages before the head the parameter is: 0 for the head's own.

        So is one of a bottleneck, and one that no stage has, such as an objective's own: they start
        as new as a head.
        """
        new = 1 + ("bottleneck" in self.arguments)
        for distance, stage in enumerate(reversed(self.stages)):
            if stage.owns_name(parameter_name):
                return max(0, distance + 1 - new)
        return 0

    def _frozen(self, x: Tensor, start: int, stop: int) -> Tensor:
        with torch.no_grad():
            return run(self.stages[start : min(self.frozen_prefix, stop)], self.model, x)

    def _trains(self, module: str) -> bool:
        submodule = self.model.get_submodule(module)
        return submodule.training and any(p.requires_grad for p in submodule.parameters())


def _check_input(x: Tensor, start: int) -> None:
    """Raise ValueError for what cannot be a batch of images, where one is expected."""
    if start == 0 and x.dim() != 4:
        raise ValueError(
            f"expected images (N, channels, H, W), got {tuple(x.shape)}. Cached features go in as "
            'network(batch["image"], batch["start"])'
        )


def head_parameters(network: Network) -> frozenset[str]:
    """Names of the parameters whose shape follows the number of classes.

    They are the last stage's, and those of the final layers of auxiliary classifiers: all that a
    new set of classes makes new.
    """
    heads = list(network.stages[-1].owns)
    heads += [stage.aux.head for stage in network.stages if stage.aux]
    names = (name for name, _ in network.model.named_parameters())
    last = Stage("heads", (), tuple(heads))
    return frozenset(name for name in names if last.owns_name(name))
