"""Graders of the chapter on broken defences: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import pytest
import torch
from graders import is_todo

from modelsec.attacks import bpda, eot, pgd, square
from modelsec.check import sealed
from modelsec.data import mnist
from modelsec.losses import margin
from modelsec.training import evaluate
from modelsec.zoo import load_model

# --- quantiser


def round_to(x, levels):
    return (x * (levels - 1)).round() / (levels - 1)


def one_line(x, levels):
    return x + (round_to(x, levels) - x).detach()


def with_bpda(x, levels):
    return bpda(lambda x: round_to(x, levels))(x)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, levels):
        return round_to(x, levels)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


# --- mean_gradient


def mean_of_logits(model, x, loss, draws):
    x = x.clone().requires_grad_()
    mean = sum(model(x) for _ in range(draws)) / draws
    return torch.autograd.grad(loss(mean), x)[0]


def stacked(model, x, loss, draws):
    x = x.clone().requires_grad_()
    mean = torch.stack([model(x) for _ in range(draws)]).mean(0)
    loss(mean).backward()
    return x.grad


def with_eot(model, x, loss, draws):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(eot(model, draws)(x)), x)[0]


def sum_of_logits(model, x, loss, draws):
    return draws * mean_of_logits(model, x, loss, draws)


def one_draw(model, x, loss, draws):
    return mean_of_logits(model, x, loss, 1)


def mean_of_gradients(model, x, loss, draws):
    return sum(mean_of_logits(model, x, loss, 1) for _ in range(draws)) / draws


# --- joint_loss


def smallest(logits, score, threshold, y):
    return torch.minimum(margin(logits, y), threshold - score)


def refusal_as_a_class(logits, score, threshold, y):
    right = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    refused = logits.amax(1) + 3 * (score - threshold)
    return others - torch.maximum(right, refused)


def penalties(logits, score, threshold, y):
    lost = (-margin(logits, y)).relu() + (score - threshold).relu()
    return torch.where(lost > 0, -lost, torch.minimum(margin(logits, y), threshold - score))


def masks_only(logits, score, threshold, y):
    return ((logits.argmax(1) != y) & (score <= threshold)).double() + 0 * (logits.sum(1) + score)


# --- break_sealed


def transfer(model, x, y, eps):
    return pgd(load_model("net"), x, y, eps=eps, early_stop=False)


def by_square(model, x, y, eps):
    return square(model, x, y, eps=eps, queries=600, generator=torch.Generator().manual_seed(0))


def peeling(model, x, y, eps):
    return pgd(model.inside, x, y, eps=eps)


def plain(model, x, y, eps):
    return pgd(model, x, y, eps=eps)


def changes_the_model(model, x, y, eps):
    model.inside[2].weight.data.zero_()
    return transfer(model, x, y, eps)


RIGHT: dict[str, list[Any]] = {
    "lucky_stop": [1 - 0.95**40, 0.87, np.float64(0.8715)],
    "quantiser": [one_line, with_bpda, Straight.apply],
    "mean_gradient": [mean_of_logits, stacked, with_eot],
    "joint_loss": [smallest, refusal_as_a_class, penalties],
    "break_sealed": [transfer, by_square, peeling],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "lucky_stop": [
        (0.05, "one draw"),
        (2, "can't be 2"),
        (0.95**40, "the opposite"),
        (0.05**40, "One is enough"),
        (0.5, "all forty draws are right"),
        (87, "from 0 to 1"),
        ("0.87", "type str"),
    ],
    "quantiser": [
        (round_to, "zero everywhere"),
        (lambda x, levels: x, "must round"),
        (lambda x, levels: round_to(x.detach(), levels), "No gradient comes back"),
        (lambda x, levels: one_line(x, levels + 1), "0 and 1 are levels too"),
        (lambda x, levels: (x * levels).floor() / levels + x - x.detach(), "evenly spaced"),
        (lambda x, levels: one_line(2 * x, levels) - one_line(x, levels).detach(), "evenly spaced"),
        (lambda x, levels: 2 * one_line(x, levels) - one_line(x, levels).detach(), "not 1"),
        (lambda x, levels: one_line(x, levels).sum(), "shape changed"),
        (lambda x, levels: 1, "Return a tensor"),
    ],
    "mean_gradient": [
        (one_draw, "asked once"),
        (sum_of_logits, "not the sum"),
        (mean_of_gradients, "Average the logits first"),
        (lambda model, x, loss, draws: mean_of_logits(model, x, loss, 20), "asked 20 times"),
        (lambda model, x, loss, draws: mean_of_logits(model, x, loss, draws)[0], "like x"),
        (lambda model, x, loss, draws: -mean_of_logits(model, x, loss, draws), "close to"),
        (lambda *_: 0, "Return a tensor"),
    ],
    "joint_loss": [
        (lambda z, s, t, y: margin(z, y), "detector refuses"),
        (lambda z, s, t, y: t - s, "gets right"),
        (lambda z, s, t, y: margin(z, y) + t - s, "above 0"),
        (masks_only, "A comparison has no slope"),
        (lambda z, s, t, y: smallest(z, s.detach(), t, y), "to the score"),
        (lambda z, s, t, y: smallest(z.detach(), s, t, y), "to the logits"),
        (lambda z, s, t, y: -smallest(z, s, t, y).abs(), "that is the success"),
        (lambda z, s, t, y: smallest(z, s, t, y).mean(), "one value a sample"),
        (lambda *_: 0, "Return a tensor"),
    ],
    "break_sealed": [
        (plain, "Compare a slope"),
        (lambda model, x, y, eps: x, "Compare a slope"),
        (lambda model, x, y, eps: transfer(model, x, y, 0.3), "eps is 0.15"),
        (lambda model, x, y, eps: x + 0.1, "outside [0, 1]"),
        (lambda model, x, y, eps: x[:1], "Return images of shape"),
        (lambda model, x, y, eps: 0, "not int"),
        (changes_the_model, "weights were changed"),
    ],
}


@pytest.mark.parametrize("stub", [..., None])
def test_no_number_is_not_done_yet(stub: Any) -> None:
    is_todo("lucky_stop", stub)


VALUES = {"lucky_stop"}  # its answer is a number, no function


def test_the_sealed_network_answers_like_the_book_s_and_stops_pgd() -> None:
    """Nothing is defended: the answers are the same, and only the gradient lies."""
    digits, model, net = mnist(), sealed(), load_model("net")
    x, y = digits.x_test[:100], digits.y_test[:100]
    assert torch.equal(model(x), net(x))
    generator = torch.Generator().manual_seed(0)
    left = [
        float(evaluate(model, pgd(m, x, y, eps=0.15, generator=generator), y)) for m in (model, net)
    ]
    assert left[0] > 0.7
    assert left[1] < 0.1
