"""Graders for the outlook."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require
from modelsec.check.loss import number

__all__ = ["images_to_halve", "pareto_front", "power_law", "training_operations"]


@grader(
    "A small exponent makes every halving dear: sixteen times the data, and again for the next."
)
def images_to_halve(answer: Any) -> None:
    """Grade a number: the factor of data that halves an error falling like ``m ** (-1 / 4)``."""
    answer = number(answer)
    for wrong, why in (
        (2.0, "Twice the data would halve an error that falls like 1 / m. This one falls slower."),
        (4.0, "That is right for the exponent 1/2."),
        (8.0, "Nearly: 8 is 2 to the power of 3, the exponent here asks for the power of 4."),
        (1 / 16, "The error falls when the data grow: the factor is above 1."),
        (2**0.25, "The other way round: solve k ** (-1/4) = 1/2 for k."),
    ):
        require(not abs(answer - wrong) <= 0.01 * wrong, why)
    require(abs(answer - 16) <= 0.1, f"{answer:.4g} ** (-1/4) is not 1/2. Solve k ** (-1/4) = 1/2.")


@grader("An attack step skips the weights, a learning step skips the image: so the ratio isn't 8.")
def training_operations(solution: Any) -> None:
    """Grade ``f(sizes, images, attack_steps) -> operations`` of training a fully connected network."""
    for sizes, images, steps in (
        ((784, 128, 64, 10), 128, 7), ((784, 128, 64, 10), 1, 0), ((5, 7), 3, 2), ((4, 3, 2), 10, 1),
    ):  # fmt: skip
        products = [a * b for a, b in pairwise(sizes)]
        learning, attack = 6 * sum(products) - 2 * products[0], 4 * sum(products)
        right = images * (learning + steps * attack)
        got = number(solution(sizes, images, steps))
        shown = f"For sizes {sizes}, {images} images and {steps} attack steps: {got:,.0f}. "
        for wrong, why in (
            (images * (6 * sum(products) + steps * attack),
             "Clean training needs no gradient of the image: the first layer has one product less."),
            (images * (learning + steps * 6 * sum(products)),
             "An attack step needs no gradient of the weights: 4, not 6, for each weight."),
            (images * (1 + steps) * learning,
             "An attack step is not a learning step: it has other gradients to compute."),
            (right / images, "Count all images, not one."),
            (right / 2, "A multiplication and an addition are two operations."),
        ):  # fmt: skip
            require(not (got == wrong != right), shown + why)
        require(
            math.isclose(got, right, rel_tol=1e-6),
            shown
            + "Add for each layer 2ab forward, 2ab for its weights (learning only) and 2ab for "
            "its input (in the first layer: attack only).",
        )


@grader("Only on the front is there something to decide; everything else is simply worse.")
def pareto_front(solution: Any) -> None:
    """Grade ``f(points (N, 2)) -> (N,) bool``: which points no other one dominates."""
    generator = torch.Generator().manual_seed(3)
    grid = torch.randint(4, (30, 2), generator=generator).float()  # many ties and equal points
    for points in (
        torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [1.5, 1.5]]),
        torch.tensor([[1.0, 1.0], [1.0, 1.0]]),
        torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0], [0.0, 2.0]]),
        grid,
        torch.rand(40, 2, generator=generator),
        torch.tensor([[0.5, -0.5]]),
    ):
        given = points.clone()
        got = solution(points)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(got.dtype == torch.bool, f"Return bool values, not {got.dtype}.")
        require(
            got.shape == (len(given),),
            f"For {len(given)} points return shape ({len(given)},), not {tuple(got.shape)}.",
        )
        require(torch.equal(points, given), "The points were changed in place.")
        for i, (one, kept) in enumerate(zip(given.tolist(), got.tolist(), strict=True)):
            over = [
                other
                for other in given.tolist()
                if other[0] >= one[0] and other[1] >= one[1] and other != one
            ]
            require(
                kept or bool(over),
                f"{one} was dropped, but no point is at least as good in both and better in one. "
                "(Equal points do not dominate each other.)",
            )
            require(
                not (kept and over),
                f"Point {i}, {one}, was kept, but {over[:1]} dominates it.",
            )


@grader("A straight line on logarithmic axes. How far it may be drawn is another question.")
def power_law(solution: Any) -> None:
    """Grade ``f(images, errors, wanted) -> error``: a power law, fitted in logarithms, at a size."""
    import numpy as np

    sizes = np.array([500.0, 1000.0, 2000.0, 4000.0])
    for exponent, factor in ((0.25, 1.2), (0.5, 3.0), (0.1, 0.4)):
        exact = factor * sizes**-exponent
        for wanted in (500.0, 8000.0, 60_000.0):
            got = number(solution(sizes.copy(), exact.copy(), wanted))
            right = factor * wanted**-exponent
            require(
                math.isclose(got, right, rel_tol=1e-3),
                f"The errors are exactly {factor:g} m ** -{exponent:g}; at m = {wanted:,.0f} that is "
                f"{right:.4f}, yours gives {got:.4f}. Fit a line to the logarithms of both, and take "
                "the exponential of its value.",
            )
    noisy = np.array([0.5, 0.41, 0.30, 0.26])
    slope, start = np.polyfit(np.log(sizes), np.log(noisy), 1)
    right = float(np.exp(start + slope * np.log(16_000)))
    got = number(solution(sizes.copy(), noisy.copy(), 16_000))
    require(
        math.isclose(got, right, rel_tol=1e-3),
        f"On errors that no power law meets exactly, least squares in the logarithms gives {right:.4f} "
        f"at 16,000; yours gives {got:.4f}. Do all sizes count in your fit?",
    )
