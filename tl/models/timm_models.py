"""timm's networks (``timm:NAME``): building them, and cutting them into stages.

timm is optional, and is imported only here and only when a name asks for it.

What timm offers for every network is ``forward_features``, ``forward_head(pre_logits=True)`` (the
pooling) and the classifier: two stages, ``features`` and ``head``. Many networks are a stem and a
row of blocks under one of a few names, so a finer list is tried first. It is taken only if, on a
random input, it gives the same features and logits as the network does, and no stage changes its
input; otherwise the two stages are taken, under the same test.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tl.errors import UserError, did_you_mean
from tl.models.network import Network
from tl.models.operations import flatten
from tl.models.stages import Stage, Step, run, run_stage

PREFIX = "timm:"


def is_timm(architecture: str) -> bool:
    """Whether the name asks for a network of timm."""
    return architecture.startswith(PREFIX)


def library(architecture: str) -> ModuleType:
    """Import timm for ``architecture``; UserError if it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"{architecture!r} needs timm, which is not installed: "
            "pip install 'transfer-launcher[timm]'"
        ) from error
    return timm


def pretrained_config(architecture: str) -> dict[str, Any]:
    """What timm says about the weights that a name stands for: input size, mean, std, URL, …

    Raises UserError for a name timm does not know.
    """
    timm = library(architecture)
    name = architecture.removeprefix(PREFIX)
    config = None
    if timm.is_model(name):
        try:
            config = timm.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError:
            known = timm.list_pretrained(name.partition(".")[0] + ".*")
            raise UserError(
                f"timm has no weights {name!r}.{did_you_mean(name, known)} "
                f"Known: {', '.join(known) or 'none for this network'}."
            ) from None
        return config.to_dict() if config is not None else {}
    near = did_you_mean(name, timm.list_models()).replace("'", f"'{PREFIX}", 1)
    raise UserError(
        f"unknown architecture {architecture!r}.{near} All of them: timm.list_models()."
    )


def arguments(architecture: str, num_classes: int, image_size: int | None) -> dict[str, Any]:
    """The arguments timm builds a network of this size with."""
    config = pretrained_config(architecture)
    given: dict[str, Any] = {"num_classes": num_classes}
    # Networks of a fixed size (ViT, Swin) have parameters whose shape follows the image size.
    if image_size is not None and config.get("fixed_input_size"):
        given["img_size"] = image_size
    return given


def build(architecture: str, given: dict[str, Any]) -> Network:
    """Build a network of timm with random weights; UserError if it cannot be built or cut."""
    pretrained_config(architecture)
    name = architecture.removeprefix(PREFIX)
    keywords = {"in_chans" if k == "in_channels" else k: v for k, v in given.items()}
    try:
        model = library(architecture).create_model(name, pretrained=False, **keywords)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{architecture} cannot be built with {given}: {error}") from error
    stages = stages_of(model, architecture, given.get("in_channels", 3))
    return Network(model, architecture, dict(given), stages)


def input_shape(model: Any, channels: int) -> tuple[int, int, int]:
    """Channels, height and width of an image that the network takes."""
    _, height, width = model.pretrained_cfg.get("input_size", (3, 224, 224))
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or (height, width)
    return channels, size[0], size[1]


def stages_of(model: nn.Module, architecture: str, channels: int = 3) -> tuple[Stage, ...]:
    """The stages of a network of timm: the first of the possible lists that proves to be right."""
    classifier = _classifier_name(model)
    if classifier is not None:
        for body in _bodies(model):
            stages = _with_head(model, body, classifier)
            if stages and _equal_the_network(stages, model, channels):
                return stages
    raise UserError(
        f"{architecture} cannot be cut into features and one final layer (timm's forward_features, "
        "forward_head and get_classifier do not add up to its forward pass). Use another network."
    )


# Steps: functions of (model, x), as timm names them.


def forward_features(model: Any, x: Tensor) -> Tensor:
    """All before the pooling."""
    return model.forward_features(x)


def pool(model: Any, x: Tensor) -> Tensor:
    """All between ``forward_features`` and the final layer: pooling, and often a normalisation."""
    return model.forward_head(x, pre_logits=True)


def as_pixels(model: nn.Module, x: Tensor) -> Tensor:
    """(N, D) to (N, D, 1, 1), for a final layer that is a 1x1 convolution."""
    return x[:, :, None, None]


def vit_embed(model: Any, x: Tensor) -> Tensor:
    """Images to patches with their positions, as the forward pass of timm's ViT begins."""
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))


def _rows(model: Any) -> Iterator[tuple[list[Step], list[str], list[Step]]]:
    """Steps of the stem, names of the blocks in order, and steps after them, as networks go."""

    def children(name: str) -> list[str]:
        container = getattr(model, name, None)
        if not isinstance(container, (nn.Sequential, nn.ModuleList)):
            return []
        return [f"{name}.{child}" for child, _ in container.named_children()]

    yield ["conv1", "bn1", "act1", "maxpool"], [f"layer{i}" for i in range(1, 5)], []
    yield ["stem"], [f"s{i}" for i in range(1, 5)], ["final_conv"]
    yield ["stem"], children("stages"), ["norm_pre"]
    yield ["stem"], children("stages"), ["norm"]
    yield ["stem"], children("stages"), ["final_conv"]
    yield ["stem"], children("stages"), []
    yield ["patch_embed"], children("layers"), ["norm"]
    yield ["conv_stem", "bn1"], children("blocks"), ["conv_head", "bn2"]
    yield ["conv_stem", "bn1"], children("blocks"), []
    yield [vit_embed], children("blocks"), ["norm"]


def _bodies(model: Any) -> Iterator[list[tuple[str, list[Step]]]]:
    """Possible lists of (name, steps) up to the pooling, finest first."""
    modules = {name for name, _ in model.named_modules()}
    for stem, blocks, closing in _rows(model):
        named = [*stem, *blocks, *closing]
        embeds = vit_embed not in stem or "patch_embed" in modules
        if blocks and embeds and all(n in modules for n in named if isinstance(n, str)):
            body: list[tuple[str, list[Step]]] = [("stem", stem)]
            body += [(f"block{i}", [name]) for i, name in enumerate(blocks, 1)]
            body[-1][1].extend(closing)
            yield body
    yield [("features", [forward_features])]


def _classifier_name(model: Any) -> str | None:
    """The name of the final layer, or None if there is no such single module."""
    classifier = model.get_classifier()
    for name, module in model.named_modules():
        if module is classifier and list(module.parameters()):
            return name
    return None


def _with_head(
    model: nn.Module, body: list[tuple[str, list[Step]]], classifier: str
) -> tuple[Stage, ...]:
    """Stages of ``body``, the pooling, and the head; empty if a stage would own no parameter.

    What no submodule of the body owns (position embeddings, a normalisation after the pooling)
    belongs to the stage whose steps are functions: the stem for ViT's, the last one otherwise.
    """
    final: tuple[Step, ...] = (classifier,)
    if isinstance(model.get_submodule(classifier), nn.Conv2d):
        final = (as_pixels, classifier, flatten)
    head = Stage("head", final, (classifier,))
    stages = []
    for name, steps in body:
        steps = steps + ([pool] if name == body[-1][0] else [])
        stages.append(Stage(name, tuple(steps), tuple(s for s in steps if isinstance(s, str))))
    own: list[list[str]] = [list(stage.owns) for stage in stages]
    for name in model.state_dict():
        if not any(stage.owns_name(name) for stage in (*stages, head)):
            is_embedding = vit_embed in stages[0].steps and not name.startswith("fc_norm")
            own[0 if is_embedding else -1].append(name)
    # A submodule without parameters is owned by nobody.
    names = list(model.state_dict())
    kept = [
        tuple(o for o in owns if any(n == o or n.startswith(o + ".") for n in names))
        for owns in own
    ]
    if not all(kept):
        return ()
    return (*(Stage(s.name, s.steps, o) for s, o in zip(stages, kept, strict=True)), head)


def _equal_the_network(stages: tuple[Stage, ...], model: Any, channels: int) -> bool:
    """Whether the stages give the network's own features and logits for a random input.

    Without real parameters (on the meta device) only the shapes can be compared.
    """
    parameter = next(model.parameters())
    # A generator of its own: building a network must not move the run's random numbers further.
    shape = (1, *input_shape(model, channels))
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image = image.to(parameter.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            features = pool(model, forward_features(model, image))
            logits = model(image)
            if not _same(run(stages[:-1], model, image), features):
                return False
            x = image
            for stage in stages:
                given = x.clone()
                x_next = run_stage(stage, model, x)
                if not _same(x, given):
                    return False
                x = x_next
            return _same(x, logits)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # another kind of network than this list is for
    finally:
        model.train(was_training)


def _same(a: Tensor, b: Tensor) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    return a.is_meta or torch.equal(a, b)
