"""Graders for the chapter on validation: numbers and how sure they are."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.check.grading import grader, require
from modelsec.data import mnist
from modelsec.training import evaluate
from modelsec.validation import auroc, energy, fit_temperature, msp
from modelsec.zoo import load_model

__all__ = [
    "calibration_error",
    "images_needed",
    "missed_share",
    "temperature",
    "weak_slice",
]


@grader(
    "Half the width costs four times the images, which is why test sets are never large enough."
)
def images_needed(answer: Any) -> None:
    """Grade a whole number: test images for an interval of 0.93 +- 0.01 at a confidence of 95%."""
    n = _number(answer)
    require(
        not abs(n - 1.96 * (0.93 * 0.07) ** 0.5 / 0.01) < 2,
        "That is the square root of the number: the half width falls with the root of n, so square.",
    )
    require(
        not abs(n - 1.96**2 * 0.25 / 0.01**2) < 60,
        "That is for an accuracy of 0.5, the worst case. At 0.93 the outcomes vary less.",
    )
    require(
        not abs(n - 1.96**2 * 0.93 * 0.07 / 0.02**2) < 20,
        "That gives an interval that is 0.01 wide on neither side but 0.02: plus and minus 0.01 is wanted.",
    )
    require(
        not abs(n - 0.93 * 0.07 / 0.01**2) < 20,
        "That is for one standard error. A 95% interval reaches 1.96 of them to either side.",
    )
    require(
        2350 <= n <= 2650,
        f"{n:g} is not it. Solve 1.96 * sqrt(p (1 - p) / n) = 0.01 for n, with p = 0.93.",
    )


@grader("The rest is a picture of the same numbers.")
def calibration_error(solution: Any) -> None:
    """Grade ``f(confidence (N,), correct (N,) bool, bins) -> ECE``, bins of equal width."""
    generator = torch.Generator().manual_seed(1)
    confidence = 0.3 + 0.7 * torch.rand(400, generator=generator, dtype=torch.float64)
    # too modest below 0.65 and too sure above it, so that gaps of both signs are there
    rate = confidence + torch.where(confidence < 0.65, 0.25, -0.25)
    correct = torch.rand(400, generator=generator, dtype=torch.float64) < rate
    for bins in (10, 4):  # a number of bins that is written into the code would pass one of them
        wanted, plain, signed, largest = _gaps(confidence, correct, bins)
        got = _number(solution(confidence.clone(), correct.clone(), bins))
        require(
            abs(got - plain) > 1e-6 or abs(plain - wanted) < 1e-4,
            "You averaged over the bins as if all held the same number of samples: weight each bin's "
            "gap by its share of the samples.",
        )
        require(
            abs(abs(got) - abs(signed)) > 1e-6,
            "Gaps of different sign cancelled: take each bin's absolute gap before you add up.",
        )
        require(
            abs(got - largest) > 1e-6, "That is the largest gap; the expected one is their mean."
        )
        require(
            abs(got - 400 * wanted) > 1e-3, "Divide by the number of samples: the result is a mean."
        )
        require(
            abs(got - wanted) <= 1e-6,
            f"With {bins} bins the error is {wanted:.5f}, yours is {got:.5f}. Bins have equal width, "
            "from 0 to 1, and each compares its mean confidence with its accuracy.",
        )
    few = torch.tensor([0.95, 1.0], dtype=torch.float64)
    got = _number(solution(few, torch.tensor([True, False]), 10))
    require(got == got, "With empty bins your result is NaN: leave empty bins out.")
    require(
        abs(got - 0.475) <= 1e-6,
        "Two samples, confidences 0.95 and 1, the first right and the second wrong: the error is "
        f"0.475, yours {got:.4f}. Does a confidence of exactly 1 fall out of your last bin?",
    )


def _gaps(confidence: Tensor, correct: Tensor, bins: int) -> tuple[float, float, float, float]:
    """The ECE, and what three common mistakes give."""
    where = (confidence * bins).ceil().clamp(1, bins).long() - 1
    shares, gaps = [], []
    for b in where.unique():
        inside = where == b
        shares.append(float(inside.double().mean()))
        gaps.append(float(confidence[inside].mean() - correct[inside].double().mean()))
    weighted = sum(s * abs(g) for s, g in zip(shares, gaps, strict=True))
    signed = sum(s * g for s, g in zip(shares, gaps, strict=True))
    return weighted, sum(map(abs, gaps)) / len(gaps), signed, max(map(abs, gaps))


@grader("One number, and the accuracy is as it was.")
def temperature(solution: Any) -> None:
    """Grade ``f(logits (N, K), y (N,)) -> T``: the minimum of the cross-entropy of logits / T."""
    generator = torch.Generator().manual_seed(2)
    z = 2 * torch.randn(600, 5, generator=generator)
    y = torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
    for factor in (4.0, 0.5):
        logits = factor * z
        best = fit_temperature(logits, y)
        got = _number(solution(logits.clone(), y.clone()))
        require(got > 0, f"A temperature is above 0; yours is {got:.3g}.")
        require(
            abs(got * best - 1) > 0.05 or abs(best - 1) < 0.1,
            "You found 1 / T: the logits are divided by T, not multiplied.",
        )
        require(
            not abs(got - 1) < 1e-3,
            "Yours is 1, which changes nothing. Does your search move at all?",
        )
        loss, least = (float(F.cross_entropy(logits / t, y)) for t in (got, best))
        require(
            abs(got / best - 1) <= 0.05,
            f"At your T = {got:.3g} the cross-entropy of these samples is {loss:.4f}; at {best:.3g} it "
            f"is {least:.4f}. Search longer, or in the logarithm of T.",
        )


@grader("With the threshold chosen on usual inputs alone, you need no strange ones to set it.")
def missed_share(solution: Any) -> None:
    """Grade ``f(usual (N,), strange (M,), accept) -> share``: strange inputs that are let through."""
    generator = torch.Generator().manual_seed(3)
    usual = torch.randn(200, generator=generator)
    strange = torch.randn(150, generator=generator) + 1.5
    for accept in (0.95, 0.8):
        at = float(usual.sort().values[round(accept * 200) - 1])
        wanted = float((strange <= at).double().mean())
        got = _number(solution(usual.clone(), strange.clone(), accept))
        other = float(strange.sort().values[round(accept * 150) - 1])
        low = float(usual.quantile(1 - accept))
        require(
            abs(got - (1 - wanted)) > 0.02,
            "That is the share that is caught; the share that gets through is asked for.",
        )
        require(
            abs(got - float((strange <= other).double().mean())) > 0.005,
            "You chose the threshold on the strange inputs: it must accept a share of the usual ones.",
        )
        require(
            abs(got - float((strange <= low).double().mean())) > 0.02,
            "Your threshold accepts the wrong side: a large score is a strange one, so the 95% of usual "
            "inputs with the smallest scores are accepted.",
        )
        require(
            abs(got - auroc(usual, strange)) > 1e-4,
            "That is the AUROC, over all thresholds; here one threshold is asked for.",
        )
        require(
            abs(got - wanted) <= 0.015,
            f"With {accept:.0%} of the usual inputs accepted, {wanted:.3f} of the strange ones get "
            f"through; yours is {got:.3f}. Sort the usual scores.",
        )


@grader("You described it before you looked at these images, so this p-value needs no correction.")
def weak_slice(solution: Any) -> None:
    """Grade ``f(x (N, 1, 28, 28)) -> (N,) bool``: a group on which the book's network is worse."""
    from scipy.stats import hypergeom

    digits = mnist()
    x, y = digits.x_test, digits.y_test
    found = solution(x.clone())
    require(isinstance(found, Tensor), f"Return a tensor, not {type(found).__name__}.")
    require(
        found.shape == (len(x),) and found.dtype == torch.bool,
        f"Return one True or False per image: ({len(x)},) bool, not {tuple(found.shape)} "
        f"{found.dtype}.",
    )
    again = solution(x[:100].clone())
    require(
        torch.equal(again, found[:100]),
        "Whether an image belongs to it depends on the other images: use fixed limits, not quantiles "
        "of the batch.",
    )
    size = int(found.sum())
    require(
        50 <= size <= 500,
        f"Your group holds {size} of the 1,000 test images; 50 to 500 are wanted. A smaller one can't "
        "be measured, a larger one is no slice.",
    )
    net = load_model("net")
    correct = evaluate(net, x, y).correct
    with torch.no_grad():
        scores = [f(net(x)) for f in (msp, energy)]
    require(
        all(0.2 < auroc(score[~found], score[found]) < 0.9 for score in scores),
        "Your group looks like one made from the network's own confidence. Describe the images "
        "themselves: their ink, strokes, slant, width.",
    )
    errors, wrong = int((~correct[found]).sum()), int((~correct).sum())
    chance = float(hypergeom.sf(errors - 1, len(x), wrong, size))
    said = f"The network errs on {errors} of your {size} images, on {wrong} of all {len(x):,}. "
    require(
        errors / size > wrong / len(x),
        said + "That is no more than elsewhere. Is it the other end of your measure?",
    )
    require(
        chance < 0.01,
        said + f"A random group of that size does so with probability {chance:.3f}; below 0.01 is "
        "wanted. Combine two measures.",
    )


def _number(answer: Any) -> float:
    """One number, of whatever kind: Python's, NumPy's, or a tensor of one element."""
    require(not callable(answer), "Give a number, not a function.")
    single = isinstance(answer, Real) or (isinstance(answer, Tensor) and answer.numel() == 1)
    require(single, f"Give one number; this is of type {type(answer).__name__}.")
    return float(answer.detach() if isinstance(answer, Tensor) else answer)
