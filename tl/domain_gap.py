"""How far two domains are apart as a linear classifier sees it, and features in the plane.

Functions of features (N, D) and labels (N,) alone, as arrays of NumPy; all in float64. BLAS has one
thread: these are small matrices, and its threads spin while they wait. On two cores, both busy, 66
features of 512 have their principal components in 0.01 s, and with two threads in 1.8 s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

PERPLEXITY = 30.0
"""of t-SNE: about how many neighbours of a point count; less where there are few points"""


def domain_accuracy(source: np.ndarray, target: np.ndarray, seed: int) -> float:
    """How well a linear classifier tells domains from features that it has not seen.

    Each domain is cut into two halves at random. A logistic regression (see `linear_classifier`) in
    which both domains weigh the same learns from one half and is tested on the other, and the other
    way round.

    Args:
        source: (N, D), target: (M, D); of each at least 4.

    Returns:
        The mean of the accuracies on either domain: 1 where it always can tell, 0.5 by chance.
    """
    draw = np.random.default_rng(seed)
    half_of = [np.argsort(draw.permutation(len(x))) % 2 for x in (source, target)]
    x, domain = np.concatenate([source, target]), np.repeat([0, 1], [len(source), len(target)])
    half, right = np.concatenate(half_of), np.zeros(len(x), dtype=bool)
    for held_out in (0, 1):
        learn, test = half != held_out, half == held_out
        classifier = linear_classifier(x[learn], domain[learn], balanced=True)
        right[test] = classifier.predict(x[test]) == domain[test]
    return float(np.mean([right[domain == 0].mean(), right[domain == 1].mean()]))


def proxy_a_distance(accuracy: float) -> float:
    """The proxy A-distance, from 0 (domains alike) to 2, of `domain_accuracy`.

    Ben-David, Blitzer, Crammer and Pereira, "Analysis of Representations for Domain Adaptation",
    NIPS 2006: with e the error of a classifier of domains on what is held out, 2 (1 - 2 e). One
    that is worse than chance there has found nothing: 0.
    """
    return max(0.0, 2 * (1 - 2 * (1 - accuracy)))


def linear_classifier(x: np.ndarray, labels: np.ndarray, balanced: bool = False) -> Any:
    """Logistic regression of features (N, D), standardised first; has ``predict``.

    It minimises the sum of the cross-entropies and half the square of the weights. With
    ``balanced`` each class counts N / classes images, however many there are of it.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weights = "balanced" if balanced else None
    regression = LogisticRegression(class_weight=weights, max_iter=2000)
    with threadpool_limits(1, "blas"):
        return make_pipeline(StandardScaler(), regression).fit(x.astype(np.float64), labels)


def principal_plane(x: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Coordinates (N, 2) on the first two principal components, and their shares of the variance.

    (0, 0) for features that are all the same.
    """
    from sklearn.decomposition import PCA

    x = x.astype(np.float64)
    if not x.std(0).any():
        return np.zeros((len(x), 2)), [0.0, 0.0]
    pca = PCA(2, svd_solver="full")  # no randomness
    with threadpool_limits(1, "blas"):
        return pca.fit_transform(x), pca.explained_variance_ratio_.tolist()


def neighbour_plane(x: np.ndarray, seed: int) -> np.ndarray:
    """Coordinates (N, 2) by t-SNE, begun from the principal components.

    Van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008. Who is near is kept, and
    neither distances between groups nor their sizes mean anything.
    """
    from sklearn.manifold import TSNE

    if not x.std(0).any():
        return np.zeros((len(x), 2))
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    with threadpool_limits(1, "blas"):
        return tsne.fit_transform(x.astype(np.float64)).astype(np.float64)
