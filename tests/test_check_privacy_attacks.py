"""Graders of the chapter on privacy attacks: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_curve

from modelsec.attacks.leak import Leak

# --- members_found


def by_sorting(scores, member, fpr):
    others = scores[~member].sort(descending=True).values
    threshold = others[int(fpr * len(others) + 1e-9)]
    return (scores[member] > threshold).float().mean()


def by_scikit(scores, member, fpr):
    false, true, _ = roc_curve(member, scores, drop_intermediate=False)
    return true[false <= fpr + 1e-12].max()


def by_trying(scores, member, fpr):
    best = 0.0
    for t in scores:
        if (scores[~member] >= t).double().mean() <= fpr + 1e-12:
            best = max(best, (scores[member] >= t).double().mean().item())
    return best


def by_the_package(scores, member, fpr):
    return Leak(scores, member).tpr_at(fpr)


def at_least_as_high(scores, member, fpr):
    others = scores[~member].sort(descending=True).values
    return (scores[member] >= others[int(fpr * len(others) + 1e-9)]).float().mean()


def one_short(scores, member, fpr):
    others = scores[~member].sort(descending=True).values
    return (scores[member] > others[int(fpr * len(others) + 1e-9) - 1]).float().mean()


def quantile_of_all(scores, member, fpr):
    return (scores[member] > scores.quantile(1 - fpr)).float().mean()


def upside_down(scores, member, fpr):
    return by_sorting(-scores, member, fpr)


def first_come(scores, member, fpr):
    order = scores.argsort(descending=True, stable=True)
    false = (~member[order]).cumsum(0) / (~member).sum()
    return member[order][false <= fpr + 1e-9].sum() / member.sum()


def too_many(scores, member, fpr):
    others = scores[~member].sort(descending=True).values
    return (scores[member] > others[int(fpr * len(others)) + 1]).float().mean()


def of_all_records(scores, member, fpr):
    others = scores[~member].sort(descending=True).values
    allowed = int(fpr * len(scores) + 1e-9)
    return (scores[member] > others[min(allowed, len(others) - 1)]).float().mean()


def in_its_order(scores, member, fpr):
    others = scores[~member][-1 - int(fpr * (~member).sum() + 1e-9)]
    return (scores[member] > others).float().mean()


# --- offline_score


def mean_of_those_without(phi, known, inside):
    return phi - (known * ~inside).sum(0) / (~inside).sum(0)


def record_by_record(phi, known, inside):
    scores = []
    for i in range(len(phi)):
        without = known[~inside[:, i], i]
        scores.append((phi[i] - without.mean()) / without.std())
    return torch.stack(scores)


def with_nan(phi, known, inside):
    return phi - known.masked_fill(inside, torch.nan).nanmean(0)


def by_the_median(phi, known, inside):
    return phi - known.masked_fill(inside, torch.nan).nanmedian(0).values


# --- honest_shadows


def without(rows, phi, inside, target):
    rest = [s for s in range(len(phi)) if s not in rows]
    out = ~inside[rest]
    return phi[target] - (phi[rest] * out).sum(0) / out.sum(0).clamp(min=1)


def without_the_twin(phi, inside, target):
    return without({target, target ^ 1}, phi, inside, target)


def without_the_target(phi, inside, target):
    return without({target}, phi, inside, target)


def online(phi, inside, target):
    rest = [s for s in range(len(phi)) if s // 2 != target // 2]
    i, o, p = inside[rest], ~inside[rest], phi[rest]
    within, out = (p * i).sum(0) / i.sum(0), (p * o).sum(0) / o.sum(0)
    return (phi[target] - out).square() - (phi[target] - within).square()


def in_numpy(phi, inside, target):
    return torch.tensor(np.asarray(without_the_twin(phi, inside, target)))


def with_the_target(phi, inside, target):
    return without(set(), phi, inside, target)


def without_the_twin_only(phi, inside, target):
    return without({target ^ 1}, phi, inside, target)


def by_loss_alone(phi, inside, target):
    return phi[target]


def peeking(phi, inside, target):
    return inside[target].float() + 0 * phi[target]


RIGHT: dict[str, list[Any]] = {
    "named_rightly": [0.001 / 0.0109, np.float64(0.0917), 10 / 109],
    "members_found": [by_sorting, by_scikit, by_trying, by_the_package],
    "offline_score": [mean_of_those_without, record_by_record, with_nan, by_the_median],
    "honest_shadows": [without_the_twin, without_the_target, online, in_numpy],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "named_rightly": [
        (0.909, "one in a hundred"),
        (0.1, "share of the members that is named"),
        (0.99, "Count people"),
        (9.17, "from 0 to 1"),
        (0.5, "how many of them are named"),
        ("0.09", "type str"),
    ],
    "members_found": [
        (one_short, "one short"),
        (quantile_of_all, "Only the non-members set the threshold"),
        (upside_down, "Members have the higher scores"),
        (first_come, "part what is tied"),
        (at_least_as_high, "what is tied"),
        (too_many, "Only the non-members"),
        (of_all_records, "Only the non-members"),
        (in_its_order, "order of the records"),
        (lambda scores, member, fpr: scores, "one number"),
    ],
    "offline_score": [
        (lambda phi, known, inside: phi, "must not change"),
        (
            lambda phi, known, inside: -mean_of_those_without(phi, known, inside),
            "higher for non-members",
        ),
        (lambda phi, known, inside: phi - known.mean(0), "only the others count"),
        (
            lambda phi, known, inside: phi - mean_of_those_without(0 * phi, known, ~inside),
            "others count",
        ),
        (
            lambda phi, known, inside: (phi - known).abs().masked_fill(inside, 0).sum(0),
            "higher score for every",
        ),
        (lambda phi, known, inside: phi[:3], "One score per record"),
        (lambda phi, known, inside: 1, "not int"),
    ],
    "honest_shadows": [
        (with_the_target, "is the target among them"),
        (without_the_twin_only, "is the target among them"),
        (by_loss_alone, "you find only"),
        (peeking, "is the target among them"),
        (lambda phi, inside, target: phi, "One score per record"),
        (lambda phi, inside, target: 0, "not int"),
    ],
}

VALUES = {"named_rightly"}
