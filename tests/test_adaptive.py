"""BPDA and EOT: what they compute, that every attack can use them, and that they leave all else alone."""

import weakref
from typing import Any, ClassVar

import pytest
import torch
from attack_cases import PAIRS, Case, attack, cases, size
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks import pgd
from modelsec.attacks.adaptive import bpda, eot
from modelsec.data import mnist
from modelsec.training import evaluate, inference
from modelsec.zoo import load_model

DIGITS = mnist()
every = pytest.mark.parametrize(("name", "norm"), PAIRS)
few = settings(max_examples=5)
pytestmark = pytest.mark.filterwarnings("ignore:.*falling back to the margin")


def levels(x: Tensor) -> Tensor:
    return (5 * x).round() / 5


def gradient_of(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(layer(leaf), leaf, weight)
    return found


class Noisy(nn.Module):
    """A model that adds noise to its input in every call, in eval mode too."""

    def __init__(self, inside: nn.Module, std: float = 0.3) -> None:
        super().__init__()
        self.inside, self.std = inside, std

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x + self.std * torch.randn_like(x))


def linear(pixels: int = 16, classes: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(pixels, classes, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, pixels, generator=generator))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


# --- bpda


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_it_gives_the_transform_s_value_and_the_stand_in_s_gradient(
    seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 1, 4, 4, generator=generator, dtype=dtype)
    weight = torch.randn(3, 1, 4, 4, generator=generator, dtype=dtype)
    for stand_in in (None, torch.sin, lambda x: x**2):
        layer = bpda(levels, stand_in)
        assert torch.equal(layer(x.clone().requires_grad_()), levels(x))
        assert torch.equal(layer(x), levels(x))
        wanted = gradient_of(stand_in or (lambda x: x), x, weight)
        assert torch.equal(gradient_of(layer, x, weight), wanted)


def test_a_transform_may_leave_torch() -> None:
    def through_numpy(x: Tensor) -> Tensor:
        return torch.from_numpy((x.numpy() > 0.5).astype("float32"))

    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    adv = pgd(nn.Sequential(bpda(through_numpy), linear()), x, torch.zeros(4).long(), eps=0.3)
    assert (adv != x).any()


def test_it_may_stand_inside_a_network_and_change_the_shape() -> None:
    at = torch.tensor([0.25, 0.5, 0.75]).view(1, 3, 1, 1)

    def code(x: Tensor) -> Tensor:
        return (x > at).float()

    def ramp(x: Tensor) -> Tensor:
        return (4 * (x - at) + 0.5).clamp(0, 1)

    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(bpda(code, ramp), nn.Conv2d(3, 2, 4), nn.Flatten())
    assert torch.equal(model[0](x), code(x))
    assert (gradient_of(model, x, torch.ones(2, 2)) != 0).any()
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 4\), got \(2, 1, 4, 4\): give a stand"):
        bpda(code)(x)
    with torch.no_grad():  # nobody asks for a gradient, so no stand-in is needed
        assert bpda(code)(x).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bpda(3), "transform must be callable, got int"),
        (lambda: bpda(levels, "identity"), "stand_in must be callable, got str"),
        (lambda: bpda(lambda x: (x, 1))(torch.rand(2, 3)), "must return a tensor, got tuple"),
        (lambda: eot("model"), "model must be callable, got str"),
    ],
)
def test_what_is_no_function_is_refused(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("draws", [0, -1, 2.0, True, None])
def test_draws_must_be_a_count(draws: Any) -> None:
    with pytest.raises(ValueError, match="draws must be a whole number, 1 or more"):
        eot(linear(), draws)


def test_a_stand_in_of_another_shape_is_told() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got \(2, 1\)$"):
        bpda(levels, lambda x: x[:, :1])(torch.rand(2, 3))


def test_it_breaks_a_rounding_that_stops_pgd() -> None:
    def coarse(x: Tensor) -> Tensor:
        return (3 * x).round() / 3

    x, y, net = DIGITS.x_test[:100], DIGITS.y_test[:100], load_model("net")
    defended = nn.Sequential(nn.Identity(), net)
    defended[0].forward = coarse
    options = {"eps": 0.2, "steps": 20}
    blind = pgd(defended, x, y, generator=torch.Generator().manual_seed(0), **options)
    adapted = nn.Sequential(bpda(coarse), net)
    seeing = pgd(adapted, x, y, generator=torch.Generator().manual_seed(0), **options)
    assert evaluate(defended, blind, y).value > 0.8
    assert evaluate(defended, seeing, y).value < 0.1


# --- eot


@settings(max_examples=20)
@given(
    draws=st.integers(1, 5),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_the_mean_of_its_draws_forwards_and_backwards(
    draws: int, seed: int, dtype: torch.dtype
) -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, dtype=x.dtype)
        seen.append(noise)
        return ((x + noise) ** 3).flatten(1)[:, :4]

    x = torch.rand(3, 1, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    leaf = x.clone().requires_grad_()
    averaged = eot(model, draws, generator=torch.Generator().manual_seed(seed))(leaf)
    noises = list(seen)
    assert len(noises) == draws
    assert draws == 1 or not torch.equal(noises[0], noises[1])
    wanted = torch.stack([((x + noise) ** 3).flatten(1)[:, :4] for noise in noises]).mean(0)
    assert torch.allclose(averaged, wanted)
    weight = torch.randn(3, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(averaged, leaf, weight)
    assert all(map(torch.equal, seen[draws:], noises))  # the same draws were made again
    slopes = torch.stack([3 * (x + noise) ** 2 for noise in noises]).mean(0).flatten(1)
    slopes[:, 4:] = 0
    slopes[:, :4] *= weight
    assert torch.allclose(found.flatten(1), slopes)


def test_every_call_draws_anew_and_the_generator_says_what() -> None:
    x, model = torch.rand(2, 16), Noisy(linear())
    first, again = (eot(model, 3, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    with global_generators_untouched():
        one, two = first(x), first(x)
        assert torch.equal(one, again(x))
    assert not torch.equal(one, two)
    drawn = []
    for seed in (1, 1, 2):  # without a generator it follows the global one
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            drawn.append(eot(model, 3)(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


class Counted:
    """A tensor that autograd keeps for later."""

    alive: ClassVar["weakref.WeakSet[Counted]"] = weakref.WeakSet()
    most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Counted.alive.add(self)
        Counted.most = max(Counted.most, len(Counted.alive))


def kept_at_once(draws: int) -> int:
    Counted.most = 0
    model = eot(Noisy(nn.Sequential(linear(), nn.Tanh(), nn.Softplus())), draws)
    x = torch.rand(4, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(Counted, lambda kept: kept.tensor):
        torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    return Counted.most


def test_memory_does_not_grow_with_the_draws() -> None:
    assert 0 < kept_at_once(2) == kept_at_once(30)


def test_the_mean_of_logits_and_of_log_probabilities_are_one_for_an_attack() -> None:
    model = Noisy(linear(dtype=torch.float64))
    x = torch.rand(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    paths: list[list[Any]] = [[], []]
    for path, inside in zip(paths, (model, lambda x: model(x).log_softmax(1)), strict=True):
        averaged = eot(inside, 4, generator=torch.Generator().manual_seed(3))
        options = {"random_start": False, "early_stop": False, "callback": path.append}
        pgd(averaged, x, y, eps=0.3, steps=5, **options)
    for one, other in zip(*paths, strict=True):
        assert torch.allclose(one.adv, other.adv, rtol=0, atol=1e-9)


def test_a_model_without_randomness_is_attacked_as_ever() -> None:
    case = Case("conv", (1, 8, 8), 3, 6, 0.2, torch.float64, False, 3)
    model, (x, y) = case.module().eval(), case.batch()
    options = {"eps": 0.2, "steps": 4, "early_stop": False}
    plain = pgd(model, x, y, generator=case.generator, **options)
    wrapped = pgd(eot(model, 3), x, y, generator=case.generator, **options)
    assert torch.allclose(plain, wrapped, rtol=0, atol=1e-9)


def test_more_draws_find_what_one_draw_hides() -> None:
    """The slope that is the same in all draws drowns in one that is drawn anew."""
    inside = linear(64, 2, torch.float64)
    x = torch.full((80, 64), 0.5, dtype=torch.float64)
    x += 0.2 * torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(4)) - 0.1
    with torch.no_grad():
        y = inside(x).argmax(1)

    def hiding(x: Tensor) -> Tensor:
        wild = 30 * torch.randn(2, 64, dtype=x.dtype)
        return inside(x) + (x - x.detach()) @ wild.T  # the value is as it was

    left = {}
    for draws in (1, 20):
        model = eot(hiding, draws, generator=torch.Generator().manual_seed(5))
        adv = pgd(model, x, y, eps=0.12, steps=10, random_start=False)
        left[draws] = evaluate(inside, adv, y).value
    assert left[1] > left[20] + 0.3


@pytest.mark.parametrize(
    "inside", [lambda x: linear()(x.detach()), lambda x: torch.rand(len(x), 3)]
)
def test_a_model_without_a_gradient_is_told_as_ever(inside: Any) -> None:
    with pytest.raises(ValueError, match="use a black-box attack, or BPDA"):
        pgd(eot(inside, 2), torch.rand(3, 16), torch.tensor([0, 1, 2]), eps=0.1)


# --- both, with every attack


def defended(inside: Any, generator: torch.Generator) -> nn.Module:
    """Rounding and noise in front of a model, made ready for an attack."""
    front = bpda(levels)
    if not isinstance(inside, nn.Module):
        return eot(lambda x: inside(front(x)), 2, generator=generator)
    return eot(nn.Sequential(front, Noisy(inside, 0.05)), 2, generator=generator)


@every
@few
@given(case=cases())
def test_every_attack_keeps_its_contract(name: str, norm: str, case: Case) -> None:
    model, (x, y) = defended(case.model(), case.generator), case.batch()
    options = {"eps": case.radius, "targeted": case.targeted, "generator": case.generator}
    with global_generators_untouched():
        adv = attack(name, model, x, y, norm=norm, **options)
    assert adv.shape == x.shape
    assert adv.dtype == x.dtype
    assert not adv.requires_grad
    assert adv.min() >= 0
    assert adv.max() <= 1
    radius = torch.as_tensor(case.radius, dtype=torch.float64).expand(case.n)
    assert (size(adv - x, norm) <= radius + 1e-6).all()


@every
@few
@given(case=cases(kinds=("mlp", "conv")))
def test_the_model_inside_comes_back_as_it_was(name: str, norm: str, case: Case) -> None:
    inside, (x, y) = case.module(), case.batch()
    modes = [module.training for module in inside.modules()]
    frozen = [parameter.requires_grad for parameter in inside.parameters()]
    values = [value.clone() for value in inside.state_dict().values()]
    grads = [None if p.grad is None else p.grad.clone() for p in inside.parameters()]
    model = defended(inside, case.generator)
    attack(name, model, x, y, norm=norm, eps=0.1, generator=case.generator)
    assert [module.training for module in inside.modules()] == modes
    assert [parameter.requires_grad for parameter in inside.parameters()] == frozen
    assert all(map(torch.equal, values, inside.state_dict().values()))
    for old, parameter in zip(grads, inside.parameters(), strict=True):
        assert (old is None) == (parameter.grad is None)
        assert old is None or torch.equal(old, parameter.grad)


@every
def test_the_same_generators_give_the_same_bytes(name: str, norm: str) -> None:
    case = Case("conv", (1, 8, 8), 4, 5, 0.2, torch.float32, False, 8)
    x, y = case.batch()
    twice = [
        attack(name, defended(case.module(), case.generator), x, y, norm=norm, eps=0.2,
               generator=case.generator)
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(*twice)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_channels_last_and_one_image(dtype: torch.dtype) -> None:
    case = Case("conv", (3, 5, 4), 3, 1, 0.2, dtype, False, 8)
    x = case.batch()[0].to(memory_format=torch.channels_last)
    for inside in (case.module(), case.module().eval().requires_grad_(False).forward):
        adv = pgd(defended(inside, case.generator), x, torch.tensor([1]), eps=0.2, steps=2)
        assert adv.dtype == dtype
        assert adv.shape == x.shape


def test_shapes_and_devices_are_right_without_values() -> None:
    x, y = torch.rand(4, 16, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    for model in (nn.Sequential(bpda(levels), linear()), eot(linear(), 3)):
        adv = pgd(model.to("meta"), x, y, eps=0.1, steps=2)
        assert (adv.device.type, adv.shape) == ("meta", x.shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_the_draws_are_made_again_too() -> None:
    x = torch.rand(4, 16, device="cuda")
    model = eot(Noisy(linear().cuda()), 4, generator=torch.Generator().manual_seed(0))
    with inference(model):
        adv = pgd(model, x, torch.zeros(4, device="cuda").long(), eps=0.1)
    assert adv.device == x.device
