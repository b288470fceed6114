"""Graders of the chapter on gradient attacks: right answers pass, wrong ones get the sentence that helps."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec import attacks
from modelsec.attacks.norms import NORMS
from modelsec.check.gradient import EPS, STEPS

# --- pgd


def slope(model: Callable, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]


def pgd_as_in_the_chapter(model, x, y, eps, alpha, steps, start):
    adv = start.clone()
    for _ in range(steps):
        adv = adv + alpha * slope(model, adv, y).sign()
        adv = adv.clamp(x - eps, x + eps).clamp(0, 1)
    return adv


def pgd_by_delta(model, x, y, eps, alpha, steps, start):
    delta = start - x
    for _ in range(steps):
        delta = (delta + alpha * slope(model, x + delta, y).sign()).clamp(-eps, eps)
        delta = (x + delta).clamp(0, 1) - x
    return x + delta


def pgd_with_backward(model, x, y, eps, alpha, steps, start):
    adv = start.clone()
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        F.cross_entropy(model(adv), y).backward()
        model.zero_grad(set_to_none=True)
        adv = torch.min(torch.max(adv + alpha * adv.grad.sign(), x - eps), x + eps).clip(0, 1)
    return adv.detach()


def pgd_of_the_package(model, x, y, eps, alpha, steps, start):
    path: list[Any] = []
    attacks.pgd(
        model, x, y, eps=eps, step_size=alpha, steps=steps, start=start, early_stop=False,
        callback=path.append,
    )  # fmt: skip
    return path[-1].adv


def ball_around_the_last_iterate(model, x, y, eps, alpha, steps, start):
    adv = start.clone()
    for _ in range(steps):
        there = adv + alpha * slope(model, adv, y).sign()
        adv = there.clamp(adv - eps, adv + eps).clamp(0, 1)
    return adv


def without_the_box(model, x, y, eps, alpha, steps, start):
    adv = start.clone()
    for _ in range(steps):
        adv = (adv + alpha * slope(model, adv, y).sign()).clamp(x - eps, x + eps)
    return adv


def downhill(model, x, y, eps, alpha, steps, start):
    return pgd_as_in_the_chapter(model, x, y, eps, -alpha, steps, start)


def from_the_image(model, x, y, eps, alpha, steps, start):
    return pgd_as_in_the_chapter(model, x, y, eps, alpha, steps, x)


def with_predictions(model, x, y, eps, alpha, steps, start):
    return pgd_as_in_the_chapter(model, x, model(x).argmax(1), eps, alpha, steps, start)


def one_step_more(model, x, y, eps, alpha, steps, start):
    return pgd_as_in_the_chapter(model, x, y, eps, alpha, steps + 1, start)


def with_one_gradient(model, x, y, eps, alpha, steps, start):
    adv, first = start.clone(), slope(model, start, y).sign()
    for _ in range(steps):
        adv = (adv + alpha * first).clamp(x - eps, x + eps).clamp(0, 1)
    return adv


def in_place(model, x, y, eps, alpha, steps, start):
    start += alpha * slope(model, start, y).sign()
    return start.clamp_(x - eps, x + eps).clamp_(0, 1)


def leaves_gradients(model, x, y, eps, alpha, steps, start):
    adv = start.clone().requires_grad_()
    F.cross_entropy(model(adv), y).backward()
    return (adv + alpha * adv.grad.sign()).clamp(x - eps, x + eps).clamp(0, 1).detach()


# --- momentum


def per_image(g, gradient, mu):
    length = gradient.flatten(1).abs().sum(1).view(-1, 1, 1, 1)
    return mu * g + gradient / torch.where(length > 0, length, 1)


def in_a_loop(g, gradient, mu):
    rows = []
    for old, new in zip(g, gradient, strict=True):
        length = new.abs().sum()
        rows.append(mu * old + (new / length if length > 0 else 0))
    return torch.stack(rows)


def with_normalize(g, gradient, mu):
    return mu * g + F.normalize(gradient.flatten(1), p=1, dim=1, eps=1e-35).view_as(gradient)


def over_the_batch(g, gradient, mu):
    return mu * g + gradient / gradient.abs().sum()


def unscaled(g, gradient, mu):
    return mu * g + gradient


def in_l2(g, gradient, mu):
    return mu * g + NORMS["l2"].steepest(gradient)


def with_an_epsilon(g, gradient, mu):
    return mu * g + gradient / (gradient.flatten(1).abs().sum(1).view(-1, 1, 1, 1) + 1e-8)


def nan_at_zero(g, gradient, mu):
    return mu * g + gradient / gradient.flatten(1).abs().sum(1).view(-1, 1, 1, 1)


def forgets(g, gradient, mu):
    return (1 - mu) * g + per_image(0 * g, gradient, mu)


# --- l1_fill


def by_sorting(x, slope, eps):
    room = torch.where(slope > 0, 1 - x, x)
    order = slope.abs().argsort(descending=True)
    spent = room[order].cumsum(0) - room[order]
    adv = x.clone()
    adv[order] += slope[order].sign() * torch.minimum((eps - spent).clamp(min=0), room[order])
    return adv


def pixel_by_pixel(x, slope, eps):
    adv = x.clone()
    for i in np.argsort(-slope.abs().numpy()):
        wall = 1.0 if slope[i] > 0 else 0.0
        move = min(eps, abs(wall - float(x[i])))
        adv[i] += math.copysign(move, float(slope[i]))
        eps -= move
    return adv.clamp(0, 1)


def by_the_package(x, slope, eps):
    return NORMS["l1"].step(x[None], torch.tensor([[float(eps)]]), slope[None])[0]


def all_on_one(x, slope, eps):
    step = torch.zeros_like(x)
    step[slope.abs().argmax()] = eps * slope[slope.abs().argmax()].sign()
    return x + step


def one_and_clip(x, slope, eps):
    return all_on_one(x, slope, eps).clamp(0, 1)


def along_the_gradient(x, slope, eps):
    return (x + eps * slope / slope.abs().sum()).clamp(0, 1)


def only_brighter(x, slope, eps):
    return by_sorting(x, slope.abs(), eps)


def too_generous(x, slope, eps):
    return by_sorting(x, slope, 2 * eps)


RIGHT: dict[str, list[Any]] = {
    "steps_to_cross": [16, 16.0, np.int64(16), torch.tensor(16)],
    "pgd": [pgd_as_in_the_chapter, pgd_by_delta, pgd_with_backward, pgd_of_the_package],
    "momentum": [per_image, in_a_loop, with_normalize],
    "l1_fill": [by_sorting, pixel_by_pixel, by_the_package],
    "step_rule": [
        lambda t: EPS * (1 - t),
        lambda t: EPS * 0.05**t,
        lambda t: torch.tensor(EPS / 2 * (1 + math.cos(math.pi * t))),
    ],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "steps_to_cross": [
        (8, "from the middle to a wall"),
        (15, "one step short"),
        (17, "One step more"),
        (16 / 255, "in pixels"),
        (255, "How wide is that"),
        ("sixteen", "Give one number"),
    ],
    "pgd": [
        (ball_around_the_last_iterate, "around the last iterate"),
        (without_the_box, "left [0, 1]"),
        (downhill, "The loss goes down"),
        (from_the_image, "begin at start"),
        (with_predictions, "use the labels"),
        (one_step_more, "one step too many"),
        (with_one_gradient, "not PGD's"),
        (in_place, "in place"),
        (leaves_gradients, "carry a gradient"),
        (lambda model, x, y, eps, alpha, steps, start: start.clone(), "nothing was added"),
    ],
    "momentum": [
        (over_the_batch, "for the whole batch"),
        (unscaled, "not normalised"),
        (in_l2, "That is the l2 norm"),
        (with_an_epsilon, "before you divide"),
        (nan_at_zero, "0 / 0"),
        (forgets, "not mu * g"),
    ],
    "l1_fill": [
        (all_on_one, "left [0, 1]"),
        (one_and_clip, "which pixel comes next"),
        (along_the_gradient, "is possible"),
        (only_brighter, "must become darker"),
        (too_generous, "too much"),
    ],
    "step_rule": [
        (lambda t: 2.5 * EPS / STEPS, "all alike"),
        (lambda t: EPS, "all alike"),
        (lambda t: 0.01 * EPS * (1 - t), "How long are the first steps"),
        (lambda t: 0.0, "nothing moves"),
        (lambda t: -1.0, "finite and 0 or more"),
    ],
}

VALUES = {"steps_to_cross"}
