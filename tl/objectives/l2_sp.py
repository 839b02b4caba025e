"""Fine-tuning that stays near its starting point: L2-SP."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tl.config import Keys, NonNegativeFloat
from tl.models.network import head_parameters
from tl.objectives.objective import share_of
from tl.objectives.supervised import Seen, Supervised


class L2SP(Supervised):
    """Cross-entropy, and a pull of all that trains to the pretrained weights, of the head to zero.

    Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", ICML 2018:

        alpha / 2 ||w - w0||² + beta / 2 ||v||²

    w are the trained parameters that the pretrained network has as well, biases and normalisation
    included, w0 their pretrained values; v are those of the new heads. It takes the place of
    ``optimizer.weight_decay``, which would pull all of them to zero besides.
    """

    class Options(Keys):
        alpha: NonNegativeFloat = 0.1
        """pull to the pretrained weights"""
        beta: NonNegativeFloat = 0.01
        """pull of the head to zero"""

    needs = frozenset({"pretrained"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        assert self.given.pretrained is not None
        start = dict(self.given.pretrained.model.named_parameters())
        trained = [(n, p) for n, p in self.network.model.named_parameters() if p.requires_grad]
        new = head_parameters(self.network) | {n for n, _ in trained if n not in start}
        # Lists, which are no submodules: the parameters are the network's.
        self._old = [(p, start[n].detach()) for n, p in trained if n not in new]
        self._new = [p for n, p in trained if n in new]

    def penalties(self, seen: Seen) -> dict[str, Tensor]:
        pulls = [self.options.alpha / 2 * (p - start).square().sum() for p, start in self._old]
        pulls += [self.options.beta / 2 * p.square().sum() for p in self._new]
        return {"l2_sp": share_of(sum(pulls[1:], pulls[0]), seen.batch)}
