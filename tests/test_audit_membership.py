"""The audit's section on membership."""

from dataclasses import replace

import pytest
import torch

from modelsec.audit import Section, Subject
from modelsec.audit.membership import membership
from modelsec.data import Data, mnist
from modelsec.models import Net, fresh
from modelsec.training import fit
from modelsec.zoo import load_model

DIGITS, NET = mnist(), load_model("net")


def look(data: Data, model: torch.nn.Module = NET, **different: object) -> Section:
    return membership(Subject(model, data, **different))


def test_the_same_images_on_both_sides_can_t_be_told_apart() -> None:
    found = look(replace(DIGITS, x_train=DIGITS.x_test, y_train=DIGITS.y_test))
    assert found.verdict == "ok"
    assert found.measures["auc"] == pytest.approx(0.5)
    assert found.measures["advantage"] == 0
    assert found.measures["tpr_1"].value <= 0.01
    assert found.measures["tpr_5"].n == 1000


def test_what_was_learned_by_heart_is_a_warning() -> None:
    """Random labels: whoever knows one has seen it."""
    drawn = torch.randint(10, (200,), generator=torch.Generator().manual_seed(0))
    x, y = DIGITS.x_train[:100], drawn[:100]
    model = fresh(Net, torch.Generator().manual_seed(0))
    fit(model, x, y, epochs=60, generator=torch.Generator().manual_seed(0), progress=False)
    found = look(
        replace(DIGITS, x_train=x, y_train=y, x_test=DIGITS.x_test[:100], y_test=drawn[100:]), model
    )
    assert found.verdict == "warning"
    assert found.measures["auc"] > 0.95
    assert found.measures["tpr_5"].value > 0.7
    assert "at 5% false alarms".lower() in found.summary.lower()
    assert found.figure is not None


def test_shares_smaller_than_one_image_are_left_out() -> None:
    found = look(DIGITS, n=60)
    assert "tpr_1" not in found.measures
    assert found.measures["tpr_5"].n == 60
    assert "too few" in look(DIGITS, n=10).summary
    assert look(DIGITS, n=1).measures["auc"] in {0, 0.5, 1}


def test_without_training_images_it_is_skipped() -> None:
    none = replace(DIGITS, x_train=DIGITS.x_train[:0], y_train=DIGITS.y_train[:0])
    assert look(none).verdict == "skipped"
