"""Training with differential privacy: the step, the budget, and what it promises against attackers."""

import copy
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor, nn

from modelsec.repair import most_found, noise_for, private_fit, spent
from modelsec.repair import private as module
from modelsec.threat import card


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)]
        return nn.Sequential(*layers)


def samples(n: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 1, 4, 4, generator=seeded(seed)), torch.arange(n) % 3


def train(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
    options = {"noise": 1.0, "epochs": 2, "batch_size": 8, "progress": False} | options
    return private_fit(model, x, y, **options)


def clipped_step(model: nn.Module, x: Tensor, y: Tensor, clip: float, lr: float) -> list[Tensor]:
    """One step of DP-SGD without noise on all samples, each gradient by itself."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for image, label in zip(x, y, strict=True):
        loss = F.cross_entropy(model(image[None]), label[None])
        gradient = torch.autograd.grad(loss, parameters)
        length = torch.cat([g.flatten() for g in gradient]).norm()
        for whole, part in zip(total, gradient, strict=True):
            whole += part * min(1.0, clip / float(length))
    return [p.detach() - lr * g / len(x) for p, g in zip(parameters, total, strict=True)]


@pytest.mark.parametrize("clip", [0.05, 0.3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_clips_each_sample_s_gradient(clip: float, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    x, y = samples()
    wanted = clipped_step(model, x.to(dtype), y, clip, lr=0.7)
    # one batch an epoch: every sample is in it
    train(model, x.to(dtype), y, noise=0.0, clip=clip, epochs=1, batch_size=len(x), lr=0.7)
    for got, want in zip(model.parameters(), wanted, strict=True):
        assert got.dtype == dtype
        assert torch.allclose(got, want, atol=1e-5)


def test_clipping_matters_in_that_test() -> None:
    x, y = samples()
    far, near = (
        torch.cat([p.flatten() for p in clipped_step(network(), x, y, c, 0.7)]) for c in (1e3, 0.05)
    )
    assert (far - near).abs().max() > 1e-3


def test_the_noise_has_the_size_that_is_accounted_for() -> None:
    x, y = samples(8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2000))
    before = [p.detach().clone() for p in model.parameters()]
    quiet = clipped_step(model, x, y, clip=0.5, lr=1.0)
    train(model, x, y, noise=3.0, clip=0.5, epochs=1, batch_size=8, lr=1.0, generator=seeded())
    drawn = torch.cat(
        [(p.detach() - q).flatten() for p, q in zip(model.parameters(), quiet, strict=True)]
    )
    assert float(drawn.std()) == pytest.approx(3.0 * 0.5 / 8, rel=0.02)
    assert abs(float(drawn.mean())) < 5 * 3.0 * 0.5 / 8 / len(drawn) ** 0.5
    assert not torch.equal(before[0], next(iter(model.parameters())))


def test_batches_are_drawn_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes vary around the expected one, and a batch may be empty."""
    sizes: list[int] = []

    class Counting(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    x, y = samples(12)
    model = nn.Sequential(Counting(), nn.Linear(16, 3))
    budget = train(model, x, y, batch_size=2, epochs=40, generator=seeded())
    assert len(sizes) == budget.steps == 240
    assert budget.rate == pytest.approx(1 / 6)
    assert 0 in sizes
    assert max(sizes) > 4
    assert sum(sizes) / len(sizes) == pytest.approx(2, abs=0.3)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_model_comes_back_as_it_was() -> None:
    model = network(dropout=0.5)
    model[3].eval()
    model[1].bias.requires_grad_(False)
    frozen, modes = model[1].bias.clone(), [m.training for m in model.modules()]
    with warnings.catch_warnings(), global_generators_untouched():
        warnings.simplefilter("error")
        train(model, *samples(), generator=seeded())
    assert torch.equal(model[1].bias, frozen)
    assert not model[1].bias.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert type(model) is nn.Sequential
    for part in model.modules():
        assert not part._forward_hooks
        assert not part._backward_hooks
    for p in model.parameters():
        assert p.grad is None
        assert not {"summed_grad", "grad_sample"} & set(vars(p))
    copy.deepcopy(model)
    model(samples()[0]).sum().backward()  # an ordinary model again


def test_a_generator_makes_it_the_same_and_another_another() -> None:
    runs = [network(dropout=0.3) for _ in range(3)]
    for model, seed in zip(runs, (1, 1, 2), strict=True):
        train(model, *samples(), generator=seeded(seed))
    first, second, third = (model[1].weight for model in runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_inputs_are_not_changed_and_one_sample_is_enough() -> None:
    x, y = samples(1)
    before = x.clone(), y.clone()
    budget = train(network(), x, y, batch_size=1)
    assert budget.rate == 1
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": None}, "either epsilon or noise"),
        ({"epsilon": 1.0}, "either epsilon or noise"),
        ({"noise": -1.0}, "noise must be a finite number"),
        ({"noise": math.nan}, "noise must be a finite number"),
        ({"clip": 0.0}, "clip must be"),
        ({"delta": 0.0}, "delta must be between"),
        ({"epochs": 0}, "epochs and batch_size must be 1 or more"),
        ({"noise": None, "epsilon": 0.0}, "epsilon must be above 0"),
        ({"noise": None, "epsilon": 0.005}, "too small for an accountant"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train(network(), *samples(), **options)


def test_bad_data_are_named() -> None:
    x, y = samples()
    with pytest.raises(ValueError, match="one class index per input"):
        train(network(), x[:0], y[:0])
    with pytest.raises(ValueError, match="one class index per input"):
        train(network(), x, y[:-1])
    with pytest.raises(TypeError, match="integer class indices"):
        train(network(), x, y.float())
    with pytest.raises(FloatingPointError, match="loss became nan"):
        train(network(), x * math.nan, y, batch_size=24)


def test_a_layer_that_mixes_samples_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    with pytest.raises(ValueError, match=r"mixes samples.*BatchNorm"):
        train(model, *samples())
    assert model.training
    train(nn.Sequential(nn.GroupNorm(1, 1), nn.Flatten(), nn.Linear(16, 3)), *samples())


def test_an_interrupted_training_says_what_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop:
        count = 0

        def update(self) -> None:
            self.count += 1
            if self.count == 4:
                raise KeyboardInterrupt

        def close(self) -> None:
            pass

    monkeypatch.setattr(module, "progress_bar", lambda *_: Stop())
    model = network()
    budget = train(model, *samples(), epochs=10)
    assert budget.interrupted
    assert budget.steps == 4
    assert budget.epsilon == spent(1.0, 1 / 3, 4)
    assert not model[1]._forward_hooks


# The budget


def closed_form(mu: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism with sensitivity / deviation = mu (Balle & Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        tail = norm.cdf(-mu / 2 - epsilon / mu)
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * tail - delta)

    return float(brentq(excess, 0, 100))


@pytest.mark.parametrize(
    ("noise", "steps"), [(0.7, 1), (1.0, 1), (4.0, 1), (10.0, 25), (40.0, 900)]
)
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_without_sampling_the_closed_form_is_met(noise: float, steps: int, delta: float) -> None:
    """All samples in every step: T Gaussian steps are one, with the noise divided by sqrt(T)."""
    exact = closed_form(math.sqrt(steps) / noise, delta)
    assert exact <= spent(noise, 1.0, steps, delta=delta) <= exact + 0.02
    assert exact <= spent(noise, 1.0, steps, delta=delta, accountant="rdp") <= 1.3 * exact + 0.1


@pytest.mark.parametrize(
    ("noise", "rate", "steps"), [(1.0, 0.01, 500), (2.0, 0.25, 100), (4.0, 0.5, 100)]
)
def test_two_accountants_agree_and_the_numerical_one_is_tighter(
    noise: float, rate: float, steps: int
) -> None:
    tight, loose = (spent(noise, rate, steps, accountant=a) for a in ("prv", "rdp"))
    assert 0 < tight < loose < 1.35 * tight


def test_more_noise_fewer_steps_smaller_batches_cost_less() -> None:
    base = spent(1.0, 0.05, 100)
    assert spent(1.5, 0.05, 100) < base
    assert spent(1.0, 0.05, 50) < base
    assert spent(1.0, 0.02, 100) < base
    assert spent(1.0, 0.05, 100, delta=1e-7) > base
    assert spent(1.0, 0.05, 0) == 0
    assert spent(0.0, 0.05, 100) == math.inf


@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_the_noise_keeps_to_the_budget_and_is_not_wasted(epsilon: float) -> None:
    noise = noise_for(epsilon, 0.25, 60)
    assert spent(noise, 0.25, 60) <= epsilon < spent(0.98 * noise, 0.25, 60)
    assert noise_for(math.inf, 0.25, 60) == 0
    with global_generators_untouched():
        budget = train(network(), *samples(), noise=None, epsilon=epsilon, generator=seeded())
    assert budget.epsilon <= epsilon
    assert budget.epsilon == spent(budget.noise, budget.rate, budget.steps)


def test_bad_budgets_are_named() -> None:
    for options, words in (
        ({"noise": -1.0, "rate": 0.1, "steps": 1}, "noise"),
        ({"noise": 1.0, "rate": 0.0, "steps": 1}, "rate"),
        ({"noise": 1.0, "rate": 1.1, "steps": 1}, "rate"),
        ({"noise": 1.0, "rate": 0.1, "steps": -1}, "steps"),
        ({"noise": 1.0, "rate": 0.1, "steps": 1, "delta": 1.0}, "delta"),
        ({"noise": 1.0, "rate": 0.1, "steps": 1, "accountant": "gut"}, "accountant"),
    ):
        with pytest.raises(ValueError, match=f"{words} must be"):
            spent(**options)  # type: ignore[arg-type]


# What it promises


@given(st.floats(0, 1), st.floats(0, 8), st.floats(0, 0.1))
@settings(max_examples=60, deadline=None)
def test_the_bound_is_a_share_and_no_attack_is_below_guessing(
    f: float, epsilon: float, delta: float
) -> None:
    fpr = torch.tensor([f], dtype=torch.double)
    bound = float(most_found(fpr, epsilon, delta))
    assert f - 1e-12 <= bound <= 1
    assert bound <= float(most_found(fpr, epsilon + 0.5, delta)) + 1e-12
    assert bound <= float(most_found(fpr, epsilon, min(1.0, delta + 0.1))) + 1e-12


def test_the_bound_in_known_cases() -> None:
    fpr = torch.linspace(0, 1, 11, dtype=torch.double)
    assert torch.allclose(most_found(fpr, 0.0), fpr)
    assert torch.equal(most_found(fpr, math.inf), torch.ones(11, dtype=torch.double))
    assert float(most_found(torch.tensor(0.01), math.log(4))) == pytest.approx(0.04)
    assert float(most_found(torch.tensor(0.0), 1.0, 0.02)) == pytest.approx(0.02)
    for bad in (
        (torch.tensor(1.1), 1.0, 0.0),
        (torch.tensor(0.1), -1.0, 0.0),
        (torch.tensor(0.1), 1.0, 2.0),
    ):
        with pytest.raises(ValueError, match="must lie in"):
            most_found(*bad)


def test_randomised_response_reaches_the_bound() -> None:
    """A coin decides whether one answers truly: epsilon is ln 3, and the best attack meets the bound there."""
    found, false = 0.75, 0.25
    assert float(most_found(torch.tensor(false, dtype=torch.double), math.log(3))) == pytest.approx(
        found
    )


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_no_threshold_on_the_gaussian_mechanism_crosses_the_bound(noise: float) -> None:
    """The attack that sees everything: is the sum 0 or 1, plus noise? Its exact ROC stays below, and comes near."""
    epsilon = closed_form(1 / noise, 1e-5)
    threshold = torch.linspace(-6 * noise, 6 * noise + 1, 2001, dtype=torch.double)
    false = torch.from_numpy(norm.sf(threshold / noise))
    found = torch.from_numpy(norm.sf((threshold - 1) / noise))
    assert bool((found <= most_found(false, epsilon, 1e-5) + 1e-9).all())
    assert bool((found > most_found(false, 0.6 * epsilon, 1e-5)).any())


def test_the_card() -> None:
    assert card(private_fit).goal == "repair"
