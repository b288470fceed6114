"""The losses: their values, their gradients, and what they do when a network is sure of itself."""

import math

import pytest
import torch
from torch import Tensor, nn

from modelsec.losses import cross_entropy, dlr, log_odds, margin, risk

ALL = [cross_entropy, log_odds, margin, dlr]


def sample(n: int = 20, k: int = 6, scale: float = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64) * scale
    return logits, torch.arange(n) % k


@pytest.mark.parametrize("loss", ALL)
def test_one_value_per_sample_that_does_not_depend_on_the_others(loss) -> None:
    logits, y = sample()
    whole = loss(logits, y)
    assert whole.shape == (20,)
    assert torch.equal(loss(logits[3:4], y[3:4])[0], whole[3])


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(loss, dtype: torch.dtype) -> None:
    logits, y = sample()
    assert torch.equal(loss(logits, y.to(dtype)), loss(logits, y))


@pytest.mark.parametrize("loss", ALL)
def test_falls_when_the_true_logit_rises(loss) -> None:
    logits, y = sample()
    wrong = margin(logits, y) > 0
    higher = logits.scatter_add(1, y[:, None], torch.full((20, 1), 0.1, dtype=logits.dtype))
    if loss is not dlr:  # which is 1, whatever the true logit, while that is the third largest
        assert (loss(higher, y) < loss(logits, y))[wrong].all()
    assert (loss(higher, y) <= loss(logits, y)).all()


@pytest.mark.parametrize("loss", ALL)
def test_does_not_change_when_all_logits_are_shifted(loss) -> None:
    logits, y = sample()
    assert torch.allclose(loss(logits + 7, y), loss(logits, y))


def test_cross_entropy_is_minus_the_log_probability() -> None:
    logits, y = sample()
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = torch.tensor([-math.log(probability[i, y[i]]) for i in range(20)]).double()
    assert torch.allclose(cross_entropy(logits, y), expected, rtol=1e-6)


def test_cross_entropy_of_a_soft_target_is_the_mean_over_its_classes() -> None:
    logits, y = sample()
    other = (y + 1) % logits.shape[1]
    soft = torch.zeros_like(logits)
    soft[range(20), y], soft[range(20), other] = 0.7, 0.3
    expected = 0.7 * cross_entropy(logits, y) + 0.3 * cross_entropy(logits, other)
    assert torch.allclose(cross_entropy(logits, soft), expected)


def test_log_odds_is_the_log_of_the_odds_against_the_true_class() -> None:
    logits, y = sample()
    p = (-cross_entropy(logits, y)).exp()
    assert torch.allclose(log_odds(logits, y), ((1 - p) / p).log())
    assert torch.allclose(nn.functional.softplus(log_odds(logits, y)), cross_entropy(logits, y))


def test_log_odds_can_be_differentiated_twice_and_its_slope_is_a_softmax_of_the_others() -> None:
    logits, y = sample()
    logits.requires_grad_()
    (slope,) = torch.autograd.grad(log_odds(logits, y).sum(), logits)
    wanted = logits.detach().scatter(1, y[:, None], -torch.inf).softmax(1)
    assert torch.allclose(slope, wanted.scatter(1, y[:, None], -1.0))
    assert torch.autograd.gradgradcheck(lambda z: log_odds(z, y), logits)


def test_margin_is_positive_exactly_when_the_sample_is_misclassified() -> None:
    logits, y = sample()
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)
    assert margin(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([2])).item() == 3


def test_dlr_by_hand_and_under_scaling() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0, -1.0]])
    # the true class is the largest: -(5 - 2) / (5 - 1); then the second: (5 - 2) / (5 - 1)
    assert dlr(logits, torch.tensor([1])).item() == pytest.approx(-0.75)
    assert dlr(logits, torch.tensor([2])).item() == pytest.approx(0.75)
    logits, y = sample()
    assert torch.allclose(dlr(1000 * logits, y), dlr(logits, y))
    right = logits.argmax(1) == y
    assert ((dlr(logits, y) >= -1) & (dlr(logits, y) <= 0))[right].all()
    assert (dlr(logits, y) > 0)[~right].all()


def test_dlr_of_three_equal_leaders_is_not_nan() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    value = dlr(logits, torch.tensor([0]))
    assert value.item() == 0
    assert not torch.autograd.grad(value.sum(), logits)[0].isnan().any()


def test_dlr_of_two_classes_says_so_and_is_the_margin() -> None:
    logits, y = sample(k=2)
    with pytest.warns(UserWarning, match="three classes"):
        value = dlr(logits, y % 2)
    assert torch.equal(value, margin(logits, y % 2))


@pytest.mark.parametrize("loss", [log_odds, margin, dlr])
def test_attack_losses_keep_their_gradient_where_cross_entropy_loses_it(loss) -> None:
    def slope(loss) -> float:
        logits = torch.tensor([[90.0, 3.0, 1.0, -2.0]], requires_grad=True)
        value = loss(logits, torch.tensor([0]))
        return float(torch.autograd.grad(value.sum(), logits)[0].abs().max())

    assert slope(cross_entropy) < 1e-30
    assert slope(loss) > 1e-3


@pytest.mark.parametrize("loss", ALL)
def test_large_logits_stay_finite(loss) -> None:
    logits, y = sample(scale=1e4)
    logits = logits.float().requires_grad_()
    value = loss(logits, y)
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_risk_is_the_mean() -> None:
    logits, y = sample()
    assert risk(lambda x: x, logits, y).item() == pytest.approx(cross_entropy(logits, y).mean())
    assert risk(lambda x: 2 * x, logits, y, margin).item() == pytest.approx(
        2 * float(margin(logits, y).mean())
    )
