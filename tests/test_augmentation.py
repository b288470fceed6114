"""Augmentation: a draw for each image, from the caller's generator; labels kept or mixed as said."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.transforms import v2

from modelsec import augmentation, models
from modelsec.augmentation import METHODS, mix, transform_each, vary
from modelsec.training import fit
from modelsec.validation.corruptions import KINDS
from modelsec.zoo.results import load_result
from modelsec.zoo.studies import augmentation as augmentation_study

TRANSFORMS = {
    "geometric": augmentation.geometric(),
    "noise": augmentation.noise(),
    "erasing": augmentation.erasing(),
    "augmix": augmentation.augmix(),
    "trivial": augmentation.trivial_augment(),
}
MIXES = {"mixup": v2.MixUp(num_classes=10), "cutmix": v2.CutMix(num_classes=10)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, channels: int = 1, side: int = 16, dtype: Any = torch.float32) -> Tensor:
    return torch.rand(n, channels, side, side, generator=seeded(1), dtype=dtype)


def strokes(n: int) -> Tensor:
    """The same white stroke n times, off the middle, so that every movement shows."""
    x = torch.zeros(n, 1, 28, 28)
    x[:, :, 6:20, 10:14] = 1
    return x


def ran(perturb: Any, x: Tensor, y: Tensor | None = None) -> Any:
    return perturb(nn.Identity(), x, torch.zeros(len(x), dtype=torch.long) if y is None else y, 0.5)


each_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))


# --- transform_each and vary ----------------------------------------------------------------------


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(TRANSFORMS)),
    n=st.integers(0, 7),
    channels=st.sampled_from([1, 3]),
    group=st.integers(1, 8),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_keeps_shape_range_and_dtype_and_the_images_it_was_given(
    name: str, n: int, channels: int, group: int, dtype: torch.dtype
) -> None:
    x = images(n, channels, dtype=dtype)
    before = x.clone()
    with global_generators_untouched():
        changed = transform_each(TRANSFORMS[name], x, group=group, generator=seeded())
    assert changed.shape == x.shape
    assert changed.dtype == dtype
    assert n == 0 or (changed.min() >= 0 and changed.max() <= 1)
    assert torch.equal(x, before)
    if n:
        assert changed.data_ptr() != x.data_ptr()


@each_transform
def test_the_generator_decides(transform: v2.Transform) -> None:
    x = images(20, side=28)
    runs = [transform_each(transform, x, generator=seeded(seed)) for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    one = seeded(3)
    first, second = (transform_each(transform, x, generator=one) for _ in range(2))
    assert not torch.equal(first, second)  # the caller's generator moves on


def test_without_a_generator_torch_s_global_one_is_drawn_from() -> None:
    x = images(20, side=28)
    with torch.random.fork_rng(devices=[]):
        runs = []
        for seed in (5, 5):
            torch.manual_seed(seed)
            runs.append(transform_each(TRANSFORMS["geometric"], x))
        assert torch.equal(*runs)
        assert not torch.equal(transform_each(TRANSFORMS["geometric"], x), runs[0])


def test_the_global_generator_comes_back_when_the_transform_fails() -> None:
    def fail(x: Tensor) -> Tensor:
        torch.rand(1)
        raise OSError("no transform")

    with global_generators_untouched(), pytest.raises(OSError, match="no transform"):
        transform_each(fail, images(), generator=seeded())


def different(x: Tensor) -> int:
    return len(torch.unique(x.flatten(1), dim=0))


@pytest.mark.parametrize(("group", "wanted"), [(1, 12), (3, 4), (5, 3), (12, 1), (50, 1)])
def test_every_group_has_a_draw_of_its_own(group: int, wanted: int) -> None:
    x = strokes(12)
    assert different(transform_each(TRANSFORMS["geometric"], x, group=group, generator=seeded())) == wanted  # fmt: skip
    assert different(TRANSFORMS["geometric"](x)) == 1  # which torchvision alone does not give


def test_groups_are_neighbours_in_the_batch() -> None:
    changed = transform_each(TRANSFORMS["geometric"], strokes(9), group=3, generator=seeded())
    for start in (0, 3, 6):
        assert torch.equal(changed[start], changed[start + 2])
    assert not torch.equal(changed[0], changed[3])


def test_vary_is_transform_each_for_fit() -> None:
    x = images(8)
    expected = transform_each(TRANSFORMS["noise"], x, group=2, generator=seeded())
    assert torch.equal(ran(vary(TRANSFORMS["noise"], group=2, generator=seeded()), x), expected)


@pytest.mark.parametrize(
    ("x", "group", "error", "words"),
    [
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), 1, TypeError, "torch.uint8"),
        ([0.5], 1, TypeError, "got list"),
        (torch.zeros(1, 16, 16), 1, ValueError, r"\(1, 16, 16\)"),
        (torch.zeros(2, 1, 16, 16), 0, ValueError, "group must be 1 or more, got 0"),
    ],
)
def test_bad_input_is_named(x: Any, group: int, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        transform_each(TRANSFORMS["noise"], x, group=group)
    if group:
        with pytest.raises(error, match=words):
            mix(MIXES["mixup"])(nn.Identity(), x, torch.zeros(2, dtype=torch.long), 0.0)


def test_a_transform_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="must keep the shape"):
        transform_each(v2.CenterCrop(8), images(), generator=seeded())


# --- the transforms -------------------------------------------------------------------------------


def test_geometric_moves_a_little() -> None:
    """The centre of the stroke stays within what turn and shift allow, and is really moved."""
    x = strokes(200)
    changed = transform_each(augmentation.geometric(), x, generator=seeded())
    rows = torch.arange(28.0).view(1, 1, 28, 1)
    moved = (changed * rows).sum((1, 2, 3)) / changed.sum((1, 2, 3)) - 12.5
    assert moved.abs().max() < 28 * 0.1 + 2
    assert moved.std() > 0.5
    assert changed.sum((1, 2, 3)).min() > 0.7 * 56  # none leaves the picture


def test_noise_leaves_some_images_clean() -> None:
    x = torch.full((400, 1, 8, 8), 0.5)
    change = (transform_each(augmentation.noise(0.1), x, generator=seeded()) - x).flatten(1)
    touched = change.abs().amax(1) > 0
    assert 0.4 < touched.float().mean() < 0.6
    assert change[touched].std().item() == pytest.approx(0.1, rel=0.05)


def test_erasing_paints_a_rectangle_black() -> None:
    x = torch.ones(200, 1, 28, 28)
    black = (transform_each(augmentation.erasing(p=1), x, generator=seeded()) == 0).flatten(1)
    share = black.float().mean(1)
    assert share.min() > 0.01
    assert share.max() < 0.22


def test_transforms_for_bytes_lose_nothing_of_digits() -> None:
    """A digit's pixels are bytes divided by 255, so going there and back changes no pixel."""
    x = torch.arange(256).view(1, 1, 16, 16) / 255
    there = augmentation.trivial_augment().transforms
    assert torch.allclose(v2.Compose([there[0], there[2]])(x), x, atol=1e-7)


# --- mix ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MIXES.values(), ids=list(MIXES))
@pytest.mark.parametrize("seed", range(4))
def test_mixed_images_and_labels_belong_together(kind: v2.Transform, seed: int) -> None:
    """White fours among black sevens: how much white there is says how much four there must be."""
    y = torch.tensor([4, 7, 7, 4, 7, 4])
    x = (y == 4).float().view(-1, 1, 1, 1).expand(-1, 1, 16, 16).clone()
    with global_generators_untouched():
        mixed, targets = ran(mix(kind, generator=seeded(seed)), x, y)
    assert targets.shape == (6, 10)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, 4], atol=1e-6)
    assert torch.allclose(targets[:, 4] + targets[:, 7], torch.ones(6))
    assert torch.equal(x[0], torch.ones(1, 16, 16))


def test_mixup_from_scratch_is_torchvision_s() -> None:
    x, y = images(6), torch.arange(6)
    mixed, targets = ran(mix(v2.MixUp(num_classes=10), generator=seeded()), x, y)
    # the share is read off the targets: no two neighbours have the same class
    share = targets[0, 0]
    assert 0 < share < 1
    assert torch.allclose(mixed, share * x + (1 - share) * x.roll(1, 0), atol=1e-6)
    one_hot = torch.eye(10)[y]
    assert torch.allclose(targets, share * one_hot + (1 - share) * one_hot.roll(1, 0), atol=1e-6)


def test_mix_draws_anew_from_the_generator() -> None:
    x, y = images(6), torch.arange(6)
    perturb = mix(MIXES["mixup"], generator=seeded())
    (_, first), (_, second) = ran(perturb, x, y), ran(perturb, x, y)
    assert not torch.equal(first, second)
    again = ran(mix(MIXES["mixup"], generator=seeded()), x, y)[1]
    assert torch.equal(first, again)


# --- in training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_repeats(name: str) -> None:
    x, y = images(20, side=28), torch.arange(20) % 10
    runs = []
    for seed in (0, 0, 1):
        model = models.fresh(models.Net, seeded())
        with global_generators_untouched():
            perturb = METHODS[name](10, 5, seeded(seed))
            history = fit(
                model, x, y, epochs=2, batch_size=10, perturb=perturb, generator=seeded(),
                progress=False,
            )  # fmt: skip
        runs.append(history.loss)
    assert runs[0] == runs[1]
    assert (runs[0] == runs[2]) == (name == "none")


def test_mixup_lowers_confidence_between_classes() -> None:
    """What mixup is for: half of one image and half of another is half one class, half the other."""
    x = torch.zeros(40, 1, 28, 28)
    y = torch.arange(40) % 2
    x[y == 0, :, :14], x[y == 1, :, 14:] = 1, 1
    halfway = 0.5 * x[:1] + 0.5 * x[1:2]
    spread: dict[str, float] = {}
    for name in ("none", "mixup"):
        model = models.fresh(models.Net, seeded())
        make: Callable[..., Any] = METHODS[name]
        fit(
            model, x, y, epochs=60, batch_size=20, perturb=make(10, 1, seeded()),
            generator=seeded(), progress=False,
        )  # fmt: skip
        slightly = torch.cat([halfway + d * (x[:1] - x[1:2]) for d in (-0.1, 0.1)])
        p = model(slightly).softmax(1)[:, 0]
        spread[name] = float((p[1] - p[0]).detach())
        assert model(x).argmax(1).eq(y).all()
    assert spread["mixup"] < 0.5
    assert spread["mixup"] < spread["none"]


# --- the studies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", augmentation_study.IMAGES)
def test_training_slices_are_balanced_and_differ_while_they_can(size: int) -> None:
    slices = [augmentation_study.slice_of(size, seed) for seed in range(5)]
    for x, y in slices:
        assert len(x) == size
        assert torch.equal(torch.bincount(y), torch.full((10,), size // 10))
    others = [not torch.equal(slices[0][0], x) for x, _ in slices[1:]]
    assert others == [size * seed % 4000 > 0 for seed in range(1, 5)]


def test_every_network_takes_the_same_number_of_steps() -> None:
    for images in (100, 1000):
        steps: list[int] = []

        def count(
            model: nn.Module, x: Tensor, y: Tensor, progress: float, steps: list[int] = steps
        ) -> Tensor:
            steps.append(len(x))
            return x

        augmentation_study.train(lambda draws, count=count: count, images, seed=0, steps=20)
        assert steps == [augmentation_study.BATCH] * 20


def test_the_record_holds_every_method_size_and_seed() -> None:
    rows = load_result("augmentation_curves")["rows"]
    found = {(row["seed"], row["method"], row["images"]) for row in rows}
    assert len(rows) == len(found) == 5 * len(METHODS) * len(augmentation_study.IMAGES)
    assert {method for _, method, _ in found} == set(METHODS)
    for row in rows:
        assert row["pgd"]["0.1"] <= row["pgd"]["0.01"] <= row["test"] + 0.05
        assert set(row["corrupted"]) == set(KINDS)
