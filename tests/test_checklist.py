"""The checklist, and the section on reliable evaluation: each check has a model that fails it."""

from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from torch import Tensor, nn

from modelsec.attacks import pgd
from modelsec.audit import Subject, audit, checklist
from modelsec.audit.reliability import pgd_left, rivals
from modelsec.audit.sanity import CHECKS, outcome
from modelsec.data import mnist
from modelsec.intervals import Proportion
from modelsec.training import Evaluation, evaluate
from modelsec.zoo import load_model

DIGITS = mnist()
NET = load_model("net")
STEPS, STARTS, QUERIES, TRANSFER = (
    "twice the steps fool few images more",
    "five random starts fool few images more",
    "an attack without gradients fools few images more",
    "images made on another model fool few more",
)


class Wrapped(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner, self.function = NET, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner, x)


def waves(model: nn.Module, x: Tensor) -> Tensor:
    """Ripples that hardly change a pixel, and change its gradient's sign many times in a step."""
    return model(x + 0.02 * torch.sin(997 * x))


def lucky(model: nn.Module, x: Tensor) -> Tensor:
    """A gradient only for those whose corner pixel happens to be bright: few starts are."""
    alive = (x[:, :, :1, :1] > 0.07).to(x.dtype)
    return model(alive * x + (1 - alive) * x.detach())


FAULTY = {
    STEPS: (lucky, None),
    STARTS: (lucky, None),
    QUERIES: (waves, None),
    TRANSFER: (waves, NET),
}
SUBJECT = {"n": 100, "radii": (0.1,)}


def held(rows: Any) -> dict[str, str]:
    return {row["what should hold"]: row["holds"] for row in rows}


@pytest.mark.parametrize("check", FAULTY)
def test_each_check_has_a_model_that_fails_it(check: str) -> None:
    function, substitute = FAULTY[check]
    subject = Subject(Wrapped(function), DIGITS, **SUBJECT)
    if substitute is not None:
        subject.cache["substitute"] = substitute
    holds, seen = outcome(rivals(subject)[check], subject)
    assert not holds, seen
    assert seen.startswith("at eps 0.1, ")


def test_a_sound_model_passes_all() -> None:
    rows = checklist(NET, DIGITS, n=100, substitute=load_model("convnet"))
    assert set(held(rows)) == {*CHECKS, STEPS, STARTS, QUERIES, TRANSFER}
    assert set(held(rows).values()) == {"yes"}
    assert all(row["seen"] for row in rows)
    assert "| what should hold | holds | seen |" in str(rows)


def test_a_masked_model_fails_where_it_should() -> None:
    rows = held(checklist(Wrapped(waves), DIGITS, n=40, radii=(0.05, 0.1), substitute=NET))
    assert rows[QUERIES] == rows[TRANSFER] == "no"
    assert rows["the gradient by the input is finite and not zero"] == "yes"
    assert TRANSFER not in held(checklist(NET, DIGITS, n=10, radii=(0.05,)))


def test_what_cannot_be_checked_does_not_hold() -> None:
    rows = checklist(lambda x: NET(x).detach(), DIGITS, n=20, radii=(0.05,))
    seen = {row["what should hold"]: row for row in rows}
    assert seen[QUERIES]["holds"] == "no"
    assert "could not be checked" in seen[QUERIES]["seen"]
    assert seen["the same input gives the same logits twice"]["holds"] == "yes"


def test_it_draws_from_its_seed_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(NET, nn.Dropout(0.5)).train()
    modes = [module.training for module in model.modules()]
    with global_generators_untouched():
        twice = [checklist(model, DIGITS, n=20, radii=(0.05,), seed=3) for _ in range(2)]
    assert twice[0] == twice[1]
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": DIGITS.x_test}, TypeError, r"a pair \(x, y\), got Tensor"),
        ({"n": 0}, ValueError, "n must be a whole number"),
        ({"norm": "l7"}, ValueError, "norm must be one of"),
        ({"radii": [8]}, ValueError, "write 8 / 255"),
        ({"model": 3}, TypeError, "model must be callable"),
    ],
)
def test_bad_input_is_told(change: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        checklist(**({"model": NET, "data": DIGITS} | change))


def test_in_l1_there_is_no_square() -> None:
    subject = Subject(NET, DIGITS, n=20, norm="l1", radii=(2.0,))
    assert set(rivals(subject)) == {STEPS, STARTS}


@pytest.mark.parametrize(
    ("left", "wanted"),
    [((90, 50, 5), 0.2), ((90, 10, 9), 0.2), ((90, 80, 70), 0.3), ((5, 3, 0), 0.1)],
)
def test_it_looks_where_pgd_leaves_something(left: tuple[int, ...], wanted: float) -> None:
    subject = Subject(NET, DIGITS, n=100, radii=(0.1, 0.2, 0.3))
    subject.cache["curves"] = {
        "PGD-40": {
            eps: Evaluation(hits, 100, torch.arange(100) < hits)
            for eps, hits in zip(subject.radii, left, strict=True)
        }
    }
    eps, rows = pgd_left(subject)
    assert eps == wanted
    assert rows.tolist() == list(range(left[subject.radii.index(eps)]))


def test_nothing_left_is_nothing_to_fool() -> None:
    subject = Subject(NET, DIGITS, n=20, radii=(0.9,))
    assert len(pgd_left(subject)[1]) == 0
    assert all(outcome(check, subject)[0] for check in rivals(subject).values())


def test_the_section_counts_image_by_image() -> None:
    found = audit(Wrapped(lucky), DIGITS, n=100, radii=(0.1,), sections=["reliability"])
    measures = found["reliability"].measures
    assert found["reliability"].verdict == "warning"
    assert STARTS in found["reliability"].summary
    pgd_alone, worst = measures["pgd"], measures["worst_case"]
    assert isinstance(worst, Proportion)
    assert worst.n == 100
    best = evaluate(NET, pgd(NET, DIGITS.x_test[:100], DIGITS.y_test[:100], eps=0.1),
                    DIGITS.y_test[:100])  # fmt: skip
    assert float(pgd_alone) > 0.5
    assert best.value - 0.02 <= float(worst) < 0.3  # Square needs no luck
    rows = {row["what should hold"]: row["seen"] for row in found["reliability"].table or []}
    most = max(int(text.split(", ")[1].split(" of ")[0]) for text in rows.values())
    assert worst.hits <= pgd_alone.hits - most
    sound = audit(NET, DIGITS, n=100, sections=["reliability"])["reliability"]
    assert (sound.verdict, sound.measures["failed"]) == ("ok", 0)
