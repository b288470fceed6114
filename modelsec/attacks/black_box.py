"""Attacks that see only the model's answers. They ask, and keep count of their questions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from modelsec.attacks.common import (
    Iterate,
    Model,
    Objective,
    check_counts,
    check_inputs,
    check_norm,
    check_radius,
)
from modelsec.attacks.norms import per_sample, readable
from modelsec.losses import margin
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["square"]

# (until this share of the budget, the window's area is divided by this)
SCHEDULE = (
    (0.001, 1), (0.005, 2), (0.02, 4), (0.05, 8), (0.1, 16), (0.2, 32), (0.4, 64), (0.6, 128),
    (0.8, 256), (1.0, 512),
)  # fmt: skip


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="scores",
        norms=("linf", "l2"),
        cost="queries",
        source="https://arxiv.org/abs/1912.00049",
    )
)
def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    queries: int = 5000,
    share: float = 0.8,
    targeted: bool = False,
    early_stop: bool = True,
    callback: Callable[[Iterate], object] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Square attack: change a square of the image at random, keep the change if it helps.

    It begins with vertical stripes of +eps and -eps. Each query tries one window at a random place,
    large at first and smaller and smaller. In linf all pixels of the window move to x + eps or to
    x - eps, channel by channel; in l2 the window receives two bumps of opposite sign, paid for with
    what another window gives up. A change is kept where the margin grows. No gradient is used, so
    nothing that hides gradients hides from it.

    All samples are tried with the same windows and signs. So a sample's result depends on the
    generator's state only, not on its batch; one image after the other would be drawn differently.

    Args:
        model: maps images (N, ...) in [0, 1] to scores (N, K) whose largest is the answer.
        x: (N, C, H, W) float in [0, 1]; of other shapes the last two dimensions are height and
            width, and (N, D) is an image one pixel high.
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        norm: "linf" or "l2".
        queries: how often each sample may be shown to the model, at most; the first is the stripes.
        share: of the image's area that the first window covers, above 0 and at most 1.
        targeted: reach y instead of getting away from it.
        early_stop: leave a sample alone once its goal is reached.
        callback: called after every query with an :class:`~modelsec.attacks.common.Iterate`: its
            ``step`` is the number of the query, from 1, ``rows`` are the samples that were asked
            about, ``adv`` and ``loss`` the best points and margins so far.
        generator: draws windows and signs; torch's global one if None.

    Returns:
        (N, ...), dtype and device of ``x``: for each sample the point of largest margin.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Andriushchenko et al. (2020), https://arxiv.org/abs/1912.00049, and its authors' code,
        https://github.com/max-andr/square-attack; the schedule, given for 10,000 queries, is scaled
        to the budget.
    """
    x, y = check_inputs(model, x, y)
    radius = check_radius(eps, x, check_norm(norm, "linf", "l2"))
    check_counts(queries=queries)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if not len(x):
        return x.clone()
    objective = Objective(model, margin, targeted)
    height = x.shape[-2] if x.dim() > 2 else 1
    images = x.reshape(len(x), -1, height, x.shape[-1])
    move: _Move = (_Squares if norm == "linf" else _Bumps)(images, radius.view(-1, 1, 1, 1))
    # all at once: what is drawn later with this generator doesn't depend on when this search ends
    (first,), later = (
        _draws(rows, n, generator) for rows, n in ((1, move.first), (queries, move.each))
    )
    adv, result, rows = move.start(first), x.clone(), torch.arange(len(x), device=x.device)
    early_stop = early_stop and readable(x)
    with inference(model), torch.no_grad():
        value, reached = objective(adv.clone().view_as(x), y)
        for query in range(1, queries + 1):
            if query > 1:
                part, new = move.propose(
                    adv, share * _fraction(query - 2, queries), later[query - 2]
                )
                tried = adv.clone()  # what the model was shown, and may keep, is not written on
                tried[part] = new
                asked, hit = objective(tried.view(-1, *x.shape[1:]), y)
                better = asked > value
                if early_stop:
                    better, reached = better | hit, hit
                adv[part] = torch.where(per_sample(better, adv), new, adv[part])
                value = torch.where(better, asked, value)
            if callback is not None:
                callback(Iterate(0, query, rows, adv.view(-1, *x.shape[1:]).clone(), value.clone()))
            if early_stop and bool(reached.any()):
                keep = (~reached).nonzero()[:, 0]
                result[rows[reached]] = adv[reached].view(-1, *x.shape[1:])
                adv, value, y, rows = adv[keep], value[keep], y[keep], rows[keep]
                move.keep(keep)
                if not len(keep):
                    break
    result[rows] = adv.view(-1, *x.shape[1:])
    return result


Part = tuple[slice, slice, slice, slice]


class _Move(Protocol):
    """One norm's random changes.

    Attributes:
        first: how many random numbers in [0, 1) the start takes.
        each: how many a change takes.
    """

    first: int
    each: int

    def start(self, drawn: list[float]) -> Tensor:
        """The first point, from the numbers drawn for it: (N, C, H, W)."""

    def propose(self, adv: Tensor, share: float, drawn: list[float]) -> tuple[Part, Tensor]:
        """A part of the images, and what is to stand there, for a window of that share."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these samples only."""


class _Squares:
    """linf: a window's pixels all go to the upper or the lower end of what is allowed."""

    def __init__(self, x: Tensor, radius: Tensor) -> None:
        self.low, self.high = check_norm("linf").region(x, radius)
        _, self.channels, self.height, self.width = x.shape
        self.first, self.each = self.channels * self.width, 2 + self.channels

    def start(self, drawn: list[float]) -> Tensor:
        """See :class:`_Move`: stripes, one pixel wide."""
        up = self.up(drawn).view(self.channels, 1, self.width)
        return torch.where(up, self.high, self.low)

    def propose(self, adv: Tensor, share: float, drawn: list[float]) -> tuple[Part, Tensor]:
        """See :class:`_Move`. Where that would change nothing, the signs are turned round."""
        side = max(round(math.sqrt(share * self.height * self.width)), 1)
        part = _window(side, self.height, self.width, drawn[:2])
        up = self.up(drawn[2:]).view(-1, 1, 1)
        low, high, old = self.low[part], self.high[part], adv[part]
        idle = per_sample((old == torch.where(up, high, low)).flatten(1).all(1), old)
        return part, torch.where(up ^ idle, high, low)

    def up(self, drawn: list[float]) -> Tensor:
        return torch.tensor([u < 0.5 for u in drawn], device=self.low.device)

    def keep(self, rows: Tensor) -> None:
        """See :class:`_Move`."""
        self.low, self.high = self.low[rows], self.high[rows]


class _Bumps:
    """l2: two bumps of opposite sign in one window, paid for by it and by another."""

    def __init__(self, x: Tensor, radius: Tensor) -> None:
        self.x, self.radius, self.ball = x, radius, check_norm("l2")
        _, self.channels, self.height, self.width = x.shape
        self.tall, self.wide = max(self.height // 5, 1), max(self.width // 5, 1)
        self.rows, self.columns = (
            min(5, self.height // self.tall),
            min(5, self.width // self.wide),
        )
        self.each = 5 + self.channels
        self.first = self.rows * self.columns * (1 + self.channels)
        self.bumps: dict[tuple[int, int], Tensor] = {}

    def start(self, drawn: list[float]) -> Tensor:
        """See :class:`_Move`: five by five tiles with bumps, of length eps together."""
        delta, drawn = torch.zeros_like(self.x[:1]), list(drawn)
        top = (self.height - self.rows * self.tall) // 2
        left = (self.width - self.columns * self.wide) // 2
        for i in range(top, top + self.rows * self.tall, self.tall):
            for j in range(left, left + self.columns * self.wide, self.wide):
                now, drawn = drawn[: 1 + self.channels], drawn[1 + self.channels :]
                bump = self.bump(self.tall, self.wide, now)
                delta[..., i : i + self.tall, j : j + self.wide] = bump
        delta = self.radius * delta / self.ball.size(delta)
        return self.ball.project(self.x + delta, self.x, self.radius)

    def propose(self, adv: Tensor, share: float, drawn: list[float]) -> tuple[Part, Tensor]:
        """See :class:`_Move`. The whole image is given, since its length is shared."""
        side = max(round(math.sqrt(share * self.height * self.width)), 3) // 2 * 2 + 1  # odd
        here, there = (_window(side, self.height, self.width, drawn[at : at + 2]) for at in (0, 2))
        delta = adv - self.x
        old, used = delta[here], delta.square().sum((2, 3), keepdim=True)
        unused = (self.radius**2 - used.sum(1, keepdim=True)).clamp_min(0)
        old = old / _positive(torch.linalg.vector_norm(old, dim=(2, 3), keepdim=True))
        delta[here] = 0
        delta[there] = 0
        freed = (used - delta.square().sum((2, 3), keepdim=True)).clamp_min(0)
        new = self.bump(old.shape[2], old.shape[3], drawn[4:]) + old
        new = new / _positive(torch.linalg.vector_norm(new, dim=(2, 3), keepdim=True))
        delta[here] = new * (freed + unused / self.channels).sqrt()
        whole = (slice(None),) * 4
        return whole, self.ball.confine_(delta.add_(self.x), (self.x, self.radius))

    def bump(self, height: int, width: int, drawn: list[float]) -> Tensor:
        """(1, C, height, width): upright or lying, and with a sign for each channel."""
        lying = drawn[0] < 0.5
        size = (width, height) if lying else (height, width)
        if size not in self.bumps:
            self.bumps[size] = _two_bumps(*size).to(self.x)
        bump = self.bumps[size].T if lying else self.bumps[size]
        sign = torch.tensor([1 if u < 0.5 else -1 for u in drawn[1:]], device=bump.device)
        return sign.view(1, -1, 1, 1) * bump

    def keep(self, rows: Tensor) -> None:
        """See :class:`_Move`."""
        self.x, self.radius = self.x[rows], self.radius[rows]


def _draws(rows: int, n: int, generator: torch.Generator | None) -> list[list[float]]:
    device = "cpu" if generator is None else generator.device
    drawn = torch.rand(rows, n, generator=generator, device=device, dtype=torch.float64)
    # a tensor without values (FakeTensorMode) draws none
    numbers: list[list[float]] = drawn.tolist() if readable(drawn) else [[0.5] * n] * rows
    return numbers


def _fraction(step: int, queries: int) -> float:
    """By what the first window's area is multiplied in a step, counted from 0."""
    done = int(step / queries * 10_000) / 10_000
    return next(1 / divisor for end, divisor in SCHEDULE if done <= end)


def _window(side: int, height: int, width: int, drawn: list[float]) -> Part:
    """A window of so many pixels each way, or as many as there are, at a random place."""
    tall, wide = min(side, height), min(side, width)
    top, left = (
        int(u * (size - length + 1))
        for u, size, length in zip(drawn, (height, width), (tall, wide), strict=True)
    )
    return slice(None), slice(None), slice(top, top + tall), slice(left, left + wide)


def _two_bumps(height: int, width: int) -> Tensor:
    """(height, width) of length 1: a bump above, and one of the opposite sign below."""
    halves = [_one_bump(height // 2, width), -_one_bump(height - height // 2, width)]
    both = torch.cat(halves)
    return _of_length_1(both)


def _one_bump(height: int, width: int) -> Tensor:
    """(height, width) of length 1, falling from its middle like a sum of 1 / k^2."""
    if not height:
        return torch.zeros(0, width, dtype=torch.float64, device="cpu")
    down, right = ((torch.arange(size, device="cpu") - size // 2).abs() for size in (height, width))
    ring = torch.maximum(down[:, None], right[None])
    count = max(height, width) // 2 + 1
    terms = 1 / torch.arange(1, count + 1, dtype=torch.float64, device="cpu") ** 2
    bump = terms.flip(0).cumsum(0).flip(0)[ring]
    return _of_length_1(bump)


def _of_length_1(bump: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(bump)
    return bump / length


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1)
