"""int8 for CPUs: weights of 8 bits, inputs of layers rounded to 8 bits as they come.

ONNX Runtime's dynamic quantization (https://onnxruntime.ai/docs/performance/model-optimizations/
quantization.html): each layer finds the range of its input anew for each batch, so no images are
needed to calibrate it, and a class of an image may depend on the others of its batch.

Weights are unsigned: with signed ones, convolutions of SqueezeNet took two to four times as long
(ONNX Runtime 1.32, two AVX-512 cores, under load), and where a CPU has no VNNI, sums saturate.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tl.errors import UserError
from tl.export.check import Comparison, Reader, compare
from tl.export.needs import needs

MUCH = 0.01
"""of accuracy; to lose more than that gets a line"""
_ROUNDS, _BATCH = 5, 8


@dataclass(frozen=True)
class Int8:
    """What int8 costs and gains, measured beside the float graph."""

    comparison: Comparison
    accuracy: float | None
    float_accuracy: float | None
    """of the same images; None: nobody knows their classes"""
    bytes: int
    float_bytes: int
    images_per_second: float
    float_images_per_second: float
    """in batches of 8, in turn, the median of five"""

    @property
    def lost(self) -> float | None:
        """Of accuracy; negative, if it is better by chance."""
        if self.accuracy is None or self.float_accuracy is None:
            return None
        return self.float_accuracy - self.accuracy

    def __str__(self) -> str:
        c = self.comparison
        parts = [f"the same class as in float32 for {c.same_class:,} of {c.images:,}"]
        if self.accuracy is not None:
            parts.insert(0, f"accuracy {self.accuracy:.4f} (float32: {self.float_accuracy:.4f})")
        parts += [
            f"probabilities differ by {c.probabilities:.2g} at most",
            f"{self.bytes / 1e6:.3g} MB (float32: {self.float_bytes / 1e6:.3g})",
            f"{self.images_per_second:.3g} images/s (float32: {self.float_images_per_second:.3g})",
        ]
        return "; ".join(parts)


def quantise(source: Path, to: Path, external_data: bool) -> None:
    """Write the graph at ``source`` in int8."""
    library = needs("onnxruntime.quantization", "--int8")
    library.quantize_dynamic(
        source,
        to,
        per_channel=True,
        weight_type=library.QuantType.QUInt8,
        use_external_data_format=external_data,
    )


def measure(
    readers: tuple[Reader, Reader],
    files: tuple[Path, Path],
    logits: tuple[Tensor, Tensor],
    pixels: Tensor,
    labels: Tensor | None,
) -> Int8:
    """What int8 loses and gains.

    Args:
        readers: of float and int8, and so are the files and the logits (N, C).
        pixels: of the images.
        labels: (N,), or None where nobody knows them.
    """
    plain, small = readers
    seconds: tuple[list[float], list[float]] = ([], [])
    batch = pixels[:_BATCH]
    for _ in range(1 + _ROUNDS):  # the first is to warm up
        for reader, taken in zip((plain, small), seconds, strict=True):
            began = time.perf_counter()
            reader(batch)
            taken.append(time.perf_counter() - began)
    float_rate, rate = (len(batch) / statistics.median(taken[1:]) for taken in seconds)
    right = [None if labels is None else _accuracy(each, labels) for each in logits]
    sizes = [
        sum(file.stat().st_size for file in path.parent.glob(path.name + "*")) for path in files
    ]
    return Int8(
        comparison=compare(*logits),
        accuracy=right[1],
        float_accuracy=right[0],
        bytes=sizes[1],
        float_bytes=sizes[0],
        images_per_second=rate,
        float_images_per_second=float_rate,
    )


def check_loss(measured: Int8, most: float | None) -> None:
    """Raise UserError if more accuracy is lost than ``most``; None: whatever is lost will do."""
    lost = measured.lost
    if most is not None and lost is not None and lost > most:
        raise UserError(
            f"int8 loses {lost:.4f} of accuracy, more than --max-accuracy-loss {most:g}: "
            f"{measured}. Nothing was kept; export without --int8, or allow more"
        )


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()
