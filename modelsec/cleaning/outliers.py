"""Outliers: samples that lie far from the others, whatever their label says.

Both functions give a score per sample, larger for stranger ones. Where to cut is a decision about
cost: how many good samples may be looked at for one stray.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["knn_distance", "mahalanobis"]


def knn_distance(
    x: Tensor, reference: Tensor | None = None, *, k: int = 5, batch_size: int = 500
) -> Tensor:
    """The distance of each sample to its k-th nearest neighbour.

    Args:
        x: (N, ...) inputs or features.
        reference: (M, ...) samples among which to look; None means the other samples of x, so
            that a sample is no neighbour of its own.
        k: which neighbour. A group of k strays or fewer can't hide behind its own members.
        batch_size: rows compared at a time.

    Returns:
        (N,) Euclidean distances.

    Raises:
        ValueError: if there are fewer than k neighbours, or the samples differ in shape.

    References:
        Ramaswamy, Rastogi & Shim (2000), https://doi.org/10.1145/335191.335437.
    """
    among = x if reference is None else reference
    if x.shape[1:] != among.shape[1:]:
        raise ValueError(f"x and reference differ in shape: {x.shape[1:]} and {among.shape[1:]}")
    others = len(among) - (reference is None)
    if not 1 <= k <= others:
        raise ValueError(f"k must be from 1 to {others}, the number of neighbours, got {k}")
    rows, columns = x.flatten(1), among.flatten(1)
    result = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        distance = torch.cdist(part, columns)
        if reference is None:  # out of the way: the zeros of the samples themselves
            own = torch.arange(len(part), device=x.device)
            distance[own, start + own] = float("inf")
        result.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(result) if result else rows.new_zeros(0)


def mahalanobis(x: Tensor, y: Tensor, reference: Tensor, reference_y: Tensor) -> Tensor:
    """Distance to the nearest class mean, in units of the spread within classes.

    One mean per class, one covariance for all of them. With few samples or many dimensions a
    sample covariance can't be inverted safely; Ledoit and Wolf's shrinks it towards a multiple of
    the identity (scikit-learn's is used).

    Args:
        x: (N, D) features, such as :func:`modelsec.training.features` gives.
        y: (N,) given labels: distances are to the mean of the sample's own class.
        reference: (M, D) features that means and covariance are computed from.
        reference_y: (M,) their labels.

    Returns:
        (N,) distances.

    Raises:
        ValueError: if a label of ``y`` has no reference sample, or shapes don't fit.

    References:
        Lee et al. (2018), https://arxiv.org/abs/1807.03888, equation 2, to the given class here;
        Ledoit & Wolf (2004), https://doi.org/10.1016/S0047-259X(03)00096-4.
    """
    from sklearn.covariance import LedoitWolf  # slow to import, so only where it is used

    f, known = reference.detach().double(), reference_y.unique()
    if f.ndim != 2 or x.shape[1:] != f.shape[1:] or y.shape != x.shape[:1]:
        raise ValueError(
            f"need features (N, D) with labels (N,): got {tuple(x.shape)} with {tuple(y.shape)} "
            f"and, as reference, {tuple(f.shape)} with {tuple(reference_y.shape)}"
        )
    if not set(y.unique().tolist()) <= set(known.tolist()):
        raise ValueError("every label of y needs a reference sample with that label")
    means = f.new_zeros(int(known.max()) + 1, f.shape[1])
    for label in known.tolist():
        means[label] = f[reference_y == label].mean(0)
    shrunk = LedoitWolf(assume_centered=True).fit((f - means[reference_y]).cpu().numpy())
    precision = torch.from_numpy(shrunk.precision_).to(f.device)
    rest = x.detach().double() - means[y]
    return (rest @ precision * rest).sum(1).clamp_min(0).sqrt().to(x.dtype)
