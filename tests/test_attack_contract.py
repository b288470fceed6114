"""The contract of evasion attacks, one suite for every registered attack, those of later chapters too."""

import functools
import gc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_cases import (
    CLIMBERS,
    EVASION,
    PAIRS,
    Case,
    Fuse,
    accepts,
    assert_same_state,
    attack,
    cases,
    channels_last,
    noncontiguous,
    pairs,
    size,
    state,
    two_class_linear,
)
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.losses import cross_entropy, dlr, log_odds, margin
from modelsec.training import inference
from modelsec.zoo import load_model

every = pytest.mark.parametrize(("name", "norm"), PAIRS)
climbing = pytest.mark.parametrize(("name", "norm"), CLIMBERS)
iterative = pytest.mark.parametrize(("name", "norm"), pairs("steps", "callback"))
few = settings(max_examples=15)


def run(case: Case, name: str, norm: str, model: Any = None, **options: Any) -> Tensor:
    x, y = case.batch()
    options = {"eps": case.radius, "targeted": case.targeted, "generator": case.generator} | options
    return attack(name, model or case.model(), x, y, norm=norm, **options)


def losses(model: Any, x: Tensor, y: Tensor, loss: Callable = log_odds) -> Tensor:
    with inference(model), torch.no_grad():
        return loss(model(x), y)


def wrong(model: Any, x: Tensor, y: Tensor) -> Tensor:
    with inference(model), torch.no_grad():
        return model(x).argmax(1) != y


# --- the result ---------------------------------------------------------------------------------


def test_there_are_attacks_to_test() -> None:
    for name in ("fgsm", "bim", "pgd", "mi_fgsm"):
        assert {(name, norm) for norm in ("linf", "l2", "l1")} <= set(CLIMBERS)


@every
@few
@given(case=cases(kinds=("mlp", "conv", "callable", "nan gradient")), early_stop=st.booleans())
def test_result_lies_in_ball_and_box(name: str, norm: str, case: Case, early_stop: bool) -> None:
    x, _ = case.batch()
    adv = run(case, name, norm, early_stop=early_stop)
    assert adv.shape == x.shape
    assert adv.dtype == x.dtype
    assert adv.device == x.device
    assert not adv.requires_grad
    assert not adv.isnan().any()
    assert adv.min() >= 0
    assert adv.max() <= 1
    radius = torch.as_tensor(case.radius, dtype=torch.float64).expand(case.n)
    assert (size(adv - x, norm) <= radius + 1e-6).all()
    assert torch.equal(adv[radius == 0], x[radius == 0])


@climbing
@few
@given(case=cases(kinds=("nan gradient",), eps=(0.3,), classes=(2,)))
def test_a_nan_in_the_gradient_stops_that_pixel_only(name: str, norm: str, case: Case) -> None:
    x, _ = case.batch()
    moved = (run(case, name, norm, random_start=False, early_stop=False) - x).flatten(1) != 0
    sound = run(case, name, norm, case.module().inside, random_start=False, early_stop=False)
    elsewhere = ((sound - x).flatten(1)[:, 1:] != 0).any(1)
    # in l1 the steepest pixel gets all: if that is the first one, another one takes its place
    assert (
        (moved.any(1) >= elsewhere).all() if norm == "l1" else torch.equal(moved.any(1), elsewhere)
    )


def best_on_a_linear_model(x: Tensor, climb: Tensor, eps: float, norm: str) -> Tensor:
    """The point of ball and box that is furthest along ``climb``, in closed form.

    In l1 it is a fractional knapsack: the steepest pixel goes to the wall, then the next one, until
    eps is spent. In l2 only where the box is out of reach.
    """
    if norm != "l1":
        return (x + eps * {"linf": climb.sign(), "l2": climb / climb.norm(dim=1)[:, None]}[norm])\
            .clamp(0, 1)  # fmt: skip
    best = x.clone()
    for image, slope in zip(best, climb, strict=True):
        left = eps
        for i in slope.abs().argsort(descending=True).tolist():
            move = min(left, 1 - float(image[i]) if slope[i] > 0 else float(image[i]))
            image[i] += move * float(slope[i].sign())
            left -= move
    return best


# (norm, whether the box is out of reach) -> a radius for it, of 20 pixels
LINEAR = {
    ("linf", True): 0.3, ("linf", False): 0.3, ("l2", True): 0.35,
    ("l1", True): 0.35, ("l1", False): 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "norm", "room"),
    [(*pair, room) for pair in CLIMBERS for room in (True, False) if (pair[1], room) in LINEAR],
)
@pytest.mark.parametrize("targeted", [False, True])
def test_worst_case_of_a_linear_model_is_reached(
    name: str, norm: str, room: bool, targeted: bool
) -> None:
    if targeted and not accepts(name, "targeted"):
        return
    model, w = two_class_linear(20)
    generator = torch.Generator().manual_seed(1)
    low, high = (0.4, 0.6) if room else (0.0, 1.0)
    x = torch.rand(16, 20, generator=generator, dtype=torch.float64) * (high - low) + low
    y = torch.arange(16) % 2  # right for some, wrong for others: labels count, not predictions
    climb = torch.where(y == 0, 1.0, -1.0)[:, None] * w * (-1 if targeted else 1)
    eps = LINEAR[norm, room]
    best = best_on_a_linear_model(x, climb, eps, norm)
    options = {"norm": norm, "targeted": targeted, "random_start": False, "steps": 10}
    if norm == "l1":  # a step too long takes from all pixels what one gets
        options |= {"steps": 60, "step_size": lambda progress: eps * 1e-7**progress}
    adv = attack(name, model, x, y, eps=eps, early_stop=False, **options)
    if norm == "l1" and accepts(name, "steps") and not accepts(name, "step_size"):
        gained, most = (((there - x) * climb).sum(1) for there in (adv, best))
        assert (gained >= 0.9 * most).all()  # it chooses its steps by itself
    else:
        assert torch.allclose(adv, best, rtol=0, atol=1e-5)


@climbing
def test_a_larger_eps_is_never_worse_on_a_linear_model(name: str, norm: str) -> None:
    model, _ = two_class_linear(12)
    x = torch.rand(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = torch.arange(8) % 2
    options = {"norm": norm, "random_start": False, "steps": 20, "early_stop": False}
    reached = [
        losses(model, attack(name, model, x, y, eps=eps, **options), y)
        for eps in (0.0, 0.01, 0.1, 0.3, 1.0)
    ]
    for smaller, larger in zip(reached, reached[1:], strict=False):
        assert (larger > smaller - 1e-9).all()
    assert (reached[-1] > reached[0]).all()


@every
@pytest.mark.parametrize("early_stop", [True, False])
def test_a_failed_attack_returns_its_best_try(name: str, norm: str, early_stop: bool) -> None:
    model, _ = two_class_linear(12)
    x = torch.rand(32, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = (~wrong(model, x, torch.zeros(32))).long() ^ 1  # what the model says: right at the start
    adv = attack(name, model, x, y, eps=0.01, norm=norm, early_stop=early_stop, steps=4)
    failed = ~wrong(model, adv, y)
    assert failed.sum() > 20
    assert (losses(model, adv, y) > losses(model, x, y))[failed].all()
    assert (size(adv, norm)[failed] > 0).all()


@every
@pytest.mark.parametrize("label", range(3))
def test_labels_are_used_not_predictions(name: str, norm: str, label: int) -> None:
    case = Case("conv", (1, 8, 8), 3, 8, 0.01, torch.float64, False, 12)
    model, (x, _) = case.module(), case.batch()
    y = torch.full((8,), label)  # two of the three labels are none that the model predicts
    options = {"eps": 0.01, "norm": norm, "early_stop": False, "generator": case.generator}
    climbed = log_odds
    if (name, norm) not in CLIMBERS:  # it climbs the margin, and needs time
        options, climbed = options | {"queries": 200}, margin
    away = attack(name, model, x, y, targeted=False, **options)
    assert (losses(model, away, y, climbed) > losses(model, x, y, climbed)).all()
    if accepts(name, "targeted"):
        towards = attack(name, model, x, y, targeted=True, **options)
        assert (losses(model, towards, y, climbed) < losses(model, x, y, climbed)).all()


# --- the model, the generators, the inputs ------------------------------------------------------


@every
@few
@given(case=cases(kinds=("mlp", "conv", "nan gradient")))
def test_the_model_comes_back_as_it_was(name: str, norm: str, case: Case) -> None:
    model = case.module()
    before = state(model)
    run(case, name, norm, model)
    assert_same_state(before, state(model))


@every
def test_a_plain_function_s_parameters_get_no_gradient(name: str, norm: str) -> None:
    """It can't be frozen as a module can, so a backward pass would leave gradients in it."""
    case = Case("conv", (1, 8, 8), 3, 4, 0.3, torch.float32, False, 14)
    inside = case.module().eval().requires_grad_(True)
    before = state(inside)
    run(case, name, norm, lambda images: inside(images))
    assert_same_state(before, state(inside))


@every
@pytest.mark.parametrize("at", [1, 2])
@few
@given(case=cases(kinds=("mlp", "conv")))
def test_the_model_comes_back_when_it_fails(name: str, norm: str, at: int, case: Case) -> None:
    if at > 1 and not accepts(name, "steps"):
        return
    model = Fuse(case.module(), at)
    before = state(model)
    with pytest.raises(MemoryError, match="fuse"):
        run(case, name, norm, model, early_stop=False)
    assert_same_state(before, state(model))


@every
@few
@given(case=cases(kinds=("mlp",), eps=(0.3,)))
def test_batchnorm_and_dropout_are_in_eval_mode(name: str, norm: str, case: Case) -> None:
    model = case.module()
    adv = run(case, name, norm, model)
    assert torch.equal(adv, run(case, name, norm, model.eval()))


@every
@few
@given(case=cases())
def test_a_generator_gives_the_same_bytes_again(name: str, norm: str, case: Case) -> None:
    with global_generators_untouched():
        model = case.model()
        first, again = (run(case, name, norm, model, restarts=2) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(("name", "norm"), pairs("generator"))
def test_other_generators_give_other_starts(name: str, norm: str) -> None:
    case = Case("mlp", (1, 8, 8), 3, 4, 0.3, torch.float32, False, 1)
    other = torch.Generator().manual_seed(99)
    seeded, drawn = run(case, name, norm), run(case, name, norm, generator=other)
    assert not torch.equal(seeded, drawn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(run(case, name, norm, generator=None), seeded)  # the global one


@every
@few
@given(case=cases(dtypes=(torch.float64,)), early_stop=st.booleans())
def test_the_batch_does_not_matter(name: str, norm: str, case: Case, early_stop: bool) -> None:
    x, y = case.batch()
    radius = torch.as_tensor(case.radius, dtype=x.dtype).expand(case.n)
    options = {"norm": norm, "targeted": case.targeted, "early_stop": early_stop, "start": x}
    model = case.model()

    def again(**differently: Any) -> dict[str, Any]:
        return options | {"generator": case.generator} | differently  # in its first state

    whole = attack(name, model, x, y, eps=radius, **again())
    for i in range(case.n):
        one = slice(i, i + 1)
        alone = attack(name, model, x[one], y[one], eps=radius[one], **again(start=x[one]))
        assert torch.allclose(whole[one], alone, rtol=0, atol=1e-9)
    twice = again(start=torch.cat([x, x]))
    double = torch.cat([x, x]), torch.cat([y, y])
    doubled = attack(name, model, *double, eps=torch.cat([radius, radius]), **twice)
    assert torch.allclose(doubled, torch.cat([whole, whole]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "norm"), [p for p in CLIMBERS if p in pairs("loss", "targeted")])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_loss_is_summed_not_averaged(name: str, norm: str, targeted: bool) -> None:
    case = Case("conv", (1, 8, 8), 3, 6, 0.3, torch.float32, targeted, 0)
    seen: list[Tensor] = []

    def watched(logits: Tensor, y: Tensor) -> Tensor:
        value = log_odds(logits, y)
        if value.requires_grad:
            value.register_hook(seen.append)
        return value

    run(case, name, norm, loss=watched, early_stop=False)
    assert seen
    for weight in seen:  # of each sample's loss in what is differentiated
        assert weight.tolist() == [-1.0 if targeted else 1.0] * 6


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("made_inside", [True, False])
def test_works_in_every_gradient_mode(
    name: str, norm: str, mode: Callable, made_inside: bool
) -> None:
    case = Case("conv", (1, 4, 4), 3, 4, "per sample", torch.float32, False, 6)
    model, (x, y) = case.module(), case.batch()
    options = {"norm": norm, "restarts": 2, "random_start": True}
    expected = attack(name, model, x, y, eps=case.radius, generator=case.generator, **options)
    with mode():
        inputs = [part.clone() if made_inside else part for part in (x, y, case.radius)]
        adv = attack(name, model, *inputs[:2], eps=inputs[2], generator=case.generator, **options)
        assert torch.equal(adv, expected)
    # and afterwards, with what was made in there
    adv = attack(name, model, *inputs[:2], eps=inputs[2], generator=case.generator, **options)
    assert torch.equal(adv, expected)


@every
@few
@given(case=cases())
def test_x_may_belong_to_a_graph_and_is_left_alone(name: str, norm: str, case: Case) -> None:
    x, y = case.batch()
    leaf = x.clone().requires_grad_()
    model = case.model()
    options = {"norm": norm, "targeted": case.targeted, "eps": case.radius}
    expected = attack(name, model, x.clone(), y, generator=case.generator, **options)
    for given_x in (leaf, leaf * 1):
        adv = attack(name, model, given_x, y, generator=case.generator, **options)
        assert torch.equal(adv, expected)
        assert not adv.requires_grad
        assert torch.equal(given_x, x)
    assert leaf.requires_grad
    assert leaf.grad is None
    adv.add_(1)  # the caller may write on the result: it shares no memory with x
    assert torch.equal(leaf, x)


@every
def test_what_the_model_was_shown_stays_as_it_was(name: str, norm: str) -> None:
    """Whoever logs the questions keeps tensors: none of them may be written on."""
    case = Case("mlp", (1, 4, 4), 4, 3, 0.2, torch.float32, False, 1)
    model, kept = case.model(), []

    def logging(x: Tensor) -> Tensor:
        kept.append((x.detach(), x.detach().clone()))
        return model(x)

    run(case, name, norm, logging, early_stop=False)
    assert len(kept) > 0
    assert all(torch.equal(now, then) for now, then in kept)


@every
def test_the_result_is_no_view_of_x(name: str, norm: str) -> None:
    case = Case("mlp", (7,), 2, 3, 0.0, torch.float32, False, 0)
    x, y = case.batch()
    adv = attack(name, case.model(), x, y, eps=0.0, norm=norm)
    assert torch.equal(adv, x)
    assert adv.data_ptr() != x.data_ptr()


@every
def test_an_empty_batch_returns_empty(name: str, norm: str) -> None:
    case = Case("conv", (3, 5, 4), 3, 4, 0.1, torch.float64, False, 0)
    x, y = case.batch()
    adv = attack(name, case.model(), x[:0], y[:0], eps=0.1, norm=norm)
    assert adv.shape == (0, 3, 5, 4)
    assert adv.dtype == torch.float64


@every
@pytest.mark.parametrize("layout", [noncontiguous, channels_last])
@pytest.mark.parametrize("early_stop", [True, False])
def test_memory_layout_does_not_matter(
    name: str, norm: str, layout: Callable, early_stop: bool
) -> None:
    case = Case("conv", (3, 5, 4), 3, 5, "per sample", torch.float64, False, 3)
    model, (x, y) = case.module(), case.batch()
    assert not layout(x).is_contiguous()
    options = {"eps": case.radius, "norm": norm, "early_stop": early_stop}
    plain, other = (
        attack(name, model, images, y, generator=case.generator, **options)
        for images in (x, layout(x))
    )
    assert torch.allclose(plain, other, rtol=0, atol=1e-9)


@every
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_any_integer_type(name: str, norm: str, dtype: torch.dtype) -> None:
    case = Case("mlp", (7,), 3, 5, 0.2, torch.float32, False, 4)
    model, (x, y) = case.module(), case.batch()
    for loss in (log_odds, cross_entropy, margin, dlr):
        options = {"eps": 0.2, "norm": norm, "loss": loss}
        plain = attack(name, model, x, y, generator=case.generator, **options)
        other = attack(name, model, x, y.to(dtype), generator=case.generator, **options)
        assert torch.equal(plain, other)


@every
@pytest.mark.parametrize("early_stop", [True, False])
def test_the_logits_may_have_another_dtype_than_x(name: str, norm: str, early_stop: bool) -> None:
    case = Case("callable", (7,), 3, 6, 0.2, torch.float64, False, 5)
    model, (x, y) = case.model(), case.batch()
    options = {"eps": 0.2, "norm": norm, "early_stop": early_stop, "generator": case.generator}
    adv = attack(name, lambda images: model(images.double()), x.float(), y, **options)
    assert adv.dtype == torch.float32


# --- odd models ---------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("loss", [dlr, margin, log_odds, cross_entropy])
def test_two_classes_are_enough(name: str, norm: str, loss: Callable) -> None:
    """The DLR loss needs three; it says so and falls back to the margin."""
    case = Case("mlp", (1, 4, 4), 2, 6, 0.3, torch.float64, False, 16)
    options = {"loss": loss} if accepts(name, "loss") else {}
    with pytest.warns(UserWarning, match="needs") if options.get("loss") is dlr else nullcontext():
        adv = run(case, name, norm, **options)
    if options.get("loss") is dlr:
        assert torch.equal(adv, run(case, name, norm, loss=margin))
    model, (x, y) = case.model(), case.batch()
    assert ((losses(model, adv, y) >= losses(model, x, y)) | wrong(model, adv, y)).all()


@every
def test_a_batch_of_one(name: str, norm: str) -> None:
    """BatchNorm in train mode would refuse it."""
    case = Case("mlp", (1, 8, 8), 3, 1, 0.3, torch.float32, False, 17)
    model, (x, _) = case.module().train(), case.batch()
    adv = run(case, name, norm, model, early_stop=False)
    assert adv.shape == (1, 1, 8, 8)
    assert not torch.equal(adv, x)


@every
@pytest.mark.parametrize("images", [torch.bfloat16, torch.float32])
def test_a_bfloat16_model(name: str, norm: str, images: torch.dtype) -> None:
    """Asked in its own type, or about float32 images as mixed precision does."""
    case = Case("conv", (3, 8, 8), 3, 8, 0.3, torch.float32, False, 18)
    inside, (x, y) = case.module().eval().bfloat16(), case.batch()
    eps = {"linf": 0.2, "l2": 1.0, "l1": 6.0}[norm]
    x = x.to(images)
    options = {"eps": eps, "norm": norm, "early_stop": False, "generator": case.generator}
    adv = attack(name, lambda z: inside(z.bfloat16()), x, y, **options)
    assert adv.dtype == images
    assert adv.isfinite().all()
    assert adv.min() >= 0
    assert adv.max() <= 1
    ulp = torch.finfo(images).eps  # a pixel near 1 can't be stored more exactly than that
    room = {"linf": ulp, "l2": ulp * 192**0.5, "l1": ulp * 192}[norm]
    assert (size(adv.double() - x.double(), norm) <= eps + max(room, 1e-6)).all()
    climbed = log_odds if accepts(name, "loss") else margin
    before, after = (
        losses(lambda z: inside(z.bfloat16()), images, y, climbed) for images in (x, adv)
    )
    assert after.mean() > before.mean()
    assert (after > before).float().mean() > 0.7


@every
def test_a_channels_last_model(name: str, norm: str) -> None:
    case = Case("conv", (3, 5, 4), 3, 5, 0.2, torch.float64, False, 19)
    plain = run(case, name, norm)
    other = run(case, name, norm, case.module().to(memory_format=torch.channels_last))
    assert torch.allclose(plain, other, rtol=0, atol=1e-9)


@iterative
def test_memory_does_not_grow_with_steps(name: str, norm: str) -> None:
    """Neither in tensors that Python can see, nor in graphs that hang on them."""
    images = torch.rand(500, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 3))
    seen: list[tuple[int, int]] = []

    def look(point: Any) -> None:
        if point.step in (3, 40):
            held = {
                part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()
                for part in gc.get_objects()
                if type(part) is Tensor
            }
            statm = Path("/proc/self/statm")
            resident = int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0
            seen.append((sum(held.values()), resident))

    options = {"steps": 40, "early_stop": False, "callback": look, "norm": norm}
    labels = torch.zeros(500, dtype=torch.long)
    attack(name, model, images, labels, eps=0.1, **options)
    (early, resident_early), (late, resident_late) = seen
    one = images.numel() * 4  # bytes of one iterate, 2 MB
    assert late - early <= one
    assert resident_late - resident_early <= 15 * one  # 37 steps that are kept would hold more


# --- confident models ---------------------------------------------------------------------------


class Scaled(nn.Module):
    """A network whose logits are multiplied: the same predictions, far more confident."""

    def __init__(self, inside: nn.Module, factor: float) -> None:
        super().__init__()
        self.inside, self.factor = inside, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inside(x)


# Powers of two scale without any rounding; other factors are compared in double precision.
FACTORS = [(torch.float32, f) for f in (4, 64, 1024)] + [
    (torch.float64, f) for f in (3, 6, 50, 1000)
]


@every
@pytest.mark.parametrize(("dtype", "factor"), FACTORS, ids=str)
@settings(max_examples=5)
@given(case=cases(kinds=("mlp", "conv"), classes=(2, 4)))
def test_confidence_does_not_matter(
    name: str, norm: str, dtype: torch.dtype, factor: float, case: Case
) -> None:
    """With two classes for the default loss; with more, its direction weighs the other classes by
    their probability, so the margin stands in."""
    case = Case(**vars(case) | {"dtype": dtype})
    model = case.module()
    options = {} if case.classes == 2 else {"loss": margin}
    usual = run(case, name, norm, model, **options)
    scaled = run(case, name, norm, Scaled(model, factor), **options)
    assert torch.allclose(usual, scaled, rtol=0, atol=0 if dtype == torch.float32 else 1e-9)


@every
@pytest.mark.parametrize("factor", [6, 50, 1000])
def test_a_confident_net_is_fooled_as_often(name: str, norm: str, factor: float, digits) -> None:
    net, (x, y) = load_model("net"), digits
    eps = {"linf": 0.05, "l2": 1.0, "l1": 4.0}[norm]
    left = [
        1
        - float(
            wrong(model, attack(name, model, x, y, eps=eps, norm=norm, steps=10), y).double().mean()
        )
        for model in (net, Scaled(net, factor))
    ]
    assert left[1] <= left[0] + 0.08


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    from modelsec.data import mnist

    data = mnist()
    return data.x_test[:100], data.y_test[:100]


# --- attacks of many steps ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), pairs("steps", "step_size"))
@few
@given(case=cases(kinds=("mlp", "conv"), dtypes=(torch.float64,), eps=(0.3, 1.0)))
def test_steps_and_restarts_never_hurt(name: str, norm: str, case: Case) -> None:
    model, (_, y) = case.module(), case.batch()
    sign = -1 if case.targeted else 1
    for key, counts in {"steps": (1, 2, 5, 9), "restarts": (1, 2, 4)}.items():
        if not accepts(name, key):
            continue
        options = {"step_size": 0.1, "early_stop": False}
        best = [
            sign * losses(model, run(case, name, norm, model, **options | {key: count}), y)
            for count in counts
        ]
        for less, more in zip(best, best[1:], strict=False):
            assert (more >= less - 1e-9).all()
        hit = [
            wrong(model, run(case, name, norm, model, step_size=0.1, **{key: count}), y)
            ^ case.targeted
            for count in counts
        ]
        for less, more in zip(hit, hit[1:], strict=False):
            assert (more >= less).all()


@iterative
@few
@given(case=cases(kinds=("mlp", "conv", "callable"), dtypes=(torch.float64,), eps=(0.3,)))
def test_the_worst_point_after_any_step_is_returned(name: str, norm: str, case: Case) -> None:
    model, (_, y), path = case.model(), case.batch(), []
    options = {"steps": 6, "restarts": 3, "step_size": 0.25, "early_stop": False}
    adv = run(case, name, norm, model, callback=path.append, **options)
    steps, restarts = [(point.restart, point.step) for point in path], range(3)
    if not accepts(name, "restarts"):
        restarts = range(1)
    assert steps == [(restart, step) for restart in restarts for step in range(7)]
    assert not any(point.loss.requires_grad or point.adv.requires_grad for point in path)
    seen = torch.stack([point.loss for point in path if point.step])
    value = losses(model, adv, y) * (-1 if case.targeted else 1)
    assert torch.allclose(value, seen.amax(0), rtol=0, atol=1e-9)


@iterative
@few
@given(case=cases(kinds=("mlp", "conv"), dtypes=(torch.float64,), eps=(0.3, "per sample")))
def test_early_stop_leaves_fooled_samples_alone(name: str, norm: str, case: Case) -> None:
    model, (_, y), path = case.module(), case.batch(), []
    options = {"steps": 5, "restarts": 3, "callback": path.append}
    fooled = wrong(model, run(case, name, norm, model, **options), y) ^ case.targeted
    for before, after in zip(path, path[1:], strict=False):
        left = set(before.rows.tolist()) - set(after.rows.tolist())
        if after.step:  # who is left out of the next step was fooled, and stays so
            assert fooled[list(left)].all()
        assert set(after.rows.tolist()) <= set(before.rows.tolist())
    last = path[-1]
    still_right = set((~fooled).nonzero().flatten().tolist())
    assert still_right <= set(last.rows.tolist())  # and nobody else was given up


@pytest.mark.parametrize(("name", "norm"), pairs("steps", "step_size"))
def test_early_stop_keeps_the_first_point_that_fools(name: str, norm: str) -> None:
    """Even where its loss is lower than that of a point seen before, as cross-entropy's can be."""
    case = Case("mlp", (1, 4, 4), 5, 40, 0.3, torch.float64, False, 11)
    model, (x, y) = case.module().eval(), case.batch()
    calls, path = [], []

    def fading(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        return log_odds(logits, labels) - 100 * len(calls)

    options = {"steps": 20, "callback": path.append, "loss": fading, "generator": case.generator}
    eps = 3.0 if norm == "l1" else 0.3
    adv = attack(name, model, x, y, eps=eps, norm=norm, step_size=eps / 10, **options)
    first: dict[int, tuple[int, Tensor]] = {}
    for point in path:
        fooled = wrong(model, point.adv, y[point.rows])
        for row, image in zip(point.rows[fooled].tolist(), point.adv[fooled], strict=True):
            first.setdefault(row, (point.step, image))
    assert sum(step > 1 for step, _ in first.values()) >= 3
    for row, (_, image) in first.items():
        assert torch.equal(adv[row], image)


@pytest.mark.parametrize(("name", "norm"), pairs("steps", "step_size"))
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_takes_as_many_steps_as_asked(name: str, norm: str, steps: int) -> None:
    model, _ = two_class_linear(12)
    x = torch.full((4, 12), 0.5, dtype=torch.float64)
    y, calls = torch.tensor([0, 1, 0, 1]), []
    model.register_forward_hook(lambda *_: calls.append(1))
    options = {"norm": norm, "random_start": False, "early_stop": False}
    adv = attack(name, model, x, y, eps=0.4, steps=steps, step_size=0.01, **options)
    assert torch.allclose(size(adv - x, norm), torch.full((4,), 0.01 * steps, dtype=torch.float64))
    assert len(calls) == steps + 1  # one gradient a step, and a look at the last point
    adv = attack(
        name,
        model,
        x,
        y,
        eps=0.4,
        steps=steps,
        step_size=torch.tensor([0.0, 0.01, 0.02, 0.03]),
        **options,
    )
    expected = torch.tensor([0.0, 0.01, 0.02, 0.03], dtype=torch.float64) * steps
    assert torch.allclose(size(adv - x, norm), expected, atol=1e-7)


@pytest.mark.parametrize(("name", "norm"), pairs("steps", "step_size"))
def test_how_far_all_steps_go_by_default(name: str, norm: str) -> None:
    """PGD's can cross the ball and come back; BIM's and MI-FGSM's are those of their papers."""
    model, _ = two_class_linear(12)
    x = torch.full((2, 12), 0.5, dtype=torch.float64)
    path: list[Any] = []
    options = {"norm": norm, "random_start": False, "early_stop": False, "callback": path.append}
    attack(name, model, x, torch.tensor([0, 1]), eps=0.4, steps=10, **options)
    first = {"pgd": 2.5, "bim": 1.25, "mi_fgsm": 1.0}[name] * 0.4 / 10
    if (name, norm) == ("pgd", "l1"):
        first = 0.4  # and shorter ones from there on
    assert torch.allclose(size(path[1].adv - x, norm), torch.tensor(first, dtype=torch.float64))


@pytest.mark.parametrize(("name", "norm"), pairs("steps", "step_size"))
def test_a_step_size_may_be_a_function_of_progress(name: str, norm: str) -> None:
    model, _ = two_class_linear(12)
    x, y = torch.full((4, 12), 0.5, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    asked, path = [], []

    def falling(progress: float) -> float:
        asked.append(progress)
        return 0.04 * (1 - progress)

    options = {"norm": norm, "eps": 0.45, "random_start": False, "early_stop": False, "steps": 4}
    attack(name, model, x, y, step_size=falling, callback=path.append, **options)
    assert asked == [0, 0.25, 0.5, 0.75]
    reached = [float(size(point.adv - x, norm)[0]) for point in path]
    assert torch.allclose(torch.tensor(reached), torch.tensor([0, 0.04, 0.07, 0.09, 0.1]))
    each = torch.tensor([0.0, 0.01, 0.02, 0.03])
    numbers = attack(name, model, x, y, step_size=each, **options)
    function = attack(name, model, x, y, step_size=lambda _: each, **options)
    assert torch.equal(numbers, function)


def one_of(rule: Callable[[float], Tensor], i: int, progress: float) -> Tensor:
    return rule(progress)[i]


@pytest.mark.parametrize(("name", "norm"), pairs("steps", "step_size"))
def test_each_sample_keeps_its_own_step_size_when_others_are_left_alone(
    name: str, norm: str
) -> None:
    case = Case("mlp", (1, 4, 4), 3, 20, 0.3, torch.float64, False, 13)
    x, y = case.batch()
    each = torch.linspace(0, 0.2, 20, dtype=x.dtype)
    options = {"norm": norm, "eps": 0.3, "steps": 8, "start": x, "random_start": False}
    for rule in (each, lambda progress: each * (1 - progress)):
        model = case.model()
        whole = attack(name, model, x, y, step_size=rule, **options)
        for i in range(0, 20, 3):
            own = functools.partial(one_of, rule, i) if callable(rule) else rule[i]
            one, begin = x[i : i + 1], {"start": x[i : i + 1]}
            alone = attack(name, model, one, y[i : i + 1], step_size=own, **options | begin)
            assert torch.allclose(whole[i : i + 1], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "norm"), pairs("generator", "restarts", "callback"))
@few
@given(case=cases(eps=(0.02, 0.3, "per sample")))
def test_random_starts_lie_in_ball_and_box(name: str, norm: str, case: Case) -> None:
    x, _ = case.batch()
    path: list[Any] = []
    run(case, name, norm, restarts=3, early_stop=False, callback=path.append)
    starts = [point.adv for point in path if not point.step]
    radius = torch.as_tensor(case.radius, dtype=torch.float64).expand(case.n)
    for start in starts:
        assert start.min() >= 0
        assert start.max() <= 1
        assert (size(start - x, norm) <= radius + 1e-6).all()
        assert (start != x).flatten(1).any(1)[radius > 0].all()
    assert len(starts) == 3
    assert torch.equal(starts[0], starts[1]) == (not radius.any())


@pytest.mark.parametrize(("name", "norm"), pairs("start", "callback"))
def test_the_start_is_a_start_not_a_result(name: str, norm: str) -> None:
    """Here the loss is highest at 0.5, and a long step leads past it: still a step is what counts."""

    def model(images: Tensor) -> Tensor:
        hill = -((images - 0.5) ** 2).sum(1)
        return torch.stack([0 * hill, hill - 1], 1)

    x, path = torch.full((3, 4), 0.6, dtype=torch.float64), []
    options = {"steps": 1, "step_size": 0.4, "early_stop": False, "callback": path.append}
    options |= {"start": torch.full_like(x, 0.51)}
    adv = attack(name, model, x, torch.zeros(3, dtype=torch.long), eps=0.5, norm=norm, **options)
    assert (path[0].loss > path[1].loss).all()
    assert torch.equal(adv, path[1].adv)


@pytest.mark.parametrize(("name", "norm"), pairs("generator", "restarts", "callback"))
def test_a_sample_s_start_does_not_depend_on_who_is_fooled_already(name: str, norm: str) -> None:
    case = Case("mlp", (1, 4, 4), 3, 20, 0.1, torch.float64, False, 13)
    starts: list[dict[tuple[int, int], Tensor]] = [{}, {}]
    for early_stop, drawn in zip((True, False), starts, strict=True):
        path: list[Any] = []
        run(case, name, norm, restarts=3, early_stop=early_stop, callback=path.append)
        for point in path:
            if not point.step:
                rows = zip(point.rows.tolist(), point.adv, strict=True)
                drawn.update({(point.restart, row): image for row, image in rows})
    assert 0 < sum(restart > 0 for restart, _ in starts[0]) < 40  # some were fooled, some not
    assert all(torch.equal(image, starts[1][key]) for key, image in starts[0].items())


@pytest.mark.parametrize(("name", "norm"), pairs("start", "callback"))
def test_a_given_start_is_where_it_starts(name: str, norm: str) -> None:
    case = Case("mlp", (1, 4, 4), 3, 6, 0.3, torch.float64, False, 9)
    x, _ = case.batch()
    start, path = (x + 0.05).clamp(0, 1), []
    run(case, name, norm, eps=0.85, start=start, callback=path.append, early_stop=False)
    assert torch.equal(path[0].adv, start)


@iterative
def test_the_default_loss_climbs_as_cross_entropy_does(name: str, norm: str) -> None:
    case = Case("conv", (1, 8, 8), 5, 6, 0.1, torch.float64, False, 10)
    paths: list[list[Any]] = [[], []]
    for path, options in zip(paths, ({}, {"loss": cross_entropy}), strict=True):
        run(case, name, norm, early_stop=False, callback=path.append, steps=8, **options)
    for mine, usual in zip(*paths, strict=True):
        assert torch.allclose(mine.adv, usual.adv, rtol=0, atol=1e-9)


def test_cards_name_known_norms() -> None:
    for entry in EVASION.values():
        assert entry.threat.norms
        assert entry.threat.source.startswith("https://")
