"""The capstone: a case of unknown history, its scorer, and the match.

A chapter calls :func:`case`, works on what it gets, and hands its work to one marker for each step.
Every marker measures on data that the case does not contain, answers with points and reasons, and
never raises because of what it was handed. The truth stands in ``modelsec.zoo.studies.capstone_case``.
"""

from modelsec.check.capstone.case import EPS, Case, case
from modelsec.check.capstone.contest import BUDGET, MATCH_EPS, attack, match, opponents, repair
from modelsec.check.capstone.data_steps import augment, clean, validate
from modelsec.check.capstone.marks import Criterion, Line, Mark
from modelsec.check.capstone.sheet import Sheet, rubric, sheet

__all__ = [
    "BUDGET",
    "EPS",
    "MATCH_EPS",
    "Case",
    "Criterion",
    "Line",
    "Mark",
    "Sheet",
    "attack",
    "augment",
    "case",
    "clean",
    "match",
    "opponents",
    "repair",
    "rubric",
    "sheet",
    "validate",
]
