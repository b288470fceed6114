"""Square: what it may see, how often it asks, and that it finds what can be found."""

from typing import Any

import pytest
import torch
from attack_cases import Case, cases, size, two_class_linear
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelsec.attacks import square
from modelsec.attacks.black_box import SCHEDULE
from modelsec.losses import margin

norms = pytest.mark.parametrize("norm", ["linf", "l2"])
X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Watched:
    """A model that notes every image it is shown."""

    def __init__(self, case: Case) -> None:
        self.inside, self.shown = case.module().eval(), []

    def __call__(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.shown += list(x.clone())
        return self.inside(x)


def right(case: Case) -> tuple[Watched, Tensor, Tensor]:
    """A model with images that it is right about."""
    model, (x, _) = Watched(case), case.batch()
    with torch.no_grad():
        return model, x, model.inside(x).argmax(1)


@norms
@pytest.mark.parametrize("queries", [1, 2, 7, 60])
@pytest.mark.parametrize("early_stop", [True, False])
def test_every_query_is_counted_and_none_is_above_the_budget(
    norm: str, queries: int, early_stop: bool
) -> None:
    case = Case("mlp", (1, 8, 8), 3, 12, 0.3, torch.float64, False, 3)
    model, x, y = right(case)
    used = torch.zeros(12, dtype=torch.long)
    numbers = []

    def count(point: Any) -> None:
        used[point.rows] += 1
        numbers.append(point.step)

    adv = square(
        model, x, y, eps=0.3, norm=norm, queries=queries, early_stop=early_stop, callback=count,
        generator=seeded(),
    )  # fmt: skip
    assert len(model.shown) == used.sum()
    assert numbers == list(range(1, len(numbers) + 1))
    assert used.max() <= queries
    with torch.no_grad():
        fooled = model.inside(adv).argmax(1) != y
    if early_stop:
        assert (used[~fooled] == queries).all()
        # whoever was fooled was fooled by the last image shown
        assert all(any(torch.equal(image, shown) for shown in model.shown) for image in adv)
    else:
        assert (used == queries).all()


@norms
@settings(max_examples=15)
@given(case=cases(kinds=("mlp", "conv"), dtypes=(torch.float64,), eps=(0.1, 0.3, "per sample")))
def test_the_margin_never_falls_and_the_best_point_is_returned(norm: str, case: Case) -> None:
    (x, y), model = case.batch(), case.module().eval()
    path: list[Any] = []
    adv = square(
        model, x, y, eps=case.radius, norm=norm, queries=25, targeted=case.targeted,
        early_stop=False, callback=path.append, generator=case.generator,
    )  # fmt: skip
    for before, after in zip(path, path[1:], strict=False):
        assert (after.loss >= before.loss).all()
    with torch.no_grad():
        value = margin(model(adv), y) * (-1 if case.targeted else 1)
    assert torch.allclose(value, path[-1].loss, rtol=0, atol=1e-9)
    radius = torch.as_tensor(case.radius, dtype=torch.float64).expand(case.n)
    for point in path:
        assert (size(point.adv - x, norm) <= radius + 1e-9).all()
        assert point.adv.min() >= 0
        assert point.adv.max() <= 1


def test_no_query_asks_about_a_point_that_is_known() -> None:
    """With one channel half of all windows would change nothing. Here nothing is ever better."""
    shown: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        shown.append(x.clone())
        return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    square(model, X, torch.zeros(6).long(), eps=0.1, queries=100, generator=seeded())
    first, *others = shown
    assert len(others) == 99
    assert all((other != first).flatten(1).any(1).all() for other in others)


@norms
def test_a_model_without_a_gradient_is_attacked_all_the_same(norm: str) -> None:
    """Scores in twenty coarse steps, computed outside torch: PGD has nothing to go by."""
    linear, _ = two_class_linear(64, torch.float32)

    def model(x: Tensor) -> Tensor:
        with torch.no_grad():
            scores = (linear(x.flatten(1)) / 4).softmax(1).numpy()
        return torch.from_numpy((scores * 20).round() / 20)

    y = model(X).argmax(1)
    eps = {"linf": 0.5, "l2": 4.0}[norm]
    adv = square(model, X, y, eps=eps, norm=norm, queries=300, generator=seeded())
    assert (model(adv).argmax(1) != y).all()


def test_it_finds_the_best_corner_of_a_linear_model() -> None:
    model, w = two_class_linear(16)
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    y = torch.tensor([0, 1])
    adv = square(model, x, y, eps=0.2, queries=800, early_stop=False, generator=seeded())
    best = x + 0.2 * torch.stack([w.sign(), -w.sign()]).view_as(x)
    assert torch.allclose(adv, best, rtol=0, atol=1e-12)


def test_in_l2_it_comes_near_the_best_point_of_a_linear_model() -> None:
    model, w = two_class_linear(64)
    x = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    y = torch.tensor([0])
    adv = square(model, x, y, eps=0.5, norm="l2", queries=800, early_stop=False, generator=seeded())
    gained = ((adv - x).flatten() * w).sum()
    assert gained >= 0.5 * 0.5 * w.norm()


@norms
def test_a_sample_alone_gets_what_it_gets_in_a_batch(norm: str) -> None:
    case = Case("conv", (3, 8, 8), 4, 5, 0.3, torch.float64, False, 5)
    model, x, y = right(case)
    options = {"eps": 0.05, "norm": norm, "queries": 40}
    whole = square(model, x, y, **options, generator=seeded(7))
    for i in range(5):
        alone = square(model, x[i : i + 1], y[i : i + 1], **options, generator=seeded(7))
        assert torch.allclose(alone[0], whole[i], rtol=0, atol=1e-12)


@norms
def test_the_generator_moves_alike_whatever_happens(norm: str) -> None:
    """So that what is drawn next does not depend on who was fooled, or how soon."""
    case = Case("mlp", (1, 8, 8), 3, 4, 0.3, torch.float64, False, 3)
    model, x, y = right(case)
    states = []
    with global_generators_untouched():
        for labels in (y, (y + 1) % 3):  # the second are wrong from the start
            generator = seeded()
            square(model, x, labels, eps=0.3, norm=norm, queries=30, generator=generator)
            states.append(generator.get_state())
    assert torch.equal(*states)


@norms
@pytest.mark.parametrize("shape", [(7,), (1, 1, 1), (1, 2, 9), (3, 5, 4), (2, 3, 5, 4), (5, 4)])
def test_images_of_any_shape(norm: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(3, *shape, generator=seeded(), dtype=torch.float64)

    def model(images: Tensor) -> Tensor:
        assert images.shape[1:] == shape
        return torch.stack([images.flatten(1).sum(1), 0.5 * x[0].numel() + 0 * images.flatten(1)[:, 0]], 1)  # fmt: skip

    y = model(x).argmax(1)
    adv = square(model, x, y, eps=0.3, norm=norm, queries=10, generator=seeded())
    assert adv.shape == x.shape
    assert (size(adv - x, norm) <= 0.3 + 1e-9).all()
    assert (adv != x).flatten(1).any(1).all()


def test_each_channel_has_its_own_sign() -> None:
    """The best change of this model raises one channel and lowers the other."""

    def model(images: Tensor) -> Tensor:
        lead = images[:, 0].flatten(1).mean(1) - images[:, 1].flatten(1).mean(1)
        return torch.stack([0 * lead, lead], 1)

    x = torch.full((1, 2, 6, 6), 0.5, dtype=torch.float64)
    y = torch.zeros(1, dtype=torch.long)
    adv = square(model, x, y, eps=0.1, queries=1500, early_stop=False, generator=seeded())
    assert torch.allclose(adv[0, 0], torch.tensor(0.6, dtype=torch.float64))
    assert torch.allclose(adv[0, 1], torch.tensor(0.4, dtype=torch.float64))


@settings(max_examples=20)
@given(queries=st.integers(1, 6000))
def test_windows_shrink_by_the_paper_s_schedule(queries: int) -> None:
    from modelsec.attacks.black_box import _fraction

    areas = [_fraction(step, queries) for step in range(queries)]
    assert areas[0] == 1
    assert areas == sorted(areas, reverse=True)
    assert [divisor for _, divisor in SCHEDULE] == [2**k for k in range(10)]
    if queries == 5000:
        assert areas[5] == 1
        assert areas[6] == 0.5


BAD = {
    "no queries": ({"queries": 0}, ["queries", "1 or more", "0"]),
    "half a query": ({"queries": 2.5}, ["queries", "whole", "2.5"]),
    "no share": ({"share": 0.0}, ["share", "0.0"]),
    "too large a share": ({"share": 1.5}, ["share", "1.5"]),
    "l1": ({"norm": "l1"}, ["norm", "linf", "l2", "l1"]),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_gets_one_clear_error(fault: str) -> None:
    different, words = BAD[fault]
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (its words are looked at below)
        square(lambda x: x.flatten(1)[:, :3], X, torch.zeros(6).long(), **{"eps": 0.1} | different)
    assert all(word in str(caught.value) for word in words)
