"""Copying a model through its answers: a linear one exactly, others by training; what is asked is counted."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks.extraction import extract, extract_linear, fidelity
from modelsec.attacks.queries import BudgetSpent, Queries
from modelsec.data import mnist
from modelsec.models import Net, fresh
from modelsec.threat import card
from modelsec.training import evaluate
from modelsec.zoo import load_model

DIGITS = mnist()
POOL, X, Y = DIGITS.x_test[500:], DIGITS.x_test[:300], DIGITS.y_test[:300]
tiny = partial(Net, (784, 12, 10))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(d: int, k: int, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(d, k))  # noqa: E731
    return fresh(build, seeded(seed)).to(dtype)


# A linear model


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), d=st.integers(1, 12), k=st.integers(2, 6), more=st.integers(0, 5))
def test_a_linear_model_is_solved_exactly(seed: int, d: int, k: int, more: int) -> None:
    model = linear(d, k, seed)
    x = torch.rand(d + 1 + more, d, generator=seeded(seed), dtype=torch.float64)
    copy = extract_linear(model, x)
    layer, own = copy[2], model[1]  # type: ignore[index]
    assert torch.allclose(layer.weight, own.weight - own.weight[0], atol=1e-5)
    assert torch.allclose(layer.bias, own.bias - own.bias[0], atol=1e-5)
    new = torch.rand(50, d, generator=seeded(seed + 1), dtype=torch.float64)
    assert torch.allclose(copy(new).softmax(1), model(new).softmax(1), atol=1e-6)


def test_of_a_model_in_float32_enough_is_told_too() -> None:
    model = linear(784, 10, 0, torch.float32)
    asked = Queries(model)
    copy = extract_linear(asked, torch.rand(785, 1, 28, 28, generator=seeded()))
    assert asked.count == 785
    assert (copy(X).softmax(1) - model(X).softmax(1)).abs().max() < 1e-4
    assert fidelity(copy, model, X).value == 1


def test_pixels_that_never_vary_stay_unknown_and_do_not_matter_on_images_of_that_kind() -> None:
    model = linear(784, 10, 1, torch.float64)
    x = DIGITS.x_train[:2000].double()
    copy = extract_linear(model, x)
    never = (x == 0).all(0).flatten()
    assert never.sum() > 50
    assert copy[2].weight[:, never].abs().max() < 1e-6  # type: ignore[index]
    mixed = (x[:500] + x[500:1000]) / 2  # what the images that were asked about determine
    assert torch.allclose(copy(mixed).softmax(1), model(mixed).softmax(1), atol=1e-6)
    noise = torch.rand(50, 1, 28, 28, generator=seeded(), dtype=torch.float64)
    assert (copy(noise).softmax(1) - model(noise).softmax(1)).abs().max() > 0.01


def test_one_image_too_few_is_not_enough() -> None:
    model = linear(8, 3, 0)
    x = torch.rand(9, 8, generator=seeded(), dtype=torch.float64)
    new = torch.rand(50, 8, generator=seeded(1), dtype=torch.float64)
    gap = [
        (extract_linear(model, x[:m])(new) - extract_linear(model, x)(new)).abs().max()
        for m in (8, 9)
    ]
    assert gap[0] > 1e-3
    assert gap[1] == 0


# Any model


@pytest.mark.parametrize("labels", [False, True])
def test_it_asks_as_often_as_it_says_and_about_different_images(labels: bool) -> None:
    seen: list[Tensor] = []
    net = load_model("net")

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return net(x)

    extract(model, POOL, queries=120, labels_only=labels, build=tiny, steps=1, generator=seeded())
    asked = torch.cat(seen).flatten(1)
    assert len(asked) == 120
    assert len(asked.unique(dim=0)) == 120
    assert len(torch.cat([asked, POOL.flatten(1)]).unique(dim=0)) == 500  # nothing else


def test_a_budget_is_kept() -> None:
    service = Queries(load_model("net"), budget=100)
    extract(service, POOL, queries=100, build=tiny, steps=1)
    with pytest.raises(BudgetSpent):
        extract(service, POOL, queries=1, build=tiny, steps=1)


@pytest.mark.parametrize("options", [{}, {"labels_only": True}, {"decimals": 1}])
def test_the_copy_answers_like_the_original(options: dict[str, Any]) -> None:
    net = load_model("net")
    copy = extract(net, POOL, queries=400, steps=200, generator=seeded(), **options)
    assert fidelity(copy, net, X).value > 0.75
    assert evaluate(copy, X, Y).value > 0.7
    assert not copy.training


def test_labels_tell_less_than_scores_and_more_decimals_tell_more() -> None:
    """On noise, where this random network's answers are all but even."""
    net, noise = fresh(tiny, seeded(1)), torch.rand(400, 1, 28, 28, generator=seeded())
    target = net(noise).softmax(1)

    def apart(**options: Any) -> float:
        copy = extract(
            net, noise, queries=400, build=tiny, steps=150, generator=seeded(2), **options
        )
        return (copy(noise).softmax(1) - target).abs().mean().item()

    exact, rounded, labels = apart(), apart(decimals=0), apart(labels_only=True)
    assert exact < labels
    assert exact < rounded  # every probability is below one half, so all are rounded to 0


def test_the_victim_is_left_as_it_was_and_the_generator_decides() -> None:
    victim = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Dropout(), nn.Linear(784, 10))
    victim[1].eval()
    victim[3].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in victim.state_dict().items()}
    pool = POOL[:80].clone()
    options: dict[str, Any] = {"queries": 60, "build": tiny, "steps": 5}
    with global_generators_untouched():
        first, again, other = (
            extract(victim, pool, generator=seeded(seed), **options) for seed in (1, 1, 2)
        )
    assert torch.equal(pool, POOL[:80])
    for key, value in victim.state_dict().items():
        assert torch.equal(value, before[key])
    assert [m.training for m in victim] == [True, False, True, True]
    assert not victim[3].weight.requires_grad
    for p, q, r in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, r)


def test_one_query_and_the_pool_s_precision() -> None:
    net = load_model("net").double()
    copy = extract(net, POOL[:1].double(), queries=1, build=tiny, steps=2, generator=seeded())
    assert next(copy.parameters()).dtype == torch.float64


def test_under_no_grad_it_trains_all_the_same() -> None:
    options: dict[str, Any] = {"queries": 60, "build": tiny, "steps": 5}
    wanted = extract(load_model("net"), POOL, generator=seeded(), **options)
    with torch.no_grad():
        found = extract(load_model("net"), POOL, generator=seeded(), **options)
    assert torch.equal(found(X), wanted(X))


def test_fidelity_counts_equal_answers_also_wrong_ones() -> None:
    class Says(nn.Module):
        def __init__(self, answers: list[int]) -> None:
            super().__init__()
            self.answers = torch.eye(3)[torch.tensor(answers)]

        def forward(self, x: Tensor) -> Tensor:
            return self.answers[: len(x)]

    found = fidelity(Says([0, 1, 2, 2]), Says([0, 1, 1, 2]), torch.zeros(4, 2))
    assert (found.hits, found.n) == (3, 4)


def test_the_cards_say_what_is_attacked() -> None:
    assert {card(f).goal for f in (extract, extract_linear)} == {"extraction"}


# Bad input

NET = tiny()
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: extract("net", POOL, queries=5), TypeError, "model must be callable, got str"),
    (lambda: extract(NET, POOL.byte(), queries=5), TypeError, "floating-point tensor"),
    (lambda: extract(NET, POOL * 255, queries=5), ValueError, r"in \[0, 1\]"),
    (lambda: extract(NET, POOL[:0], queries=5), ValueError, "at least one"),
    (lambda: extract(NET, POOL, queries=501), ValueError, "at most the 500 images there, got 501"),
    (lambda: extract(NET, POOL, queries=0), ValueError, "queries must be a whole number"),
    (lambda: extract(NET, POOL, queries=5, steps=0), ValueError, "steps must be a whole number"),
    (
        lambda: extract(NET, POOL, queries=5, labels_only=True, decimals=1),
        ValueError,
        "with labels_only there are none",
    ),
    (lambda: extract_linear(3, POOL), TypeError, "model must be callable, got int"),
    (lambda: extract_linear(NET, POOL - 1), ValueError, r"in \[0, 1\]"),
    (
        lambda: extract_linear(lambda x: 200 * torch.eye(10)[[0] * len(x)], POOL),
        ValueError,
        "a probability of 0 has no logarithm",
    ),
    (lambda: fidelity(NET, NET, POOL[:0]), ValueError, "at least one image"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD, ids=[b[2][:24] for b in BAD])
def test_bad_input_gets_a_sentence(
    call: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call()
