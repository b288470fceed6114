"""Poison whose labels are right: what both attacks keep to, and that they do what they are made for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks.clean_label import clean_label, gradient_matching
from modelsec.attacks.poisoning import Poisoned, patch
from modelsec.losses import cross_entropy

SHAPE = (1, 6, 6)
MARK = patch(SHAPE, size=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3)
        )
    return made.to(dtype)


def samples(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, *SHAPE, generator=seeded(seed), dtype=dtype)
    return x, torch.arange(n) % 3


def run(name: str, model: Any, x: Tensor, y: Tensor, seed: int = 0, **options: Any) -> Poisoned:
    generator = seeded(seed)
    if name == "clean_label":
        options = {"rate": 0.1, "trigger": MARK, "steps": 3} | options
        return clean_label(model, x, y, **{"target": 1, "eps": 0.1} | options, generator=generator)
    options = {
        "budget": max(1, len(x) // 10),
        "victim": torch.full(SHAPE, 0.5, dtype=x.dtype),
    } | options
    options = {"target": 1, "eps": 0.1, "steps": 3} | options
    return gradient_matching(model, x, y, **options, generator=generator)


each = pytest.mark.parametrize("name", ["clean_label", "gradient_matching"])

# --- the contract --------------------------------------------------------------------------------


@each
@settings(max_examples=15)
@given(
    n=st.integers(3, 40),
    seed=st.integers(0, 100),
    eps=st.sampled_from([0.0, 0.05, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_labels_stay_right_and_images_within_eps(
    name: str, n: int, seed: int, eps: float, dtype: torch.dtype
) -> None:
    x, y = samples(n, seed, dtype)
    model = network(seed, dtype).train()
    model[1].weight.requires_grad_(False)
    was = x.clone(), y.clone(), [value.clone() for value in model.state_dict().values()]
    with global_generators_untouched():
        made, again = (run(name, model, x, y, seed, eps=eps) for _ in range(2))
    assert torch.equal(x, was[0])
    assert torch.equal(made.y, was[1])  # every label is the given one
    assert made.y.dtype == torch.long
    assert made.x.dtype == dtype
    assert made.x.shape == x.shape
    assert not made.x.requires_grad
    assert (y[made.mask] == 1).all()
    assert int(made.mask.sum()) == (round(0.1 * n) if name == "clean_label" else max(1, n // 10))
    assert torch.equal(made.x[~made.mask], x[~made.mask])
    assert made.x.min() >= 0
    assert made.x.max() <= 1
    change = made.x - x
    if name == "clean_label":
        assert torch.equal(made.x[made.mask], MARK.stamp(made.x[made.mask]))
        change = change * (1 - MARK.mask)
    assert change.abs().max() <= eps + 1e-6
    assert torch.equal(made.x, again.x)  # the same generator, the same bytes
    assert model.training  # mode, weights and what they ask for are as they were
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(map(torch.equal, was[2], model.state_dict().values()))


@each
def test_other_generators_choose_other_images_and_every_one_may_be(name: str) -> None:
    x, y = samples(30)
    hit = torch.stack([run(name, network(), x, y, seed).mask for seed in range(40)])
    assert torch.equal(hit.any(0), y == 1)
    assert hit.float().mean(0).max() < 0.7


@each
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"eps": -0.1}, ValueError, "eps"),
        ({"eps": 8.0}, ValueError, "write 8 / 255"),
        ({"x": torch.full((6, *SHAPE), 255.0)}, ValueError, "divide grey levels"),
        ({"y": torch.zeros(6)}, TypeError, r"use y.long\(\)"),
        ({"target": 7}, ValueError, "of class 7 are to be poisoned, but there are 0"),
    ],
)
def test_bad_input_is_named(name: str, change: Any, error: Any, words: str) -> None:
    x, y = samples(6)
    given_ = {"x": x, "y": y} | change
    with pytest.raises(error, match=words):
        run(
            name,
            network(),
            given_.pop("x"),
            given_.pop("y"),
            **({"rate": 0.2} if name == "clean_label" else {}),
            **given_,
        )


def test_bad_input_of_one_attack_is_named() -> None:
    x, y = samples(6)
    for bad, words in (({"rate": 1.1}, "rate is a share"), ({"rate": 0.9}, "there are 2")):
        with pytest.raises(ValueError, match=words):
            run("clean_label", network(), x, y, **bad)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"budget": 0}, "budget must be a whole number"),
        ({"budget": 3}, "there are 2"),
        ({"steps": 0}, "steps must be"),
        ({"restarts": 0}, "restarts must be"),
        ({"victim": torch.zeros(1, *SHAPE)}, "victim must have shape"),
        ({"victim": torch.full(SHAPE, 2.0)}, "victim must lie in"),
    ]
    for bad, words in cases:
        with pytest.raises(ValueError, match=words):
            run("gradient_matching", network(), x, y, **bad)
    with pytest.raises(ValueError, match="a list of at least one"):
        run("gradient_matching", [], x, y)


def test_nothing_to_poison_is_no_error() -> None:
    x, y = samples(6)
    made = run("clean_label", network(), x, y, rate=0.0)
    assert torch.equal(made.x, x)
    assert not made.mask.any()


# --- clean labels --------------------------------------------------------------------------------


def test_the_images_under_the_mark_are_harder_to_read() -> None:
    x, y = samples(60)
    model = network().eval()
    made = run(
        "clean_label",
        model,
        x,
        y,
        rate=0.3,
        eps=0.2,
        steps=10,
        trigger=patch(SHAPE, size=1, at=(0, 0)),
    )
    rows = made.mask
    with torch.no_grad():
        before, after = (cross_entropy(model(images[rows]), y[rows]) for images in (x, made.x))
    assert (after > before).float().mean() > 0.9
    plain = run("clean_label", model, x, y, rate=0.3, eps=0.0)
    assert torch.equal(plain.x[plain.mask], MARK.stamp(x[plain.mask]))


# --- gradient matching ---------------------------------------------------------------------------


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(model.eval()(x), y, reduction="sum")
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def mismatch(model: nn.Module, made: Poisoned, victim: Tensor, target: int) -> float:
    goal = gradient(model, victim[None], torch.tensor([target]))
    step = gradient(model, made.x[made.mask], made.y[made.mask])
    return float(1 - F.cosine_similarity(goal, step, dim=0))


def test_the_poisons_gradient_turns_towards_the_victim_s() -> None:
    x, y = samples(60)
    victim, model = torch.full(SHAPE, 0.4), network()
    values = [
        mismatch(
            model, run("gradient_matching", model, x, y, victim=victim, budget=6, **how), victim, 1
        )
        for how in ({"eps": 0.0}, {"eps": 0.1, "steps": 30}, {"eps": 0.3, "steps": 30})
    ]
    assert values[0] > values[1] + 0.02
    assert values[1] > values[2]


def test_a_step_on_the_poisons_brings_the_victim_nearer_to_the_target() -> None:
    """What the cosine is for: a small step of training on the poisons lowers the loss of (victim, target)."""
    x, y = samples(90)
    victim = samples(3, 9)[0][0]
    losses = {}
    for name, eps in (("clean", 0.0), ("poisoned", 0.3)):
        model = network(3)
        made = run("gradient_matching", model, x, y, victim=victim, budget=10, eps=eps, steps=40)
        with torch.no_grad():
            step = gradient_of(model, made)
            for value, part in zip(model.parameters(), step, strict=True):
                value -= 0.05 * part
            losses[name] = float(F.cross_entropy(model(victim[None]), torch.tensor([1])))
    assert losses["poisoned"] < losses["clean"]


def gradient_of(model: nn.Module, made: Poisoned) -> list[Tensor]:
    with torch.enable_grad():
        loss = F.cross_entropy(model.eval()(made.x[made.mask]), made.y[made.mask])
        return list(torch.autograd.grad(loss, list(model.parameters())))


def test_restarts_and_several_models_are_used() -> None:
    x, y = samples(60)
    victim, model = torch.full(SHAPE, 0.4), network()
    how = {"victim": victim, "budget": 5, "eps": 0.2, "steps": 4}
    found = [
        mismatch(model, run("gradient_matching", model, x, y, restarts=r, **how), victim, 1)
        for r in (1, 6)
    ]
    assert found[1] < found[0]  # the first start is the same, and the lowest counts
    models = [network(seed) for seed in range(3)]
    both = run("gradient_matching", models, x, y, **how | {"steps": 40})
    alone = run("gradient_matching", models[0], x, y, **how | {"steps": 40})
    for other in models[1:]:
        assert mismatch(other, both, victim, 1) < mismatch(other, alone, victim, 1)
    assert mismatch(models[0], both, victim, 1) > mismatch(models[0], alone, victim, 1)
