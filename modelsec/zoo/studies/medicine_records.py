"""The chapter on medicine: what a record must fulfil by itself, and a seal for what it can't."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from modelsec.intervals import Proportion
from modelsec.zoo.studies.medicine_models import COLUMNS

__all__ = ["POSSIBLE", "changed_unseen", "contradictions", "impossible", "seal", "sealed_row"]

POSSIBLE = {
    "age": (0, 120), "sex": (1, 2), "bmi": (10, 80), "bp": (40, 200), "tc": (40, 600),
    "hdl": (5, 150), "tg": (10, 1000), "glu": (30, 600),
}  # fmt: skip
"""Ranges that a living person's values hardly leave: ours, wide on purpose."""


def impossible(x: Tensor) -> Tensor:
    """(N, 8) bool: which values lie outside :data:`POSSIBLE`, or are missing.

    Args:
        x: (N, 8) records.
    """
    low, high = torch.tensor(list(POSSIBLE.values()), dtype=x.dtype, device=x.device).T
    possible: Tensor = (x >= low) & (x <= high)
    return ~possible  # written so that NaN is impossible too


def contradictions(ten: Tensor) -> Tensor:
    """What the published table's columns say about each other: a checksum that nobody planned.

    Args:
        ten: (N, 10), as in the table; the ratio of cholesterols may be rounded to a whole number.

    Returns:
        (N, 3) bool, true where a rule is broken: LDL is total minus HDL cholesterol minus a fifth
        of the triglycerides (to 0.5 mg/dL); the ratio is theirs (to 0.7, since it is rounded
        loosely); the triglycerides are whole (to 0.05).
    """
    _, _, _, _, tc, ldl, hdl, ratio, ltg, _ = ten.unbind(1)
    tg = ltg.exp()
    return torch.stack(
        [
            (ldl - (tc - hdl - tg / 5)).abs() > 0.5,
            (ratio - tc / hdl).abs() > 0.7,
            (tg - tg.round()).abs() > 0.05,
        ],
        1,
    )


def seal(record: Mapping[str, float | str], key: bytes) -> str:
    """The HMAC-SHA-256 of a record, as 64 hexadecimal digits.

    Args:
        record: name -> value. It should hold whose it is and when it was measured, or a record
            could be put in another's place.
        key: secret bytes; whoever has them can seal.

    Returns:
        The seal. The order of the names does not matter.

    References:
        RFC 2104.
    """
    message = json.dumps(dict(record), sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def sealed_row(row: Tensor, person: int, key: bytes) -> str:
    """The seal of a row of the table, with the number of the person inside.

    Args:
        row: (8,) a record.
        person: whose it is.
        key: secret bytes.

    Returns:
        The seal.
    """
    values = dict(zip(COLUMNS, row.tolist(), strict=True))
    return seal({"person": str(person), **values}, key)


def changed_unseen(x: Tensor, *, sealed: bool, key: bytes = b"of the laboratory") -> Proportion:
    """Change one value of each record by one unit and count whom the checks at the door let pass.

    Args:
        x: (N, 8) records. The value is the pressure, a cholesterol, the triglycerides or the
            sugar, in turn.
        sealed: each record was sealed before.
        key: of the seals.

    Returns:
        The share of changed records that pass.
    """
    changed = x.clone()
    at = torch.arange(len(x), device=x.device)
    changed[at, 3 + at % 5] += 1
    passes = ~impossible(changed).any(1)
    if sealed:
        for i, (before, after) in enumerate(zip(x, changed, strict=True)):
            same = hmac.compare_digest(sealed_row(before, i, key), sealed_row(after, i, key))
            passes[i] &= same
    return Proportion(int(passes.sum()), len(x))
