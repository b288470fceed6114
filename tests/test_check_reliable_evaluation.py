"""Graders of the chapter on reliable evaluation: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import pytest
import torch
from graders import is_todo
from torch import nn

from modelsec.attacks import bpda, pgd, square
from modelsec.intervals import Proportion
from modelsec.zoo import load_model

# --- two_faced


def one_line(x, transform, stand_in):
    smooth = stand_in(x)
    return smooth + (transform(x.detach()) - smooth).detach()


def by_function(x, transform, stand_in):
    class Swap(torch.autograd.Function):
        @staticmethod
        def forward(ctx, smooth, exact):
            return exact.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient, None

    return Swap.apply(stand_in(x), transform(x.detach()))


def without_grad(x, transform, stand_in):
    with torch.no_grad():
        exact = transform(x.detach())
    smooth = stand_in(x)
    return exact + smooth - smooth.detach()


def both_slopes(x, transform, stand_in):
    smooth = stand_in(x)
    return transform(x) + smooth - smooth.detach()


def watched(x, transform, stand_in):
    smooth = stand_in(x)
    return smooth + (transform(x) - smooth).detach()


# --- distrustful


def loop(model, attacks, x, y, eps):
    stands = model(x).argmax(1) == y
    for attack in attacks:
        adv = attack(model, x, y)
        valid = ((adv - x).abs() <= eps + 1e-6) & (adv >= 0) & (adv <= 1)
        fooled = model(adv).argmax(1) != y
        stands &= ~(fooled & valid.flatten(1).all(1))
    return stands.float().mean()


def projecting(model, attacks, x, y, eps):
    points = [x]
    for attack in attacks:
        adv = torch.minimum(torch.maximum(attack(model, x, y), x - eps), x + eps)
        points.append(adv.clamp(0, 1))
    right = torch.stack([model(point).argmax(1) == y for point in points])
    return Proportion(int(right.all(0).sum()), len(x))


def in_numpy(model, attacks, x, y, eps):
    return np.float64(loop(model, attacks, x, y, eps).item())


def mean_over_attacks(model, attacks, x, y, eps):
    return sum(float(loop(model, [attack], x, y, eps)) for attack in attacks) / len(attacks)


def strongest_attack(model, attacks, x, y, eps):
    return min(float(loop(model, [attack], x, y, eps)) for attack in attacks)


def without_the_clean(model, attacks, x, y, eps):
    stands = torch.ones(len(x), dtype=torch.bool)
    for attack in attacks:
        adv = torch.minimum(torch.maximum(attack(model, x, y), x - eps), x + eps).clamp(0, 1)
        stands &= model(adv).argmax(1) == y
    return stands.float().mean()


def without_the_ball(model, attacks, x, y, eps):
    return projecting(model, attacks, x, y, 9.0)


def without_the_box(model, attacks, x, y, eps):
    stands = model(x).argmax(1) == y
    for attack in attacks:
        adv = torch.minimum(torch.maximum(attack(model, x, y), x - eps), x + eps)
        stands &= model(adv).argmax(1) == y
    return stands.float().mean()


def without_rounding(model, attacks, x, y, eps):
    stands = model(x).argmax(1) == y
    for attack in attacks:
        adv = attack(model, x, y)
        valid = ((adv - x).abs() < eps) & (adv >= 0) & (adv <= 1)
        stands &= ~((model(adv).argmax(1) != y) & valid.flatten(1).all(1))
    return stands.float().mean()


def credulous(model, attacks, x, y, eps):
    return sum(len(attack(model, x, y)) for attack in attacks) / len(x) / len(attacks)


def on_another_model(model, attacks, x, y, eps):
    return loop(lambda x: model(x), attacks, x, y, eps)


def first_only(model, attacks, x, y, eps):
    return loop(model, attacks[:1], x, y, eps)


# --- break_masked


def rounding(x):
    return (3 * x).round() / 3


def with_bpda(model, x, y, eps):
    return pgd(nn.Sequential(bpda(rounding), load_model("net")), x, y, eps=eps)


def as_if_undefended(model, x, y, eps):
    return pgd(load_model("net"), x, y, eps=eps, early_stop=False)


def with_pgd(model, x, y, eps):
    return pgd(model, x, y, eps=eps)


def with_square(model, x, y, eps):
    return square(model, x, y, eps=eps, queries=500, generator=torch.Generator().manual_seed(0))


def changes_the_model(model, x, y, eps):
    model.net[2].weight.data.zero_()
    return with_square(model, x, y, eps)


RIGHT: dict[str, list[Any]] = {
    "at_most_robust": [0.28, np.float64(0.28), 28 / 100],
    "two_faced": [one_line, by_function, without_grad],
    "distrustful": [loop, projecting, in_numpy],
    "break_masked": [with_bpda, as_if_undefended, with_square],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "at_most_robust": [
        (0.5525, "mean over the attacks"),
        (0.92, "the weakest attack"),
        (28, "from 0 to 1"),
        (0.28 * 0.36 * 0.92 * 0.65, "failed independently"),
        (0.3, "How many can that be"),
        ("0.28", "type str"),
    ],
    "two_faced": [
        (lambda x, f, g: g(x), "stand-in's. Forwards"),
        (lambda x, f, g: f(x.detach()), "No gradient comes back"),
        (both_slopes, "transform's own slope"),
        (watched, "detached copy"),
        (lambda x, f, g: 2 * f(x), "not the transform's"),
        (lambda x, f, g: one_line(x, f, g).sum(), "shape changed"),
        (lambda x, f, g: 1, "Return a tensor"),
    ],
    "distrustful": [
        (mean_over_attacks, "no mean, and no minimum"),
        (strongest_attack, "no mean, and no minimum"),
        (without_the_clean, "does not stand"),
        (without_the_ball, "more than eps"),
        (without_the_box, "range of pixels"),
        (without_rounding, "exactly eps"),
        (on_another_model, "measures transfer"),
        (first_only, "Not every attack"),
        (credulous, "Five are right"),
        (lambda *_: [1], "one number"),
    ],
    "break_masked": [
        (with_pgd, "Does it follow a gradient"),
        (lambda model, x, y, eps: x, "Does it follow a gradient"),
        (lambda model, x, y, eps: with_square(model, x, y, 0.4), "eps is 0.2"),
        (lambda model, x, y, eps: x + 0.1, "outside [0, 1]"),
        (lambda model, x, y, eps: x[:1], "Return images of shape"),
        (lambda model, x, y, eps: 0, "not int"),
        (changes_the_model, "weights were changed"),
    ],
}


@pytest.mark.parametrize("stub", [..., None])
def test_no_number_is_not_done_yet(stub: Any) -> None:
    is_todo("at_most_robust", stub)


VALUES = {"at_most_robust"}  # its answer is a number, no function
