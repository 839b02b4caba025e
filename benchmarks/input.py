"""What input costs, and what decoding at a reduced size changes: the figures of input.md.

    python benchmarks/input.py FOLDER WEIGHTS.pth [ROUNDS]

FOLDER holds photographs as JPEG at any depth, WEIGHTS are SqueezeNet 1.0's. Prints JSON: of two
ways to do the same, taken in turn ROUNDS times (11), the CPU time of each and the median of their
ratio, with its smallest and largest; and differences. One thread, one process: CPU time is what a
loader's worker needs. Pillow is compared with torchcodec if that is installed.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from tl.data import resizing
from tl.data.image_files import ReadFiles
from tl.data.images import read_rgb, read_shrunk
from tl.data.split import Split
from tl.data.streams import Decode, open_stream
from tl.data.transforms import View, augmented_view, normalise, plain_view, seeded
from tl.models import weights as model_weights
from tl.models import zoo
from tl.models.preprocessing import preprocessing_of

WHITE = (255, 255, 255)
RECIPE = preprocessing_of("squeezenet1_0", "DEFAULT")
PLAIN, RANDOM = plain_view(RECIPE), augmented_view(RECIPE, "standard")
BATCH = 32


def main() -> None:
    folder, weights, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    rounds = int(rest[0]) if rest else 11
    files = sorted(map(str, Path(folder).rglob("*.jpg")))
    some, large = files[:64], [enlarged(path, (4000, 3000)) for path in files[:3]]
    network = zoo.build("squeezenet1_0", 1000, 224)
    model_weights.load(network, weights, keep_head=True)
    network.eval()
    compare = partial(in_turn, rounds=rounds)
    report = {
        "to the network's input, per batch": compare(
            partial(by_recipe, some[:BATCH]), partial(by_batch, some[:BATCH])
        ),
        "loader, augmented, 64 files": compare(
            partial(recipe_loader, some), partial(our_loader, some)
        ),
        "decode and plain view, 4000x3000": compare(
            partial(each, large, PLAIN, "exact"), partial(each, large, PLAIN, "fast")
        ),
        "decode and augmented view, 4000x3000": compare(
            partial(each, large, RANDOM, "exact"), partial(each, large, RANDOM, "fast")
        ),
        "decode and plain view, these files": compare(
            partial(each, some, PLAIN, "exact"), partial(each, some, PLAIN, "fast")
        ),
        "mirror: by image, by batch": compare(*mirrors(some[:BATCH])),
        "resize of 4000x3000: as it is, reducing_gap=2": compare(*reductions(files[0])),
        "4000x3000 as PNG: decode, resize": compare(*portable(files[0])),
        "levels by SPARE, 3000x2000 resized to 256": by_spare(files[:24], (3000, 2000)),
        "probabilities, files as they are": probabilities(network, files),
        "probabilities, enlarged to 3000 pixels": probabilities(network, files[::8], 3000),
    }
    if importlib.util.find_spec("torchcodec"):
        contents = [Path(path).read_bytes() for path in some]
        report["decode these files: Pillow, torchcodec"] = compare(*decoders(contents))
        report["decode 4000x3000: Pillow, torchcodec"] = compare(*decoders(large))
    print(json.dumps(report, indent=2))


def in_turn(one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """CPU milliseconds of both, and how many times as long the first takes."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        pair = []
        for function in (one, other):
            began = time.process_time()
            function()
            pair.append(1e3 * (time.process_time() - began))
        times.append((pair[0], pair[1]))
    ratios = [a / b for a, b in times[1:]]
    first, second = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return {
        "ms": [round(first, 2), round(second, 2)],
        "ratio": round(statistics.median(ratios), 2),
        "from": round(min(ratios), 2),
        "to": round(max(ratios), 2),
    }


def enlarged(path: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    with Image.open(path) as image:
        larger = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    larger.save(file, "JPEG", quality=90)
    return file.getvalue()


def by_recipe(files: list[str]) -> Tensor:
    """8 bits to floats as torchvision does, image by image, and stacked."""
    steps = [v2.PILToTensor(), lambda x: x.float() / 255, v2.Normalize(RECIPE.mean, RECIPE.std)]
    return torch.stack([v2.Compose(steps)(image) for image in squares(tuple(files))])


def by_batch(files: list[str]) -> Tensor:
    """The same for the whole batch."""
    pixels = [torch.from_numpy(np.array(image)) for image in squares(tuple(files))]
    return normalise(torch.stack(pixels).permute(0, 3, 1, 2), RECIPE)


_squares: dict[tuple[str, ...], list[Image.Image]] = {}


def squares(files: tuple[str, ...]) -> list[Image.Image]:
    if files not in _squares:
        _squares[files] = [read_rgb(path).resize((224, 224)) for path in files]
    return _squares[files]


class RecipeImages(torch.utils.data.Dataset):
    """What a user would write with torchvision."""

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.recipe = v2.Compose(
            [
                v2.RandomResizedCrop(224),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(RECIPE.mean, RECIPE.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        with Image.open(self.files[i]) as image:
            return self.recipe(image.convert("RGB")), 0


def recipe_loader(files: list[str]) -> None:
    for images, _ in torch.utils.data.DataLoader(RecipeImages(files), BATCH):
        images.contiguous(memory_format=torch.channels_last)


def our_loader(files: list[str]) -> None:
    split = Split(files, np.zeros(len(files), np.int64), ReadFiles(files, WHITE))
    batches = [
        [(0, i) for i in range(start, min(start + BATCH, len(files)))]
        for start in range(0, len(files), BATCH)
    ]
    stream = open_stream(
        split, RANDOM, batches, seed=0, size=224, decode="fast", workers=0, pin_memory=False
    )
    for batch in stream:
        normalise(batch["image"], RECIPE)


def each(files: Iterable[str | bytes], view: View, decode: Decode) -> list[Tensor]:
    """What is seen of each file; the random view is that of its number."""
    seen = []
    for i, content in enumerate(files):
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        if decode == "exact":
            seen.append(seeded(view, read_rgb(file), i))
        else:
            least = partial(drawn, view, i)
            seen.append(seeded(view, read_shrunk(file, least), i))
    return seen


def drawn(view: View, i: int, size: tuple[int, int]) -> tuple[int, int]:
    return seeded(view.least, size, i)


def mirrors(files: list[str]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Half of a batch left for right: by Pillow, and in the batch's memory."""
    images = squares(tuple(files))
    batch = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    coins = torch.arange(len(images)) % 2 == 0
    turn = Image.Transpose.FLIP_LEFT_RIGHT
    return (
        lambda: [image.transpose(turn) for image in images[::2]],
        lambda: torch.where(coins[:, None, None, None], batch.flip(3), batch),
    )


def reductions(path: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    image = read_rgb(io.BytesIO(enlarged(path, (4000, 3000))))
    bilinear = Image.Resampling.BILINEAR
    return (
        lambda: image.resize((341, 256), bilinear),
        lambda: image.resize((341, 256), bilinear, reducing_gap=2.0),
    )


def portable(path: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    image, file = read_rgb(io.BytesIO(enlarged(path, (4000, 3000)))), io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return (
        lambda: read_rgb(io.BytesIO(file.getvalue())),
        lambda: image.resize((341, 256), Image.Resampling.BILINEAR),
    )


def decoders(contents: list[bytes]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Bytes to pixels alone, at the image's own size, which is all that torchcodec can."""
    from torchcodec.decoders import decode_jpeg

    return (
        lambda: [Image.open(io.BytesIO(content)).convert("RGB") for content in contents],
        lambda: [decode_jpeg(content) for content in contents],
    )


def by_spare(files: list[str], size: tuple[int, int]) -> dict[str, Any]:
    """Differences of the plain view to that of the whole image, in levels of 255."""
    contents = [enlarged(path, size) for path in files]
    exact = torch.stack(each(contents, PLAIN, "exact")).float()
    found, before = {}, resizing.SPARE
    # At 1.95 a quarter of 2000 pixels is enough for 256, at 0.97 an eighth.
    for spare in (3.9, 1.95, 0.97):
        resizing.SPARE = spare
        found[str(spare)] = levels(torch.stack(each(contents, PLAIN, "fast")).float(), exact)
    resizing.SPARE = before
    return found


def levels(one: Tensor, other: Tensor) -> dict[str, float]:
    difference = (one - other).abs()
    return {
        "mean": round(difference.mean().item(), 3),
        "99.9th percentile": float(np.quantile(difference.numpy(), 0.999)),
        "largest": difference.max().item(),
    }


@torch.inference_mode()
def probabilities(network: Any, files: list[str], longer: int | None = None) -> dict[str, Any]:
    """The largest change of a probability, and how often another class is the most probable."""
    said = []
    contents: list[str | bytes] = list(files)
    if longer is not None:
        contents = [enlarged(path, enlarged_size(path, longer)) for path in files]
    for decode in ("exact", "fast"):
        images = each(contents, PLAIN, decode)
        parts = [
            network(normalise(torch.stack(images[i : i + BATCH]), RECIPE)).double().softmax(1)
            for i in range(0, len(images), BATCH)
        ]
        said.append(torch.cat(parts))
    exact, fast = said
    return {
        "images": len(files),
        "largest": (fast - exact).abs().max().item(),
        "other class": int((fast.argmax(1) != exact.argmax(1)).sum()),
    }


def enlarged_size(path: str, longer: int) -> tuple[int, int]:
    with Image.open(path) as image:
        scale = longer / max(image.size)
        return math.ceil(image.width * scale), math.ceil(image.height * scale)


if __name__ == "__main__":
    main()
