"""Repairs of a network with a backdoor: what each keeps to, and that it does what its paper says."""

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec import repair
from modelsec.attacks.poisoning import attack_success, badnets, patch
from modelsec.data import mnist
from modelsec.models import Net, fresh
from modelsec.repair.backdoors import (
    activity,
    attention,
    fine_prune,
    fine_tune,
    hidden_layers,
    nad,
    prune,
)
from modelsec.repair.neural_cleanse import unlearn
from modelsec.repair.neuron_pruning import anp, neuron_masks, scaled
from modelsec.threat import card
from modelsec.training import evaluate, fit

Repair = Callable[..., nn.Module]
REPAIRS: dict[str, Repair] = {
    "fine_tune": partial(fine_tune, epochs=2),
    "fine_prune": partial(fine_prune, epochs=2),
    "nad": partial(nad, epochs=2),
    "anp": partial(anp, steps=3),
    "unlearn": lambda model, x, y, **options: unlearn(
        model, x, y, [patch(x.shape[1:], size=2)], **{"epochs": 2} | options
    ),
}
each = pytest.mark.parametrize("name", REPAIRS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(seed: int = 0, norm: bool = True, bias: bool = True) -> nn.Module:
    """A convolutional network for 8x8 images and four classes, with parts frozen by hand."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=bias),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=bias),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(80, 12),
            nn.ReLU(),
            nn.Linear(12, 4),
        )

    return fresh(build, seeded(seed))


def batch(n: int = 24, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 8, 8, generator=seeded(1))
    return x.to(dtype), torch.arange(n) % 4


# --- the contract of every repair ------------------------------------------------------------------


@each
@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 20),
    seed=st.integers(0, 100),
    norm=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_new_model_and_nothing_else_is_changed(
    name: str, n: int, seed: int, norm: bool, bias: bool, dtype: torch.dtype
) -> None:
    model = small(seed, norm, bias).to(dtype).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    x, y = batch(n, dtype)
    kept = copy.deepcopy(model.state_dict()), x.clone(), y.clone()
    modes = [module.training for module in model.modules()]
    with global_generators_untouched():
        repaired = REPAIRS[name](model, x, y, generator=seeded(seed), progress=False)
        again = REPAIRS[name](model, x, y, generator=seeded(seed), progress=False)
    assert all(torch.equal(v, kept[0][k]) for k, v in model.state_dict().items())
    assert torch.equal(x, kept[1])
    assert torch.equal(y, kept[2])
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert (model[3].weight.grad == 1).all()
    assert model[3]._forward_hooks == {}
    assert list(repaired.state_dict()) == list(model.state_dict())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in repaired.state_dict().items())
    assert not any(module.training for module in repaired.modules())
    assert [p.requires_grad for p in repaired.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert all(p.grad is None for p in repaired.parameters()) or name == "anp"
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in repaired.parameters()}
    assert repaired(x).dtype == dtype
    assert repaired(x).isfinite().all()


@each
def test_the_generator_decides_what_is_drawn(name: str) -> None:
    x, y = batch()
    one, two = (REPAIRS[name](small(), x, y, generator=seeded(k), progress=False) for k in (0, 1))
    if name == "anp":  # all units may stay: look at the masks
        masks = [neuron_masks(small(), x, y, steps=3, generator=seeded(k))["0"] for k in (0, 1)]
        assert not torch.equal(*masks)
    else:
        assert not torch.equal(one[8].weight, two[8].weight)


@each
def test_bad_input_gets_one_clear_error(name: str) -> None:
    x, y = batch()
    mend = REPAIRS[name]
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got function"):
        mend(lambda x: x, x, y)
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\].*divide by 255"):
        mend(small(), 255 * x, y)
    with pytest.raises(ValueError, match="pass class indices"):
        mend(small(), x, F.one_hot(y))
    with pytest.raises(ValueError, match="x holds no clean images"):
        mend(small(), x[:0], y[:0])
    with pytest.raises(ValueError, match="move all to one device"):
        mend(small(), x, y.to("meta"))


def test_bad_settings_are_named() -> None:
    x, y = batch()
    model = small()
    with pytest.raises(ValueError, match="max_drop is a share of accuracy, 0 to 1, got 4"):
        fine_prune(model, x, y, max_drop=4)
    with pytest.raises(ValueError, match="beta must be 0 or more, got -1"):
        nad(model, x, y, beta=-1)
    with pytest.raises(ValueError, match="threshold must be from 0 to 1, got 2"):
        anp(model, x, y, threshold=2)
    with pytest.raises(ValueError, match=r"alpha from 0 to 1, got 0\.4 and 3"):
        anp(model, x, y, alpha=3)
    with pytest.raises(ValueError, match="steps must be a whole number, 1 or more, got 0"):
        anp(model, x, y, steps=0)
    with pytest.raises(ValueError, match=r"share of marked images must be from 0 to 1, got 1.5"):
        unlearn(model, x, y, [patch((1, 8, 8))], share=1.5)
    with pytest.raises(ValueError, match=r"layer must be one of .*'0', '3', '6'.*got '8'"):
        fine_prune(model, x, y, layer="8")
    with pytest.raises(ValueError, match="units must be from 0 to 4, got"):
        prune(model, torch.tensor([5]))
    with pytest.raises(ValueError, match="x holds no images"):
        activity(model, x[:0])


def test_a_model_without_what_a_repair_needs_is_refused() -> None:
    x, y = batch()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ValueError, match="nad compares where convolutions look"):
        nad(flat, x, y)
    with pytest.raises(ValueError, match="no hidden layer whose units could be masked"):
        anp(flat, x, y)
    with pytest.raises(ValueError, match="layer must be one of the hidden layers"):
        fine_prune(flat, x, y)


def test_every_repair_has_a_card_and_is_exported() -> None:
    for function in (fine_tune, fine_prune, nad, anp, unlearn, repair.neural_cleanse):
        found = card(function)
        assert (found.goal, found.stage) == ("repair", "training")
        assert found.source.startswith("https://")
        assert function.__name__ in repair.__all__


# --- units ------------------------------------------------------------------------------------------


def test_the_layer_of_the_logits_is_no_hidden_layer() -> None:
    assert list(hidden_layers(small())) == ["0", "3", "6"]
    assert list(hidden_layers(small(), nn.Conv2d)) == ["0", "3"]
    assert list(hidden_layers(Net())) == ["2", "4"]
    headless = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    assert list(hidden_layers(headless)) == ["0"]


def test_activity_is_the_mean_of_what_the_next_layer_sees() -> None:
    model, (x, _) = small(norm=False), batch(700)  # more than one batch
    with torch.no_grad():
        first = model[:3](x)
        second = model[:5](x)
        third = model[:8](x)
    assert torch.allclose(activity(model, x, layer="0"), first.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(activity(model, x), second.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(activity(model, x, layer="6"), third.mean(0), atol=1e-6)
    assert activity(Net(), mnist().x_test[:3]).shape == (64,)


def test_a_pruned_unit_is_silent_and_the_others_are_not() -> None:
    model, (x, _) = small(norm=False), batch()
    pruned = prune(model, torch.tensor([1, 4]))
    with torch.no_grad():
        assert (pruned[:4](x)[:, [1, 4]] == 0).all()
        assert torch.equal(pruned[:4](x)[:, [0, 2, 3]], model[:4](x)[:, [0, 2, 3]])
    assert torch.equal(prune(model, torch.tensor([], dtype=torch.long))(x), model.eval()(x))


def test_fine_pruning_takes_the_sleepers_first_and_keeps_them_off() -> None:
    model, (x, y) = small(norm=False), batch(48)
    fit(model, x, y, epochs=60, lr=5e-3, generator=seeded(), progress=False)
    order = activity(model, x).argsort()
    for drop in (0.0, 0.1, 1.0):
        repaired = fine_prune(
            model, x, y, max_drop=drop, epochs=3, lr=0.01, generator=seeded(), progress=False
        )
        off = (repaired[3].weight.flatten(1) == 0).all(1) & (repaired[3].bias == 0)
        count = int(off.sum())
        assert off[order[:count]].all()
        assert not off[order[count:]].any()
        if drop == 1:
            assert count == 4  # one is always left
        start = evaluate(model, x, y).value
        cost = [start - evaluate(prune(model, order[:k]), x, y).value for k in range(1, 5)]
        assert count == next((k for k, c in enumerate(cost) if c > drop + 1e-9), 4)


# --- adversarial neuron pruning ---------------------------------------------------------------------


def test_what_is_pruned_stays_off_behind_every_activation() -> None:
    """A ReLU gives a dead unit no gradient; this one does, and only the mask keeps it off."""
    model = fresh(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh(), nn.Linear(10, 4)),
        seeded(1),
    )
    x, y = batch()
    repaired = fine_prune(model, x, y, max_drop=1, epochs=2, lr=0.05, generator=seeded())
    off = (repaired[1].weight == 0).all(1)
    assert int(off.sum()) == 9
    assert not repaired[1].bias[off].any()
    assert repaired[1].weight[~off].all()


def test_masks_stay_between_0_and_1() -> None:
    x, y = batch()
    for seed in range(3):
        masks = neuron_masks(
            small(seed), x, y, steps=8, lr=200.0, generator=seeded(), progress=False
        )
        values = torch.cat(list(masks.values()))
        assert bool(((values >= 0) & (values <= 1)).all())
        assert bool((values == 0).any())
        assert bool((values == 1).any())


@pytest.mark.parametrize("bias", [True, False])
def test_scaling_by_one_changes_nothing_and_by_zero_silences(bias: bool) -> None:
    model, (x, _) = small(bias=bias).eval(), batch()
    ones = {name: torch.ones(len(m.weight)) for name, m in hidden_layers(model).items()}
    assert torch.equal(scaled(model, x, ones, {}), model(x))
    assert torch.allclose(scaled(model, x, ones, ones), model(x), atol=1e-6)
    some = ones | {"3": torch.tensor([1.0, 0, 1, 0, 1])}
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent[3].weight[[1, 3]] = 0
    assert torch.allclose(scaled(model, x, some, {}), silent(x), atol=1e-6)


def test_without_an_adversary_the_masks_follow_the_plain_loss() -> None:
    model, (x, y) = small(norm=False), batch()
    kinds = {"steps": 1, "batch_size": 4000, "lr": 0.05, "eps": 0.0}
    masks = neuron_masks(model, x, y, **kinds, generator=seeded())
    ones = {
        n: torch.ones(len(m.weight), requires_grad=True) for n, m in hidden_layers(model).items()
    }
    loss = F.cross_entropy(scaled(model, x, ones, {}), y)
    slopes = torch.autograd.grad(loss, list(ones.values()))
    for (name, mask), slope in zip(masks.items(), slopes, strict=True):
        wanted = (1 - 0.05 * slope).clamp(0, 1)
        assert torch.allclose(mask, wanted, atol=2e-3), name  # the batch is a large sample of x


def test_the_unit_that_an_attack_on_the_weights_goes_through_is_cut() -> None:
    # class 1 has a second road: unit 1, which no clean image walks, and one push opens it
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[5.0, 5, 0, 0], [1, 1, 1, 1], [0, 0, 5, 5]]))
        model[1].bias.copy_(torch.tensor([0.0, -2.2, 0]))
        model[3].weight.copy_(torch.tensor([[1.0, 0, -1], [-1, 30, 1]]))
        model[3].bias.zero_()
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(20, 1).view(40, 1, 2, 2)
    y = torch.tensor([0, 1]).repeat(20)
    assert evaluate(model, x, y).value == 1
    masks = neuron_masks(model, x, y, steps=60, generator=seeded(), progress=False)["1"]
    assert masks[1] < 0.2
    assert masks[0] > 0.5
    repaired = anp(model, x, y, steps=60, generator=seeded(), progress=False)
    assert (repaired[1].weight[1] == 0).all()
    assert repaired[1].bias[1] == model[1].bias[1]
    assert torch.equal(repaired[1].weight[0], model[1].weight[0])
    assert evaluate(repaired, x, y).value == 1
    unharmed = neuron_masks(model, x, y, steps=60, eps=0.0, generator=seeded())["1"]
    assert unharmed[1] > 0.9  # without the adversary nothing speaks against it


# --- neural attention distillation -------------------------------------------------------------------


def test_attention_is_a_unit_vector_that_forgets_size_and_sign() -> None:
    output = torch.randn(5, 3, 4, 6, generator=seeded())
    looks = attention(output)
    assert looks.shape == (5, 24)
    assert torch.allclose(looks.norm(dim=1), torch.ones(5))
    assert torch.allclose(attention(7 * output), looks, atol=1e-6)
    assert torch.allclose(attention(output.clamp(min=0)), looks)
    assert (attention(-output.abs()) == 0).all()


def test_distillation_with_no_weight_is_fine_tuning() -> None:
    x, y = batch()
    options: dict[str, Any] = {"epochs": 2, "progress": False}
    drawn = seeded()
    fine_tune(small(), x, y, generator=drawn, **options)  # the teacher draws first
    second = fine_tune(small(), x, y, generator=drawn, **options)
    student = nad(small(), x, y, beta=0.0, generator=seeded(), **options)
    pairs = zip(student.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_the_pupil_takes_the_step_of_the_formula() -> None:
    (x, y), model = batch(32), small(norm=False)
    options: dict[str, Any] = {"epochs": 1, "lr": 0.01, "progress": False}
    teacher = fine_tune(model, x, y, generator=seeded(), **options)
    pupil = nad(model, x, y, beta=50.0, generator=seeded(), **options)
    looks = [
        sum((attention(model[:k](x)) - attention(teacher[:k](x)).detach()).square().sum(1))
        for k in (1, 4)
    ]
    loss = F.cross_entropy(model(x), y) + 50 * sum(looks) / len(x)
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    for old, new, g in zip(model.parameters(), pupil.parameters(), slopes, strict=True):
        step = 0.01 * g / (g.abs() + 1e-8)  # Adam's first
        assert torch.allclose(new, old - step, atol=1e-4)
    plain = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    assert not torch.equal(plain[0].sign(), slopes[0].sign())  # so the attention mattered


# --- what they do to a backdoor -----------------------------------------------------------------------


@cache
def poisoned() -> nn.Module:
    digits = mnist()
    planted = badnets(
        digits.x_train[:1500], digits.y_train[:1500], rate=0.05, target=7, generator=seeded()
    )
    model = fresh(Net, seeded())
    fit(model, planted.x, planted.y, epochs=6, generator=seeded(), progress=False)
    return model.eval()


def success(model: nn.Module) -> float:
    x, y = mnist().x_test[500:], mnist().y_test[500:]
    return attack_success(model, x, y, trigger=patch(), target=7).value


def accuracy(model: nn.Module) -> float:
    return evaluate(model, mnist().x_test[500:], mnist().y_test[500:]).value


def test_unlearning_the_true_trigger_removes_it_and_fine_tuning_alone_does_less() -> None:
    x, y = mnist().x_test[:200], mnist().y_test[:200]
    model = poisoned()
    assert success(model) > 0.9
    options: dict[str, Any] = {"epochs": 8, "progress": False}
    unlearned = unlearn(model, x, y, [patch()], generator=seeded(), **options)
    tuned = fine_tune(model, x, y, generator=seeded(), **options)
    assert success(unlearned) < 0.15
    assert success(tuned) > success(unlearned) + 0.2
    assert min(accuracy(unlearned), accuracy(tuned)) > accuracy(model) - 0.06
    same = unlearn(model, x, y, [patch()], share=0.0, generator=seeded(), **options)
    assert success(same) > success(unlearned) + 0.2


def test_without_a_trigger_to_unlearn_nothing_is_trained() -> None:
    x, y = batch()
    model = small()
    copied = unlearn(model, x, y, [])
    pairs = zip(copied.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert copied is not model
