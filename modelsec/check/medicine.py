"""Graders for the chapter on medicine."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require
from modelsec.check.loss import number

__all__ = ["error_of_the_sure", "lowest_score", "record_seal", "referral_threshold"]


@grader("If the model is calibrated. That is what calibration is for.")
def error_of_the_sure(answer: Any) -> None:
    """Grade a number: how many of the decided cases can be wrong at most, if all have 0.9 or more."""
    answer = number(answer)
    for wrong, why in (
        (0.9, "That is the share that is right, at least. How many are wrong, at most?"),
        (0.0, "Even cases with a probability of 0.99 are wrong now and then: 1 in 100."),
        (0.05, "That would be the middle between 0.9 and 1. At most means: all of them at the border."),
        (10.0, "As a share between 0 and 1, please."),
    ):  # fmt: skip
        require(not abs(answer - wrong) <= 1e-3, why)
    require(
        abs(answer - 0.1) <= 1e-3,
        f"{answer:.4g} is not it. Of cases with a probability of exactly 0.9, how many are wrong?",
    )


@grader("Exact for a linear model: no search, and no attack can do better.")
def lowest_score(solution: Any) -> None:
    """Grade ``f(weights (D,), bias, x (N, D), error (N, D)) -> scores (N,)``: the worst readings."""
    generator = torch.Generator().manual_seed(7)
    for columns in (4, 1, 6):
        w = torch.randn(columns, generator=generator)
        x = torch.randn(5, columns, generator=generator) * 3
        error = torch.rand(5, columns, generator=generator)
        error[:, 0] *= 0.0 if columns > 1 else 1.0  # the first column is seen at the door
        kept = x.clone()
        got = solution(w.clone(), 0.3, x, error.clone())
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(got.shape == (5,), f"Return one score for each row, (5,), not {tuple(got.shape)}.")
        require(torch.equal(x, kept), "The records were changed in place: leave them alone.")
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=columns)))
        scores = (x[:, None, :] + corners * error[:, None, :]) @ w + 0.3
        low, high, plain = scores.amin(1), scores.amax(1), x @ w + 0.3
        require(
            columns == 1 or not torch.allclose(got, high, atol=1e-4),
            "That is the highest score; the attacker wants the lowest.",
        )
        require(
            columns == 1 or not torch.allclose(got, plain - error @ w, atol=1e-4),
            "Every value went down. Where a weight is negative the value has to go up.",
        )
        require(
            not torch.allclose(got, low - 0.3, atol=1e-4), "The bias is missing: it does not move."
        )
        gap = float((got - low).abs().max())
        require(
            gap <= 1e-4,
            f"We tried all {len(corners)} corners: your scores are off by up to {gap:.3f}. Each "
            "value moves by its own error, to the side that its weight dislikes.",
        )


@grader("Names, values and whose record it is are bound together, and only the key can do it.")
def record_seal(solution: Any) -> None:
    """Grade ``f(record: dict, key: bytes) -> str or bytes``: a seal that is hard to cheat."""
    record = {"person": "17", "tc": 190.0, "hdl": 50.0, "glu": 91.0}
    key = b"a secret of the laboratory"
    before = dict(record)
    seal = solution(record, key)
    require(isinstance(seal, str | bytes), f"Return a str or bytes, not {type(seal).__name__}.")
    require(record == before, "The record was changed; sealing must leave it as it is.")
    require(solution(dict(record), key) == seal, "The same record got two different seals.")
    other_way = dict(reversed(record.items()))
    require(
        solution(other_way, key) == seal,
        "The same values in another order get another seal. Sort the names first.",
    )
    for what, changed in _changes(record):
        require(
            solution(changed, key) != seal, f"The seal stays the same when {what}. It must change."
        )
    one, two = {"a": 1, "b": 2}, {"a": "1b2"}
    require(
        solution(one, key) != solution(two, key),
        f"{one} and {two} get the same seal: run together, both read alike. Keep names and values "
        "apart, as JSON does.",
    )
    require(
        solution(record, b"another key") != seal,
        "The seal does not depend on the key, so everybody can make it.",
    )
    require(
        seal not in _naive(record, key),
        "A plain hash of key and message can be extended by somebody without the key. Use hmac.",
    )
    least = 32 if isinstance(seal, str) else 16
    require(
        len(seal) >= least and len(solution(one, key)) == len(seal),
        f"A seal of {len(seal)} signs can be guessed, or shows the record: use a whole digest.",
    )


def _changes(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    swapped = record | {"tc": record["hdl"], "hdl": record["tc"]}
    renamed = {("tcx" if name == "tc" else name): value for name, value in record.items()}
    return [
        ("a value changes by 1", record | {"tc": record["tc"] + 1}),
        ("a value changes in its third decimal", record | {"glu": record["glu"] + 0.001}),
        ("two values are swapped", swapped),
        ("a column gets another name", renamed),
        ("it is put in another person's place", record | {"person": "18"}),
        ("a value is left out", {name: v for name, v in record.items() if name != "glu"}),
    ]


def _naive(record: dict[str, Any], key: bytes) -> set[str | bytes]:
    """Hashes of key and message without HMAC, for a few ways of writing the message."""
    pairs = sorted(record.items())
    messages = [
        json.dumps(record, sort_keys=True),
        json.dumps(record, sort_keys=True, separators=(",", ":")),
        json.dumps(pairs),
        str(pairs),
        repr(dict(pairs)),
    ]
    made: set[str | bytes] = set()
    for text in messages:
        for whole in (key + text.encode(), text.encode() + key):
            for name in ("sha256", "sha512", "sha1", "md5"):
                found = hashlib.new(name, whole, usedforsecurity=False)
                made |= {found.hexdigest(), found.digest()}
    return made


@grader(
    "Choose it on data that neither trained nor will test the model; then say how many it refers."
)
def referral_threshold(solution: Any) -> None:
    """Grade ``f(confidence (N,), right (N,), most) -> threshold``: refers as few as it can.

    Cases at or above the threshold are decided; at most a share ``most`` of them may be wrong. If
    no threshold does, the answer is infinity.
    """
    generator = torch.Generator().manual_seed(11)
    for n, most in ((12, 0.2), (40, 0.1), (40, 0.3), (200, 0.15), (30, 0.0)):
        confidence = 0.5 + 0.05 * torch.randint(0, 11, (n,), generator=generator)  # with ties
        right = torch.rand(n, generator=generator) < 0.2 + 0.8 * confidence**2
        _is_threshold(solution, confidence, right, most)
    _is_threshold(solution, torch.tensor([0.9, 0.8]), torch.tensor([False, True]), 0.1)
    sure = torch.tensor(
        [0.95] + [0.9] * 9 + [0.6]
    )  # the surest case is wrong, the next nine are right
    _is_threshold(solution, sure, (sure > 0.6) & (sure < 0.95), 0.1)
    _is_threshold(solution, torch.tensor([0.6, 0.8]), torch.tensor([True, True]), 0.0)


def _is_threshold(solution: Any, confidence: Tensor, right: Tensor, most: float) -> None:
    got = number(solution(confidence.clone(), right.clone(), most))
    best, kept_best = math.inf, 0
    for t in confidence.unique().tolist():
        kept = confidence >= t
        if float((~right[kept]).double().mean()) <= most and int(kept.sum()) > kept_best:
            best, kept_best = t, int(kept.sum())
    kept = confidence.double() >= got - 1e-6
    decided = int(kept.sum())
    require(
        decided > 0 or not kept_best,
        f"Your threshold of {got:.3g} refers everybody; {kept_best} of {len(right)} could be decided.",
    )
    if decided:
        wrong = float((~right[kept]).double().mean())
        require(
            wrong <= most + 1e-9,
            f"At your threshold of {got:.3g} a share {wrong:.3f} of the decided is wrong; {most:g} is "
            "the most. Cases of equal confidence come together.",
        )
    require(
        decided == kept_best,
        f"Your threshold of {got:.3g} decides {decided} of {len(right)}; {best:.3g} would decide "
        f"{kept_best} within the same limit. The error need not fall steadily: look at every threshold.",
    )
    require(
        best < math.inf or got == math.inf, "No threshold is good enough here: answer math.inf."
    )
