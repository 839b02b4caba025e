"""What objectives take from a run besides its network: see `tl.objectives.objective.Given`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tl.arguments import Loaded
from tl.data.sampler import EvaluationSampler
from tl.data.split import Source
from tl.data.transforms import plain_view
from tl.engine.inputs import to_network
from tl.engine.state import Run
from tl.engine.wishes import stop_agreed
from tl.errors import UserError
from tl.mistakes import blamed_on
from tl.models.network import Network
from tl.models.source_head import load_source_head
from tl.objectives import Given, objective_class


def given_for(loaded: Loaded, source: Source, network: Network) -> Given:
    """What the phases' objectives ask for, of a network that has its weights and nothing else yet.

    Call it before anything is trained or restored.

    Raises:
        UserError: an objective asks for pretrained weights, or their head, and there are none.
    """
    labels = torch.from_numpy(source.train.labels)
    given = Given(torch.bincount(labels, minlength=len(source.classes)))
    chosen = loaded.config.model.weights
    for i, phase in enumerate(loaded.phases):
        needs = objective_class(phase.objective).needs
        with blamed_on(loaded.origins, "phases", i, "objective"):
            if "pretrained" in needs and given.pretrained is None:
                if chosen is None:
                    raise UserError(
                        f"objective={phase.objective} needs pretrained weights, and model.weights "
                        "is null: give weights, or objective=supervised"
                    )
                given.pretrained = copy.deepcopy(network).eval().requires_grad_(False)
            if "source_head" in needs and given.source_head is None:
                asked_by = f"objective={phase.objective}"
                given.source_head = load_source_head(
                    network, chosen, asked_by, loaded.config.model.weights_key
                )
    return given


@torch.inference_mode()
def find_relationship(run: Run) -> Tensor | None:
    """p(source class | class), float32 (C, S); None if there was a reason to stop before the end.

    The mean, over the training images of a class in the view of validation, of the probabilities
    that the pretrained network gives its own classes: in float64, by all processes together, each
    image once. A class of which no image can be read has them all alike.

    Raises:
        OnOneProcessError: a bad image, and such are not to be left out.
    """
    here, given, split = run.runtime, run.given, run.source.train
    assert given.pretrained is not None
    assert given.source_head is not None
    body = len(given.pretrained.stages) - 1
    run.console.say(f"what the source's classes have to do with each class: {len(split):,} images")
    sampler = EvaluationSampler(len(split), 32, here.rank, here.world_size)
    total: Tensor | None = None
    for batch in run.open_stream(split, plain_view(run.preprocessing), sampler):
        if stop_agreed(run, "looking at the source's classes"):
            return None
        run.bad_images.meet(batch["bad"])
        batch = to_network(batch, here.device, run.preprocessing)
        features = given.pretrained.features(batch["image"], body)
        chances = given.source_head(features).double().softmax(1)
        if total is None:
            total = chances.new_zeros(len(run.source.classes), chances.shape[1])
        total.index_add_(0, batch["label"], chances * batch["weight"][:, None])
    assert total is not None, "every process has a batch"
    total = here.all_reduce(total)
    seen = total.sum(1, keepdim=True)
    found = torch.where(seen > 0, total / seen.clamp(min=1e-300), 1 / total.shape[1])
    return found.float()
