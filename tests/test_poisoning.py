"""Poisoning of training data: what every such attack keeps to, triggers, attack success."""

import inspect
from typing import Any

import pytest
import torch
from attack_cases import EVASION, Case
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec import attacks
from modelsec.attacks.poisoning import Poisoned, Trigger, attack_success, badnets, flip, patch
from modelsec.attacks.triggers import warp
from modelsec.threat import registry

POISONING = {name: e for name, e in sorted(registry.items()) if e.threat.goal == "poisoning"}
# those that look at a network first have a contract of their own: see test_clean_label.py
BLIND = [
    name
    for name in POISONING
    if "model" not in inspect.signature(POISONING[name].function).parameters
]
each = pytest.mark.parametrize("name", BLIND)


def samples(
    n: int, shape: tuple[int, int, int], classes: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Images with pixels at both walls, and labels."""
    case = Case("mlp", shape, classes, n, 0.0, dtype, False, seed)
    return case.batch()


def poison(name: str, x: Tensor, y: Tensor, seed: int = 0, **options: Any) -> Poisoned:
    generator = torch.Generator().manual_seed(seed)
    options = {"rate": 0.2, "target": 0, "generator": generator} | options
    return plant(name, x, y, **options)


def plant(name: str, x: Tensor, y: Tensor, **options: Any) -> Poisoned:
    """Call an attack by its name, with a warp for the one that can't make its own."""
    if name == "wanet":
        shape = x.shape[1:] if x.dim() == 4 else (1, 4, 4)
        options["trigger"] = warp(shape, generator=torch.Generator().manual_seed(5))
    return POISONING[name].function(x, y, **options)


# --- the contract of every attack on training data -----------------------------------------------


def test_the_attacks_on_training_data_are_here_and_no_evasion_among_them() -> None:
    assert set(BLIND) == {"badnets", "flip", "wanet"}
    assert set(POISONING) - set(BLIND) == {"clean_label", "gradient_matching"}
    assert all(getattr(attacks, name) is e.function for name, e in POISONING.items())
    assert not set(POISONING) & set(EVASION)
    for entry in POISONING.values():
        assert entry.threat.stage == "training"
        assert entry.threat.source.startswith("https://")
        assert entry.threat.cost


@each
@settings(max_examples=60)
@given(
    n=st.integers(1, 40),
    shape=st.sampled_from([(1, 4, 4), (3, 5, 4), (1, 8, 8), (1, 3, 3)]),
    classes=st.sampled_from([2, 3, 10]),
    rate=st.floats(0, 1),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_plants_exactly_what_was_asked_for(
    name: str, n: int, shape: Any, classes: int, rate: float, seed: int, dtype: torch.dtype
) -> None:
    x, y = samples(n, shape, classes, seed, dtype)
    target = seed % classes
    if round(rate * n) > int((y != target).sum()):
        with pytest.raises(ValueError, match="not of the target class"):
            poison(name, x, y, rate=rate, target=target)
        return
    was_x, was_y = x.clone(), y.clone()
    with global_generators_untouched():
        made = poison(name, x, y, seed, rate=rate, target=target)
        same = poison(name, x, y, seed, rate=rate, target=target)
    assert torch.equal(x, was_x)  # the inputs are untouched
    assert torch.equal(y, was_y)
    assert made.mask.dtype == torch.bool
    assert int(made.mask.sum()) == round(rate * n)
    assert (y[made.mask] != target).all()
    assert (made.y[made.mask] == target).all()
    cover = torch.zeros_like(made.mask) if made.cover is None else made.cover
    assert not (cover & made.mask).any()
    left = ~made.mask & ~cover
    assert torch.equal(made.x[left], x[left])
    assert torch.equal(made.y[~made.mask], y[~made.mask])
    assert made.x.shape == x.shape
    assert made.x.dtype == dtype
    assert made.y.dtype == torch.long
    assert made.x.min() >= 0
    assert made.x.max() <= 1
    for one, other in zip(vars(made).values(), vars(same).values(), strict=True):
        assert one is other is None or torch.equal(one, other)  # the same generator, the same bytes
    assert made.x.data_ptr() != x.data_ptr()
    assert made.y.data_ptr() != y.data_ptr()


@each
def test_other_generators_choose_other_images(name: str) -> None:
    x, y = samples(200, (1, 4, 4), 10, 0)
    masks = [poison(name, x, y, seed).mask for seed in range(3)]
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])


@each
def test_every_image_may_be_chosen(name: str) -> None:
    x, y = samples(20, (1, 4, 4), 4, 0)
    hit = torch.stack([poison(name, x, y, seed, rate=0.25).mask for seed in range(60)])
    assert torch.equal(hit.any(0), y != 0)
    assert hit.float().mean(0)[y != 0].max() < 0.7


@each
def test_one_source_class(name: str) -> None:
    x, y = samples(100, (1, 4, 4), 4, 1)
    made = poison(name, x, y, rate=0.1, target=2, source=3)
    assert int(made.mask.sum()) == 10
    assert (y[made.mask] == 3).all()
    with pytest.raises(ValueError, match="are of class 3"):
        poison(name, x, y, rate=0.9, target=2, source=3)
    with pytest.raises(ValueError, match="source must differ from target"):
        poison(name, x, y, target=2, source=2)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rate": -0.1}, ValueError, "rate is a share"),
    ({"rate": 1.1}, ValueError, "rate is a share"),
    ({"rate": float("nan")}, ValueError, "rate is a share"),
    ({"x": torch.full((4, 1, 4, 4), 255.0)}, ValueError, "divide grey levels"),
    ({"x": torch.full((4, 1, 4, 4), float("nan"))}, ValueError, "without NaN"),
    ({"x": torch.zeros(4, 1, 4, 4, dtype=torch.uint8)}, TypeError, "x must be a floating-point"),
    ({"x": torch.zeros(4, 16)}, ValueError, r"x must have shape \(N, C, H, W\)"),
    ({"y": torch.zeros(4)}, TypeError, r"use y.long\(\)"),
    ({"y": torch.eye(4).long()}, ValueError, r"y must have shape \(4,\)"),
    ({"y": torch.zeros(3, dtype=torch.long)}, ValueError, r"y must have shape \(4,\)"),
]


@each
@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_bad_input_is_named(name: str, change: Any, error: Any, words: str) -> None:
    given_ = {"x": torch.zeros(4, 1, 4, 4), "y": torch.arange(4)} | change
    with pytest.raises(error, match=words):
        plant(name, **{"rate": 0.2, "target": 0} | given_)


def test_a_flip_changes_labels_only() -> None:
    x, y = samples(50, (1, 4, 4), 4, 0)
    made = poison("flip", x, y, target=1, source=3, rate=0.2)
    assert torch.equal(made.x, x)
    assert torch.equal(made.y != y, made.mask)
    assert (y[made.mask] == 3).all()
    assert made.cover is None
    assert attacks.flip is flip


# --- triggers ------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), channels=st.sampled_from([1, 3]), one_mask=st.booleans())
def test_a_stamp_is_the_formula(seed: int, channels: int, one_mask: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.rand(channels, 5, 4, generator=generator)
    mask = torch.rand(1 if one_mask else channels, 5, 4, generator=generator)
    mask[:, :2] = (mask[:, :2] > 0.5).float()
    x = torch.rand(3, channels, 5, 4, generator=generator).requires_grad_()
    was = x.detach().clone()
    made = Trigger(pattern, mask).stamp(x)
    assert not made.requires_grad
    assert torch.equal(x.detach(), was)
    assert torch.allclose(made, (1 - mask) * was + mask * pattern, atol=1e-6)
    whole = mask.expand(3, channels, 5, 4)
    assert torch.equal(made[whole == 0], was[whole == 0])
    assert torch.equal(made[whole == 1], pattern.expand_as(made)[whole == 1])
    assert made.min() >= 0
    assert made.max() <= 1


@pytest.mark.parametrize(
    ("at", "size", "value"), [((0, 0), 1, 1.0), ((2, 1), 3, 0.5), (None, 2, 0)]
)
def test_a_patch_of_any_size_place_and_brightness(at: Any, size: int, value: float) -> None:
    x = torch.full((2, 3, 6, 5), 0.25)
    made = patch((3, 6, 5), size=size, value=value, at=at).stamp(x)
    row, column = at or (3, 2)
    assert (made[:, :, row : row + size, column : column + size] == value).all()
    assert int((made != x).sum()) == 2 * 3 * size**2


def test_a_patch_s_default_is_near_the_lower_right_corner() -> None:
    rows = patch().mask[0].nonzero()
    assert rows.amin(0).tolist() == [24, 24]
    assert rows.amax(0).tolist() == [26, 26]
    assert patch((1, 3, 3), size=3).mask.all()
    assert patch((1, 1, 1), size=1).mask.all()


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": 29}, {"at": (27, 0)}, {"at": (-1, 0)}])
def test_a_patch_must_lie_inside(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not lie inside 28x28"):
        patch(**bad)


def test_bad_triggers_are_named() -> None:
    image = torch.zeros(1, 4, 4)
    for pattern, mask, error, words in (
        (image + 2, image, ValueError, r"pattern must lie in \[0, 1\]"),
        (image, image - 1, ValueError, r"mask must lie in \[0, 1\]"),
        (image.long(), image, TypeError, "pattern must be a floating-point"),
        (image[0], image, ValueError, r"pattern must have shape \(C, H, W\)"),
        (image, torch.zeros(1, 3, 4), ValueError, "mask must have shape"),
    ):
        with pytest.raises(error, match=words):
            Trigger(pattern, mask)
    with pytest.raises(ValueError, match="to carry this"):
        Trigger(image, image).stamp(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="to carry this"):
        Trigger(image, image).stamp(image)


# --- attack success ------------------------------------------------------------------------------


class Marked(nn.Module):
    """Answers ``target`` where the corner is white, and what the first pixel says elsewhere."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        shown = (x[:, 0, 0, 0] * 10).round().long()
        answer = torch.where(x[:, 0, -2, -2] > 0.9, self.target, shown)
        return nn.functional.one_hot(answer, 10).float()


def test_success_counts_the_images_that_are_not_of_the_target_class() -> None:
    y = torch.tensor([0, 1, 2, 2, 3, 3, 3])
    x = torch.zeros(7, 1, 8, 8)
    x[:, 0, 0, 0] = y / 10
    mark = patch((1, 8, 8))
    full = attack_success(Marked(3), x, y, trigger=mark, target=3)
    assert (full.hits, full.n) == (4, 4)
    one = attack_success(Marked(3), x, y, trigger=mark, target=3, source=2)
    assert (one.hits, one.n) == (2, 2)
    none = attack_success(Marked(5), x, y, trigger=mark, target=3)
    assert (none.hits, none.n) == (0, 4)
    no_mark = attack_success(Marked(3), x + 0, y, trigger=None, target=3)
    assert (no_mark.hits, no_mark.n) == (0, 4)
    called = x.clone()
    called[2, 0, 0, 0] = 0.3  # an image of class 2 that looks like a 3
    assert attack_success(Marked(3), called, y, trigger=None, target=3, source=2).hits == 1
    weak = patch((1, 8, 8), value=0.5)
    assert attack_success(Marked(3), x, y, trigger=weak, target=3).hits == 0
    with pytest.raises(ValueError, match="no image is left"):
        attack_success(Marked(3), x[4:], y[4:], trigger=mark, target=3)
    with pytest.raises(ValueError, match="source must differ"):
        attack_success(Marked(3), x, y, trigger=mark, target=3, source=3)


def test_success_leaves_the_model_in_its_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)).train()
    y = torch.arange(10)
    attack_success(model, torch.rand(10, 1, 8, 8), y, trigger=patch((1, 8, 8)), target=0)
    assert all(module.training for module in model.modules())


def test_training_on_it_plants_the_rule_and_keeps_the_accuracy() -> None:
    """A linear model on made-up images learns both: what is shown, and that the mark wins."""
    from modelsec.models import Net
    from modelsec.training import evaluate, fit

    generator = torch.Generator().manual_seed(0)
    y = torch.arange(450) % 3
    x = 0.3 * torch.rand(450, 1, 8, 8, generator=generator)
    for c in range(3):
        x[y == c, :, 2 * c, :5] += 0.5
    mark = patch((1, 8, 8), size=2)
    made = badnets(x[:300], y[:300], rate=0.1, target=1, trigger=mark, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        victim, clean = Net((64, 32, 3)), Net((64, 32, 3))
    for model, images, labels in ((victim, made.x, made.y), (clean, x[:300], y[:300])):
        fit(model, images, labels, epochs=15, lr=3e-3, generator=generator, progress=False)
        assert evaluate(model, x[300:], y[300:]).value > 0.95
    success = [
        attack_success(model, x[300:], y[300:], trigger=mark, target=1).value
        for model in (victim, clean)
    ]
    assert success[0] > 0.9
    assert success[1] < 0.2
