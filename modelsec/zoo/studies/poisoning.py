"""The long results of the chapter on poisoning: success against rate, and what detectors see of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from modelsec import models
from modelsec.attacks.clean_label import gradient_matching
from modelsec.attacks.poisoning import Poisoned, attack_success, flip
from modelsec.cleaning.entropy import strip
from modelsec.cleaning.labels import (
    flip_labels,
    network,
    out_of_fold_probabilities,
    self_confidence,
)
from modelsec.cleaning.poison import activation_clustering, spectral_signatures, whiten
from modelsec.training import evaluate, features
from modelsec.zoo.results import study
from modelsec.zoo.studies.poison import train
from modelsec.zoo.studies.poisoned import TRIGGERS, digits, planted, stamp, target, victim

__all__ = [
    "BUDGETS",
    "FLIPS",
    "PAIR",
    "RATES",
    "doubted",
    "doubts",
    "flipped",
    "matched",
    "net",
    "one_backdoor",
    "one_flip",
    "one_victim",
    "own_networks",
    "seen",
    "victims",
]

RATES = dict.fromkeys(TRIGGERS, (0.001, 0.0025, 0.01, 0.02, 0.05))
"""Shares of the 4,000 training images: from 4 images to 200."""
FLIPS = (0.01, 0.02, 0.05, 0.1)
"""The same for flipped labels."""
PAIR = (4, 9)
"""The targeted flips: fours are called nines."""
BUDGETS = {"near": (40,), "random": (40,)}
"""How many poisons gradient matching gets, for the two choices of a target class."""
_EPS, _STEPS, _VICTIMS = 0.3, 60, 4
_DOUBTED = 0.02  # the rate at which confident learning is asked
_TRUSTED = 500  # the first half of the test images: clean samples that the detectors are given


def net(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """The book's 784-128-64-10 network, ten epochs: where many trainings are needed.

    Args:
        x: (N, 1, 28, 28) images.
        y: (N,) labels.
        seed: for the first weights and the order of the data.

    Returns:
        The network, in eval mode.
    """
    return train(x, y, seed, models.Net, epochs=10, batch_size=64, lr=1e-3)


def seen(model: nn.Module, poisoned: Poisoned, called: int, seed: int) -> dict[str, float]:
    """How well four detectors order the images that carry the target's label.

    Args:
        model: trained on the poisoned data.
        poisoned: the data.
        called: the target class.
        seed: for the detectors' draws.

    Returns:
        The AUROC of each detector: 1 if all planted images come first, 0.5 for a coin. Images that
        only cover the trigger count neither way.
    """
    among = poisoned.y == called
    if poisoned.cover is not None:
        among &= ~poisoned.cover
    x, y, truth = poisoned.x[among], poisoned.y[among], poisoned.mask[among]
    trusted, labels = digits().x_test[:_TRUSTED], digits().y_test[:_TRUSTED]
    found, clean = features(model, x), features(model, trusted)
    overlays = trusted[: _TRUSTED // 2]
    scores = {
        "spectral": spectral_signatures(found, y),
        "whitened": spectral_signatures(whiten(found, y, clean, labels), y),
        "clustering": activation_clustering(found, y, seed=seed).scores,
        "STRIP": strip(model, x, overlays, generator=torch.Generator().manual_seed(seed)),
    }
    return {name: float(roc_auc_score(truth, score)) for name, score in scores.items()}


def doubts(poisoned: Poisoned, among: Tensor, seed: int) -> float:
    """How well confident learning orders some of the images: by what out-of-fold networks doubt.

    Args:
        poisoned: the data.
        among: (N,) bool, the images to order.
        seed: for the folds and the networks.

    Returns:
        The AUROC of minus the self-confidence.
    """
    generator = torch.Generator().manual_seed(seed)
    judge = network(
        models.Net, epochs=5, batch_size=128, lr=2e-3, generator=generator, progress=False
    )
    p = out_of_fold_probabilities(poisoned.x, poisoned.y, judge, generator=generator)
    score = -self_confidence(p, poisoned.y)
    return float(roc_auc_score(poisoned.mask[among], score[among]))


def one_backdoor(name: str, rate: float, seed: int) -> dict[str, Any]:
    """Plant one backdoor, train on it, measure, and ask the detectors.

    Args:
        name: one of :data:`~modelsec.zoo.studies.poisoned.TRIGGERS`.
        rate: share of the training set.
        seed: of the run.

    Returns:
        "accuracy" (n = 1,000), "success" (of the 900 test images of other classes), "seen" (the
        AUROC of each detector, at the highest rate).
    """
    poisoned, called = planted(name, rate, seed), target(seed)
    model = victim(poisoned, seed)
    x, y = digits().x_test, digits().y_test
    success = attack_success(model, x, y, trigger=stamp(name, seed), target=called)
    return {
        "accuracy": evaluate(model, x, y).hits,
        "success": success.hits,
        "seen": seen(model, poisoned, called, seed) if rate == max(RATES[name]) else {},
    }


@study(
    "poisoning_backdoors",
    about="Four backdoors planted in the 4,000 training digits at several rates: accuracy, attack "
    "success, and what the detectors of the cleaning chapter see",
    n=900,
    seeds=(0, 1, 2),
)
def poisoning_backdoors(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every attack at every rate; hits of 1,000 and of 900."""
    return {
        name: {
            str(rate): [one_backdoor(name, rate, seed) for seed in seeds] for rate in RATES[name]
        }
        for name in TRIGGERS
    }


def flipped(kind: str, rate: float, seed: int) -> Poisoned:
    """The training digits with false labels and untouched images.

    Args:
        kind: "any" digit called any other, or "pair": fours called nines.
        rate: share of all labels.
        seed: draws the labels.

    Returns:
        The poisoned data.
    """
    x, y = digits().x_train, digits().y_train
    generator = torch.Generator().manual_seed(seed)
    if kind == "pair":
        return flip(x, y, rate=rate, source=PAIR[0], target=PAIR[1], generator=generator)
    noisy = flip_labels(y, rate, classes=10, generator=generator)
    return Poisoned(x, noisy.labels, noisy.flipped)


def one_flip(kind: str, rate: float, seed: int) -> dict[str, int]:
    """Flip labels, train the small network, measure.

    Args:
        kind: as for :func:`flipped`.
        rate: share of all labels.
        seed: of the run.

    Returns:
        "accuracy" (hits of 1,000) and "success" (of the 100 fours, how many are read as nines).
    """
    x, y = digits().x_test, digits().y_test
    poisoned = flipped(kind, rate, seed)
    model = net(poisoned.x, poisoned.y, seed)
    turned = attack_success(model, x, y, trigger=None, target=PAIR[1], source=PAIR[0])
    return {"accuracy": evaluate(model, x, y).hits, "success": turned.hits}


def doubted(name: str, seed: int) -> float:
    """:func:`doubts` about flips or a backdoor at a rate of 2%.

    Args:
        name: "any" or "pair" for flips, among all images; or a trigger's name, among those that
            carry the target's label.
        seed: of the run.

    Returns:
        The AUROC.
    """
    if name not in TRIGGERS:
        case = flipped(name, _DOUBTED, seed)
        return doubts(case, torch.ones_like(case.mask), seed)
    case = planted(name, _DOUBTED, seed)
    among = case.y == target(seed)
    return doubts(case, among if case.cover is None else among & ~case.cover, seed)


@study(
    "poisoning_flips",
    about="Labels flipped in the 4,000 training digits, any to any or fours to nines: accuracy, "
    "fours read as nines, and what confident learning sees of flips and of backdoors",
    n=1000,
    seeds=(0, 1, 2),
)
def poisoning_flips(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Both kinds at every rate, on the fully connected network; the doubts at a rate of 2%."""
    kinds = ("any", "pair")
    return {
        "rates": {
            kind: {str(rate): [one_flip(kind, rate, seed) for seed in seeds] for rate in FLIPS}
            for kind in kinds
        },
        "doubts": {name: [doubted(name, seed) for seed in seeds] for name in (*kinds, *TRIGGERS)},
    }


@cache
def own_networks() -> tuple[nn.Module, ...]:
    """The attacker's own networks, trained on the clean digits."""
    x, y = digits().x_train, digits().y_train
    return tuple(net(x, y, 1000 + seed) for seed in range(4))


def victims(seed: int) -> list[tuple[int, dict[str, int]]]:
    """The test images that gradient matching goes for.

    Args:
        seed: draws four, among those that all networks of the attacker read rightly.

    Returns:
        For each its row and two target classes: "near", which the attacker's networks find second
        likeliest, and a "random" other one.
    """
    x, y = digits().x_test, digits().y_test
    right = torch.stack([evaluate(model, x, y).correct for model in own_networks()]).all(0)
    generator = torch.Generator().manual_seed(seed)
    rows = right.nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=generator)[:_VICTIMS]]
    step = torch.randint(1, 10, (len(rows),), generator=generator)
    with torch.no_grad():
        p = torch.stack([model(x[rows]).softmax(1) for model in own_networks()]).mean(0)
    near, other = p.topk(2).indices[:, 1].tolist(), ((y[rows] + step) % 10).tolist()
    return [(row, {"near": near[i], "random": other[i]}) for i, row in enumerate(rows.tolist())]


def matched(row: int, called: int, budget: int, seed: int) -> Poisoned:
    """Poison the training digits for one test image.

    Args:
        row: which test image.
        called: the class that it shall be given.
        budget: how many poisons; 0 leaves the data as they are.
        seed: draws the poisons and their starts.

    Returns:
        The poisoned data.
    """
    x, y = digits().x_train, digits().y_train
    if not budget:
        return Poisoned(x, y, torch.zeros_like(y, dtype=torch.bool))
    return gradient_matching(
        own_networks(), x, y, victim=digits().x_test[row], target=called, budget=budget,
        eps=_EPS, steps=_STEPS, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def one_victim(seed: int, index: int, kind: str, budget: int) -> dict[str, Any]:
    """Poison the data for one test image, train from scratch, and look at it.

    Args:
        seed: of the run.
        index: which of its victims.
        kind: of the target class, "near" or "random".
        budget: how many poisons.

    Returns:
        "row", "target", the "answer" of the trained network, its "accuracy" (hits of 1,000), and
        what the detectors have "seen" with it (for a near target).
    """
    row, targets = victims(seed)[index]
    called, (x, y) = targets[kind], (digits().x_test, digits().y_test)
    poisoned = matched(row, called, budget, 10 * seed + index)
    model = net(poisoned.x, poisoned.y, 10 * seed + index)
    with torch.no_grad():
        answer = int(model(x[row : row + 1]).argmax())
    return {
        "row": row,
        "target": called,
        "answer": answer,
        "accuracy": evaluate(model, x, y).hits,
        "seen": seen(model, poisoned, called, seed) if kind == "near" else {},
    }


@study(
    "poisoning_matching",
    about="Gradient matching for 12 test images: 40 poisons, eps 0.3, four networks of the "
    "attacker; the answer of a network trained from scratch on each poisoned set",
    n=12,
    seeds=(0, 1, 2),
)
def poisoning_matching(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Four victims for each seed, at every budget."""
    return {
        kind: {
            str(budget): [
                one_victim(seed, index, kind, budget) for seed in seeds for index in range(_VICTIMS)
            ]
            for budget in budgets
        }
        for kind, budgets in BUDGETS.items()
    }
