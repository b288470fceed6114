"""Graders of the chapter on repairing privacy: right answers pass, wrong ones get the sentence that helps."""

import math
from typing import Any

import torch
from scipy.stats import beta

from modelsec.intervals import wilson

# --- private_gradient


def by_rows(gradients, clip, noise, z):
    total = torch.zeros_like(z)
    for row in gradients:
        total += row * min(1.0, clip / row.norm().item())
    return (total + noise * clip * z) / len(gradients)


def at_once(gradients, clip, noise, z):
    short = (clip / gradients.norm(dim=1, keepdim=True)).clamp(max=1)
    return (gradients * short).mean(0) + noise * clip / len(gradients) * z


def by_division(gradients, clip, noise, z):
    longer = (gradients.norm(dim=1, keepdim=True) / clip).clamp(min=1)
    return ((gradients / longer).sum(0) + noise * clip * z) / gradients.shape[0]


def unclipped(gradients, clip, noise, z):
    return gradients.mean(0) + noise * clip / len(gradients) * z


def mean_clipped(gradients, clip, noise, z):
    mean = gradients.mean(0)
    return mean * min(1.0, clip / mean.norm().item()) + noise * clip / len(gradients) * z


def sum_clipped(gradients, clip, noise, z):
    total = gradients.sum(0)
    return (total * min(1.0, clip / total.norm().item()) + noise * clip * z) / len(gradients)


def all_stretched(gradients, clip, noise, z):
    return (clip * gradients / gradients.norm(dim=1, keepdim=True)).mean(0) + noise * clip / len(
        gradients
    ) * z


def entries(gradients, clip, noise, z):
    return gradients.clamp(-clip, clip).mean(0) + noise * clip / len(gradients) * z


def no_division(gradients, clip, noise, z):
    return len(gradients) * at_once(gradients, clip, noise, z)


def no_noise(gradients, clip, noise, z):
    return at_once(gradients, clip, 0, z)


def noise_without_clip(gradients, clip, noise, z):
    return at_once(gradients, clip, 0, z) + noise * z / len(gradients)


def noise_on_the_mean(gradients, clip, noise, z):
    return at_once(gradients, clip, 0, z) + noise * clip * z


def noise_in_each_row(gradients, clip, noise, z):
    return at_once(gradients, clip, 0, z) + noise * clip * z / len(gradients) ** 0.5


def noise_of_its_own(gradients, clip, noise, z):
    return at_once(gradients, clip, 0, z) + noise * clip * z.abs() / len(gradients)


# --- sensitive_batch

OUTWEIGHS = torch.cat([torch.ones(19, 3), -1000 * torch.ones(1, 3)])
ALONE = torch.cat([torch.zeros(9, 2), torch.tensor([[50.0, 0.0]])])
TURNS = torch.cat([torch.tensor([[3.0, 0.0]]).repeat(15, 1), torch.tensor([[0.0, 900.0]])])

# --- epsilon_at_least


def clopper_pearson(hits, n):
    return (
        float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0,
        float(beta.ppf(0.975, hits + 1, n - hits)),
    )


def audit(interval, low=0, high=1, delta=True, floor=True, log=True):
    def solution(found, members, false, others, delta_):
        factor = (interval(found, members)[low] - (delta_ if delta else 0)) / interval(
            false, others
        )[high]
        if not log:
            return factor
        if factor <= 0:
            return 0.0 if floor else -99.0
        return max(0.0, math.log(factor)) if floor else math.log(factor)

    return solution


def measured(hits, n):
    return hits / n, hits / n


def plus_delta(found, members, false, others, delta):
    factor = (wilson(found, members)[0] + delta) / wilson(false, others)[1]
    return max(0.0, math.log(factor))


def found_exactly(found, members, false, others, delta):
    return max(0.0, math.log((found / members - delta) / wilson(false, others)[1]))


def false_exactly(found, members, false, others, delta):
    low = wilson(found, members)[0] - delta
    return max(0.0, math.log(low * others / max(false, 1e-9))) if low > 0 else 0.0


# --- samples_again


def by_complement(n, shards, requests):
    return n - n * (1 - 1 / shards) ** requests


def shard_by_shard(n, shards, requests):
    spared = math.exp(requests * math.log1p(-1 / shards)) if shards > 1 else 0.0
    return sum(n / shards * (1 - spared) for _ in range(shards))


def by_recursion(n, shards, requests):
    touched = 0.0
    for _ in range(requests):
        touched += 1 - touched / shards
    return touched * n / shards


RIGHT: dict[str, list[Any]] = {
    "members_at_most": [200 * math.e * 0.01, 5.44, torch.tensor(5.4366), 5],
    "private_gradient": [by_rows, at_once, by_division],
    "sensitive_batch": [OUTWEIGHS, ALONE, TURNS],
    "epsilon_at_least": [
        audit(wilson),
        audit(clopper_pearson),
        audit(lambda h, n: wilson(h, n, 0.9)),
    ],
    "samples_again": [by_complement, shard_by_shard, by_recursion],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "members_at_most": [
        (math.e * 0.01, "How many of 200 members"),
        (200 * math.e, "more than there are"),
        (2, "found by guessing"),
        (4, "not 1 + epsilon"),
        (200 * (1 - 0.99 / math.e), "the other bound"),
        (10, "is not it"),
        ("5.4", "Give one number"),
    ],
    "private_gradient": [
        (unclipped, "nothing is clipped"),
        (mean_clipped, "clip the mean of the batch"),
        (sum_clipped, "clip the sum of the batch"),
        (all_stretched, "Short rows must stay"),
        (entries, "each entry"),
        (no_division, "That is the sum"),
        (no_noise, "No noise is added"),
        (noise_without_clip, "does not grow with clip"),
        (noise_on_the_mean, "divided by N as well"),
        (noise_in_each_row, "added once"),
        (noise_of_its_own, "multiple of z"),
        (lambda g, c, s, z: g, "Return one gradient of shape"),
        (lambda g, c, s, z: 0 * z, "not the mean of the clipped rows"),
    ],
    "sensitive_batch": [
        (torch.ones(20, 3), "does not move the result at all"),
        (torch.cat([torch.ones(20, 3), torch.zeros(1, 3)]), "does not move the result at all"),
        (torch.tensor([[1.0, 0.0], [-1000.0, 0.0]]), "Take a larger batch"),
        (torch.cat([torch.ones(20, 3), -torch.ones(1, 3)]) / 9, "outweighs all the others"),
        (torch.ones(5), "shape (N, D)"),
        ([1.0, 2.0], "Give a tensor"),
        (torch.full((9, 2), math.inf), "not finite"),
    ],
    "epsilon_at_least": [
        (audit(measured), "measured shares"),
        (audit(wilson, 1, 0), "flatter the attack"),
        (audit(wilson, 0, 0), "take the upper end"),
        (found_exactly, "take its lower end"),
        (false_exactly, "take its upper end"),
        (audit(wilson, log=False), "is its logarithm"),
        (audit(wilson, delta=False), "delta has no effect"),
        (plus_delta, "explains a part"),
        (audit(wilson, floor=False), "return 0, not less"),
        (lambda *_: 1.0, "epsilon is at least"),
    ],
    "samples_again": [
        (lambda n, s, k: k * n / s, "may fall into the same shard"),
        (lambda n, s, k: n * (1 - 1 / s) ** k, "that are spared"),
        (lambda n, s, k: s * (1 - (1 - 1 / s) ** k), "number of shards"),
        (lambda n, s, k: n, "are expected"),
        (lambda n, s, k: n / s, "are expected"),
    ],
}

VALUES = {"members_at_most", "sensitive_batch"}
