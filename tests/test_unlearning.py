"""Unlearning: what sharding forgets exactly, what one Newton step forgets nearly, and how that is tested."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks.membership import Shadows, lira, shadows, trials
from modelsec.models import fresh
from modelsec.repair import Sharded, ascend, fit_head, newton_forget
from modelsec.threat import card
from modelsec.training import evaluate, fit

CLASSES = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(n: int, seed: int = 0, width: int = 6, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Three overlapping clouds, in [0, 1]."""
    generator = seeded(seed)
    y = torch.arange(n) % CLASSES
    centre = torch.eye(CLASSES, width)[y]
    return torch.sigmoid(centre + noise * torch.randn(n, width, generator=generator)), y


def network(width: int = 6, hidden: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def train(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Module:
    model = fresh(network, generator)
    fit(model, x, y, epochs=2, batch_size=8, generator=generator, progress=False)
    return model.eval()


def same(a: Sharded, b: Sharded) -> bool:
    if [m is None for m in a.models] != [m is None for m in b.models]:
        return False
    states = [[m.state_dict() for m in each.models if isinstance(m, nn.Module)] for each in (a, b)]
    return all(torch.equal(p[key], q[key]) for p, q in zip(*states, strict=True) for key in p)


# Exactly, by sharding


@given(
    n=st.integers(3, 40),
    shards=st.integers(1, 5),
    seed=st.integers(0, 99),
    drawn=st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True),
)
@settings(max_examples=15, deadline=None)
def test_after_forgetting_it_is_the_model_that_never_saw_them(
    n: int, shards: int, seed: int, drawn: list[int]
) -> None:
    x, y = samples(n, seed)
    gone = torch.tensor([i for i in drawn if i < n][: n - 1] or [0])
    forgetful, ignorant = (Sharded(train, shards=shards, generator=seeded(seed)) for _ in range(2))
    forgetful.fit(x, y)
    half = len(gone) // 2
    for part in (gone[:half], gone[half:]):  # in two requests
        forgetful.forget(part)
    ignorant.fit(x, y, without=gone)
    assert same(forgetful, ignorant)
    assert torch.equal(forgetful.predict(x), ignorant.predict(x))


def test_only_the_shards_concerned_are_trained_again() -> None:
    x, y = samples(60)
    model = Sharded(train, shards=4, generator=seeded()).fit(x, y)
    assert model.trained_on == 60
    before = list(model.models)
    cost = model.forget(torch.tensor([7]))
    changed = [a is not b for a, b in zip(before, model.models, strict=True)]
    assert sum(changed) == 1
    assert 0 < cost < 40
    assert model.trained_on == 60 + cost
    alone = Sharded(train, shards=1, generator=seeded()).fit(x, y)
    assert alone.forget(torch.tensor([7])) == 59


def test_it_did_learn_them_before_and_their_copies_are_gone() -> None:
    x, y = samples(30)
    x[4] = 0.123456
    model = Sharded(train, shards=2, generator=seeded()).fit(x, y)
    ignorant = Sharded(train, shards=2, generator=seeded()).fit(x, y, without=torch.tensor([4]))
    assert not same(model, ignorant)
    assert (model._x == 0.123456).any()
    model.forget(torch.tensor([4]))
    assert not (model._x == 0.123456).any()
    assert len(model._x) == len(model._y) == 29
    assert (x[4] == 0.123456).all()  # the caller's own tensor is not touched


def test_a_sample_s_shard_does_not_depend_on_the_others() -> None:
    """Otherwise a partition would tell that somebody is missing."""
    x, y = samples(50)
    few, many = (Sharded(train, shards=4, generator=seeded(3)).fit(x[:n], y[:n]) for n in (20, 50))
    assert torch.equal(few._shard, many._shard[:20])
    sizes = torch.bincount(many._shard, minlength=4)
    assert sizes.min() > 0


def test_it_answers_like_a_model() -> None:
    x, y = samples(240)
    model = Sharded(train, shards=3, generator=seeded()).fit(x, y)
    votes = torch.stack([m(x).softmax(1) for m in model.models if m is not None]).mean(0)
    assert torch.allclose(model.predict(x), votes)
    assert torch.allclose(model.predict(x).sum(1), torch.ones(240), atol=1e-5)
    assert torch.allclose(model(x).softmax(1), model.predict(x), atol=1e-5)
    assert evaluate(model, x, y).n == 240
    assert model.predict(x[:0]).shape == (0, CLASSES)


def test_an_empty_shard_has_no_vote() -> None:
    x, y = samples(2)
    model = Sharded(train, shards=6, generator=seeded()).fit(x, y)
    assert sum(m is None for m in model.models) >= 4
    assert model.predict(x).shape == (2, CLASSES)
    model.forget(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no shard has a model"):
        model.predict(x)


def test_global_generators_are_left_alone_and_a_seed_decides() -> None:
    x, y = samples(30)
    with global_generators_untouched():
        a, b, c = (Sharded(train, shards=2, generator=seeded(s)).fit(x, y) for s in (1, 1, 2))
        a.forget(torch.tensor([3]))
        b.forget(torch.tensor([3]))
    assert same(a, b)
    assert not same(a, c)


def test_bad_requests_are_named() -> None:
    x, y = samples(10)
    with pytest.raises(ValueError, match="shards must be 1 or more"):
        Sharded(train, shards=0)
    model = Sharded(train, shards=2, generator=seeded())
    with pytest.raises(ValueError, match="call fit first"):
        model.forget(torch.tensor([0]))
    with pytest.raises(ValueError, match="y must have shape"):
        model.fit(x, y[:-1])
    model.fit(x, y)
    for wrong in (torch.tensor([10]), torch.tensor([-1]), torch.tensor(3)):
        with pytest.raises(ValueError, match="places of samples still there"):
            model.forget(wrong)
    model.forget(torch.tensor([2]))
    with pytest.raises(ValueError, match="places of samples still there"):
        model.forget(torch.tensor([2]))
    assert model.forget(torch.tensor([], dtype=torch.long)) == 0


# Nearly, by one Newton step


def features_of(width: int, wide: int = 20) -> nn.Module:
    """Features that saw no sample, and an untrained head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(width, wide), nn.Tanh(), nn.Linear(wide, CLASSES))


def head_gradient(model: nn.Module, x: Tensor, y: Tensor, l2: float) -> Tensor:
    model = copy.deepcopy(model).double()
    risk = F.cross_entropy(model(x.double()), y, reduction="sum")
    size = sum(p.square().sum() for p in model[-1].parameters())
    gradient = torch.autograd.grad(risk + l2 / 2 * size, list(model[-1].parameters()))
    return torch.cat([g.flatten() for g in gradient])


@pytest.mark.parametrize("l2", [0.01, 1.0, 30.0])
def test_the_head_is_at_its_optimum(l2: float) -> None:
    x, y = samples(90)
    base = features_of(6)
    model = fit_head(base, x, y, l2=l2)
    assert head_gradient(model, x, y, l2).norm() < 1e-4  # its weights are float32
    assert torch.equal(model[0].weight, base[0].weight)
    assert not torch.equal(model[2].weight, base[2].weight)


def test_scikit_learn_finds_the_same_head() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = samples(120)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES, bias=False))
    model = fit_head(flat, x, y, l2=0.5)
    peer = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=5000).fit(
        x.double(), y
    )
    assert torch.allclose(model[1].weight.double(), torch.from_numpy(peer.coef_), atol=1e-4)


def test_one_step_goes_most_of_the_way_to_retraining() -> None:
    x, y = samples(200)
    full = fit_head(features_of(6), x, y)
    retrained = fit_head(features_of(6), x[10:], y[10:])
    forgot = newton_forget(full, x[10:], y[10:])
    far = (full[2].weight - retrained[2].weight).norm()
    near = (forgot[2].weight - retrained[2].weight).norm()
    assert near < 0.05 * far
    # the error is of second order: twice as many forgotten, about four times the error
    more = newton_forget(full, x[20:], y[20:])
    again = fit_head(features_of(6), x[20:], y[20:])
    assert (more[2].weight - again[2].weight).norm() > 2 * near
    # nothing to forget: nothing happens
    still = newton_forget(full, x, y)
    assert torch.allclose(still[2].weight, full[2].weight, atol=1e-5)


@pytest.mark.parametrize("what", ["fit_head", "newton_forget", "ascend"])
def test_the_given_model_is_left_as_it_was(what: str) -> None:
    x, y = samples(40)
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    with global_generators_untouched():
        if what == "ascend":
            made = ascend(model, (x[:5], y[:5]), (x[5:], y[5:]), steps=3, generator=seeded())
        else:
            made = {"fit_head": fit_head, "newton_forget": newton_forget}[what](model, x, y)
    assert made is not model
    assert model.training
    assert not made.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_double_precision_stays() -> None:
    x, y = samples(40)
    made = fit_head(features_of(6).double(), x.double(), y)
    assert made[2].weight.dtype == torch.float64
    assert head_gradient(made, x, y, 1.0).norm() < 1e-8


def test_bad_settings_are_named() -> None:
    x, y = samples(10)
    with pytest.raises(ValueError, match="l2 must be above 0"):
        fit_head(network(), x, y, l2=0)
    with pytest.raises(ValueError, match="y must have shape"):
        newton_forget(network(), x, y[:-1])
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        fit_head(nn.Flatten(), x, y)
    with pytest.raises(ValueError, match="at least one input"):
        fit_head(network(), x[:0], y[:0])
    with pytest.raises(ValueError, match="noise must be 0 or more"):
        fit_head(network(), x, y, noise=-1)
    for options in ({"steps": 0}, {"weight": -1.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="ascend needs"):
            ascend(network(), (x, y), (x, y), **options)
    with pytest.raises(ValueError, match="ascend needs"):
        ascend(network(), (x[:0], y[:0]), (x, y))


def test_ascent_makes_it_bad_at_what_it_should_forget() -> None:
    x, y = samples(90)
    model = train(x, y, seeded())
    fit(model, x, y, epochs=60, generator=seeded(), progress=False)
    forget, keep = (x[:15], y[:15]), (x[15:], y[15:])
    made = ascend(model, forget, keep, steps=200, lr=1e-2, until=0.2, generator=seeded())
    assert evaluate(made, *forget).value <= 0.2 < evaluate(model, *forget).value
    tuned = ascend(model, forget, keep, weight=0, steps=20, generator=seeded())
    assert evaluate(tuned, *forget).value > 0.5


# Has it forgotten? A game: half of the candidates were in training and then forgotten, the others never were. The
# attacker knows all samples that are kept, and which shadow forgot what.

KNOWN, CANDIDATES = samples(60, seed=1, noise=1.5), samples(20, seed=2, noise=1.5)
L2, NOISE = 0.5, 0.05
Forget = Callable[[nn.Module, Tensor, Tensor, torch.Generator], nn.Module]


def game(
    forget: Forget, count: int = 32, wide: int = 20, l2: float = L2
) -> tuple[float, float, float, float]:
    """LiRA's AUC and its 95% interval over the targets, and the accuracy on what was forgotten."""
    right = []

    def train_and_forget(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Module:
        both = torch.cat([KNOWN[0], x]), torch.cat([KNOWN[1], y])
        made = forget(fit_head(features_of(6, wide), *both, l2=l2), x, y, generator)
        right.append(evaluate(made, x, y).value)
        return made

    found: Shadows = shadows(train_and_forget, *CANDIDATES, count=count, generator=seeded(5))
    leaks = trials(partial(lira, online=True), found, *CANDIDATES)
    auc = torch.tensor([leak.auc for leak in leaks])
    # a model and its twin are no independent draws: half of the models count
    half = 2.13 * float(auc.std()) / (count / 2) ** 0.5
    mean = float(auc.mean())
    return mean, mean - half, mean + half, sum(right) / len(right)


def noisy(model: nn.Module, generator: torch.Generator) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model[2].parameters():
            p += NOISE * torch.randn(p.shape, generator=generator)
    return model


def test_without_forgetting_lira_sees_them_noise_or_not() -> None:
    assert game(lambda model, *_: model)[1] > 0.7
    assert game(lambda model, x, y, g: noisy(model, g))[1] > 0.6


def test_lira_cannot_tell_the_newton_step_with_noise_from_never_seen() -> None:
    def retrain(model: nn.Module, x: Tensor, y: Tensor, g: torch.Generator) -> nn.Module:
        return fit_head(features_of(6), *KNOWN, l2=L2, noise=NOISE, generator=g)

    def step(model: nn.Module, x: Tensor, y: Tensor, g: torch.Generator) -> nn.Module:
        return newton_forget(model, *KNOWN, l2=L2, noise=NOISE, generator=g)

    auc, low, high, _ = game(step)
    other, below, above, _ = game(retrain)  # the yardstick
    assert low <= 0.5 <= high
    assert below <= 0.5 <= above
    assert abs(auc - other) <= (high - low) / 2 + (above - below) / 2


def test_without_noise_the_newton_step_is_seen() -> None:
    """Nothing hides the error of the step, however small: the attacker knows all else."""
    assert game(lambda model, *_: newton_forget(model, *KNOWN, l2=L2))[1] > 0.55


def test_ascent_that_looks_forgotten_is_seen() -> None:
    """The accuracy on the forgotten is no better than on the never seen; LiRA tells them apart."""
    wide, l2 = 100, 0.01  # room to remember
    never = evaluate(fit_head(features_of(6, wide), *KNOWN, l2=l2), *CANDIDATES).value

    def push(model: nn.Module, x: Tensor, y: Tensor, g: torch.Generator) -> nn.Module:
        return ascend(model, (x, y), KNOWN, steps=100, lr=0.1, until=never, generator=g)

    _, low, _, right = game(push, wide=wide, l2=l2)
    assert right <= never
    assert low > 0.58


@pytest.mark.parametrize("repair", [Sharded, newton_forget, ascend])
def test_the_cards(repair: Callable[..., object]) -> None:
    assert card(repair).goal == "repair"
