"""What an attack knows of a norm: projection, steepest direction, step, random point."""

import pytest
import torch
from attack_cases import size
from torch import Tensor

from modelsec.attacks.norms import NORMS, per_sample, unit

every = pytest.mark.parametrize("name", NORMS)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@every
def test_size_is_the_norm_of_each_sample(name: str) -> None:
    delta = rand(5, 3, 4, 4) - 0.5
    assert torch.allclose(NORMS[name].size(delta), size(delta, name))


@every
def test_projection_moves_nothing_that_is_inside(name: str) -> None:
    x = rand(6, 9) * 0.4 + 0.3
    inside = NORMS[name].sample(x, torch.full((6, 1), 0.2, dtype=x.dtype), None)
    eps = torch.full((6, 1), 0.25, dtype=x.dtype)
    assert torch.allclose(NORMS[name].project(inside, x, eps), inside, rtol=0, atol=1e-12)


@every
def test_projection_is_the_nearest_point_of_the_ball(name: str) -> None:
    x, eps = (
        torch.full((4, 9), 0.5, dtype=torch.float64),
        torch.full((4, 1), 0.2, dtype=torch.float64),
    )
    far = 0.5 + (rand(4, 9, seed=1) - 0.5) * 3
    near = NORMS[name].project(far, x, eps)
    assert (size(near - x, name) <= 0.2 + 1e-9).all()
    for seed in range(50):  # no point of the ball is nearer
        other = NORMS[name].sample(x, eps, torch.Generator().manual_seed(seed))
        assert (size(far - other, "l2") >= size(far - near, "l2") - 1e-9).all()


@every
def test_projection_ends_in_the_box(name: str) -> None:
    x = rand(4, 9).round()
    there = NORMS[name].project(
        x + 2 * rand(4, 9, seed=2) - 1, x, torch.full((4, 1), 0.7, dtype=torch.float64)
    )
    assert there.min() >= 0
    assert there.max() <= 1
    assert (size(there - x, name) <= 0.7 + 1e-9).all()


def cut_by_bisection(far: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point of l1 ball and box, found without sorting: halve an interval 200 times."""
    way, room = (far - x).abs(), torch.where(far > x, 1 - x, x)
    if torch.minimum(way, room).sum() <= eps:
        return far.clamp(0, 1)
    low, high = 0.0, float(way.max())
    for _ in range(200):
        cut = (low + high) / 2
        too_far = (way - cut).clamp_min(0).minimum(room).sum() > eps
        low, high = (cut, high) if too_far else (low, cut)
    return x + (far - x).sign() * (way - high).clamp_min(0).minimum(room)


@pytest.mark.parametrize("eps", [0.0, 0.05, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("stretch", [0.3, 3.0])
@pytest.mark.parametrize("boxed", [True, False])
def test_projection_on_l1_ball_and_box_together(eps: float, stretch: float, boxed: bool) -> None:
    """Not one after the other, which ends elsewhere; whether the point lies in the box or not."""
    x = (1.6 * rand(6, 40, seed=5) - 0.3).clamp(0, 1)
    far = x + stretch * (rand(6, 40, seed=6) - 0.5)
    if boxed:
        far = far.clamp(0, 1)
    near = NORMS["l1"].project(far, x, torch.full((6, 1), eps, dtype=x.dtype))
    for mine, image, point in zip(near, x, far, strict=True):
        assert torch.allclose(mine, cut_by_bisection(point, image, eps), rtol=0, atol=1e-9)


def test_projections_of_l1_agree_whether_the_point_lies_in_the_box_or_not() -> None:
    """One row outside the box sends the whole batch another way; the others must not notice."""
    x = (1.6 * rand(6, 40, seed=7) - 0.3).clamp(0, 1)
    eps = torch.linspace(0, 3, 6, dtype=x.dtype)[:, None]
    far = rand(6, 40, seed=8)
    usual = NORMS["l1"].project(far, x, eps)
    far[5, 0] = 1.7
    other = NORMS["l1"].project(far, x, eps)
    assert torch.allclose(usual[:5], other[:5], rtol=0, atol=1e-12)


def knapsack(x: Tensor, slope: Tensor, size: float) -> Tensor:
    """Spend ``size`` on the steepest pixels of one image first, each up to the box's wall."""
    point = x.clone()
    for i in slope.abs().argsort(descending=True).tolist():
        room = 1 - float(x[i]) if slope[i] > 0 else float(x[i])
        move = min(room, size) if slope[i] != 0 else 0.0
        point[i] += move * float(slope[i].sign())
        size -= move
    return point


@pytest.mark.parametrize("d", [5, 40, 300])  # few pixels, and more than are looked at first
@pytest.mark.parametrize("size", [0.0, 0.1, 2.5, 40.0, 1000.0])
def test_the_l1_step_is_a_fractional_knapsack(d: int, size: float) -> None:
    """No step of that length inside the box gains more."""
    x = (1.6 * rand(4, d, seed=9) - 0.3).clamp(0, 1)
    slope = rand(4, d, seed=10) - 0.5
    slope[0, :3], slope[1, 0] = 0, torch.nan
    there = NORMS["l1"].step(x, torch.full((4, 1), size, dtype=x.dtype), slope)
    for mine, image, row in zip(there, x, slope.nan_to_num(0), strict=True):
        assert torch.allclose(mine, knapsack(image, row, size), rtol=0, atol=1e-12)


@every
def test_a_step_goes_along_the_steepest_direction_where_there_is_room(name: str) -> None:
    x, gradient = torch.full((4, 9), 0.5, dtype=torch.float64), rand(4, 9, seed=1) - 0.5
    length = torch.full((4, 1), 0.1, dtype=torch.float64)
    there = NORMS[name].step(x, length, gradient)
    assert torch.allclose(there, x + 0.1 * NORMS[name].steepest(gradient), rtol=0, atol=1e-12)
    assert (x == 0.5).all()


@every
def test_confining_in_place_is_projecting(name: str) -> None:
    """For a ball whose region was worked out before, and some of whose rows were dropped."""
    norm, x = NORMS[name], rand(6, 3, 4, 4)
    far, eps = x + rand(6, 3, 4, 4, seed=1) - 0.5, 0.1 * rand(6, 1, 1, 1, seed=2)
    wanted, kept = norm.project(far.clone(), x, eps), torch.tensor([0, 2, 5])
    first, second = norm.region(x, eps)
    there = far[kept]
    assert torch.equal(norm.confine_(there, (first[kept], second[kept])), wanted[kept])
    assert torch.equal(there, wanted[kept])
    assert not torch.equal(far, wanted)  # project left its argument alone


@every
def test_steepest_leaves_the_gradient_alone(name: str) -> None:
    """Even one that is a single number in memory, as that of a sum over the pixels is."""
    for gradient in (rand(3, 2, 5), torch.ones(1, 1, 1, dtype=torch.float64).expand(3, 2, 5)):
        before = gradient.clone()
        NORMS[name].steepest(gradient)
        assert torch.equal(gradient, before)


@every
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-30, 1e-42, 1e30])
def test_steepest_step_has_norm_one_however_small_the_gradient(name: str, scale: float) -> None:
    gradient = (rand(5, 1, 4, 4).float() + 0.5) * (rand(5, 1, 4, 4, seed=3) - 0.5).sign() * scale
    gradient = gradient.float()
    step = NORMS[name].steepest(gradient)
    assert torch.allclose(size(step, name), torch.ones(5).double(), atol=1e-6)
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[name]
    gained = (gradient.double() * step.double()).flatten(1).sum(1)
    best = torch.linalg.vector_norm(gradient.double().flatten(1), dual, dim=1)
    assert torch.allclose(gained / best, torch.ones(5).double(), atol=1e-5)


@every
def test_no_gradient_no_step(name: str) -> None:
    step = NORMS[name].steepest(torch.tensor([[0.0, 0.0], [0.0, 2.0], [torch.nan, -1.0]]))
    assert step.tolist() == [[0, 0], [0, 1], [0, -1]]


@every
def test_random_points_are_uniform_in_the_ball(name: str) -> None:
    d, n, eps = 3, 20_000, 0.4
    x = torch.full((n, d), 0.5, dtype=torch.float64)
    points = NORMS[name].sample(
        x, torch.full((n, 1), eps, dtype=torch.float64), torch.Generator().manual_seed(4)
    )
    share = (size(points - x, name) <= eps * 0.8).double().mean()
    assert abs(float(share) - 0.8**d) < 0.015  # a ball of 0.8 the radius has 0.8^d of the volume
    assert (points - x).mean(0).abs().max() < 0.01


def test_per_sample_values_broadcast() -> None:
    assert per_sample(torch.ones(5), torch.zeros(5, 3, 2, 2)).shape == (5, 1, 1, 1)


@pytest.mark.parametrize("order", [1, 2, torch.inf])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e30])
def test_a_unit_gradient_has_that_norm_however_small_it_was(order: float, scale: float) -> None:
    gradient = ((rand(5, 1, 4, 4) - 0.5) * scale).float()
    gradient[4] = 0
    gradient[3, 0, 0, 0] = torch.nan
    made = torch.linalg.vector_norm(unit(gradient, order).double().flatten(1), order, dim=1)
    assert torch.allclose(made, torch.tensor([1.0, 1, 1, 1, 0]).double(), atol=1e-5)
