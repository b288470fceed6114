"""Graders for the chapter on black-box attacks."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require

__all__ = ["accounts_needed", "nes_gradient", "queries_for_gradient", "stateful_detector"]


def _single(answer: Any) -> bool:
    return isinstance(answer, Real) or (isinstance(answer, Tensor) and answer.numel() == 1)


@grader("For a photograph of 224 x 224 x 3 it would be some 300,000: hence random directions.")
def queries_for_gradient(answer: Any) -> None:
    """Grade a number: images shown for one gradient of a 28 x 28 image by central differences."""
    require(not callable(answer), "Give a number, not a function.")
    require(_single(answer), f"Give one number; this is of type {type(answer).__name__}.")
    value = float(answer)
    require(
        value not in (784, 785),
        "That is the price of one-sided differences. A central one shows two images for each pixel.",
    )
    require(
        value not in (2 * 28, 2 * 28 + 1),
        "An image 28 pixels wide and 28 high has more than 28 pixels.",
    )
    require(
        value not in (7840, 15680),
        "One query returns all ten scores at once: the classes cost nothing extra.",
    )
    require(
        value == 1568,
        f"{value:g} is not it. How many pixels are there, and how many images does each one need?",
    )


@grader("With a projection and a loop around it, this is the NES attack.")
def nes_gradient(solution: Any) -> None:
    """Grade ``f(score, x (d,), sigma, u (k, d)) -> (d,)``; score maps (n, d) to (n,)."""
    generator = torch.Generator().manual_seed(5)
    both = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    x, w = both[0], both[1]
    u = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    shown: list[int] = []

    def linear(points: Tensor) -> Tensor:
        require(
            isinstance(points, Tensor) and points.dim() == 2 and points.shape[1] == 12,
            "Show score a batch of shape (n, 12), a row for each image.",
        )
        shown.append(len(points))
        return points @ w

    got = solution(linear, x.clone(), 0.1, u.clone())
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(got.shape == (12,), f"The gradient has shape (12,), yours has {tuple(got.shape)}.")
    wanted = ((u @ w)[:, None] * u).mean(0)
    _right_scale(got, wanted)
    require(
        sum(shown) <= 60,
        f"30 directions cost 60 images. You showed {sum(shown)}: what else was asked?",
    )

    def even(points: Tensor) -> Tensor:
        return (points - x).square().sum(1)

    flat = solution(even, x.clone(), 0.1, u.clone())
    require(
        float(flat.abs().max()) < 1e-9,
        "On a function that is the same in both directions from x the estimate must be 0. Compare "
        "x + sigma * u with x - sigma * u, not with x.",
    )

    def bent(points: Tensor) -> Tensor:
        return (points - x).pow(3).sum(1) + points @ w

    again = solution(bent, x.clone(), 0.5, u.clone())
    rise = (0.5 * u).pow(3).sum(1) + 0.5 * (u @ w)
    _right_scale(again, (rise[:, None] * u).mean(0) / 0.5)


def _right_scale(got: Tensor, wanted: Tensor) -> None:
    got, size = got.double(), wanted.norm()
    ratio = float((got @ wanted) / size**2)
    if float((got / got.norm() - wanted / size).norm()) < 1e-6:  # the direction is right
        require(
            abs(ratio - 2) > 1e-6,
            "Twice too long: the two images are 2 sigma apart, not sigma.",
        )
        require(
            abs(ratio - 30) > 1e-4,
            "You took the sum over the directions. The gradient is their mean.",
        )
        require(
            abs(ratio - 1) < 1e-6,
            f"The direction is right, the length is {ratio:.3g} times what it should be: divide by "
            "2 sigma, and by the number of directions.",
        )
    require(
        float(got @ wanted) > 0,
        "Your estimate points downhill. Which of the two scores is subtracted from which?",
    )
    require(
        float((got - wanted).norm()) < 1e-6 * float(size),
        "Not the right direction. Each direction u counts by how much the score rises along it.",
    )


@grader("Square and NES can't ask a hundred times about one image without being seen by it.")
def stateful_detector(solution: Any) -> None:
    """Grade ``f(queries (T, d), k, threshold) -> flags (T,)``: mean distance to k earlier ones."""
    generator = torch.Generator().manual_seed(2)
    normal = torch.rand(80, 64, generator=generator)
    target = torch.rand(1, 64, generator=generator)
    attack = target + 0.05 * (torch.rand(40, 64, generator=generator) - 0.5)
    k, threshold = 10, 1.0  # normal images lie about 3.2 apart, the attack's about 0.16

    def ask(queries: Tensor, few: int = k, below: float = threshold) -> Tensor:
        got: Tensor = solution(queries.clone(), few, below)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.shape == (len(queries),) and got.dtype == torch.bool,
            f"Return one bool per query, shape ({len(queries)},); yours is {got.dtype} of shape "
            f"{tuple(got.shape)}.",
        )
        return got

    flags = ask(attack)
    require(
        not bool(flags[:k].any()),
        f"One of the first {k} queries is flagged. It has fewer than k = {k} before it: not enough "
        "to tell. (Is a query counted as its own neighbour?)",
    )
    require(
        bool(flags[k:].all()),
        "40 queries about one image were shown, and some after the first ten are not flagged.",
    )
    require(
        not bool(ask(normal).any()),
        "80 images that have nothing to do with each other were shown, and some are flagged.",
    )
    twice = torch.cat([normal, normal[:5]])
    require(
        not bool(ask(twice).any()),
        "Somebody who sends one image twice is flagged. Take the mean over k neighbours, not the "
        "nearest one.",
    )
    mixed = torch.stack([normal[:40], attack], 1).flatten(0, 1)  # a user, the attacker, a user...
    flags = ask(mixed)
    require(
        not bool(flags[::2].any()),
        "With an attack going on, the queries of others are flagged.",
    )
    require(
        bool(flags[1 + 2 * k :: 2].all()),
        "The attacker hid every other query behind somebody else's, and was lost. Compare with all "
        "earlier queries, not with the latest ones only.",
    )
    late = ask(torch.cat([normal[:20], attack]))
    require(
        not bool(late[: 20 + k // 2].any()) and torch.equal(ask(mixed[:45]), flags[:45]),
        "A query is flagged for what is asked after it. A service answers at once: look back only.",
    )
    sparse = torch.arange(6.0)[:, None]  # distances 1, 2, 3, ...
    require(
        ask(sparse, 2, 1.6).tolist() == [False, False, True, True, True, True]
        and ask(sparse, 2, 1.4).tolist() == [False] * 6,
        "For points 0, 1, 2, ... and k = 2 the two nearest earlier ones lie 1 and 2 away: a mean of "
        "1.5. Flag what is below the threshold.",
    )


@grader("This is why a limit for each account is no stronger than the price of an account.")
def accounts_needed(solution: Any) -> None:
    """Grade ``f(queries, k) -> accounts`` if an account can't be flagged before query k + 1."""
    for queries, k, wanted in (
        (1000, 50, 20),
        (1001, 50, 21),
        (50, 50, 1),
        (1, 50, 1),
        (99, 10, 10),
    ):
        got = solution(queries, k)
        require(_single(got), f"Return one number, not {type(got).__name__}.")
        require(float(got).is_integer(), "There is no half account: return a whole number.")
        require(
            not (queries == 1001 and got == 20),
            "1001 queries with 20 accounts of 50 each: who asks the last one?",
        )
        require(
            not (queries in (1000, 50) and got == wanted + 1),
            f"{queries} queries at {k} each come out even: one account too many.",
        )
        require(
            got == wanted,
            f"For {queries} queries and k = {k} it is {wanted}, you have {got:g}. A query is flagged "
            "when k earlier ones of its account are near: how many can each account ask?",
        )
