"""What every grader keeps to; a chapter's test file hands in its right and wrong answers.

A file `test_check_<chapter>.py` holds two tables, RIGHT: grader -> answers, and WRONG: grader -> (answer, words of the
sentence it gets), three or more of each, and names in VALUES the graders whose answer is no function. `test_graders.py`
runs over all of them, and sees that no grader is left out.
"""

import importlib
from pathlib import Path
from typing import Any

import pytest
from generators import global_generators_untouched

from modelsec import check

GRADERS = {
    name: getattr(check, name)
    for name in check.__all__
    if hasattr(getattr(check, name), "__wrapped__")
}


def returns_dots(*_: Any) -> Any:
    return ...


def not_implemented(*_: Any) -> Any:
    raise NotImplementedError


STUBS = [..., None, returns_dots, not_implemented]


def each(answers: dict[str, list[Any]]) -> Any:
    """Parametrize a test by (name, answer)."""
    params = [
        pytest.param(name, answer, id=f"{name}-{i}")
        for name, several in answers.items()
        for i, answer in enumerate(several)
    ]
    return pytest.mark.parametrize(("name", "answer"), params)


def passes(name: str, answer: Any) -> None:
    """The answer is right, and the grader says so."""
    with global_generators_untouched():
        feedback = GRADERS[name](answer)
    assert feedback.passed, feedback
    assert feedback.message.startswith("Correct. ")


def is_told(name: str, answer: tuple[Any, str]) -> None:
    """The answer is wrong, and gets the sentence that helps."""
    solution, words = answer
    with global_generators_untouched():
        feedback = GRADERS[name](solution)
    assert feedback.status == "not yet", feedback
    assert words in feedback.message, feedback


def is_todo(name: str, stub: Any) -> None:
    """An unfilled stub is not done yet, which is no mistake."""
    feedback = GRADERS[name](stub)
    assert feedback.status == "todo", feedback
    assert feedback.message.startswith("Not done yet")


def all_answers() -> tuple[dict[str, list[Any]], dict[str, list[Any]], set[str]]:
    """RIGHT, WRONG and VALUES of all chapters."""
    right: dict[str, list[Any]] = {}
    wrong: dict[str, list[Any]] = {}
    values: set[str] = set()
    for path in sorted(Path(__file__).parent.glob("test_check*.py")):
        module = importlib.import_module(path.stem)
        right |= getattr(module, "RIGHT", {})
        wrong |= getattr(module, "WRONG", {})
        values |= getattr(module, "VALUES", set())
    return right, wrong, values
