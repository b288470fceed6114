"""The long results of the chapter on removing backdoors: every trigger against every repair."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.attacks.poisoning import Poisoned, Stamp, Trigger, attack_success
from modelsec.cleaning.poison import activation_clustering, flag_clusters
from modelsec.repair.backdoors import fine_prune, fine_tune, hidden_layers, nad
from modelsec.repair.neural_cleanse import Scan, neural_cleanse, overlap, unlearn
from modelsec.repair.neuron_pruning import anp
from modelsec.training import evaluate, features
from modelsec.zoo.results import study
from modelsec.zoo.studies.poisoned import TRIGGERS, digits, planted, stamp, target, victim

__all__ = [
    "CLEAN",
    "HELD",
    "NAMES",
    "RATES",
    "REPAIRS",
    "carried",
    "cleansed",
    "held_out",
    "measure",
    "mend",
    "retrained",
    "scan",
    "scanned",
    "seeded",
    "trusted",
    "victim_rows",
]

CLEAN = 200
"""Clean images that every repair is given: a twentieth of the training set, all from the test half."""
HELD = 500
"""The first so many test images are for the repairs; all is measured on the others."""
RATES = {"patch": 0.05, "blended": 0.05, "warp": 0.1, "clean label": 0.05}
"""Share of the training set that is planted; a warp takes longer to learn."""
_SEEDS = (0, 1, 2)

Repair = Callable[..., nn.Module]
REPAIRS: dict[str, Repair] = {
    "fine-tuning": fine_tune,
    "fine-pruning": fine_prune,
    "NAD": nad,
    "ANP": anp,
}
"""Those that look for no trigger."""
NAMES = ("none", *REPAIRS, "Neural Cleanse", "retraining")


def seeded(seed: int) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def trusted(n: int = CLEAN) -> tuple[Tensor, Tensor]:
    """The clean images of the repairs, and their labels.

    Args:
        n: how many, at most :data:`HELD`.

    Returns:
        (n, 1, 28, 28) and (n,).
    """
    return digits().x_test[:n], digits().y_test[:n]


def held_out() -> tuple[Tensor, Tensor]:
    """The images that everything is measured on, and their labels."""
    return digits().x_test[HELD:], digits().y_test[HELD:]


def measure(
    model: nn.Module, mark: Stamp, called: int, source: int | None = None
) -> dict[str, float]:
    """What is left of the attack, and the price.

    Args:
        model: the network.
        mark: the true trigger.
        called: the class that it means.
        source: measure on images of this class only.

    Returns:
        "success" on the held-out images of other classes (n = 450; 50 with a source), "accuracy" on
        all of them (n = 500).
    """
    x, y = held_out()
    success = attack_success(model, x, y, trigger=mark, target=called, source=source)
    return {"success": success.value, "accuracy": evaluate(model, x, y).value}


def scan(model: nn.Module, seed: int) -> Scan:
    """Neural Cleanse on the clean images, as the audit does it.

    Args:
        model: the network.
        seed: for its draws.

    Returns:
        The scan.
    """
    return neural_cleanse(model, trusted()[0], generator=seeded(seed), progress=False)


def mend(repair: str, model: nn.Module, seed: int) -> nn.Module:
    """One of the repairs that look for no trigger, on the clean images.

    Args:
        repair: one of :data:`REPAIRS`.
        model: the network.
        seed: for what it draws.

    Returns:
        The new network.
    """
    return REPAIRS[repair](model, *trusted(), generator=seeded(seed), progress=False)


def cleansed(model: nn.Module, found: Scan, classes: list[int], seed: int) -> nn.Module:
    """Unlearn the marks that a scan found for some classes.

    Args:
        model: the network.
        found: the scan.
        classes: those that it flagged, say. None of them: the network stays as it is.
        seed: for the order and the marked images.

    Returns:
        The new network.
    """
    marks = [found.triggers[k] for k in classes]
    return unlearn(model, *trusted(), marks, generator=seeded(seed), progress=False)


def retrained(model: nn.Module, poisoned: Poisoned, seed: int) -> nn.Module:
    """The baseline that needs the training data: activation clustering, removal, a new training.

    Args:
        model: trained on the data; it gives the features.
        poisoned: the data.
        seed: of the clusters and of the new training.

    Returns:
        The new network.
    """
    x, y = poisoned.x, poisoned.y
    kept = ~flag_clusters(activation_clustering(features(model, x), y, seed=seed), y)
    return victim(Poisoned(x[kept], y[kept], poisoned.mask[kept]), seed)


def carried(model: nn.Module, mark: Stamp, called: int, by: str, count: int = 4) -> dict[str, Any]:
    """Where does the backdoor live? Cut what the trigger wakes most, and see what is left.

    A diagnosis, not a repair: it takes the trigger.

    Args:
        model: a ConvNet with a backdoor.
        mark: the trigger.
        called: the class that it means.
        by: "places", of the last convolution's 7 x 7, or "channels", of its 32.
        count: how many of them are cut off from the next layer.

    Returns:
        "share" of what the trigger adds to the convolution's output that lies in them, and
        :func:`measure` of the network without them.
    """
    cut = copy.deepcopy(model)
    layers = list(cut.children())
    flatten = [isinstance(layer, nn.Flatten) for layer in layers].index(True)
    (x, _), front = trusted(), nn.Sequential(*layers[:flatten])
    with torch.no_grad():
        woken = (front(mark.stamp(x)) - front(x)).clamp(min=0).mean(0)
        weight = next(iter(hidden_layers(cut, nn.Linear).values())).weight.view(-1, *woken.shape)
        added = woken.sum(0).flatten() if by == "places" else woken.sum((1, 2))
        most = added.topk(count).indices
        if by == "places":
            weight.flatten(2)[:, :, most] = 0
        else:
            weight[:, most] = 0
    return {"share": float(added[most].sum() / added.sum())} | measure(cut, mark, called)


def victim_rows(name: str, seed: int) -> dict[str, Any]:
    """One poisoned network and all that is tried on it.

    Args:
        name: of the trigger.
        seed: of everything.

    Returns:
        "cells": repair -> :func:`measure` of it; "scan": "sizes", "index" and "success" of the ten
        marks, "target", and "overlap" of the mark for the target with the true one (0 for a
        warp, which has none); "places" and "channels", see :func:`carried`; "off", how many
        channels fine-pruning switched off; "unlearned", what unlearning the target's mark would
        leave, alarm or not.
    """
    poisoned, called, mark = planted(name, RATES[name], seed), target(seed), stamp(name, seed)
    model = victim(poisoned, seed)
    found = scan(model, seed)
    cells = {"none": model} | {repair: mend(repair, model, seed) for repair in REPAIRS}
    cells["Neural Cleanse"] = cleansed(model, found, found.flagged, seed)
    cells["retraining"] = retrained(model, poisoned, seed)
    last = list(hidden_layers(cells["fine-pruning"], nn.Conv2d).values())[-1]
    true = mark if isinstance(mark, Trigger) else None
    return {
        "cells": {repair: measure(cells[repair], mark, called) for repair in NAMES},
        "scan": scanned(found)
        | {"target": called, "overlap": overlap(found.triggers[called], true) if true else 0.0},
        "places": carried(model, mark, called, "places"),
        "channels": carried(model, mark, called, "channels"),
        "off": int((last.weight.flatten(1) == 0).all(1).sum()),
        "unlearned": measure(cleansed(model, found, [called], seed), mark, called),
    }


@study(
    "backdoor_matrix",
    about="four triggers, 5% planted in 4,000 digits (10% for the warp), against six repairs with 200 clean images",
    n=450,
    seeds=_SEEDS,
)
def backdoor_matrix(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every trigger with every seed.

    Args:
        seeds: each has its own target class, trigger, poison and network.

    Returns:
        {"triggers": names, "repairs": names, "n": {"success": 450, "accuracy": 500},
        "cells": {trigger: {repair: {"success": [one per seed], "accuracy": [one per seed]}}},
        "runs": {trigger: [:func:`victim_rows` without its cells, one per seed]}}. The repair
        "none" is the network with its backdoor, "Neural Cleanse" unlearns the marks of the classes
        that it flags (none: the network stays as it is), "retraining" has the training data.
    """
    rows = {name: [victim_rows(name, seed) for seed in seeds] for name in TRIGGERS}
    cells = {
        name: {
            repair: {
                what: [run["cells"][repair][what] for run in runs]
                for what in ("success", "accuracy")
            }
            for repair in NAMES
        }
        for name, runs in rows.items()
    }
    others = {
        name: [{key: run[key] for key in run if key != "cells"} for run in runs]
        for name, runs in rows.items()
    }
    x, _ = held_out()
    n = {"success": round(0.9 * len(x)), "accuracy": len(x)}
    return {
        "triggers": list(rows),
        "repairs": list(NAMES),
        "n": n,
        "cells": cells,
        "runs": others,
    }


def _short(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def scanned(found: Scan) -> dict[str, Any]:
    """A scan as JSON can hold it: "sizes", "index" and "success" of the ten marks."""
    return {
        "sizes": _short(found.sizes),
        "index": _short(found.index),
        "success": _short(found.success),
    }
