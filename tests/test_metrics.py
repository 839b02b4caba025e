"""Metrics of data cut into shares are those of the whole, by torchmetrics and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from tl.metrics import Confusion, Sums, balanced_accuracy, macro_f1, per_class

CPU = torch.device("cpu")
C = 5


def alone(tensor: Tensor) -> Tensor:
    return tensor


def adding(parts: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """The all-reduce of a process, given what the other processes hold."""
    return lambda mine: mine + torch.stack(parts).sum(0) if parts else mine


@st.composite
def shares(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[slice]]:
    """Labels and predictions (N,), and a cut into any number of shares, empty ones too."""
    n = draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels, predictions = torch.randint(0, C, (2, n), generator=generator)
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=6)))
    bounds = [0, *cuts, n]
    return labels, predictions, [slice(a, b) for a, b in pairwise(bounds)]


def counted(labels: Tensor, predictions: Tensor, padding: int = 0) -> Confusion:
    confusion = Confusion(C, CPU)
    weight = torch.cat([torch.ones(len(labels)), torch.zeros(padding)])
    nothing = torch.zeros(padding, dtype=torch.int64)
    confusion.add(torch.cat([labels, nothing]), torch.cat([predictions, nothing]), weight)
    return confusion


@settings(max_examples=100, deadline=None)
@given(shares(), st.integers(0, 3))
def test_the_confusion_matrix_of_shares_is_that_of_the_whole(
    cut: tuple[Tensor, Tensor, list[slice]], padding: int
) -> None:
    labels, predictions, slices = cut
    parts = [counted(labels[s], predictions[s], padding) for s in slices]
    first, *others = parts
    found = first.reduce(adding([part.counts for part in others]))
    assert found.dtype == torch.int64
    assert torch.equal(found, multiclass_confusion_matrix(predictions, labels, num_classes=C))
    theirs = confusion_matrix(labels.numpy(), predictions.numpy(), labels=range(C))
    assert np.array_equal(found.numpy(), theirs)


@settings(max_examples=60, deadline=None)
@given(shares())
def test_many_batches_of_one_process_count_as_one(
    cut: tuple[Tensor, Tensor, list[slice]],
) -> None:
    labels, predictions, slices = cut
    confusion = Confusion(C, CPU)
    for s in slices:
        confusion.add(labels[s], predictions[s], torch.ones(len(labels[s])))
    assert torch.equal(confusion.reduce(alone), counted(labels, predictions).counts)


@settings(max_examples=100, deadline=None)
@given(shares())
def test_per_class_is_scikit_learns(cut: tuple[Tensor, Tensor, list[slice]]) -> None:
    labels, predictions, _ = cut
    precision, recall, f1, support = precision_recall_fscore_support(
        labels.numpy(), predictions.numpy(), labels=range(C), zero_division=0
    )
    rows = per_class(counted(labels, predictions).counts)
    # Precision and recall are one division of the same counts. F1 is not: scikit-learn, too,
    # divides once, but the order of its operations is its own; an ulp of 1 is 2e-16.
    assert [row["precision"] for row in rows] == precision.tolist()
    assert [row["recall"] for row in rows] == recall.tolist()
    assert [row["f1"] for row in rows] == pytest.approx(f1.tolist(), abs=1e-15)
    assert [row["images"] for row in rows] == support.tolist()


@settings(max_examples=100, deadline=None)
@given(shares())
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_macro_f1_and_balanced_accuracy_are_those_of_scikit_learn_and_torchmetrics(
    cut: tuple[Tensor, Tensor, list[slice]],
) -> None:
    labels, predictions, slices = cut
    first, *others = [counted(labels[s], predictions[s]) for s in slices]
    confusion = first.reduce(adding([part.counts for part in others]))
    f1, recall = macro_f1(confusion), balanced_accuracy(confusion)
    # The order of five additions; an ulp of 1 is 2e-16.
    assert f1 == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-15)
    assert recall == pytest.approx(balanced_accuracy_score(labels, predictions), abs=1e-15)
    # torchmetrics divides in float32, whose epsilon is 1.2e-7.
    theirs = multiclass_f1_score(predictions, labels, num_classes=C, average="macro").item()
    assert f1 == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_a_class_without_images_is_zero_and_no_nan() -> None:
    rows = per_class(torch.tensor([[0, 0], [3, 0]]))
    assert rows[0] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 0}
    assert rows[1] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 3}


@settings(max_examples=100, deadline=None)
@given(shares())
def test_accuracy_from_sums_is_torchmetrics(cut: tuple[Tensor, Tensor, list[slice]]) -> None:
    labels, predictions, slices = cut
    processes = []
    for s in slices:
        sums = Sums(CPU)
        correct = (predictions[s] == labels[s]).sum()
        sums.add(correct=correct, images=torch.tensor(len(labels[s])))
        processes.append(sums)
    held: list[Tensor] = []
    first, *others = processes
    for sums in others:
        sums.reduce(lambda mine: held.append(mine) or mine)  # type: ignore[func-returns-value]
    total = first.reduce(adding(held))
    hits = int((predictions == labels).sum())
    assert total == {"correct": float(hits), "images": float(len(labels))}
    theirs = multiclass_accuracy(predictions, labels, num_classes=C, average="micro").item()
    # torchmetrics divides in float32, whose epsilon is 1.2e-7.
    assert total["correct"] / total["images"] == pytest.approx(theirs, rel=2e-7)


def test_sums_are_float64_where_float32_would_stop_counting() -> None:
    sums = Sums(CPU)
    sums.add(images=torch.tensor(2.0**24))  # in float32, 2**24 + 1 is 2**24
    for _ in range(5):
        sums.add(images=torch.tensor(1.0))
    assert sums.reduce(alone) == {"images": 2.0**24 + 5}


def test_sums_start_again_after_they_are_reduced() -> None:
    sums = Sums(CPU)
    sums.add(loss=torch.tensor(2.0))
    sums.add(loss=torch.tensor(3.0), images=torch.tensor(4))
    assert sums.reduce(alone) == {"loss": 5.0, "images": 4.0}
    assert sums.reduce(alone) == {}
    sums.add(loss=torch.tensor(1.0))
    assert sums.reduce(alone) == {"loss": 1.0}


def test_sums_hold_no_graph_and_no_tensor_of_the_caller() -> None:
    sums = Sums(CPU)
    loss = torch.ones((), dtype=torch.float64, requires_grad=True)
    sums.add(loss=loss)
    with torch.no_grad():
        loss.add_(10)
    assert sums.reduce(alone) == {"loss": 1.0}


def test_what_has_been_counted_so_far_is_counted_on_by_any_number_of_processes() -> None:
    """One process takes it over, the others begin at zero, and all know the same names."""
    first = Sums(torch.device("cpu"))
    first.add(loss=torch.tensor(1.5), images=torch.tensor(3))
    so_far = first.so_far(adding([]))
    assert so_far == {"images": 3.0, "loss": 1.5}
    assert first.reduce(adding([])) == so_far  # it goes on counting

    others = [Sums(torch.device("cpu")) for _ in range(2)]
    for rank, sums in enumerate(others):
        sums.start_from(so_far, here=rank == 0)
        sums.add(loss=torch.tensor(0.25), images=torch.tensor(1))
    totals = [sums.so_far(adding([])) for sums in others]
    assert totals[0].keys() == totals[1].keys()
    assert sum(total["images"] for total in totals) == 5.0
    assert sum(total["loss"] for total in totals) == 2.0


def test_what_is_left_out_adds_nothing_even_if_it_is_no_number() -> None:
    sums, bad = Sums(torch.device("cpu")), Sums(torch.device("cpu"))
    bad.add(loss=torch.tensor(float("nan")), images=torch.tensor(2))
    sums.add_all(bad, unless=torch.tensor(True))
    assert sums.so_far(adding([])) == {"images": 0.0, "loss": 0.0}
    good = Sums(torch.device("cpu"))
    good.add(loss=torch.tensor(0.5), images=torch.tensor(2))
    sums.add_all(good, unless=torch.tensor(False))
    assert sums.reduce(adding([])) == {"images": 2.0, "loss": 0.5}
