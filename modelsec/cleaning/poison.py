"""Finding planted samples by a network's features: spectral signatures, activation clustering.

Each detector gives every sample a score, higher where it is more suspicious. Deciding is a second
step with a function of its own, because that is where assumptions enter: how much poison there
may be, how small a suspicious cluster is, how many clean samples one is ready to lose.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelsec.training import inference

__all__ = [
    "Clusters",
    "activation_clustering",
    "flag_clusters",
    "flag_top",
    "reclassify",
    "spectral_signatures",
    "whiten",
]

Model = Callable[[Tensor], Tensor]
Array = NDArray[np.float64]


def spectral_signatures(features: Tensor, y: Tensor) -> Tensor:
    """Outlier scores along the direction in which a class's features vary most.

    For the n samples of a class, with mean feature ``R_mean``, let v be the top right singular
    vector of the matrix of centred features; then ``tau_i = ((R(x_i) - R_mean) . v)^2``. Scores
    of different classes are not on one scale: compare them within a class.

    Args:
        features: (N, D) float, R(x_i), such as :func:`modelsec.training.features` gives.
        y: (N,) integer labels as they stand in the training set.

    Returns:
        (N,) float64 scores tau, 0 for a class of one sample.

    Raises:
        TypeError: if features are not floating point or y is not integer.
        ValueError: if shapes don't fit, or features are NaN or infinite.

    References:
        Tran, Li & Madry (2018), https://arxiv.org/abs/1811.00636, algorithm 1.
    """
    y = _check_features(features, y)
    scores = torch.zeros(len(y), dtype=torch.float64, device=features.device)
    for c in y.unique():
        rows = y == c
        centred = features[rows].detach().double()
        centred = centred - centred.mean(0)
        v = torch.linalg.svd(centred, full_matrices=False).Vh[0]
        scores[rows] = (centred @ v) ** 2
    return scores


def whiten(
    features: Tensor, y: Tensor, clean: Tensor, y_clean: Tensor, *, ridge: float = 0.1
) -> Tensor:
    """Rescale each class's features so that clean samples of it vary alike in all directions.

    What varies a lot in clean samples is made small, so that a planted group which moved along a
    quiet direction becomes the largest thing that is left. With mean m and covariance S of the
    class's clean samples, features become ``(S + ridge * mean(diag S) * I)^(-1/2) (R(x) - m)``.

    Args:
        features: (N, D) float, of the data under suspicion.
        y: (N,) their labels.
        clean: (M, D) features of trusted samples; a few dozen of each class are enough.
        y_clean: (M,) their labels.
        ridge: share of the mean variance added in every direction: fewer samples than dimensions
            leave some directions without any.

    Returns:
        (N, D) float64.

    Raises:
        TypeError: if features are not floating point or labels not integer.
        ValueError: if shapes don't fit, features are NaN or infinite, ridge is not positive, or a
            class of ``y`` has fewer than two clean samples, or only equal ones.

    References:
        The idea is that of Hayase et al. (2021), https://arxiv.org/abs/2104.11315, who need no
        trusted samples: they estimate the covariance robustly from the poisoned data themselves.
    """
    y, y_clean = _check_features(features, y), _check_features(clean, y_clean)
    if ridge <= 0 or features.shape[1] != clean.shape[1]:
        raise ValueError(f"need ridge > 0 and as many features in clean as in features: {ridge}")
    white = torch.zeros_like(features, dtype=torch.float64)
    for c in y.unique():
        trusted = clean[y_clean == c].detach().double()
        mean = trusted.mean(0)
        s = (trusted - mean).T @ (trusted - mean) / max(len(trusted), 1)
        if not bool(s.diagonal().sum() > 0):
            raise ValueError(f"class {int(c)} needs two different clean samples or more")
        s.diagonal().add_(ridge * s.diagonal().mean())
        variance, axes = torch.linalg.eigh(s)
        centred = features[y == c].detach().double() - mean
        white[y == c] = centred @ (axes * variance**-0.5) @ axes.T
    return white


def flag_top(scores: Tensor, y: Tensor, *, eps: float, factor: float = 1.5) -> Tensor:
    """Flag the samples with the highest scores of each class: a share ``factor * eps`` of it.

    That many are flagged in every class, poisoned or not; samples that tie with one that stays
    stay as well, so that the order of the data decides nothing.

    Args:
        scores: (N,) higher is more suspicious.
        y: (N,) integer labels.
        eps: the share of a class that is assumed to be poisoned at most, 0 to 1. An assumption:
            it can't be measured from the data.
        factor: how much more than that to remove.

    Returns:
        (N,) bool.

    Raises:
        TypeError: if y is not integer.
        ValueError: if shapes don't fit, a score is NaN, eps outside 0 to 1, or factor negative.

    References:
        Tran, Li & Madry (2018), https://arxiv.org/abs/1811.00636, algorithm 1 (factor 1.5).
    """
    y = _check_features(scores[:, None], y)
    if not 0 <= eps <= 1 or factor < 0:
        raise ValueError(f"need eps in [0, 1] and factor >= 0, got {eps} and {factor}")
    flagged = torch.zeros(len(y), dtype=torch.bool, device=scores.device)
    for c in y.unique():
        rows = y == c
        mine = scores[rows]
        count = min(int(factor * eps * len(mine)), len(mine) - 1)  # never a whole class
        flagged[rows] = mine > mine.sort(descending=True).values[count]
    return flagged


@dataclass(frozen=True, eq=False)
class Clusters:
    """Each class cut in two.

    Attributes:
        scores: (N,) float64: distance to the centre of the class's larger cluster minus distance to
            that of the smaller one; positive inside the smaller one.
        smaller: (N,) bool, True for the samples of the smaller cluster of their class.
        share: for each class the share of its samples that is in the smaller cluster.
        silhouette: for each class how well apart the two are, -1 to 1.
    """

    scores: Tensor
    smaller: Tensor
    share: dict[int, float]
    silhouette: dict[int, float]


def activation_clustering(
    features: Tensor,
    y: Tensor,
    *,
    components: int = 10,
    reduce: Literal["ica", "pca"] = "ica",
    seed: int = 0,
) -> Clusters:
    """Cut the features of each class in two by 2-means, after reducing them to a few components.

    If a class holds poison, its samples got there for two reasons: what they show, and the mark
    that they carry. The two are expected to fall apart in the features. A class without poison is
    cut in two as well; :func:`flag_clusters` and :func:`reclassify` tell the cases apart.

    The rows are put in an order of their own first, so that the order of the data decides nothing.

    Args:
        features: (N, D) float, such as :func:`modelsec.training.features` gives.
        y: (N,) integer labels as they stand in the training set.
        components: how many dimensions to keep (fewer where a class has not so many).
        reduce: "ica", independent components, as in the paper; "pca", those of most variance.
        seed: starts the two algorithms.

    Returns:
        The :class:`Clusters`. A class with fewer than two different samples is not cut.

    Raises:
        TypeError: if features are not floating point or y is not integer.
        ValueError: if shapes don't fit, features are NaN or infinite, components below 1, or
            ``reduce`` is another word.

    References:
        Chen et al. (2018), https://arxiv.org/abs/1811.03728.
    """
    from sklearn.metrics import silhouette_score  # imported late: it takes a second

    y = _check_features(features, y)
    if components < 1 or reduce not in ("ica", "pca"):
        raise ValueError(f'need components >= 1, reduce "ica" or "pca": {components}, {reduce!r}')
    scores, smaller = torch.zeros(len(y), dtype=torch.float64), torch.zeros(len(y)).bool()
    share: dict[int, float] = {}
    silhouette: dict[int, float] = {}
    for c in y.unique().tolist():
        rows = (y == c).cpu()
        table = features[rows.to(features.device)].detach().double().cpu().numpy()
        order = np.lexsort(table.T)
        reduced = _reduce(table[order], components, reduce, seed)
        share[c], silhouette[c] = 0.0, 0.0
        if not reduced.shape[1]:  # all samples of the class are the same
            continue
        distance = _two_means(reduced, seed)  # (n, 2), to the centres of the larger and smaller
        inside = distance[:, 1] < distance[:, 0]
        back = np.argsort(order)
        scores[rows] = torch.from_numpy((distance[:, 0] - distance[:, 1])[back])
        smaller[rows] = torch.from_numpy(inside[back])
        share[c] = float(inside.mean())
        if len(table) > 2:
            silhouette[c] = float(silhouette_score(reduced, inside))
    home = features.device
    return Clusters(scores.to(home), smaller.to(home), share, silhouette)


def _reduce(table: Array, components: int, reduce: str, seed: int) -> Array:
    """(n, D) -> (n, k), k at most ``components`` and the rank; 0 columns if all rows are equal."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    u, s, _ = np.linalg.svd(table - table.mean(0), full_matrices=False)
    k = min(components, int((s > 1e-9 * max(1.0, float(np.abs(table).max()))).sum()))
    if reduce == "pca" or k < 2:
        projected: Array = u[:, :k] * s[:k]
        return projected
    white = u[:, :k] * len(table) ** 0.5  # uncorrelated, variance 1: what is left is a rotation
    ica = FastICA(whiten=False, max_iter=1000, tol=0.005, random_state=seed)
    with warnings.catch_warnings():  # not converged, it still is a rotation of the components
        warnings.simplefilter("ignore", ConvergenceWarning)
        rotated: Array = ica.fit_transform(white)
    return rotated


def _two_means(points: Array, seed: int) -> Array:
    """Distances (n, 2) to the centres of the larger and the smaller of two clusters."""
    from sklearn.cluster import KMeans

    means: Any = KMeans(2, n_init=10, random_state=seed).fit(points)
    distance: Array = means.transform(points)
    sizes = np.bincount(means.labels_, minlength=2)
    return distance[:, ::-1] if sizes[0] < sizes[1] else distance


def flag_clusters(
    clusters: Clusters, y: Tensor, *, max_share: float = 0.35, min_silhouette: float = 0.1
) -> Tensor:
    """Flag the smaller cluster of each class in which it is small and well apart.

    Args:
        clusters: what :func:`activation_clustering` found.
        y: (N,) the labels it was given.
        max_share: a cluster with this share of its class or more is taken for a way of writing.
        min_silhouette: a cut below this is taken for arbitrary.

    Returns:
        (N,) bool.

    References:
        Chen et al. (2018), https://arxiv.org/abs/1811.03728; the default numbers are those of the
        Adversarial Robustness Toolbox.
    """
    suspects = [
        c
        for c, share in clusters.share.items()
        if share < max_share and clusters.silhouette[c] > min_silhouette
    ]
    home = clusters.smaller.device
    return clusters.smaller & torch.isin(
        y.to(home), torch.tensor(suspects, dtype=torch.long).to(home)
    )


def reclassify(
    model: Model, x: Tensor, y: Tensor, suspects: Tensor, *, threshold: float = 1.0
) -> Tensor:
    """Flag the suspects of each class to which a model that never saw them gives another label.

    Exclusionary reclassification: train a model without the suspects, then let it read them. Let l
    be how many of a class's suspects get their own label, and p how many get the most frequent
    other one. Clean samples get their own label, so l / p is large; planted ones get the class
    that they show.

    Args:
        model: trained on the data without the suspects.
        x: (N, ...) all inputs.
        y: (N,) integer labels as they stand in the training set.
        suspects: (N,) bool, such as the smaller clusters of all classes.
        threshold: a class's suspects are flagged if l / p is at most this.

    Returns:
        (N,) bool, a part of ``suspects``.

    Raises:
        ValueError: if the shapes don't fit, or suspects are not bool.

    References:
        Chen et al. (2018), https://arxiv.org/abs/1811.03728.
    """
    if y.shape != x.shape[:1] or suspects.shape != y.shape or suspects.dtype != torch.bool:
        raise ValueError(
            f"y and suspects (bool) must have shape ({len(x)},), got {tuple(y.shape)} and "
            f"{tuple(suspects.shape)} ({suspects.dtype})"
        )
    flagged = torch.zeros_like(suspects)
    for c in y[suspects].unique():
        mine = suspects & (y == c)
        with inference(model), torch.no_grad():
            votes = torch.cat([model(batch).argmax(1) for batch in x[mine].split(500)]).bincount()
        own = int(votes[c]) if c < len(votes) else 0
        votes[c : c + 1] = 0
        other = int(votes.max())
        if other and own <= threshold * other:
            flagged |= mine
    return flagged


def _check_features(features: Tensor, y: Tensor) -> Tensor:
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError("features and scores must be floating-point tensors")
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError("y must be a tensor of integer class indices: use y.long()")
    if features.dim() != 2 or y.shape != features.shape[:1]:
        raise ValueError(
            f"need (N, D) and N labels, got shapes {tuple(features.shape)} and {tuple(y.shape)}"
        )
    if not bool(features.isfinite().all()):
        raise ValueError("features and scores must be finite, some are NaN or infinite")
    return y.long().to(features.device)
