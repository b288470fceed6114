"""Attacks that follow the gradient of the loss with respect to the input: FGSM and PGD."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modelsec.attacks.common import (
    Iterate,
    Model,
    Objective,
    Search,
    check_inputs,
    check_norm,
    check_radius,
    check_start,
    per_sample_value,
)
from modelsec.losses import SampleLoss, log_odds
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["fgsm", "pgd"]


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("linf", "l2"),
        cost="one gradient",
        source="https://arxiv.org/abs/1412.6572",
    )
)
def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    targeted: bool = False,
    loss: SampleLoss = log_odds,
) -> Tensor:
    """Fast gradient sign method: one full step along the gradient.

    ``x + eps * sign(grad_x loss)`` for linf, ``x + eps * grad / ||grad||_2`` for l2, clipped to
    [0, 1].

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        norm: "linf" or "l2".
        targeted: descend to y instead of climbing away from it.
        loss: per-sample loss; :func:`~modelsec.losses.log_odds` has cross-entropy's direction
            and keeps it where cross-entropy saturates.

    Returns:
        (N, ...) perturbed images, dtype and device of ``x``.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Goodfellow et al. (2015), https://arxiv.org/abs/1412.6572, section 4.
    """
    x, y = check_inputs(model, x, y)
    ball = check_norm(norm)
    radius = check_radius(eps, x, ball)
    if not len(x):
        return x.clone()
    with inference(model):
        _, _, gradient = Objective(model, loss, targeted).gradient(x, y)
    return ball.confine_(ball.step(x, radius, gradient), ball.region(x, radius))


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("linf", "l2"),
        cost="restarts x steps gradients",
        source="https://arxiv.org/abs/1706.06083",
    )
)
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    steps: int = 40,
    step_size: float | Tensor | None = None,
    norm: str = "linf",
    targeted: bool = False,
    random_start: bool = True,
    restarts: int = 1,
    loss: SampleLoss = log_odds,
    start: Tensor | None = None,
    early_stop: bool = True,
    callback: Callable[[Iterate], object] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent: many small steps, each followed by a projection.

    ``x_{t+1} = P(x_t + step_size * d_t)``, where d_t is the steepest ascent direction of the loss
    in the norm (its sign for linf) and P projects on the eps-ball around x and on [0, 1].
    Without its bookkeeping the loop below is
    ``repeat steps times: adv = project(step(adv, size, gradient(adv)))``;
    the bookkeeping keeps each sample's worst point and, with early stop, drops the fooled ones.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        steps: gradient steps per restart.
        step_size: in the same units as eps; 2.5 * eps / steps if None, so that the steps can
            cross the ball and come back.
        norm: "linf" or "l2".
        targeted: descend to y instead of climbing away from it.
        random_start: begin at a random point of the ball rather than at x.
        restarts: repeat from a new random point; the worst result of all counts.
        loss: per-sample loss; :func:`~modelsec.losses.log_odds` has cross-entropy's direction
            and keeps it where cross-entropy saturates.
        start: (N, ...) begin here instead; inside the ball and the box.
        early_stop: leave a sample alone once it is misclassified (evaluation); False goes on to
            the worst loss (adversarial training).
        callback: called with every :class:`~modelsec.attacks.common.Iterate`, start included.
        generator: draws the random starts; torch's global one if None.

    Returns:
        (N, ...), dtype and device of ``x``: for each sample the point of highest loss after
        any step; with early stop, the first point that was misclassified, if one was.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Madry et al. (2018), https://arxiv.org/abs/1706.06083, section 2.1.
    """
    x, y = check_inputs(model, x, y)
    ball = check_norm(norm)
    radius = check_radius(eps, x, ball)
    if not all(isinstance(count, int) and count >= 1 for count in (steps, restarts)):
        raise ValueError(f"steps and restarts must be whole, 1 or more: got {steps}, {restarts}")
    size = 2.5 * radius / steps
    if step_size is not None:
        size = per_sample_value("step_size", step_size, x)
    origin = x if start is None else check_start(start, x, radius, ball)
    random_start = random_start and start is None
    if not len(x):
        return x.clone()

    objective, search = Objective(model, loss, targeted), Search(x, early_stop, callback)
    region = ball.region(x, radius)
    with inference(model):
        for restart in range(restarts):
            # drawn for the whole batch: a sample's start doesn't depend on which are still open
            begin = ball.sample(x, radius, generator) if random_start else origin
            todo = search.open(begin, y, size, region)
            if not len(todo.rows):
                break
            for step in range(steps):
                value, reached, gradient = objective.gradient(todo.adv, todo.y)
                search.note(todo, value, reached, restart, step)
                todo, gradient = search.drop(todo, gradient, reached)
                if not len(todo.rows):
                    break
                ascent = ball.step(todo.adv, todo.size, gradient)
                todo = todo._replace(adv=ball.confine_(ascent, todo.region))
            else:
                search.note(todo, *objective(todo.adv, todo.y), restart, steps)
    return search.point
