"""torchvision's ResNets, ViTs and ConvNeXts under the names that Transformers has for them."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor
from torchvision import models as tv

from tl.models.network import Network

State = dict[str, Tensor]

_RESNET = (
    (r"(?:conv|bn)1\.", "resnet.embedder.embedder.{part}."),
    (
        r"layer(\d)\.(\d+)\.(?:conv|bn)(\d)\.",
        "resnet.encoder.stages.{0}.layers.{1}.layer.{2}.{part}.",
    ),
    (
        r"layer(\d)\.(\d+)\.downsample\.[01]\.",
        "resnet.encoder.stages.{0}.layers.{1}.shortcut.{part}.",
    ),
    (r"fc\.", "classifier.1."),
)
_VIT = (
    (r"class_token", "vit.embeddings.cls_token"),
    (r"encoder\.pos_embedding", "vit.embeddings.position_embeddings"),
    (r"conv_proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"encoder\.ln\.", "vit.layernorm."),
    (r"heads\.head\.", "classifier."),
)
_VIT_LAYER = {
    "ln_1": "layernorm_before",
    "ln_2": "layernorm_after",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "self_attention.out_proj": "attention.o_proj",
}
_CONVNEXT_BLOCK = {"0": "dwconv", "2": "layernorm", "3": "pwconv1", "5": "pwconv2"}


def renamed(network: Network, image_size: int) -> tuple[str, dict[str, Any], State] | None:
    """What Transformers calls the network, its config's keys and its tensors; None if it has none.

    Only what it can compute: its ResNet has no groups and one width, which ResNeXt and Wide ResNet
    need.
    """
    model, name = network.model, network.architecture
    if isinstance(model, tv.ResNet) and re.fullmatch(r"resnet\d+", name):
        return "ResNet", *_resnet(model)
    if isinstance(model, tv.VisionTransformer):
        return "ViT", *_vit(model, image_size)
    if isinstance(model, tv.ConvNeXt):
        return "ConvNext", *_convnext(model)
    return None


def _resnet(model: Any) -> tuple[dict[str, Any], State]:
    layers = [getattr(model, f"layer{i}") for i in (1, 2, 3, 4)]
    bottleneck = hasattr(layers[0][0], "conv3")
    last = "conv3" if bottleneck else "conv2"
    config = {
        "embedding_size": model.conv1.out_channels,
        "hidden_sizes": [getattr(layer[0], last).out_channels for layer in layers],
        "depths": [len(layer) for layer in layers],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "downsample_in_bottleneck": False,  # torchvision strides in the 3x3 convolution
    }
    state = {}
    for name, value in model.state_dict().items():
        norm = "bn" in name or "downsample.1." in name
        for pattern, to in _RESNET:
            if found := re.match(pattern, name):
                numbers = [int(group) for group in found.groups()]
                # Stages and layers count from 0, torchvision's from 1; its blocks do as well.
                places = [n if i == 1 else n - 1 for i, n in enumerate(numbers)]
                start = to.format(*places, part="normalization" if norm else "convolution")
                state[start + name[found.end() :]] = value
    return config, state


def _vit(model: Any, image_size: int) -> tuple[dict[str, Any], State]:
    config = {
        "hidden_size": model.hidden_dim,
        "num_hidden_layers": len(model.encoder.layers),
        "num_attention_heads": model.encoder.layers[0].num_heads,
        "intermediate_size": model.mlp_dim,
        "hidden_act": "gelu",
        "layer_norm_eps": model.encoder.ln.eps,
        "image_size": image_size,
        "patch_size": model.patch_size,
    }
    state: State = {}
    for name, value in model.state_dict().items():
        found = re.match(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)\.?(weight|bias)$", name)
        if found is None:
            for pattern, to in _VIT:
                if start := re.match(pattern, name):
                    state[to + name[start.end() :]] = value
            continue
        layer, part, kind = f"vit.layers.{found[1]}.", found[2].rstrip("._"), found[3]
        if part == "self_attention.in_proj":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                state[f"{layer}attention.{letter}_proj.{kind}"] = third
        else:
            state[f"{layer}{_VIT_LAYER[part]}.{kind}"] = value
    return config, state


def _convnext(model: Any) -> tuple[dict[str, Any], State]:
    # features: the stem, then in turn the blocks of a stage and what halves its output.
    stages = [model.features[i] for i in (1, 3, 5, 7)]
    config = {
        "patch_size": model.features[0][0].stride[0],
        "hidden_sizes": [stage[0].block[0].out_channels for stage in stages],
        "depths": [len(stage) for stage in stages],
        "hidden_act": "gelu",
        "layer_norm_eps": model.classifier[0].eps,
    }
    state: State = {}
    for name, value in model.state_dict().items():
        first, number, rest = name.split(".", 2)
        if first == "classifier":
            start = "convnext.layernorm." if number == "0" else "classifier."
            state[start + rest] = value
        elif number == "0":
            part, kind = rest.split(".", 1)
            inside = "patch_embeddings" if part == "0" else "layernorm"
            state[f"convnext.embeddings.{inside}.{kind}"] = value
        elif int(number) % 2 == 0:
            state[f"convnext.encoder.stages.{int(number) // 2}.downsampling_layer.{rest}"] = value
        else:
            block, rest = rest.split(".", 1)
            start = f"convnext.encoder.stages.{int(number) // 2}.layers.{block}."
            if rest == "layer_scale":
                state[start + "layer_scale_parameter"] = value.flatten()
            else:
                _, part, kind = rest.split(".")
                state[f"{start}{_CONVNEXT_BLOCK[part]}.{kind}"] = value
    return config, state
