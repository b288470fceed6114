"""What the inversions share: images that are changed, step by step, until they fit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from modelsec.attacks.common import Model, check_counts
from modelsec.attacks.norms import readable

__all__ = [
    "check_classes",
    "check_search",
    "descend",
    "ordinary",
    "precision",
    "total_variation",
]


def total_variation(x: Tensor) -> Tensor:
    """How much neighbouring pixels differ: the sum of all absolute differences, for each image.

    Args: x: (N, C, H, W). Returns (N,).
    """
    down, right = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
    return down.abs().sum((1, 2, 3)) + right.abs().sum((1, 2, 3))


def descend(
    cost: Callable[[Tensor], Tensor],
    point: Tensor,
    steps: int,
    step_size: float,
    *,
    boxed: bool,
    signed: bool = False,
    cut: float = 1,
) -> Tensor:
    """Make a cost small by Adam, from a point on.

    Args:
        cost: points (N, ...) to one number, or one for each of them, which are then summed.
        point: (N, ...) the start; it stays as it is.
        steps: how many.
        step_size: Adam's learning rate.
        boxed: bring the point back into [0, 1] after every step.
        signed: hand Adam the sign of the gradient.
        cut: the step size is divided by this after 3/8, 5/8 and 7/8 of the steps.

    Returns:
        (N, ...) the last point.
    """
    if not len(point):
        return point
    cuts = {steps * k // 8 for k in (3, 5, 7)} - {0}
    with torch.inference_mode(False), torch.enable_grad():
        point = ordinary(point).requires_grad_()
        optimizer = torch.optim.Adam([point], lr=step_size)
        for step in range(steps):
            if step in cuts:
                optimizer.param_groups[0]["lr"] /= cut
            (slope,) = torch.autograd.grad(cost(point).sum(), point)
            point.grad = slope.sign() if signed else slope
            optimizer.step()
            if boxed:
                point.data.clamp_(0, 1)  # the leaf itself, outside its history
    return point.detach()


def ordinary(value: Tensor) -> Tensor:
    """A copy without history that autograd takes, also of a tensor made in inference mode."""
    with torch.inference_mode(False):
        return value.detach().clone()


def precision(model: Model) -> torch.dtype:
    """The floating-point type of a module's first parameter or buffer; float32 if there is none."""
    inside = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return next((value.dtype for value in inside if value.is_floating_point()), torch.float32)


def check_classes(name: str, y: Tensor) -> Tensor:
    """Check class indices, and copy them as int64.

    Args:
        name: the argument's name, for the message.
        y: (N,) integers.

    Returns:
        (N,) int64.

    Raises:
        TypeError: if they are no tensor of integers.
        ValueError: if they have another shape, or one is negative.
    """
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool:
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(
            f"{name} must hold integer class indices, got {kind}: use torch.tensor([3])"
        )
    if y.dim() != 1 or (readable(y) and bool((y < 0).any())):
        raise ValueError(f"{name} must be (N,) classes of 0 or more, got shape {tuple(y.shape)}")
    return ordinary(y.long())


def check_search(model: Model, steps: int, step_size: float, weight: float) -> None:
    """Check what every search is given.

    Args:
        model: maps images to something.
        steps: how many.
        step_size: their size.
        weight: of the prior.

    Raises:
        TypeError: if the model can't be called.
        ValueError: for no step, a step size of 0 or less, or a negative weight.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    check_counts(steps=steps)
    if not step_size > 0:
        raise ValueError(f"step_size must be above 0, got {step_size}")
    if not weight >= 0:
        raise ValueError(f"weight must be 0 or more, got {weight}")
