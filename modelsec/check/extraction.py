"""Graders for the chapter on privacy, second half: gradients that hold images, stolen copies."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require

__all__ = ["agreement_report", "equations_needed", "image_from_gradient"]

PIXELS, CLASSES = 784, 10


@grader("And it is a lower bound only for an exact copy: a useful one may take far fewer.")
def equations_needed(answer: Any) -> None:
    """Grade a number: the images that determine a linear 784-10 model whose scores are answered."""
    require(not callable(answer), "Give a number, not a function.")
    single = isinstance(answer, Real) or (isinstance(answer, Tensor) and answer.numel() == 1)
    require(single, f"Give one number; this is of type {type(answer).__name__}.")
    value = float(answer)
    for wrong, why in (
        (PIXELS, "Nearly: each class has a bias besides its 784 weights."),
        (
            (PIXELS + 1) * CLASSES,
            "That is the number of parameters. But one answer holds several probabilities, and each "
            "of them is an equation.",
        ),
        (
            (PIXELS + 1) * (CLASSES - 1),
            "That is the number of unknowns, with class 0 as the reference. How many equations does "
            "one image give?",
        ),
        (
            PIXELS * (CLASSES - 1),
            "You count unknowns, and left the biases out. How many equations does one image give?",
        ),
    ):
        require(abs(value - wrong) > 0.1, why)
    require(
        abs(value - PIXELS - 1) < 0.1,
        f"{value:g} is not it. For each class k the answer gives log p_k - log p_0, an equation for "
        "the weights and the bias of class k alone. How many of them does it have?",
    )


@grader("One division, no search, and nothing was guessed.")
def image_from_gradient(solution: Any) -> None:
    """Grade ``f(weight (H, D), bias (H,)) -> (D,)``: the one input of a linear layer."""
    generator = torch.Generator().manual_seed(7)
    g = torch.randn(32, generator=generator)
    g[::3] = 0  # units that were not set off, the first one among them
    g[1] = 1e-30  # and one whose gradient is next to nothing
    x = torch.rand(50, generator=generator)
    weight = torch.outer(g, x)
    weight[1] += 1e-30 * torch.randn(50, generator=generator)  # as rounding may leave it
    for sign in (1.0, -1.0):
        got = solution((sign * weight).clone(), (sign * g).clone())
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.shape == x.shape,
            f"Return one input, of shape {tuple(x.shape)}; yours has shape {tuple(got.shape)}.",
        )
        got = got.detach().float()
        require(
            bool(got.isfinite().all()),
            "Some values are NaN or infinite. A unit that was not set off has a gradient of 0: "
            "choose one whose bias gradient is not 0.",
        )
        require(
            not torch.allclose(got, -x, atol=1e-3),
            "The sign is turned round. Did you divide by the absolute value of the bias gradient?",
        )
        require(not bool((got == 0).all()), "All values are 0: the unit you chose was not set off.")
        near = float((got - weight[1] / g[1]).abs().max()) < 1e-3 * float(got.abs().max())
        require(
            not near,
            "You took a unit whose gradient is next to nothing, so you divide rounding errors. Which "
            "unit's gradient is largest, in absolute value?",
        )
        require(
            torch.allclose(got, x, atol=1e-4),
            f"The first three values are {x[0]:.3f}, {x[1]:.3f}, {x[2]:.3f}; yours are "
            f"{got[0]:.3f}, {got[1]:.3f}, {got[2]:.3f}. Row i of the weight gradient is g_i x, and "
            "the bias gradient is g_i.",
        )


@grader("Before you accuse anybody, compute it for a model that never asked.")
def agreement_report(solution: Any) -> None:
    """Grade ``f(copy (N,), victim (N,), y (N,)) -> (accuracy, fidelity, shared errors)``."""
    y = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    victim = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 3, 9])  # three errors
    copy = torch.tensor([0, 1, 2, 3, 9, 5, 0, 1, 2, 9])  # two of them, and two of its own
    got = solution(copy.clone(), victim.clone(), y.clone())
    require(
        isinstance(got, tuple | list) and len(got) == 3,
        "Return three numbers: accuracy, fidelity, share of the victim's errors that the copy makes.",
    )
    values = []
    for part in got:
        single = isinstance(part, Real) or (isinstance(part, Tensor) and part.numel() == 1)
        require(single, f"Each of the three is one number; one is of type {type(part).__name__}.")
        values.append(float(part))
    accuracy, fidelity, shared = values
    require(
        abs(accuracy - 0.7) > 1e-4,
        "Your first number is the victim's accuracy; the copy's is asked for.",
    )
    require(
        abs(accuracy - 0.6) < 1e-4,
        f"The copy is right on 6 of the 10 images; you have an accuracy of {accuracy:g}.",
    )
    require(
        abs(fidelity - 0.8) < 1e-4,
        "Copy and victim give the same answer, right or wrong, on 8 of the 10 images; you have a "
        f"fidelity of {fidelity:g}.",
    )
    require(
        abs(shared - 1) > 1e-4,
        "The copy errs on all three images that the victim gets wrong. But with which answers? A "
        "shared error is the same wrong answer.",
    )
    require(
        abs(shared - 0.2) > 1e-4,
        "You divided by the number of images; divide by the number of the victim's errors.",
    )
    require(
        abs(shared - 0.5) > 1e-4,
        "You divided by the number of the copy's errors; divide by the number of the victim's.",
    )
    require(
        abs(shared - 2 / 3) < 1e-4,
        f"Of the victim's three errors the copy makes two, with the same answer; you have {shared:g}.",
    )
    exact = solution(y.clone(), y.clone(), y.clone())
    require(
        float(exact[2]) == float(exact[2]),
        "A victim without errors gives NaN: say 0 there.",
    )
