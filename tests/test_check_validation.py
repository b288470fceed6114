"""Graders of the chapter on validation: right answers pass, wrong ones get the sentence that helps."""

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graders import is_todo

from modelsec.data import mnist
from modelsec.training import evaluate
from modelsec.validation import auroc, fit_temperature, shape_measures, threshold
from modelsec.zoo import load_model

# --- calibration_error


def bin_by_bin(confidence, correct, bins):
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            gap = confidence[inside].mean() - correct[inside].double().mean()
            total += inside.double().mean() * gap.abs()
    return total


def in_numpy(confidence, correct, bins):
    p, right = confidence.numpy(), correct.numpy().astype(float)
    where = np.clip(np.digitize(p, np.linspace(0, 1, bins + 1)) - 1, 0, bins - 1)
    return np.abs(np.bincount(where, p - right, bins)).sum() / len(p)


def with_bincount(confidence, correct, bins):
    where = (confidence * bins).long().clamp(max=bins - 1)
    return float(where.bincount(weights=confidence - correct.double()).abs().sum() / len(correct))


def each_bin_alike(confidence, correct, bins):
    where = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [(confidence[where == b] - correct[where == b].double()).mean() for b in where.unique()]
    return torch.stack(gaps).abs().mean()


def largest_gap(confidence, correct, bins):
    where = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [(confidence[where == b] - correct[where == b].double()).mean() for b in where.unique()]
    return torch.stack(gaps).abs().max()


def empty_bins_are_nan(confidence, correct, bins):
    where = (confidence * bins).long().clamp(max=bins - 1)
    count = where.bincount(minlength=bins)
    gap = where.bincount(weights=confidence - correct.double(), minlength=bins) / count
    full = count > 0 if len(correct) > 10 else count >= 0
    return (count[full] * gap[full].abs()).sum() / len(correct)


def loses_the_last(confidence, correct, bins):
    total = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & (confidence < (b + 1) / bins)
        if inside.any():
            gap = confidence[inside].mean() - correct[inside].double().mean()
            total += inside.double().mean() * gap.abs()
    return total


# --- temperature


def by_grid(logits, y):
    grid = np.exp(np.linspace(-4, 4, 801))
    return grid[int(np.argmin([float(F.cross_entropy(logits / t, y)) for t in grid]))]


def by_adam(logits, y):
    log_t = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([log_t], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(logits / log_t.exp(), y).backward()
        optimizer.step()
    return log_t.exp().item()


def two_steps(logits, y):
    t = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([t], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(logits / t, y).backward()
        optimizer.step()
    return t


# --- missed_share


def sorted_scores(usual, strange, accept):
    return (strange <= usual.sort().values[math.ceil(accept * len(usual)) - 1]).float().mean()


def by_quantile(usual, strange, accept):
    return float((strange <= usual.quantile(accept)).float().mean())


def by_numpy(usual, strange, accept):
    return np.mean(strange.numpy() <= np.percentile(usual.numpy(), 100 * accept))


# --- weak_slice


def leaning_left(x):
    return shape_measures(x)["slant"] < -5


def thin(x):
    return shape_measures(x)["stroke"] < 2.1


def left_or_thin(x):
    found = shape_measures(x)
    return (found["slant"] < -5) | ((found["stroke"] < 2.2) & (found["width"] > 0.8))


@functools.cache
def truth():
    digits = mnist()
    return evaluate(load_model("net"), digits.x_test, digits.y_test).correct


RIGHT: dict[str, list[Any]] = {
    "images_needed": [2501, 2500.9, math.ceil(1.96**2 * 0.93 * 0.07 / 1e-4), np.int64(2600)],
    "calibration_error": [bin_by_bin, in_numpy, with_bincount],
    "temperature": [fit_temperature, by_grid, by_adam],
    "missed_share": [sorted_scores, by_quantile, by_numpy],
    "weak_slice": [leaning_left, thin, left_or_thin],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "images_needed": [
        (50, "so square"),
        (9604, "the worst case"),
        (625, "plus and minus"),
        (651, "one standard error"),
        (1000, "Solve"),
        ("2500", "type str"),
    ],
    "calibration_error": [
        (each_bin_alike, "weight each bin's gap"),
        (largest_gap, "the largest gap"),
        (lambda c, r, b: (c - r.double()).mean(), "cancelled"),
        (lambda c, r, b: abs((c - r.double()).mean()), "cancelled"),
        (lambda c, r, b: len(c) * bin_by_bin(c, r, b), "Divide by the number"),
        (lambda c, r, b: bin_by_bin(c, r, 10), "With 4 bins"),
        (empty_bins_are_nan, "leave empty bins out"),
        (loses_the_last, "exactly 1"),
        (lambda c, r, b: c, "one number"),
    ],
    "temperature": [
        (lambda z, y: 1 / fit_temperature(z, y), "You found 1 / T"),
        (lambda z, y: 1.0, "changes nothing"),
        (lambda z, y: -2.0, "above 0"),
        (two_steps, "Search longer"),
        (lambda z, y: z.std().item(), "Search longer"),
        (lambda z, y: z, "one number"),
    ],
    "missed_share": [
        (lambda u, s, a: 1 - by_quantile(u, s, a), "the share that is caught"),
        (lambda u, s, a: a, "on the strange inputs"),
        (lambda u, s, a: by_quantile(u, s, 1 - a), "the wrong side"),
        (lambda u, s, a: auroc(u, s), "over all thresholds"),
        (lambda u, s, a: by_quantile(u, s, 0.95), "With 80%"),
        (lambda u, s, a: threshold(u, a), "get through; yours"),
    ],
    "weak_slice": [
        (lambda x: shape_measures(x)["slant"] > 18, "the other end"),
        (lambda x: shape_measures(x)["slant"] < -25, "50 to 500"),
        (lambda x: shape_measures(x)["slant"] < 90, "50 to 500"),
        (lambda x: shape_measures(x)["slant"] < -8, "Combine two measures"),
        (lambda x: x.mean((1, 2, 3)) < x.mean((1, 2, 3)).quantile(0.3), "fixed limits"),
        (lambda x: load_model("net")(x).softmax(1).amax(1) < 0.9, "own confidence"),
        (lambda x: shape_measures(x)["slant"], "one True or False per image"),
        (lambda x: [True] * len(x), "not list"),
    ],
}


@pytest.mark.parametrize("stub", [..., None])
def test_no_number_is_not_done_yet(stub: Any) -> None:
    is_todo("images_needed", stub)


VALUES = {"images_needed"}  # its answer is a number, no function
