"""Graders for the chapter on certified robustness."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.check.grading import grader, require
from modelsec.check.loss import number
from modelsec.repair import ABSTAIN, crown, ibp

__all__ = ["crown_looser", "interval_affine", "radius_cap", "vote_certificate"]

SIGMA, N, ALPHA = 0.5, 1000, 0.001
quantile = NormalDist().inv_cdf


@grader("No model, however good, gets more from a thousand noisy copies. More copies cost more.")
def radius_cap(answer: Any) -> None:
    """Grade a number: the largest radius that 1,000 votes of 1,000 can prove."""
    value = number(answer)
    share = ALPHA ** (1 / N)
    cap = SIGMA * quantile(share)
    for wrong, why in (
        (quantile(share), "That is the quantile. The radius is sigma times as much."),
        (share, "That is the bound on the probability. What is its normal quantile?"),
        (
            SIGMA * quantile(1 - ALPHA),
            "That is sigma times the quantile of 1 - alpha. The bound on the probability comes "
            "first: which p still has p**n = alpha?",
        ),
        (
            SIGMA * quantile((ALPHA / 2) ** (1 / N)),
            "You split alpha on two sides. Only a bound from below is needed: all of alpha goes "
            "there.",
        ),
    ):
        require(not abs(value - wrong) < 2e-3, why)
    require(value != float("inf"), "1,000 of 1,000 does not prove a probability of 1.")
    require(
        abs(value - cap) < 0.01,
        f"{value:.4g} is not it. Which is the smallest p at which 1,000 hits of 1,000 still have "
        "the probability alpha? The radius is sigma times its normal quantile.",
    )


@grader("Middle through W, half width through |W|: no corner of the box needs to be tried.")
def interval_affine(solution: Any) -> None:
    """Grade ``f(W (o, i), b (o,), lower (i,), upper (i,)) -> (lower (o,), upper (o,))``."""
    generator = torch.Generator().manual_seed(0)
    for size in (1, 3, 8):
        weight = torch.randn(5, size, generator=generator, dtype=torch.float64)
        bias = torch.randn(5, generator=generator, dtype=torch.float64)
        lower = torch.randn(size, generator=generator, dtype=torch.float64)
        upper = lower + torch.rand(size, generator=generator, dtype=torch.float64)
        got = solution(weight.clone(), bias.clone(), lower.clone(), upper.clone())
        require(
            isinstance(got, tuple | list) and len(got) == 2,
            f"Return two tensors, lower and upper, not {type(got).__name__}.",
        )
        require(
            all(isinstance(end, Tensor) and end.shape == (5,) for end in got),
            "Each of the two must be a tensor of shape (5,), one number an output.",
        )
        low, high = (end.detach().double() for end in got)
        inputs = torch.cartesian_prod(*torch.stack([lower, upper], 1)).view(-1, size)
        corners = inputs @ weight.T + bias  # a linear function is extreme at a corner
        best, worst = corners.amax(0), corners.amin(0)
        require(bool((low <= high + 1e-9).all()), "A lower bound lies above its upper bound.")
        ends = weight @ lower + bias, weight @ upper + bias
        if size > 1:
            require(
                not (torch.allclose(low, ends[0]) and torch.allclose(high, ends[1])),
                "You sent the lower end to the lower end. Where a weight is negative, a larger "
                "input gives a smaller output.",
            )
        require(
            not torch.allclose(low + bias, worst) and not torch.allclose(low, worst - bias),
            "The bias is counted twice, or not at all. It moves both ends, once.",
        )
        require(
            bool((low <= worst + 1e-9).all() and (high >= best - 1e-9).all()),
            "Not sound: a corner of the box gives an output outside your bounds.",
        )
        require(
            torch.allclose(low, worst) and torch.allclose(high, best),
            "Sound, but too wide: some bound is not reached by any point of the box.",
        )


@grader("A class, a radius, and how sure: that is a certificate.")
def vote_certificate(solution: Any) -> None:
    """Grade ``f(first (K,), second (K,), sigma, alpha) -> (class, radius)``, two samples' votes."""
    from scipy.special import betaincinv as bound  # slow to import; a quantile, of beta(a, b)

    def ask(first: list[int], second: list[int], alpha: float = 0.001) -> tuple[int, float]:
        got = solution(torch.tensor(first), torch.tensor(second), SIGMA, alpha)
        require(
            isinstance(got, tuple | list) and len(got) == 2,
            f"Return two things, the class and the radius, not {type(got).__name__}.",
        )
        return int(number(got[0])), number(got[1])

    label, radius = ask([2, 90, 8], [10, 950, 40])
    low = bound(950, 51, 0.001)
    wanted = SIGMA * quantile(low)
    require(label == 1, f"Class 1 has 90 of the first 100 votes; you chose {label}.")
    require(
        abs(radius - SIGMA * quantile(0.95)) > 1e-3,
        "You took the share of the votes itself. Half of the time the truth is below it.",
    )
    require(
        abs(radius - SIGMA * quantile(bound(950, 51, 0.0005))) > 1e-5,
        "Your bound has two sides. Only the lower one is needed, and it gets all of alpha.",
    )
    require(
        abs(radius - SIGMA * quantile(bound(1040, 61, 0.001))) > 1e-4,
        "You counted both samples together. The first one chose the class, so it is biased.",
    )
    require(abs(radius - quantile(low)) > 1e-4, "The radius is sigma times the normal quantile.")
    require(
        abs(radius - wanted) < 1e-4,
        f"950 of 1,000 votes, alpha 0.001, sigma 0.5: the radius is {wanted:.4f}, yours {radius:.4f}.",
    )
    label, radius = ask([60, 40, 0], [100, 900, 0])
    require(
        label != 1,
        "You chose the winner of the second sample. A class chosen for its luck is bounded by its "
        "luck: choose by the first sample, and bound its votes in the second.",
    )
    require(
        label == ABSTAIN and radius == 0,
        "The chosen class has 100 of 1,000 votes, no majority: abstain, with ABSTAIN = -1 and "
        "radius 0.",
    )
    label, radius = ask([60, 40], [510, 490])
    require(
        label == ABSTAIN and radius == 0,
        "510 of 1,000 may be luck: the bound is below a half, so abstain.",
    )
    label, radius = ask([100, 0], [1000, 0], alpha=0.05)
    require(
        label == 0 and abs(radius - SIGMA * quantile(0.05 ** (1 / 1000))) < 1e-4,
        "With 1,000 votes of 1,000 and alpha 0.05 the bound is 0.05 ** (1 / 1000).",
    )


@grader("Both bounds are true. So take, for each number, the better of the two.")
def crown_looser(answer: Any) -> None:
    """Grade (model, x, eps): a network on which CROWN's lower bound is looser than IBP's."""
    require(
        isinstance(answer, tuple | list) and len(answer) == 3,
        "Give three things in brackets: (model, x, eps).",
    )
    model, x, eps = answer
    require(isinstance(model, nn.Sequential), "The first must be an nn.Sequential.")
    require(
        isinstance(x, Tensor) and len(x) > 0, "The second must be a tensor of images, (N, ...)."
    )
    try:
        boxes, lines = ibp(model, x, eps=eps), crown(model, x, eps=eps)
    except (TypeError, ValueError, RuntimeError) as error:
        require(False, f"The bounds can't be computed: {error}")
        return
    require(
        bool((boxes.upper > boxes.lower + 1e-3).any()),
        "IBP's two bounds coincide here, so nothing can be tighter. Is eps 0?",
    )
    gap = float(torch.maximum(boxes.lower - lines.lower, lines.upper - boxes.upper).max())
    require(
        gap > 0.01,
        f"CROWN is nowhere looser than IBP by more than 0.01 (at most {gap:.2g}). Look at one ReLU "
        "that may be on or off, with more of its interval above 0 than below. Which lower line does "
        "CROWN draw, and how low does it reach?",
    )
