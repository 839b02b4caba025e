"""Dropout whose mask belongs to the image, not to the process.

PyTorch draws dropout masks from a generator of each process, so the same image is dropped
differently on one process and on two. Here the mask is a function of the image's own key, which
the training loop makes from (seed, step, id of the image): the same on any number of processes,
for any cut into micro-batches, on a CPU and on a GPU, and after a resume, without a saved state.

The bits are SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of key, layer and place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as a signed 64-bit integer, and so below
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finalizer: int64 in, int64 that look random out, one for one."""
    return _mix_in_place(z.clone())


def _mix_in_place(z: Tensor) -> Tensor:
    # In place: 512×13×13 places of 32 images take 3 ms on two cores; in new memory for every
    # operation, and with one draw for each number, it was 147. F.dropout takes 64.
    shifted = torch.empty_like(z)
    for bits, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        # The logical shift to the right; that of a signed tensor is arithmetic.
        torch.bitwise_right_shift(z, bits, out=shifted).bitwise_and_((1 << (64 - bits)) - 1)
        z.bitwise_xor_(shifted)
        if factor != 1:
            z.mul_(factor)
    return z


def image_keys(seed: int, step: int, ids: Tensor, ahead: Tensor | int = 0) -> Tensor:
    """The key of each image in one step: int64 (N,) from ids (N,) int64.

    Args:
        ahead: (N,) int64, tells two of the same image in a step apart: by how many its round is
            ahead of the epoch.
    """
    # In Python's numbers: the copy of a tensor to the device would wait for the step before.
    base = _mix_number(_mix_number(seed) + step)
    return mix(ids * _GOLDEN + ahead * _SECOND + _signed(base))


def _mix_number(z: int) -> int:
    """`mix` for one number, unsigned."""
    mask = 2**64 - 1
    z &= mask
    z = (z ^ (z >> 30)) * _FIRST & mask
    z = (z ^ (z >> 27)) * _SECOND & mask
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    return z - 2**64 if z >= 2**63 else z


# One operation, which torch.compile takes as it is: compilers reason about the range of integers,
# and these wrap around on purpose.
@torch.library.custom_op("tl::image_draws", mutates_args=())
def image_draws(keys: Tensor, layer: int, count: int) -> Tensor:
    """``count`` whole numbers for each image, by its key and the layer: int16 (N, count).

    All 2¹⁶ values are as likely. Four are made at once, of 64 bits.
    """
    keys = mix(keys + layer)
    fours = torch.arange(1, (count + 3) // 4 + 1, device=keys.device).mul_(_GOLDEN)
    return _mix_in_place(fours + keys[:, None]).view(torch.int16)[:, :count]


@image_draws.register_fake
def _(keys: Tensor, layer: int, count: int) -> Tensor:
    return keys.new_empty((len(keys), (count + 3) // 4 * 4), dtype=torch.int16)[:, :count]


class Draws:
    """Where a network's dropout layers find the keys of the images that go through it."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        """int64 (N,), or None: dropout then draws from torch's generator as usual."""

    def keeps(self, layer: int, shape: torch.Size, p: float) -> Tensor:
        """bool of ``shape`` (N, …), false with probability p: row i is by key i and the layer.

        p counts as the nearest multiple of 1/65536.
        """
        assert self.keys is not None
        assert len(self.keys) == shape[0], "a key for each image"
        draws = image_draws(self.keys, layer, shape[1:].numel())
        return (draws >= min(round(p * 2**16), 2**16 - 1) - 2**15).view(shape)


class ImageDropout(nn.Module):
    """Dropout (Srivastava et al., JMLR 2014) with a mask from the images' keys.

    With ``rows`` one draw decides over all of an image, as in stochastic depth (Huang et al.,
    ECCV 2016). What is kept is scaled by 1 / (1 - p).
    """

    def __init__(self, p: float, rows: bool, draws: Draws, layer: int) -> None:
        super().__init__()
        self.p, self.rows, self.draws, self.layer = p, rows, draws, layer

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        shape = torch.Size([len(x), *[1] * (x.dim() - 1)]) if self.rows else x.shape
        if self.draws.keys is None:
            return x * F.dropout(torch.ones(shape, device=x.device, dtype=x.dtype), self.p)
        if self.p == 1:
            return x * 0
        kept = self.draws.keeps(self.layer, shape, self.p)
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            # 3 ms for the batch above, where the product of two memory layouts loses 15.
            kept = kept.contiguous(memory_format=torch.channels_last)
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}, rows={self.rows}"


def give_images_their_own(model: nn.Module) -> Draws:
    """Put `ImageDropout` in the place of every dropout and stochastic-depth layer of ``model``.

    They have no parameters, so no name changes.
    """
    draws = Draws()
    layer = 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            p, rows = _drop_of(child)
            if p is not None:
                layer += 1
                setattr(module, name, ImageDropout(p, rows, draws, layer))
    return draws


def not_by_image(model: nn.Module) -> list[str]:
    """Names of modules that still draw from torch's generator, which each process has its own of.

    They are kinds of dropout that `give_images_their_own` does not know, and attention that is
    given a probability instead of a module.
    """
    found = []
    for name, module in model.named_modules():
        kind = type(module).__name__.lower()
        drops = isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth)
        drops = (drops or "drop" in kind) and not isinstance(module, ImageDropout)
        chances = [getattr(module, key, 0) for key in ("p", "drop_prob")] if drops else []
        chances += [getattr(module, key, 0) for key in _CHANCES]
        if any(isinstance(chance, int | float) and chance > 0 for chance in chances):
            found.append(name)
    return found


_CHANCES = ("dropout", "attention_dropout", "drop_rate")
"""what modules call a probability that they drop with by a function"""


def _drop_of(module: nn.Module) -> tuple[float | None, bool]:
    """Probability, and whether one draw decides over all of an image; None: no dropout layer."""
    if type(module) is nn.Dropout:
        return module.p, False
    if isinstance(module, StochasticDepth) and module.mode == "row":
        return module.p, True
    if type(module).__name__ == "DropPath" and getattr(module, "scale_by_keep", False):  # timm
        return float(module.drop_prob or 0), True  # type: ignore[arg-type]
    return None, False
