"""More long results on removing backdoors: false alarms, how many clean images, who knows the scan."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modelsec import models
from modelsec.attacks.poisoning import Poisoned, Trigger, badnets, patch
from modelsec.repair.backdoors import fine_tune
from modelsec.training import evaluate
from modelsec.zoo.results import study
from modelsec.zoo.studies.backdoors import (
    CLEAN,
    RATES,
    cleansed,
    held_out,
    measure,
    mend,
    scan,
    scanned,
    seeded,
    trusted,
)
from modelsec.zoo.studies.poison import train
from modelsec.zoo.studies.poisoned import digits, planted, stamp, target, victim

__all__ = [
    "KNOWING",
    "SIZES",
    "SPEEDS",
    "clean_scan",
    "knowing",
    "knowing_poison",
    "sweep_rows",
    "tuned",
]

SIZES = (50, 100, 200, 500)
"""How many clean images fine-tuning is given in the sweep,"""
SPEEDS = (3e-3, 1e-2)
"""and its learning rates."""
_SEEDS = (0, 1, 2)


def clean_scan(kind: str, seed: int) -> dict[str, Any]:
    """Train a network on the clean digits and scan it: whatever is flagged is a false alarm.

    Args:
        kind: "net", the book's own network, or "convnet".
        seed: of its training and of the scan.

    Returns:
        "accuracy", and "sizes", "index" and "success" of the ten marks.
    """
    if kind == "convnet":
        none = torch.zeros(len(digits().y_train), dtype=torch.bool)
        model = victim(Poisoned(digits().x_train, digits().y_train, none), seed)
    else:
        model = train(digits().x_train, digits().y_train, seed, models.Net)
    return {"accuracy": evaluate(model, *held_out()).value} | scanned(scan(model, seed))


@study(
    "backdoor_alarms",
    about="Neural Cleanse on networks without a backdoor: 12 ConvNets and 16 of the book's network",
    n=28,
    seeds=tuple(range(16)),
)
def backdoor_alarms(seeds: tuple[int, ...]) -> dict[str, Any]:
    """A network of each kind for each seed; ConvNets for the first 12 seeds only.

    Args:
        seeds: of the networks.

    Returns:
        kind -> [:func:`clean_scan`, one per seed].
    """
    return {
        "convnet": [clean_scan("convnet", 14 + seed) for seed in seeds[:12]],
        "net": [clean_scan("net", 14 + seed) for seed in seeds],
    }


def sweep_rows(name: str, seed: int) -> list[dict[str, Any]]:
    """Fine-tuning with more or fewer clean images, slower and faster, in equally many steps.

    Args:
        name: of the trigger.
        seed: of everything.

    Returns:
        For each of :data:`SIZES` and :data:`SPEEDS` "size", "lr", "seed" and :func:`measure`.
    """
    model, rows = victim(planted(name, RATES[name], seed), seed), []
    for size in SIZES:
        for lr in SPEEDS:
            mended = tuned(model, size, lr, seed)
            found = measure(mended, stamp(name, seed), target(seed))
            rows.append({"size": size, "lr": lr, "seed": seed} | found)
    return rows


def tuned(model: nn.Module, size: int, lr: float, seed: int) -> nn.Module:
    """Fine-tuning in about 140 steps of 32 images, however many images there are.

    Args:
        model: the network.
        size: how many clean images.
        lr: Adam's learning rate.
        seed: for the order.

    Returns:
        The new network.
    """
    options: dict[str, Any] = {"generator": seeded(seed), "progress": False}
    return fine_tune(model, *trusted(size), epochs=20 * CLEAN // size, lr=lr, **options)


@study(
    "backdoor_sizes",
    about="fine-tuning away a patch with 50 to 500 clean images at two learning rates",
    n=450,
    seeds=_SEEDS,
)
def backdoor_sizes(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every size and rate with every seed.

    Args:
        seeds: as in :func:`backdoor_matrix`.

    Returns:
        {"rows": [those of :func:`sweep_rows`]}.
    """
    return {"rows": [row for seed in seeds for row in sweep_rows("patch", seed)]}


KNOWING = ("larger", "one class")
"""What an attacker does who knows the scan: a patch of 10 x 10 pixels; one that works on a single class."""


def knowing_poison(kind: str, seed: int) -> tuple[Poisoned, Trigger, int | None]:
    """The training set of an attacker who knows the scan.

    Args:
        kind: one of :data:`KNOWING`. For "one class" a tenth of the training set is stamped too,
            images of the other classes, which keep their labels: there the mark means nothing.
        seed: of everything.

    Returns:
        The data, the trigger, and the class that it works on (None for all).
    """
    x, y, called = digits().x_train, digits().y_train, target(seed)
    source = (called + 5) % 10 if kind == "one class" else None
    mark = patch() if kind == "one class" else patch(size=10)
    poisoned = badnets(
        x, y, rate=0.05, target=called, trigger=mark, source=source, generator=seeded(seed)
    )
    if source is not None:
        others = ((y != source) & ~poisoned.mask).nonzero()[:, 0]
        cover = others[torch.randperm(len(others), generator=seeded(seed))[: len(y) // 10]]
        poisoned.x[cover] = mark.stamp(poisoned.x[cover])
    return poisoned, mark, source


def knowing(kind: str, seed: int) -> dict[str, Any]:
    """A network of such an attacker's data, the scan of it, and what repairs leave.

    Args:
        kind: one of :data:`KNOWING`.
        seed: of everything.

    Returns:
        "kind", "seed", "target", "source"; "none", "fine-tuning" and "Neural Cleanse", see
        :func:`measure`; "sizes", "index" and "success" of the scan.
    """
    (poisoned, mark, source), called = knowing_poison(kind, seed), target(seed)
    model = victim(poisoned, seed)
    found = scan(model, seed)
    mended = {
        "none": model,
        "fine-tuning": mend("fine-tuning", model, seed),
        "Neural Cleanse": cleansed(model, found, found.flagged, seed),
    }
    row = {"kind": kind, "seed": seed, "target": called, "source": source}
    cells = {name: measure(model, mark, called, source) for name, model in mended.items()}
    return row | cells | scanned(found)


@study(
    "backdoor_knowing",
    about="attackers who know Neural Cleanse: a larger patch, and one for a single class",
    n=450,
    seeds=_SEEDS,
)
def backdoor_knowing(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Both of them with every seed.

    Args:
        seeds: of the poison and the network.

    Returns:
        {"rows": [:func:`knowing`]}. For "one class" the success is measured on 50 images.
    """
    return {"rows": [knowing(kind, seed) for kind in KNOWING for seed in seeds]}
