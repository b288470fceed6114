"""The table of the book that shows how the tests of agreement came out: it is made by these tests."""

import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

FOLDER = "MODELSEC_AGREEMENT"  # set by `python -m benchmarks.agreement`, which makes the page


class Agreement(NamedTuple):
    """One line of the table.

    Attributes:
        library: the peer's distribution.
        attack: ours, by its function's name.
        norm: "linf", "l2" or "l1"; "" for what no norm limits.
        compared: what is, in words: "iterates of 6 steps", "accuracy left at eps 0.1".
        n: images.
        result: what was seen, in words.
    """

    library: str
    attack: str
    norm: str
    compared: str
    n: int
    result: str


def record(name: str, rows: Iterable[Agreement]) -> None:
    """Store the rows of one test, where the page's maker asked for them."""
    folder = os.environ.get(FOLDER)
    if folder:
        table = [row._asdict() | {"version": version(row.library)} for row in rows]
        Path(folder, f"{name}.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
