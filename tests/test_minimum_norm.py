"""The contract of minimum-norm attacks: what they find is an error, nobody found a nearer one, misses are misses."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from attack_cases import (
    Case,
    Fuse,
    NanGradient,
    assert_same_state,
    cases,
    channels_last,
    noncontiguous,
    size,
    state,
)
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelsec.attacks.minimum_norm import Minimum, carlini_wagner, deepfool, fmn
from modelsec.audit import audit
from modelsec.data import mnist
from modelsec.intervals import Proportion, median_interval
from modelsec.models import ConvNet
from modelsec.plot import distance_curve, use_style
from modelsec.training import inference
from modelsec.zoo import load_model

QUICK: dict[str, Callable[..., Minimum]] = {
    "deepfool": partial(deepfool, steps=8),
    "fmn": partial(fmn, steps=8),
    "carlini_wagner": partial(carlini_wagner, steps=6, searches=2, step_size=0.1),
}
ATTACKS: dict[str, Callable[..., Minimum]] = {
    "deepfool": deepfool,
    "fmn": fmn,
    "carlini_wagner": carlini_wagner,
}
PAIRS = [("deepfool", "l2"), ("deepfool", "linf"), ("fmn", "l2"), ("fmn", "linf")]
PAIRS += [("carlini_wagner", "l2")]
every = pytest.mark.parametrize(("name", "norm"), PAIRS)
few = settings(max_examples=12)


def run(case: Case, name: str, norm: str, model: Any = None, **options: Any) -> Minimum:
    x, y = case.batch()
    if name != "deepfool":
        options = {"targeted": case.targeted} | options
    return QUICK[name](model or case.model(), x, y, norm=norm, **options)


def goal(case: Case, name: str, adv: Tensor, model: Any = None) -> Tensor:
    """(N,) whether the model says what the attack is after."""
    model, (_, y) = model or case.model(), case.batch()
    with inference(model), torch.no_grad():
        wrong = model(adv).argmax(1) != y
    return ~wrong if case.targeted and name != "deepfool" else wrong


# --- the distance is right ----------------------------------------------------------------------


def linear(
    shape: tuple[int, ...],
    classes: int,
    n: int,
    lead: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """A linear model, and images in the middle of the box of which it says class 0.

    Returns:
        The model, images, labels, and the distances to each class in l2 and linf, (2, N, K).
    """
    generator = torch.Generator().manual_seed(n)
    d = torch.Size(shape).numel()
    w = torch.randn(classes, d, generator=generator, dtype=dtype) / d**0.5
    x = 0.49 + 0.02 * torch.rand(n, *shape, generator=generator, dtype=dtype)
    bias = -(w @ x.flatten(1).mean(0)) - 0.1 * torch.arange(classes, dtype=dtype)
    bias[0] += lead

    def model(images: Tensor) -> Tensor:
        return images.flatten(1) @ w.T + bias

    gap = model(x)[:, :1] - model(x)
    exact = [gap / (w[0] - w).norm(dual, dim=1) for dual in (2, 1)]
    return model, x, torch.zeros(n, dtype=torch.long), torch.stack(exact)


SHAPES = [(12,), (1, 8, 8), (3, 16, 16)]


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [2, 6])
def test_deepfool_finds_the_exact_distance_of_a_linear_model(
    classes: int, norm: str, shape: tuple[int, ...], n: int
) -> None:
    model, x, y, exact = linear(shape, classes, n, lead=0.3)
    nearest = exact[int(norm == "linf"), :, 1:].amin(1)
    found = deepfool(model, x, y, norm=norm)
    assert (found.distance >= nearest * (1 - 1e-9)).all()
    assert torch.allclose(found.distance, nearest, rtol=1e-3, atol=0)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("targeted", [False, True])
def test_fmn_finds_the_exact_distance_of_a_linear_model(
    targeted: bool, norm: str, shape: tuple[int, ...], n: int
) -> None:
    model, x, y, exact = linear(shape, 2, n, lead=0.3)
    nearest = exact[int(norm == "linf"), :, 1]
    found = fmn(model, x, y + targeted, norm=norm, targeted=targeted, steps=200)
    assert (found.distance >= nearest * (1 - 1e-9)).all()
    assert torch.allclose(found.distance, nearest, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("shape", "n", "targeted"),
    [((12,), 3, True), ((1, 8, 8), 1, False), ((1, 8, 8), 8, False), ((3, 16, 16), 3, True)],
    ids=str,
)
def test_carlini_wagner_finds_the_exact_distance_of_a_linear_model(
    shape: tuple[int, ...], n: int, targeted: bool
) -> None:
    model, x, y, exact = linear(shape, 2, n, lead=0.6 if len(shape) == 1 else 1.2)
    nearest = exact[0, :, 1]
    found = carlini_wagner(model, x, y + targeted, targeted=targeted, c=1.0, searches=6)
    assert (found.distance >= nearest * (1 - 1e-9)).all()
    assert torch.allclose(found.distance, nearest, rtol=1e-3, atol=0)


def test_a_target_that_is_not_the_nearest_class() -> None:
    model, x, _, exact = linear((1, 8, 8), 6, 5, lead=0.3)
    for target in (2, 5):
        y = torch.full((5,), target)
        for found in (
            fmn(model, x, y, targeted=True, steps=200),
            carlini_wagner(model, x, y, targeted=True, steps=100, searches=3, c=1.0),
        ):
            assert found.found.all()
            assert (model(found.adv).argmax(1) == y).all()
            assert (found.distance >= exact[0, :, target] * (1 - 1e-9)).all()


def test_the_box_is_minded() -> None:
    """A black image can only brighten: the way to the border is longer than it looks."""
    w = torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64)

    def model(images: Tensor) -> Tensor:
        climb = images @ w
        return torch.stack([0 * climb, climb - 0.3], 1)

    x, y = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0])
    for name, norm in PAIRS:
        options = {"steps": 200, "c": 1.0, "step_size": 0.1} if name == "carlini_wagner" else {}
        found = ATTACKS[name](model, x, y, norm=norm, **options)
        assert found.found.all(), name
        assert torch.allclose(found.distance, torch.tensor([0.3]).double(), rtol=0.01), name


def test_deepfool_crosses_the_border() -> None:
    """Without the overshoot it would end before it; without the 1e-4 it would approach for ever."""
    digits, model = mnist(), load_model("convnet")
    x, y = digits.x_test[:100], digits.y_test[:100]
    for norm in ("l2", "linf"):
        found = deepfool(model, x, y, norm=norm)
        assert found.found.all()
        assert (model(found.adv).argmax(1) != y).all()


def test_fmn_finds_a_way_although_black_pixels_cannot_darken() -> None:
    digits, model = mnist(), load_model("convnet")
    x, y = digits.x_test[:100], digits.y_test[:100]
    found = fmn(model, x, y, steps=60)
    assert found.found.all()
    assert found.distance.median() < 0.95 * deepfool(model, x, y).distance.median()


def test_fmn_does_not_stay_on_the_border_of_a_linear_model() -> None:
    """Where the way to it is exact, rounding decides on which side of the border a step ends."""
    for n in (1, 3, 8):
        model, x, y, _ = linear((12,), 2, n, lead=0.05, dtype=torch.float32)
        assert fmn(model, x, y).found.all()


def test_logits_of_any_scale_give_the_same_points() -> None:
    case = Case("conv", (1, 8, 8), 4, 6, 0.1, torch.float64, False, 3)
    model = case.module().eval()
    for factor in (1e-3, 7.0, 1e4):
        for name, norm in PAIRS[:4]:
            plain = run(case, name, norm, model)
            scaled = run(case, name, norm, lambda images, by=factor: by * model(images))
            assert torch.allclose(plain.distance, scaled.distance, rtol=1e-4), (name, norm, factor)


# --- what is said to be found is an error, and a miss is a miss ---------------------------------


@every
@few
@given(case=cases(kinds=("mlp", "conv", "callable", "nan gradient")))
def test_what_is_found_is_an_error_at_that_distance(name: str, norm: str, case: Case) -> None:
    x, _ = case.batch()
    got = run(case, name, norm)
    assert got.adv.shape == x.shape
    assert got.adv.dtype == x.dtype
    assert got.distance.shape == got.found.shape == (case.n,)
    assert not any(part.requires_grad for part in got)
    assert not got.adv.isnan().any()
    assert got.adv.min() >= 0
    assert got.adv.max() <= 1
    assert torch.equal(got.found, got.distance.isfinite())
    assert goal(case, name, got.adv)[got.found].all()
    inside = size(got.adv - x, norm)[got.found]
    assert torch.allclose(inside, got.distance[got.found].double(), rtol=1e-5, atol=1e-7)
    clean = goal(case, name, x)
    assert (got.distance[clean] == 0).all()
    assert torch.equal(got.adv[clean], x[clean])
    assert (got.distance[~clean] > 0).all()


def stubborn(images: Tensor) -> Tensor:
    """Never anything but class 0, with a gradient that promises otherwise."""
    climb = images.flatten(1).mean(1)
    return torch.stack([0 * climb, climb - 1.5], 1)


@every
def test_a_miss_is_no_success_and_its_last_try_is_of_use(name: str, norm: str) -> None:
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    got = QUICK[name](stubborn, x, torch.zeros(5, dtype=torch.long), norm=norm)
    assert not got.found.any()
    assert (got.distance == torch.inf).all()
    assert (got.adv >= 0).all()
    assert (got.adv <= 1).all()
    assert (stubborn(got.adv)[:, 1] > stubborn(x)[:, 1]).all()  # for training: it has a higher loss


def test_carlini_wagner_counts_no_miss_as_a_success() -> None:
    """With a budget so small that only some are found: each is judged by what the model says."""
    digits, model = mnist(), load_model("convnet")
    x, y = digits.x_test[:60], digits.y_test[:60]
    got = carlini_wagner(model, x, y, steps=40, searches=2, c=0.1, step_size=0.1)
    assert 5 < got.found.sum() < 55
    assert torch.equal(model(got.adv).argmax(1) != y, got.found)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 4.0])
def test_confidence_is_the_margin_of_every_success(confidence: float) -> None:
    digits, model = mnist(), load_model("net")
    x, y = digits.x_test[:20], digits.y_test[:20]
    options = {"steps": 60, "searches": 2, "c": 1.0, "step_size": 0.1}
    got = carlini_wagner(model, x, y, confidence=confidence, **options)
    logits = model(got.adv)
    lead = logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]
    assert got.found.sum() >= 15
    assert (lead[got.found] >= confidence - 1e-5).all()


def test_more_steps_are_never_worse() -> None:
    case = Case("conv", (1, 8, 8), 3, 8, 0.1, torch.float64, False, 5)
    counts = (1, 3, 9, 20)
    shrinking = [deepfool(case.model(), *case.batch(), steps=s).found.sum() for s in counts]
    assert shrinking == sorted(shrinking)
    searched = [
        carlini_wagner(case.model(), *case.batch(), steps=20, searches=s).distance for s in counts
    ]
    for less, more in zip(searched, searched[1:], strict=False):
        assert (more <= less).all()


# --- the model, the generators, the inputs ------------------------------------------------------


@every
@few
@given(case=cases(kinds=("mlp", "conv", "nan gradient")), at=st.sampled_from([0, 1, 2, 3]))
def test_the_model_comes_back_as_it_was(name: str, norm: str, case: Case, at: int) -> None:
    """Also when it fails (at 0 it doesn't); and nobody draws from the global generators."""
    model = Fuse(case.module(), at)
    before = state(model)
    with global_generators_untouched():
        try:
            run(case, name, norm, model)
        except MemoryError:
            assert at
    assert_same_state(before, state(model))


@every
def test_a_plain_function_s_parameters_get_no_gradient(name: str, norm: str) -> None:
    case = Case("conv", (1, 8, 8), 3, 4, 0.3, torch.float32, False, 14)
    inside = case.module().eval().requires_grad_(True)
    before = state(inside)
    run(case, name, norm, lambda images: inside(images))
    assert_same_state(before, state(inside))


@every
@few
@given(case=cases(kinds=("mlp",)))
def test_batchnorm_and_dropout_are_in_eval_mode(name: str, norm: str, case: Case) -> None:
    model = case.module()
    got = run(case, name, norm, model)
    again = run(case, name, norm, model.eval())
    assert all(map(torch.equal, got, again))


@every
@few
@given(case=cases(dtypes=(torch.float64,)))
def test_the_batch_does_not_matter(name: str, norm: str, case: Case) -> None:
    x, y = case.batch()
    options = {} if name == "deepfool" else {"targeted": case.targeted}
    attack = partial(QUICK[name], case.model(), norm=norm, **options)
    whole, doubled = attack(x, y), attack(torch.cat([x, x]), torch.cat([y, y]))
    alone = [attack(x[i : i + 1], y[i : i + 1]) for i in range(case.n)]
    for k in range(3):
        parts = torch.cat([one[k] for one in alone])
        assert torch.allclose(whole[k].double(), parts.double(), rtol=1e-6, atol=1e-9)
        twice = torch.cat([whole[k], whole[k]])
        assert torch.allclose(doubled[k].double(), twice.double(), rtol=1e-6, atol=1e-9)


@every
@pytest.mark.parametrize("batch_size", [1, 7])
def test_an_error_is_one_in_other_batches_too(name: str, norm: str, batch_size: int) -> None:
    """What is nearest lies close behind the border: rounding must not bring it back."""
    digits, model = mnist(), load_model("net")
    x, y = digits.x_test[:100], digits.y_test[:100]
    options = {"steps": 60} if name != "carlini_wagner" else {"steps": 60, "searches": 4, "c": 1.0}
    got = ATTACKS[name](model, x, y, norm=norm, **options)
    said = torch.cat([model(part).argmax(1) for part in got.adv.split(batch_size)])
    assert torch.equal(said != y, got.found)


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("made_inside", [True, False])
def test_works_in_every_gradient_mode(
    name: str, norm: str, mode: Callable, made_inside: bool
) -> None:
    case = Case("conv", (1, 4, 4), 3, 4, 0.1, torch.float32, False, 6)
    model, (x, y) = case.module(), case.batch()
    expected = QUICK[name](model, x, y, norm=norm)
    with mode():
        inputs = [part.clone() if made_inside else part for part in (x, y)]
        got = QUICK[name](model, *inputs, norm=norm)
        assert all(map(torch.equal, got, expected))
    assert all(map(torch.equal, QUICK[name](model, *inputs, norm=norm), expected))


@every
def test_x_is_left_alone(name: str, norm: str) -> None:
    case = Case("mlp", (7,), 3, 5, 0.1, torch.float32, False, 0)
    x, y = case.batch()
    leaf = x.clone().requires_grad_()
    got = QUICK[name](case.model(), leaf, y, norm=norm)
    assert torch.equal(leaf, x)
    assert leaf.grad is None
    got.adv.add_(1)  # shares no memory with x
    assert torch.equal(leaf, x)


@every
def test_an_empty_batch_returns_empty(name: str, norm: str) -> None:
    case = Case("conv", (3, 5, 4), 3, 4, 0.1, torch.float64, False, 0)
    x, y = case.batch()
    got = QUICK[name](case.model(), x[:0], y[:0], norm=norm)
    assert got.adv.shape == (0, 3, 5, 4)
    assert got.adv.dtype == torch.float64
    assert got.distance.shape == got.found.shape == (0,)


@every
@pytest.mark.parametrize("layout", [noncontiguous, channels_last])
def test_memory_layout_does_not_matter(name: str, norm: str, layout: Callable) -> None:
    case = Case("conv", (3, 5, 4), 3, 5, 0.1, torch.float64, False, 3)
    model, (x, y) = case.module(), case.batch()
    plain, other = (QUICK[name](model, images, y, norm=norm) for images in (x, layout(x)))
    assert torch.allclose(plain.adv, other.adv, rtol=0, atol=1e-9)
    assert torch.allclose(plain.distance, other.distance)


@every
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_any_integer_type(name: str, norm: str, dtype: torch.dtype) -> None:
    case = Case("mlp", (7,), 3, 5, 0.2, torch.float32, False, 4)
    model, (x, y) = case.module(), case.batch()
    plain, other = (QUICK[name](model, x, labels, norm=norm) for labels in (y, y.to(dtype)))
    assert all(map(torch.equal, plain, other))


@every
@pytest.mark.parametrize("wide", [torch.float64, torch.bfloat16])
def test_the_logits_may_have_another_dtype_than_x(name: str, norm: str, wide: torch.dtype) -> None:
    case = Case("mlp", (1, 8, 8), 3, 6, 0.2, torch.float32, False, 5)
    model, (x, y) = case.module().eval().to(wide), case.batch()
    got = QUICK[name](lambda images: model(images.to(wide)), x, y, norm=norm)
    assert got.adv.dtype == got.distance.dtype == torch.float32
    assert torch.equal(model(got.adv.to(wide)).argmax(1) != y, got.found)


@every
def test_bfloat16(name: str, norm: str) -> None:
    """Pixels with two or three digits: DeepFool loses its way more often. Distances are float32."""
    digits, model = mnist(), load_model("net").bfloat16()
    x, y = digits.x_test[:20].bfloat16(), digits.y_test[:20]
    options: dict[str, Any] = {"steps": 40}
    if name == "carlini_wagner":
        options |= {"searches": 3, "c": 1.0, "step_size": 0.1}
    got = ATTACKS[name](model, x, y, norm=norm, **options)
    assert got.adv.dtype == torch.bfloat16
    assert got.distance.dtype == torch.float32
    assert got.found.sum() >= (8 if name == "deepfool" else 15)
    assert (model(got.adv).argmax(1) != y)[got.found].all()


@every
@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_device_without_values(name: str, norm: str, targeted: bool) -> None:
    """Shapes and devices go through; on such a device nobody can be left out of the batch."""
    with torch.device("meta"):
        model = ConvNet()
    x = torch.rand(4, 1, 28, 28, device="meta")
    options = {} if name == "deepfool" else {"targeted": targeted}
    got = QUICK[name](
        model, x, torch.zeros(4, dtype=torch.long, device="meta"), norm=norm, **options
    )
    assert {part.device.type for part in got} == {"meta"}
    assert got.adv.shape == x.shape


@every
def test_memory_does_not_grow_with_steps(name: str, norm: str) -> None:
    """A graph holds its images; so if those of earlier steps are gone, their graphs are too."""
    asked: list[weakref.ref[Tensor]] = []
    living: list[int] = []

    def watched(images: Tensor) -> Tensor:
        asked.append(weakref.ref(images))
        living.append(sum(reference() is not None for reference in asked))
        return stubborn(images.square())  # the square's graph keeps the images

    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"steps": 20} if name != "carlini_wagner" else {"steps": 200, "searches": 3}
    ATTACKS[name](watched, x, torch.zeros(6, dtype=torch.long), norm=norm, **options)
    assert len(living) >= 20
    assert max(living) <= 5


# --- bad input ----------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": 255 * torch.ones(2, 3)}, ValueError, "divide by 255"),
        ({"x": torch.ones(2, 3) - 2}, ValueError, "normalisation"),
        ({"x": torch.full((2, 3), torch.nan)}, ValueError, "NaN pixels"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "floating point"),
        ({"y": torch.zeros(3, dtype=torch.long)}, ValueError, "y must have shape"),
        ({"y": torch.tensor([0, 7])}, ValueError, "labels must be 0 to 1"),
        ({"model": "net"}, TypeError, "callable"),
        ({"model": lambda x: (x[:, :2], x)}, TypeError, "tensor of logits, got tuple"),
        ({"model": lambda x: x[:, :2] * torch.nan}, ValueError, "NaN logits"),
        ({"model": lambda x: x[:, :1]}, ValueError, "K >= 2"),
        ({"model": lambda x: x[:, :2].detach()}, ValueError, "through autograd"),
        ({"norm": "l1"}, ValueError, "norm must be one of"),
        ({"norm": 2}, ValueError, "norm must be one of"),
        ({"steps": 0}, ValueError, "steps must be a whole number"),
        ({"steps": 2.5}, ValueError, "steps must be a whole number"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_bad_input_gets_a_clear_error(
    name: str, norm: str, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    x = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]])
    given_ = {"model": lambda x: x[:, :2], "x": x, "y": torch.tensor([0, 1])}
    given_ |= {"norm": norm, "steps": 3} | change
    model, x, y = (given_.pop(key) for key in ("model", "x", "y"))
    with pytest.raises(error, match=words):
        QUICK[name](model, x, y, **given_)


@pytest.mark.parametrize(
    ("attack", "options", "words"),
    [
        (deepfool, {"overshoot": 0}, "overshoot must be positive"),
        (deepfool, {"classes": 1}, "classes"),
        (fmn, {"gamma": 1.0}, "0 < gamma < 1"),
        (fmn, {"step_size": 0}, "step_size > 0"),
        (carlini_wagner, {"norm": "linf"}, "norm must be one of"),
        (carlini_wagner, {"searches": 0}, "searches must be a whole number"),
        (carlini_wagner, {"c": 0}, "c > 0"),
        (carlini_wagner, {"c": torch.ones(3)}, "c must be a number or of shape"),
        (carlini_wagner, {"step_size": -1}, "step_size > 0"),
        (carlini_wagner, {"confidence": -1}, "confidence >= 0"),
    ],
)
def test_bad_options_get_a_clear_error(
    attack: Callable[..., Minimum], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        attack(lambda x: x[:, :2], torch.rand(2, 3), torch.tensor([0, 1]), **options)


def test_few_classes_are_tried_where_few_are_asked_for() -> None:
    """The nearest border may then be overlooked: it counts how many gradients are taken."""
    model, x, y, exact = linear((1, 8, 8), 6, 4, lead=0.3)
    seen: list[int] = []

    def watched(images: Tensor) -> Tensor:
        logits = model(images)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: seen.append(len(gradient)))
        return logits

    two = deepfool(watched, x, y, classes=2)
    assert len(seen) == 1
    likeliest = exact[0, :, 1:].gather(1, model(x)[:, 1:].argmax(1, keepdim=True))[:, 0]
    assert torch.allclose(two.distance, likeliest, rtol=1e-3)
    assert (deepfool(watched, x, y).distance <= two.distance * 1.001).all()
    assert len(seen) == 1 + 5


def test_a_nan_in_the_gradient_stops_that_pixel_only() -> None:
    case = Case("mlp", (1, 4, 4), 2, 6, 0.3, torch.float64, False, 2)
    model = NanGradient(case.module().eval())
    for name, norm in PAIRS[:4]:
        got, sound = (run(case, name, norm, each) for each in (model, model.inside))
        assert (sound.distance > 0).sum() >= 3
        assert torch.equal(got.found, sound.found), (name, norm)


# --- what is made of the distances --------------------------------------------------------------


def test_the_audit_tells_distances_and_counts_misses() -> None:
    digits = mnist()
    card = audit(load_model("net"), digits, n=80, sections=["distance"], progress=False)
    section = card["distance"]
    near = fmn(load_model("net"), digits.x_test[:80], digits.y_test[:80], norm="linf", steps=60)
    assert section.measures["median"] == pytest.approx(near.distance.sort().values[39].item())
    assert section.measures["median_low"] < section.measures["median"]
    assert section.measures["found"] == Proportion(80, 80)
    rows = [row["right beyond eps"] for row in section.table or []]
    assert rows[0].startswith(f"{(near.distance > 0).double().mean():.3f}")
    assert section.figure is not None
    assert len(section.alt) > 20
    stuck = audit(
        stubborn,
        (digits.x_test[:20], 0 * digits.y_test[:20]),
        sections=["distance"],
        progress=False,
    )["distance"]
    assert "20 without an error found" in stuck.summary
    assert "median" not in stuck.measures
    l1 = audit(load_model("net"), digits, n=20, norm="l1", sections=["distance"], progress=False)
    assert l1["distance"].verdict == "skipped"


def test_median_interval_is_made_of_order_statistics() -> None:
    assert median_interval([5, 1, 2, 3, torch.inf, 4]) == (1, torch.inf)
    # 20 values: fewer than 6 lie below the median with probability 0.0207
    assert median_interval(range(20)) == (5, 14)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 50, generator=generator)
    ends = [median_interval(draw) for draw in draws]
    covered = sum(low <= 0 <= high for low, high in ends) / len(ends)
    assert 0.94 < covered < 0.98
    with pytest.raises(ValueError, match="too few"):
        median_interval([1, 2, 3])
    with pytest.raises(ValueError, match="NaN"):
        median_interval([1.0, float("nan")] * 9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        median_interval(range(20), confidence=95)


def test_distance_curve_starts_at_the_clean_accuracy_and_ends_with_the_misses() -> None:
    use_style()
    near = torch.tensor([0.0, 0.2, torch.inf, 0.1, 0.4])
    figure = distance_curve({"a": near}, xlabel="eps", checks={"a": {0.2: Proportion(2, 5)}})
    (curve,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 1]
    assert curve.get_xdata().tolist() == pytest.approx([0, 0, 0.1, 0.2, 0.4, 0.4])
    assert curve.get_ydata().tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2])
    plt.close(figure)
    with pytest.raises(ValueError, match="at least one"):
        distance_curve({}, xlabel="eps")
