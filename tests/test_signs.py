"""The rendered signs: what the drawings, the camera and the data set promise."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsec import signs
from modelsec.sign_art import CLASSES, plates
from modelsec.signs import (
    BACKGROUNDS,
    RANGES,
    Views,
    backdrops,
    draw_views,
    signs_data,
    signs_rendered,
    take,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


STILL: dict[str, Any] = {
    "distance": 5, "yaw": 0, "pitch": 0, "roll": 0, "shift": 0, "fill": 0.8, "light": 1, "haze": 0,
    "noise": 0,
}  # fmt: skip


def picture(sign: torch.Tensor, size: int = 48, grey: float = 0.5, **ranges: Any) -> torch.Tensor:
    behind = torch.full((1, 3, size, size), grey)
    return take(sign[None], behind, draw_views(1, seeded(), **(STILL | ranges)), seeded())[0]


# --- the drawings -------------------------------------------------------------------------------


def test_sixteen_different_signs() -> None:
    drawn = plates()
    assert drawn.shape == (16, 4, 64, 64)
    assert len(set(CLASSES)) == 16
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    colours = (drawn[:, :3] * drawn[:, 3:]).flatten(1)
    apart = torch.cdist(colours, colours) + 1e6 * torch.eye(16)
    assert apart.min() > 3  # even a 20 and a 30
    assert ((drawn[:, 3] > 0.5).float().mean((1, 2)) > 0.35).all()  # the plate fills its square


def test_the_drawings_are_the_callers_own() -> None:
    plates().zero_()
    assert plates().sum() > 0


def test_signs_have_the_colours_that_drivers_know() -> None:
    drawn = dict(zip(CLASSES, plates(), strict=True))
    red, _, blue = drawn["stop"][:3, 8, 32]
    assert red > 0.6 > 0.3 > blue
    red, _, blue = drawn["ahead"][:3, 32, 6]
    assert blue > 0.5 > 0.2 > red
    assert drawn["no entry"][:3, 32, 32].min() > 0.9  # the white bar
    assert drawn["give way"][3, 60, 3] == 0  # a triangle that points down
    assert drawn["danger"][3, 3, 3] == 0  # one that points up


# --- the camera ---------------------------------------------------------------------------------


@given(
    yaw=st.floats(-60, 60), distance=st.floats(8, 80), fill=st.floats(0.4, 0.95),
    light=st.floats(0.2, 1.3), noise=st.floats(0, 0.2), size=st.sampled_from([16, 24, 32]),
)  # fmt: skip
@settings(max_examples=25)
def test_pictures_are_pictures_for_any_view(
    yaw: float, distance: float, fill: float, light: float, noise: float, size: int
) -> None:
    views = draw_views(3, seeded(), yaw=yaw, distance=distance, fill=fill, light=light, noise=noise)
    behind = torch.rand(3, 3, size, size, generator=seeded(1))
    x = take(plates()[:3], behind, views, seeded(2))
    assert x.shape == behind.shape
    assert bool(((x >= 0) & (x <= 1)).all())
    assert torch.equal(x, take(plates()[:3], behind, views, seeded(2)))


def test_a_sign_fills_the_share_it_should_and_the_background_shows_beside_it() -> None:
    sign = plates()[CLASSES.index("no entry")]
    x = picture(sign, fill=0.5)
    row = (x[0] - 0.5).abs()[24] > 0.1
    assert int(row.sum()) == pytest.approx(24, abs=2)
    assert torch.allclose(x[:, :3], torch.full((3, 3, 48), 0.5), atol=0.02)


def test_a_turned_sign_is_narrower_by_the_cosine() -> None:
    sign = plates()[CLASSES.index("no entry")]
    for angle in (0.0, 40.0, 60.0):
        x = picture(sign, fill=0.8, yaw=angle, grey=1)
        # a light background: what is red is the sign
        width = int(((x[1] < 0.6).sum(0) > 0).sum())
        assert width == pytest.approx(0.8 * 48 * math.cos(math.radians(angle)), abs=2.5)


def test_near_a_turned_sign_shows_perspective() -> None:
    sign = plates()[CLASSES.index("no entry")]
    for distance, unequal in ((0.7, True), (50.0, False)):
        x = picture(sign, fill=0.6, yaw=50, distance=distance, grey=1)
        dark = (x[1] < 0.6).sum(0).float()
        ratio = float(dark[:24].sum() / dark[24:].sum())  # the nearer half looks larger
        assert (max(ratio, 1 / ratio) > 1.15) == unequal


def test_far_signs_are_blurred_and_dark_light_is_dark() -> None:
    sign = plates()[CLASSES.index("limit 80")]
    near, far = (picture(sign, distance=d) for d in (10, 70))
    detail = [float((x[:, 1:] - x[:, :-1]).abs().mean()) for x in (near, far)]
    assert detail[1] < 0.6 * detail[0]
    assert picture(sign, light=0.4).mean() == pytest.approx(0.4 * float(near.mean()), rel=0.02)
    hazy = picture(sign, haze=0.5)
    assert hazy.std() < 0.6 * near.std()


def test_a_gradient_reaches_the_sign_s_surface() -> None:
    sign = plates()[:1].clone().requires_grad_()
    behind = torch.rand(1, 3, 32, 32, generator=seeded())
    take(sign, behind, draw_views(1, seeded()), seeded()).sum().backward()
    assert sign.grad is not None
    on = plates()[0, 3] > 0.5
    assert (sign.grad[0, 0][on] != 0).float().mean() > 0.9


def test_other_ranges_leave_the_other_draws_alone() -> None:
    usual, dusk = draw_views(20, seeded()), draw_views(20, seeded(), light=(0.1, 0.2))
    assert bool((dusk.light <= 0.2).all())
    for name in set(RANGES) - {"light"}:
        assert torch.equal(getattr(usual, name), getattr(dusk, name))
    for name, (low, high) in RANGES.items():
        values = getattr(usual, name)
        assert bool(((values >= low) & (values <= high)).all())
        assert values.std() > 0.2 * (high - low)


# --- the data set -------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_data_are_what_they_say(split: Any, capfd: pytest.CaptureFixture[str]) -> None:
    backdrops(split, 1)  # importing the package with the photographs draws from Python's generator
    with global_generators_untouched():
        found = signs_rendered(split, 40, size=24, seed=3)
    assert found.x.shape == (40, 3, 24, 24)
    assert found.x.dtype == torch.float32
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    assert found.y is not None
    assert found.y.tolist() == [k % 16 for k in range(40)]
    assert found.classes == CLASSES
    assert set(found.names) <= set(BACKGROUNDS[split])
    assert "GTSRB" not in found.name + found.source
    assert "Vienna" in found.source
    assert "CC BY 2.0" in found.licence
    assert torch.equal(found.x, signs_rendered(split, 40, size=24, seed=3).x)
    assert not torch.equal(found.x, signs_rendered(split, 40, size=24, seed=4).x)
    assert capfd.readouterr() == ("", "")


def test_no_photograph_stands_behind_both_halves() -> None:
    assert not set(BACKGROUNDS["train"]) & set(BACKGROUNDS["test"])
    for split, names in BACKGROUNDS.items():
        crops, used = backdrops(split, 200, 16, seeded())  # type: ignore[arg-type]
        assert set(used) == set(names)  # all of its own are used, and none of the others
        assert crops.shape == (200, 3, 16, 16)
        assert bool(((crops >= 0) & (crops <= 1)).all())


def test_training_and_test_differ_in_every_picture() -> None:
    data = signs_data(48, 32, size=16)
    assert (len(data.y_train), len(data.y_test)) == (48, 32)
    assert data.y_train.bincount().tolist() == [3] * 16
    apart = torch.cdist(data.x_train.flatten(1), data.x_test.flatten(1))
    assert apart.min() > 0.5
    assert data.classes == CLASSES
    assert data.licence


def test_a_picture_shows_its_sign() -> None:
    """Seen from the front and near, each picture resembles its own drawing most."""
    plain = STILL | {"noise": 0.02}
    found = signs_rendered("test", 32, seed=1, **plain)
    behind = torch.full((16, 3, 32, 32), 0.5)
    ideal = take(plates(), behind, draw_views(16, seeded(), **STILL), seeded())
    inside = slice(8, 24)
    near = torch.cdist(
        found.x[:, :, inside, inside].flatten(1), ideal[:, :, inside, inside].flatten(1)
    )
    assert found.y is not None
    assert (near.argmin(1) == found.y).double().mean() > 0.9


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: signs_rendered("dev", 4), ValueError, 'split must be "train" or "test"'),
        (lambda: signs_rendered("train", 0), ValueError, "n must be 1 or more, got 0"),
        (lambda: signs_rendered("train", 4, size=4), ValueError, "size must be 8 to 256"),
        (lambda: signs_rendered("train", 4, lights=1), TypeError, "not ['lights']"),
        (lambda: draw_views(3, light=(2, 1)), ValueError, "light must be (least, largest)"),
        (lambda: plates(4), ValueError, "size must be 8 to 512"),
        (
            lambda: take(plates()[:2], torch.rand(3, 3, 8, 8), draw_views(2)),
            ValueError,
            "(2, 4, 64, 64) and (3, 3, 8, 8)",
        ),
        (
            lambda: take(plates()[:2], torch.rand(2, 3, 8, 8), draw_views(1)),
            ValueError,
            "need 2 views",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with torch.random.fork_rng(devices=[]), pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


def test_views_are_one_for_each_picture() -> None:
    assert Views._fields == tuple(RANGES)
    assert pytest.approx(66) == signs.WIDTH * signs.FOCAL / 10  # pixels across at ten metres
