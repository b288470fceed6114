"""The long results of the chapter on privacy attacks: whom an attack on membership finds, and where.

Each seed draws its own halves, first weights and orders. Every model is the target once, attacked with
the help of the others, so each number is a mean over as many targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import data, models, patients
from modelsec.attacks.membership import (
    Leak,
    Shadows,
    Train,
    by_loss,
    lira,
    shadows,
    trials,
)
from modelsec.training import fit
from modelsec.zoo.results import study

__all__ = [
    "ATTACKS",
    "DIGITS",
    "FPR",
    "GRID",
    "PATIENTS",
    "Setting",
    "digits",
    "first",
    "learner",
    "table_net",
    "told",
]

COUNT = 32
FPR = {"tpr_1": 0.01, "tpr_5": 0.05}
GRID = torch.logspace(-3, 0, 61, dtype=torch.double)
"""Shares of false alarms at which the curves are averaged over the targets."""

digits = cache(data.mnist)


@dataclass(frozen=True)
class Setting:
    """How models are trained, half of the records each.

    Attributes:
        records: gives x (N, ...) and y (N,).
        build: makes the network.
        epochs: passes over the half.
        lr: Adam's learning rate.
    """

    records: Callable[[], tuple[Tensor, Tensor]]
    build: Callable[[], nn.Module]
    epochs: int
    lr: float = 1e-3


def first(count: int) -> tuple[Tensor, Tensor]:
    """The first training digits, classes in turn.

    Args:
        count: how many, up to 4,000.

    Returns:
        x (count, 1, 28, 28) and y (count,).
    """
    return digits().x_train[:count], digits().y_train[:count]


def table_net(columns: int) -> nn.Module:
    """A small network for a table of patients: two hidden layers of 128.

    Args:
        columns: of the table.

    Returns:
        An untrained network with logits (N, 2).
    """
    sizes = (columns, 128, 128)
    hidden = [
        part
        for a, b in zip(sizes, sizes[1:], strict=False)
        for part in (nn.Linear(a, b), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(128, 2))


def _diabetes() -> tuple[Tensor, Tensor]:
    table = patients.diabetes()
    return table.z, table.y


def _cancer() -> tuple[Tensor, Tensor]:
    table = patients.breast_cancer()
    return table.z, table.y


DIGITS = {
    "100 digits, 40 epochs": Setting(lambda: first(200), models.Net, 40),
    "500 digits, 40 epochs": Setting(lambda: first(1000), models.Net, 40),
    "500 digits, 4 epochs": Setting(lambda: first(1000), models.Net, 4),
    "2,000 digits, 10 epochs": Setting(lambda: first(4000), models.Net, 10),
    "2,000 digits, 2 epochs": Setting(lambda: first(4000), models.Net, 2),
}
PATIENTS = {
    "diabetes, 50 epochs": Setting(_diabetes, lambda: table_net(10), 50, 0.01),
    "diabetes, 3 epochs": Setting(_diabetes, lambda: table_net(10), 3, 0.01),
    "breast cancer, 50 epochs": Setting(_cancer, lambda: table_net(30), 50, 0.01),
    "breast cancer, 3 epochs": Setting(_cancer, lambda: table_net(30), 3, 0.01),
}


def learner(setting: Setting) -> Train:
    """The training of a setting, in the shape that :func:`~modelsec.attacks.membership.shadows` takes.

    Args:
        setting: one of :data:`DIGITS` or :data:`PATIENTS`.

    Returns:
        (x, y, generator) -> a trained network.
    """

    def train(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Module:
        model = models.fresh(setting.build, generator)
        fit(
            model,
            x,
            y,
            epochs=setting.epochs,
            batch_size=50,
            lr=setting.lr,
            generator=generator,
            progress=False,
        )
        return model.eval()

    return train


ATTACKS: dict[str, Any] = {
    "loss threshold": lambda logits, known, x, y: by_loss(logits, x, y),
    "LiRA, offline": lira,
    "LiRA, online": lambda *given: lira(*given, online=True),
    "LiRA, online, own variances": lambda *given: lira(*given, online=True, fixed_variance=False),
}
"""A name -> the attack: (logits of the target, shadows, x, y) -> scores."""


def told(leaks: list[Leak]) -> dict[str, list[float]]:
    """What a list of targets tells: areas, shares of members found, and the mean curve.

    Args:
        leaks: one for each target.

    Returns:
        "auc", "advantage", "tpr_1", "tpr_5", a number for each target; "roc", the mean share of
        members found at each point of :data:`GRID`. All to four decimals.
    """
    return {name: [round(value, 4) for value in values] for name, values in _numbers(leaks).items()}


def _numbers(leaks: list[Leak]) -> dict[str, list[float]]:
    curves = []
    for leak in leaks:
        false, true = leak.roc()
        # the last point whose false alarms are allowed
        curves.append(true[torch.searchsorted(false, GRID + 1e-12, right=True) - 1])
    shares = {name: [leak.tpr_at(fpr).value for leak in leaks] for name, fpr in FPR.items()}
    return {
        "auc": [leak.auc for leak in leaks],
        "advantage": [leak.advantage for leak in leaks],
        "roc": torch.stack(curves).mean(0).tolist(),
        **shares,
    }


def _few(known: Shadows, count: int) -> Shadows:
    return Shadows(known.logits[:count], known.inside[:count])


def _measure(setting: Setting, seed: int) -> dict[str, Any]:
    x, y = setting.records()
    known = shadows(
        learner(setting), x, y, count=COUNT, generator=torch.Generator().manual_seed(seed)
    )
    right = known.logits.argmax(2) == y
    row: dict[str, Any] = {
        "train": float(right[known.inside].double().mean()),
        "test": float(right[~known.inside].double().mean()),
        "attacks": {name: told(trials(attack, known, x, y)) for name, attack in ATTACKS.items()},
        "by count": {},
    }
    for count in (8, 16, 32):
        row["by count"][str(count)] = {
            name: {
                key: round(sum(values) / len(values), 4)
                for key, values in _numbers(trials(ATTACKS[name], _few(known, count), x, y)).items()
                if key != "roc"
            }
            for name in ("loss threshold", "LiRA, offline", "LiRA, online")
        }
    return row


@study(
    "privacy_digits",
    about="membership inference on digits: five ways of training, four attacks, 32 targets a seed",
    n=1000,
    seeds=(0, 1, 2),
)
def on_digits(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every setting with digits."""
    return {
        name: {str(seed): _measure(setting, seed) for seed in seeds}
        for name, setting in DIGITS.items()
    }


@study(
    "privacy_patients",
    about="membership inference on two tables of patients: trained long and short, four attacks, 32 targets a seed",
    n=442,
    seeds=(0, 1, 2),
)
def on_patients(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every setting with patients."""
    return {
        name: {str(seed): _measure(setting, seed) for seed in seeds}
        for name, setting in PATIENTS.items()
    }
