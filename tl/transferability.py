"""How well features suit labels, without training: LogME, and the accuracy of nearest neighbours.

Functions of features (N, D) and labels (N,) alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_ROUNDS = 1000
"""of the fixed-point iteration; tens are usual"""
TOLERANCE = 1e-12
"""change of the evidence, per image, at which it ends"""
ROWS, COLUMNS = 1024, 8192
"""of a block of similarities: 64 MB in float64"""


def logme(features: Tensor, labels: Tensor) -> float:
    """LogME: log of the maximum evidence, per image, of a Bayesian linear model of the labels.

    You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer
    Learning", ICML 2021. For the indicator y (N,) of a class, with weights w ~ N(0, I / alpha) and
    y ~ N(F w, I / beta), the evidence is (their equation 2)

        L(alpha, beta) = N/2 log beta + D/2 log alpha - N/2 log 2 pi - 1/2 log |A|
                         - beta/2 |F m - y|^2 - alpha/2 |m|^2,
        A = alpha I + beta F'F,    m = beta A^-1 F'y,

    and it is maximised by iterating (their algorithm 1, s being the eigenvalues of F'F)

        gamma = sum_i beta s_i / (alpha + beta s_i),
        alpha <- gamma / |m|^2,    beta <- (N - gamma) / |F m - y|^2.

    LogME is the maximum of L / N, averaged over the classes that occur. All in float64. Of alpha
    and beta only the ratio t = alpha / beta is iterated: m and gamma follow from it, and the best
    beta of a t is N / (|F m - y|^2 + t |m|^2). By that the result is a maximum over beta after
    every round, and has no step in which zero is divided by zero.

    Args:
        features: (N, D), of any floating type, finite.
        labels: (N,) int64.

    Returns:
        The score, the higher the better. It does not change when images are permuted, or features
        rotated or scaled by a constant.
    """
    n = len(features)
    targets = (labels[:, None] == labels.unique()).double()
    s, z2, outside = _spectrum(features, targets)
    largest = float(s.max()) or 1.0
    t = (s.mean() or largest) * torch.ones(1, targets.shape[1], dtype=torch.float64)
    best = torch.full((targets.shape[1],), -math.inf, dtype=torch.float64)
    before = best
    for _ in range(MOST_ROUNDS):
        shrinking = t / (s + t)  # (k, C): the share of each direction that is left as residual
        explained = s / (s + t)
        error = (z2 * shrinking).sum(0) + outside  # |F m - y|^2 + t |m|^2
        # Features that hold the labels exactly would have an infinite evidence.
        beta = n / error.clamp(min=1e-12 * n)
        evidence = (beta.log() - math.log(2 * math.pi) - 1) / 2
        evidence = evidence - torch.log1p(s / t).sum(0) / (2 * n)
        best = torch.maximum(best, evidence)
        if (evidence - before).abs().max() < TOLERANCE:
            break
        before = evidence
        gamma = explained.sum(0)
        left = shrinking.sum(0) + (n - len(s))  # n - gamma, without cancellation
        residual = (z2 * shrinking**2).sum(0) + outside
        norm = (z2 * s / (s + t) ** 2).sum(0)
        ratio = (gamma / left) * (residual / norm)
        # Useless features drive it to infinity, and features that hold the labels to zero.
        ratio = ratio.nan_to_num(math.inf).clamp(1e-15 * largest, 1e15 * largest)
        t = ratio[None]
    return float(best.mean())


def _spectrum(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the evidence depends on, by way of the smaller of F'F and FF'.

    Returns:
        Eigenvalues (k, 1) of it; the squares (k, C) of the targets' coordinates along the left
        singular vectors of the features; and the squared length (C,) of what of the targets lies
        outside of these.
    """
    n, width = features.shape
    counts = targets.sum(0)
    if n <= width:
        f = features.double()
        s, u = torch.linalg.eigh(f @ f.T)
        return s.clamp(min=0)[:, None], (u.T @ targets) ** 2, torch.zeros_like(counts)
    gram = torch.zeros(width, width, dtype=torch.float64)
    with_targets = torch.zeros(width, targets.shape[1], dtype=torch.float64)
    for start in range(0, n, ROWS):
        f = features[start : start + ROWS].double()
        gram += f.T @ f
        with_targets += f.T @ targets[start : start + ROWS]
    s, v = torch.linalg.eigh(gram)
    # What is no more than the rounding of the product is a direction that the features lack.
    there = s > width * torch.finfo(torch.float64).eps * s.max()
    there[-1] = True  # of features that are all zero too there is one left, of length zero
    s, v = s[there].clamp(min=0)[:, None], v[:, there]
    z2 = (v.T @ with_targets) ** 2 / s.clamp(min=torch.finfo(torch.float64).tiny)
    return s, z2, (counts - z2.sum(0)).clamp(min=0)


def knn_accuracy(
    features: Tensor, labels: Tensor, neighbours: int, rows: int = ROWS, columns: int = COLUMNS
) -> float:
    """Leave-one-out accuracy of the nearest neighbours by cosine: exact, in float64.

    The class that most of an image's neighbours have is what it is called; of classes that as many
    have, the one whose neighbours are the more similar in sum.

    Args:
        features: (N, D), of any floating type.
        labels: (N,) int64, from 0.
        neighbours: how many, 1 to N - 1; an image is not its own.
        rows, columns: of the blocks of similarities that are in memory at a time.

    Raises:
        ValueError: there are not as many other images.
    """
    n = len(features)
    if not 1 <= neighbours < n:
        raise ValueError(f"{neighbours} neighbours of {n} images")
    num_classes = int(labels.max()) + 1
    correct = 0
    for start in range(0, n, rows):
        mine = F.normalize(features[start : start + rows].double(), dim=1)
        here = torch.arange(start, start + len(mine))
        similar = torch.empty(len(mine), 0, dtype=torch.float64)
        nearest = torch.empty(len(mine), 0, dtype=torch.int64)
        for first in range(0, n, columns):
            theirs = F.normalize(features[first : first + columns].double(), dim=1)
            ids = torch.arange(first, first + len(theirs))
            block = (mine @ theirs.T).masked_fill(here[:, None] == ids, -math.inf)
            similar = torch.cat([similar, block], 1)
            nearest = torch.cat([nearest, ids.expand(len(mine), -1)], 1)
            similar, places = similar.topk(min(neighbours, similar.shape[1]), dim=1)
            nearest = nearest.gather(1, places)
        # A whole vote each, and less than one in all for the similarities, which part the equal.
        worth = 1 + (similar + 1) / (2 * (neighbours + 1))
        votes = torch.zeros(len(mine), num_classes, dtype=torch.float64)
        votes.scatter_add_(1, labels[nearest], worth)
        correct += int((votes.argmax(1) == labels[start : start + rows]).sum())
    return correct / n
