"""Graders of the chapter on black-box attacks: right answers pass, wrong ones get the sentence that helps."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from graders import is_todo


def in_a_batch(score, x, sigma, u):
    rise = score(x + sigma * u) - score(x - sigma * u)
    return (rise[:, None] * u).mean(0) / (2 * sigma)


def one_by_one(score, x, sigma, u):
    g = torch.zeros_like(x)
    for direction in u:
        ahead, behind = score((x + sigma * direction)[None]), score((x - sigma * direction)[None])
        g += (ahead - behind) / (2 * sigma) * direction / len(u)
    return g


def as_a_product(score, x, sigma, u):
    both = score(torch.cat([x + sigma * u, x - sigma * u]))
    return u.T @ (both[: len(u)] - both[len(u) :]) / (2 * sigma * len(u))


def one_sided(score, x, sigma, u):
    rise = score(x + sigma * u) - score(x[None])
    return (rise[:, None] * u).mean(0) / sigma


def asks_too_often(score, x, sigma, u):
    score(x[None])
    return in_a_batch(score, x, sigma, u)


def signs_only(score, x, sigma, u):
    rise = score(x + sigma * u) - score(x - sigma * u)
    return (rise.sign()[:, None] * u).mean(0)


def flat_images(score, x, sigma, u):
    return torch.stack([score(x + sigma * d) for d in u]).mean() * x


def by_sorting(queries, k, threshold):
    distance = torch.cdist(queries, queries)
    later = torch.ones_like(distance).triu().bool()
    nearest = distance.masked_fill(later, torch.inf).sort(1).values[:, :k]
    return nearest.mean(1) < threshold


def as_they_come(queries, k, threshold):
    seen, flags = [], []
    for query in queries:
        near = sorted(float((query - old).norm()) for old in seen)[:k]
        flags.append(len(near) == k and sum(near) / k < threshold)
        seen.append(query)
    return torch.tensor(flags)


def in_numpy(queries, k, threshold):
    q = queries.double().numpy()
    flags = np.zeros(len(q), dtype=bool)
    for t in range(k, len(q)):
        flags[t] = np.sort(np.linalg.norm(q[:t] - q[t], axis=1))[:k].mean() < threshold
    return torch.from_numpy(flags)


def own_neighbour(queries, k, threshold):
    distance = torch.cdist(queries, queries)
    later = torch.ones_like(distance).triu(1).bool()
    return distance.masked_fill(later, torch.inf).sort(1).values[:, :k].mean(1) < threshold


def nearest_only(queries, k, threshold):
    distance = torch.cdist(queries, queries)
    later = torch.ones_like(distance).triu().bool()
    flags = distance.masked_fill(later, torch.inf).amin(1) < threshold
    flags[:k] = False
    return flags


def into_the_future(queries, k, threshold):
    distance = torch.cdist(queries, queries).fill_diagonal_(torch.inf)
    flags = distance.sort(1).values[:, :k].mean(1) < threshold
    flags[:k] = False
    return flags


def latest_only(queries, k, threshold):
    flags = [False] * k
    for t in range(k, len(queries)):
        flags.append(bool((queries[t - k : t] - queries[t]).norm(dim=1).mean() < threshold))
    return torch.tensor(flags[: len(queries)])


def by_the_kth(queries, k, threshold):
    distance = torch.cdist(queries, queries)
    later = torch.ones_like(distance).triu().bool()
    return distance.masked_fill(later, torch.inf).sort(1).values[:, k - 1] < threshold


def counts_itself_late(queries, k, threshold):
    return by_sorting(queries, k, threshold) & (torch.arange(len(queries)) >= 2 * k)


RIGHT: dict[str, list[Any]] = {
    "queries_for_gradient": [1568, 2 * 28 * 28, torch.tensor(1568), np.float64(1568.0)],
    "nes_gradient": [in_a_batch, one_by_one, as_a_product],
    "stateful_detector": [by_sorting, as_they_come, in_numpy],
    "accounts_needed": [
        lambda q, k: math.ceil(q / k),
        lambda q, k: -(-q // k),
        lambda q, k: torch.tensor((q + k - 1) // k),
    ],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "queries_for_gradient": [
        (784, "one-sided"),
        (785, "one-sided"),
        (56, "more than 28 pixels"),
        (15680, "all ten scores"),
        (1569, "How many pixels"),
        ("1568", "type str"),
        (lambda: 1568, "not a function"),
    ],
    "nes_gradient": [
        (lambda f, x, s, u: 2 * in_a_batch(f, x, s, u), "2 sigma apart"),
        (lambda f, x, s, u: 30 * in_a_batch(f, x, s, u), "their mean"),
        (lambda f, x, s, u: s * in_a_batch(f, x, s, u), "the length is 0.1"),
        (lambda f, x, s, u: -in_a_batch(f, x, s, u), "downhill"),
        (one_sided, "x - sigma * u, not with x"),
        (asks_too_often, "You showed 61"),
        (signs_only, "Not the right direction"),
        (flat_images, "a row for each image"),
        (lambda f, x, s, u: in_a_batch(f, x, s, u)[None], "shape (12,)"),
        (lambda f, x, s, u: in_a_batch(f, x, s, u).tolist(), "not list"),
        (lambda f, x, s, u: f(x), "a row for each image"),
    ],
    "stateful_detector": [
        (own_neighbour, "own neighbour"),
        (nearest_only, "the nearest one"),
        (into_the_future, "look back"),
        (latest_only, "hid every other query"),
        (by_the_kth, "a mean of 1.5"),
        (counts_itself_late, "after the first ten"),
        (lambda q, k, t: torch.zeros(len(q)).bool(), "are not flagged"),
        (lambda q, k, t: torch.arange(len(q)) >= k, "nothing to do with each other"),
        (lambda q, k, t: by_sorting(q, k, t).float(), "one bool per query"),
        (lambda q, k, t: by_sorting(q, k, t).tolist(), "not list"),
    ],
    "accounts_needed": [
        (lambda q, k: q // k, "who asks the last one"),
        (lambda q, k: q // k + 1, "one account too many"),
        (lambda q, k: q / k, "no half account"),
        (lambda q, k: math.ceil(q / (k + 1)), "who asks the last one"),
        (lambda q, k: q, "how many can each account ask"),
        (lambda q, k: math.ceil(q / (k - 1)), "one account too many"),
        (lambda q, k: [q, k], "not list"),
    ],
}

VALUES = {"queries_for_gradient"}  # its answer is a number, no function


@pytest.mark.parametrize("stub", [..., None])
def test_no_number_is_not_done_yet(stub: Any) -> None:
    is_todo("queries_for_gradient", stub)
