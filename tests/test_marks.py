"""Marks: what a teacher reads in notebooks that come back."""

import csv
import json
from pathlib import Path

import pytest

from modelsec import check
from modelsec.__main__ import main
from modelsec.check.marks import marks

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [
    path
    for path in sorted((ROOT / "chapters").rglob("*.ipynb"))
    if "check.quiz(" in path.read_text(encoding="utf-8")
]


def cell(source: str, feedback: object = None, *tags: str) -> dict[str, object]:
    shown = {"output_type": "execute_result", "data": {"text/plain": [str(feedback)]}}
    return {
        "cell_type": "code",
        "source": source.splitlines(keepends=True),
        "metadata": {"tags": list(tags)},
        "outputs": [shown] if feedback is not None else [],
    }


def write(path: Path, *cells: dict[str, object]) -> Path:
    path.write_text(json.dumps({"cells": list(cells), "nbformat": 4}), encoding="utf-8")
    return path


RIGHT, WRONG, STUB = (check.images_to_halve(answer) for answer in (16, 4, ...))


@pytest.mark.parametrize(
    ("feedback", "status"),
    [(RIGHT, "passed"), (WRONG, "not yet"), (STUB, "todo"), (None, "not run"), ("16", "not run")],
)
def test_what_the_grader_said_is_read(tmp_path: Path, feedback: object, status: str) -> None:
    path = write(tmp_path / "a.ipynb", cell("x = 16\ncheck.images_to_halve(x)", feedback))
    assert marks(path) == {"images_to_halve": status}


def test_the_best_of_several_calls_counts_and_the_books_solution_does_not(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.ipynb",
        {"cell_type": "markdown", "source": "check.risk(mine)"},
        cell("check.swap(faulty)", WRONG),
        cell("check.swap(mine)", RIGHT),
        cell("check.swap(mine, again)", STUB),
        cell("check.risk(mine)", STUB),
        cell("# @title Solution\ncheck.risk(4)", RIGHT, "hide-cell", "solution"),
        cell("check.quiz('loss')", RIGHT),
    )
    assert marks(path) == {"swap": "passed", "risk": "todo"}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_has_exercises_that_were_run(path: Path) -> None:
    found = marks(path)
    assert len(found) >= 3
    assert "passed" not in found.values()  # stubs are left to the reader
    assert "not run" not in found.values()


def test_the_command_prints_a_line_each_and_writes_a_table(tmp_path: Path, capsys) -> None:
    one = write(tmp_path / "one.ipynb", cell("check.a(x)", RIGHT), cell("check.b(x)", WRONG))
    two = write(tmp_path / "other.ipynb", cell("check.a(x)", RIGHT))
    assert main(["marks", str(one), str(two), "--csv", str(tmp_path / "all.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[1:] == ["1", "of", "2", "passed", "b:", "not", "yet"]
    assert lines[1].split()[1:] == ["1", "of", "1", "passed"]
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["notebook", "exercise", "status"],
        [str(one), "a", "passed"],
        [str(one), "b", "not yet"],
        [str(two), "a", "passed"],
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [("no json", "no notebook"), ("[]", "no notebook"), ('{"cells": []}', "calls no grader")],
)
def test_bad_files_are_named(tmp_path: Path, capsys, text: str, says: str) -> None:
    path = tmp_path / "bad.ipynb"
    path.write_text(text, encoding="utf-8")
    good = write(tmp_path / "good.ipynb", cell("check.a(x)", RIGHT))
    assert main(["marks", str(good), str(path)]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert str(path) in shown.err
    assert says in shown.err
    assert main(["marks", str(tmp_path / "none.ipynb")]) == 2
