"""Running a reader's attack within a budget, and believing nothing that it says about itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.attacks.queries import BudgetSpent
from modelsec.check.capstone.marks import Refused, expect
from modelsec.models import drawing_from
from modelsec.zoo.studies import capstone as arena

__all__ = ["Meter", "Outcome", "run", "watched"]

_ROUNDING = 1e-5


class Meter:
    """Counts the images that a network is shown, with a gradient and without, up to a budget.

    Args:
        gradients: how many images it may be shown while a gradient by them is recorded.
        queries: how many without.
    """

    def __init__(self, gradients: int, queries: int) -> None:
        self.budget = {"gradients": gradients, "queries": queries}
        self.count = {"gradients": 0, "queries": 0}

    def add(self, x: Tensor) -> None:
        """Count a batch (n, ...); BudgetSpent if it is more than is left."""
        kind = "gradients" if torch.is_grad_enabled() and x.requires_grad else "queries"
        if self.count[kind] + len(x) > self.budget[kind]:
            left = self.budget[kind] - self.count[kind]
            raise BudgetSpent(
                f"{len(x)} {kind} were asked for, {left} of {self.budget[kind]} are left"
            )
        self.count[kind] += len(x)


def watched(model: nn.Module, meter: Meter) -> nn.Module:
    """A copy of a model whose every pass is counted, also if only a part of it is called.

    Args:
        model: with a convolution or a linear layer in it; the first of them counts.
        meter: counts.

    Returns:
        The copy, in eval mode, its parameters frozen.
    """
    made = copy.deepcopy(model).eval().requires_grad_(False)
    first = next(part for part in made.modules() if isinstance(part, nn.Conv2d | nn.Linear))

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        meter.add(inputs[0])  # a function, not a method: a copy of the copy counts here as well

    first.register_forward_pre_hook(count)
    return made


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an attack did to n images.

    Attributes:
        right: (n,) bool, the model was right without an attack.
        fooled: (n,) bool, it was right, and the attack's image, within the rules, changed that.
        outside: (n,) bool, the attack's image breaks a rule: ball, box or NaN.
        unpaid: (n,) bool, the budget of the image's batch was spent before the attack was done.
        most: the largest change of a pixel.
        gradients: used for an image, on average.
        queries: likewise.
    """

    right: Tensor
    fooled: Tensor
    outside: Tensor
    unpaid: Tensor
    most: float
    gradients: float
    queries: float

    @property
    def success(self) -> float:
        """The share of the images that the model was right about, and no longer is."""
        return int(self.fooled.sum()) / max(int(self.right.sum()), 1)

    @property
    def faults(self) -> str:
        """What was against the rules, in words; empty if nothing was."""
        said = ""
        if self.outside.any():
            said += (
                f" {int(self.outside.sum())} of your images leave the ball or the box (a pixel "
                f"moves by up to {self.most:.3f}): they don't count."
            )
        if self.unpaid.any():
            said += (
                f" For {int(self.unpaid.sum())} images the budget was spent before your attack was "
                "done: they don't count."
            )
        return said


def run(
    model: nn.Module,
    attack: Any,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    gradients: int,
    queries: int,
    batch_size: int = 50,
) -> Outcome:
    """Let an attack try a model.

    Args:
        model: the victim; the attack is handed a :func:`watched` copy.
        attack: ``f(model, x, y, eps)`` to images like x.
        x: (n, ...) images in [0, 1].
        y: (n,) labels.
        eps: the radius in linf.
        gradients: for each image, on average over a batch.
        queries: likewise.
        batch_size: images that the attack is handed at a time.

    Returns:
        The :class:`Outcome`; whether an image fools is asked of the model itself.

    Raises:
        Refused: if the attack is no function, returns no images, or changes those it was handed.
    """
    expect(callable(attack), "Hand in a function attack(model, x, y, eps).")
    adv, unpaid = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    spent = {"gradients": 0, "queries": 0}
    for number, rows in enumerate(torch.arange(len(x)).split(batch_size)):
        meter = Meter(gradients * len(rows), queries * len(rows))
        given, labels = x[rows].clone(), y[rows].clone()
        try:
            with drawing_from(torch.Generator().manual_seed(number)):
                got = attack(watched(model, meter), given, labels, eps)
        except BudgetSpent:
            unpaid[rows] = True
        else:
            adv[rows] = _images(got, x[rows])
        expect(
            torch.equal(given, x[rows]) and torch.equal(labels, y[rows]),
            "Your attack changed the images or labels that it was handed: work on a clone.",
        )
        spent = {kind: spent[kind] + meter.count[kind] for kind in spent}
    away = (adv - x).abs().flatten(1).amax(1)
    # written so that NaN is outside as well
    inside = (away <= eps + _ROUNDING) & ((adv >= 0) & (adv <= 1)).flatten(1).all(1)
    right = arena.answers(model, x) == y
    fooled = right & inside & (arena.answers(model, torch.where(_each(inside, x), adv, x)) != y)
    return Outcome(
        right, fooled, ~inside, unpaid, float(away.nan_to_num(1).max()),
        spent["gradients"] / len(x), spent["queries"] / len(x),
    )  # fmt: skip


def _each(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(-1, *(1,) * (x.dim() - 1))


def _images(got: Any, x: Tensor) -> Tensor:
    if got is ... or got is None:
        raise Refused("Not done yet: your attack returned nothing.")
    expect(isinstance(got, Tensor), f"Your attack must return a tensor, not {type(got).__name__}.")
    expect(
        got.shape == x.shape,
        f"Your attack must return images of shape {tuple(x.shape)}, not {tuple(got.shape)}.",
    )
    images: Tensor = got.detach().to(x)
    return images
