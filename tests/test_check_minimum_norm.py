"""Graders of the chapter on minimum-norm attacks: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import pytest
import torch
from graders import is_todo


def in_rows(lead, gradient, overshoot):
    length = gradient.norm(dim=2)
    k = (lead / length).argmin(1)
    rows = torch.arange(len(k))
    unit = gradient[rows, k] / length[rows, k, None]
    return -(1 + overshoot) * (lead / length)[rows, k, None] * unit


def one_by_one(lead, gradient, overshoot):
    steps = []
    for leads, slopes in zip(lead, gradient, strict=True):
        candidates = [-a * g / g.square().sum() for a, g in zip(leads, slopes, strict=True)]
        steps.append(min(candidates, key=lambda step: float(step.norm())) * (1 + overshoot))
    return torch.stack(steps)


def in_numpy(lead, gradient, overshoot):
    a, g = lead.numpy(), gradient.numpy()
    square = (g**2).sum(2)
    k = (a / np.sqrt(square)).argmin(1)
    rows = np.arange(len(a))
    factor = -(1 + overshoot) * a[rows, k] / square[rows, k]
    return torch.from_numpy(factor[:, None] * g[rows, k])


def of_class(choose):
    def step(lead, gradient, overshoot):
        k, rows = choose(lead, gradient), torch.arange(len(lead))
        g = gradient[rows, k]
        return -(1 + overshoot) * lead[rows, k, None] * g / g.square().sum(1, keepdim=True)

    return step


def not_squared(lead, gradient, overshoot):
    k, rows = (lead / gradient.norm(dim=2)).argmin(1), torch.arange(len(lead))
    g = gradient[rows, k]
    return -(1 + overshoot) * lead[rows, k, None] * g / g.norm(dim=1, keepdim=True)


def askew(lead, gradient, overshoot):
    right = in_rows(lead, gradient, overshoot)
    k, rows = (lead / gradient.norm(dim=2)).argmin(1), torch.arange(len(lead))
    sign = -gradient[rows, k].sign()
    return right.norm(dim=1, keepdim=True) * sign / sign.norm(dim=1, keepdim=True)


def with_numpy(distance, eps):
    return np.mean(distance.numpy() > eps)


def counted(distance, eps):
    return sum(d > eps for d in distance.tolist()) / len(distance)


def without_misses(distance, eps):
    found = distance[distance.isfinite()]
    return (found > eps).float().mean()


def without_errors(distance, eps):
    right = distance[distance > 0]
    return (right > eps).float().mean()


RIGHT: dict[str, list[Any]] = {
    "border_distance": [0.04, 6 / 150, torch.tensor(0.04), np.float64(0.04)],
    "border_step": [in_rows, one_by_one, in_numpy],
    "accuracy_from_distances": [lambda d, eps: (d > eps).float().mean(), with_numpy, counted],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "border_distance": [
        (0.5, "distance in l2"),
        (25, "the inverse"),
        (6 / 144, "square of a length"),
        (900, "dual norm"),
        ("0.04", "type str"),
        (lambda: 0.04, "not a function"),
    ],
    "border_step": [
        (lambda a, g, o: -in_rows(a, g, o), "go against it"),
        (of_class(lambda a, g: a.argmin(1)), "smallest lead"),
        (lambda a, g, o: in_rows(a, g, 0.0), "exactly on the border"),
        (not_squared, "the first step should be"),
        (lambda a, g, o: in_rows(a, g, 0.02), "With overshoot = 0.5"),
        (of_class(lambda a, g: (a / g.norm(dim=2)).argmax(1)), "the first step should be"),
        (askew, "not the shortest way"),
        (lambda a, g, o: g, "shape (40, 9)"),
        (lambda a, g, o: a.tolist(), "not list"),
    ],
    "accuracy_from_distances": [
        (without_misses, "left the misses out"),
        (without_errors, "wrong from the start"),
        (lambda d, eps: (d <= eps).float().mean(), "share of errors"),
        (lambda d, eps: (d >= eps).float().mean(), "At eps = 0"),
        (
            lambda d, eps: (d > max(eps - 1e-9, 0)).float().mean() if eps != 0.25 else 2 / 3,
            "exactly eps",
        ),
        (lambda d, eps: 0.6, "At eps = 0.45"),
        (lambda d, eps: d > eps, "one number"),
    ],
}

VALUES = {"border_distance"}  # its answer is a number, no function


@pytest.mark.parametrize("stub", [..., None])
def test_no_number_is_not_done_yet(stub: Any) -> None:
    is_todo("border_distance", stub)
