"""Graders: right answers pass however they are written, wrong ones get the sentence that helps."""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generators import global_generators_untouched
from jupyterquiz import display_quiz
from torch import Tensor

from modelsec import check, losses
from modelsec.check.grading import Feedback, grader, require
from modelsec.check.multiple_choice import questions, quiz

ROOT = Path(__file__).resolve().parent.parent
QUIZZES = sorted((ROOT / "modelsec" / "check" / "quizzes").glob("*.json"))


# --- solutions ----------------------------------------------------------------------------------


def climb(model: Callable, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y), x)[0]


def fgsm_as_in_the_paper(model, x, y, eps):
    return (x + eps * climb(model, x, y).sign()).clamp(0, 1)


def fgsm_with_backward(model, x, y, eps):
    images = x.detach().clone()
    images.requires_grad = True
    F.cross_entropy(model(images), y, reduction="sum").backward()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        images += eps * torch.sign(images.grad)
        return torch.clip(images, 0.0, 1.0)


def fgsm_image_by_image(model, x, y, eps):
    rows = []
    for image, label in zip(x, y, strict=True):
        gradient = climb(model, image[None], label[None])[0]
        rows.append(
            torch.where(gradient > 0, image + eps, torch.where(gradient < 0, image - eps, image))
        )
    return torch.stack(rows).clamp(min=0, max=1)


def fgsm_with_a_graph(model, x, y, eps):
    delta = torch.zeros_like(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
    return torch.minimum(torch.maximum(x + delta + eps * gradient.sign(), x * 0), x * 0 + 1)


def ce_by_logsumexp(logits, y):
    return logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]


def ce_by_hand(logits, y):
    logits -= logits.max(dim=1, keepdim=True).values  # in place: the grader's copy, not the data
    return logits.exp().sum(1).log() - logits[torch.arange(len(y)), y]


def ce_in_double(logits, y):
    return -torch.log_softmax(logits.double(), dim=1)[range(len(y)), y]


def worst_by_cases(w, margin, eps, norm):
    if norm == "linf":
        return margin - eps * w.abs().sum()
    return margin - eps * (w.norm() if norm == "l2" else w.abs().max())


def worst_in_numpy(w, margin, eps, norm):
    return margin - eps * np.linalg.norm(w.numpy(), {"linf": 1, "l2": 2, "l1": np.inf}[norm])


def worst_in_float(w, margin, eps, norm):
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    return float(margin - eps * torch.linalg.vector_norm(w, dual))


RIGHT: dict[str, list[Any]] = {
    "risk_of_guessing": [
        math.log(10), 2.3026, 2.3, -math.log(0.1), -torch.log(torch.tensor(0.1)), np.float32(2.3026),
    ],
    "cross_entropy": [
        ce_by_logsumexp, ce_by_hand, ce_in_double, losses.cross_entropy,
        torch.nn.CrossEntropyLoss(reduction="none"),
    ],
    "fgsm": [
        fgsm_as_in_the_paper, fgsm_with_backward, fgsm_image_by_image, fgsm_with_a_graph,
        lambda model, x, y, eps: check.loss.reference_fgsm(model, x, y, eps=eps),
    ],
    "worst_case": [worst_by_cases, worst_in_numpy, worst_in_float],
    "saturation": [
        losses.margin, losses.log_odds, losses.dlr,
        lambda z, y: F.cross_entropy(z / 100, y, reduction="none"),
        lambda z, y: 5 * losses.margin(z.double(), y),
    ],
}  # fmt: skip


def no_clip(model, x, y, eps):
    return x + eps * climb(model, x, y).sign()


def in_place(model, x, y, eps):
    step = eps * climb(model, x, y).sign()
    return x.add_(step).clamp_(0, 1)


def leaves_gradients(model, x, y, eps):
    images = x.clone().requires_grad_()
    F.cross_entropy(model(images), y).backward()
    return (images + eps * images.grad.sign()).clamp(0, 1)


def marks_x(model, x, y, eps):
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return (x + eps * gradient.sign()).clamp(0, 1)


def normalised(model, x, y, eps):
    gradient = climb(model, x, y)
    return (x + eps * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]).clamp(0, 1)


def stepping(factor: float) -> Callable:
    return lambda model, x, y, eps: (x + factor * eps * climb(model, x, y).sign()).clamp(0, 1)


def by_prediction(logits, y):
    return F.cross_entropy(logits, logits.argmax(1), reduction="none")


def clipped(logits, y):
    return -(logits.softmax(1)[range(len(y)), y] + 1e-12).log()


def overflowing(logits, y):
    return -(logits.exp()[range(len(y)), y] / logits.exp().sum(1)).log()


# grader -> (a wrong answer, words of the sentence it gets)
WRONG: dict[str, list[tuple[Any, str]]] = {
    "risk_of_guessing": [
        (0.1, "probability of the true class"),
        (1.0, "base 10"),
        (math.log2(10), "base 2"),
        (-math.log(10), "positive"),
        (10, "Each class gets the probability 1/10"),
        (float("nan"), "nan is not it"),
        ("2.3", "type str"),
        (torch.ones(3), "type Tensor"),
    ],
    "cross_entropy": [
        (lambda z, y: -ce_by_logsumexp(z, y), "sign is turned round"),
        (lambda z, y: ce_by_logsumexp(z, y) / math.log(2), "base 2"),
        (by_prediction, "true class, y"),
        (lambda z, y: F.cross_entropy(z, y), "Don't average"),
        (overflowing, "exp overflows"),
        (clipped, "don't clip"),
        (lambda z, y: -(z.exp()[range(len(y)), y] / z.exp().sum()).log(), "its own sum"),
        (lambda z, y: -z.log_softmax(0)[range(len(y)), y], "its own sum"),
        (lambda z, y: 0.5, "Return a tensor, not float"),
    ],
    "fgsm": [
        (no_clip, "clip them to [0, 1]"),
        (stepping(-1), "The attacker climbs"),
        (lambda m, x, y, eps: fgsm_as_in_the_paper(m, x, m(x).argmax(1), eps), "does not depend on y"),
        (normalised, "Does every pixel move by eps"),
        (stepping(0.5), "Does every pixel move by eps"),
        (stepping(2), "more than eps"),
        (leaves_gradients, "torch.autograd.grad"),
        (marks_x, "requires a gradient"),
        (in_place, "in place"),
        (lambda m, x, y, eps: x, "nothing was added"),
        (lambda m, x, y, eps: x * torch.nan, "NaN"),
        (lambda m, x, y, eps: eps * climb(m, x, y).sign(), "more than eps"),
        (lambda m, x, y, eps: fgsm_as_in_the_paper(m, x, y, eps)[0], "your result (1, 8, 8)"),
        (lambda m, x, y, eps: fgsm_as_in_the_paper(m, x, y, eps).numpy(), "not ndarray"),
    ],
    "worst_case": [
        (lambda w, m, eps, norm: 2 * m - worst_by_cases(w, m, eps, norm), "subtract, don't add"),
        (lambda w, m, eps, norm: m - eps * w.norm(p={"linf": math.inf, "l2": 2, "l1": 1}[norm]),
         "you need its dual"),
        (lambda w, m, eps, norm: m - eps * w.norm(), "the worst case is"),
        (lambda w, m, eps, norm: m, "How much can <w, delta> change"),
        (lambda w, m, eps, norm: m - eps * w.abs(), "one number"),
    ],
    "saturation": [
        (losses.cross_entropy, "gradient zero where the network is sure"),
        (lambda z, y: F.cross_entropy(z.double(), y, reduction="none"), "gradient zero where the network is sure"),
        (lambda z, y: losses.margin(z, y).mean(), "Don't average"),
        (lambda z, y: -losses.margin(z, y), "does not fall"),
        (lambda z, y: z.sum(1) * 0, "does not fall"),
    ],
}  # fmt: skip

VALUES = {"risk_of_guessing"}


def test_a_draw_in_the_reader_s_code_changes_nothing_after_it() -> None:
    def noisy(model, x, y, eps):
        return fgsm_as_in_the_paper(model, x, y, eps) + 0 * torch.rand(1)

    with global_generators_untouched():
        assert check.fgsm(noisy).passed


# --- the framework ------------------------------------------------------------------------------


def test_a_grader_keeps_its_name_and_text_and_never_raises() -> None:
    @grader("Now go on.")
    def double(solution: Callable[[int], int]) -> None:
        """Grade ``f(n) -> 2n``."""
        require(solution(3) == 6, f"f(3) is 6, yours is {solution(3)}.")

    assert double.__name__ == "double"
    assert double.__doc__ == "Grade ``f(n) -> 2n``."
    assert double(lambda n: 2 * n) == Feedback("passed", "Correct. Now go on.")
    assert double(lambda n: n) == Feedback("not yet", "f(3) is 6, yours is 3.")
    assert double(5) == Feedback("not yet", "Pass the function itself, without brackets.")


def test_an_interruption_is_not_swallowed() -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.fgsm(stopped)


@pytest.mark.parametrize("status", ["passed", "not yet", "todo"])
def test_feedback_reads_well_as_text_and_html(status: Any) -> None:
    feedback = Feedback(status, "Is 1 < 2 & so on?")
    assert str(feedback) == repr(feedback)
    assert str(feedback).endswith(" Is 1 < 2 & so on?")
    assert "1 &lt; 2 &amp; so on" in feedback._repr_html_()
    assert feedback.passed == (status == "passed")


def test_the_signs_differ_so_colour_is_not_needed() -> None:
    signs = {str(Feedback(status, ""))[0] for status in ("passed", "not yet", "todo")}
    assert len(signs) == 3


# --- quizzes ------------------------------------------------------------------------------------


def test_there_is_a_quiz() -> None:
    assert [path.stem for path in QUIZZES]


@pytest.mark.parametrize("path", QUIZZES, ids=lambda path: path.stem)
def test_every_question_has_one_right_answer_and_every_answer_feedback(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found == questions(path.stem)
    assert len(found) >= 3
    for question in found:
        assert question["type"] == "multiple_choice"
        assert question["question"].strip()
        assert [answer["correct"] for answer in question["answers"]].count(True) == 1
        assert len(question["answers"]) >= 3
        texts = [answer["answer"] for answer in question["answers"]]
        assert len(set(texts)) == len(texts)
        for answer in question["answers"]:
            assert len(answer["feedback"]) > 10
    right = [[a["correct"] for a in question["answers"]].index(True) for question in found]
    assert len(set(right)) > 1  # not always the same place


@pytest.mark.parametrize("path", QUIZZES, ids=lambda path: path.stem)
def test_a_quiz_is_drawn_the_same_every_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    keep = lambda shown: drawn.append(shown.data)  # noqa: E731
    monkeypatch.setitem(display_quiz.__globals__, "display", keep)
    for _ in range(2):
        with global_generators_untouched():
            quiz(path.stem)
    assert len(drawn) == 4  # the page and its script, twice
    assert drawn[:2] == drawn[2:]


def test_the_generator_is_put_back_when_drawing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        random.random()
        raise OSError("no display")

    monkeypatch.setattr("jupyterquiz.display_quiz", fail)
    with global_generators_untouched(), pytest.raises(OSError, match="no display"):
        quiz(QUIZZES[0].stem)


def test_a_missing_quiz_is_named() -> None:
    with pytest.raises(ValueError, match="no quiz for chapter 'tea'"):
        quiz("tea")


def test_every_quiz_that_a_chapter_asks_for_is_there_and_every_grader_too() -> None:
    for path in sorted((ROOT / "chapters").rglob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        for name in re.findall(r"""check\.quiz\(\s*["']([^"']+)["']""", code):
            assert questions(name), path
        for name in re.findall(r"\bcheck\.(\w+)\(", code):
            assert name in check.__all__, f"{path.name} calls check.{name}"
