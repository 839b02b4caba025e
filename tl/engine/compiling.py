"""torch.compile for an objective's pass, without compiling again for every size of batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tl.data.streams import Batch
from tl.objectives import Objective


def compile_for(objective: Objective, sizes: set[int]) -> None:
    """Compile the pass of batches of these many images; others go through it as it is.

    The last batch of an epoch is a smaller one. To compile for it too, and then for any size as
    torch.compile would, takes longer than it can save: 70 s and then 170 s more for
    MobileNetV3-small on two cores.
    """
    as_it_is = objective.forward
    # Not for any size: the shapes of another phase in this process are no hint that these vary.
    compiled: Any = torch.compile(as_it_is, dynamic=False)

    def forward(batch: Batch, progress: float) -> dict[str, Tensor]:
        if len(batch["image"]) not in sizes:
            return as_it_is(batch, progress)
        # A number would be compiled in, anew for that of each step.
        return compiled(batch, torch.tensor(progress, dtype=torch.float64))

    objective.forward = forward  # type: ignore[method-assign]
