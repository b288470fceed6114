"""Adversarial training at little more than the cost of training: Free, and Fast with its cure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelsec.attacks.common import (
    Objective,
    check_counts,
    check_inputs,
    check_norm,
    check_radius,
)
from modelsec.losses import log_odds
from modelsec.repair.schedules import Method, Radius, augmented, check_settings, radius_at
from modelsec.threat import ThreatModel, threat
from modelsec.training import Perturb, inference

__all__ = ["fast", "free"]


@threat(
    ThreatModel(
        goal="repair",
        knowledge="white-box",
        norms=("linf",),
        stage="training",
        cost="no gradient more; each batch is used replays times",
        source="https://arxiv.org/abs/1904.12843",
    )
)
def free(*, eps: Radius, replays: int = 8, augment: Perturb | None = None) -> Method:
    """Free adversarial training: one backward pass moves the weights and the pixels.

    Each batch is used ``replays`` times in a row. The gradient by the images comes from the same
    backward pass as that by the weights; it moves the perturbation for the next replay. The
    perturbation is kept from batch to batch. Train ``replays`` times fewer epochs than otherwise.

    Args:
        eps: the radius trained for, in linf; often :func:`~modelsec.repair.schedules.ramp`.
        replays: how often each batch is used in a row.
        augment: changes the clean images once a batch.

    Returns:
        Keywords of :func:`modelsec.training.fit`, for one training.

    Raises:
        ValueError: for replays below 1.

    References:
        Shafahi et al. (2019), https://arxiv.org/abs/1904.12843, algorithm 1.
    """
    check_counts(replays=replays)
    return {"perturb": _Carried(eps, replays, augment), "replays": replays}


class _Carried:
    """The perturbation that Free carries along, and the images it was last shown with."""

    def __init__(self, eps: Radius, replays: int, augment: Perturb | None) -> None:
        self.eps, self.replays, self.augment = eps, replays, augment
        self.calls = 0
        self.delta: Tensor | None = None
        self.shown: Tensor | None = None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        if self.calls % self.replays == 0:
            self.clean, _ = check_inputs(model, augmented(self.augment, model, x, y, progress), y)
        self.calls += 1
        radius = check_radius(radius_at(self.eps, progress), self.clean, check_norm("linf"))
        if self.delta is not None and self.shown is not None and self.shown.grad is not None:
            rows = slice(0, len(self.shown))  # the last batch of an epoch may be a short one
            self.delta[rows] += radius_at(self.eps, progress) * self.shown.grad.sign()
        if self.delta is None or len(self.delta) < len(x):
            self.delta = torch.zeros_like(self.clean)
        delta = self.delta[: len(x)].clamp_(-radius, radius)
        # training's backward pass leaves the gradient by the images in .grad
        self.shown = (self.clean + delta).clamp(0, 1).requires_grad_()
        return self.shown


@threat(
    ThreatModel(
        goal="repair",
        knowledge="white-box",
        norms=("linf", "l2", "l1"),
        stage="training",
        cost="one gradient more for each step of training",
        source="https://arxiv.org/abs/2001.03994",
    )
)
def fast(
    *,
    eps: Radius,
    start: float = 1.0,
    step: float = 1.25,
    clip: bool = True,
    norm: str = "linf",
    augment: Perturb | None = None,
    generator: torch.Generator | None = None,
) -> Method:
    """Fast adversarial training: one step along the gradient, from a random start.

    The defaults are those of Wong et al., FGSM-RS. They fail all of a sudden if the radius is large
    (*catastrophic overfitting*): watch the accuracy under PGD. ``start=2, step=1, clip=False`` is
    N-FGSM of de Jorge et al., which goes further before it fails.

    Args:
        eps: the radius trained for; often :func:`~modelsec.repair.schedules.ramp`.
        start: radius of the random start, in eps.
        step: length of the step, in eps.
        clip: bring the result back into the ball; otherwise into the box [0, 1] alone.
        norm: "linf", "l2" or "l1".
        augment: changes the clean images first, such as :func:`modelsec.augmentation.vary`.
        generator: draws the starts; torch's global one if None.

    Returns:
        Keywords of :func:`modelsec.training.fit`.

    Raises:
        ValueError: for an unknown norm, or a start or step below 0.

    References:
        Wong et al. (2020), https://arxiv.org/abs/2001.03994; de Jorge et al. (2022),
        https://arxiv.org/abs/2202.01181.
    """
    check_settings(norm, start=start, step=step)
    ball = check_norm(norm)

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        x, y = check_inputs(model, augmented(augment, model, x, y, progress), y)
        radius = check_radius(radius_at(eps, progress), x, ball)
        if not len(x):
            return x.clone()
        begin = ball.sample(x, start * radius, generator)
        with inference(model):
            _, _, gradient = Objective(model, log_odds, targeted=False).gradient(begin, y)
        adv = ball.step(begin, step * radius, gradient)
        return ball.project(adv, x, radius) if clip else adv.clamp(0, 1)

    return {"perturb": perturb}
