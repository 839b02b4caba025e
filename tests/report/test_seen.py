"""What an evaluation keeps for a report: right, small, the same on any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gloo_workers import GlooWorkers

from tl.config import Config
from tl.engine import runtime
from tl.report import seen as seen_module
from tl.report.seen import BINS, SHOWN, UNIT, Seen, Watch

N, C = 203, 4


def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, some of them equal, and labels."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(N, C, generator=generator)
    logits[50:90] = logits[10:50]  # ties are broken by the position
    return logits, torch.randint(0, C, (N,), generator=generator)


def look(images: int = N) -> dict[str, Any]:
    """On each process its share of the images, with padding; the whole comes back as lists."""
    here = runtime.start(Config(threads=1))
    logits, labels = predictions()
    watch = Watch(images, C, here.device)
    mine = list(range(here.rank, N, here.world_size))
    for start in range(0, len(mine), 17):
        ids = torch.tensor([*mine[start : start + 17], -1])
        weight = (ids >= 0).float()
        watch.add(ids, labels[ids], logits[ids], weight)
    return as_lists(watch.gather(here.all_reduce, here.from_all))


def as_lists(seen: Seen) -> dict[str, Any]:
    rows = {}
    for name in ("mistakes", "unsure"):
        part = getattr(seen, name)
        rows[name] = [part.ids.tolist(), part.labels.tolist()]
        rows[name] += [part.classes.tolist(), part.parts.tolist()]
    return {"bins": seen.bins.tolist(), "compared": seen.compared.tolist(), **rows}


def test_the_same_on_one_to_four_processes(gloo_workers: GlooWorkers) -> None:
    (alone,) = gloo_workers.run(1, look)
    for processes in (2, 3, 4):
        for found in gloo_workers.run(processes, look):
            assert found == alone


def test_they_are_the_images_that_sorting_all_would_find() -> None:
    logits, labels = predictions()
    watch = Watch(N, C, torch.device("cpu"))
    for part in torch.arange(N).split(31):
        watch.add(part, labels[part], logits[part], torch.ones(len(part)))
    seen = watch.gather(lambda x: x, lambda x: x)
    p = logits.double().softmax(1)
    confidence, called = p.max(1)
    parts = (confidence * UNIT).round().long()
    wrong = [i for i in range(N) if called[i] != labels[i]]
    surest = sorted(wrong, key=lambda i: (-parts[i].item(), i))[:SHOWN]
    assert seen.mistakes.ids.tolist() == surest
    assert seen.mistakes.classes[:, 0].tolist() == called[surest].tolist()
    least = sorted(range(N), key=lambda i: (parts[i].item(), i))[:SHOWN]
    assert seen.unsure.ids.tolist() == least
    top = p[least].topk(3, dim=1).values
    # Kept to parts of 2**-30.
    np.testing.assert_allclose(seen.unsure.parts / UNIT, top.numpy(), atol=2**-30)
    assert seen.compared[0].tolist() == list(range(N))
    assert seen.compared[2].tolist() == called.tolist()
    assert seen.bins[0].sum() == N
    assert seen.bins[1].sum() == (called == labels).sum()
    edges = np.ceil(confidence.numpy() * BINS).astype(int) - 1
    assert seen.bins[0].tolist() == np.bincount(edges, minlength=BINS).tolist()


def test_of_many_images_a_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_module, "MOST_COMPARED", 50)
    watch = Watch(N, C, torch.device("cpu"))
    logits, labels = predictions()
    watch.add(torch.arange(N), labels, logits, torch.ones(N))
    seen = watch.gather(lambda x: x, lambda x: x)
    assert seen.compared[0].tolist() == list(range(0, N, 5))  # 203 / 50, rounded up
    assert seen.bins[0].sum() == N
    assert len(seen.mistakes.ids) == SHOWN
