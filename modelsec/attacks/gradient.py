"""Attacks that follow the gradient of the loss by the input: FGSM, BIM, PGD, MI-FGSM."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from modelsec.attacks.common import (
    Iterate,
    Model,
    Objective,
    Search,
    check_counts,
    check_inputs,
    check_norm,
    check_radius,
    check_start,
    per_sample_value,
)
from modelsec.attacks.norms import unit
from modelsec.losses import SampleLoss, log_odds
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["StepSize", "bim", "fgsm", "mi_fgsm", "pgd"]

StepSize = float | Tensor | Callable[[float], float | Tensor]
"""One number, one per sample (N,), or a function from progress in [0, 1) to either of them."""


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("linf", "l2", "l1"),
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
    [0, 1]. For l1 the pixel of the largest slope goes to the end of its range, then the next one,
    until eps is spent.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        norm: "linf", "l2" or "l1".
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
        norms=("linf", "l2", "l1"),
        cost="steps gradients",
        source="https://arxiv.org/abs/1607.02533",
    )
)
def bim(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    steps: int = 10,
    step_size: StepSize | None = None,
    norm: str = "linf",
    targeted: bool = False,
    loss: SampleLoss = log_odds,
    early_stop: bool = True,
    callback: Callable[[Iterate], object] | None = None,
) -> Tensor:
    """Basic iterative method: FGSM again and again with a small step, from x itself.

    :func:`pgd` without a random start, and with shorter steps.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        steps: gradient steps.
        step_size: as for :func:`pgd`; 1.25 * eps / steps if None, together a little longer than
            the way from x to the ball's wall.
        norm: "linf", "l2" or "l1".
        targeted: descend to y instead of climbing away from it.
        loss: per-sample loss; see :func:`fgsm`.
        early_stop: as for :func:`pgd`.
        callback: called with every :class:`~modelsec.attacks.common.Iterate`, start included.

    Returns:
        (N, ...) perturbed images, as :func:`pgd` does.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Kurakin et al. (2017), https://arxiv.org/abs/1607.02533, section 2.2.
    """
    return _climb(
        model, x, y, eps=eps, steps=steps, step_size=step_size, way=1.25, norm=norm,
        targeted=targeted, loss=loss, early_stop=early_stop, callback=callback,
    )  # fmt: skip


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("linf", "l2", "l1"),
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
    step_size: StepSize | None = None,
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

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        steps: gradient steps per restart.
        step_size: in the same units as eps: one number, one per sample (N,), or a function from
            progress in [0, 1) to either. If None, 2.5 * eps / steps, so that the steps can cross
            the ball and come back; in l1 eps * (1 - progress), since there each step takes from
            all pixels what it gives to a few, and only ever shorter ones come to rest.
        norm: "linf", "l2" or "l1".
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
        Madry et al. (2018), https://arxiv.org/abs/1706.06083, section 2.1; for l1 Croce & Hein
        (2021), https://arxiv.org/abs/2103.01208, section 3.
    """
    return _climb(
        model, x, y, eps=eps, steps=steps, step_size=step_size,
        way=None if norm == "l1" else 2.5, norm=norm,
        targeted=targeted, loss=loss, early_stop=early_stop, callback=callback, restarts=restarts,
        random_start=random_start and start is None, start=start, generator=generator,
    )  # fmt: skip


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("linf", "l2", "l1"),
        cost="steps gradients",
        source="https://arxiv.org/abs/1710.06081",
    )
)
def mi_fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    steps: int = 10,
    step_size: StepSize | None = None,
    decay: float = 1.0,
    norm: str = "linf",
    targeted: bool = False,
    loss: SampleLoss = log_odds,
    early_stop: bool = True,
    callback: Callable[[Iterate], object] | None = None,
) -> Tensor:
    """Momentum iterative FGSM: each step follows the sum of all gradients so far.

    ``g_{t+1} = decay * g_t + grad / ||grad||_1`` takes the place of the gradient in BIM. Steps that
    go to and fro cancel, and what is left carries over better to other models.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        steps: gradient steps.
        step_size: as for :func:`pgd`; eps / steps if None, as in the paper.
        decay: how much of the sum so far is kept, 0 or more; 0 is BIM.
        norm: "linf", "l2" or "l1".
        targeted: descend to y instead of climbing away from it.
        loss: per-sample loss; see :func:`fgsm`.
        early_stop: as for :func:`pgd`. To fool other models say False: the first point that fools
            this one lies just behind its boundary.
        callback: called with every :class:`~modelsec.attacks.common.Iterate`, start included.

    Returns:
        (N, ...) perturbed images, as :func:`pgd` does.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Dong et al. (2018), https://arxiv.org/abs/1710.06081, algorithm 1; its section 3.3 for l2.
    """
    return _climb(
        model, x, y, eps=eps, steps=steps, step_size=step_size, way=1.0, decay=decay,
        norm=norm, targeted=targeted, loss=loss, early_stop=early_stop, callback=callback,
    )  # fmt: skip


def _climb(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    steps: int,
    step_size: StepSize | None,
    way: float | None,
    norm: str,
    targeted: bool,
    loss: SampleLoss,
    early_stop: bool,
    callback: Callable[[Iterate], object] | None,
    decay: float = 0.0,
    random_start: bool = False,
    restarts: int = 1,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loop of all iterated attacks.

    ``way`` is how far all steps go together, in eps; None for steps that fall from eps to 0.

    Without its bookkeeping it is
    ``repeat steps times: adv = project(step(adv, size, gradient(adv)))``;
    the bookkeeping keeps each sample's worst point and, with early stop, drops the fooled ones.
    """
    x, y = check_inputs(model, x, y)
    ball = check_norm(norm)
    radius = check_radius(eps, x, ball)
    check_counts(steps=steps, restarts=restarts)
    per_sample_value("decay", decay, x[:1])
    size = radius if way is None else way * radius / steps
    if step_size is None and way is None:
        step_size = functools.partial(_falling, radius.flatten())
    elif step_size is not None and not callable(step_size):
        size = per_sample_value("step_size", step_size, x)
    origin = x if start is None else check_start(start, x, radius, ball)
    if not len(x):
        return x.clone()

    objective, search = Objective(model, loss, targeted), Search(x, early_stop, callback)
    region = ball.region(x, radius)
    with inference(model):
        for restart in range(restarts):
            # drawn for the whole batch: a sample's start doesn't depend on which are still open
            begin = ball.sample(x, radius, generator) if random_start else origin
            todo, course = search.open(begin, y, size, region), None
            if not len(todo.rows):
                break
            for step in range(steps):
                value, reached, gradient = objective.gradient(todo.adv, todo.y)
                search.note(todo, value, reached, restart, step)
                if decay:
                    gradient = course = _momentum(course, gradient, decay)
                todo, course = search.drop(todo, gradient, reached)
                if not len(todo.rows):
                    break
                if callable(step_size):
                    size = per_sample_value("step_size", step_size(step / steps), x)
                    todo = todo._replace(size=size[todo.rows])
                ascent = ball.step(todo.adv, todo.size, course)
                todo = todo._replace(adv=ball.confine_(ascent, todo.region))
            else:
                search.note(todo, *objective(todo.adv, todo.y), restart, steps)
    return search.point


def _falling(radius: Tensor, progress: float) -> Tensor:
    return radius * (1 - progress)


def _momentum(course: Tensor | None, gradient: Tensor, decay: float) -> Tensor:
    # each gradient counts alike: near the image it may be many times smaller than further on
    step = unit(gradient, 1)
    return step if course is None else course.mul_(decay).add_(step)
