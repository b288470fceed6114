"""Graders of the chapter on medicine: right answers pass, wrong ones get the sentence that helps."""

import hashlib
import hmac
import json
import math
from typing import Any

import numpy as np
import torch


def message(record):
    return json.dumps(record, sort_keys=True).encode()


def with_json(record, key):
    return hmac.new(key, message(record), "sha256").hexdigest()


def with_lengths(record, key):
    made = hmac.new(key, digestmod="sha512")
    for pair in sorted(record.items()):
        for part in map(str, pair):
            made.update(len(part).to_bytes(4, "big") + part.encode())
    return made.digest()


def with_blake(record, key):
    return hashlib.blake2b(repr(sorted(record.items())).encode(), key=key[:64]).hexdigest()


def run_together(record, key):
    text = "".join(str(v) for _, v in sorted(record.items()))
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def values_alone(record, key):
    text = "|".join(str(v) for _, v in sorted(record.items()))
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def names_run_into_values(record, key):
    text = "".join(f"{k}{v}" for k, v in sorted(record.items()))
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def as_it_comes(record, key):
    return hmac.new(key, json.dumps(record).encode(), "sha256").hexdigest()


def rounded(record, key):
    return with_json({k: round(v) if isinstance(v, float) else v for k, v in record.items()}, key)


def without_person(record, key):
    return with_json({k: v for k, v in record.items() if k != "person"}, key)


def takes_out(record, key):
    record.pop("person")
    return with_json(record, key)


def lowest(w, b, x, error):
    return x @ w + b - error @ w.abs()


def lowest_by_corner(w, b, x, error):
    return ((x - error * w.sign()) * w).sum(1) + b


def lowest_by_loop(w, b, x, error):
    rows = []
    for row, off in zip(x.tolist(), error.tolist(), strict=True):
        rows.append(
            b
            + sum(
                min(k * (v - e), k * (v + e)) for k, v, e in zip(w.tolist(), row, off, strict=True)
            )
        )
    return torch.tensor(rows)


def in_place(w, b, x, error):
    x -= error * w.sign()
    return x @ w + b


def one_value_alone(w, b, x, error):
    return x @ w + b - (error * w.abs()).amax(1)


def threshold(confidence, right, most):
    best = math.inf
    for t in confidence.unique(sorted=True).flip(0):
        if (~right[confidence >= t]).double().mean() <= most:
            best = t.item()
    return best


def threshold_sorted(confidence, right, most):
    value, order = confidence.sort(descending=True)
    wrong = (~right[order]).double().cumsum(0) / torch.arange(1, len(value) + 1)
    last = torch.cat([value[1:] != value[:-1], torch.tensor([True])])
    fine = last & (wrong <= most)
    return value[fine][-1] if fine.any() else torch.tensor(math.inf)


def threshold_in_numpy(confidence, right, most):
    c, r = confidence.numpy(), right.numpy()
    fine = [t for t in np.unique(c) if (~r[c >= t]).mean() <= most]
    return np.float64(min(fine)) if fine else np.inf


def stops_at_the_first(confidence, right, most):
    best = math.inf
    for t in confidence.unique(sorted=True).flip(0):
        if (~right[confidence >= t]).double().mean() > most:
            break
        best = t.item()
    return best


def parts_ties(confidence, right, most):
    value, order = confidence.sort(descending=True, stable=True)
    wrong = (~right[order]).double().cumsum(0) / torch.arange(1, len(value) + 1)
    fine = (wrong <= most).nonzero()
    return value[fine[-1, 0]].item() if len(fine) else math.inf


RIGHT: dict[str, list[Any]] = {
    "error_of_the_sure": [0.1, np.float32(0.1), torch.tensor(0.1), 1 - 0.9],
    "record_seal": [with_json, with_lengths, with_blake],
    "lowest_score": [lowest, lowest_by_corner, lowest_by_loop],
    "referral_threshold": [threshold, threshold_sorted, threshold_in_numpy],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "error_of_the_sure": [
        (0.9, "share that is right"),
        (0, "1 in 100"),
        (0.05, "the border"),
        (10, "between 0 and 1"),
        (0.3, "exactly 0.9"),
        ("0.1", "type str"),
    ],
    "record_seal": [
        (names_run_into_values, "run together"),
        (run_together, "a column gets another name"),
        (values_alone, "a column gets another name"),
        (as_it_comes, "Sort the names"),
        (rounded, "third decimal"),
        (without_person, "another person's place"),
        (takes_out, "record was changed"),
        (lambda r, k: hashlib.sha256(message(r)).hexdigest(), "does not depend on the key"),
        (lambda r, k: hashlib.sha256(k + message(r)).hexdigest(), "can be extended"),
        (lambda r, k: with_json(r, k)[:8], "can be guessed"),
        (lambda r, k: k + message(r), "shows the record"),
        (lambda r, k: hash(message(r) + k), "not int"),
    ],
    "lowest_score": [
        (lambda w, b, x, e: x @ w + b + e @ w.abs(), "highest score"),
        (lambda w, b, x, e: x @ w + b - e @ w, "has to go up"),
        (lambda w, b, x, e: x @ w - e @ w.abs(), "bias is missing"),
        (in_place, "in place"),
        (one_value_alone, "off by up to"),
        (lambda w, b, x, e: x @ w + b, "off by up to"),
        (lambda w, b, x, e: lowest(w, b, x, e)[:, None], "one score for each row"),
        (lambda w, b, x, e: lowest(w, b, x, e).numpy(), "not ndarray"),
    ],
    "referral_threshold": [
        (stops_at_the_first, "could be decided"),
        (parts_ties, "come together"),
        (lambda c, r, m: 1 - m, "Your threshold"),
        (lambda c, r, m: 2.0, "refers everybody"),
        (lambda c, r, m: 0.0, "is wrong"),
        (lambda c, r, m: min(threshold(c, r, m), 0.95), "is wrong"),
        (lambda c, r, m: "0.7", "type str"),
    ],
}  # fmt: skip

VALUES = {"error_of_the_sure"}
