"""A bottleneck: a narrow layer between a network's pooled features and its head.

Linear, BatchNorm, ReLU, as domain adaptation has it from DANN and DAN on (Ganin et al., JMLR 2016;
Long et al., ICML 2015): what two domains are to have in common is a vector of a few hundred numbers
of one scale, whatever the network before it puts out.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from tl.errors import UserError
from tl.models.batch_norm import accept_single_values
from tl.models.network import Network
from tl.models.reuse import HEAD, pooled_output, remove
from tl.models.stages import Stage

BOTTLENECK = "bottleneck"
"""the stage, and the submodule; no network of torchvision or timm has it"""


def put(network: Network, width: int) -> None:
    """Put a bottleneck of ``width`` and a linear head in the place of the head, in place.

    The stage before it ends in its mean over places, unless it is a vector for each image already.

    Raises:
        UserError: what is before the head cannot be pooled.
    """
    *body, last, head = network.stages
    pool, features = pooled_output(network, len(body) + 1)
    like = next(network.model.parameters())
    for name in (*head.owns, *head.steps):
        if isinstance(name, str):
            remove(network.model, name)
    layers = nn.Sequential(nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU())
    accept_single_values(layers)
    network.model.add_module(BOTTLENECK, layers.to(like))
    network.model.add_module(HEAD, nn.Linear(width, network.arguments["num_classes"]).to(like))
    network.stages = (
        *body,
        replace(last, steps=(*last.steps, *pool)),
        Stage(BOTTLENECK, (BOTTLENECK,), (BOTTLENECK,)),
        Stage("head", (HEAD,), (HEAD,)),
    )
    network.left_out = (*network.left_out, head)
    network.arguments["bottleneck"] = width
    network.arguments.pop("final_relu", None)  # of the head that is gone


def check(wanted: int | None, had: int | None, weights: str) -> None:
    """Raise UserError if a bottleneck is asked for, and the weights' network has not just that."""
    if wanted is not None and wanted != had:
        theirs = "none" if had is None else f"one of {had}"
        mend = "model.head=new, for both to be new" if had is None else f"model.bottleneck={had}"
        raise UserError(
            f"model.bottleneck is {wanted}, and the network of {weights} has {theirs}: give {mend}"
        )
