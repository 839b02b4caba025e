"""The work that all peers do: what they are told, the network, the views, and what they report.

A peer is what somebody would write with a library, from its documentation, in its default settings.
What is here is what has to be the same in all of them for a comparison to mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torchvision import models, transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def arguments() -> argparse.Namespace:
    """What the harness says on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="has train/ and val/")
    parser.add_argument("--model", required=True, help="of torchvision.models")
    parser.add_argument("--weights", help="a state_dict; without it they are random")
    parser.add_argument("--train", choices=["head", "full"], required=True)
    parser.add_argument("--augment", choices=["none", "standard"], required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--momentum", type=float, required=True)
    parser.add_argument("--step-epochs", type=int, required=True)
    parser.add_argument("--gamma", type=float, required=True)
    parser.add_argument("--clip-norm", type=float, required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args()


def num_classes(args: argparse.Namespace) -> int:
    """The number of class folders."""
    return sum(folder.is_dir() for folder in Path(args.data, "train").iterdir())


def make_model(args: argparse.Namespace) -> nn.Module:
    """The network with its weights and a new head, the one that this project makes by the seed."""
    torch.manual_seed(args.seed)
    model = models.get_model(args.model, weights=None, num_classes=num_classes(args))
    if isinstance(model, models.SqueezeNet):
        model.classifier[2] = nn.Identity()  # a new head of this project's has no ReLU behind it
    if args.weights:
        state = torch.load(args.weights, weights_only=True)
        for name, _ in head_of(model):
            del state[name]
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected
        assert sorted(missing) == sorted(name for name, _ in head_of(model))
    return model


def head_of(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters of the classification layer: the last one that has any."""
    names = [name for name, _ in model.named_parameters()]
    layer = names[-1].rpartition(".")[0]
    return [(n, p) for n, p in model.named_parameters() if n.startswith(f"{layer}.")]


def freeze_all_but_the_head(model: nn.Module) -> None:
    """As the libraries' tutorials do it."""
    model.requires_grad_(False)
    for _, parameter in head_of(model):
        parameter.requires_grad = True


def plain_view(args: argparse.Namespace) -> transforms.Compose:
    """The shorter side to 256 for images of 224, and the centre of that."""
    size = args.image_size
    return transforms.Compose(
        [
            transforms.Resize(round(size * 256 / 224)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def training_view(args: argparse.Namespace) -> transforms.Compose:
    """The view of training that is asked for."""
    if args.augment == "none":
        return plain_view(args)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(args.image_size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


class Report:
    """What is measured in a peer; printed as one line of JSON at its end."""

    def __init__(self) -> None:
        self._first_step: float | None = None
        self._images = 0
        self._seconds = 0.0
        self._since = 0.0
        self._accuracies: list[float] = []

    def training_starts(self) -> None:
        """An epoch's training begins."""
        self._since = time.perf_counter()

    def stepped(self, images: int) -> None:
        """A step on so many images is done."""
        self._images += images
        if self._first_step is None:
            self._first_step = time.time() - float(os.environ["BENCHMARK_STARTED"])

    def training_ends(self) -> None:
        """An epoch's training is over, its evaluation begins."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds += time.perf_counter() - self._since

    def evaluated(self, accuracy: float) -> None:
        """A validation accuracy, 0 to 1."""
        self._accuracies.append(accuracy)

    def print(self) -> None:
        """One line on standard output."""
        values = {
            "seconds_to_first_step": self._first_step,
            "images_per_second": self._images / self._seconds,
            "best_accuracy": max(self._accuracies),
            "last_accuracy": self._accuracies[-1],
        }
        print(json.dumps(values), flush=True)


def accuracy(predictions: Iterable[torch.Tensor], labels: Iterable[torch.Tensor]) -> float:
    """Share of equal classes in lists of tensors (N,)."""
    right = torch.cat(list(predictions)) == torch.cat(list(labels))
    return right.double().mean().item()
