"""The study of broken defences: its flips keep to their budget, its record is what a run of it gives."""

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.data import mnist
from modelsec.repair import adapted, bit_depth
from modelsec.training import evaluate
from modelsec.zoo import load_model, load_result
from modelsec.zoo.studies.broken_defences import CASES, N, flip_pixels, measure

DIGITS = mnist()


def nobody(adv: Tensor) -> Tensor:
    return torch.zeros(len(adv), dtype=torch.bool)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), eps=st.floats(0, 3), most=st.integers(1, 8))
def test_flips_keep_to_ball_box_and_number(seed: int, eps: float, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 1, 5, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(25, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (3,), generator=generator)
    adv = flip_pixels(lambda x: x.flatten(1) @ weight, x, y, eps=eps, fooled=nobody, most=most)
    assert ((adv - x).flatten(1).norm(dim=1) <= eps + 1e-9).all()
    assert ((adv >= 0) & (adv <= 1)).all()
    moved = adv != x
    assert (moved.flatten(1).sum(1) <= most).all()
    assert torch.equal((adv > 0.5)[moved], (x <= 0.5)[moved])  # across the middle, each


def test_the_best_bargain_is_flipped_first() -> None:
    x = torch.tensor([0.0, 0.4, 0.4, 1.0]).view(1, 1, 1, 4)
    weight = torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.0, 0.1], [0.0, -1.0]])
    for eps, wanted in ((0.12, [1]), (0.2, [1, 2]), (0.6, [0, 1, 2]), (0.8, [0, 1, 3])):
        adv = flip_pixels(
            lambda x: x.flatten(1) @ weight, x, torch.tensor([0]), eps=eps, fooled=nobody, most=3
        )
        assert (adv != x).flatten().nonzero().flatten().tolist() == wanted


def test_who_is_fooled_is_left_alone() -> None:
    model = nn.Sequential(bit_depth(1), load_model("convnet")).eval()
    x, y = DIGITS.x_test[:20], DIGITS.y_test[:20]
    adv = flip_pixels(
        adapted(model), x, y, eps=2.0, fooled=lambda adv: ~evaluate(model, adv, y).correct
    )
    wrong = model(x).argmax(1) != y
    assert torch.equal(adv[wrong], x[wrong])
    assert float(evaluate(model, adv, y)) < 0.2


@pytest.mark.parametrize("name", ["3 bits", "noise of 0.2", "detector, l2"])
def test_a_run_gives_marks_and_draws_nothing_from_the_global_generators(name: str) -> None:
    with global_generators_untouched():
        found, again = measure(name, n=6), measure(name, n=6)
    assert found == again
    marks = [found["clean"], found["claimed"], *(a["marks"] for a in found["attacks"].values())]
    assert all(len(row) == 6 and set(row) <= set(".0") for row in marks)
    assert found["norm"] == ("l2" if name.endswith("l2") else "linf")
    assert measure(name, n=6, adaptive=False)["attacks"] == {}


def test_the_record_is_of_these_cases() -> None:
    record = load_result("broken_defences")
    assert set(record) == set(CASES)
    for entry in record.values():
        rows = [entry["clean"], entry["claimed"], *(a["marks"] for a in entry["attacks"].values())]
        assert all(len(row) == N for row in rows)
    part = measure("distillation", n=20)
    assert part["clean"] == record["distillation"]["clean"][:20]
    assert part["claimed"].count(".") - record["distillation"]["claimed"][:20].count(".") <= 1
