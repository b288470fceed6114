"""Steps published as defences: what they do, what their attackers see, and that they leave all else alone."""

from collections.abc import Callable

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks import pgd
from modelsec.data import mnist
from modelsec.losses import cross_entropy, margin
from modelsec.models import ConvNet, Net, drawing_from
from modelsec.repair import distillation, distilled
from modelsec.repair import purification as p
from modelsec.repair.purification import Step, adapted, is_random
from modelsec.training import evaluate
from modelsec.zoo import load_model

STEPS: dict[str, Callable[[], Step]] = {
    "bit_depth": lambda: p.bit_depth(2),
    "jpeg": p.jpeg,
    "median of 2": p.median,
    "median of 3": lambda: p.median(3),
    "thermometer": lambda: p.thermometer(5),
    "random_resize": lambda: p.random_resize(0.7),
    "noise": p.noise,
}
STEADY = [name for name in STEPS if not STEPS[name]().random]
each = pytest.mark.parametrize("name", STEPS)
few = settings(max_examples=8)
batches = st.builds(
    lambda n, c, h, w, dtype, seed: torch.rand(
        n, c, h, w, dtype=dtype, generator=torch.Generator().manual_seed(seed)
    ),
    st.integers(0, 3), st.sampled_from([1, 3]), st.integers(2, 9), st.integers(2, 9),
    st.sampled_from([torch.float32, torch.float64]), st.integers(0, 999),
)  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits(n: int) -> tuple[Tensor, Tensor]:
    data = mnist()
    return data.x_test[:n], data.y_test[:n]


# --- every step


@each
@few
@given(x=batches)
def test_a_step_keeps_shape_dtype_range_and_its_input(name: str, x: Tensor) -> None:
    before = x.clone()
    with drawing_from(seeded()):
        out = STEPS[name]()(x)
    channels = 5 * x.shape[1] if name == "thermometer" else x.shape[1]
    assert out.shape == (len(x), channels, *x.shape[2:])
    assert out.dtype == x.dtype
    assert torch.equal(x, before)
    assert not out.isnan().any()
    assert ((out >= -1e-6) & (out <= 1 + 1e-6)).all()


@pytest.mark.parametrize("name", STEADY)
@few
@given(x=batches.filter(lambda x: len(x) > 1))
def test_an_image_s_result_does_not_depend_on_its_batch(name: str, x: Tensor) -> None:
    step = STEPS[name]()
    whole = step(x)
    assert torch.equal(whole, torch.cat([step(image) for image in x.split(1)]))
    assert torch.equal(whole, step(x.to(memory_format=torch.channels_last)))


@each
def test_a_step_works_without_values(name: str) -> None:
    x = torch.rand(2, 1, 8, 8, device="meta")
    out = STEPS[name]()(x)
    assert out.device.type == "meta"


@each
def test_a_step_refuses_what_is_no_batch_of_pixels(name: str) -> None:
    step = STEPS[name]()
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\], got \[0, 255\]"):
        step(torch.tensor([0.0, 255.0]).view(1, 1, 1, 2))
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\], got \[nan"):
        step(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\), got \(28, 28\)"):
        step(torch.zeros(28, 28))
    with pytest.raises(TypeError, match=r"floating-point images in \[0, 1\], got torch.uint8"):
        step(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(TypeError, match="got list"):
        step([[0.5]])


@pytest.mark.parametrize(
    ("make", "bad", "words"),
    [
        (p.bit_depth, 0, "bits must be a whole number from 1 to 8, got 0"),
        (p.bit_depth, 2.0, "bits must be a whole number"),
        (p.jpeg, 96, "quality must be a whole number from 1 to 95, got 96"),
        (p.jpeg, True, "quality must be a whole number"),
        (p.median, 4, "size must be a whole number from 2 to 3"),
        (p.thermometer, 1, "levels must be a whole number from 2"),
        (p.random_resize, 0, "smallest must be above 0 and at most 1, got 0"),
        (p.random_resize, 1.1, "smallest must be above 0"),
        (p.noise, 25, "std must be above 0 and at most 1, got 25"),
        (p.noise, float("nan"), "std must be above 0"),
        (p.noise, "a lot", "std must be above 0"),
    ],
)
def test_bad_parameters_are_named(make: Callable[..., Step], bad: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(bad)


# --- what each does


@few
@given(x=batches.filter(lambda x: len(x) > 0), bits=st.integers(1, 8))
def test_bit_depth_takes_the_nearest_level(x: Tensor, bits: int) -> None:
    step, levels = p.bit_depth(bits), torch.linspace(0, 1, 2**bits, dtype=x.dtype)
    out = step(x)
    assert torch.equal(out, step(out))
    nearest = (x[..., None] - levels).abs().amin(-1)
    assert torch.allclose((x - out).abs(), nearest, atol=1e-6)


def test_jpeg_loses_more_at_a_lower_quality_and_little_at_a_high_one() -> None:
    x, _ = digits(20)
    lost = [(p.jpeg(quality)(x) - x).abs().mean().item() for quality in (5, 20, 50, 95)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 0.01 < lost[0]


def test_the_median_takes_away_single_pixels_and_keeps_edges() -> None:
    x = torch.zeros(1, 1, 6, 6)
    x[..., 3:] = 1
    spotted = x.clone()
    spotted[0, 0, 1, 1] = 1
    assert torch.equal(p.median(3)(spotted), x)
    assert torch.equal(p.median(3)(x), x)


def test_the_thermometer_rises_with_the_pixel() -> None:
    x = torch.tensor([0.0, 0.2, 0.21, 0.99, 1.0]).view(1, 1, 1, 5)
    code = p.thermometer(5)(x)[0, :, 0]
    assert code.sum(0).tolist() == [1, 1, 2, 5, 5]
    assert torch.equal(code, code.sort(0, descending=True).values)
    two = p.thermometer(5)(torch.cat([x, 1 - x], 1))
    assert torch.equal(two[0, :5, 0], code)  # the channels' codes stand one after another


def test_a_random_size_keeps_the_image_within_the_frame() -> None:
    x = torch.ones(200, 1, 20, 20)
    with drawing_from(seeded()):
        out = p.random_resize(0.5)(x)
    area = out.flatten(1).mean(1)
    assert area.min() > 0.2
    assert area.max() < 1
    assert 0.5 < area.mean() < 0.66  # of the square of a number drawn from 0.5 to 1: 7 / 12
    assert torch.allclose(p.random_resize(1.0)(x), x)
    # each image has a place of its own, and all corners are reached
    corners = torch.stack([out[:, 0, i, j] > 0.5 for i in (0, -1) for j in (0, -1)])
    assert ((corners.float().mean(1) > 0) & (corners.float().mean(1) < 0.5)).all()


def test_noise_has_its_size_and_is_clipped() -> None:
    grey = torch.full((4, 1, 50, 50), 0.5)
    with drawing_from(seeded()):
        out = p.noise(0.1)(grey)
    assert (out - grey).std().item() == pytest.approx(0.1, rel=0.05)
    assert p.noise(1.0)(grey).amin() == 0


@pytest.mark.parametrize("name", [name for name in STEPS if name not in STEADY])
def test_random_steps_draw_anew_and_from_the_generator_that_is_set(name: str) -> None:
    x, step = digits(3)[0], STEPS[name]()
    assert is_random(nn.Sequential(step))
    draws = []
    for seed in (0, 0, 1):
        with drawing_from(seeded(seed)):
            draws.append(step(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# --- what the attacker makes of it


@pytest.mark.parametrize("name", STEADY)
def test_adapted_gives_the_same_logits_and_a_gradient(name: str) -> None:
    x, y = digits(8)
    step = STEPS[name]()
    channels = 5 if name == "thermometer" else 1
    inside = ConvNet(channels, mean=[0.0] * channels, std=[1.0] * channels)
    model = nn.Sequential(step, inside).eval()
    through = adapted(model)
    assert torch.equal(through(x), model(x))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(through(leaf), y).sum(), leaf)
    assert (slope.flatten(1).abs().sum(1) > 0).all()


def test_adapted_shares_the_weights_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(p.bit_depth(2), nn.Sequential(Net())).train()
    through = adapted(model)
    assert {id(w) for w in through.parameters()} == {id(w) for w in model.parameters()}
    assert all(part.training for part in model.modules())
    assert isinstance(model[0], Step)


def test_adapted_finds_a_step_at_any_depth() -> None:
    deep = nn.Sequential(p.bit_depth(3), nn.Sequential(p.jpeg(), nn.Sequential(p.median(), Net())))
    kinds = [type(part).__name__ for part in adapted(deep).modules()]
    assert kinds.count("_Bpda") == 2  # the median has a gradient of its own


def test_adapted_averages_a_random_model_s_draws() -> None:
    x, _ = digits(4)
    model = nn.Sequential(p.noise(0.3), load_model("net")).eval()
    with global_generators_untouched():
        first = adapted(model, 30, generator=seeded())(x)
        again = adapted(model, 30, generator=seeded())(x)
    assert torch.equal(first, again)
    spread = [
        torch.stack([adapted(model, draws, generator=seeded(k))(x) for k in range(8)]).std(0).mean()
        for draws in (1, 30)
    ]
    assert spread[1] < spread[0] / 3


def test_adapted_needs_a_step() -> None:
    with pytest.raises(ValueError, match="a model with a Step in it, got ConvNet"):
        adapted(ConvNet())
    with pytest.raises(ValueError, match="draws must be a whole number"):
        adapted(nn.Sequential(p.noise(), ConvNet()), 0)


def left(model: nn.Module, attacked: nn.Module, **options: object) -> float:
    x, y = digits(60)
    adv = pgd(attacked, x, y, eps=0.2, steps=20, early_stop=False, generator=seeded(), **options)
    with drawing_from(seeded(1)):
        return float(evaluate(model, adv, y))


@pytest.mark.parametrize("name", ["bit_depth", "jpeg"])
def test_pgd_stops_at_the_step_and_not_at_the_adapted_model(name: str) -> None:
    model = nn.Sequential(STEPS[name](), load_model("convnet")).eval()
    assert left(model, adapted(model)) < 0.1
    if name == "jpeg":
        with pytest.raises(ValueError, match="does not depend on its input"):
            left(model, model)
    else:
        assert left(model, model) > 0.9


def test_one_bit_holds_what_the_data_give_it() -> None:
    """Digits are nearly black and white already: what eps can not flip, no attack flips."""
    x, y = digits(60)
    model = nn.Sequential(p.bit_depth(1), load_model("convnet")).eval()
    adv = pgd(adapted(model), x, y, eps=0.2, steps=20, generator=seeded())
    within = (x > 0.3 - 1e-6) & (x < 0.7 + 1e-6)
    assert torch.equal(
        (p.bit_depth(1)(adv) != p.bit_depth(1)(x)) & ~within, torch.zeros_like(within)
    )
    assert float(evaluate(model, adv, y)) > 0.5


# --- distillation


@pytest.fixture(scope="module")
def pupil() -> nn.Module:
    data = mnist()
    with global_generators_untouched():
        return distilled(
            lambda: Net((784, 32, 10)), data.x_train[:2000], data.y_train[:2000], epochs=5,
            generator=seeded(), progress=False,
        )  # fmt: skip


def test_distillation_hides_the_gradient_and_the_margin_finds_it(pupil: nn.Module) -> None:
    x, y = digits(200)
    assert not pupil.training
    assert float(evaluate(pupil, x, y)) > 0.8
    dead = []
    for loss in (cross_entropy, margin):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(pupil(leaf), y).sum(), leaf)
        dead.append((slope.flatten(1) == 0).all(1).float().mean().item())
    assert dead[0] > 0.3
    assert dead[1] == 0
    kept = [
        float(evaluate(pupil, pgd(pupil, x, y, eps=0.1, loss=loss, generator=seeded()), y))
        for loss in (cross_entropy, margin)
    ]
    assert kept[0] > kept[1] + 0.2


def test_the_pupil_learns_the_teacher_s_soft_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = mnist(), []
    fit = distillation.fit

    def watched(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> object:
        seen.append((model, options.get("perturb")))
        return fit(model, x, y, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(distillation, "fit", watched)
    made = distilled(
        lambda: Net((784, 10)), data.x_train[:200], data.y_train[:200], temperature=20, epochs=1,
        generator=seeded(), progress=False,
    )  # fmt: skip
    (teacher, first), (learner, second) = seen
    assert first is None
    assert made is learner
    x, targets = second(learner, data.x_train[:5], data.y_train[:5], 0.0)
    assert torch.equal(x, data.x_train[:5])
    assert torch.allclose(targets, (teacher.eval()(x) / 20).softmax(1))


def test_a_temperature_below_1_is_refused() -> None:
    x, y = digits(10)
    with pytest.raises(ValueError, match=r"temperature must be 1 or more, got 0\.5"):
        distilled(Net, x, y, temperature=0.5)
