"""Referral: who is decided and who is passed on, for every threshold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.intervals import Proportion
from modelsec.validation import Referring, risk_coverage

CASES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@given(CASES)
def test_counts_are_those_of_a_loop(cases: list[tuple[int, bool]]) -> None:
    confidence = torch.tensor([float(c) for c, _ in cases])
    right = torch.tensor([r for _, r in cases])
    found = risk_coverage(confidence, right)
    assert found.threshold.tolist() == sorted({float(c) for c, _ in cases}, reverse=True)
    for t, decided, wrong in zip(found.threshold, found.decided, found.wrong, strict=True):
        assert int(decided) == int((confidence >= t).sum())
        assert int(wrong) == int((~right[confidence >= t]).sum())
    assert found.coverage[-1] == 1
    assert found.risk[-1] == pytest.approx((~right).double().mean().item())


@given(CASES, st.permutations(range(7)))
def test_the_order_of_the_cases_does_not_matter(
    cases: list[tuple[int, bool]], names: list[int]
) -> None:
    confidence = torch.tensor([float(c) for c, _ in cases])
    right = torch.tensor([r for _, r in cases])
    other = torch.argsort(torch.tensor([names[c] for c, _ in cases]), stable=True)
    one, two = risk_coverage(confidence, right), risk_coverage(confidence[other], right[other])
    assert torch.equal(one.wrong, two.wrong)
    assert one.area == two.area


def test_the_area_is_small_if_errors_come_last() -> None:
    confidence = torch.linspace(1, 0, 10)
    late = torch.tensor([True] * 8 + [False] * 2)
    assert risk_coverage(confidence, late).area == pytest.approx((1 / 9 + 2 / 10) / 10)
    assert risk_coverage(confidence, late.flip(0)).area > 0.4
    same = risk_coverage(torch.zeros(10), late)
    assert same.area == pytest.approx(0.2)
    assert len(same.threshold) == 1


def test_one_threshold() -> None:
    found = risk_coverage(
        torch.tensor([0.9, 0.8, 0.6, 0.6]), torch.tensor([True, False, True, True])
    )
    assert found.at(0.8) == (Proportion(2, 4), Proportion(1, 2))
    assert found.at(0.61) == found.at(0.8)
    assert found.at(0.6) == (Proportion(0, 4), Proportion(1, 4))
    assert found.at(0.95) == (Proportion(4, 4), None)


@given(
    st.lists(
        st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3), min_size=1, max_size=9
    ),
    st.floats(0.05, 0.95),
)
def test_refer_is_the_answer_below_the_threshold(rows: list[list[float]], threshold: float) -> None:
    z = torch.tensor(rows).double()
    answer = Referring(Identity(), threshold)(z)
    assert torch.equal(answer[:, :3], z)
    confidence = z.softmax(1).amax(1)
    clear = (confidence - threshold).abs() > 1e-9
    expected = torch.where(confidence < threshold, 3, z.argmax(1))
    assert torch.equal(answer.argmax(1)[clear], expected[clear])


def test_gradients_pass_and_two_classes_are_enough() -> None:
    z = torch.tensor([[0.3, -0.2]], requires_grad=True)
    model = Referring(Identity(), 0.9)
    assert model(z).argmax(1).tolist() == [2]
    model(z)[0, 2].backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_bad_input_is_refused() -> None:
    right = torch.tensor([True, False])
    with pytest.raises(ValueError, match="must both be"):
        risk_coverage(torch.zeros(3), right)
    with pytest.raises(ValueError, match="N at least 1"):
        risk_coverage(torch.zeros(0), right[:0])
    with pytest.raises(TypeError, match="bool"):
        risk_coverage(torch.zeros(2), right.float())
    with pytest.raises(ValueError, match="NaN"):
        risk_coverage(torch.tensor([0.5, torch.nan]), right)
    for threshold in (0, 1, -2.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Referring(Identity(), threshold)
