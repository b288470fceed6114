"""Every grader, of all chapters: right answers pass, wrong ones get the sentence that helps, stubs are not done yet."""

from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from graders import GRADERS, STUBS, all_answers, each, is_todo, is_told, passes

RIGHT, WRONG, VALUES = all_answers()


def test_every_grader_is_tested() -> None:
    assert set(GRADERS) == set(RIGHT) == set(WRONG)
    assert set(GRADERS) > VALUES
    assert all(len(several) >= 3 for answers in (RIGHT, WRONG) for several in answers.values())


@each(RIGHT)
def test_right_answers_pass(name: str, answer: Any) -> None:
    passes(name, answer)


@each(WRONG)
def test_wrong_answers_get_the_sentence_that_helps(name: str, answer: Any) -> None:
    is_told(name, answer)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("stub", STUBS)
def test_the_stub_is_not_done_yet(name: str, stub: Any) -> None:
    is_todo(name, ... if name in VALUES and callable(stub) else stub)


@pytest.mark.parametrize("name", sorted(set(RIGHT) - VALUES))
def test_what_the_reader_s_code_raises_becomes_feedback(name: str) -> None:
    def broken(*_: Any) -> Any:
        torch.rand(3)
        raise ZeroDivisionError("my own mistake")

    with global_generators_untouched():
        feedback = GRADERS[name](broken)
    assert feedback.status == "not yet"
    assert "Your code raised ZeroDivisionError: my own mistake" in feedback.message
    assert GRADERS[name](lambda: None).message.startswith("Your code raised TypeError")
    assert "returned None" in GRADERS[name](lambda *_: None).message
