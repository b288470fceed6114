"""The audit's section on what is proven."""

import pytest
import torch
from torch import Tensor, nn

from modelsec.audit import Section, Subject, certified
from modelsec.audit.certified import proven
from modelsec.audit.evasion import STEPS, curves
from modelsec.data import mnist
from modelsec.intervals import Proportion
from modelsec.zoo import load_model

DIGITS, NET = mnist(), load_model("net")


def look(model: object, **different: object) -> Section:
    return proven(Subject(model, DIGITS, **{"n": 20, "radii": (0.01, 0.05, 0.1, 0.2)} | different))


def test_what_is_proven_stands_below_what_pgd_leaves() -> None:
    found = look(NET)
    assert found.verdict == "info"
    assert len(found.table) == 3
    shares = [
        (float(found.measures[f"certified@{eps}"]), float(found.measures[f"left@{eps}"]))
        for eps in (0.01, 0.05, 0.1)
    ]
    assert all(low <= high for low, high in shares)
    assert shares[0][0] > 0.5
    assert [low for low, _ in shares] == sorted((low for low, _ in shares), reverse=True)
    assert "At eps 0.01" in found.summary
    assert all(isinstance(value, Proportion) and value.n == 20 for value in found.measures.values())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: NET(x), "layers are not seen"),
        (nn.Sequential(NET, nn.Sigmoid()), "Sigmoid"),
    ],
)
def test_other_models_are_skipped_and_the_reason_is_told(model: object, words: str) -> None:
    found = look(model)
    assert found.verdict == "skipped"
    assert words in found.summary


def test_in_other_norms_it_is_skipped() -> None:
    assert look(NET, norm="l2").verdict == "skipped"


def test_convolutions_get_fewer_images() -> None:
    found = look(load_model("convnet"), n=16, radii=(0.001,))
    assert found.measures["certified@0.001"].n == 15
    assert found.measures["left@0.001"].n == 15


def test_a_proof_that_an_attack_refutes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def credulous(model: nn.Module, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
        return torch.ones(len(y), dtype=torch.bool)

    monkeypatch.setattr(certified, "certified", credulous)
    subject = Subject(NET, DIGITS, n=20, radii=(0.1,))
    found = proven(subject)
    wrong = 20 - curves(subject)[f"PGD-{STEPS}"][0.1].hits
    assert found.verdict == "warning"
    assert f"{wrong} proofs were refuted" in found.summary
