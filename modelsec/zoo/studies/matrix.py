"""The attacks of the book against its defences: the matrix that opens the part on repair.

``python -m modelsec zoo make defence_matrix --store`` measures all of it anew and writes the
record. That takes minutes. With ``MODELSEC_COLUMNS="JPEG, IBP"`` in the environment only these
columns are measured, with ``MODELSEC_COLUMNS=new`` only those that have no record or whose networks
have changed since; the others stay as they are.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from modelsec.intervals import Proportion
from modelsec.models import drawing_from
from modelsec.training import progress_bar
from modelsec.zoo import manifest
from modelsec.zoo.results import load_result, recorded, study
from modelsec.zoo.studies.matrix_entries import ATTACKS, DEFENCES, Column, Defence, digits

__all__ = ["CLEAN", "WORST", "N", "column", "defence_matrix", "entry", "shares"]

N, CLEAN, WORST = 200, "no attack", "worst case in linf"


def column(name: str, n: int = N, seed: int = 0) -> dict[str, Any]:
    """Every attack on one defence.

    Args:
        name: one of :data:`DEFENCES`.
        n: how many test images, from the first on.
        seed: for whatever draws.

    Returns:
        "about"; "files", the zoo's models in it and their SHA-256; and "marks": an attack, or
        "no attack" -> a string with a mark for each image, see :meth:`Defence.marks`.
    """
    made = DEFENCES[name]
    defence = made.build()
    found = {row: entry(defence, row, n, seed) for row in (CLEAN, *ATTACKS)}
    return {"about": made.about, "files": _hashes(made), "marks": found}


def entry(defence: Defence, row: str, n: int = N, seed: int = 0) -> str:
    """One attack on one defence.

    Args:
        defence: built, such as by ``DEFENCES["none"].build()``.
        row: one of :data:`ATTACKS`, or "no attack".
        n: how many test images, from the first on.
        seed: for whatever draws.

    Returns:
        A mark for each image.
    """
    x, y = digits().x_test[:n], digits().y_test[:n]
    drawn, judged = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))
    if row != CLEAN:
        with drawing_from(drawn):  # a random defence draws while it is asked
            x = ATTACKS[row].run(defence, x, y, drawn)
    return defence.marks(x, y, judged)


def shares(result: dict[str, Any]) -> dict[str, dict[str, Proportion]]:
    """The matrix as shares: what each attack leaves of each defence.

    Args:
        result: of the study.

    Returns:
        A row -> {column: share that is right, or refused under attack}. Refusing a clean image is
        no success. The row "worst case in linf" counts an image if it stands against all attacks
        in that norm.
    """
    limits, columns = (result[part] for part in ("attacks", "defences"))
    # a record keeps names in alphabetical order; a reader wants them as they stand in the module
    rows = [row for row in dict.fromkeys((*ATTACKS, *limits)) if row in limits]
    table: dict[str, dict[str, Proportion]] = {row: {} for row in (CLEAN, *rows, WORST)}
    for name in (name for name in dict.fromkeys((*DEFENCES, *columns)) if name in columns):
        marks = columns[name]["marks"]
        n = len(marks[CLEAN])
        table[CLEAN][name] = Proportion(marks[CLEAN].count("."), n)
        for row in rows:
            table[row][name] = Proportion(n - marks[row].count("0"), n)
        alike = [marks[row] for row in rows if limits[row]["norm"] == "linf"]
        stand = ["0" not in image for image in zip(*alike, strict=True)]
        table[WORST][name] = Proportion(sum(stand), n)
    return table


@study(
    "defence_matrix",
    about="every attack on every defence: MNIST-5k, small ConvNets, linf 0.2, l2 2, turns",
    n=N,
    seeds=(0,),
)
def defence_matrix(seeds: tuple[int, ...]) -> dict[str, Any]:
    """All columns, or those that MODELSEC_COLUMNS names, and the others as they are recorded."""
    limits = {
        row: {"sees": made.sees, "norm": made.norm, "limit": made.limit}
        for row, made in ATTACKS.items()
    }
    kept = _kept(limits)
    wanted = [name for name in DEFENCES if name not in kept]
    bar = progress_bar(len(wanted), "columns of the matrix")
    for name in wanted:
        kept[name] = column(name, seed=seeds[0])
        bar.update()
    bar.close()
    return {"attacks": limits, "defences": {name: kept[name] for name in DEFENCES}}


def _kept(limits: dict[str, Any]) -> dict[str, Any]:
    """The recorded columns that stay, if the environment says which ones shall not."""
    named = os.environ.get("MODELSEC_COLUMNS")
    if not named:
        return {}
    again = [] if named == "new" else [name.strip() for name in named.split(",")]
    if unknown := set(again) - set(DEFENCES):
        raise ValueError(f"MODELSEC_COLUMNS names {sorted(unknown)}; there are {list(DEFENCES)}")
    if "defence_matrix" not in recorded():
        return {}
    old = load_result("defence_matrix")
    if old["attacks"] != limits:
        raise ValueError("the rows are others than those recorded: measure all columns")
    return {
        name: measured | {"about": DEFENCES[name].about}  # words are not measured
        for name, measured in old["defences"].items()
        if name in DEFENCES and name not in again and measured["files"] == _hashes(DEFENCES[name])
    }


def _hashes(made: Column) -> dict[str, str]:
    return {name: manifest()[name]["sha256"] for name in made.files}
