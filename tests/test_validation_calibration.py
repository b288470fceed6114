"""Calibration error and temperature, beside scikit-learn's curve and a search by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from modelsec.models import Net
from modelsec.validation import (
    Tempered,
    ece,
    ece_if_calibrated,
    fit_temperature,
    reliability,
)


def drawn(n: int, scale: float, seed: int, k: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax: calibrated, by construction, at scale 1."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, k, generator=generator)
    y = torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
    return scale * z, y


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 400), scale=st.floats(0.1, 5), seed=st.integers(0, 9), bins=st.integers(1, 20)
)
@pytest.mark.peers
def test_equals_what_scikit_learn_s_curve_gives(n: int, scale: float, seed: int, bins: int) -> None:
    z, y = drawn(n, scale, seed)
    p = z.double().softmax(1)
    confidence, right = p.amax(1).numpy(), (p.argmax(1) == y).numpy()
    # scikit-learn asks for both outcomes: add one of each, in a bin of their own weight
    accuracy, mean = calibration_curve(
        np.r_[right, True, False], np.r_[confidence, 0, 0], n_bins=bins
    )
    count = np.histogram(confidence, np.linspace(0, 1, bins + 1))[0]
    if bins == 1 or count[0]:  # the two that were added would sit in a filled bin
        return
    filled = count[count > 0] / n
    expected = float((filled * np.abs(accuracy[1:] - mean[1:])).sum())
    assert ece(p, y, bins=bins) == pytest.approx(expected, abs=1e-9)


def test_by_hand() -> None:
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.25, 0.75], [0.0, 1.0]])
    found = reliability(p, torch.tensor([0, 1, 1, 1]), bins=4)
    assert found.count.tolist() == [0, 0, 1, 3]  # 0.75 belongs to the bin that ends there
    assert found.accuracy[[2, 3]].tolist() == pytest.approx([1, 2 / 3])
    assert found.confidence[[2, 3]].tolist() == pytest.approx([0.75, 2.8 / 3])
    assert bool(found.accuracy[[0, 1]].isnan().all())
    assert found.ece == pytest.approx(0.25 * 0.25 + 0.75 * (2.8 - 2) / 3)


@given(seed=st.integers(0, 20), bins=st.integers(1, 30))
@settings(deadline=None)
def test_lies_between_the_mean_gap_and_one(seed: int, bins: int) -> None:
    z, y = drawn(80, 2, seed)
    p = z.softmax(1)
    gap = abs(float((p.argmax(1) == y).double().mean() - p.amax(1).double().mean()))
    assert gap - 1e-6 <= ece(p, y, bins=bins) <= 1
    assert ece(p, y, bins=1) == pytest.approx(gap, abs=1e-6)  # one bin: the errors cancel


def test_always_sure_and_always_wrong_is_one() -> None:
    p = torch.eye(3)
    assert ece(p, torch.tensor([1, 2, 0])) == 1
    assert ece(p, torch.tensor([0, 1, 2])) == 0


def test_chance_alone_gives_what_a_calibrated_model_shows() -> None:
    z, y = drawn(1000, 1, 0)
    p = z.softmax(1)
    with global_generators_untouched():
        values = ece_if_calibrated(p, draws=300, generator=torch.Generator().manual_seed(0))
    assert values.shape == (300,)
    assert values.min() > 0  # never 0, with finite data
    low, high = values.quantile(torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
    assert low < ece(p, y) < high
    sure = (3 * z).softmax(1)
    assert ece(sure, y) > ece_if_calibrated(sure, generator=torch.Generator().manual_seed(0)).max()


def test_more_samples_leave_less_to_chance() -> None:
    few, many = (
        ece_if_calibrated(
            drawn(n, 1, 0)[0].softmax(1), draws=50, generator=torch.Generator().manual_seed(0)
        ).mean()
        for n in (200, 5000)
    )
    assert many < few / 3


# --- temperature --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.02, 0.5, 1, 3, 100])
def test_finds_the_factor_by_which_the_logits_are_too_large(scale: float) -> None:
    z, y = drawn(3000, scale, 1)
    found = fit_temperature(z, y)
    assert found == pytest.approx(scale, rel=0.1)
    grid = np.exp(np.linspace(-0.2, 0.2, 401)) * found
    best = grid[np.argmin([float(F.cross_entropy(z.double() / t, y)) for t in grid])]
    assert found == pytest.approx(best, rel=1e-3)


def test_does_not_depend_on_the_logits_offset_or_scale() -> None:
    z, y = drawn(500, 2, 2)
    found = fit_temperature(z, y)
    assert fit_temperature(z + 50, y) == pytest.approx(found, rel=1e-3)
    assert fit_temperature(10 * z, y) == pytest.approx(10 * found, rel=1e-3)


def test_changes_the_confidence_and_no_answer() -> None:
    net = Net()
    x = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    softer = Tempered(net, 2.5)
    assert torch.equal(softer(x).argmax(1), net(x).argmax(1))
    assert torch.allclose(softer(x) * 2.5, net(x), atol=1e-6)
    assert (softer(x).softmax(1).amax(1) < net(x).softmax(1).amax(1)).all()


def test_a_fit_leaves_no_trace_in_the_logits() -> None:
    z, y = drawn(100, 1, 0)
    z.requires_grad_()
    before = z.detach().clone()
    with global_generators_untouched():
        fit_temperature(z, y)
    assert z.grad is None
    assert torch.equal(z.detach(), before)


@pytest.mark.parametrize(
    ("z", "y", "words"),
    [
        (torch.eye(2), torch.tensor([0, 1]), "every prediction is right"),
        (torch.zeros(0, 2), torch.zeros(0).long(), "at least 1"),
        (torch.zeros(2, 2), torch.tensor([0]), r"got \(2, 2\) and \(1,\)"),
        (torch.full((2, 2), math.nan), torch.tensor([0, 1]), "NaN"),
    ],
)
def test_no_temperature_where_there_is_none(z, y, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_temperature(z, y)


def test_a_temperature_is_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0, got -1"):
        Tempered(Net(), -1)


@pytest.mark.parametrize(
    ("p", "y", "options", "words"),
    [
        (torch.tensor([[2.0, -1.0]]), torch.tensor([0]), {}, r"softmax\(1\) first"),
        (torch.tensor([[0.5, 0.2]]), torch.tensor([0]), {}, "sum to 1"),
        (torch.full((1, 2), math.nan), torch.tensor([0]), {}, "sum to 1"),
        (torch.ones(1, 1), torch.tensor([0, 0]), {}, r"\(1, 1\) and \(2,\)"),
        (torch.ones(0, 1), torch.zeros(0).long(), {}, "at least 1"),
        (torch.ones(1, 1), torch.tensor([0]), {"bins": 0}, "bins must be 1 or more"),
    ],
)
def test_bad_input_is_named(p, y, options, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ece(p, y, **options)


def test_at_least_one_draw() -> None:
    with pytest.raises(ValueError, match="draws must be 1"):
        ece_if_calibrated(torch.ones(1, 1), draws=0)
