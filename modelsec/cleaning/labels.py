"""Wrong labels: made on purpose, with the truth kept, and found by confident learning.

Confident learning compares each given label with what a model says that was trained without that
sample (out-of-fold probabilities). It first *counts* how often a label i seems to be a j in truth,
with one threshold per class, and only then *prunes* that many samples.

References:
    Northcutt, Jiang & Chuang (2021), Confident learning, https://arxiv.org/abs/1911.00068.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from modelsec.models import ConvNet, fresh
from modelsec.training import Perturb, fit, inference

__all__ = [
    "FitPredict",
    "Noisy",
    "confident_joint",
    "confident_thresholds",
    "find_label_issues",
    "flip_by_matrix",
    "flip_labels",
    "logistic",
    "network",
    "out_of_fold_probabilities",
    "self_confidence",
]

FitPredict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (N, ...), y (N,), new x (M, ...)) -> probabilities (M, K): train on the first two, then predict."""

_TIE = 1e-6  # a probability this close to its threshold counts as having reached it


class Noisy(NamedTuple):
    """Labels with known mistakes.

    Attributes:
        labels: (N,) int64, some of them wrong.
        flipped: (N,) bool, True where the label was changed.
    """

    labels: Tensor
    flipped: Tensor


def flip_labels(
    y: Tensor, rate: float, *, classes: int, generator: torch.Generator | None = None
) -> Noisy:
    """Symmetric noise: change a share of the labels, each to any other class, all equally likely.

    Args:
        y: (N,) true labels, integers in 0..classes-1.
        rate: share of the labels to change, 0 to 1; exactly round(rate * N) are.
        classes: number of classes, at least 2.
        generator: draws which ones, and to what; torch's global one if None.

    Returns:
        The :class:`Noisy` labels. None of the ``flipped`` is true by accident.

    Raises:
        ValueError: for a rate outside [0, 1], fewer than two classes, or labels out of range.
        TypeError: for labels that are no integers.
    """
    _check_labels(y, classes)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be a share from 0 to 1, got {rate}")
    chosen = _draw(torch.randperm, len(y), generator)[: round(rate * len(y))].to(y.device)
    # adding 1 to classes - 1 reaches every other class, and never the true one
    step = _draw(torch.randint, 1, classes, (len(chosen),), generator).to(y.device)
    labels, flipped = y.long().clone(), torch.zeros(len(y), dtype=torch.bool, device=y.device)
    labels[chosen] = (labels[chosen] + step) % classes
    flipped[chosen] = True
    return Noisy(labels, flipped)


def flip_by_matrix(
    y: Tensor, transition: Tensor, *, generator: torch.Generator | None = None
) -> Noisy:
    """Class-dependent noise: draw each label from its class's row of a transition matrix.

    Args:
        y: (N,) true labels, integers in 0..K-1.
        transition: (K, K); entry (i, j) is the probability that a sample of class i gets label j.
        generator: draws the labels; torch's global one if None.

    Returns:
        The :class:`Noisy` labels.

    Raises:
        ValueError: if ``transition`` is not square with rows that are probabilities, or labels
            are out of range.
        TypeError: for labels that are no integers.

    References:
        Northcutt et al. (2021), section 2: noise that depends on the true class alone.
    """
    square = transition.ndim == 2 and transition.shape[0] == transition.shape[1]
    # written so that NaN is refused as well
    if not (square and transition.min() >= 0 and (transition.sum(1) - 1).abs().max() <= 1e-5):
        raise ValueError(
            f"transition must be (K, K) with rows that are probabilities, got {transition}"
        )
    _check_labels(y, len(transition))
    rows = transition.double().to("cpu" if generator is None else generator.device)[y.tolist()]
    if not len(y):
        return Noisy(y.long(), y.bool())
    labels = torch.multinomial(rows, 1, generator=generator)[:, 0].to(y.device)
    return Noisy(labels, labels != y)


def logistic(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """scikit-learn's logistic regression on the pixels, as a :data:`FitPredict`.

    Args:
        x: (N, ...) training inputs.
        y: (N,) labels.
        new: (M, ...) inputs to predict.

    Returns:
        (M, K) probabilities, K = largest label + 1.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, so only where it is used

    model = LogisticRegression(C=0.1, max_iter=200)  # pulled towards 0: a tenth of sklearn's C
    model.fit(x.flatten(1).cpu().numpy(), y.cpu().numpy())
    found = torch.from_numpy(model.predict_proba(new.flatten(1).cpu().numpy())).float()
    full = torch.zeros(len(new), int(y.max()) + 1)
    full[:, torch.from_numpy(model.classes_).long()] = found  # a class without samples stays at 0
    return full.to(new.device)


def network(
    build: Callable[[], nn.Module] = ConvNet,
    *,
    perturb: Perturb | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> FitPredict:
    """A network that is trained afresh at every call, as a :data:`FitPredict`.

    Args:
        build: makes the untrained network.
        perturb: as in :func:`modelsec.training.fit`; say, small shifts.
        generator: draws first weights and order; torch's global one if None.
        options: passed on to ``fit``, such as ``epochs``.

    Returns:
        The function.
    """

    def fit_predict(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
        model = fresh(build, generator).to(x.device)
        fit(model, x, y, perturb=perturb, generator=generator, **options)
        with inference(model), torch.no_grad():
            return torch.cat([model(part).softmax(1) for part in new.split(500)])

    return fit_predict


def out_of_fold_probabilities(
    x: Tensor,
    y: Tensor,
    fit_predict: FitPredict = logistic,
    *,
    folds: int = 5,
    keep: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """What models say about each sample that never saw it: k-fold cross-validation.

    The samples are dealt into ``folds`` parts, every class evenly. Each part is predicted by a
    model trained on the others.

    Args:
        x: (N, ...) inputs.
        y: (N,) given labels, integers from 0.
        fit_predict: trains and predicts; :func:`logistic`, :func:`network` or your own.
        folds: number of parts, 2 or more.
        keep: (N,) bool; False keeps a sample out of all training. It is predicted all the same.
        generator: deals the samples; torch's global one if None.

    Returns:
        (N, K) probabilities on x's device, K = largest label + 1.

    Raises:
        ValueError: for fewer than two folds, or a class with fewer samples than folds, which a
            model would have to predict without having seen it.
        TypeError: for labels that are no integers.
    """
    classes = int(y.max()) + 1 if len(y) else 0
    _check_labels(y, classes)
    if x.shape[:1] != y.shape:
        raise ValueError(f"x and y must go together, got {tuple(x.shape)} and {tuple(y.shape)}")
    used = torch.ones_like(y, dtype=torch.bool) if keep is None else keep
    sizes = y[used].bincount(minlength=classes)
    if folds < 2 or sizes[sizes > 0].min() < folds:
        raise ValueError(
            f"folds must be 2 or more, and no class smaller: got {folds}, classes {sizes.tolist()}"
        )
    fold = torch.empty_like(y)
    shuffled = _draw(torch.randperm, len(y), generator).to(y.device)
    for label in range(classes):  # deal each class's samples like cards
        members = shuffled[y[shuffled] == label]
        fold[members] = torch.arange(len(members), device=y.device) % folds
    result = x.new_zeros(len(y), classes)
    for part in range(folds):
        inside, held = used & (fold != part), fold == part
        found = fit_predict(x[inside], y[inside], x[held])
        result[held, : found.shape[1]] = found.to(result)
    return result


def self_confidence(probabilities: Tensor, y: Tensor) -> Tensor:
    """The probability of each sample's given label: the lower, the more suspect.

    Args:
        probabilities: (N, K) out-of-fold.
        y: (N,) given labels.

    Returns:
        (N,).
    """
    _check_probabilities(probabilities, y)
    return probabilities.gather(1, y.long()[:, None])[:, 0]


def confident_thresholds(probabilities: Tensor, y: Tensor) -> Tensor:
    """One threshold per class: t_j, the mean probability of class j over samples labelled j.

    Args:
        probabilities: (N, K) out-of-fold.
        y: (N,) given labels.

    Returns:
        (K,) float64; infinite for a class without samples.

    References:
        Northcutt et al. (2021), equation 2.
    """
    own = self_confidence(probabilities, y).double()
    classes = probabilities.shape[1]
    sums = torch.zeros(classes, dtype=torch.float64, device=own.device).index_add(0, y.long(), own)
    means = sums / y.bincount(minlength=classes)  # 0 / 0 is NaN
    # a threshold of 0 would be reached by everything
    return means.clamp_min(2 * _TIE).nan_to_num(nan=float("inf"))


def confident_joint(probabilities: Tensor, y: Tensor) -> Tensor:
    """Count the samples with label i that are confidently a j.

    A sample counts if some class reaches its threshold: for the likeliest such class.

    Args:
        probabilities: (N, K) out-of-fold.
        y: (N,) given labels.

    Returns:
        (K, K) int64, given label by supposed true class. It sums to N or less.

    References:
        Northcutt et al. (2021), equation 1.
    """
    guess, sure = _confident_guess(probabilities, y)
    classes = probabilities.shape[1]
    pairs = y.long()[sure] * classes + guess[sure]
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def find_label_issues(
    probabilities: Tensor,
    y: Tensor,
    *,
    prune: Literal["noise rate", "off-diagonal"] = "noise rate",
) -> Tensor:
    """Samples whose label is probably wrong.

    Args:
        probabilities: (N, K) out-of-fold.
        y: (N,) given labels.
        prune: "off-diagonal" flags what the confident joint counts off its diagonal. "noise
            rate" scales each row of the joint to the size of its class, and for each pair (i, j)
            flags that many samples labelled i, those with the largest p_j - p_i.

    Returns:
        (N,) bool. A sample whose given label is also the likeliest is never flagged.

    Raises:
        ValueError: for shapes that don't fit, values outside [0, 1], or another ``prune``.
        TypeError: for labels that are no integers.

    References:
        Northcutt et al. (2021), section 3.2, methods 2 and 4.
    """
    if prune not in ("noise rate", "off-diagonal"):
        raise ValueError(f'prune must be "noise rate" or "off-diagonal", got {prune!r}')
    guess, sure = _confident_guess(probabilities, y)
    if prune == "off-diagonal":
        flagged = sure & (guess != y)
    else:
        flagged = torch.zeros_like(y, dtype=torch.bool)
        counts = _calibrated(confident_joint(probabilities, y), y)
        for i, j in (counts > 0).nonzero().tolist():
            if i != j:
                members = (y == i).nonzero()[:, 0]
                margin = probabilities[members, j] - probabilities[members, i]
                flagged[members[margin.topk(int(counts[i, j])).indices]] = True
    best = probabilities.amax(1)
    return flagged & (self_confidence(probabilities, y) < best - _TIE)


def _confident_guess(probabilities: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest class of those that reach their threshold (N,), and whether any does (N,)."""
    reached = probabilities >= confident_thresholds(probabilities, y) - _TIE
    return probabilities.where(reached, -1.0).argmax(1), reached.any(1)


def _calibrated(joint: Tensor, y: Tensor) -> Tensor:
    """The joint with each row scaled to its class's size, in whole numbers (largest remainders)."""
    joint = joint.double()
    joint.diagonal().clamp_(min=1)  # at least one label of every class is taken to be right
    exact = joint / joint.sum(1, keepdim=True) * y.bincount(minlength=len(joint))[:, None]
    whole = exact.floor()
    missing = (exact.sum(1) - whole.sum(1)).round().long()
    # rank 0 for the largest remainder; of equal ones the last class goes first, as in cleanlab
    remainder = (exact - whole).round(decimals=9).flip(1)
    rank = remainder.argsort(dim=1, descending=True, stable=True).argsort(dim=1).flip(1)
    return (whole + (rank < missing[:, None])).long()


def _draw(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Call with the last argument as generator, on the generator's own device."""
    *rest, generator = args
    device = "cpu" if generator is None else generator.device
    return function(*rest, generator=generator, device=device)


def _check_labels(y: Tensor, classes: int) -> None:
    if y.ndim != 1:
        raise ValueError(f"y must be (N,) class indices, got shape {tuple(y.shape)}")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"y must hold integer class indices, got {y.dtype}: use y.long()")
    if classes < 2 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes):
        seen = f"{int(y.min())} to {int(y.max())}" if len(y) else "none"
        raise ValueError(f"y must hold classes 0 to K-1 with K >= 2, got {seen} for K = {classes}")


def _check_probabilities(probabilities: Tensor, y: Tensor) -> None:
    if probabilities.ndim != 2 or len(probabilities) != len(y):
        raise ValueError(
            f"probabilities must be (N, K), one row per label: got shapes "
            f"{tuple(probabilities.shape)} and {tuple(y.shape)}"
        )
    _check_labels(y, probabilities.shape[1])
    if len(y) and not (probabilities.min() >= 0 and probabilities.max() <= 1 + _TIE):
        raise ValueError("probabilities must lie in [0, 1] without NaN: apply softmax to logits")
