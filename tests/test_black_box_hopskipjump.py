"""HopSkipJump: labels are all it sees, its budget holds for each sample, and what it finds is an error."""

from typing import Any

import pytest
import torch
from attack_cases import (
    Case,
    assert_same_state,
    cases,
    channels_last,
    noncontiguous,
    size,
    state,
    two_class_linear,
)
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks import fmn
from modelsec.attacks.hopskipjump import Progress, hopskipjump
from modelsec.attacks.minimum_norm import Minimum
from modelsec.attacks.queries import Queries, labels_only, scores_only
from modelsec.data import mnist
from modelsec.models import ConvNet
from modelsec.zoo import load_model

norms = pytest.mark.parametrize("norm", ["l2", "linf"])
few = settings(max_examples=12)
CASE = Case("mlp", (1, 8, 8), 3, 6, 0.3, torch.float64, False, 3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start_for(case: Case, targeted: bool) -> Tensor | None:
    """For each sample another one of the batch, whatever its class: some have the goal."""
    return case.batch()[0].flip(0) if targeted else None


def run(case: Case, norm: str, model: Any = None, **options: Any) -> Minimum:
    x, y = case.batch()
    given = {"targeted": case.targeted, "start": start_for(case, case.targeted)}
    given |= {"queries": 60, "directions": 8, "generator": case.generator} | options
    return hopskipjump(model or case.module(), x, y, norm=norm, **given)


# --- what is found ------------------------------------------------------------------------------


@norms
@few
@given(case=cases(kinds=("mlp", "conv", "callable"), eps=(0.3,)))
def test_what_is_found_is_an_error_at_the_distance_that_is_told(norm: str, case: Case) -> None:
    (x, y), near = case.batch(), run(case, norm)
    label = labels_only(case.model())
    goal = (label(near.adv) == y) == case.targeted
    assert near.adv.shape == x.shape
    assert near.adv.dtype == x.dtype
    assert near.adv.min() >= 0
    assert near.adv.max() <= 1
    assert torch.equal(near.found, near.distance.isfinite())
    assert torch.equal(goal, near.found)
    told = size(near.adv - x, norm)[near.found]
    assert torch.allclose(told, near.distance[near.found].double(), rtol=1e-5, atol=1e-7)
    assert torch.equal(near.adv[~near.found], x[~near.found])
    already = (label(x) == y) == case.targeted
    assert torch.equal(near.distance == 0, already)


@norms
@pytest.mark.parametrize("seed", [1, 2])
def test_it_comes_near_the_exact_distance_of_a_linear_model(norm: str, seed: int) -> None:
    model, w = two_class_linear(30)
    x = 0.45 + 0.1 * torch.rand(8, 30, generator=seeded(seed), dtype=torch.float64)
    with torch.no_grad():
        model[1].bias.copy_(model[1].bias - model(x).mean(0))  # the border runs among them
        logits = model(x)
    y, lead = logits.argmax(1), (logits[:, 0] - logits[:, 1]).abs()
    exact = lead / w.norm(p=2 if norm == "l2" else 1)
    near = hopskipjump(labels_only(model), x, y, norm=norm, queries=2000, generator=seeded(seed))
    assert (near.distance >= exact * (1 - 1e-9)).all()
    assert (near.distance <= exact * 1.15).all(), near.distance / exact


@norms
def test_on_a_network_it_comes_near_what_gradients_find(norm: str) -> None:
    digits, net = mnist(), load_model("net")
    x, y = digits.x_test[:20], digits.y_test[:20]
    near = hopskipjump(labels_only(net), x, y, norm=norm, queries=1500, generator=seeded())
    best = fmn(net, x, y, norm=norm).distance
    assert near.found.all()
    assert near.distance.median() <= 3 * best.median()


@norms
@few
@given(case=cases(kinds=("mlp",), dtypes=(torch.float64,)), queries=st.integers(1, 80))
def test_more_queries_never_lead_away(norm: str, case: Case, queries: int) -> None:
    """A shorter search is the beginning of a longer one."""
    short, long = (run(case, norm, queries=q) for q in (queries, queries + 40))
    assert (long.distance <= short.distance).all()


# --- what is asked ------------------------------------------------------------------------------


@norms
@few
@given(case=cases(kinds=("mlp", "conv")))
def test_scores_tell_it_no_more_than_labels(norm: str, case: Case) -> None:
    model = case.module()
    seen = [run(case, norm, ask) for ask in (labels_only(model), scores_only(model), model)]
    for near in seen[1:]:
        assert torch.equal(near.adv, seen[0].adv)
        assert torch.equal(near.distance, seen[0].distance)


@norms
@settings(max_examples=25)
@given(
    case=cases(kinds=("mlp",), dtypes=(torch.float64,)),
    queries=st.integers(1, 150),
    directions=st.integers(1, 30),
)
def test_no_sample_is_shown_once_more_than_its_budget(
    norm: str, case: Case, queries: int, directions: int
) -> None:
    (x, y), label = case.batch(), labels_only(case.module())
    start, alone = start_for(case, case.targeted), []
    options = {"norm": norm, "queries": queries, "directions": directions}
    for i in range(case.n):
        one, asked = slice(i, i + 1), Queries(label, budget=queries)
        near = hopskipjump(
            asked, x[one], y[one], targeted=case.targeted, generator=seeded(),
            start=None if start is None else start[one], **options,
        )  # fmt: skip
        alone.append(asked.count)
        if bool(near.found) and float(near.distance) > 0:
            assert asked.count == queries  # and none is left over
    asked, told = Queries(label, budget=queries * case.n), []
    hopskipjump(
        asked, x, y, targeted=case.targeted, generator=seeded(), start=start,
        callback=lambda seen: told.append(seen.queries), **options,
    )  # fmt: skip
    assert told[-1].tolist() == alone
    assert asked.count == sum(alone)


@norms
def test_the_callback_sees_each_question(norm: str) -> None:
    x, _ = CASE.batch()
    path: list[Progress] = []
    asked = Queries(labels_only(CASE.module()))
    near = run(CASE, norm, asked, callback=path.append)
    for before, after in zip(path, path[1:], strict=False):
        assert ((after.queries - before.queries) <= 1).all()
        assert (after.queries > before.queries).any()
        assert (after.distance <= before.distance).all()
    assert torch.equal(path[-1].distance, near.distance)
    assert path[-1].queries.sum() == asked.count
    assert path[0].queries.tolist() == [1] * len(x)


@norms
def test_every_image_shown_is_an_image(norm: str) -> None:
    label = labels_only(CASE.module())

    def model(images: Tensor) -> Tensor:
        assert images.min() >= 0
        assert images.max() <= 1
        return label(images)

    run(CASE, norm, model, queries=200)


@norms
@few
@given(case=cases(kinds=("mlp", "conv"), dtypes=(torch.float64,)))
def test_a_sample_alone_gets_what_it_gets_in_a_batch(norm: str, case: Case) -> None:
    (x, y), model = case.batch(), case.module()
    start = start_for(case, case.targeted)
    whole = run(case, norm, model, queries=90)
    for i in range(case.n):
        one = slice(i, i + 1)
        alone = hopskipjump(
            model, x[one], y[one], norm=norm, queries=90, directions=8, targeted=case.targeted,
            start=None if start is None else start[one], generator=case.generator,
        )  # fmt: skip
        assert torch.allclose(alone.adv[0], whole.adv[i], rtol=0, atol=1e-9)


# --- where it begins ----------------------------------------------------------------------------


def test_where_all_noise_has_the_right_label_nothing_is_found() -> None:
    x = torch.rand(3, 1, 6, 6, generator=seeded())
    asked = Queries(lambda images: torch.zeros(len(images), dtype=torch.long))
    near = hopskipjump(asked, x, torch.zeros(3, dtype=torch.long), generator=seeded())
    assert not near.found.any()
    assert near.distance.isinf().all()
    assert torch.equal(near.adv, x)
    assert asked.count == 3 * 51  # each image itself, and fifty images of noise


def test_noise_gets_darker_until_it_is_another_class() -> None:
    """To this model what is bright is class 1."""

    def model(images: Tensor) -> Tensor:
        return (images.flatten(1).mean(1) > 0.3).long()

    x = torch.full((2, 1, 6, 6), 0.4)
    x[1] = 0.1
    near = hopskipjump(model, x, torch.tensor([1, 0]), queries=300, generator=seeded())
    assert near.found.all()


@norms
def test_a_start_is_where_it_begins_and_targets_are_reached(norm: str) -> None:
    digits, net = mnist(), load_model("net")
    label = labels_only(net)
    x, others = digits.x_test[:8], digits.x_test[8:16]
    y = label(others)
    keep = label(x) != y
    near = hopskipjump(
        label, x, y, norm=norm, queries=400, targeted=True, start=others, generator=seeded()
    )
    assert keep.sum() >= 4
    assert near.found.all()
    assert torch.equal(label(near.adv), y)
    way = size(others - x, norm)
    assert (near.distance[keep] < 0.9 * way[keep]).all()


# --- models and inputs --------------------------------------------------------------------------


@norms
@few
@given(case=cases(kinds=("mlp", "conv")))
def test_the_model_and_the_generators_come_back_as_they_were(norm: str, case: Case) -> None:
    model = case.module()
    before = state(model)
    with global_generators_untouched():
        first, again = (run(case, norm, model) for _ in range(2))
    assert torch.equal(first.adv, again.adv)
    assert_same_state(before, state(model))


@norms
@pytest.mark.parametrize("layout", [noncontiguous, channels_last])
def test_memory_layout_does_not_matter(norm: str, layout: Any) -> None:
    case = Case("conv", (3, 5, 4), 3, 5, 0.3, torch.float64, False, 3)
    (x, y), model = case.batch(), case.module()
    plain, other = (
        hopskipjump(model, images, y, norm=norm, queries=60, generator=seeded())
        for images in (x, layout(x))
    )
    assert torch.allclose(plain.adv, other.adv, rtol=0, atol=1e-9)


@norms
def test_a_bfloat16_model_and_two_classes(norm: str) -> None:
    case = Case("conv", (3, 8, 8), 2, 6, 0.3, torch.float32, False, 18)
    inside, (x, _) = case.module().eval().bfloat16(), case.batch()
    x = x.bfloat16()
    y = labels_only(inside)(x)
    near = hopskipjump(inside, x, y, norm=norm, queries=200, directions=20, generator=seeded())
    assert near.adv.dtype == torch.bfloat16
    assert near.distance.dtype == torch.float32
    assert (labels_only(inside)(near.adv) != y)[near.found].all()


@norms
def test_works_in_inference_mode_and_for_an_empty_batch(norm: str) -> None:
    (x, y), model = CASE.batch(), CASE.module()
    expected = hopskipjump(model, x, y, norm=norm, queries=60, generator=seeded())
    with torch.inference_mode():
        inside = hopskipjump(model, x.clone(), y.clone(), norm=norm, queries=60, generator=seeded())
        assert torch.equal(inside.adv, expected.adv)
    empty = hopskipjump(model, x[:0], y[:0], norm=norm)
    assert empty.adv.shape == (0, 1, 8, 8)
    assert empty.distance.shape == empty.found.shape == (0,)


@norms
def test_on_a_device_without_values(norm: str) -> None:
    with torch.device("meta"):
        model = ConvNet()
        x, y = torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.long)
    near = hopskipjump(model, x, y, norm=norm, queries=40, directions=5)
    assert {part.device.type for part in near} == {"meta"}
    aimed = hopskipjump(model, x, y, norm=norm, queries=40, start=x, targeted=True)
    assert aimed.adv.shape == x.shape


X, Y = (
    torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 1, 2, 0]),
)


def answering(answer: Any) -> Any:
    return lambda images: answer(len(images))


BAD: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "no queries": ({"queries": 0}, ValueError, ["queries", "1 or more", "0"]),
    "half a direction": ({"directions": 2.5}, ValueError, ["directions", "whole", "2.5"]),
    "no gamma": ({"gamma": 0.0}, ValueError, ["gamma", "positive", "0.0"]),
    "l1": ({"norm": "l1"}, ValueError, ["norm", "l2", "linf", "l1"]),
    "a target without a start": ({"targeted": True}, ValueError, ["start", "targeted"]),
    "start of another shape": ({"start": X[:2]}, ValueError, ["start", "(4, 1, 4, 4)", "(2,"]),
    "start outside the box": ({"start": X + 1}, ValueError, ["start", "[0, 1]"]),
    "start as a list": ({"start": [0.5]}, TypeError, ["start", "torch.Tensor", "list"]),
    "0..255 image": ({"x": X * 255}, ValueError, ["x", "[0, 1]", "divide by 255"]),
    "one-hot labels": ({"y": torch.eye(4)}, ValueError, ["y", "one-hot"]),
    "label K": ({"y": Y + 3}, ValueError, ["labels", "0 to 2", "got 5"]),
    "a tuple": ({"model": answering(lambda n: (1, 2))}, TypeError, ["model", "tensor", "tuple"]),
    "float labels": ({"model": answering(torch.zeros)}, ValueError, ["labels", "(4,)", "float32"]),
    "a label too few": (
        {"model": answering(lambda n: torch.zeros(n - 1).long())},
        ValueError,
        ["(4,)", "(3,)"],
    ),
    "one class": (
        {"model": answering(lambda n: torch.zeros(n, 1))},
        ValueError,
        ["K >= 2", "(4, 1)"],
    ),
    "NaN": ({"model": answering(lambda n: torch.full((n, 3), torch.nan))}, ValueError, ["NaN"]),
    "no model": ({"model": None}, TypeError, ["model", "callable", "NoneType"]),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_gets_one_clear_error(fault: str) -> None:
    different, error, words = BAD[fault]
    call = {"model": nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), "x": X, "y": Y} | different
    with pytest.raises(error) as caught:
        hopskipjump(**call)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)
