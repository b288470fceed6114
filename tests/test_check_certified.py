"""Graders of the chapter on certified robustness: right answers pass, wrong ones get the sentence that helps."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from graders import is_todo
from scipy.stats import beta, binomtest, norm
from torch import nn

CAP = 0.5 * norm.ppf(0.001 ** (1 / 1000))

# --- interval_affine


def centre_and_reach(weight, bias, lower, upper):
    middle, half = (lower + upper) / 2, (upper - lower) / 2
    centre, reach = weight @ middle + bias, weight.abs() @ half
    return centre - reach, centre + reach


def by_sign(weight, bias, lower, upper):
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    return plus @ lower + minus @ upper + bias, plus @ upper + minus @ lower + bias


def by_corners(weight, bias, lower, upper):
    ends = zip(lower.tolist(), upper.tolist(), strict=True)
    corners = torch.tensor(list(itertools.product(*ends)), dtype=weight.dtype)
    outputs = corners @ weight.T + bias
    return [outputs.amin(0), outputs.amax(0)]


def ends_to_ends(weight, bias, lower, upper):
    low, high = weight @ lower + bias, weight @ upper + bias
    return low, high


def sorted_ends(weight, bias, lower, upper):
    low, high = ends_to_ends(weight, bias, lower, upper)
    return torch.minimum(low, high), torch.maximum(low, high)


def no_bias(weight, bias, lower, upper):
    return by_sign(weight, 0 * bias, lower, upper)


def too_wide(weight, bias, lower, upper):
    low, high = by_sign(weight, bias, lower, upper)
    return low - 1, high + 1


def turned(weight, bias, lower, upper):
    low, high = by_sign(weight, bias, lower, upper)
    return high, low


# --- vote_certificate


def by_beta(first, second, sigma, alpha):
    label = int(first.argmax())
    hits, n = int(second[label]), int(second.sum())
    low = beta.ppf(alpha, hits, n - hits + 1)
    return (label, sigma * norm.ppf(low)) if low > 0.5 else (-1, 0.0)


def by_binomtest(first, second, sigma, alpha):
    label = first.argmax()
    test = binomtest(int(second[label]), int(second.sum()), alternative="greater")
    low = test.proportion_ci(1 - alpha, method="exact").low
    if low <= 0.5:
        return torch.tensor(-1), torch.tensor(0.0)
    return label, torch.tensor(sigma * norm.ppf(low))


def by_halving(first, second, sigma, alpha):
    label = int(first.argmax())
    hits, n = int(second[label]), int(second.sum())
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        tail = binomtest(hits, n, p, alternative="greater").pvalue
        low, high = (p, high) if tail < alpha else (low, p)
    return [label, np.float64(sigma * norm.ppf(low))] if low > 0.5 else [-1, 0]


def plug_in(first, second, sigma, alpha):
    label = int(first.argmax())
    return label, sigma * norm.ppf(float(second[label] / second.sum()))


def two_sided(first, second, sigma, alpha):
    return by_beta(first, second, sigma, alpha / 2)


def pooled(first, second, sigma, alpha):
    return by_beta(first, first + second, sigma, alpha)


def one_sample(first, second, sigma, alpha):
    return by_beta(second, second, sigma, alpha)


def without_sigma(first, second, sigma, alpha):
    return by_beta(first, second, 1.0, alpha)


def never_abstains(first, second, sigma, alpha):
    label = int(first.argmax())
    hits, n = int(second[label]), int(second.sum())
    return label, max(sigma * norm.ppf(beta.ppf(alpha, hits, n - hits + 1)), 0.0)


def fixed_alpha(first, second, sigma, alpha):
    return by_beta(first, second, sigma, 0.001)


# --- crown_looser


def one_relu(up: float = 0.3) -> nn.Sequential:
    """relu(x - 0.5) and 0, for one pixel: its interval reaches further up than down."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.fill_(1.0)
        model[1].bias.fill_(-0.5)
        model[3].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[3].bias.zero_()
    return model


def drawn(seed: int) -> tuple[nn.Sequential, torch.Tensor, float]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, torch.rand(4, 1, 2, 4, generator=generator), 0.4


PIXEL = torch.full((1, 1, 1, 1), 0.6)

RIGHT: dict[str, list[Any]] = {
    "radius_cap": [CAP, np.float64(CAP), torch.tensor(CAP), 1.23],
    "interval_affine": [centre_and_reach, by_sign, by_corners],
    "vote_certificate": [by_beta, by_binomtest, by_halving],
    "crown_looser": [(one_relu(), PIXEL, 0.3), [one_relu(), PIXEL, 0.35], drawn(1)],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "radius_cap": [
        (2 * CAP, "That is the quantile"),
        (0.001 ** (1 / 1000), "bound on the probability"),
        (0.5 * norm.ppf(0.999), "quantile of 1 - alpha"),
        (0.5 * norm.ppf(0.0005 ** (1 / 1000)), "two sides"),
        (math.inf, "does not prove a probability of 1"),
        (0.3, "is not it"),
        ("1.2", "number"),
    ],
    "interval_affine": [
        (ends_to_ends, "lower bound lies above"),
        (sorted_ends, "Not sound"),
        (no_bias, "counted twice, or not at all"),
        (too_wide, "too wide"),
        (turned, "lower bound lies above"),
        (lambda w, b, low, high: by_sign(w, b, low, high)[0], "Return two tensors"),
        (lambda w, b, low, high: (low, high), "shape (5,)"),
    ],
    "vote_certificate": [
        (plug_in, "share of the votes itself"),
        (two_sided, "two sides"),
        (pooled, "both samples together"),
        (one_sample, "winner of the second sample"),
        (without_sigma, "sigma times"),
        (never_abstains, "no majority"),
        (fixed_alpha, "alpha 0.05"),
        (lambda *_: 1, "Return two things"),
        (lambda *_: (0, 1.0), "you chose 0"),
        (lambda *_: (1, 0.1), "yours 0.1000"),
    ],
    "crown_looser": [
        ((one_relu(), PIXEL - 0.2, 0.3), "nowhere looser"),
        ((one_relu(), PIXEL, 0.0), "Is eps 0"),
        ((nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), PIXEL, 0.3), "nowhere looser"),
        ((nn.Sequential(nn.Flatten(), nn.Sigmoid()), PIXEL, 0.3), "can't be computed"),
        ((one_relu(), PIXEL), "three things"),
        ((lambda x: x, PIXEL, 0.3), "nn.Sequential"),
        ((one_relu(), 0.6, 0.3), "tensor of images"),
    ],
}


@pytest.mark.parametrize("stub", [..., None])
@pytest.mark.parametrize("name", ["radius_cap", "crown_looser"])
def test_no_answer_is_not_done_yet(name: str, stub: Any) -> None:
    is_todo(name, stub)


VALUES = {"radius_cap", "crown_looser"}  # their answers are no functions
