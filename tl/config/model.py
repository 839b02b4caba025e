"""Keys of the network, and of what it takes over from others."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from tl.config.values import ClassName, Keys, PositiveInt


class GraftConfig(Keys):
    """What is copied from another checkpoint: a part by its name, or names that match."""

    weights: str
    """a .pth or .safetensors file, or a run's folder"""
    weights_key: str | None = None
    """where in the file, as model.weights_key"""
    from_: str | None = Field(None, alias="from")
    """the part of the file: all names below this one, as layer1; of a run also a stage"""
    to: str | None = None
    """the part of the network that it becomes: a name or a stage; null: of the same name"""
    match: str | None = None
    """in place of from: a regular expression for whole names in the file"""
    rename: str | None = None
    r"""what a name that matches becomes, with \1 for the first group; null: the same name"""
    on_mismatch: Literal["error", "skip"] = "error"
    """a tensor of another shape ends the run, or is left out and named"""

    @model_validator(mode="after")
    def _check(self) -> GraftConfig:
        if (self.from_ is None) == (self.match is None):
            raise ValueError("a graft takes either from or match")
        if self.from_ is None and self.to is not None:
            raise ValueError("a graft takes to with from, and rename with match")
        if self.match is None and self.rename is not None:
            raise ValueError("a graft takes rename with match, and to with from")
        if self.match is not None:
            try:
                re.compile(self.match).sub(self.rename or "", "")  # groups that there are not, too
            except (re.error, IndexError) as error:
                raise ValueError(f"match and rename are no regular expression: {error}") from None
        return self

    @model_serializer
    def _as_given(self) -> dict[str, Any]:
        return {key.rstrip("_"): getattr(self, key) for key in type(self).model_fields}


class ReuseConfig(Keys):
    stages: PositiveInt | None = None
    """keep so many of the network's first stages, under a new linear head; null: all"""
    upto: str | None = None
    """the same by the name of the last stage that is kept, such as layer2"""
    graft: list[GraftConfig] = []
    """copy parts of other checkpoints into the network, one after another, each as
    {weights: FILE, from: layer1, to: layer1} or {weights: FILE, match: REGEX, rename: NAME}"""

    @model_validator(mode="after")
    def _check(self) -> ReuseConfig:
        if self.stages is not None and self.upto is not None:
            raise ValueError("give either stages or upto")
        return self


class ModelConfig(Keys):
    name: str = "resnet18"
    """a classification architecture of torchvision, or timm:NAME"""
    weights: str | None = "DEFAULT"
    """a torchvision weights name, a .pth or .safetensors file, a run's folder; null: random"""
    weights_key: str | None = None
    """where in a weights file: teacher, model_ema, …; null: at the top, state_dict or model"""
    head: Literal["auto", "new", "keep", "classes"] = "auto"
    """`keep` the weights' own classification layer; `auto`: where its classes are the task's;
    `classes`: start each class that the weights know from their row of it"""
    head_classes: dict[str, ClassName] | None = None
    """what the weights call the task's classes, as {ants: ant, bees: 309}: a name of theirs, or
    the number of a row; needs head=classes"""
    bottleneck: PositiveInt | None = None
    """width of a bottleneck (linear, BatchNorm, ReLU) between the pooled features and a linear
    head; null: as the weights have, so none but for those of a run with one"""
    reuse: ReuseConfig = ReuseConfig()

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.head_classes is not None and self.head != "classes":
            raise ValueError("head_classes needs head: classes")
        if self.bottleneck is not None and self.head == "classes":
            raise ValueError("head: classes takes rows of a head that a bottleneck replaces")
        return self
