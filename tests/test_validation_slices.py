"""Measures of handwriting on bars whose truth is known; slices with a planted fault."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsec.intervals import Proportion
from modelsec.validation import Slice, find_slices, shape_measures


def bar(thickness: float, degrees: float = 0, size: int = 28) -> torch.Tensor:
    """An upright bar that leans to the right, drawn 8 times finer and averaged: (1, size, size)."""
    fine = 8 * size
    rows, columns = (torch.arange(fine) + 0.5 - fine / 2 for _ in range(2))
    shift = -rows[:, None] * math.tan(math.radians(degrees))  # rows count downwards
    inside = ((columns - shift).abs() <= 4 * thickness) & (rows[:, None].abs() <= 80)
    return F.avg_pool2d(inside.float()[None], 8)


@settings(max_examples=25, deadline=None)
@given(thickness=st.floats(2, 6))
def test_thickness_of_a_bar(thickness: float) -> None:
    assert shape_measures(bar(thickness)[None])["stroke"].item() == pytest.approx(
        thickness, abs=0.6
    )


def test_a_thicker_bar_is_thicker_and_has_more_ink() -> None:
    found = shape_measures(torch.stack([bar(t) for t in (2, 4, 6)]))
    for name in ("stroke", "ink", "width"):
        assert (found[name].diff() > 0).all()
    assert found["ink"].tolist() == pytest.approx([20 * t / 784 for t in (2, 4, 6)], abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(degrees=st.floats(-40, 40))
def test_slant_of_a_bar(degrees: float) -> None:
    found = shape_measures(bar(3, degrees)[None])
    assert found["slant"].item() == pytest.approx(degrees, abs=1)


def test_width_is_that_of_the_box_around_the_digit() -> None:
    x = torch.zeros(1, 1, 28, 28)
    x[..., 4:24, 10:15] = 1
    assert shape_measures(x)["width"].item() == 0.25


@given(dx=st.integers(-3, 3), dy=st.integers(-3, 3))
@settings(max_examples=20, deadline=None)
def test_moving_the_digit_changes_nothing(dx: int, dy: int) -> None:
    x = bar(3, 15)[None]
    moved = shape_measures(x.roll((dy, dx), (2, 3)))
    for name, value in shape_measures(x).items():
        assert moved[name].item() == pytest.approx(value.item(), abs=1e-3)


def test_an_empty_image_has_measures_too() -> None:
    assert all(v.tolist() == [0] for v in shape_measures(torch.zeros(1, 1, 28, 28)).values())


def test_only_grey_images() -> None:
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\), got \(2, 3, 28, 28\)"):
        shape_measures(torch.zeros(2, 3, 28, 28))


# --- slices -------------------------------------------------------------------------------------


def planted(seed: int, rate_inside: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """2,000 samples, 5% wrong, and more among those of kind 2 with a large size."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(2000, generator=generator)
    kind = torch.randint(4, (2000,), generator=generator)
    rate = torch.where((kind == 2) & (size > 0.8), rate_inside, 0.05)
    return torch.rand(2000, generator=generator) > rate, {"size": size, "kind": kind}


def test_a_planted_fault_comes_first() -> None:
    correct, features = planted(0, 0.5)
    worst = find_slices(correct, features)[0]
    assert worst.p_adjusted < 1e-6
    assert {name for name, _, _ in worst.rule} == {"size", "kind"}
    inside = worst.members(features)
    assert worst.accuracy == Proportion(int(correct[inside].sum()), int(inside.sum()))
    assert ((features["kind"] == 2) & (features["size"] > 0.8))[inside].double().mean() > 0.95
    assert str(worst).startswith("size from 0.8")
    assert str(worst).endswith(" and kind 2")


def test_where_there_is_no_fault_the_correction_finds_none() -> None:
    """Many slices look bad without it: that is what it is for. 20 repeats, 1 false find expected."""
    first = [find_slices(*planted(seed, 0.05))[0] for seed in range(20)]
    assert sum(s.p < 0.05 for s in first) >= 12
    assert sum(s.p_adjusted < 0.05 for s in first) <= 4


def test_the_probability_is_that_of_drawing_the_errors() -> None:
    correct = torch.tensor([False] * 3 + [True] * 7)
    kind = torch.tensor([0, 0, 0, 0] + [1] * 6)
    found = find_slices(correct, {"kind": kind}, smallest=1)
    assert [str(s) for s in found] == ["kind 0", "kind 1"]
    # all three errors among four of ten: (4 choose 3) / (10 choose 3)
    assert found[0].p == pytest.approx(4 / 120)
    assert found[0].p_adjusted == pytest.approx(8 / 120)
    assert (found[1].p, found[1].p_adjusted) == (1, 1)


def test_adjusted_values_rise_and_are_never_below_the_raw_ones() -> None:
    found = find_slices(*planted(1, 0.2))
    adjusted = [s.p_adjusted for s in found]
    assert adjusted == sorted(adjusted)
    assert all(s.p <= s.p_adjusted <= 1 for s in found)
    assert {s.looks for s in found} == {len(found)}


def test_a_slice_can_be_taken_to_other_data() -> None:
    one = Slice((("size", 0.5, math.inf), ("kind", 1, 2)), Proportion(1, 2), 0.1, 0.2, 2)
    other = {"size": torch.tensor([0.5, 0.4, 0.9]), "kind": torch.tensor([1, 1, 2])}
    assert one.members(other).tolist() == [True, False, False]
    assert str(one) == "size from 0.5 and kind 1"


def test_small_groups_are_left_out_and_depth_one_has_no_pairs() -> None:
    correct, features = planted(0, 0.3)
    assert all(s.accuracy.n >= 150 for s in find_slices(correct, features, smallest=150))
    single = find_slices(correct, features, depth=1, parts=3)
    assert len(single) == 3 + 4
    assert all(len(s.rule) == 1 for s in single)


@pytest.mark.parametrize(
    ("features", "options", "words"),
    [
        ({}, {}, "at least one"),
        ({"a": torch.zeros(3)}, {}, r"must be \(5,\)"),
        ({"a": torch.zeros(5)}, {"parts": 1}, "parts must be 2"),
        ({"a": torch.zeros(5)}, {"depth": 3}, "depth 1 or 2"),
        ({"a": torch.zeros(5)}, {"smallest": 0}, "smallest 1 or more"),
    ],
)
def test_bad_input_is_named(features, options, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_slices(torch.ones(5).bool(), features, **options)
