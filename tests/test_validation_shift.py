"""Scores of strangeness: formulas, agreement with SciPy and scikit-learn, thresholds."""

import numpy as np
import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from modelsec.models import ConvNet, Net
from modelsec.validation import (
    Mahalanobis,
    auroc,
    detect,
    energy,
    features,
    msp,
    threshold,
)


def test_msp_and_energy_by_hand() -> None:
    z = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0]])
    assert msp(z).tolist() == pytest.approx([0.5, 0.25])
    assert energy(z).tolist() == pytest.approx([-np.log(2), -np.log(4)])
    # with T = 2 the logits are halved and the result doubled
    assert energy(2 * z, 2).tolist() == pytest.approx([-2 * np.log(2), -2 * np.log(4)])


@given(shift=st.floats(-20, 20))
def test_energy_sees_what_softmax_cannot(shift: float) -> None:
    z = torch.tensor([[3.0, 1.0, 0.0]])
    assert msp(z + shift).item() == pytest.approx(msp(z).item(), abs=1e-5)
    assert energy(z + shift).item() == pytest.approx(energy(z).item() - shift, abs=1e-4)


def test_loud_logits_do_not_overflow() -> None:
    assert energy(torch.tensor([[1e4, 0.0]])).item() == -1e4


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0, got 0"):
        energy(torch.zeros(1, 2), 0)


# --- features and distance ----------------------------------------------------------------------


@pytest.mark.parametrize(("model", "width"), [(Net(), 64), (ConvNet(), 100)])
def test_features_are_what_the_last_layer_sees(model: nn.Module, width: int) -> None:
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    model.train()
    found = features(model, x)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert found.shape == (5, width)
    assert torch.allclose(last(found), model(x), atol=1e-6)
    assert not found.requires_grad
    assert model.training
    assert not last._forward_pre_hooks


def test_an_attacker_can_differentiate_them() -> None:
    net, x = Net(), torch.rand(2, 1, 28, 28).requires_grad_()
    (gradient,) = torch.autograd.grad(features(net, x, grad=True).sum(), x)
    assert gradient.abs().sum() > 0


def test_a_model_without_a_linear_layer_has_none() -> None:
    with pytest.raises(ValueError, match=r"Flatten has no nn\.Linear"):
        features(nn.Flatten(), torch.zeros(1, 2))


def gaussians(n: int = 300, d: int = 4, k: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % k
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    centres = 4 * torch.randn(k, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return centres[y] + noise @ mix, y


@pytest.mark.peers
def test_distance_is_scipy_s_with_scikit_learn_s_covariance() -> None:
    f, y = gaussians()
    found = Mahalanobis.fit(f, y)
    means = np.stack([f[y == k].mean(0).numpy() for k in range(3)])
    shared = EmpiricalCovariance(assume_centered=True).fit(f.numpy() - means[y.numpy()])
    new = f[:20] + 1
    expected = [
        min(mahalanobis(row, m, shared.precision_) ** 2 for m in means) for row in new.numpy()
    ]
    assert found(new).tolist() == pytest.approx(expected, rel=1e-6)


def test_distance_does_not_care_about_units() -> None:
    """Any linear map of the features leaves it as it is."""
    f, y = gaussians()
    stretch = torch.diag(torch.tensor([1, 10, 0.1, 5], dtype=torch.float64))
    a = Mahalanobis.fit(f, y)(f)
    b = Mahalanobis.fit(f @ stretch, y)(f @ stretch)
    assert torch.allclose(a, b, rtol=1e-6)
    assert a.mean().item() < 4  # near 4 - what the nearest mean takes away, for 4 dimensions


def test_a_feature_that_never_varies_is_ignored() -> None:
    f, y = gaussians()
    dead = torch.cat([f, torch.zeros(len(f), 1, dtype=f.dtype)], 1)
    found = Mahalanobis.fit(dead, y)(dead)
    assert torch.allclose(found, Mahalanobis.fit(f, y)(f), rtol=1e-6)
    assert torch.isfinite(found).all()


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="every class needs a sample, got counts"):
        Mahalanobis.fit(torch.zeros(2, 3), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"features \(N, D\)"):
        Mahalanobis.fit(torch.zeros(2), torch.tensor([0, 1]))


# --- thresholds, AUROC --------------------------------------------------------------------------

scores = st.lists(st.integers(-5, 5), min_size=2, max_size=40)


@given(scores, scores)
@pytest.mark.peers
def test_auroc_is_scikit_learn_s_ties_included(usual: list[int], strange: list[int]) -> None:
    expected = roc_auc_score([0] * len(usual) + [1] * len(strange), usual + strange)
    assert auroc(usual, strange) == pytest.approx(expected)
    assert auroc(strange, usual) == pytest.approx(1 - expected)


@given(scores, st.floats(0.01, 1))
def test_the_threshold_accepts_enough_and_no_more(values: list[int], accept: float) -> None:
    usual = torch.tensor(values, dtype=torch.float64)
    at = threshold(usual, accept)
    assert (usual <= at).double().mean() >= accept - 1e-9
    smaller = usual[usual < at]
    if len(smaller):
        assert (usual <= smaller.max()).double().mean() < accept


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100))
@pytest.mark.peers
def test_missed_is_fpr_at_95_tpr(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    usual = torch.randn(200, generator=generator)
    strange = torch.randn(300, generator=generator) + 1
    # in papers a positive is an accepted, usual input, and scores are turned round
    labels, turned = np.r_[np.ones(200), np.zeros(300)], -np.r_[usual, strange]
    fpr, tpr, _ = roc_curve(labels, turned, drop_intermediate=False)
    found = detect(usual, strange, threshold(usual))
    assert found.missed.value == pytest.approx(fpr[tpr >= 0.95][0])
    assert found.alarms.value == pytest.approx(0.05)


def test_the_interval_holds_the_area_and_shrinks_with_more_samples() -> None:
    widths = []
    for n in (50, 2000):
        generator = torch.Generator().manual_seed(0)
        usual, strange = (
            torch.randn(n, generator=generator),
            1 + torch.randn(n, generator=generator),
        )
        with global_generators_untouched():
            found = detect(usual, strange, threshold(usual))
        low, high = found.interval
        assert low < found.auroc < high
        assert low < 0.760 < high  # the truth: Phi(1 / sqrt 2)
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


@pytest.mark.parametrize(("accept", "n"), [(0, 5), (1.1, 5), (0.95, 0)])
def test_impossible_thresholds_are_refused(accept: float, n: int) -> None:
    with pytest.raises(ValueError, match="0 < accept <= 1"):
        threshold(torch.zeros(n), accept)


def test_auroc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="both kinds, got 0 and 1"):
        auroc([], [1])
