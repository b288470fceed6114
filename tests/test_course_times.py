"""The minutes in instructors.md come from the notebooks."""

from pathlib import Path

import course_times
import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_says_what_the_notebooks_say() -> None:
    """If it fails: `python tools/course_times.py` writes the page anew."""
    text = course_times.PAGE.read_text(encoding="utf-8")
    assert course_times.filled(text, {}) == text


def test_every_written_chapter_has_a_row_with_its_seconds() -> None:
    page = course_times.PAGE.read_text(encoding="utf-8")
    table = page.split("| Chapter | Read | Exercises | Run |")[1].split("\n\n")[0]
    for path in sorted((ROOT / "chapters").rglob("*.ipynb")):
        name = path.relative_to(ROOT).as_posix()
        if "**Minutes**" in path.read_text(encoding="utf-8") and path.stem != "capstone":
            (row,) = (line for line in table.splitlines() if f"({name})" in line)
            assert row.rstrip("| ").endswith(" s"), row


def test_only_the_columns_of_minutes_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"chapters/a": (10, 20), "chapters/b/c": (1, 2)}
    monkeypatch.setattr(course_times, "minutes", known.__getitem__)
    text = "\n".join(
        [
            "| Week | Chapters | Read | Exercises | Run |",
            "| --- | --- | --- | --- | --- |",
            "| 1 | [A](chapters/a.ipynb), [C](chapters/b/c) | ? | | 5 s |",
            "| 2 | nothing | ? | | |",
            "",
            "| Chapter | Note |",
            "| --- | --- |",
            "| [A](chapters/a.ipynb) | stays |",
        ]
    )
    lines = course_times.filled(text, {"chapters/a": 30.4}).split("\n")
    assert lines[2] == "| 1 | [A](chapters/a.ipynb), [C](chapters/b/c) | 11 | 22 | 5 s |"
    assert lines[3] == "| 2 | nothing | ? | | |"
    assert lines[7] == "| [A](chapters/a.ipynb) | stays |"
    both = course_times.filled(text, {"chapters/a": 30.4, "chapters/b/c": 1.2}).split("\n")[2]
    assert both.endswith("| 32 s |")


def test_seconds_are_added_up_by_notebook(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="chapters.a.ipynb" name="Cell 0" time="1.5"/>'
        '<testcase classname="chapters.a.ipynb" name="Cell 1" time="2"/>'
        '<testcase classname="chapters.b.c.ipynb" name="Cell 0" time="4"/></testsuite></testsuites>'
    )
    assert course_times.seconds(report) == {"chapters/a": 3.5, "chapters/b/c": 4.0}


def test_a_chapter_without_minutes_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters/a.ipynb").write_text('{"cells": []}')
    monkeypatch.setattr(course_times, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"chapters/a does not say how many minutes"):
        course_times.minutes("chapters/a")
