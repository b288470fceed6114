"""The studies behind the chapter on cleaning: how many wrong labels are found, and what it is worth."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import data, models
from modelsec.cleaning.labels import (
    FitPredict,
    Noisy,
    find_label_issues,
    flip_by_matrix,
    flip_labels,
    logistic,
    network,
    out_of_fold_probabilities,
    self_confidence,
)
from modelsec.training import Perturb, evaluate, fit
from modelsec.zoo.results import study

__all__ = ["PAIRS", "counts", "judge", "nudge", "transition"]

PAIRS = ((4, 9), (7, 1), (3, 5), (8, 3), (5, 6))
_SEEDS = (0, 1, 2, 3, 4)

digits = cache(data.mnist)


def transition(rate: float, pairs: tuple[tuple[int, int], ...] = PAIRS) -> Tensor:
    """A (10, 10) matrix: each pair's first digit is called its second with probability ``rate``.

    Args:
        rate: the probability, 0 to 1.
        pairs: (true digit, what it is called); all other digits keep their label.

    Returns:
        The matrix.
    """
    matrix = torch.eye(10)
    for true, called in pairs:
        matrix[true, true], matrix[true, called] = 1 - rate, rate
    return matrix


def nudge(generator: torch.Generator) -> Perturb:
    """Shift each batch by up to a pixel, as ``perturb`` of ``fit``."""

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        down, across = torch.randint(-1, 2, (2,), generator=generator).tolist()
        return torch.roll(x, (down, across), (2, 3))

    return perturb


def judge(generator: torch.Generator) -> FitPredict:
    """The network that judges labels: a ConvNet, 6 epochs, images nudged by a pixel."""
    return network(
        models.ConvNet,
        epochs=6,
        lr=2e-3,
        batch_size=128,
        perturb=nudge(generator),
        generator=generator,
        progress=False,
    )


def counts(flagged: Tensor, flipped: Tensor) -> dict[str, int]:
    """How many were flagged, how many were wrong, and how many were both.

    Args:
        flagged: (N,) bool.
        flipped: (N,) bool.

    Returns:
        "flagged", "wrong" and "found".
    """
    return {
        "flagged": int(flagged.sum()),
        "wrong": int(flipped.sum()),
        "found": int((flagged & flipped).sum()),
    }


def _accuracy(x: Tensor, y: Tensor, seed: int) -> float:
    """Test accuracy of the zoo's convnet recipe on these training data (n = 1,000)."""
    weights, order = (torch.Generator().manual_seed(100 + seed) for _ in range(2))
    model = models.fresh(models.ConvNet, weights)
    fit(model, x, y, epochs=10, generator=order, progress=False)
    return evaluate(model, digits().x_test, digits().y_test).value


def _cleaning(noisy: Noisy, seed: int) -> dict[str, Any]:
    """All checks on one noisy training set, and the accuracy before, with and after."""
    x, y = digits().x_train, digits().y_train
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    rounds = {
        "logistic": (logistic, None),
        "network": (judge(generator), None),
        "two rounds": (judge(generator), "network"),
    }
    flagged: dict[str, Tensor] = {}
    for name, (fit_predict, before) in rounds.items():
        keep = ~flagged[before] if before else None
        p = out_of_fold_probabilities(x, noisy.labels, fit_predict, keep=keep, generator=generator)
        flagged[name] = find_label_issues(p, noisy.labels)
        off = find_label_issues(p, noisy.labels, prune="off-diagonal")
        found[name] = {
            "noise rate": counts(flagged[name], noisy.flipped),
            "off-diagonal": counts(off, noisy.flipped),
            "disagree": counts(p.argmax(1) != noisy.labels, noisy.flipped),
        }
    kept = ~flagged["two rounds"]
    accuracy = {
        "true labels": _accuracy(x, y, seed),
        "noisy": _accuracy(x, noisy.labels, seed),
        "cleaned": _accuracy(x[kept], noisy.labels[kept], seed),
        "all wrong ones removed": _accuracy(x[~noisy.flipped], y[~noisy.flipped], seed),
    }
    return {"seed": seed, "checks": found, "accuracy": accuracy}


@study(
    "cleaning_symmetric",
    about="A tenth of the training labels of MNIST-5k changed to another digit, any alike: what "
    "confident learning finds, and test accuracy before, with and after (n = 1,000)",
    n=4000,
    seeds=_SEEDS,
)
def cleaning_symmetric(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Symmetric noise, one run per seed."""

    def run(seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        noisy = flip_labels(digits().y_train, 0.1, classes=10, generator=generator)
        return _cleaning(noisy, seed)

    return {"runs": [run(seed) for seed in seeds]}


@study(
    "cleaning_matrix",
    about="A fifth of the 3, 4, 5, 7 and 8 of MNIST-5k's training half given one wrong label each "
    "(3 to 5, 4 to 9, 5 to 6, 7 to 1, 8 to 3): the same measurements",
    n=4000,
    seeds=_SEEDS,
)
def cleaning_matrix(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Class-dependent noise, one run per seed."""

    def run(seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        noisy = flip_by_matrix(digits().y_train, transition(0.2), generator=generator)
        return _cleaning(noisy, seed)

    return {"runs": [run(seed) for seed in seeds]}


@study(
    "cleaning_one_way",
    about="A share of the 400 fours called nines, all others right: how many of the wrong labels "
    "confident learning finds as the share grows",
    n=400,
    seeds=(0, 1, 2),
)
def cleaning_one_way(seeds: tuple[int, ...]) -> dict[str, Any]:
    """One pair of classes, at several rates."""
    x, y = digits().x_train, digits().y_train
    runs = []
    for seed in seeds:
        for rate in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
            generator = torch.Generator().manual_seed(seed)
            noisy = flip_by_matrix(y, transition(rate, ((4, 9),)), generator=generator)
            p = out_of_fold_probabilities(x, noisy.labels, judge(generator), generator=generator)
            flagged = find_label_issues(p, noisy.labels)
            runs.append({"seed": seed, "rate": rate} | counts(flagged, noisy.flipped))
    return {"runs": runs}


@study(
    "cleaning_as_given",
    about="MNIST-5k as it is, all 5,000 samples: which labels are flagged, by how many of the seeds",
    n=5000,
    seeds=_SEEDS,
)
def cleaning_as_given(seeds: tuple[int, ...]) -> dict[str, Any]:
    """The digits' own labels. Indices run over the training half, then the test half."""
    x = torch.cat([digits().x_train, digits().x_test])
    y = torch.cat([digits().y_train, digits().y_test])
    times, own = torch.zeros(len(y)).long(), torch.zeros(len(y))
    likeliest = torch.zeros(len(y), 10)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        p = out_of_fold_probabilities(x, y, judge(generator), generator=generator)
        times += find_label_issues(p, y)
        own += self_confidence(p, y) / len(seeds)
        likeliest += p / len(seeds)
    chosen = times.nonzero()[:, 0]
    chosen = chosen[own[chosen].argsort()]
    return {
        "flagged": [
            {
                "index": i,
                "times": int(times[i]),
                "self_confidence": round(float(own[i]), 4),
                "likeliest": int(likeliest[i].argmax()),
            }
            for i in chosen.tolist()
        ]
    }
