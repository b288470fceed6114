"""The audit's section on adaptive attacks."""

import pytest
from torch import nn

from modelsec.audit import Section, Subject
from modelsec.audit.adaptive import adaptive
from modelsec.data import mnist
from modelsec.intervals import Proportion
from modelsec.repair import bit_depth, jpeg, median, noise
from modelsec.zoo import load_model

DIGITS, NET = mnist(), load_model("convnet")


def look(model: object, **different: object) -> Section:
    options = {"n": 20, "radii": (0.1, 0.2, 0.3)} | different
    return adaptive(Subject(model, DIGITS, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [bit_depth(3), jpeg(50), noise(0.2)], ids=lambda step: step.name)
def test_a_step_that_only_hides_the_gradient_is_noticed(step: nn.Module) -> None:
    found = look(nn.Sequential(step, NET).eval())
    assert found.verdict == "warning"
    plain, aware = found.measures["plain"], found.measures["adaptive"]
    assert isinstance(plain, Proportion)
    assert plain.n == 20
    assert float(plain) > 0.4
    assert float(aware) < 0.15
    assert found.measures["taken"] == pytest.approx(float(plain) - float(aware))
    assert "says nothing" in found.summary


def test_a_step_that_hides_nothing_is_no_cause_for_a_warning() -> None:
    assert look(nn.Sequential(median(2), NET).eval()).verdict == "ok"


def test_the_same_seed_gives_the_same_section() -> None:
    random = nn.Sequential(noise(0.3), NET).eval()
    assert look(random, n=4) == look(random, n=4)


def test_without_a_step_it_is_skipped() -> None:
    assert look(NET).verdict == "skipped"
    assert look(lambda x: NET(x)).verdict == "skipped"


def test_it_goes_with_the_norm() -> None:
    found = look(nn.Sequential(bit_depth(3), NET).eval(), norm="l2", radii=(2.0,))
    assert "eps 2 in l2" in found.summary
