"""The chapter's two submissions, starter and reference: the very cells, with shorter trainings, through the scorer."""

from __future__ import annotations

import ast
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch

from modelsec import cleaning, repair, training
from modelsec.check import capstone
from modelsec.zoo.studies import capstone_case

CHAPTER = Path(__file__).parents[1] / "chapters" / "capstone.ipynb"
CASE, TRUTH = capstone.case(), capstone_case.made(0)
EPOCHS = 2  # at most, where the chapter takes more


KEPT = {"turned", "fresh", "x_fresh", "y_fresh"}  # small values that the functions refer to


def wanted(node: ast.stmt) -> bool:
    """Imports, functions, and assignments to the names that are kept."""
    if isinstance(node, ast.Assign):
        names = {n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)}
        return bool(names & KEPT)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)


@pytest.fixture(scope="module")
def cells() -> dict[str, Any]:
    """The names that the chapter's imports and definitions make; nothing is trained or scanned."""
    names: dict[str, Any] = {"case": CASE, "suspect": TRUTH.target, "leaked": TRUTH.leaked}
    for cell in nbformat.read(CHAPTER, as_version=4).cells:
        if cell.cell_type == "code" and "%pip" not in cell.source:
            body = [node for node in ast.parse(cell.source).body if wanted(node)]
            exec(compile(ast.Module(body, []), str(CHAPTER), "exec"), names)
    return names


def third(case: capstone.Case) -> capstone.Case:
    """The case with every third of its training samples, for a shorter training."""
    return replace(case, x_train=case.x_train[::3], y_train=case.y_train[::3])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training ends after a few epochs."""
    full, network = training.fit, cleaning.network

    @functools.wraps(full)
    def fit(*args: Any, epochs: int = 10, **options: Any) -> Any:
        return full(*args, epochs=min(epochs, EPOCHS), progress=False, **options)

    def judge(*args: Any, epochs: int, **options: Any) -> Any:
        return network(*args, epochs=2, progress=False, **options)

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(cleaning, "network", judge)


def test_the_starters_run_and_get_a_mediocre_mark(cells: dict[str, Any], short: None) -> None:
    train, test = cells["my_clean"](CASE)
    model = cells["my_repair"](CASE, train)
    sheet = capstone.sheet(
        capstone.clean(CASE, train, test),
        capstone.augment(CASE, cells["my_augment"], epochs=3),
        capstone.validate(CASE, cells["my_report"](CASE)),
        capstone.attack(CASE, cells["my_attack"], n=50),
        capstone.repair(CASE, model, n=30),
        capstone.match(CASE, cells["my_attack"], model, n=5),
    )
    assert 20 <= sheet.points <= 50, sheet
    assert all(mark.lines for mark in sheet.marks), sheet  # none was refused
    assert all(mark.points < 75 for mark in sheet.marks), sheet


def test_the_reference_gets_a_good_one(cells: dict[str, Any], short: None) -> None:
    drawn = torch.Generator().manual_seed(0)
    cells["scan"] = repair.neural_cleanse(
        CASE.model, CASE.x_trusted, steps=100, generator=drawn, progress=False
    )
    assert cells["scan"].index.argmax() == TRUTH.target
    removed, leaked = cells["reference_clean"](CASE)
    model = cells["reference_repair"](third(CASE), removed[::3])
    sheet = capstone.sheet(
        capstone.clean(CASE, removed, leaked),
        capstone.augment(CASE, cells["reference_augment"], epochs=4),
        capstone.validate(CASE, cells["reference_report"](CASE)),
        capstone.attack(CASE, cells["reference_attack"], n=50),
        capstone.repair(CASE, model, n=30),
        capstone.match(CASE, cells["reference_fighter"], model, n=5),
    )
    assert sheet.points >= 65, sheet
    assert all(mark.points >= 40 for mark in sheet.marks), sheet
