"""Graders of the chapter on privacy, second half: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import pytest
import torch
from graders import is_todo


def largest(weight, bias):
    unit = bias.abs().argmax()
    return weight[unit] / bias[unit]


def least_squares(weight, bias):
    return bias @ weight / bias.square().sum()


def in_numpy(weight, bias):
    w, b = weight.double().numpy(), bias.double().numpy()
    keep = np.abs(b) > 1e-6
    return torch.from_numpy(np.median(w[keep] / b[keep, None], axis=0))


def report(copy, victim, y):
    wrong = victim != y
    shared = (copy == victim)[wrong].float().mean() if wrong.any() else 0.0
    return (copy == y).float().mean(), (copy == victim).float().mean(), shared


def counted(copy, victim, y):
    rows = list(zip(copy.tolist(), victim.tolist(), y.tolist(), strict=True))
    errors = [(c, v) for c, v, t in rows if v != t]
    return (
        sum(c == t for c, _, t in rows) / len(rows),
        sum(c == v for c, v, _ in rows) / len(rows),
        sum(c == v for c, v in errors) / max(len(errors), 1),
    )


def with_numpy(copy, victim, y):
    c, v, t = copy.numpy(), victim.numpy(), y.numpy()
    shared = np.sum((c == v) & (v != t)) / max(np.sum(v != t), 1)
    return [np.mean(c == t), np.mean(c == v), shared]


def with_shared(share):
    return lambda c, v, y: (report(c, v, y)[0], report(c, v, y)[1], share(c, v, y))


RIGHT: dict[str, list[Any]] = {
    "equations_needed": [785, 784 + 1, torch.tensor(785), np.float64(785)],
    "image_from_gradient": [largest, least_squares, in_numpy],
    "agreement_report": [report, counted, with_numpy],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "equations_needed": [
        (784, "has a bias"),
        (7850, "number of parameters"),
        (7065, "number of unknowns"),
        (7056, "left the biases out"),
        (1000, "is not it"),
        ("785", "type str"),
        (lambda: 785, "not a function"),
    ],
    "image_from_gradient": [
        (lambda w, b: w[0] / b[0], "NaN or infinite"),
        (lambda w, b: (w / b[:, None]).mean(0), "NaN or infinite"),
        (lambda w, b: w[0], "All values are 0"),
        (lambda w, b: w[1] / b[1], "divide rounding errors"),
        (
            lambda w, b: w[b.argmin()] / b[b.argmin()].abs(),
            "The sign is turned round",
        ),
        (lambda w, b: w[b.abs().argmax()], "The first three values"),
        (lambda w, b: w / b[:, None], "Return one input"),
        (lambda w, b: largest(w, b).tolist(), "not list"),
    ],
    "agreement_report": [
        (lambda c, v, y: report(c, v, y)[:2], "three numbers"),
        (lambda c, v, y: (c == y, c == v, 0.3), "one number"),
        (lambda c, v, y: ((v == y).float().mean(), 0.8, 2 / 3), "victim's accuracy"),
        (lambda c, v, y: (0.5, 0.8, 2 / 3), "right on 6 of the 10"),
        (lambda c, v, y: (0.6, ((c == v) & (c == y)).float().mean(), 2 / 3), "right or wrong"),
        (with_shared(lambda c, v, y: (c != y)[v != y].float().mean()), "the same wrong answer"),
        (with_shared(lambda c, v, y: ((c == v) & (v != y)).float().mean()), "number of images"),
        (
            with_shared(lambda c, v, y: ((c == v) & (v != y)).sum() / (c != y).sum()),
            "the copy's errors",
        ),
        (with_shared(lambda c, v, y: 0.9), "you have 0.9"),
        (with_shared(lambda c, v, y: (c == v)[v != y].float().mean()), "gives NaN"),
    ],
}

VALUES = {"equations_needed"}  # its answer is a number, no function


@pytest.mark.parametrize("stub", [..., None])
def test_no_number_is_not_done_yet(stub: Any) -> None:
    is_todo("equations_needed", stub)
