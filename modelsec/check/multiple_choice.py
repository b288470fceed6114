"""Multiple-choice quizzes, kept as JSON beside this file and drawn by jupyterquiz."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from typing import Any

__all__ = ["questions", "quiz"]


def questions(chapter: str) -> list[dict[str, Any]]:
    """The questions of a chapter, in jupyterquiz's format.

    Raises:
        ValueError: if the chapter has no quiz.
    """
    file = files("modelsec.check") / "quizzes" / f"{chapter}.json"
    if not file.is_file():
        raise ValueError(f"there is no quiz for chapter {chapter!r}")
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def quiz(chapter: str) -> None:
    """Show a chapter's quiz in a notebook: click an answer to read why it is right or wrong."""
    from jupyterquiz import display_quiz

    state = random.getstate()
    random.seed(chapter)  # jupyterquiz draws its element ids from the global generator
    try:
        display_quiz(questions(chapter), shuffle_answers=False)
    finally:
        random.setstate(state)
