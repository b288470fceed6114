"""Graders of the outlook: right answers pass, wrong ones get the sentence that helps."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.stats import linregress


def operations(sizes, images, attack_steps):
    everything = sum(a * b for a, b in pairwise(sizes))
    return images * (6 * everything - 2 * sizes[0] * sizes[1] + 4 * attack_steps * everything)


def operations_layer_by_layer(sizes, images, attack_steps):
    total = 0
    for layer, (a, b) in enumerate(pairwise(sizes)):
        total += 2 * a * b * (2 + attack_steps)  # forward, always; the weights' gradient, learning
        total += 2 * a * b * (attack_steps + (layer > 0))
    return np.int64(images * total)


def operations_as_tensor(sizes, images, attack_steps):
    return torch.tensor(operations(sizes, images, attack_steps), dtype=torch.float64)


def front(points):
    others, own = points[:, None], points[None]
    return ~((others >= own).all(2) & (others > own).any(2)).any(0)


def front_by_hand(points):
    rows = points.tolist()
    kept = [
        not any(o[0] >= p[0] and o[1] >= p[1] and (o[0] > p[0] or o[1] > p[1]) for o in rows)
        for p in rows
    ]
    return torch.tensor(kept)


def front_by_sorting(points):
    kept, best = torch.zeros(len(points), dtype=torch.bool), -float("inf")
    for x in points[:, 0].unique().flip(0):  # from the right; the highest of each column counts
        column = points[:, 0] == x
        top = points[column, 1].max()
        if top > best:
            kept |= column & (points[:, 1] == top)
            best = top
    return kept


def strict_front(points):
    others, own = points[:, None], points[None]
    return ~(others > own).all(2).any(0)


def lonely_front(points):
    others, own = points[:, None], points[None]
    return (others >= own).all(2).sum(0) == 1  # equal points dominate each other


def fitted(images, errors, wanted):
    exponent, factor = np.polyfit(np.log(images), np.log(errors), 1)
    return np.exp(factor) * wanted**exponent


def fitted_by_torch(images, errors, wanted):
    x, y = torch.tensor(images).log2(), torch.tensor(errors).log2()
    exponent = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return 2 ** (y.mean() + exponent * (np.log2(wanted) - x.mean()))


def fitted_by_scipy(images, errors, wanted):
    fit = linregress(np.log10(images), np.log10(errors))
    return np.float32(10 ** (fit.intercept + fit.slope * np.log10(wanted)))


def line(images, errors, wanted):
    return np.polyval(np.polyfit(np.log(images), errors, 1), np.log(wanted))


def two_points(images, errors, wanted):
    exponent = np.log(errors[-1] / errors[0]) / np.log(images[-1] / images[0])
    return errors[-1] * (wanted / images[-1]) ** exponent


RIGHT: dict[str, list[Any]] = {
    "images_to_halve": [16, 16.0, torch.tensor(16.0), np.float32(16)],
    "training_operations": [operations, operations_layer_by_layer, operations_as_tensor],
    "pareto_front": [front, front_by_hand, front_by_sorting],
    "power_law": [fitted, fitted_by_torch, fitted_by_scipy],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "images_to_halve": [
        (2, "falls slower"),
        (4, "exponent 1/2"),
        (8, "power of 4"),
        (1 / 16, "above 1"),
        (2**0.25, "other way round"),
        (100, "is not 1/2"),
        ("16", "type str"),
    ],
    "training_operations": [
        (lambda s, n, k: operations(s, n, k) + 2 * n * s[0] * s[1], "no gradient of the image"),
        (lambda s, n, k: operations(s, n, 0) + 6 * n * k * sum(a * b for a, b in pairwise(s)),
         "no gradient of the weights"),
        (lambda s, n, k: (1 + k) * operations(s, n, 0), "not a learning step"),
        (lambda s, n, k: operations(s, 1, k), "all images"),
        (lambda s, n, k: operations(s, n, k) / 2, "two operations"),
        (lambda s, n, k: operations(s, n, k + 1), "Add for each layer"),
        (lambda s, n, k: s, "one number"),
    ],
    "pareto_front": [
        (strict_front, "dominates it"),
        (lonely_front, "Equal points"),
        (lambda p: torch.ones(len(p), dtype=torch.bool), "dominates it"),
        (lambda p: front(-p), "was dropped"),
        (lambda p: front(p).float(), "bool values"),
        (lambda p: front(p).tolist(), "not list"),
        (lambda p: front(p)[:, None], "return shape"),
        (lambda p: front(p.mul_(2)), "in place"),
    ],
    "power_law": [
        (line, "Fit a line to the logarithms"),
        (two_points, "Do all sizes count"),
        (lambda m, e, w: e[-1], "Fit a line to the logarithms"),
        (lambda m, e, w: e, "one number"),
    ],
}  # fmt: skip

VALUES = {"images_to_halve"}
