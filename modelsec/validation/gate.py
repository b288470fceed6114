"""The release gate: requirements that were written down before, judged on what was measured.

A requirement is judged on the pessimistic end of the measure's interval, so that few samples can't
pass by luck, and what was not measured does not pass.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from modelsec.tables import Table

__all__ = ["DEFAULT", "Outcome", "Requirement", "Verdict", "release_gate"]


@dataclass(frozen=True)
class Requirement:
    """One line of a release policy.

    Args:
        measure: its name in an audit report, "section.measure".
        at_least: the pessimistic end must not be below this; or
        at_most: must not be above this. One of the two.
        why: what the requirement is for, shown with its outcome.

    Raises:
        ValueError: if not exactly one finite limit is given, or the measure has no name.
    """

    measure: str
    at_least: float | None = None
    at_most: float | None = None
    why: str = ""

    def __post_init__(self) -> None:
        given = [limit for limit in (self.at_least, self.at_most) if limit is not None]
        if len(given) != 1 or not math.isfinite(given[0]):
            raise ValueError(
                f"{self.measure!r} needs one finite limit, at_least or at_most, got "
                f"at_least={self.at_least}, at_most={self.at_most}"
            )
        if not isinstance(self.measure, str) or not self.measure:
            raise ValueError(f"measure must be a name like 'clean.accuracy', got {self.measure!r}")

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"{self.measure} at least {self.at_least:g}"
        return f"{self.measure} at most {self.at_most:g}"

    def holds_for(self, value: float) -> bool:
        """Whether one number keeps the limit; NaN does not."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


DEFAULT = (
    Requirement("clean.accuracy", at_least=0.9, why="it does its work"),
    Requirement("validation.worst_class", at_least=0.8, why="for every class"),
    Requirement("validation.corrupted", at_least=0.7, why="on images of everyday quality"),
    Requirement("validation.ece_high", at_most=0.06, why="its confidence can be read"),
    Requirement("evasion.pgd-40@0.03", at_least=0.5, why="against a small change made on purpose"),
    Requirement("sanity.failed", at_most=0, why="and the attacks were not blind"),
)
"""This book's requirements, for its digits. A real release sets its own, from what an error costs."""


@dataclass(frozen=True)
class Outcome:
    """What became of one requirement.

    Attributes:
        requirement: what was asked.
        measured: the value as text, with its interval if it has one; "-" if there is none.
        judged_on: the number that was compared with the limit; None if there is none.
        passed: whether it kept the limit.
        reason: one sentence.
    """

    requirement: Requirement
    measured: str
    judged_on: float | None
    passed: bool
    reason: str


@dataclass(frozen=True, repr=False)
class Verdict:
    """What the gate says; a notebook shows it as a table.

    Attributes:
        outcomes: one for each requirement, in their order.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """True if every requirement is met."""
        return all(outcome.passed for outcome in self.outcomes)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass, a sentence per requirement; empty if it passed."""
        return tuple(outcome.reason for outcome in self.outcomes if not outcome.passed)

    def table(self) -> Table:
        """A row per requirement: sign, requirement, measured, reason."""
        return Table(
            {
                "": "\N{CHECK MARK}" if outcome.passed else "\N{BALLOT X}",
                "requirement": str(outcome.requirement),
                "for": outcome.requirement.why,
                "measured": outcome.measured,
                "verdict": outcome.reason,
            }
            for outcome in self.outcomes
        )

    def __str__(self) -> str:
        held = sum(outcome.passed for outcome in self.outcomes)
        word = "PASS" if self.passed else "FAIL"
        return f"{word}: {held} of {len(self.outcomes)} requirements are met"

    def __repr__(self) -> str:
        return f"{self}\n\n{self.table()!r}"

    def _repr_html_(self) -> str:
        color = "#009e73" if self.passed else "#d55e00"
        return (
            f'<p style="border-left: 3px solid {color}; padding: 0.2em 0.8em"><strong>'
            f"{html.escape(str(self))}</strong></p>{self.table()._repr_html_()}"
        )


def release_gate(report: Any, requirements: Iterable[Requirement] = DEFAULT) -> Verdict:
    """Judge a model by its audit report.

    Args:
        report: an audit report (anything with ``.measures``), or a mapping from names to measures.
            A measure is a number, or something with an ``interval``, such as a
            :class:`~modelsec.intervals.Proportion`.
        requirements: what has to hold, at least one; :data:`DEFAULT` unless told otherwise.

    Returns:
        The :class:`Verdict`.

    Raises:
        TypeError: if the report has no measures, or one of those asked for is no number.
        ValueError: if nothing is required: such a gate would pass everything.
    """
    measures = report if isinstance(report, Mapping) else getattr(report, "measures", None)
    if not isinstance(measures, Mapping):
        raise TypeError(
            f"report must be an audit report or a mapping of measures, got {type(report).__name__}"
        )
    asked = tuple(requirements)
    if not asked:
        raise ValueError("requirements must hold at least one, got none")
    skipped = {
        section.name: section.summary
        for section in getattr(report, "sections", ())
        if section.verdict == "skipped"
    }
    return Verdict(
        tuple(
            _judge(requirement, measures[requirement.measure])
            if requirement.measure in measures
            else _missing(requirement, measures, skipped)
            for requirement in asked
        )
    )


def _judge(requirement: Requirement, value: Any) -> Outcome:
    low, high = getattr(value, "interval", (value, value))
    if not all(isinstance(end, Real) for end in (low, high)):
        raise TypeError(
            f"{requirement.measure} must be a number or have an interval, got "
            f"{type(value).__name__}"
        )
    end = float(low if requirement.at_least is not None else high)
    measured = str(value) if hasattr(value, "interval") else f"{float(value):.3g}"
    passed = requirement.holds_for(end)
    return Outcome(requirement, measured, end, passed, _reason(requirement, value, end, passed))


def _reason(requirement: Requirement, value: Any, end: float, passed: bool) -> str:
    limit = requirement.at_least if requirement.at_least is not None else requirement.at_most
    if math.isnan(end):
        return "It is NaN: nothing was measured."
    if not hasattr(value, "interval"):
        if passed:
            return f"{end:.3g} keeps the limit {limit:g}; it came without an interval."
        return f"{end:.3g} breaks the limit {limit:g}."
    name = "lower" if requirement.at_least is not None else "upper"
    said = f"The {name} end of its interval, {end:.3f},"
    if passed:
        return f"{said} keeps the limit {limit:g}."
    if requirement.holds_for(float(value)):
        return f"{said} breaks the limit {limit:g}; the estimate does not: measure more samples."
    return f"{said} breaks the limit {limit:g}, and so does the estimate."


def _missing(
    requirement: Requirement, measures: Mapping[str, Any], skipped: Mapping[str, str]
) -> Outcome:
    section, _, name = requirement.measure.partition(".")
    others = sorted(key for key in measures if key.startswith(f"{section}."))
    if section in skipped:
        reason = f"The section {section!r} was skipped. {skipped[section]}"
    elif others:
        reason = f"Not measured: the section {section!r} has no {name!r}; it has {_some(others)}."
    else:
        reason = f"Not measured: run the audit with the section {section!r}."
    return Outcome(requirement, "\N{EN DASH}", None, False, reason)


def _some(names: list[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
