"""Turning and shifting: where pixels go, that the worst of all moves is found, and that nothing else happens."""

from typing import Any

import pytest
import torch
from attack_cases import Case, assert_same_state, state
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks import spatial
from modelsec.attacks.spatial import moves, turn_and_shift
from modelsec.audit import Subject
from modelsec.audit.spatial import spatial as section
from modelsec.data import mnist
from modelsec.losses import margin
from modelsec.training import evaluate, inference
from modelsec.zoo import load_model

few = settings(max_examples=20)
GRID = (5, 3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def margins(model: Any, x: Tensor, y: Tensor) -> Tensor:
    with inference(model), torch.no_grad():
        return margin(model(x), y)


# --- the move -------------------------------------------------------------------------------------


@few
@given(
    seed=st.integers(0, 99),
    shape=st.sampled_from([(1, 8, 8), (3, 7, 12)]),
    angle=st.floats(-180, 180),
    down=st.floats(-1, 1),
    right=st.floats(-1, 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_result_is_an_image(
    seed: int, shape: tuple, angle: float, down: float, right: float, dtype: torch.dtype
) -> None:
    x = torch.rand(2, *shape, generator=seeded(seed)).to(dtype)
    moved = turn_and_shift(x, angle, (down, right))
    assert (moved.shape, moved.dtype) == (x.shape, dtype)
    assert 0 <= moved.min() <= moved.max() <= 1


def test_no_move_changes_nothing() -> None:
    x = torch.rand(2, 3, 9, 11, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(turn_and_shift(x, 0.0), x, atol=1e-12)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_counter_clockwise(quarters: int) -> None:
    x = torch.rand(2, 3, 8, 8, generator=seeded())
    assert torch.allclose(turn_and_shift(x, 90.0 * quarters), x.rot90(quarters, (2, 3)), atol=1e-5)


def test_a_shift_goes_down_and_to_the_right_and_brings_black() -> None:
    x = torch.rand(2, 1, 8, 10, generator=seeded())
    moved = turn_and_shift(x, 0.0, (2 / 8, -3 / 10))
    assert torch.allclose(moved[:, :, 2:, :7], x[:, :, :6, 3:], atol=1e-5)
    assert (moved[:, :, :2] == 0).all()
    assert (moved[:, :, :, 7:] == 0).all()


def test_torchvision_moves_the_same_way() -> None:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import affine

    x = torch.rand(4, 1, 28, 28, generator=seeded())
    theirs = affine(
        x, angle=-20.0, translate=[2, 1], scale=1.0, shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )  # fmt: skip
    assert torch.allclose(turn_and_shift(x, 20.0, (1 / 28, 2 / 28)), theirs, atol=1e-4)


def test_it_is_differentiable() -> None:
    x = torch.rand(1, 2, 5, 5, generator=seeded(), dtype=torch.float64) * 0.8 + 0.1
    assert torch.autograd.gradcheck(
        lambda z: turn_and_shift(z, 33.0, (0.1, 0.2)), x.requires_grad_()
    )


# --- the grid -------------------------------------------------------------------------------------


def test_the_grid_is_that_of_the_paper_the_mildest_first() -> None:
    ways = moves()
    assert len(ways) == 31 * 5 * 5 - 1  # all but "not at all"
    assert {way[0] for way in ways} == set(range(-30, 31, 2))
    assert {round(way[1], 9) for way in ways} == {-0.1, -0.05, 0, 0.05, 0.1}
    used = [abs(a) / 30 + abs(b) / 0.1 + abs(c) / 0.1 for a, b, c in ways]
    assert used == sorted(used)
    assert (0.0, 0.0, 0.0) not in ways


@pytest.mark.parametrize(
    ("angle", "shift", "grid", "n"),
    [(10, 0.1, (1, 3), 8), (10, 0.0, (5, 1), 4), (10, 0.1, (2, 2), 8), (0, 0, (3, 3), 0)],
)
def test_ranges_that_are_left_out(angle: float, shift: float, grid: tuple, n: int) -> None:
    assert len(moves(angle, shift, grid)) == n


# --- the attack -----------------------------------------------------------------------------------


def scene(dtype: torch.dtype = torch.float64, n: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    case = Case("conv", (3, 8, 8), 4, n, 0.1, dtype, False, 2)
    x, _ = case.batch()
    model = case.module()
    with inference(model), torch.no_grad():
        return model, x, model(x).argmax(1)


@pytest.mark.parametrize("targeted", [False, True])
def test_without_an_early_stop_the_worst_of_all_moves_is_returned(targeted: bool) -> None:
    model, x, y = scene()
    y = (y + 1) % 4 if targeted else y
    adv = spatial(model, x, y, grid=GRID, targeted=targeted, early_stop=False)
    sign = -1 if targeted else 1
    every = [x, *(turn_and_shift(x, a, (b, c)) for a, b, c in moves(grid=GRID))]
    worst = torch.stack([sign * margins(model, z, y) for z in every]).amax(0)
    assert torch.allclose(sign * margins(model, adv, y), worst, atol=1e-9)
    assert (worst >= sign * margins(model, x, y)).all()


def test_with_an_early_stop_the_mildest_move_that_fools_is_returned() -> None:
    model, x, y = scene()
    found = spatial(model, x, y, grid=GRID)
    fooled = margins(model, found, y) > 0
    assert 0 < fooled.sum() < 12
    for image, label, there, hit in zip(x, y, found, fooled, strict=True):
        tries = [
            image[None],
            *(turn_and_shift(image[None], a, (b, c)) for a, b, c in moves(grid=GRID)),
        ]
        hits = [float(margins(model, z, label[None])) > 0 for z in tries]
        assert any(hits) == bool(hit)
        if hit:
            assert torch.allclose(there, tries[hits.index(True)][0], atol=1e-9)
    full = spatial(model, x, y, grid=GRID, early_stop=False)
    assert torch.equal(margins(model, full, y) > 0, fooled)


def test_an_image_that_is_wrong_already_is_left_alone() -> None:
    model, x, y = scene()
    adv = spatial(model, x, (y + 1) % 4, grid=GRID)
    assert torch.equal(adv, x)
    assert adv.data_ptr() != x.data_ptr()


def test_every_query_is_shown_to_the_callback() -> None:
    model, x, y = scene()
    seen: list[Any] = []
    shown: list[int] = []
    model.register_forward_pre_hook(lambda _, given: shown.append(len(given[0])))
    spatial(model, x, y, grid=GRID, callback=seen.append)
    assert [point.step for point in seen] == list(range(len(seen)))
    assert [len(point.rows) for point in seen] == shown
    assert torch.equal(seen[0].adv, x)
    a, b, c = moves(grid=GRID)[6]
    point = seen[7]
    assert torch.allclose(point.adv, turn_and_shift(x[point.rows], a, (b, c)), atol=1e-9)


def test_random_moves_stay_in_range_and_come_from_the_generator() -> None:
    model, x, y = scene()
    options = {"tries": 6, "early_stop": False}
    with global_generators_untouched():
        first, again, other = (
            spatial(model, x, y, **options, generator=seeded(seed)) for seed in (0, 0, 1)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    more = spatial(model, x, y, tries=40, early_stop=False, generator=seeded())
    assert (margins(model, more, y) >= margins(model, first, y) - 1e-9).all()
    still = spatial(model, x, y, angle=0, shift=0, tries=3)
    assert torch.allclose(still, x, atol=1e-9)


@pytest.mark.parametrize("early_stop", [True, False])
def test_a_sample_alone_gets_what_it_gets_in_a_batch(early_stop: bool) -> None:
    model, x, y = scene()
    options = {"tries": 9, "early_stop": early_stop}
    whole = spatial(model, x, y, **options, generator=seeded(3))
    for i in range(len(x)):
        alone = spatial(model, x[i : i + 1], y[i : i + 1], **options, generator=seeded(3))
        assert torch.allclose(alone[0], whole[i], atol=1e-9)


def test_the_model_and_the_images_come_back_as_they_were() -> None:
    model, x, y = scene()
    before, images = state(model), x.clone()
    spatial(model, x.requires_grad_(), y, grid=GRID)
    assert_same_state(before, state(model))
    assert torch.equal(x, images)


def test_plain_functions_scores_and_half_precision_are_attacked() -> None:
    model, x, y = scene(torch.float32)
    inside = model.eval().bfloat16()

    def scores(z: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return inside(z.bfloat16()).softmax(1)

    for dtype in (torch.float32, torch.bfloat16):
        adv = spatial(scores, x.to(dtype), y, grid=(3, 1), early_stop=False)
        assert adv.dtype == dtype
        assert adv.isfinite().all()


def test_none_one_and_no_values_at_all() -> None:
    model, x, y = scene()
    assert spatial(model, x[:0], y[:0]).shape == (0, 3, 8, 8)
    assert spatial(model, x[:1], y[:1], grid=(3, 1)).shape == (1, 3, 8, 8)
    meta = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).to("meta")
    there = spatial(meta, x.float().to("meta"), y.to("meta"), grid=(3, 1))
    assert there.device.type == "meta"


@pytest.mark.parametrize(
    ("different", "word"),
    [
        ({"angle": -1}, "angle"),
        ({"angle": 200}, "angle"),
        ({"shift": 3}, "shift"),
        ({"shift": torch.nan}, "shift"),
        ({"grid": (0, 3)}, "grid"),
        ({"grid": (3,)}, "grid"),
        ({"tries": 0}, "tries"),
        ({"tries": 3, "angle": 999}, "angle"),
    ],
    ids=str,
)
def test_bad_options_get_one_clear_error(different: dict, word: str) -> None:
    model, x, y = scene()
    with pytest.raises(ValueError, match=word):
        spatial(model, x, y, **different)


def test_bad_images_and_models_get_one_clear_error() -> None:
    model, x, y = scene(torch.float32)
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        spatial(model, x.flatten(1), y)
    with pytest.raises(ValueError, match="255"):
        spatial(model, x * 255, y)
    with pytest.raises(TypeError, match="tuple"):
        spatial(lambda z: (z.flatten(1),), x, y)
    with pytest.raises(ValueError, match="NaN logits"):
        spatial(lambda z: z.flatten(1) * torch.nan, x, y)


# --- the section of the audit ---------------------------------------------------------------------


def test_the_audit_s_section_finds_that_turns_break_the_net() -> None:
    digits, net = mnist(), load_model("net")
    found = section(Subject(net, digits, n=60))
    worst, mild = found.measures["turned@30"], found.measures["turned@15"]
    x, y = digits.x_test[:60], digits.y_test[:60]
    again = evaluate(net, spatial(net, x, y, grid=(7, 3)), y)
    assert (worst.hits, worst.n) == (again.hits, 60)
    assert worst.hits <= mild.hits
    mean = sum(
        evaluate(net, turn_and_shift(x, a, (b, c)), y).value for a, b, c in moves(grid=(7, 3))
    ) / len(moves(grid=(7, 3)))
    assert found.measures["any@30"] == pytest.approx(mean, abs=1e-6)
    assert float(worst) < mean
    assert f"leaves {worst}" in found.summary
    assert section(Subject(net, digits, n=300)).measures["turned@30"].n == 200
