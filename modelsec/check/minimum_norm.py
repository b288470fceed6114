"""Graders for the chapter on minimum-norm attacks."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require

__all__ = ["accuracy_from_distances", "border_distance", "border_step"]


@grader("The same division, with the dual norm, is the heart of DeepFool and of FMN.")
def border_distance(answer: Any) -> None:
    """Grade a number: the linf distance for a lead of 6 and a gradient of l2 length 12, l1 150."""
    require(not callable(answer), "Give a number, not a function.")
    single = isinstance(answer, Real) or (isinstance(answer, Tensor) and answer.numel() == 1)
    require(single, f"Give one number; this is of type {type(answer).__name__}.")
    value = float(answer)
    require(
        abs(value - 6 / 12) > 1e-3,
        "That is the distance in l2. If every pixel moves by eps, how fast does the lead fall?",
    )
    require(abs(value - 150 / 6) > 1e-2, "That is the inverse: divide the lead by the slope.")
    require(
        abs(value - 6 / 144) > 1e-4,
        "You divided by the square of a length. That belongs to the step, not to its length; and "
        "it is the l2 length.",
    )
    require(
        abs(value - 0.04) < 5e-4,
        f"{value:g} is not it. The lead falls by at most eps times the dual norm of the gradient.",
    )


@grader("Once around it a loop, and you have DeepFool.")
def border_step(solution: Any) -> None:
    """Grade ``f(lead (N, K), gradient (N, K, d), overshoot) -> steps (N, d)``: DeepFool in l2."""
    generator = torch.Generator().manual_seed(3)
    lead = torch.rand(40, 4, generator=generator, dtype=torch.float64) + 0.2
    size = 0.5 + 4 * torch.rand(40, 4, 1, generator=generator, dtype=torch.float64)
    gradient = torch.randn(40, 4, 9, generator=generator, dtype=torch.float64) * size
    length = gradient.norm(dim=2)
    nearest = (lead / length).argmin(1)
    rows = torch.arange(40)
    for overshoot in (0.02, 0.5):
        got = solution(lead.clone(), gradient.clone(), overshoot)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.shape == (40, 9), f"The steps have shape (40, 9), yours have {tuple(got.shape)}."
        )
        after = lead + (gradient * got[:, None]).sum(2)  # of the linearised model
        chosen = after[rows, nearest]
        require(
            not bool((after > lead)[rows, nearest].all()),
            "The step makes the lead larger. The gradient is that of the lead: go against it.",
        )
        closest = lead.argmin(1)
        steps = -lead[rows, closest] / length[rows, closest] ** 2
        easy = (1 + overshoot) * steps[:, None] * gradient[rows, closest]
        require(
            not torch.allclose(got.double(), easy, atol=1e-6) or bool((closest == nearest).all()),
            "You go to the class with the smallest lead. A border with a larger lead is nearer if "
            "the lead falls faster: compare lead / length.",
        )
        require(
            not torch.allclose(chosen, torch.zeros_like(chosen), atol=1e-6),
            "The step ends exactly on the border, where nothing is decided: go (1 + overshoot) "
            "times the way.",
        )
        wanted = (1 + overshoot) * (lead / length)[rows, nearest]
        require(
            torch.allclose(got.norm(dim=1).double(), wanted, rtol=1e-4),
            f"With overshoot = {overshoot} the first step should be {float(wanted[0]):.3f} long, "
            f"yours is {float(got[0].norm()):.3f}. A step of length t along a unit vector changes "
            "the lead by t times the gradient's length.",
        )
        require(
            torch.allclose(chosen, -overshoot * lead[rows, nearest], atol=1e-5),
            "The steps have the right length, but not the shortest way's direction.",
        )


@grader("One run of the attack, and the accuracy at every eps is known.")
def accuracy_from_distances(solution: Any) -> None:
    """Grade ``f(distance (N,), eps) -> accuracy`` under an attack that may go as far as eps."""
    inf = torch.inf
    distance = torch.tensor([0.0, 0.3, 0.1, inf, 0.2, 0.5, inf, 0.0, 0.4, 0.25])
    for eps, wanted in ((0.22, 0.6), (0.45, 0.3), (1.0, 0.2), (0.0, 0.8)):
        got = solution(distance.clone(), eps)
        single = isinstance(got, Real) or (isinstance(got, Tensor) and got.numel() == 1)
        require(single, f"Return one number, not {type(got).__name__}.")
        value = float(got)
        finite = distance[distance.isfinite()]
        dropped = float((finite > eps).float().mean())
        require(
            abs(value - dropped) > 1e-4 or abs(dropped - wanted) < 1e-4,
            "You left the misses out. An image on which nothing was found counts as still right.",
        )
        require(
            abs(value - (1 - wanted)) > 1e-4,
            "That is the share of errors; the accuracy is what is left.",
        )
        require(
            not (eps == 0 and value == 1),
            "At eps = 0 the accuracy is the clean one: an image with distance 0 is wrong.",
        )
        honest = distance > 0
        kept = float((distance[honest] > eps).float().mean())
        require(
            abs(value - kept) > 1e-4,
            "You left out the images that are wrong from the start (distance 0). They lower the "
            "accuracy at every eps.",
        )
        require(
            abs(value - wanted) < 1e-4,
            f"At eps = {eps:g} the accuracy of the ten images is {wanted:g}, you have {value:g}.",
        )
    at = float(solution(torch.tensor([0.1, 0.25, 0.5]), 0.25))
    require(
        abs(at - 1 / 3) < 1e-4,
        "An error at exactly eps is within eps: count as right what lies beyond.",
    )
