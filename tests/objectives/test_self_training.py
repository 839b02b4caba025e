"""Self-training goes by the formulas of its papers, on any number of processes."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from adaptation_toys import adaptation, rows_of_all, shares_of_all, two_domains
from gloo_workers import GlooWorkers
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from objective_toys import given, toy
from torch import Tensor, testing

from tl.arguments import load
from tl.config import Phase
from tl.engine import runtime
from tl.errors import UserError
from tl.freezing import freeze, trainable_names
from tl.objectives import Objective, make_objective
from tl.objectives import pseudo_labels as module
from tl.objectives.objective import Predictions
from tl.objectives.pseudo_labels import nearest_centroids
from tl.objectives.shot import SHOT

Array = NDArray[np.float64]
# Float64 sums in another order.
CLOSE = 1e-10
N = 9
CPU = torch.device("cpu")


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def entropy(p: Array) -> float:
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def logits_of(made: Objective, images: Tensor) -> Array:
    return np.asarray(made.network.model(images).detach().numpy())


# ------------------------------------------------------------------------------------- FixMatch


def fixmatch(**options: Any) -> tuple[Objective, dict[str, Any], dict[str, Tensor], float]:
    """The objective, a batch, what came out, and what was added to cross-entropy."""
    made = adaptation("fixmatch", options)
    with torch.no_grad():  # far apart, so that some are sure
        made.network.model[7].weight.mul_(15)  # type: ignore[index]
    batch = rows_of_all(two_domains(N, strong=True), range(N))
    plain = adaptation("supervised", {})
    plain.network.load_state_dict(made.network.state_dict())
    output = made(batch, 0.3)
    return made, batch, output, (output["loss"] - plain(batch, 0.3)["loss"]).item()


@pytest.mark.parametrize("threshold", [0.0, 0.45, 0.6, 1.0])
def test_fixmatch_adds_the_cross_entropy_of_the_strong_view_where_the_weak_one_is_sure(
    threshold: float,
) -> None:
    made, batch, output, added = fixmatch(strength=0.7, threshold=threshold)
    weak = softmax(logits_of(made, batch["target"]["image"]))
    strong = softmax(logits_of(made, batch["strong"]["image"]))
    sure = [i for i in range(N) if max(weak[i]) >= threshold]
    expected = 0.7 * math.fsum(-math.log(strong[i, weak[i].argmax()]) for i in sure) / N
    assert added == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert output["self_training"].item() == pytest.approx(expected * N, rel=1e-9, abs=1e-12)
    assert output["confident"].item() == len(sure)
    if threshold in (0.45, 0.6):
        assert 0 < len(sure) < N
    assert len(sure) == {0.0: N, 1.0: 0}.get(threshold, len(sure))


def test_the_weak_view_is_a_constant_to_the_gradient() -> None:
    made, batch, output, _ = fixmatch(threshold=0.45)
    images = {name: batch[name]["image"].requires_grad_() for name in ("target", "strong")}
    made(batch, 0.3)["loss"].backward()
    assert (images["target"].grad == 0).all()
    slope = images["strong"].grad
    assert slope is not None
    moved = slope.flatten(1).norm(dim=1) > 0
    assert moved.sum() == output["confident"]


# ------------------------------------------------------------------------------- pseudo-labels


def by_hand(features: Array, p: Array) -> list[int]:
    classes = range(p.shape[1])

    def nearest(centroids: dict[int, Array]) -> list[int]:
        def cosine(f: Array, c: Array) -> float:
            return float(f @ c / np.linalg.norm(f) / np.linalg.norm(c))

        return [max(centroids, key=lambda k: cosine(f, centroids[k])) for f in features]

    soft = {k: sum(w * f for w, f in zip(p[:, k], features, strict=True)) for k in classes}
    labels = nearest({k: np.asarray(c) / p[:, k].sum() for k, c in soft.items()})
    hard = {k: features[np.array(labels) == k].mean(0) for k in classes if k in labels}
    return nearest(hard)


@settings(max_examples=40, deadline=None)
@for_all(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 12), parts=st.integers(1, 3))
def test_pseudo_labels_are_those_of_the_paper_however_images_are_shared(
    seed: int, n: int, parts: int
) -> None:
    draw = np.random.default_rng(seed)
    features, p = draw.normal(size=(n, 4)), softmax(2 * draw.normal(size=(n, 5)))
    assert labels_of(features, p, parts) == by_hand(features, p)


def labels_of(features: Array, p: Array, parts: int) -> list[int]:
    """As of processes that meet at each sum, one after another: `_centroids` is linear in them."""
    shares = np.array_split(np.arange(len(p)), parts)
    sums: list[Tensor] = []
    for _ in range(3):  # each time one more of the sums is that of all
        terms: list[list[Tensor]] = []
        found = []
        for share in shares:
            known, mine = list(sums), []

            def total(part: Tensor, known: list[Tensor] = known, mine: Any = mine) -> Tensor:
                mine.append(part)
                return known[len(mine) - 1] if len(mine) <= len(known) else part

            rows = torch.from_numpy(features[share]), torch.from_numpy(p[share])
            found += nearest_centroids(*rows, CPU, total).tolist()
            terms.append(mine)
        sums = [torch.stack(list(same)).sum(0) for same in zip(*terms, strict=True)]
    return found


def test_pseudo_labels_are_computed_by_blocks_and_the_block_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=draw)
    p = torch.randn(50, 4, generator=draw).softmax(1)
    whole = nearest_centroids(features, p, CPU, lambda x: x)
    monkeypatch.setattr(module, "ROWS", 7)
    assert torch.equal(nearest_centroids(features, p, CPU, lambda x: x), whole)
    assert torch.equal(nearest_centroids(3 * features.half(), p, CPU, lambda x: x)[:9], whole[:9])


def test_well_separated_clusters_get_their_own_label_though_predictions_are_wrong() -> None:
    """What they are for: a third of a cluster that is called by another class follows the rest."""
    directions = torch.eye(3).repeat_interleave(30, 0)
    features = directions + 0.05 * torch.randn(90, 3, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(3).repeat_interleave(30)
    said = torch.where(torch.arange(90) % 3 == 0, (truth + 1) % 3, truth)
    p = torch.nn.functional.one_hot(said, 3) * 0.7 + 0.1
    assert torch.equal(nearest_centroids(features, p, CPU, lambda x: x), truth)


# ---------------------------------------------------------------------------------------- SHOT


def shot(dropout: bool = False, train: str = "freeze_head", **keys: Any) -> SHOT:
    network = toy(0)
    freeze(network, trainable_names(network, train))
    options = keys.pop("options", {"strength": 0.8, "beta": 0.4})
    phase = Phase(name="p", train=train, objective="shot", objective_options=options, **keys)
    made = make_objective(network, phase, given())
    for layer in made.modules():
        if hasattr(layer, "p") and not dropout:
            layer.p = 0.0
    assert isinstance(made, SHOT)
    return made.train()  # type: ignore[return-value]


def told(made: SHOT, labels: list[int], rank: int = 0) -> SHOT:
    """The objective, after it has looked at clear predictions of these labels."""
    mine = torch.arange(len(labels)) if rank == 0 else torch.arange(0)
    wanted = torch.nn.functional.one_hot(torch.tensor(labels), 3).double()[mine]
    total = runtime.start(load(None, [], environ={}).config).all_reduce
    made.take_predictions(Predictions(mine, wanted, wanted, len(labels), CPU, total), 0)
    assert made.labels is not None
    assert made.labels.tolist() == labels
    return made


LABELS = [0, 1, 2, 1, 1, 0, 2, 2, 1, 0, 2]


def target(n: int) -> dict[str, Any]:
    batch: dict[str, Any] = two_domains(n)["target"]
    return batch


def test_shot_is_information_maximisation_and_cross_entropy_with_the_pseudo_labels() -> None:
    made, batch = told(shot(), LABELS[:N]), rows_of_all(target(N), range(N))
    output = made(batch, 0.5)
    p = softmax(logits_of(made, batch["image"]))
    im = 0.8 * (math.fsum(map(entropy, p)) / N - entropy(p.mean(0)))
    cross = 0.4 * math.fsum(-math.log(row[k]) for row, k in zip(p, LABELS, strict=False)) / N
    assert output["im"].item() == pytest.approx(N * im, rel=1e-9)
    assert output["pseudo_labels"].item() == pytest.approx(N * cross, rel=1e-9)
    assert output["loss"].item() == pytest.approx(im + cross, rel=1e-9)


def test_the_gradient_is_that_of_the_formula() -> None:
    made, batch = told(shot(), LABELS[:N]), rows_of_all(target(N), range(N))
    weights = [p for p in made.parameters() if p.requires_grad]

    def loss(*values: Tensor) -> Tensor:
        del values
        found: Tensor = made(batch, 0.5)["loss"]
        return found

    assert torch.autograd.gradcheck(loss, weights)


def test_an_image_that_cannot_be_read_has_no_label_and_adds_nothing_to_their_loss() -> None:
    made, batch = told(shot(), LABELS[:N]), rows_of_all(target(N), range(N))
    assert made.labels is not None
    whole = made(batch, 0.5)["pseudo_labels"].item()
    made.labels[2] = -1
    p = softmax(logits_of(made, batch["image"]))
    lost = -0.4 * math.log(p[2, LABELS[2]])
    assert made(batch, 0.5)["pseudo_labels"].item() == pytest.approx(whole - lost, rel=1e-9)


def test_predictions_that_are_certain_to_the_last_bit_have_a_finite_gradient() -> None:
    """The mean prediction of a class may be 0."""
    made, batch = told(shot(), LABELS[:N]).float(), rows_of_all(target(N), range(N))
    with torch.no_grad():
        made.network.model[7].weight.zero_()  # type: ignore[index]
        made.network.model[7].bias.copy_(torch.tensor([2000.0, 0, -2000]))  # type: ignore[index]
    batch["image"] = batch["image"].float()
    made(batch, 0.5)["loss"].backward()
    slopes = [p.grad for p in made.parameters() if p.grad is not None]
    assert slopes
    assert all(slope.isfinite().all() for slope in slopes)


def test_in_half_precision_the_loss_is_computed_in_float32() -> None:
    made, batch = told(shot(), LABELS[:N]).float(), rows_of_all(target(N), range(N))
    batch["image"] = batch["image"].float()
    exact = made(batch, 0.5)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = made(batch, 0.5)["loss"]
    assert half.dtype == torch.float32
    # Three digits of bf16 in the convolutions.
    testing.assert_close(half, exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("train", ["full", "head", "last_stages(2)", "regex(7.bias)"])
def test_a_phase_that_trains_the_head_is_refused_with_the_remedy(train: str) -> None:
    with pytest.raises(UserError, match=r"leaves the head as the source.*train=freeze_head"):
        shot(train=train)


def test_pseudo_labels_go_through_a_checkpoint_bit_for_bit() -> None:
    made, other = told(shot(), LABELS), shot()
    state = made.own_state()
    assert set(state) == {"labels", "predictions_of"}
    other.load_own_state(state)
    assert other.labels is not None
    assert made.labels is not None
    assert torch.equal(other.labels, made.labels)
    assert other.predictions_of == made.predictions_of == 0
    fresh = shot()
    fresh.load_own_state(fresh.own_state())  # before the first epoch
    assert fresh.labels is None


BATCHES: list[tuple[int, dict[str, int]]] = [
    (11, {"global_batch_size": 11}),
    (3, {"global_batch_size": 8}),
    (11, {"global_batch_size": 13, "gradient_accumulation": 2}),
]


def on_processes() -> list[tuple[dict[str, float], dict[str, Tensor]]]:
    """Of each batch this process's part of what is logged, and the gradient after DDP."""
    here = runtime.start(load(None, [], environ={}).config)
    found = []
    for n, keys in BATCHES:
        made = told(shot(dropout=True, **keys), LABELS, here.rank)
        trained = here.accelerator.prepare(made)
        batches = shares_of_all(target(n), here.rank, here.world_size, made.phase)
        sums: dict[str, float] = {}
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else here.accelerator.no_sync(trained):
                output = trained(batch, 0.3)
                (output["loss"] * here.world_size).backward()
            for key, value in output.items():
                sums[key] = sums.get(key, 0.0) + value.item()
        slopes = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
        found.append((sums, slopes))
    return found


def test_shot_has_the_same_loss_and_gradient_on_1_2_and_4_processes(
    gloo_workers: GlooWorkers,
) -> None:
    [alone] = gloo_workers.run(1, on_processes)
    for world_size in (2, 4):
        together = gloo_workers.run(world_size, on_processes)
        for number, (sums, slopes) in enumerate(alone):
            assert len(slopes) == 4
            parts = [results[number] for results in together]
            for key, value in sums.items():
                assert sum(part[key] for part, _ in parts) == pytest.approx(value, rel=CLOSE), key
            for _, found in parts:
                testing.assert_close(found, slopes, rtol=CLOSE, atol=CLOSE)
