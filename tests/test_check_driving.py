"""Graders of the chapter on driving: right answers pass, wrong ones get the sentence that helps."""

import math
from statistics import NormalDist

import numpy as np
import torch

from modelsec.attacks import pgd
from modelsec.intervals import wilson

WHEEL = torch.arange(-7, 8) / 10


def by_steps(net, x, side, eps, steps=10, way=0.25):
    adv = x.clone()
    for _ in range(steps):
        adv.requires_grad_()
        push = (side * (net(adv).softmax(1) * WHEEL).sum(1)).sum()
        slope = torch.autograd.grad(push, adv)[0]
        adv = (adv.detach() + way * eps * slope.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return adv


def by_pgd(net, x, side, eps):
    y = torch.zeros(len(x), dtype=torch.long)
    return pgd(
        net, x, y, eps=eps, steps=20, early_stop=False,
        loss=lambda logits, _: side * (logits.softmax(1) @ WHEEL),
    )  # fmt: skip


def one_at_a_time(net, x, side, eps):
    return torch.cat([by_steps(net, x[i : i + 1], side[i : i + 1], eps) for i in range(len(x))])


def to_the_right(net, x, side, eps):
    return by_steps(net, x, torch.ones(len(x)), eps)


def too_far(net, x, side, eps):
    return by_steps(net, x, side, 2 * eps)


def changes_the_network(net, x, side, eps):
    with torch.no_grad():
        next(net.parameters()).mul_(1.5)
    return by_steps(net, x, side, eps)


def timid(net, x, side, eps):
    return by_steps(net, x, side, eps / 10)


def ring(scores, over, limit):
    for step in range(len(scores)):
        part = scores[max(0, step - over + 1) : step + 1]
        if abs(sum(part) / len(part)) > limit:
            return step
    return -1


def ring_in_numpy(scores, over, limit):
    total = np.concatenate([[0.0], np.cumsum(scores)])
    end = np.arange(1, len(scores) + 1)
    start = np.maximum(end - over, 0)
    above = np.abs((total[end] - total[start]) / (end - start)) > limit + 1e-12
    return int(above.argmax()) if above.any() else -1


def ring_from_a_memory(scores, over, limit):
    memory = []
    for step, score in enumerate(scores):
        memory = [*memory, score][-over:]
        if abs(np.mean(memory)) > limit + 1e-12:
            return torch.tensor(step)
    return -1


def counting(rate):
    n = 1
    while wilson(0, n)[1] >= rate:
        n += 1 if n < 100 else max(1, n // 1000)
    while n > 1 and wilson(0, n - 1)[1] < rate:
        n -= 1
    return n


def by_formula(rate):
    z2 = NormalDist().inv_cdf(0.975) ** 2
    n = math.ceil(z2 * (1 - rate) / rate)
    return n if z2 / (n + z2) < rate else n + 1


RIGHT = {
    "chance_of_false_alarm": [1 / 21, 0.048, torch.tensor(0.0476)],
    "push_wheel": [by_steps, by_pgd, one_at_a_time],
    "first_ring": [ring, ring_in_numpy, ring_from_a_memory],
    "drives_needed": [counting, by_formula, lambda rate: torch.tensor(by_formula(rate))],
}

WRONG = {
    "chance_of_false_alarm": [
        (0.0, "strangest of all"),
        (1 / 20, "count the drives"),
        (0.5, "above one other drive"),
        (20 / 21, "no alarm"),
        (0.3, "as likely as any other"),
    ],
    "push_wheel": [
        (to_the_right, "One side works"),
        (lambda n, x, s, e: by_steps(n, x, -s, e), "other side"),
        (lambda n, x, s, e: x.clone(), "other side, or not at all"),
        (too_far, "eps is 0.1"),
        (timid, "several steps"),
        (changes_the_network, "weights were changed"),
        (lambda n, x, s, e: x + e * s.view(-1, 1, 1, 1), "outside [0, 1]"),
        (lambda n, x, s, e: by_steps(n, x, s, e)[:3], "of shape"),
    ],
    "first_ring": [
        (lambda s, o, m: next((i for i, v in enumerate(s) if abs(v) > m), -1), "averaged with"),
        (lambda s, o, m: ring([max(v, 0) for v in s], o, m), "to the left"),
        (lambda s, o, m: ring([abs(v) for v in s], o, m), "cancel"),
        (lambda s, o, m: ring(s, o, m - 1e-9), "Above the limit"),
        (lambda s, o, m: ring(s, len(s), m), "last scores"),
        (lambda s, o, m: next(
            (i for i in range(o - 1, len(s)) if abs(sum(s[i - o + 1 : i + 1])) / o > m), -1),
         "one score"),
        (lambda s, o, m: "2", "type str"),
    ],
    "drives_needed": [
        (lambda rate: math.ceil(3 / rate), "rule of three"),
        (lambda rate: by_formula(rate) - 1, "round up"),
        (lambda rate: 1.96**2 * (1 - rate) / rate, "round up"),
        (lambda rate: 1 / rate, "it takes"),
        (lambda rate: by_formula(rate) * 2, "it takes"),
    ],
}  # fmt: skip

VALUES = {"chance_of_false_alarm"}
