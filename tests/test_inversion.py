"""Reading data out of a model: what is exact is exact, and every search keeps to its contract."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks.descent import total_variation
from modelsec.attacks.gradient_inversion import (
    gradient_labels,
    invert_features,
    invert_gradient,
    layer_inputs,
    step_gradient,
)
from modelsec.attacks.inversion import PcaPrior, invert, pca_prior
from modelsec.data import mnist, sklearn_digits
from modelsec.models import ConvNet, Net, fresh
from modelsec.threat import card
from modelsec.zoo import load_model

DIGITS = mnist()
X, Y = DIGITS.x_test[:4], DIGITS.y_test[:4]
TEN = torch.arange(10)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(seed: int = 0) -> nn.Module:
    """A convolution, BatchNorm, dropout: whatever a search must not disturb."""
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(27, 4),
    )  # fmt: skip
    return fresh(build, seeded(seed))


SHAPE = (1, 7, 7)
PUBLIC = torch.rand(20, *SHAPE, generator=seeded(5))
STEPS = {"shape": SHAPE, "steps": 3}


def searches(model: nn.Module, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """name -> a call that returns images, of each search."""
    model = model.to(device, dtype)
    classes = torch.tensor([1, 3], device=device)
    prior = PcaPrior(PUBLIC[0].to(device, dtype), PUBLIC[1:4].to(device, dtype))
    gradient = [torch.ones_like(p) for p in model.parameters()]
    front = nn.Sequential(*list(model)[:3])  # type: ignore[arg-type]
    features = torch.ones(2, 3, 3, 3, device=device, dtype=dtype)
    return {
        "none": partial(invert, model, classes, **STEPS),
        "tv": partial(invert, model, classes, prior="tv", **STEPS),
        "decoder": partial(invert, model, classes, prior=prior, **STEPS),
        "cosine": partial(invert_gradient, model, gradient, classes, **STEPS),
        "l2": partial(invert_gradient, model, gradient, classes, distance="l2", **STEPS),
        "features": partial(invert_features, front, features, **STEPS),
    }


NAMES = list(searches(small()))


@pytest.mark.parametrize("name", NAMES)
def test_images_in_the_box_the_model_as_it_was_and_the_generator_decides(name: str) -> None:
    model = small().train()
    model[1].eval()  # type: ignore[index]
    model[0].weight.requires_grad_(False)  # type: ignore[index]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    call = searches(model)[name]
    own: dict[str, Any] = {} if name == "features" else {"generator": seeded(1)}
    with global_generators_untouched():
        if name in {"none", "tv", "decoder", "features"}:  # these see the model in eval mode
            found = call(**own)
        else:
            model.eval()
            found = call(**own)
            model.train()
            model[1].eval()  # type: ignore[index]
    assert found.shape == (2, *SHAPE)
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.isfinite().all()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert [m.training for m in model] == [True, False, True, True, True, True]  # type: ignore[attr-defined]
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(p.grad is None for p in model.parameters())
    if own:
        model.eval()
        assert torch.equal(call(generator=seeded(1)), call(generator=seeded(1)))
        assert not torch.equal(call(generator=seeded(1)), call(generator=seeded(2)))


@pytest.mark.parametrize("name", NAMES)
def test_on_the_device_and_in_the_precision_of_the_inputs(name: str) -> None:
    found = searches(small().eval(), "meta")[name]()
    assert found.device.type == "meta"
    assert found.shape == (2, *SHAPE)
    assert searches(small().eval(), dtype=torch.float64)[name]().dtype == torch.float64


@pytest.mark.parametrize("name", ["none", "tv", "decoder"])
def test_no_target_gives_no_image(name: str) -> None:
    prior = {"none": None, "tv": "tv", "decoder": PcaPrior(PUBLIC[0], PUBLIC[1:4])}[name]
    found = invert(small(), torch.tensor([], dtype=torch.long), prior=prior, **STEPS)
    assert found.shape == (0, *SHAPE)


def test_a_search_under_no_grad_and_inference_mode_finds_the_same() -> None:
    model = small().eval()
    wanted = invert(model, torch.tensor([1]), generator=seeded(), **STEPS)
    with torch.inference_mode():
        assert torch.equal(invert(model, torch.tensor([1]), generator=seeded(), **STEPS), wanted)


def test_the_cards_say_what_is_attacked() -> None:
    assert {card(f).goal for f in (invert, invert_gradient)} == {"privacy"}
    assert card(invert_gradient).stage == "training"


# Model inversion


@pytest.mark.parametrize("prior", [None, "tv", "decoder"])
def test_inversion_finds_what_the_model_is_sure_of(prior: Any) -> None:
    net = load_model("net")
    if prior == "decoder":
        prior = pca_prior(sklearn_digits().x)
    found = invert(net, TEN, prior=prior, generator=seeded())
    assert (net(found).softmax(1)[TEN, TEN] > 0.8).all()


def test_the_result_of_one_target_does_not_depend_on_the_others() -> None:
    net = load_model("net").double()  # in float32 Adam makes much of a rounding error
    options: dict[str, Any] = {"prior": "tv", "steps": 20}
    both = invert(net, torch.tensor([8, 3]), generator=seeded(), **options)
    alone = invert(net, torch.tensor([8]), generator=seeded(), **options)  # draws the same start
    assert torch.allclose(alone, both[:1], atol=1e-9)


def test_total_variation_makes_smooth_images_and_more_weight_smoother_ones() -> None:
    net = load_model("net")
    rough = total_variation(invert(net, TEN, generator=seeded())).mean()
    some, more = (
        total_variation(invert(net, TEN, prior="tv", weight=w)).mean() for w in (0.003, 0.03)
    )
    assert more < some < rough / 4


def test_a_code_pays_for_its_length() -> None:
    net, prior = (
        load_model("net"),
        PcaPrior(torch.full((1, 28, 28), 0.5), torch.rand(5, 1, 28, 28, generator=seeded()) / 9),
    )
    far, near = (
        invert(net, TEN, prior=prior, weight=weight, generator=seeded()) - 0.5 for weight in (0, 10)
    )
    assert near.abs().mean() < far.abs().mean() / 2


def test_total_variation_counts_each_step_between_neighbours() -> None:
    x = torch.zeros(2, 1, 3, 3)
    x[0, 0, 1, 1] = 1.0  # four neighbours
    x[1, 0, 0, 0] = 0.5  # two
    assert total_variation(x).tolist() == [4.0, 1.0]


def test_a_prior_of_other_classes_shows_classes_that_it_never_saw() -> None:
    public, net, y = sklearn_digits(), load_model("net"), TEN[:5].repeat(4)
    prior = pca_prior(public.x[public.y >= 5])
    found = invert(net, y, prior=prior, generator=seeded()).flatten(1)
    means = torch.stack([DIGITS.x_test[DIGITS.y_test == k].mean(0).flatten() for k in range(10)])
    likeness = torch.corrcoef(torch.cat([found, means]))[: len(y), len(y) :]
    assert (likeness.argmax(1) == y).sum() >= 12  # by chance 2; the noughts come out as eights


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), codes=st.integers(1, 8))
def test_a_linear_prior_draws_what_the_public_images_vary_by(seed: int, codes: int) -> None:
    hidden = torch.randn(60, codes, generator=seeded(seed), dtype=torch.float64)
    ways = torch.randn(codes, 1, 4, 4, generator=seeded(seed + 1), dtype=torch.float64)
    x = (0.5 + 0.02 * torch.tensordot(hidden, ways, 1)).clamp(0, 1)
    if ((x == 0) | (x == 1)).any():
        return  # clipped: no longer linear
    prior = pca_prior(x, codes)
    assert prior.codes == codes
    assert prior.basis.dtype == torch.float64
    z = torch.linalg.lstsq(prior.basis.flatten(1).T, (x - prior.mean).flatten(1).T).solution.T
    assert torch.allclose(prior(z), x, atol=1e-9)  # every public image has a code
    assert torch.allclose(z.T.cov(), torch.eye(codes, dtype=z.dtype), atol=1e-6)  # standard
    assert torch.allclose(z.mean(0), torch.zeros(codes, dtype=z.dtype), atol=1e-9)


# What a gradient tells


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), width=st.integers(1, 20), dimension=st.integers(1, 30))
def test_of_one_input_the_first_layer_s_gradient_tells_all(
    seed: int, width: int, dimension: int
) -> None:
    g = torch.randn(width, generator=seeded(seed), dtype=torch.float64)
    x = torch.randn(dimension, generator=seeded(seed + 1), dtype=torch.float64)
    found = layer_inputs(torch.outer(g, x), g)
    assert 1 <= len(found) <= width
    assert torch.allclose(found, x.expand_as(found), atol=1e-9)


def test_the_book_s_own_network_gives_its_training_image_away() -> None:
    net = load_model("net")
    for i in range(10):
        sent = step_gradient(net, DIGITS.x_train[i : i + 1], DIGITS.y_train[i : i + 1])
        found = layer_inputs(sent[0], sent[1]) * 0.3081 + 0.1307  # the first layer is normalised
        assert (found - DIGITS.x_train[i].flatten()).abs().max() < 1e-5
        assert gradient_labels(sent[-1]).tolist() == [int(DIGITS.y_train[i])]


def test_a_unit_that_one_image_sets_off_shows_it_and_others_show_means() -> None:
    x = torch.eye(3, dtype=torch.float64)
    layer = nn.Linear(3, 4, dtype=torch.float64)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 2, dtype=torch.float64))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [1, 1, 1], [-1, -1, -1]]))
        layer.bias.zero_()
    sent = step_gradient(model, x, torch.tensor([0, 1, 0]))
    found = layer_inputs(sent[0], sent[1])
    assert len(found) == 3  # the last unit is never set off
    assert torch.allclose(found[:2], x[:2])
    assert torch.allclose(found[2].sum(), torch.ones((), dtype=torch.float64))  # weights sum to 1


def test_units_without_a_gradient_are_left_out() -> None:
    weight, bias = torch.tensor([[1.0, 2], [5, 5], [2, 4]]), torch.tensor([1.0, 1e-9, 2])
    assert layer_inputs(weight, bias).tolist() == [[1, 2], [1, 2]]
    assert layer_inputs(torch.zeros(3, 2), torch.zeros(3)).shape == (0, 2)
    assert layer_inputs(torch.zeros(0, 2), torch.zeros(0)).shape == (0, 2)


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), k=st.integers(2, 12))
def test_the_label_of_one_image_is_the_only_negative_entry(seed: int, k: int) -> None:
    logits = 5 * torch.randn(k, generator=seeded(seed), dtype=torch.float64)
    y = seed % k
    bias = logits.softmax(0) - F.one_hot(torch.tensor(y), k)
    assert gradient_labels(bias).tolist() == [y]


@settings(max_examples=40)
@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_the_labels_of_a_batch_when_all_probabilities_are_alike(labels: list[int]) -> None:
    y = torch.tensor(labels)
    bias = (0.1 - F.one_hot(y, 10).double()).mean(0)
    assert gradient_labels(bias, len(y)).tolist() == sorted(labels)


def test_the_gradient_that_is_sent_is_torch_s() -> None:
    model = small().eval()
    x, y = PUBLIC[:5], torch.tensor([0, 1, 2, 3, 0])
    F.cross_entropy(model(x), y).backward()
    for sent, p in zip(step_gradient(model, x, y), model.parameters(), strict=True):
        assert torch.allclose(sent, p.grad, atol=1e-7)  # type: ignore[arg-type]
        assert not sent.requires_grad


# Gradient inversion


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_an_image_comes_back_from_one_step_of_an_untrained_network(distance: Any) -> None:
    model = fresh(ConvNet, seeded())
    sent = step_gradient(model, X[:1], Y[:1])
    found = invert_gradient(
        model, sent, Y[:1], steps=200, weight=0.0, distance=distance, generator=seeded()
    )
    assert psnr(found, X[:1]) > 25


def test_total_variation_and_noise_each_change_what_comes_back() -> None:
    model = fresh(ConvNet, seeded())
    sent = step_gradient(model, X[:1], Y[:1])

    def found(gradient: Sequence[Tensor], weight: float = 0.0) -> Tensor:
        options: dict[str, Any] = {"steps": 120, "weight": weight, "generator": seeded()}
        return invert_gradient(model, gradient, Y[:1], **options)

    clean = found(sent)
    assert total_variation(found(sent, 0.01)) < total_variation(clean) / 2
    size = torch.cat([g.flatten() for g in sent]).std()
    noisy = [g + 3 * size * torch.randn(g.shape, generator=seeded(3)) for g in sent]
    assert psnr(found(noisy), X[:1]) < psnr(clean, X[:1]) - 5


def test_the_features_inside_a_trained_network_lead_back_to_the_image() -> None:
    model = load_model("convnet")
    front = nn.Sequential(*list(model)[:6])  # type: ignore[arg-type]
    sent = [step_gradient(model, X[i : i + 1], Y[i : i + 1]) for i in range(4)]
    features = torch.cat([layer_inputs(g[4], g[5])[:1] for g in sent])
    with torch.no_grad():
        assert (features - front(X)).abs().max() < 1e-4
    found = invert_features(front, features, steps=150)
    assert all(psnr(a, b) > 20 for a, b in zip(found, X, strict=True))
    alone = invert_features(front, features[1:2], steps=150)
    assert torch.allclose(alone[0], found[1], atol=0.02)


# Bad input

NET = Net((784, 8, 10))
GRADIENT = [torch.zeros_like(p) for p in NET.parameters()]
BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: invert("net", TEN), TypeError, "model must be callable, got str"),
    (lambda: invert(NET, 3), TypeError, "target must hold integer class indices, got int"),
    (
        lambda: invert(NET, TEN.float()),
        TypeError,
        "target must hold integer class indices, got torch.float32",
    ),
    (lambda: invert(NET, TEN[None]), ValueError, r"target must be \(N,\) classes"),
    (lambda: invert(NET, TEN - 1), ValueError, "of 0 or more"),
    (lambda: invert(NET, TEN + 5), ValueError, "classes 0 to 9 of this model, got 14"),
    (lambda: invert(NET, TEN, prior="TV"), ValueError, 'prior must be None, "tv" or a decoder'),
    (lambda: invert(NET, TEN, prior=total_variation), ValueError, "with .codes"),
    (lambda: invert(NET, TEN, prior="tv", weight=-1), ValueError, "weight must be 0 or more"),
    (lambda: invert(NET, TEN, steps=0), ValueError, "steps must be a whole number"),
    (lambda: invert(NET, TEN, step_size=0.0), ValueError, "step_size must be above 0"),
    (lambda: pca_prior(PUBLIC, 0), ValueError, "codes must be from 1 to 19 .* got 0"),
    (lambda: pca_prior(PUBLIC, 20), ValueError, "codes must be from 1 to 19"),
    (lambda: pca_prior(PUBLIC * 255), ValueError, r"in \[0, 1\]"),
    (lambda: pca_prior(PUBLIC.int()), TypeError, "floating-point"),
    (lambda: layer_inputs(torch.ones(3, 2), torch.ones(2)), ValueError, r"\(H, D\) and \(H,\)"),
    (lambda: layer_inputs(torch.ones(2, 2), torch.ones(2), tolerance=1), ValueError, "tolerance"),
    (lambda: gradient_labels(torch.ones(2, 2)), ValueError, r"bias must have shape \(K,\)"),
    (lambda: gradient_labels(torch.ones(2), 0), ValueError, "n must be a whole number"),
    (lambda: invert_gradient(F.relu, GRADIENT, Y), TypeError, "must be an nn.Module"),
    (lambda: invert_gradient(NET, GRADIENT[1:], Y), ValueError, "one tensor for each of model"),
    (lambda: invert_gradient(NET, GRADIENT, Y, distance="l1"), ValueError, "distance must be"),
    (lambda: invert_gradient(NET, GRADIENT, Y.float()), TypeError, "y must hold integer"),
    (lambda: invert_gradient(NET, GRADIENT, Y, weight=-0.1), ValueError, "weight must be"),
    (lambda: invert_features(NET, torch.ones(2, 9)), ValueError, r"features, \(2, 10\), got"),
    (lambda: invert_features(NET, torch.ones(2, 9).int()), TypeError, "floating-point tensor"),
    (lambda: invert_features(None, torch.ones(2, 9)), TypeError, "model must be callable"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD, ids=[b[2][:24] for b in BAD])
def test_bad_input_gets_a_sentence(
    call: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call()
