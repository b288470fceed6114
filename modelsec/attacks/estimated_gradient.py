"""Attacks that estimate a gradient from scores: NES and SPSA. Both ask in pairs, x + d and x - d."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modelsec.attacks.common import (
    Active,
    Iterate,
    Model,
    Objective,
    Search,
    check_counts,
    check_inputs,
    check_norm,
    check_radius,
    per_sample_value,
)
from modelsec.attacks.gradient import StepSize
from modelsec.losses import margin
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["nes", "spsa"]

BLOCK = 512  # images in one call of the model


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="scores",
        norms=("linf", "l2"),
        cost="queries",
        source="https://arxiv.org/abs/1804.08598",
    )
)
def nes(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    queries: int = 2000,
    pairs: int = 25,
    sigma: float = 0.01,
    step_size: StepSize | None = None,
    decay: float = 0.9,
    targeted: bool = False,
    early_stop: bool = True,
    callback: Callable[[Iterate], object] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """NES: projected gradient ascent along a gradient that is estimated from scores.

    The gradient of the margin f, smoothed by a normal distribution, is a mean over random
    directions u: ``g = mean (f(x + sigma u) - f(x - sigma u)) u / (2 sigma)``. Asked in such pairs
    ("antithetic sampling") what is even in u cancels. Every image that is asked about is clipped
    to [0, 1] first, as a service would refuse any other, and the difference of the two images
    stands in for u.

    A step takes ``2 * pairs`` queries for the gradient and one for the new point; the first query
    is about x itself. All samples are tried with the same directions, so that a sample's result
    does not depend on its batch.

    Args:
        model: maps images (N, ...) in [0, 1] to scores (N, K) whose largest is the answer.
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        norm: "linf" or "l2".
        queries: how often each sample may be shown to the model, at most. The last step makes do
            with what is left; with fewer than 4 there is no step.
        pairs: of images for one estimate.
        sigma: standard deviation of the smoothing, in pixels' units.
        step_size: in the same units as eps: one number, one per sample (N,), or a function from
            progress in [0, 1) to either; eps / 2 if None.
        decay: how much of the sum of earlier estimates is kept in each step, 0 or more.
        targeted: reach y instead of getting away from it.
        early_stop: leave a sample alone once its goal is reached.
        callback: called after every step with an :class:`~modelsec.attacks.common.Iterate`, whose
            ``step`` is the number of queries so far.
        generator: draws the directions; torch's global one if None.

    Returns:
        (N, ...), dtype and device of ``x``: for each sample the point of largest margin after any
        step; with early stop, the first that reached the goal.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Ilyas et al. (2018), https://arxiv.org/abs/1804.08598, section 2.2 and algorithm 1; the
        momentum is that of its authors' code.
    """
    return _climb(
        model, x, y, eps=eps, norm=norm, queries=queries, pairs=pairs, sigma=sigma,
        step_size=step_size, decay=decay, signs=False, targeted=targeted,
        early_stop=early_stop, callback=callback, generator=generator,
    )  # fmt: skip


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="scores",
        norms=("linf", "l2"),
        cost="queries",
        source="https://arxiv.org/abs/1802.05666",
    )
)
def spsa(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    queries: int = 2000,
    pairs: int = 25,
    sigma: float = 0.01,
    step_size: StepSize | None = None,
    targeted: bool = False,
    early_stop: bool = True,
    callback: Callable[[Iterate], object] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """SPSA: as :func:`nes`, with directions of random signs, and in linf with Adam's steps.

    Each pixel of a direction is +1 or -1, with equal probability, so that a pair tries all pixels
    by the same amount. Adam divides each pixel's mean estimate by how much it varies: where only
    noise is seen, the pixel hardly moves. (In l2 that would turn the step away from the gradient,
    so there the steps are those of NES.)

    Args:
        model: maps images (N, ...) in [0, 1] to scores (N, K) whose largest is the answer.
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        norm: "linf" or "l2".
        queries: how often each sample may be shown to the model, at most, as for :func:`nes`.
        pairs: of images for one estimate.
        sigma: by how much a pair changes each pixel.
        step_size: of Adam's steps, its learning rate; given as for :func:`nes`.
        targeted: reach y instead of getting away from it.
        early_stop: leave a sample alone once its goal is reached.
        callback: as for :func:`nes`.
        generator: draws the directions; torch's global one if None.

    Returns:
        (N, ...) perturbed images, as :func:`nes` does.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Uesato et al. (2018), https://arxiv.org/abs/1802.05666, section 4 (linf).
    """
    return _climb(
        model, x, y, eps=eps, norm=norm, queries=queries, pairs=pairs, sigma=sigma,
        step_size=step_size, decay=0.9, signs=True, targeted=targeted,
        early_stop=early_stop, callback=callback, generator=generator,
    )  # fmt: skip


def _climb(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str,
    queries: int,
    pairs: int,
    sigma: float,
    step_size: StepSize | None,
    decay: float,
    signs: bool,
    targeted: bool,
    early_stop: bool,
    callback: Callable[[Iterate], object] | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The loop of both: estimate, step, look; ``step`` counts the queries of a sample so far."""
    x, y = check_inputs(model, x, y)
    ball = check_norm(norm, "linf", "l2")
    radius = check_radius(eps, x, ball)
    check_counts(queries=queries, pairs=pairs)
    per_sample_value("decay", decay, x[:1])
    if not 0 < sigma < 1:
        raise ValueError(f"sigma must lie between 0 and 1, got {sigma}")
    size, adam = radius / 2, signs and norm == "linf"
    if step_size is not None and not callable(step_size):
        size = per_sample_value("step_size", step_size, x)
    if not len(x):
        return x.clone()

    objective, search = Objective(model, margin, targeted), Search(x, early_stop, callback)
    # sums of estimates are kept in float32 at least, whatever the images are
    state = x.new_zeros(len(x), 2, *x.shape[1:], dtype=torch.promote_types(x.dtype, torch.float32))
    with inference(model), torch.no_grad():
        todo, asked, step = search.open(x, y, size, ball.region(x, radius)), 1, 0
        _look(objective, search, todo, asked=0)
        todo, state = search.drop(todo, state, search.reached[todo.rows])
        while len(todo.rows) and (left := (queries - asked - 1) // 2) > 0:
            if callable(step_size):
                size = per_sample_value("step_size", step_size((asked - 1) / queries), x)
                todo = todo._replace(size=size[todo.rows])
            count, step = min(pairs, left), step + 1
            directions = _directions(signs, count, x, generator)
            gradient = _estimate(objective, todo.adv, todo.y, sigma * directions)
            course = _adam(state, gradient, step) if adam else _momentum(state, gradient, decay)
            course = course.to(x.dtype)
            ascent = (
                torch.addcmul(todo.adv, todo.size, course)
                if adam
                else ball.step(todo.adv, todo.size, course)
            )
            todo = todo._replace(adv=ball.confine_(ascent, todo.region))
            asked += 2 * count + 1
            _look(objective, search, todo, asked)
            todo, state = search.drop(todo, state, search.reached[todo.rows])
    return search.point


def _look(objective: Objective, search: Search, todo: Active, asked: int) -> None:
    value, reached = objective(todo.adv, todo.y)
    search.note(todo, value, reached, 0, asked)


def _directions(signs: bool, count: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """(count, ...) random signs or normal numbers, drawn on the generator's own device."""
    device = x.device if generator is None else generator.device
    shape, dtype = (count, *x.shape[1:]), torch.promote_types(x.dtype, torch.float32)
    drawn = torch.randn(shape, generator=generator, device=device, dtype=dtype).to(x.device)
    return torch.where(drawn < 0, -1, 1).to(dtype) if signs else drawn


def _estimate(objective: Objective, adv: Tensor, y: Tensor, changes: Tensor) -> Tensor:
    """The sum over pairs of (rise of the objective) x (way from one image to the other): (n, ...).

    Args:
        objective: what is driven up.
        adv: (n, ...) where the gradient is wanted.
        y: (n,) labels.
        changes: (pairs, ...) added to each sample, and subtracted.
    """
    total = torch.zeros_like(adv, dtype=changes.dtype)
    for block in changes.split(max(BLOCK // (2 * len(adv)), 1)):
        centre, change = adv.to(changes.dtype)[None], block[:, None]
        # as the model sees them: valid images, of the type that it takes
        ahead, behind = ((centre + s * change).clamp(0, 1).to(adv.dtype) for s in (1, -1))
        shown = torch.stack([ahead, behind])  # (2, block, n, ...)
        value, _ = objective(shown.flatten(0, 2), y.repeat(2 * len(block)))
        there, back = value.to(total.dtype).view(2, len(block), len(adv))
        way = (ahead - behind).to(total.dtype)
        rise = (there - back).view(len(block), len(adv), *[1] * (adv.dim() - 1))
        total += (rise * way).sum(0)
    return total


def _momentum(state: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """The sum of all estimates, older ones counting less; ``state`` is brought up to date."""
    state[:, 0].mul_(decay).add_(gradient)
    return state[:, 0]


def _adam(state: Tensor, gradient: Tensor, step: int) -> Tensor:
    """Adam's step of learning rate 1; without its small number in the denominator."""
    mean, square = state[:, 0], state[:, 1]
    mean.mul_(0.9).add_(gradient, alpha=0.1)
    square.mul_(0.999).add_(gradient.square(), alpha=0.001)
    scale = (square / (1 - 0.999**step)).sqrt_()
    return mean / (1 - 0.9**step) / torch.where(scale > 0, scale, 1)
