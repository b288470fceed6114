"""Graders for the chapter on finance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require
from modelsec.check.loss import number

__all__ = ["cost_when_gamed", "first_alarm", "one_hot_swap", "refuse_above"]


@grader("The two mistakes differ by a factor of five, so the border is far from one half.")
def refuse_above(answer: Any) -> None:
    """Grade a number: the probability of a bad risk from which refusing is the cheaper decision."""
    answer = number(answer)
    for wrong, why in (
        (0.5, "That is the border where both mistakes cost the same. Here one costs five times."),
        (0.2, "Nearly: 5 p is compared with 1 - p, not with 1. A good one refused occurs with 1 - p."),
        (5 / 6, "That would be right if refusing a good risk cost five times as much. It is the "
         "other way round."),
        (5.0, "That is the ratio of the costs. Which probability makes both decisions cost the same?"),
    ):  # fmt: skip
        require(not abs(answer - wrong) <= 0.005, why)
    require(
        abs(answer - 1 / 6) <= 0.005,
        f"{answer:.4g} is not it. Accepting costs 5 p on average, refusing costs 1 - p. Where do "
        "the two lines cross?",
    )


@grader("One 1 in every block, nothing changed that is fixed, and the best single swap.")
def one_hot_swap(solution: Any) -> None:
    """Grade ``f(encoded (N, W), gradient (N, W), blocks, fixed) -> encoded``: a mended attack."""
    generator = torch.Generator().manual_seed(5)
    blocks = [slice(0, 1), slice(1, 5), slice(5, 7), slice(7, 10)]  # a number, three categories
    for fixed in ((2,), (1,), ()):
        encoded = _rows(12, blocks, generator)
        gradient = torch.randn(12, 10, generator=generator)
        kept = encoded.clone()
        got = solution(encoded, gradient.clone(), list(blocks), fixed)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.shape == kept.shape, f"Return shape {tuple(kept.shape)}, not {tuple(got.shape)}."
        )
        require(torch.equal(encoded, kept), "The input was changed in place: work on a clone.")
        require(torch.equal(got[:, 0], kept[:, 0]), "The number in the first column is to stay.")
        for k, block in enumerate(blocks[1:], start=1):
            own = got[:, block]
            require(
                bool(((own == 0) | (own == 1)).all()),
                "A category's inputs are 0 or 1; some of yours are neither.",
            )
            sums = own.sum(1)
            require(
                bool((sums == 1).all()),
                f"Block {k} of some row has {int(sums.max())} ones and of some {int(sums.min())}: "
                "an applicant is in exactly one category. Is the old one switched off?",
            )
            changed = (own != kept[:, block]).any(1)
            require(
                k not in fixed or not bool(changed.any()), f"Block {k} is fixed; it was changed."
            )
        _is_best(got, kept, gradient, blocks, fixed)


def _is_best(
    got: Tensor, kept: Tensor, gradient: Tensor, blocks: list[slice], fixed: tuple[int, ...]
) -> None:
    for row, was, slope in zip(got, kept, gradient, strict=True):
        gains = {
            (k, j): float(slope[block][j] - slope[block][was[block].argmax()])
            for k, block in enumerate(blocks)
            if k and k not in fixed
            for j in range(block.stop - block.start)
        }
        moved = [k for k, block in enumerate(blocks) if not torch.equal(row[block], was[block])]
        require(
            len(moved) <= 1, f"{len(moved)} blocks of one row were changed; swap one at a time."
        )
        best = max(gains.values())
        require(bool(moved) or best <= 0, "A row was left as it is though a swap would help.")
        if moved:
            gain = gains[moved[0], int(row[blocks[moved[0]]].argmax())]
            require(
                gain >= best - 1e-6,
                f"A swap gains the new category's gradient minus the old one's: the best here is "
                f"{best:.3f}, yours {gain:.3f}.",
            )


def _rows(n: int, blocks: list[slice], generator: torch.Generator) -> Tensor:
    encoded = torch.zeros(n, blocks[-1].stop)
    encoded[:, 0] = torch.rand(n, generator=generator)
    for block in blocks[1:]:
        pick = torch.randint(block.stop - block.start, (n,), generator=generator)
        encoded[torch.arange(n), block.start + pick] = 1
    return encoded


@grader("This is the number to put beside the cost on honest rows.")
def cost_when_gamed(solution: Any) -> None:
    """Grade ``f(price, bad, accepted, budget) -> mean cost`` when bad risks may spend a budget."""
    price = torch.tensor([0.0, 30, 80, 200, torch.inf, 0.0, 40, 0.0])
    bad = torch.tensor([True, True, True, True, True, False, False, False])
    accepted = torch.tensor([True, False, False, False, False, True, False, True])
    for budget, paid in ((0.0, 1), (50.0, 2), (100.0, 3), (1e6, 4)):
        got = number(solution(price.clone(), bad.clone(), accepted.clone(), budget))
        wanted = (5 * paid + 1) / 8
        require(
            not abs(got - 8 * wanted) <= 1e-4,
            "That is the sum; divide by the number of applicants.",
        )
        require(
            not abs(got - (5 * paid + (0 if budget >= 40 else 1)) / 8) <= 1e-4
            or abs(got - wanted) <= 1e-4,
            "You let a good risk spend money too. Here only bad risks change their row.",
        )
        require(
            not (abs(got - 6 / 8) <= 1e-4 and paid > 1),
            "Your cost does not depend on the budget: a bad risk is accepted if its price is within it.",
        )
        require(
            abs(got - wanted) <= 1e-4,
            f"With a budget of {budget:g} the mean cost is {wanted:.4f}, yours {got:.4f}: 5 for each "
            "bad risk whose price is at most the budget, 1 for each good one refused.",
        )


@grader("A monitor on what people claim sees what a monitor on losses can't.")
def first_alarm(solution: Any) -> None:
    """Grade ``f(marked, applied, share, alpha) -> round``: a one-sided binomial alarm, -1 for none."""
    for marked, applied, share, alpha, wanted in (
        ([2, 3, 12, 11], [100, 100, 110, 110], 0.02, 0.01, 2),
        ([8, 3, 2, 2], [100, 100, 100, 100], 0.02, 0.01, 0),
        ([2, 3, 4, 2], [100, 100, 100, 100], 0.02, 0.01, -1),
        ([0, 0, 1, 0], [100, 100, 100, 100], 0.2, 0.01, -1),
        ([3, 6, 9, 2], [50, 100, 100, 100], 0.03, 0.01, 2),
        ([3, 7, 9, 2], [50, 100, 100, 100], 0.03, 0.05, 1),
        ([2, 6, 7, 8], [100, 100, 100, 100], 0.02, 0.01, 2),
    ):
        got = number(solution(list(marked), list(applied), share, alpha))
        seen = [_at_least(m, n, share) for m, n in zip(marked, applied, strict=True)]
        chances = ", ".join(f"{chance:.2g}" for chance in seen)
        require(
            got == wanted,
            f"For {marked} of {applied}, a usual share of {share:g} and alpha {alpha:g} the answer "
            f"is {wanted}; yours is {got:g}. The chances of so many or more are {chances}.",
        )


def _at_least(count: int, n: int, share: float) -> float:
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(count, n + 1))
