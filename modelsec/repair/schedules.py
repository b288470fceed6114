"""What the methods of adversarial training share: schedules, early stopping, checks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypedDict

from torch import Tensor, nn

from modelsec.attacks.common import check_counts, check_norm
from modelsec.intervals import Proportion
from modelsec.losses import SampleLoss
from modelsec.training import Attack, History, Perturb, evaluate

__all__ = [
    "BestEpoch",
    "Method",
    "Radius",
    "augmented",
    "check_settings",
    "decay",
    "radius_at",
    "ramp",
]

Radius = float | Callable[[float], float]
"""A radius in units of a pixel's range [0, 1], or a function from progress in [0, 1) to one."""


class Method(TypedDict, total=False):
    """What a method asks of :func:`modelsec.training.fit`: some of its keywords."""

    perturb: Perturb
    loss: SampleLoss
    replays: int


def ramp(eps: float, until: float = 0.6) -> Callable[[float], float]:
    """A radius that grows in a straight line from 0, then stays.

    Args:
        eps: the radius in the end.
        until: the share of training after which it is reached.

    Returns:
        A function from progress in [0, 1) to the radius.

    Raises:
        ValueError: if ``until`` is not between 0 and 1.
    """
    if not 0 < until <= 1:
        raise ValueError(f"until must be a share of training, above 0 and at most 1, got {until}")
    return lambda progress: eps * min(progress / until, 1)


def decay(lr: float, over: float = 0.4, floor: float = 0.02) -> Callable[[float], float]:
    """A learning rate that stays, then falls in a straight line at the end of training.

    Args:
        lr: the rate at first.
        over: the share of training, at its end, in which it falls.
        floor: what is left at the very end, as a share of ``lr``.

    Returns:
        A function from progress in [0, 1) to the learning rate.

    Raises:
        ValueError: if ``over`` is not between 0 and 1.
    """
    if not 0 < over <= 1:
        raise ValueError(f"over must be a share of training, above 0 and at most 1, got {over}")
    slope = 1 / over
    return lambda progress: lr * min(1, slope * (1 - progress) + floor)


class BestEpoch:
    """Early stopping: keeps the weights of the epoch after which an attack left most.

    Give it to :func:`modelsec.training.fit` as ``after_epoch``, then call :meth:`restore`. The
    images must be neither those of training nor those of the test.

    Args:
        x: (N, ...) validation images.
        y: (N,) their labels.
        attack: (model, x, y) -> perturbed x, such as ``partial(pgd, eps=0.3, steps=10)``.
        patience: end training after so many epochs without a better one; None never does.

    Attributes:
        accuracy: what the attack left after each epoch.
        epoch: the best one, counted from 0; -1 before the first.
    """

    def __init__(self, x: Tensor, y: Tensor, attack: Attack, patience: int | None = None) -> None:
        if patience is not None:
            check_counts(patience=patience)
        self.x, self.y, self.attack, self.patience = x, y, attack, patience
        self.accuracy: list[Proportion] = []
        self.epoch = -1
        self._weights: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, history: History) -> bool:
        """Look at the model after an epoch; True if training should end."""
        self.accuracy.append(evaluate(model, self.x, self.y, attack=self.attack))
        last = len(self.accuracy) - 1
        if self.epoch < 0 or self.accuracy[last].hits > self.accuracy[self.epoch].hits:
            self.epoch, self._weights = last, copy.deepcopy(model.state_dict())
        return self.patience is not None and last - self.epoch >= self.patience

    def restore(self, model: nn.Module) -> None:
        """Give the model the weights of the best epoch.

        Raises:
            ValueError: if no epoch has been seen.
        """
        if self.epoch < 0:
            raise ValueError("no epoch has been seen yet: give this to fit as after_epoch")
        model.load_state_dict(self._weights)


def check_settings(norm: str, steps: int = 1, **weights: float) -> None:
    """Check what a method is told.

    Args:
        norm: "linf", "l2" or "l1".
        steps: gradient steps, 1 or more.
        **weights: other numbers, finite and 0 or more, by the names of their arguments.

    Raises:
        ValueError: for a value that is none of these; it names the argument.
    """
    check_norm(norm)
    check_counts(steps=steps)
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and 0 or more, got {value}")


def radius_at(eps: Radius, progress: float) -> float:
    """The radius at a time of training.

    Args:
        eps: one number, or a function from progress to one.
        progress: from 0 to 1 over the training.

    Returns:
        The radius.
    """
    return eps(progress) if callable(eps) else eps


def augmented(
    augment: Perturb | None, model: nn.Module, x: Tensor, y: Tensor, progress: float
) -> Tensor:
    """The images after the augmentation, if there is one.

    Args:
        augment: (model, x, y, progress) -> images, or None.
        model: handed on.
        x: (N, ...) images.
        y: (N,) labels.
        progress: handed on.

    Returns:
        (N, ...) images.

    Raises:
        TypeError: if it returns soft targets too.
    """
    if augment is None:
        return x
    changed = augment(model, x, y, progress)
    if isinstance(changed, tuple):
        raise TypeError(
            "augment must return images alone: an attack needs labels, not soft targets"
        )
    return changed
