"""The audit's search for a backdoor: what it says with one, without one, and where it makes no sense."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from modelsec.attacks.poisoning import badnets
from modelsec.audit import Section, Subject, audit
from modelsec.audit.backdoor import backdoor
from modelsec.data import Data, mnist
from modelsec.models import Net, fresh
from modelsec.training import fit

DIGITS = mnist()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def network(planted: bool) -> nn.Module:
    x, y = DIGITS.x_train[:1500], DIGITS.y_train[:1500]
    if planted:
        poison = badnets(x, y, rate=0.05, target=7, generator=seeded())
        x, y = poison.x, poison.y
    model = fresh(Net, seeded())
    fit(model, x, y, epochs=6, generator=seeded(), progress=False)
    return model.eval()


def look(model: nn.Module, data: Data = DIGITS) -> Section:
    return backdoor(Subject(model, data, n=300))


def test_a_planted_backdoor_is_a_warning_with_its_class_and_mark() -> None:
    found = look(network(True))
    assert found.verdict == "warning"
    assert "into class 7" in found.summary
    assert "An alarm is no proof" in found.summary
    assert found.measures["flagged"] >= 1
    assert found.measures["index"] > 2
    assert found.measures["size"] < found.measures["median"] / 2
    assert [row["class"] for row in found.table if row["flagged"]][:1] == [7]
    assert found.figure is not None
    assert "7" in found.alt


def test_the_same_seed_finds_the_same() -> None:
    found, again = look(network(True)), look(network(True))
    assert found.measures == again.measures
    assert found.summary == again.summary


class Parts(nn.Module):
    """Answers K classes, each by the mean of a part of the image, the later ones of a larger part."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.sizes = [8 + 2 * k if classes <= 10 else 8 for k in range(classes)]

    def forward(self, x: Tensor) -> Tensor:
        parts = x.flatten(1)[:, : sum(self.sizes)].split(self.sizes, 1)
        return 30 * torch.stack([part.mean(1) for part in parts], 1)


def test_without_an_alarm_it_promises_nothing() -> None:
    data = replace(DIGITS, x_test=0.2 * torch.rand(64, 1, 28, 28, generator=seeded()))
    found = look(Parts(10), data)
    assert found.measures["flagged"] == 0
    assert found.verdict == "info"
    assert "No alarm is no proof" in found.summary


@pytest.mark.parametrize("classes", [2, 4, 60])
def test_it_is_skipped_where_there_is_nothing_to_compare(classes: int) -> None:
    found = look(Parts(classes))
    assert found.verdict == "skipped"
    assert f"this model has {classes}" in found.summary
    assert "\n" not in found.summary


def test_a_model_without_a_gradient_is_no_error() -> None:
    model = Parts(10)
    card = audit(lambda x: model((x > 0.5).to(x)), DIGITS, n=50, sections=["backdoor"])
    assert card["backdoor"].verdict == "skipped"
    assert "can't be differentiated" in card["backdoor"].summary


def test_names_of_classes_may_be_missing() -> None:
    found = look(network(True), replace(DIGITS, classes=("a", "b")))
    assert "into class 7" in found.summary
