"""The audit's section on robust overfitting."""

from dataclasses import replace

import torch

from modelsec.attacks import pgd
from modelsec.audit import Section, Subject
from modelsec.audit.overfitting import overfitting
from modelsec.data import Data, mnist
from modelsec.intervals import Proportion
from modelsec.training import evaluate
from modelsec.zoo import load_model

DIGITS, NET = mnist(), load_model("net")


def look(data: Data, **different: object) -> Section:
    return overfitting(Subject(NET, data, **{"n": 60, "radii": (0.05,)} | different))


def test_equal_halves_have_no_gap() -> None:
    found = look(replace(DIGITS, x_train=DIGITS.x_test, y_train=DIGITS.y_test))
    assert found.verdict == "ok"
    # the same images, other random starts: an image on the border may fall either way
    assert abs(found.measures["gap"]) <= 0.05
    assert "At eps 0.05 PGD-40 leaves" in found.summary


def test_training_images_that_stand_more_often_are_a_warning() -> None:
    x, y = DIGITS.x_train[:400], DIGITS.y_train[:400]
    adv = pgd(NET, x, y, eps=0.06, restarts=2, generator=torch.Generator().manual_seed(0))
    stands = evaluate(NET, adv, y).correct
    found = look(replace(DIGITS, x_train=x[stands], y_train=y[stands]))
    assert found.verdict == "warning"
    assert found.measures["gap"] > 0.3
    assert "more robust on what it has seen" in found.summary
    assert found == look(replace(DIGITS, x_train=x[stands], y_train=y[stands]))


def test_at_most_so_many_images_and_none_is_skipped() -> None:
    found = look(DIGITS, n=1000, radii=(0.3,))
    assert isinstance(found.measures["train"], Proportion)
    assert found.measures["train"].n == found.measures["test"].n == 500
    assert look(replace(DIGITS, x_train=DIGITS.x_train[:0])).verdict == "skipped"
