"""The rubric, and all marks of a submission on one sheet."""

from __future__ import annotations

import html
from dataclasses import dataclass

from modelsec.check.capstone.contest import ATTACK, MATCH, REPAIR
from modelsec.check.capstone.data_steps import AUGMENT, CLEAN, VALIDATE
from modelsec.check.capstone.marks import Criterion, Mark
from modelsec.tables import Table

__all__ = ["WEIGHTS", "Sheet", "rubric", "sheet"]

RUBRIC: dict[str, tuple[Criterion, ...]] = {
    "Clean": CLEAN,
    "Augment": AUGMENT,
    "Validate": VALIDATE,
    "Attack": ATTACK,
    "Repair": REPAIR,
    "Match": MATCH,
}
WEIGHTS = {"Clean": 20, "Augment": 10, "Validate": 15, "Attack": 15, "Repair": 25, "Match": 15}
"""How much each step counts, of 100."""
GRADES = ((85, "excellent"), (70, "good"), (50, "pass"), (25, "a start"), (0, "not yet"))


@dataclass(frozen=True, repr=False)
class Sheet:
    """All marks of a submission.

    Attributes:
        marks: at most one for each step; a step without one counts 0.
    """

    marks: tuple[Mark, ...]

    @property
    def points(self) -> float:
        """0 to 100: the steps' points by :data:`WEIGHTS`."""
        return sum(WEIGHTS[mark.step] * mark.points for mark in self.marks) / 100

    @property
    def grade(self) -> str:
        """In a word."""
        return next(word for least, word in GRADES if self.points >= least)

    @property
    def table(self) -> Table:
        """A row for each step."""
        by_step = {mark.step: mark for mark in self.marks}
        rows = Table()
        for step, weight in WEIGHTS.items():
            mark = by_step.get(step)
            where = mark.next if mark is not None else None
            said = "nothing handed in" if mark is None else "" if mark.lines else mark.note
            if where is not None:
                lost = where.criterion.of - where.points
                said = f"{where.criterion.name}: {lost:.0f} points. {where.criterion.hint}"
            points = mark.points if mark is not None else 0
            rows.append({"step": step, "points": points, "counts": weight, "most is lost at": said})
        return rows

    def __str__(self) -> str:
        return f"{self.points:.0f} of 100: {self.grade}"

    def __repr__(self) -> str:
        return f"{self}\n\n{self.table!r}"

    def _repr_html_(self) -> str:
        return f"<p><strong>{html.escape(str(self))}</strong></p>{self.table._repr_html_()}"


def sheet(*marks: Mark) -> Sheet:
    """Put marks on one sheet.

    Args:
        *marks: of different steps.

    Returns:
        The :class:`Sheet`.

    Raises:
        TypeError: for something that is no mark.
        ValueError: for two marks of one step.
    """
    if not all(isinstance(mark, Mark) for mark in marks):
        raise TypeError("sheet takes marks, such as capstone.clean(...) returns")
    steps = [mark.step for mark in marks]
    if len(set(steps)) < len(steps):
        raise ValueError(f"a sheet holds one mark for each step, got {', '.join(steps)}")
    return Sheet(marks)


def rubric() -> Table:
    """What the points are given for: a row for each criterion, made from those the scorer uses."""
    return Table(
        {
            "step": "" if number else f"{step} ({WEIGHTS[step]})",
            "criterion": criterion.name,
            "points": criterion.of,
            "what is measured": criterion.measures,
            "none at": f"{criterion.zero:g}",
            "all at": f"{criterion.full:g}",
        }
        for step, criteria in RUBRIC.items()
        for number, criterion in enumerate(criteria)
    )
