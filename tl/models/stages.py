"""A network as an ordered list of stages, run one after another.

Freezing, gradual unfreezing, layer-wise learning rates and the cache of frozen outputs all speak of
stages. A stage is data, names and plain functions, and holds no module: a copy of a network, or a
network that was moved or wrapped, is run by the very same list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

# What a stage runs: a submodule's dotted name, or a function of (model, x) for what is no submodule
# (flatten, a mean over pixels, ViT's embedding).
Step = str | Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Aux:
    """An auxiliary classifier: fed with its stage's output, and only while training.

    ``name`` is the submodule, ``head`` its final layer (whose shape follows the number of classes)
    and ``weight`` its share in the loss.
    """

    name: str
    weight: float
    head: str


@dataclass(frozen=True)
class Stage:
    """A run of consecutive operations, frozen or trained together.

    ``owns`` are dotted names of submodules or parameters; all below them belongs to this stage.
    Every parameter and buffer of a network belongs to exactly one stage, and the last stage,
    ``"head"``, is exactly the final classification layer and the dropout directly before it.
    """

    name: str
    steps: tuple[Step, ...]
    owns: tuple[str, ...]
    aux: Aux | None = None

    def owns_name(self, name: str) -> bool:
        """Whether the parameter, buffer or submodule ``name`` belongs to this stage."""
        return any(is_below(name, prefix) for prefix in self.owns)


def is_below(name: str, prefix: str) -> bool:
    """Whether ``name`` is ``prefix`` or below it. layer1.0 is below layer1; layer10 is not."""
    return name == prefix or name.startswith(prefix + ".")


def run_stage(stage: Stage, model: nn.Module, x: Tensor) -> Tensor:
    """Run one stage of ``model`` on ``x``, the output of the stage before it."""
    for step in stage.steps:
        x = model.get_submodule(step)(x) if isinstance(step, str) else step(model, x)
    return x


def run(stages: Iterable[Stage], model: nn.Module, x: Tensor) -> Tensor:
    """Run ``stages`` of ``model`` one after another, the first on ``x``.

    Over all stages: images (N, 3, H, W) to logits (N, C), the same as ``model(x)`` in eval mode.
    """
    for stage in stages:
        x = run_stage(stage, model, x)
    return x


def owner(stages: Sequence[Stage], name: str) -> str:
    """The name of the stage that the parameter or buffer ``name`` belongs to.

    Raises KeyError if there is none.
    """
    for stage in stages:
        if stage.owns_name(name):
            return stage.name
    raise KeyError(f"no stage owns {name!r}; stages: {', '.join(stage.name for stage in stages)}")
