"""Graders of the chapter on the background: right answers pass, wrong ones get the sentence that helps."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from graders import is_todo, passes

from modelsec import attacks
from modelsec.attacks.norms import NORMS
from modelsec.check.background import _linear
from modelsec.losses import margin
from modelsec.threat import ThreatModel

# --- violations

WORDS = {
    "A": ("integrity", "deployment"),
    "B": ("availability", "training"),
    "C": ("privacy", "deployment"),
    "D": ("integrity", "training"),
    "E": ("privacy", "deployment"),
    "F": ("availability", "deployment"),
}


def but(**cases: Any) -> dict[str, Any]:
    return WORDS | cases


# --- threat_card

CARD = ThreatModel("evasion", "labels", cost="20 tries, then the card is blocked")

# --- keeps_to


def by_hand(x, x_adv, eps, norm):
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    box = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    return (size <= eps + 1e-6) & box


def with_norms(x, x_adv, eps, norm):
    flat = x_adv.flatten(1)
    return (NORMS[norm].size(x_adv - x) <= eps * 1.0001) & (flat.amin(1) >= 0) & (flat.amax(1) <= 1)


def one_by_one(x, x_adv, eps, norm):
    order = {"linf": math.inf, "l2": 2}[norm]
    return torch.tensor(
        [
            bool(torch.linalg.vector_norm(b - a, order) <= eps + 1e-5)
            and bool(torch.equal(b, b.clamp(0, 1)))
            for a, b in zip(x, x_adv, strict=True)
        ]
    )


def keeping(**changes: Any) -> Any:
    """The right function with one thing wrong."""

    def check(x, x_adv, eps, norm):
        delta = (x_adv - x).flatten(1)
        if changes.get("signed"):
            size = delta.amax(1) if norm == "linf" else delta.norm(dim=1)
        elif changes.get("always_linf"):
            size = delta.abs().amax(1)
        elif changes.get("mean_square"):
            size = delta.abs().amax(1) if norm == "linf" else delta.pow(2).mean(1).sqrt()
        elif changes.get("whole_batch"):
            size = delta.abs().max().expand(len(x)) if norm == "linf" else delta.norm(dim=1)
        else:
            size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        inside = size < eps if changes.get("strict") else size <= eps + 1e-6
        if changes.get("nan_passes"):
            inside = ~(size > eps + 1e-6)
        if changes.get("no_box"):
            return inside
        out = (x_adv < 0) | (x_adv > 1)
        return inside & ~out.flatten(1).any(1)

    return check


# --- smallest_eps


def from_above(model, x, y, grid):
    smallest = torch.full((len(x),), math.inf)
    for eps in reversed(grid):
        adv = attacks.pgd(model, x, y, eps=eps)
        smallest[model(adv).argmax(1) != y] = eps
    smallest[model(x).argmax(1) != y] = 0
    return smallest


def from_below(model, x, y, grid):
    found = [math.inf] * len(y)
    for i in range(len(y)):
        for eps in (0, *grid):
            adv = attacks.fgsm(model, x[i : i + 1], y[i : i + 1], eps=eps) if eps else x[i : i + 1]
            if model(adv).argmax() != y[i]:
                found[i] = eps
                break
    return torch.tensor(found)


def by_margin(model, x, y, grid):
    fooled = torch.stack(
        [margin(model(attacks.fgsm(model, x, y, eps=eps)), y) > 0 for eps in (0.0, *grid)]
    )
    values = torch.tensor([0.0, *grid, math.inf], dtype=torch.float64)
    first = torch.where(fooled.any(0), fooled.int().argmax(0), len(values) - 1)
    return values[first]


def changed(change: Any) -> Any:
    return lambda model, x, y, grid: change(from_above(model, x, y, grid), grid)


def last_that_survives(smallest, grid):
    below = dict(zip((*grid, math.inf), (0.0, *grid), strict=True)) | {0.0: 0.0}
    keys = torch.tensor(list(below))
    return torch.tensor(
        [below[list(below)[(keys - s).abs().nan_to_num(0).argmin()]] for s in smallest]
    )


RIGHT: dict[str, list[Any]] = {
    "violations": [
        WORDS,
        {case: list(words) for case, words in WORDS.items()},
        {case: (one.upper(), f" {two} ") for case, (one, two) in WORDS.items()},
    ],
    "threat_card": [
        CARD,
        replace(CARD, goal="targeted evasion", source="https://example.org"),
        replace(CARD, cost="at most 20 payments"),
    ],
    "keeps_to": [by_hand, with_norms, one_by_one],
    "smallest_eps": [from_above, from_below, by_margin],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "violations": [
        (but(A=("availability", "deployment")), "Case A is not a matter of availability"),
        (but(B=("integrity", "training")), "Case B is not a matter of integrity"),
        (but(B=("availability", "deployment")), "Case B does not happen at deployment"),
        (but(D=("integrity", "deployment")), "Case D does not happen at deployment"),
        (but(E=("integrity", "deployment")), "NIST files extraction"),
        (but(F=("integrity", "deployment")), "the others don't get theirs"),
        (but(C=("confidentiality", "deployment")), "NIST's three words"),
        (but(C=("privacy", "testing")), "training or deployment"),
        (but(C="privacy"), "needs two words"),
        ({case: WORDS[case] for case in "ABCDE"}, "Case F is missing"),
        ("integrity", "dictionary"),
    ],
    "threat_card": [
        (replace(CARD, goal="poisoning"), "that would be poisoning"),
        (replace(CARD, goal="extraction"), "not extraction"),
        (replace(CARD, knowledge="scores"), "less than scores"),
        (replace(CARD, knowledge="white-box"), "What comes back"),
        (replace(CARD, stage="training"), "the stage is deployment"),
        (replace(CARD, norms=("linf",)), "leave norms empty"),
        (replace(CARD, cost=""), "20 tries"),
        ({"goal": "evasion"}, "Give a ThreatModel"),
    ],
    "keeps_to": [
        (keeping(signed=True), "not at its sign"),
        (keeping(no_box=True), "that is no image"),
        (keeping(strict=True), "exactly eps"),
        (keeping(always_linf=True), "0.51"),
        (keeping(mean_square=True), "0.51"),
        (keeping(whole_batch=True), "each sample on its own"),
        (keeping(nan_passes=True), "NaN keeps to nothing"),
        (lambda x, a, eps, norm: bool(by_hand(x, a, eps, norm).all()), "not bool"),
        (lambda x, a, eps, norm: by_hand(x, a, eps, norm).all(), "one answer per sample"),
        (lambda x, a, eps, norm: by_hand(x, a, eps, norm).float(), "True or False"),
    ],
    "smallest_eps": [
        (changed(lambda s, grid: s.nan_to_num(0, grid[-1], 0)), "is infinity"),
        (changed(lambda s, grid: torch.where(s == 0, grid[0], s)), "without any attack"),
        (changed(last_that_survives), "is infinity"),
        (changed(lambda s, grid: torch.where((s > 0) & (s < 1), s * 1.1, s)), "not its index"),
        (changed(lambda s, grid: torch.where((s > 0) & (s < 1), grid[-1], s)), "flips from"),
        (changed(lambda s, grid: s.numpy()), "not ndarray"),
        (changed(lambda s, grid: s[s < 1].mean()), "return (80,)"),
        (changed(lambda s, grid: s * torch.nan), "NaN"),
    ],
}


VALUES = {"violations", "threat_card"}  # exercises whose answer is no function


@pytest.mark.parametrize(
    "stub", [dict.fromkeys("ABCDEF", ...), but(C=...), but(C=("privacy", ...))]
)
def test_a_table_with_gaps_is_not_done_yet(stub: dict[str, Any]) -> None:
    is_todo("violations", stub)


@pytest.mark.parametrize(("seed", "grid"), [(6, (0.02, 0.05, 0.1, 0.2)), (7, (0.03, 0.08, 0.15))])
def test_the_examiner_s_radii_are_exact(seed: int, grid: tuple[float, ...]) -> None:
    """The grader's own truth, against the attack that is exact on a linear model."""
    model, x, y, radius = _linear(seed, grid)
    assert x.min() >= 0
    assert x.max() <= 1
    for slack, flipped in ((0.998, False), (1.002, True)):
        right = radius > 0
        eps = radius[right] * slack
        adv = attacks.fgsm(model, x[right], y[right], eps=eps)
        assert ((model(adv).argmax(1) != y[right]) == flipped).all()
    assert ((model(x).argmax(1) != y) == (radius < 0)).all()
    inside = [
        ((radius > a) & (radius < b)).sum() for a, b in zip((0, *grid), (*grid, 1), strict=True)
    ]
    assert min(inside) >= 3  # every answer occurs
    assert (radius < 0).sum() >= 3


def test_a_learner_s_attack_with_few_steps_is_accepted() -> None:
    few = partial(attacks.pgd, steps=5, random_start=False)

    def solution(model, x, y, grid):
        smallest = torch.where(model(x).argmax(1) != y, 0.0, math.inf)
        for eps in grid:
            fooled = model(few(model, x, y, eps=eps)).argmax(1) != y
            smallest = torch.where(fooled & (smallest == math.inf), eps, smallest)
        return smallest

    passes("smallest_eps", solution)
