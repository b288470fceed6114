"""Triggers beside the patch: blended patterns and warps; and WaNet, which plants a warp."""

from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelsec.attacks.poisoning import attack_success, badnets
from modelsec.attacks.triggers import Warp, blended, wanet, warp

SHAPES = st.sampled_from([(1, 6, 5), (3, 4, 7), (1, 8, 8), (2, 1, 3)])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, shape: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, *shape, generator=seeded(seed), dtype=dtype)


# --- what every trigger keeps to -----------------------------------------------------------------


@pytest.mark.parametrize("make", [blended, warp])
@settings(max_examples=40)
@given(
    shape=SHAPES,
    n=st.integers(0, 3),
    seed=st.integers(0, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_trigger_makes_images_and_leaves_the_given_ones(
    make: Any, shape: Any, n: int, seed: int, dtype: torch.dtype
) -> None:
    x = pictures(n, shape, seed, dtype).requires_grad_()
    was = x.detach().clone()
    with global_generators_untouched():
        mark = make(shape, generator=seeded(seed))
        made, again = mark.stamp(x), make(shape, generator=seeded(seed)).stamp(x)
    assert torch.equal(made, again)
    assert torch.equal(x.detach(), was)
    assert not made.requires_grad
    assert made.shape == x.shape
    assert made.dtype == dtype
    assert not n or (made.min() >= 0 and made.max() <= 1)
    other = make(shape, generator=seeded(seed + 1)).stamp(x)
    assert not n or not torch.equal(made, other)  # another generator, another trigger
    one_by_one = [mark.stamp(image[None]) for image in x]
    assert not n or torch.allclose(torch.cat(one_by_one), made, atol=1e-6)


@pytest.mark.parametrize("make", [blended, warp])
def test_a_shape_is_a_shape(make: Any) -> None:
    for bad in ((28, 28), (1, 0, 28)):
        with pytest.raises(ValueError, match=r"shape must be \(C, H, W\)"):
            make(bad)


def test_blending_is_the_formula() -> None:
    x = pictures(4, (3, 5, 6))
    for alpha in (0.0, 0.1, 1.0):
        mark = blended((3, 5, 6), alpha=alpha, generator=seeded(1))
        wanted = (1 - alpha) * x + alpha * mark.pattern
        assert torch.allclose(mark.stamp(x), wanted, atol=1e-6)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha is a share of the image"):
            blended(alpha=alpha)


# --- warps ---------------------------------------------------------------------------------------


def test_no_displacement_changes_nothing() -> None:
    for shape in ((1, 28, 28), (3, 5, 9), (1, 1, 4)):
        x = pictures(3, shape)
        still = Warp(torch.zeros(*shape[1:], 2))
        assert torch.allclose(still.stamp(x), x, atol=1e-5)
        assert torch.allclose(still.shaken(x, jitter=0), x, atol=1e-5)


@settings(max_examples=30)
@given(across=st.integers(-3, 3), down=st.integers(-3, 3), seed=st.integers(0, 50))
def test_a_whole_number_of_pixels_moves_the_image_by_that_many(
    across: int, down: int, seed: int
) -> None:
    x = pictures(2, (2, 7, 6), seed)
    moved = Warp(torch.tensor([float(across), float(down)]).expand(7, 6, 2)).stamp(x)
    rows = (torch.arange(7) + down).clamp(0, 6)
    columns = (torch.arange(6) + across).clamp(0, 5)
    assert torch.allclose(moved, x[:, :, rows][:, :, :, columns], atol=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 100), strength=st.floats(0.1, 3), grid=st.integers(2, 6))
def test_a_warp_is_as_strong_as_said_at_the_points_of_its_grid(
    seed: int, strength: float, grid: int
) -> None:
    side = (grid - 1) * 5 + 1  # so that the grid's points are pixels
    field = warp((1, side, side), strength=strength, grid=grid, generator=seeded(seed)).field
    assert field[::5, ::5].abs().mean() == pytest.approx(strength, rel=1e-3)
    steepest = (field[1:] - field[:-1]).abs().max()
    assert steepest <= 4 * field.abs().max() / 5  # smooth: neighbours move together


def test_shaking_moves_every_image_in_its_own_way() -> None:
    x = pictures(1, (1, 9, 9)).expand(3, -1, -1, -1)
    mark = warp((1, 9, 9), strength=0.5, generator=seeded(0))
    with global_generators_untouched():
        made = mark.shaken(x, jitter=0.5, generator=seeded(1))
        assert torch.equal(made, mark.shaken(x, jitter=0.5, generator=seeded(1)))
    assert not torch.allclose(made[0], made[1], atol=1e-3)
    assert (made - mark.stamp(x)).abs().max() > 0.01
    assert (mark.shaken(x, jitter=0, generator=seeded(1)) - mark.stamp(x)).abs().max() < 1e-6
    assert made.min() >= 0
    assert made.max() <= 1
    for bad in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="jitter is a distance"):
            mark.shaken(x, jitter=bad)


def test_bad_warps_are_named() -> None:
    for field, error, words in (
        (torch.zeros(4, 4, 2).long(), TypeError, "field must be a floating-point"),
        (torch.zeros(4, 4), ValueError, r"field must have shape \(H, W, 2\)"),
        (torch.full((4, 4, 2), float("nan")), ValueError, "field must be finite"),
    ):
        with pytest.raises(error, match=words):
            Warp(field)
    for bad in ({"strength": -1}, {"grid": 1}, {"strength": float("inf")}):
        with pytest.raises(ValueError, match="need strength >= 0 in pixels and grid >= 2"):
            warp(**bad)
    mark = warp((1, 4, 5))
    with pytest.raises(ValueError, match=r"x must have shape \(N, C, 4, 5\)"):
        mark.stamp(torch.zeros(2, 1, 5, 4))
    with pytest.raises(ValueError, match="divide grey levels"):
        mark.stamp(torch.full((1, 1, 4, 5), 255.0))
    with pytest.raises(TypeError, match="x must be a floating-point"):
        mark.stamp(torch.zeros(1, 1, 4, 5).long())


# --- WaNet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise_rate", "count"), [(None, 40), (0.0, 0), (0.05, 10)])
def test_wanet_s_cover_keeps_its_labels(noise_rate: float | None, count: int) -> None:
    x, y = pictures(200, (1, 8, 8)), torch.arange(200) % 4
    mark = warp((1, 8, 8), generator=seeded(0))
    made = wanet(x, y, rate=0.1, target=2, trigger=mark, noise_rate=noise_rate, generator=seeded(1))
    assert made.cover is not None
    assert int(made.mask.sum()) == 20
    assert int(made.cover.sum()) == count
    assert torch.equal(made.y[made.cover], y[made.cover])
    assert torch.equal(made.x[made.mask], mark.stamp(x[made.mask]))
    for image in (x, mark.stamp(x)):  # neither as it was nor with the trigger
        gaps = (made.x - image)[made.cover].abs().flatten(1).amax(1)
        assert not count or gaps.min() > 1e-3
    plain = badnets(x, y, rate=0.1, target=2, trigger=mark, generator=seeded(1))
    assert torch.equal(plain.mask, made.mask)


def test_wanet_names_what_it_cannot_do() -> None:
    x, y = pictures(10, (1, 4, 4)), torch.arange(10) % 2
    mark = warp((1, 4, 4))
    for noise_rate, words in ((-0.1, "0 to 1"), (1.1, "0 to 1"), (0.9, "only 8 are left")):
        with pytest.raises(ValueError, match=words):
            wanet(x, y, rate=0.2, target=0, trigger=mark, noise_rate=noise_rate)


def test_attack_success_takes_any_trigger() -> None:
    x, y = pictures(20, (1, 6, 6)), torch.arange(20) % 2
    mark = warp((1, 6, 6), strength=2, generator=seeded(0))
    stamped = mark.stamp(x[y != 0])

    def model(images: Tensor) -> Tensor:
        """Answers 0 for the images that were warped, 1 for others."""
        gaps = (images[:, None] - stamped).abs().flatten(2).amax(2)
        hit = gaps.amin(1) < 1e-6
        return torch.stack([hit.float(), 0.5 * torch.ones(len(images))], 1)

    assert attack_success(model, x, y, trigger=mark, target=0).value == 1
    assert attack_success(model, x, y, trigger=None, target=0).value == 0
