"""Adversarial training: what each method shows the model, what it learns from it, when it stops."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec import repair
from modelsec.attacks import fgsm, pgd
from modelsec.data import mnist
from modelsec.losses import cross_entropy
from modelsec.repair import BestEpoch, decay, fast, free, mart, pgd_training, ramp, trades
from modelsec.repair.adversarial_training import mart_loss, trades_loss
from modelsec.threat import card
from modelsec.training import History, evaluate, fit
from modelsec.zoo import load_model

METHODS: dict[str, Callable[..., Any]] = {
    "pgd_training": partial(pgd_training, steps=3),
    "trades": partial(trades, steps=3),
    "mart": partial(mart, steps=3),
    "fast": fast,
    "free": lambda generator=None, **options: free(**options),
}
each = pytest.mark.parametrize("name", METHODS)
drawing = pytest.mark.parametrize("name", sorted(set(METHODS) - {"free"}))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4 * 16, classes))


def batch(n: int = 7, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 6, 6, generator=seeded(seed))
    return torch.where(x < 0.2, 0.0, torch.where(x > 0.8, 1.0, x)), torch.arange(n) % classes


def attacked(name: str, model: Any, x: Tensor, y: Tensor, progress: float = 1.0, **options: Any):
    """The images that a method shows the model: the last group of them."""
    shown = METHODS[name](**options)["perturb"](model, x, y, progress)
    assert len(shown) in (len(x), 2 * len(x))
    if len(shown) > len(x):
        assert torch.equal(shown[: len(x)], x)  # the clean ones come first
    return shown[-len(x) :].detach() if len(x) else shown.detach()


# --- what every method keeps -----------------------------------------------------------------------


@each
@settings(max_examples=12, deadline=None)
@given(
    eps=st.floats(0, 0.5),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_images_stay_in_the_ball_and_the_box(
    name: str, eps: float, seed: int, dtype: torch.dtype
) -> None:
    x, y = batch(seed=seed)
    x, model = x.to(dtype), network(seed).to(dtype)
    adv = attacked(name, model, x, y, eps=eps, generator=seeded(seed))
    assert adv.dtype == dtype
    assert (adv - x).abs().max() <= eps + 1e-6
    assert adv.min() >= 0
    assert adv.max() <= 1


@each
def test_the_model_comes_back_as_it_was(name: str) -> None:
    x, y = batch()
    model = network().train()
    model[1].eval()  # a BatchNorm frozen by hand
    model[4].bias.requires_grad_(False)
    was, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with global_generators_untouched():
        attacked(name, model, x, y, eps=0.2, generator=seeded())
    assert all(
        torch.equal(a, b) for a, b in zip(was.values(), model.state_dict().values(), strict=True)
    )
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert all(p.grad is None for p in model.parameters())


@drawing
def test_the_same_generator_gives_the_same_images(name: str) -> None:
    x, y = batch()
    model = network()
    first, again, other = (
        attacked(name, model, x, y, eps=0.2, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@each
@pytest.mark.parametrize("n", [0, 1])
def test_no_image_and_a_single_one(name: str, n: int) -> None:
    x, y = batch(n)
    assert attacked(name, network().eval(), x, y, eps=0.2, generator=seeded()).shape == x.shape


@each
def test_two_classes_and_a_plain_callable(name: str) -> None:
    x, y = batch(classes=2)
    model = network(classes=2).eval()
    adv = attacked(name, lambda images: model(images), x, y, eps=0.2, generator=seeded())
    assert (adv - x).abs().max() <= 0.2 + 1e-6


@each
def test_a_radius_may_follow_the_progress(name: str) -> None:
    x, y = batch()
    for progress in (0.0, 0.3):
        adv = attacked(
            name, network(), x, y, progress, eps=ramp(0.2, until=0.6), generator=seeded()
        )
        assert (adv - x).abs().max() <= 0.2 * progress / 0.6 + 1e-6


@each
def test_tensors_stay_on_their_device(name: str) -> None:
    x, y = batch()
    shown = METHODS[name](eps=0.2)["perturb"](network().to("meta"), x.to("meta"), y.to("meta"), 0.5)
    assert shown.device.type == "meta"


@each
def test_the_augmented_image_is_the_centre_of_the_ball(name: str) -> None:
    x, y = batch()

    def grey(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        return torch.full_like(x, 0.5)

    shown = METHODS[name](eps=0.1, augment=grey, generator=seeded())["perturb"](network(), x, y, 1)
    assert (shown - 0.5).abs().max() <= 0.1 + 1e-6
    if len(shown) > len(x):
        assert (shown[: len(x)] == 0.5).all()


@each
def test_bad_input_gets_one_clear_error(name: str) -> None:
    x, y = batch()
    method = METHODS[name]
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\].*divide by 255"):
        method(eps=0.1)["perturb"](network(), 255 * x, y, 0)
    for eps in (-0.1, 8.0, math.nan):
        with pytest.raises(ValueError, match="eps"):
            method(eps=eps)["perturb"](network(), x, y, 0)
    with pytest.raises(TypeError, match="augment must return images alone"):
        method(eps=0.1, augment=lambda m, x, y, p: (x, y))["perturb"](network(), x, y, 0)


def test_bad_settings_are_named() -> None:
    for method in (pgd_training, trades, mart):
        with pytest.raises(ValueError, match="steps must be a whole number, 1 or more, got 0"):
            method(eps=0.1, steps=0)
    for method in (pgd_training, trades, mart, fast):
        with pytest.raises(ValueError, match="norm must be one of"):
            method(eps=0.1, norm="l7")
    for method in (trades, mart):
        with pytest.raises(ValueError, match="beta must be finite and 0 or more, got -1"):
            method(eps=0.1, beta=-1)
    with pytest.raises(ValueError, match="step must be finite and 0 or more"):
        fast(eps=0.1, step=math.inf)
    with pytest.raises(ValueError, match="replays must be a whole number, 1 or more, got 0"):
        free(eps=0.1, replays=0)
    for share in (0, 1.5):
        with pytest.raises(ValueError, match="until must be a share"):
            ramp(0.1, until=share)
        with pytest.raises(ValueError, match="over must be a share"):
            decay(0.1, over=share)


def test_every_method_has_a_card() -> None:
    for method in (pgd_training, trades, mart, fast, free):
        found = card(method)
        assert (found.goal, found.stage) == ("repair", "training")
        assert found.source.startswith("https://")
    assert set(repair.__all__) >= {"pgd_training", "trades", "mart", "free", "fast"}


# --- schedules -------------------------------------------------------------------------------------


def test_the_radius_grows_then_stays() -> None:
    radius = ramp(0.3, until=0.5)
    assert [radius(p) for p in (0, 0.25, 0.5, 0.9)] == pytest.approx([0, 0.15, 0.3, 0.3])


def test_the_rate_stays_then_falls() -> None:
    rate = decay(0.1, over=0.5, floor=0.1)
    assert [rate(p) for p in (0, 0.4, 0.75, 1)] == pytest.approx([0.1, 0.1, 0.06, 0.01])


# --- losses ----------------------------------------------------------------------------------------


def test_the_trades_loss_is_what_its_formula_says() -> None:
    clean, other = (3 * torch.randn(9, 4, generator=seeded(i)).double() for i in (0, 1))
    y = torch.arange(9) % 4
    p, q = clean.softmax(1), other.softmax(1)
    divergence = (p * (p / q).log()).sum(1)
    wanted = -p[torch.arange(9), y].log() + 2.5 * divergence
    assert torch.allclose(trades_loss(clean, other, y, 2.5), wanted)
    assert torch.allclose(trades_loss(clean, clean, y, 9.0), cross_entropy(clean, y))
    assert trades_loss(1000 * clean, 1000 * other, y).isfinite().all()


def test_the_mart_loss_is_what_its_formula_says() -> None:
    clean, other = (3 * torch.randn(9, 4, generator=seeded(i)).double() for i in (0, 1))
    y = torch.arange(9) % 4
    p, q = clean.softmax(1), other.softmax(1)
    rows, rivals = torch.arange(9), q.scatter(1, y[:, None], 0).amax(1)
    wanted = (
        -q[rows, y].log() - (1 - rivals).log()
        + 2.5 * (p * (p / q).log()).sum(1) * (1 - p[rows, y])
    )  # fmt: skip
    assert torch.allclose(mart_loss(clean, other, y, 2.5), wanted)
    assert mart_loss(100 * clean, 100 * other, y).isfinite().all()


# --- one method after the other ---------------------------------------------------------------------


def by_hand(
    model: nn.Module, x: Tensor, y: Tensor, epochs: int, generator: torch.Generator
) -> None:
    """The loop of the chapter."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            adv = pgd(
                model, x[rows], y[rows], eps=0.1, steps=3, early_stop=False, generator=generator
            )
            loss = F.cross_entropy(model(adv), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_pgd_training_is_the_loop_written_out() -> None:
    digits = mnist()
    x, y = digits.x_train[:160], digits.y_train[:160]
    ours, loop = load_model("net").train(), load_model("net").train()
    drawn = seeded(3)
    fit(
        ours, x, y, epochs=2, generator=drawn, progress=False,
        **pgd_training(eps=0.1, steps=3, generator=drawn),
    )  # fmt: skip
    by_hand(loop, x, y, 2, seeded(3))
    pairs = zip(ours.state_dict().values(), loop.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_pgd_training_trains_on_the_worst_point() -> None:
    digits = mnist()
    x, y = digits.x_test[:50], digits.y_test[:50]
    model = load_model("net")
    adv = attacked("pgd_training", model, x, y, eps=0.1, generator=seeded())
    noise = (x + 0.1 * (2 * torch.rand(x.shape, generator=seeded()) - 1)).clamp(0, 1)
    with torch.no_grad():
        worst, random = (cross_entropy(model(images), y) for images in (adv, noise))
    assert (worst > random).float().mean() > 0.95


def test_trades_looks_for_another_answer_whatever_the_label() -> None:
    digits = mnist()
    x, y = digits.x_test[:50], digits.y_test[:50]
    model = load_model("net")
    adv, same = (
        attacked("trades", model, x, labels, eps=0.1, generator=seeded()) for labels in (y, 0 * y)
    )
    assert torch.equal(adv, same)
    noise = (x + 0.1 * (2 * torch.rand(x.shape, generator=seeded()) - 1)).clamp(0, 1)
    with torch.no_grad():
        clean = model(x)
        gaps = [
            trades_loss(clean, model(images), y, 1.0) - cross_entropy(clean, y)
            for images in (adv, noise)
        ]
    assert (gaps[0] > gaps[1]).float().mean() > 0.9


def test_a_weight_of_zero_makes_trades_ordinary_training() -> None:
    digits = mnist()
    x, y = digits.x_train[:128], digits.y_train[:128]
    plain, other = load_model("net").train(), load_model("net").train()
    fit(plain, x, y, epochs=1, generator=seeded(), progress=False)
    options = trades(eps=0.1, beta=0, steps=1, generator=seeded(1))
    fit(other, x, y, epochs=1, generator=seeded(), progress=False, **options)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("clip", [True, False])
def test_fast_is_one_step_from_a_random_start(clip: bool) -> None:
    x, y = batch()
    model = network().eval()
    options = {"start": 0.5, "step": 0.8, "clip": clip}
    adv = attacked("fast", model, x, y, eps=0.2, generator=seeded(4), **options)
    start = (x + 0.1 * (2 * torch.rand(x.shape, generator=seeded(4)) - 1)).clamp(0, 1)
    leaf = start.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    wanted = start + 0.16 * g.sign()
    if clip:
        wanted = wanted.clamp(x - 0.2, x + 0.2)
    assert torch.allclose(adv, wanted.clamp(0, 1), atol=1e-6)
    assert ((adv - x).abs().max() > 0.2 + 1e-3) != clip


def free_by_hand(model: nn.Module, x: Tensor, y: Tensor, eps: float, replays: int) -> None:
    """Algorithm 1 of the paper."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    delta = torch.zeros(64, *x.shape[1:])
    generator = seeded(5)
    for rows in torch.randperm(len(x), generator=generator).split(64):
        for _ in range(replays):
            n = len(rows)
            shown = (x[rows] + delta[:n]).clamp(0, 1).requires_grad_()
            optimizer.zero_grad()
            F.cross_entropy(model(shown), y[rows]).backward()
            optimizer.step()
            delta[:n] = (delta[:n] + eps * shown.grad.sign()).clamp(-eps, eps)


def test_free_moves_weights_and_pixels_with_one_backward_pass() -> None:
    digits = mnist()
    x, y = digits.x_train[:150], digits.y_train[:150]  # the last batch is a short one
    ours, hand = load_model("net").train(), load_model("net").train()
    passes: list[int] = []
    ours.register_forward_hook(lambda model, inputs, output: passes.append(len(output)))
    fit(ours, x, y, epochs=1, generator=seeded(5), progress=False, **free(eps=0.1, replays=4))
    assert sum(passes) == 4 * 150  # no pass but those of training
    free_by_hand(hand, x, y, 0.1, 4)
    pairs = zip(ours.state_dict().values(), hand.state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_free_augments_once_a_batch() -> None:
    x, y = batch()
    calls: list[float] = []

    def count(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        calls.append(progress)
        return x

    perturb = free(eps=0.1, replays=3, augment=count)["perturb"]
    for step in range(7):
        perturb(network(), x, y, step / 7)
    assert calls == [0, 3 / 7, 6 / 7]


# --- early stopping --------------------------------------------------------------------------------


class Answers(nn.Module):
    """A model that is right on as many of ten images as its only weight says."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        hit = torch.arange(len(x)) < self.right
        return torch.stack([hit.float(), 1 - hit.float()], 1)


def played(rights: list[int], patience: int | None) -> tuple[BestEpoch, Answers, int]:
    x, y = torch.rand(10, 1, generator=seeded()), torch.zeros(10, dtype=torch.long)
    seen: list[int] = []

    def attack(model: Any, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    best, model = BestEpoch(x, y, attack, patience), Answers()
    for epoch, right in enumerate(rights):
        model.right.data.fill_(right)
        if best(model, History()):
            return best, model, epoch
    assert len(seen) == len(rights)
    return best, model, len(rights) - 1


@pytest.mark.parametrize(
    ("rights", "patience", "best", "last"),
    [
        ([1, 5, 4, 3, 9], 2, 1, 3),
        ([1, 5, 4, 3, 9], None, 4, 4),
        ([4, 4, 4, 4], 3, 0, 3),
        ([1, 2, 3], 1, 2, 2),
        ([0, 0], 1, 0, 1),
    ],
)
def test_the_best_epoch_is_kept_and_patience_ends(
    rights: list[int], patience: int | None, best: int, last: int
) -> None:
    stopping, model, ended = played(rights, patience)
    assert (stopping.epoch, ended) == (best, last)
    assert [share.hits for share in stopping.accuracy] == rights[: last + 1]
    stopping.restore(model)
    assert model.right.item() == rights[best]


def test_nothing_can_be_restored_before_the_first_epoch() -> None:
    x, y = batch()
    with pytest.raises(ValueError, match="no epoch has been seen yet"):
        BestEpoch(x, y, partial(fgsm, eps=0.1)).restore(network())
    with pytest.raises(ValueError, match="patience"):
        BestEpoch(x, y, partial(fgsm, eps=0.1), patience=0)


# --- what fit learned for it -----------------------------------------------------------------------


def test_replays_show_each_batch_several_times_in_a_row() -> None:
    x, y = batch(12)
    seen: list[tuple[Tensor, float]] = []

    def look(model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        seen.append((images, progress))
        return images

    history = fit(
        network(), x, y, epochs=2, batch_size=4, replays=3, perturb=look, generator=seeded(),
        progress=False,
    )  # fmt: skip
    assert len(seen) == 18
    for start in range(0, 18, 3):
        assert all(torch.equal(seen[start][0], seen[start + i][0]) for i in (1, 2))
    assert not torch.equal(seen[0][0], seen[3][0])
    assert [progress for _, progress in seen] == pytest.approx([step / 18 for step in range(18)])
    assert all(0 <= share <= 1 for share in history.accuracy)
    with pytest.raises(ValueError, match="replays must be 1 or more"):
        fit(network(), x, y, replays=0, progress=False)


def test_replays_change_neither_loss_nor_accuracy_of_a_model_that_stands_still() -> None:
    x, y = batch(10)
    results = []
    for replays in (1, 3):
        history = fit(
            network().eval(), x, y, epochs=1, batch_size=4, replays=replays, lr=0.0,
            generator=seeded(), progress=False,
        )  # fmt: skip
        results.append((history.loss[0], history.accuracy[0]))
    assert results[0] == pytest.approx(results[1])


def test_after_epoch_sees_the_history_and_ends_training() -> None:
    x, y = batch(12)
    told: list[int] = []

    def stop(model: nn.Module, history: History) -> bool:
        told.append(len(history.loss))
        return len(history.loss) == 3

    history = fit(network(), x, y, epochs=9, after_epoch=stop, progress=False)
    assert told == [1, 2, 3]
    assert len(history.loss) == 3
    assert not history.interrupted


def test_accuracy_is_counted_on_the_last_group() -> None:
    x, y = batch(12)
    model = network()

    def twice(model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        return torch.cat([images, torch.zeros_like(images)])

    def on_clean(logits: Tensor, labels: Tensor) -> Tensor:
        assert len(logits) == 2 * len(labels)
        return cross_entropy(logits.chunk(2)[0], labels)

    history = fit(
        model, x, y, epochs=30, lr=0.01, perturb=twice, loss=on_clean, generator=seeded(),
        progress=False,
    )  # fmt: skip
    assert evaluate(model, x, y).value > 0.9
    assert history.accuracy[-1] == pytest.approx(1 / 3, abs=0.01)  # all black: one answer for all


# --- what came of it -------------------------------------------------------------------------------


def left(model: nn.Module, eps: float, attack: Any = pgd, n: int = 200) -> float:
    digits = mnist()
    x, y = digits.x_test[:n], digits.y_test[:n]
    options = {"steps": 20, "generator": seeded()} if attack is pgd else {}
    return evaluate(model, x, y, attack=partial(attack, eps=eps, **options)).value


def test_the_repaired_network_stands_where_the_old_one_fell() -> None:
    assert left(load_model("net"), 0.1) < 0.2
    assert left(load_model("net_robust"), 0.1) > 0.65
    assert evaluate(load_model("net_robust"), mnist().x_test, mnist().y_test).value > 0.93


def test_the_collapsed_network_withstands_one_step_and_falls_to_many() -> None:
    collapsed, healthy = load_model("convnet_fast"), load_model("convnet_trades")
    assert left(collapsed, 0.3, fgsm) > left(collapsed, 0.3) + 0.4
    assert left(healthy, 0.3) > 0.6
    assert left(healthy, 0.3, fgsm) < left(healthy, 0.3) + 0.2
