"""Networks of almost no arithmetic, to see what a loop takes besides: on images of 8×8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE, CLASSES, IMAGES = 8, 10, 2
LAYERS = {"one layer": 0, "21 layers": 20}
"""name -> convolutions before the head; with 20 of them there are 62 parameters, as in ResNet-18"""


class Toy(nn.Module):
    """Convolutions of 8 channels with BatchNorm, if any, and a linear head."""

    def __init__(self, convolutions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(convolutions):
            layers += [nn.Conv2d(8 if i else 3, 8, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(8), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8 if convolutions else 3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def batch(processes: int) -> tuple[Tensor, Tensor]:
    """A process's share of a batch of `IMAGES`: images and labels."""
    count = IMAGES // processes
    return torch.randn(count, 3, SIZE, SIZE), torch.randint(0, CLASSES, (count,))
