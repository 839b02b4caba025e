"""mixup and CutMix: shares of the papers' distributions, the same for an image in any cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_toys import SIZE, C, objective, rows, whole_batch

from tl.data.sampler import share_of_pairs
from tl.models.dropout import image_keys
from tl.objectives.mixing import box, mixed, symmetric_beta, uniforms


def draws(count: int, numbers: int = 2) -> torch.Tensor:
    return uniforms(image_keys(5, 1, torch.arange(count)), numbers)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 3.0, 50.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    u, v = draws(20_000).unbind(1)
    found = symmetric_beta(alpha, u, v).numpy()
    assert ((found >= 0) & (found <= 1)).all()
    # The distance that 1 of 10,000 samples of the right distribution exceeds.
    far = scipy.stats.kstwo.isf(1e-4, len(found))
    assert scipy.stats.kstest(found, scipy.stats.beta(alpha, alpha).cdf).statistic < far


def test_uniform_values_are_uniform_and_unrelated() -> None:
    found = draws(20_000, 5).numpy()
    far = scipy.stats.kstwo.isf(1e-4, len(found))
    for column in found.T:
        assert scipy.stats.kstest(column, "uniform").statistic < far
    # A correlation of unrelated values has a standard deviation of 1 / sqrt(20,000) = 0.007.
    assert np.abs(np.corrcoef(found.T) - np.eye(5)).max() < 0.04


@pytest.mark.parametrize("alpha", [1e-3, 1e6])
def test_extreme_shares_are_numbers(alpha: float) -> None:
    found = symmetric_beta(alpha, *draws(1000).unbind(1))
    assert ((found >= 0) & (found <= 1)).all()


def test_mixup_blends_images_and_labels_by_one_share() -> None:
    batch = rows(whole_batch(5), range(5))
    found, targets = mixed(batch, 0.7, 0.0, C)
    before, after, labels = batch["image"], found["image"], batch["label"]
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 4)):
        moved, apart = (after[i] - before[j]).flatten(), (before[i] - before[j]).flatten()
        share = 1.0 if i == j else (moved @ apart / (apart @ apart)).item()
        expected = share * before[i] + (1 - share) * before[j]
        torch.testing.assert_close(after[i], expected, rtol=1e-12, atol=1e-12)
        shares = torch.zeros(C, dtype=torch.float64)
        shares[labels[i]] += share
        shares[labels[j]] += 1 - share
        torch.testing.assert_close(targets[i], shares, rtol=1e-9, atol=1e-9)
        assert found["label"][i] == (labels[i] if share >= 0.5 else labels[j])


def test_cutmix_pastes_a_box_and_counts_its_area() -> None:
    batch = rows(whole_batch(40), range(40))
    found, targets = mixed(batch, 0.0, 1.0, C)
    before, labels, mate = batch["image"], batch["label"], batch["mate"]
    pasted = (found["image"] != before).any(1)
    assert pasted.flatten(1).any(1).sum() > 20
    for i, j in enumerate(mate.tolist()):
        inside = pasted[i]
        assert torch.equal(found["image"][i][:, inside], before[j][:, inside])
        assert torch.equal(inside, pasted[j])
        down, across = inside.any(1), inside.any(0)
        assert torch.equal(inside, down[:, None] & across)  # a box
        share = 1 - inside.double().mean().item()
        shares = torch.zeros(C, dtype=torch.float64)
        shares[labels[i]] += share
        shares[labels[j]] += 1 - share
        torch.testing.assert_close(targets[i], shares, rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 0.999999), st.floats(0, 0.999999))
def test_a_box_is_that_of_the_papers_code(share: float, u: float, v: float) -> None:
    height, width = 13, 20
    lam, x, y = (torch.tensor([value], dtype=torch.float64) for value in (share, u, v))
    inside, left = box(lam, x, y, torch.Size((height, width)))
    # As in rand_bbox: sizes and centre are whole numbers, the corners are clipped.
    cut = np.sqrt(1.0 - share)
    cut_w, cut_h, cx, cy = int(width * cut), int(height * cut), int(u * width), int(v * height)
    x1, x2 = (int(np.clip(cx + side * (cut_w // 2), 0, width)) for side in (-1, 1))
    y1, y2 = (int(np.clip(cy + side * (cut_h // 2), 0, height)) for side in (-1, 1))
    expected = torch.zeros(height, width, dtype=torch.bool)
    expected[y1:y2, x1:x2] = True
    assert torch.equal(inside[0], expected)
    assert left.item() == pytest.approx(1 - (x2 - x1) * (y2 - y1) / (width * height))


def test_with_both_each_pair_gets_one_of_them() -> None:
    batch = rows(whole_batch(60), range(60))
    both, _ = mixed(batch, 0.7, 1.0, C)
    alone = [mixed(batch, 0.7, 0.0, C)[0], mixed(batch, 0.0, 1.0, C)[0]]
    chosen = []
    for i, j in enumerate(batch["mate"].tolist()):
        same = [torch.equal(both["image"][i], one["image"][i]) for one in alone]
        assert any(same)
        chosen.append(same[0])
        assert same[0] == torch.equal(both["image"][j], alone[0]["image"][j])
    assert 10 < sum(chosen) < 50


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5))
def test_an_image_is_mixed_alike_however_the_batch_is_cut(n: int, parts: int) -> None:
    batch = whole_batch(n)
    whole, targets = mixed(rows(batch, range(n)), 0.4, 1.0, C)
    for part in range(parts):
        chosen = range(n)[share_of_pairs(n, part, parts)]
        if chosen:
            found, theirs = mixed(rows(batch, chosen), 0.4, 1.0, C)
            assert torch.equal(found["image"], whole["image"][list(chosen)])
            assert torch.equal(found["label"], whole["label"][list(chosen)])
            assert torch.equal(theirs, targets[list(chosen)])


def test_accuracy_is_against_the_label_with_the_larger_share() -> None:
    made = objective("supervised", mixup=0.7)
    batch = rows(whole_batch(20), range(20))
    output = made(batch, 0.0)
    seen, targets = mixed(batch, 0.7, 0.0, C)
    made.network.eval()
    called = made.network(seen["image"]).argmax(1)
    assert output["accuracy"].item() == (called == seen["label"]).sum().item()
    logits = made.network(seen["image"])
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_mixing_needs_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(*_: Any, **__: Any) -> Any:
        raise AssertionError("the host waits for the device")

    batch = rows(whole_batch(6), range(6))
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    found, _ = mixed(batch, 0.4, 1.0, C)
    assert found["image"].shape == (6, 3, SIZE, SIZE)
