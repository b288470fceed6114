"""Randomized smoothing: what it says is wrong no more often than it states."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, norm
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from modelsec import data, models, repair, training
from modelsec.attacks import pgd
from modelsec.repair import ABSTAIN, Certificate, probability_bound, smooth


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Halves(nn.Module):
    """A linear model of two classes, whose border is a plane: everything about it is known."""

    def __init__(self, size: int = 12, seed: int = 0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(size, generator=seeded(seed)))
        self.b = nn.Parameter(-0.5 * self.w.detach().sum())

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.w + self.b
        return torch.stack([-z, z], 1)

    def distance(self, x: Tensor) -> Tensor:
        """To the border: the exact radius of the smoothed model, too."""
        return (self(x)[:, 1].abs() / self.w.norm()).detach()


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 2, 2, generator=seeded(seed))


# --- the bound on a probability


@given(n=st.integers(1, 20_000), share=st.floats(0, 1), alpha=st.sampled_from([0.001, 0.05, 0.5]))
def test_the_bound_is_clopper_and_pearson_s(n: int, share: float, alpha: float) -> None:
    hits = round(share * n)
    low = probability_bound(hits, n, alpha).item()
    assert low == pytest.approx(beta.ppf(alpha, hits, n - hits + 1) if hits else 0.0, abs=1e-9)
    assert 0 <= low <= hits / n
    test = binomtest(hits, n, alternative="greater")
    assert low == pytest.approx(test.proportion_ci(1 - alpha, method="exact").low, abs=1e-9)


def test_the_bound_of_a_clean_sweep_is_a_root() -> None:
    """If all n trials are hits, p**n = alpha: that caps every radius."""
    assert probability_bound(1000, 1000, 0.001).item() == pytest.approx(0.001 ** (1 / 1000))


def test_the_bound_is_too_high_no_more_often_than_alpha() -> None:
    p, n, alpha = 0.9, 200, 0.05
    hits = torch.binomial(
        torch.full((4000,), float(n)), torch.full((4000,), p), generator=seeded()
    ).long()
    above = int((probability_bound(hits, n, alpha) > p).sum())
    assert above > 0  # a bound that is never wrong would be too low
    assert binomtest(above, 4000, alpha, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0), "n must be a whole number"),
        ((5, 4), "hits must be from 0 to n = 4"),
        ((-1, 4), "hits must be from 0 to n = 4"),
        ((1, 4, 0.0), "alpha must lie between 0 and 1"),
        ((1, 4, 1.0), "alpha must lie between 0 and 1"),
        ((1, 4, "0.1"), "alpha must lie between 0 and 1"),
    ],
)
def test_the_bound_refuses_what_is_no_count(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probability_bound(*arguments)


# --- the guarantee, on a model whose exact radius is known


def test_the_radius_exceeds_the_exact_one_no_more_often_than_alpha() -> None:
    """Repeated 600 times for each of three images; each alone must pass, at fixed seeds."""
    model, alpha, repeats = Halves(), 0.1, 600
    smoothed, generator = smooth(model, 0.5), seeded(1)
    for image in images(40)[[1, 2, 3]]:
        exact, truth = model.distance(image[None]), model(image[None]).argmax(1)
        many = image.expand(repeats, *image.shape)
        proven = smoothed.certify(many, n0=20, n=200, alpha=alpha, generator=generator)
        false = (proven.radius > exact) | (
            (proven.prediction != ABSTAIN) & (proven.prediction != truth)
        )
        assert binomtest(int(false.sum()), repeats, alpha, alternative="greater").pvalue > 0.01
        # nor is it far below: a bound at this alpha is wrong in some of 600 cases
        assert bool(false.any())


def test_many_samples_come_close_to_the_exact_radius() -> None:
    model = Halves()
    x = images(40)
    x = x[(model.distance(x) > 0.1) & (model.distance(x) < 0.8)][:8]
    smoothed = smooth(model, 0.5)
    few, many = (
        smoothed.certify(x, n=n, batch_size=20_000, generator=seeded()) for n in (200, 100_000)
    )
    exact = model.distance(x)
    assert bool((many.radius <= exact).all())
    assert bool((many.radius > exact - 0.03).all())
    assert bool((few.radius < many.radius).all())
    assert torch.equal(many.prediction, model(x).argmax(1))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), sigma=st.sampled_from([0.1, 0.5, 2.0]))
def test_radius_bound_and_answer_fit_together(seed: int, sigma: float) -> None:
    x = images(4, seed)
    proven = smooth(Halves(seed=seed), sigma).certify(x, n0=10, n=100, generator=seeded(seed))
    quantile = torch.from_numpy(norm.ppf(proven.lower.numpy()))
    abstains = proven.prediction == ABSTAIN
    assert torch.equal(abstains, proven.lower <= 0.5)
    assert torch.equal(abstains, proven.radius == 0)
    assert torch.allclose(proven.radius[~abstains], (sigma * quantile)[~abstains])
    most = sigma * norm.ppf(0.001 ** (1 / 100))
    assert float(proven.radius.max()) <= most + 1e-9


def test_predict_answers_wrongly_no_more_often_than_alpha_and_abstains_on_the_border() -> None:
    model = Halves()
    w = model.w.detach().view(1, 3, 2, 2)
    middle = torch.full((1, 3, 2, 2), 0.5)  # on the border, but for rounding
    near = middle + 0.02 * w / w.norm()  # class 1, with a probability a little above 1/2
    smoothed, alpha = smooth(model, 0.5), 0.1
    many = near.expand(800, -1, -1, -1)
    said = smoothed.predict(many, n=100, alpha=alpha, generator=seeded())
    assert binomtest(int((said == 0).sum()), 800, alpha, alternative="greater").pvalue > 0.01
    assert int((said == ABSTAIN).sum()) > 400
    assert smoothed.predict(middle, n=2000, generator=seeded()).item() == ABSTAIN
    far = middle + 0.4 * w / w.norm()
    assert smoothed.predict(far, n=2000, generator=seeded()).item() == 1
    assert smoothed.predict(far, n=5, generator=seeded()).item() == ABSTAIN  # five of five: luck


def test_one_sample_for_both_would_break_the_guarantee() -> None:
    """Why there are two: with K equal classes the luckiest looks better than 1/2 in one sample."""

    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = 1e6 * x.flatten(1)[:, :1]  # the sign of one noisy pixel
            return torch.cat([z, -z], 1)

    smoothed, alpha = smooth(Coin(), 1.0), 0.05
    x = torch.zeros(1000, 1, 1, 1)
    counts = smoothed._votes(x, 30, 1000, seeded())
    naive = probability_bound(counts.amax(1), 30, alpha) > 0.5
    assert binomtest(int(naive.sum()), 1000, alpha, alternative="greater").pvalue < 0.01
    proven = smoothed.certify(x, n0=30, n=30, alpha=alpha, generator=seeded(1))
    said = int((proven.prediction != ABSTAIN).sum())
    assert binomtest(said, 1000, alpha, alternative="greater").pvalue > 0.01


def test_certificate_and_attack_do_not_cross_on_a_trained_network() -> None:
    digits = data.mnist()
    model = models.fresh(models.Net, seeded())
    training.fit(
        model, digits.x_train[:1500], digits.y_train[:1500], epochs=6, lr=2e-3, progress=False,
        generator=seeded(), **repair.noise_training(0.5, generator=seeded(1)),
    )  # fmt: skip
    smoothed = smooth(model.eval(), 0.5)
    x, y = digits.x_test[:20], digits.y_test[:20]
    proven = smoothed.certify(x, n=2000, generator=seeded(2))
    right = proven.prediction == y
    assert int(right.sum()) >= 15
    x, y, radius = x[right], y[right], proven.radius[right].float()
    stand_in = smoothed.surrogate(x, draws=16, generator=seeded(3))
    broken = {}
    for name, eps in (("inside", radius), ("far outside", 6 * radius)):
        adv = pgd(stand_in, x, y, eps=eps, norm="l2", steps=20, generator=seeded(4))
        said = smoothed.predict(adv, n=1000, generator=seeded(5))
        broken[name] = int(((said != y) & (said != ABSTAIN)).sum())
    assert broken["inside"] == 0
    assert broken["far outside"] >= len(y) / 2


def test_certified_accuracy_counts_what_is_right_and_proven() -> None:
    proven = Certificate(
        torch.tensor([0, 1, ABSTAIN, 1]),
        torch.tensor([0.5, 0.2, 0.0, 0.7], dtype=torch.float64),
        torch.tensor([0.9, 0.8, 0.4, 0.95], dtype=torch.float64),
    )
    y = torch.tensor([0, 1, 1, 0])
    assert [proven.accuracy(y, r).hits for r in (0.0, 0.2, 0.4, 0.5, 0.6)] == [2, 1, 1, 0, 0]
    assert proven.accuracy(y).n == 4


# --- manners


def test_the_same_generator_gives_the_same_answer_and_nobody_else_s_is_touched() -> None:
    smoothed, x = smooth(Halves(), 0.5), images(3)
    state = torch.get_rng_state()
    one, two, other = (smoothed.certify(x, n=500, generator=seeded(s)) for s in (0, 0, 1))
    stand_in = smoothed.surrogate(x, generator=seeded())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.radius, two.radius)
    assert not torch.equal(one.radius, other.radius)
    assert torch.equal(stand_in(x), stand_in(x))


def test_the_model_is_in_eval_mode_meanwhile_and_comes_back_as_it_was() -> None:
    seen = []

    class Watching(Halves):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.training)
            return super().forward(self.norm(x))

    model = Watching().train()
    model.norm.eval()
    before = model.norm.running_mean.clone()
    smooth(model, 0.5).certify(images(2), n=50, generator=seeded())
    assert seen
    assert not any(seen)
    assert model.training
    assert not model.norm.training
    assert torch.equal(before, model.norm.running_mean)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_noise_has_its_sigma_and_is_not_clipped() -> None:
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return x.flatten(1)[:, :2]

    smooth(model, 0.7).predict(torch.full((1, 3, 8, 8), 0.5), n=500, generator=seeded())
    x = torch.cat(seen)
    assert len(x) == 500
    assert x.std().item() == pytest.approx(0.7, rel=0.02)
    assert float(x.min()) < -1
    method = repair.noise_training(0.7, generator=seeded())
    made = method["perturb"](nn.Identity(), torch.full((400, 3, 8, 8), 0.5), torch.zeros(400), 0.0)
    assert made.std().item() == pytest.approx(0.7, rel=0.02)
    assert made.mean().item() == pytest.approx(0.5, abs=0.01)
    turned = repair.noise_training(0.1, augment=lambda model, x, y, progress: x + 5)
    assert turned["perturb"](nn.Identity(), x, torch.zeros(500), 0.0).mean().item() > 5


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_hold_all_copies(batch_size: int) -> None:
    sizes = []

    def model(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.flatten(1)[:, :2]

    smooth(model, 0.5).predict(images(2), n=20, batch_size=batch_size, generator=seeded())
    assert sum(sizes) == 40
    assert max(sizes) <= batch_size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_callable_precision_layout_and_batch(dtype: torch.dtype) -> None:
    model = Halves().to(dtype)
    x = images(3).to(dtype).to(memory_format=torch.channels_last)
    for base in (model, lambda x: model(x)):
        smoothed = smooth(base, 0.5)
        proven = smoothed.certify(x, n=100, generator=seeded())
        assert proven.radius.dtype == torch.float64
        assert smoothed.certify(x[:1], n=100, generator=seeded()).radius.shape == (1,)
        assert smoothed.certify(x[:0], n=100).prediction.shape == (0,)
        assert smoothed.predict(x[:0]).shape == (0,)
        assert smoothed.surrogate(x, generator=seeded())(x).shape == (3, 2)


def test_the_surrogate_is_the_mean_probability_and_has_its_gradient() -> None:
    model, x = Halves(), images(3).requires_grad_()
    stand_in = smooth(model, 0.5).surrogate(x, draws=5, generator=seeded())
    noise = 0.5 * torch.randn(5, 3, 2, 2, generator=seeded())
    wanted = torch.stack([model(x + one).softmax(1) for one in noise]).mean(0).log()
    assert torch.allclose(stand_in(x), wanted, atol=1e-6)
    (a,), (b,) = (torch.autograd.grad(z[:, 0].sum(), x) for z in (stand_in(x), wanted))
    assert torch.allclose(a, b, atol=1e-6)
    assert list(stand_in.parameters())


@pytest.mark.parametrize("device", ["meta", "fake cuda"])
def test_every_tensor_is_made_on_the_images_device(device: str) -> None:
    def run(where: str) -> None:
        with torch.device(where):
            model = models.Net()
        x = torch.rand(2, 1, 28, 28, device=where)
        smoothed = smooth(model, 0.5)
        assert smoothed.predict(x, n=10).device.type == where
        assert all(part.device.type == where for part in smoothed.certify(x, n=10, n0=5))
        assert smoothed.surrogate(x)(x).device.type == where

    if device == "meta":
        run("meta")
    else:
        with FakeTensorMode():
            run("cuda")


def certify(model: object = None, x: object = None, **options: object) -> Callable[[], object]:
    base = Halves() if model is None else model
    given = images(2) if x is None else x
    sigma = options.pop("sigma", 0.5)
    return lambda: smooth(base, sigma).certify(given, **({"n": 10} | options))


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (certify(sigma=0.0), ValueError, "sigma must be a positive number, got 0.0"),
        (certify(sigma=-1), ValueError, "sigma must be a positive number"),
        (certify(sigma=math.inf), ValueError, "sigma must be a positive number"),
        (certify(sigma="1"), ValueError, "sigma must be a positive number"),
        (certify(alpha=0), ValueError, "alpha must lie between 0 and 1"),
        (certify(n=0), ValueError, "n must be a whole number"),
        (certify(n0=1.5), ValueError, "n must be a whole number"),
        (certify(batch_size=0), ValueError, "batch_size must be a whole number"),
        (certify(model=3), TypeError, "model must be callable"),
        (certify(x=images(2) * 255), ValueError, "divide by 255"),
        (certify(x=images(2) - 1), ValueError, r"x must lie in \[0, 1\]"),
        (certify(x="x"), TypeError, "x must be a torch.Tensor"),
        (certify(model=lambda x: (x.flatten(1), 0)), TypeError, "must return a tensor of logits"),
        (certify(model=lambda x: x), ValueError, r"logits of shape \(100, K\)"),
        (certify(model=lambda x: x.flatten(1)[:, :1]), ValueError, "K >= 2"),
        (certify(model=lambda x: x.flatten(1) * torch.nan), ValueError, "NaN logits"),
    ],
)
def test_bad_input_is_named(
    ask: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask()


def test_noise_training_and_the_surrogate_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match="sigma must be a positive number"):
        repair.noise_training(0)
    with pytest.raises(ValueError, match="draws must be a whole number"):
        smooth(Halves(), 0.5).surrogate(images(1), draws=0)
