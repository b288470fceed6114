"""The three things an attack knows of a norm: projection, steepest step, random point."""

import pytest
import torch
from attack_cases import size
from torch import Tensor

from modelsec.attacks.norms import NORMS, per_sample

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
    dual = {"linf": 1, "l2": 2}[name]
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
