"""Marks with reasons: how the capstone's scorer turns what it measured into points.

Nothing here knows the case. A criterion says how many points it is worth, and between which two
values of a measured number they grow from none to all; so the rubric and the scorer can't differ.
"""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from modelsec.tables import Table

__all__ = ["Criterion", "Line", "Mark", "Refused", "expect", "marked", "ramp"]

_TODO = "Not done yet: replace the ... with your work and run the cell again."


class Refused(Exception):
    """What was handed in can't be marked; the message is for the reader."""


def expect(condition: object, message: str) -> None:
    """Refuse the submission unless a condition holds.

    Args:
        condition: what holds for everything that can be marked.
        message: for the reader: what was seen, and what is wanted.

    Raises:
        Refused: with the message.
    """
    if not bool(condition):
        raise Refused(message)


def ramp(value: float, zero: float, full: float) -> float:
    """0 at ``zero``, 1 at ``full``, straight between, and flat outside; 0 for NaN.

    Args:
        value: what was measured.
        zero: where points begin.
        full: where they end; it may lie below ``zero``.

    Returns:
        A share from 0 to 1.
    """
    share = (value - zero) / (full - zero)
    return 0.0 if math.isnan(share) else min(1.0, max(0.0, share))


@dataclass(frozen=True)
class Criterion:
    """One line of the rubric.

    Attributes:
        name: short.
        of: the points that it is worth.
        measures: what number is measured, in words.
        zero: at which value of it there are no points.
        full: at which there are all.
        hint: what to do next if points are missing.
        chapter: where to read about it, a key of ``_TITLES``.
    """

    name: str
    of: int
    measures: str
    zero: float
    full: float
    hint: str
    chapter: str

    def line(self, value: float, reason: str, share: float = 1.0) -> Line:
        """Points for a measured value.

        Args:
            value: what was measured.
            reason: says so in a sentence.
            share: what the points are multiplied by, 0 to 1, if something else went wrong.

        Returns:
            The line of the mark.
        """
        return Line(self, self.of * ramp(value, self.zero, self.full) * share, reason)


@dataclass(frozen=True)
class Line:
    """What a submission got for one criterion.

    Attributes:
        criterion: of the rubric.
        points: 0 to ``criterion.of``.
        reason: a sentence with the number that was measured.
    """

    criterion: Criterion
    points: float
    reason: str


@dataclass(frozen=True, repr=False)
class Mark:
    """What a submission got for one step; a notebook shows it as a table, with what to do next.

    Attributes:
        step: its name.
        lines: one for each criterion; none if the submission was refused.
        share: what the sum is multiplied by, 0 to 1: below 1 if the submission does harm.
        note: why the share is below 1, or why it was refused; else empty.
    """

    step: str
    lines: tuple[Line, ...]
    share: float = 1.0
    note: str = ""

    @property
    def points(self) -> int:
        """0 to 100."""
        return round(self.share * sum(line.points for line in self.lines))

    @property
    def next(self) -> Line | None:
        """The line where most points are missing; None if there is none, or all are there."""
        open_lines = [line for line in self.lines if line.criterion.of - line.points > 0.5]
        return max(open_lines, key=lambda line: line.criterion.of - line.points, default=None)

    @property
    def table(self) -> Table:
        """A row for each criterion."""
        return Table(
            {
                "criterion": line.criterion.name,
                "points": f"{line.points:.0f}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{line.criterion.of}",
                "why": line.reason,
            }
            for line in self.lines
        )

    def __str__(self) -> str:
        return f"{self.step}: {self.points} of 100." + (f" {self.note}" if self.note else "")

    def __repr__(self) -> str:
        return "\n\n".join([str(self), *([repr(self.table)] if self.lines else [])])

    def _repr_html_(self) -> str:
        head = f"<p><strong>{html.escape(self.step)}: {self.points} of 100</strong></p>"
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return head + note + (self.table._repr_html_() if self.lines else "")

    def _ipython_display_(self) -> None:
        """Show the table, and below it, as Markdown (whose links work everywhere), what is next."""
        from IPython.display import Markdown, display

        display({"text/html": self._repr_html_(), "text/plain": repr(self)}, raw=True)
        if self.next is not None:
            criterion = self.next.criterion
            display(
                Markdown(
                    f"**Next:** {criterion.hint} See [{_TITLES[criterion.chapter]}]"
                    f"({criterion.chapter}.ipynb)."
                )
            )


_TITLES = {
    "attacks/gradient": "Gradient attacks",
    "augmentation": "Data augmentation",
    "cleaning": "Data cleaning",
    "repair/adversarial_training": "Adversarial training",
    "repair/backdoors": "Removing backdoors",
    "repair/broken_defences": "Broken defences",
    "validation": "Validation",
}


Examine = Callable[..., Mark]


def marked(step: str) -> Callable[[Examine], Examine]:
    """Make a marker of a function that measures: whatever goes wrong gets 0 points and a reason.

    Args:
        step: its name.

    Returns:
        A decorator. The decorated function never raises because of what the reader handed in, and
        leaves torch's global generator as it found it.
    """

    def decorate(examine: Examine) -> Examine:
        @functools.wraps(examine)
        def mark(case: Any, *handed_in: Any, **options: Any) -> Mark:
            if any(part is ... or part is None for part in handed_in):
                return Mark(step, (), 0, _TODO)
            try:
                with torch.random.fork_rng(devices=[]):
                    return examine(case, *handed_in, **options)
            except Refused as problem:
                return Mark(step, (), 0, str(problem))
            except Exception as error:  # the reader's code may raise anything
                return Mark(step, (), 0, f"Your code raised {type(error).__name__}: {error}")

        return mark

    return decorate
