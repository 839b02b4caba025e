"""The stages of every classification network of torchvision, a function for each family.

Conventions, the same in all families:

- The last stage is ``head``: the final classification layer and the dropout directly before it, so
  that the dropout fires only where the head trains.
- Pooling and flattening belong to the stage before the layers they feed: what a frozen prefix puts
  out, and what is cached of it, is then small.
- Pre-trained layers between the features and the head (VGG's) are a stage ``classifier``.
- A trailing 1x1 convolution is a stage ``top``.
- Patch merging and down-sampling of a hierarchical transformer, and of ConvNeXt, open the stage
  they lead to, as in their papers. A max-pool, or DenseNet's transition, closes the one before it.

To add a network: one function here, and one line in ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models as tv

from tl.errors import UserError
from tl.models.operations import (
    adaptive_pool,
    class_token,
    flatten,
    mean_pool,
    relu,
    transform_input,
    vit_embed,
)
from tl.models.stages import Aux, Stage, Step


def _named(prefix: str, container: nn.Module) -> list[str]:
    """The dotted names of a container's children, in order."""
    return [f"{prefix}.{name}" for name, _ in container.named_children()]


def _with_parameters(model: nn.Module, steps: list[Step]) -> tuple[str, ...]:
    """Those of ``steps`` that are submodules with parameters: what a stage of these steps owns."""
    names = [step for step in steps if isinstance(step, str)]
    return tuple(name for name in names if model.get_submodule(name).state_dict())


def _stage(model: nn.Module, name: str, *steps: Step, aux: Aux | None = None) -> Stage:
    """A stage that owns the submodules it runs, and its auxiliary classifier."""
    owns = _with_parameters(model, list(steps)) + ((aux.name,) if aux else ())
    return Stage(name, steps, owns, aux)


def _blocks(model: Any) -> list[list[str]]:
    """``model.features`` cut after every max-pool."""
    blocks: list[list[str]] = [[]]
    for name, module in model.features.named_children():
        blocks[-1].append(f"features.{name}")
        if isinstance(module, nn.MaxPool2d):
            blocks.append([])
    return [block for block in blocks if block]


def alexnet(model: Any) -> list[Stage]:
    """A block for each max-pool; the last three convolutions are one block."""
    return _plain(model, last=_named("classifier", model.classifier)[-1:])


def vgg(model: Any) -> list[Stage]:
    """A block for each max-pool; of the two hidden dense layers, the stage ``classifier``."""
    return _plain(model, last=_named("classifier", model.classifier)[-2:])


def _plain(model: Any, last: list[str]) -> list[Stage]:
    blocks = _blocks(model)
    hidden = [name for name in _named("classifier", model.classifier) if name not in last]
    stages = [_stage(model, f"block{i}", *steps) for i, steps in enumerate(blocks[:-1], 1)]
    stages.append(_stage(model, f"block{len(blocks)}", *blocks[-1], "avgpool", flatten))
    return [*stages, _stage(model, "classifier", *hidden), _stage(model, "head", *last)]


def squeezenet(model: Any) -> list[Stage]:
    """The paper's names: a stem, then fire2 to fire9, each with the max-pool that follows it."""
    groups: list[list[Step]] = [[]]
    for name, module in model.features.named_children():
        if type(module).__name__ == "Fire":
            groups.append([])
        groups[-1].append(f"features.{name}")
    names = ["stem"] + [f"fire{i}" for i in range(2, len(groups) + 1)]
    stages = [_stage(model, name, *steps) for name, steps in zip(names, groups, strict=True)]
    return [*stages, _stage(model, "head", "classifier", flatten)]


def densenet(model: Any) -> list[Stage]:
    """A dense block and the transition after it, which halves its output, are a stage."""
    f = "features."
    stages = [_stage(model, "stem", f + "conv0", f + "norm0", f + "relu0", f + "pool0")]
    for i in range(1, 4):
        stages.append(_stage(model, f"block{i}", f"{f}denseblock{i}", f"{f}transition{i}"))
    last: list[Step] = [f + "denseblock4", f + "norm5", relu, adaptive_pool, flatten]
    return [*stages, _stage(model, "block4", *last), _stage(model, "head", "classifier")]


def resnet(model: Any) -> list[Stage]:
    """ResNet, ResNeXt and Wide ResNet."""
    return [
        _stage(model, "stem", "conv1", "bn1", "relu", "maxpool"),
        *(_stage(model, f"layer{i}", f"layer{i}") for i in (1, 2, 3)),
        _stage(model, "layer4", "layer4", "avgpool", flatten),
        _stage(model, "head", "fc"),
    ]


def inception(model: Any) -> list[Stage]:
    """A stage for each Inception block; the auxiliary classifier hangs on Mixed_6e."""
    stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"]
    stem += ["Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"]
    blocks = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b"]
    # The weight is that of PyTorch's tutorial "Finetuning Torchvision Models": main + 0.4 * aux.
    aux = Aux("AuxLogits", 0.4, "AuxLogits.fc") if model.AuxLogits is not None else None
    return [
        _stage(model, "stem", transform_input, *stem),
        *(
            _stage(model, f"Mixed_{i}", f"Mixed_{i}", aux=aux if i == "6e" else None)
            for i in blocks
        ),
        _stage(model, "Mixed_7c", "Mixed_7c", "avgpool", flatten),
        _stage(model, "head", "dropout", "fc"),
    ]


def googlenet(model: Any) -> list[Stage]:
    """A stage for each Inception block; auxiliary classifiers hang on inception4a and 4d."""
    after = {"inception3b": ["maxpool3"], "inception4e": ["maxpool4"]}
    blocks = [f"inception{i}" for i in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a")]
    aux = {}
    if model.aux1 is not None:
        # Szegedy et al., "Going Deeper with Convolutions", section 5: weighted by 0.3 each.
        aux["inception4a"] = Aux("aux1", 0.3, "aux1.fc2")
        aux["inception4d"] = Aux("aux2", 0.3, "aux2.fc2")
    stem: list[Step] = [transform_input, "conv1", "maxpool1", "conv2", "conv3", "maxpool2"]
    return [
        _stage(model, "stem", *stem),
        *(_stage(model, i, i, *after.get(i, []), aux=aux.get(i)) for i in blocks),
        _stage(model, "inception5b", "inception5b", "avgpool", flatten),
        _stage(model, "head", "dropout", "fc"),
    ]


def mobilenet_v2(model: Any) -> list[Stage]:
    """A stage for each inverted residual."""
    stem, *blocks, top = _named("features", model.features)
    return [
        _stage(model, "stem", stem),
        *(_stage(model, f"block{i}", name) for i, name in enumerate(blocks, 1)),
        _stage(model, "top", top, adaptive_pool, flatten),
        _stage(model, "head", "classifier.0", "classifier.1"),
    ]


def mobilenet_v3(model: Any) -> list[Stage]:
    """A stage for each inverted residual; the hidden dense layer is the stage ``classifier``."""
    stem, *blocks, top = _named("features", model.features)
    return [
        _stage(model, "stem", stem),
        *(_stage(model, f"block{i}", name) for i, name in enumerate(blocks, 1)),
        _stage(model, "top", top, "avgpool", flatten),
        _stage(model, "classifier", "classifier.0", "classifier.1"),
        _stage(model, "head", "classifier.2", "classifier.3"),
    ]


def mnasnet(model: Any) -> list[Stage]:
    """The stem with its separable convolution, six stacks of inverted residuals, the last 1x1."""
    layers = _named("layers", model.layers)
    return [
        _stage(model, "stem", *layers[:8]),
        *(_stage(model, f"stage{i}", name) for i, name in enumerate(layers[8:14], 1)),
        _stage(model, "top", *layers[14:], mean_pool),
        _stage(model, "head", "classifier.0", "classifier.1"),
    ]


def shufflenet(model: Any) -> list[Stage]:
    """Stages 2 to 4, as the paper counts them."""
    return [
        _stage(model, "stem", "conv1", "maxpool"),
        *(_stage(model, f"stage{i}", f"stage{i}") for i in (2, 3, 4)),
        _stage(model, "top", "conv5", mean_pool),
        _stage(model, "head", "fc"),
    ]


def efficientnet(model: Any) -> list[Stage]:
    """EfficientNet and EfficientNetV2: a stage for each stack of equal blocks."""
    stem, *stacks, top = _named("features", model.features)
    return [
        _stage(model, "stem", stem),
        *(_stage(model, f"stage{i}", name) for i, name in enumerate(stacks, 1)),
        _stage(model, "top", top, "avgpool", flatten),
        _stage(model, "head", "classifier.0", "classifier.1"),
    ]


def _hierarchical(model: Any, closing: list[Step], head: str) -> list[Stage]:
    """ConvNeXt and Swin: ``features`` is a stem, a stack, and (down-sampling, stack) from then."""
    stem, first, *rest = _named("features", model.features)
    stacks: list[list[Step]] = [[first]]
    stacks += [[down, stack] for down, stack in zip(rest[::2], rest[1::2], strict=True)]
    stacks[-1] += closing
    return [
        _stage(model, "stem", stem),
        *(_stage(model, f"stage{i}", *steps) for i, steps in enumerate(stacks, 1)),
        _stage(model, "head", head),
    ]


def convnext(model: Any) -> list[Stage]:
    """The classifier's LayerNorm is pre-trained: it closes the last stage."""
    return _hierarchical(model, ["avgpool", "classifier.0", "classifier.1"], "classifier.2")


def swin(model: Any) -> list[Stage]:
    """Swin and Swin V2."""
    return _hierarchical(model, ["norm", "permute", "avgpool", "flatten"], "head")


def regnet(model: Any) -> list[Stage]:
    """RegNet X and Y: a stem and four blocks."""
    *blocks, last = _named("trunk_output", model.trunk_output)
    return [
        _stage(model, "stem", "stem"),
        *(_stage(model, name.rpartition(".")[2], name) for name in blocks),
        _stage(model, last.rpartition(".")[2], last, "avgpool", flatten),
        _stage(model, "head", "fc"),
    ]


def vit(model: Any) -> list[Stage]:
    """A stage for each encoder block; the last also normalises and selects the class token."""
    *blocks, last = _named("encoder.layers", model.encoder.layers)
    owned = ("conv_proj", "class_token", "encoder.pos_embedding")
    return [
        Stage("stem", (vit_embed,), owned),
        *(_stage(model, f"block{i}", name) for i, name in enumerate(blocks, 1)),
        _stage(model, f"block{len(blocks) + 1}", last, "encoder.ln", class_token),
        _stage(model, "head", "heads"),
    ]


def maxvit(model: Any) -> list[Stage]:
    """Four blocks; LayerNorm, the hidden dense layer and tanh are the stage ``classifier``."""
    *blocks, last = _named("blocks", model.blocks)
    classifier = _named("classifier", model.classifier)
    return [
        _stage(model, "stem", "stem"),
        *(_stage(model, f"block{i}", name) for i, name in enumerate(blocks, 1)),
        _stage(model, f"block{len(blocks) + 1}", last, *classifier[:2]),
        _stage(model, "classifier", *classifier[2:-1]),
        _stage(model, "head", classifier[-1]),
    ]


FAMILIES: dict[type[nn.Module], Callable[[Any], list[Stage]]] = {
    tv.AlexNet: alexnet,
    tv.ConvNeXt: convnext,
    tv.DenseNet: densenet,
    tv.EfficientNet: efficientnet,
    tv.GoogLeNet: googlenet,
    tv.Inception3: inception,
    tv.MaxVit: maxvit,
    tv.MNASNet: mnasnet,
    tv.MobileNetV2: mobilenet_v2,
    tv.MobileNetV3: mobilenet_v3,
    tv.RegNet: regnet,
    tv.ResNet: resnet,
    tv.ShuffleNetV2: shufflenet,
    tv.SqueezeNet: squeezenet,
    tv.SwinTransformer: swin,
    tv.VGG: vgg,
    tv.VisionTransformer: vit,
}


def stages_of(model: nn.Module) -> tuple[Stage, ...]:
    """The stages of a torchvision classification network, first to last.

    Raises UserError for any other network. (timm's are cut by ``tl.models.timm_stages``.)
    """
    if type(model) not in FAMILIES:
        known = ", ".join(sorted(family.__name__ for family in FAMILIES))
        raise UserError(
            f"no stages are known for a {type(model).__name__}: give its family a function and a "
            f"line in tl/models/families.py. Known: {known}."
        )
    return tuple(FAMILIES[type(model)](model))
