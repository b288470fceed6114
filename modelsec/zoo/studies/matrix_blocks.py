"""The other blocks of the book's matrix, drawn from the records of their chapters.

An entry means the same in every block: the share of the cases in which the attacker gets nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from modelsec.intervals import Proportion

__all__ = ["ASKED", "RIGHT", "UNTOUCHED", "backdoors", "secrets"]

UNTOUCHED = "no trigger: accuracy"
RIGHT = "accuracy"
ASKED = {
    "loss threshold": "loss threshold",
    "LiRA, all records": "all",
    "LiRA, wrong labels": "strays",
}
"""A row of the block on secrets -> its name in the record."""
Block = dict[str, dict[str, Proportion]]


def backdoors(result: dict[str, Any]) -> Block:
    """Trigger by repair.

    Args:
        result: of the study "backdoor_matrix".

    Returns:
        A row -> {repair: share}. For a trigger it is the share of marked images that are *not*
        answered with the attacker's class; the first row, "no trigger: accuracy", is about images
        without it. Means over the seeds (in the first row over the triggers, too). All networks see
        the same images, so the interval is that of one network: it speaks of other images, and how
        much another training would differ is told by the record.
    """
    cells, size = result["cells"], result["n"]
    rows: Block = {name: {} for name in (UNTOUCHED, *result["triggers"])}
    for repair in result["repairs"]:
        right = [share for row in cells.values() for share in row[repair]["accuracy"]]
        rows[UNTOUCHED][repair] = _mean(right, size["accuracy"])
        for name in result["triggers"]:
            failed = [1 - share for share in cells[name][repair]["success"]]
            rows[name][repair] = _mean(failed, size["success"])
    return rows


def secrets(result: dict[str, Any]) -> Block:
    """Attack on membership by the way of training, or of answering.

    Args:
        result: of the study "privacy_curve".

    Returns:
        A row -> {training: share}. For an attack it is the share of the members that it does *not*
        find at 1% false alarms, the mean over the networks of one training; who guesses blindly
        leaves 99% hidden. The first row is the accuracy on test images. The interval is that of
        one network, as in :func:`backdoors`.
    """
    rows = {name: result["rows"][name] for name in _order(result["rows"])}
    block: Block = {name: {} for name in (RIGHT, *ASKED)}
    for training, row in rows.items():
        networks = len(row["accuracy"])
        block[RIGHT][training] = _mean(row["accuracy"], 1000)
        for attack, key in ASKED.items():
            members, found = row[key]["members"], row[key]["found"]["0.01"]
            block[attack][training] = _mean([1 - found / members], members // networks)
    return block


def _order(names: Iterable[str]) -> list[str]:
    """A record is sorted by name; here the standard comes first, then cheap controls, then epsilons."""
    kinds = ("standard", "", "clipping", "epsilon")

    def place(name: str) -> tuple[int, float, str]:
        kind = next((k for k, word in enumerate(kinds) if word and name.startswith(word)), 1)
        epsilon = float(name.split()[1].strip(",")) if kind == 3 else 0.0
        return kind, -epsilon, name

    return sorted(names, key=place)


def _mean(shares: list[float], n: int) -> Proportion:
    """Shares of the same n, as one share of n."""
    return Proportion(round(sum(shares) / len(shares) * n), n)
