"""The chapter on medicine: records as they were measured, the models of a clinic, and their repairs.

Three of the ten columns of the diabetes table were computed from others. A record here holds what
was measured, and a model computes the rest by itself: so no tampered record can contradict itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from modelsec import models, patients
from modelsec.attacks.tabular import Move, Rules
from modelsec.data import Data
from modelsec.repair.private import private_fit
from modelsec.training import fit
from modelsec.zoo.studies.privacy_attacks import table_net

__all__ = [
    "COLUMNS",
    "DELTA",
    "EPSILONS",
    "ERROR",
    "PRESSURE",
    "TRAININGS",
    "Derive",
    "columns_as_given",
    "disturbed",
    "given_rules",
    "logistic",
    "measured",
    "network",
    "private",
    "rules",
    "split",
    "table_of_ten",
]

COLUMNS = ("age", "sex", "bmi", "bp", "tc", "hdl", "tg", "glu")
"""Years, code 1 or 2, kg/m2, mmHg, and in mg/dL total and HDL cholesterol, triglycerides, sugar."""
CENTRE = (50, 1.5, 26, 95, 190, 115, 50, 4, 4.6, 90)
WIDTH = (13, 0.5, 4.5, 14, 35, 30, 13, 1.3, 0.5, 11.5)
ERROR = 0.05
"""How far a blood value may be off in this chapter, as a share of itself."""
PRESSURE = 5.0
"""How far the blood pressure may be off, in mmHg."""
EPSILONS = (8.0, 2.0, 0.5)
DELTA = 1e-4
Train = Callable[[Tensor, Tensor, torch.Generator], nn.Module]


@cache
def measured() -> patients.Patients:
    """The diabetes table without the columns that were computed from others.

    Returns:
        442 people, the eight :data:`COLUMNS`; triglycerides in mg/dL, not as a logarithm.
    """
    table = patients.diabetes()
    age, sex, bmi, bp, tc, _, hdl, _, ltg, glu = table.raw.T
    raw = torch.stack([age, sex, bmi, bp, tc, hdl, ltg.exp().round(), glu], 1)
    return replace(table, raw=raw, columns=COLUMNS)


def table_of_ten(x: Tensor) -> Tensor:
    """The ten columns of the published table, from what was measured.

    Args:
        x: (N, 8) records.

    Returns:
        (N, 10): with LDL cholesterol by Friedewald's formula, the ratio of total to HDL
        cholesterol (the table rounds it, mostly to whole numbers), and the logarithm of the
        triglycerides in their place.
    """
    age, sex, bmi, bp, tc, hdl, tg, glu = x.unbind(1)
    ldl = tc - hdl - tg / 5
    return torch.stack([age, sex, bmi, bp, tc, ldl, hdl, tc / hdl, tg.log(), glu], 1)


class Derive(nn.Module):
    """From a record to ten inputs of about the same size. It holds nothing that was learned.

    The constants are round numbers, not means of the training rows: those would be a leak of their
    own, which no epsilon counts.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (N, 8) records. Returns (N, 10) inputs."""
        ten = table_of_ten(x)
        return (ten - ten.new_tensor(CENTRE)) / ten.new_tensor(WIDTH)


def columns_as_given(x: Tensor) -> Tensor:
    """The inputs of a model that is handed the ten columns and believes all of them.

    Args:
        x: (N, 10), the columns of the published table.

    Returns:
        (N, 10) inputs, for the layers behind :class:`Derive`.
    """
    return (x - x.new_tensor(CENTRE)) / x.new_tensor(WIDTH)


def split(seed: int = 0, held_out: int = 132) -> Data:
    """Training and test people at random.

    Args:
        seed: of the draw.
        held_out: how many are tested.

    Returns:
        The records, (N, 8).
    """
    table = measured()
    order = torch.randperm(len(table.y), generator=torch.Generator().manual_seed(seed))
    test, train = order[:held_out], order[held_out:]
    return Data(
        table.name, table.raw[train], table.y[train], table.raw[test], table.y[test],
        table.classes, table.source, table.licence,
    )  # fmt: skip


def disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Records as they might have been measured on another day: each value off by its error at most.

    Args:
        x: (N, 8) records.
        generator: draws the errors, uniform.

    Returns:
        (N, 8).
    """
    off = 2 * torch.rand(x.shape, generator=generator).to(x) - 1
    share = x.new_tensor([0, 0, 0, 0, ERROR, ERROR, ERROR, ERROR])
    return x * (1 + share * off) + x.new_tensor([0, 0, 0, PRESSURE, 0, 0, 0, 0]) * off


def network(
    x: Tensor, y: Tensor, generator: torch.Generator, *, epochs: int = 60, disturb: bool = False
) -> nn.Module:
    """Two hidden layers of 128, trained until they know everybody by heart: 60 steps on all records.

    Args:
        x: (N, 8) records.
        y: (N,) labels.
        generator: draws weights and order.
        epochs: steps, each on all records.
        disturb: augment with :func:`disturbed`.

    Returns:
        The model, in eval mode.
    """
    model = models.fresh(lambda: nn.Sequential(Derive(), table_net(10)), generator)
    perturb = (lambda m, x, y, progress: disturbed(x, generator)) if disturb else None
    fit(
        model, x, y, epochs=epochs, batch_size=len(x), lr=0.01, perturb=perturb, generator=generator,
        progress=False,
    )  # fmt: skip
    return model.eval()


def logistic(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Module:
    """Logistic regression: 22 numbers, too few to know anybody by heart.

    Args:
        x: (N, 8) records.
        y: (N,) labels.
        generator: draws weights and order.

    Returns:
        The model, in eval mode.
    """
    model = models.fresh(lambda: nn.Sequential(Derive(), nn.Linear(10, 2)), generator)
    fit(model, x, y, epochs=40, batch_size=len(x), lr=0.05, generator=generator, progress=False)
    return model.eval()


def private(
    x: Tensor, y: Tensor, generator: torch.Generator, *, epsilon: float, small: bool
) -> nn.Module:
    """DP-SGD on all records in each of 30 steps; smaller steps where the noise is large.

    Args:
        x: (N, 8) records.
        y: (N,) labels.
        generator: draws weights and noise.
        epsilon: the budget at :data:`DELTA`.
        small: logistic regression in place of the network.

    Returns:
        The model, in eval mode.
    """
    head = partial(nn.Linear, 10, 2) if small else partial(table_net, 10)
    model = models.fresh(lambda: nn.Sequential(Derive(), head()), generator)
    private_fit(
        model, x, y, epsilon=epsilon, delta=DELTA, clip=1.0, epochs=30, batch_size=len(x),
        lr=0.3 * min(1.0, epsilon), generator=generator, progress=False,
    )  # fmt: skip
    return model.eval()


TRAININGS: dict[str, Train] = {
    "network": network,
    "network, stopped early": partial(network, epochs=10),
    "network, disturbed": partial(network, disturb=True),
    "logistic": logistic,
    **{
        f"{name}, epsilon {epsilon:g}": partial(private, epsilon=epsilon, small=small)
        for name, small in (("network", False), ("logistic", True))
        for epsilon in EPSILONS
    },
}
"""A name -> (records, labels, generator) -> a trained model."""


def rules(error: float = ERROR) -> Rules:
    """What somebody can change in a record so that it still passes for a measurement.

    A price of 1 is one value moved by its whole error, at a typical value. Age, sex and body mass
    index are seen at the door.

    Args:
        error: how far a blood value may be off, as a share of itself; the pressure in proportion.

    Returns:
        The rules, for the eight columns.
    """
    typical, names = (95, 190, 50, 110, 90), ("bp", "tc", "hdl", "tg", "glu")
    scale = error / ERROR
    moves = []
    for name, value in zip(names, typical, strict=True):
        reach = PRESSURE * scale if name == "bp" else error * value
        most = int(3 * reach) if name in ("tc", "tg") else int(2.5 * reach)
        moves.append(Move(name, 1 / reach, step=1.0, most=max(1, most), low=1.0))
    return Rules(COLUMNS, tuple(moves), (partial(_within, error=error),))


def _within(before: Tensor, after: Tensor, error: float) -> Tensor:
    """(N,) bool: no value is off by more than its error, counted from the record's own value."""
    reach = error * before
    reach[:, COLUMNS.index("bp")] = PRESSURE * error / ERROR
    return ((after - before).abs() <= reach + 1e-4).all(1)


TEN = ("age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu")


def given_rules(error: float = ERROR) -> Rules:
    """The same for the published table: all columns move by themselves, the computed ones too.

    Args:
        error: how far a value may be off, as a share of itself.

    Returns:
        The rules, for the ten columns.
    """
    typical = {"bp": 95, "tc": 190, "ldl": 115, "hdl": 50, "tch": 4, "ltg": 4.6, "glu": 90}
    moves = []
    for name, value in typical.items():
        reach = PRESSURE * error / ERROR if name == "bp" else error * value
        if name == "ltg":
            reach = error  # of the logarithm: a share of the value itself
        step = {"tch": 0.05, "ltg": 0.01}.get(name, 1.0)
        moves.append(Move(name, step / reach, step=step, most=max(1, int(2.5 * reach / step))))
    return Rules(TEN, tuple(moves), (partial(_within_ten, error=error),))


def _within_ten(before: Tensor, after: Tensor, error: float) -> Tensor:
    reach = error * before
    reach[:, TEN.index("bp")] = PRESSURE * error / ERROR
    reach[:, TEN.index("ltg")] = error
    return ((after - before).abs() <= reach + 1e-4).all(1)
