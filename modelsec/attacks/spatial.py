"""Turning and shifting: a change that no small norm allows, and that no eye minds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.attacks.common import Iterate, Model, Objective, check_counts, check_inputs
from modelsec.attacks.norms import per_sample, readable
from modelsec.losses import margin
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["check_images", "moves", "spatial", "turn_and_shift"]

Move = tuple[float, float, float]
"""Degrees counter-clockwise; then down and to the right, as shares of the image's sides."""


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="scores",
        cost="one query for each turn and shift tried",
        source="https://arxiv.org/abs/1712.02779",
    )
)
def spatial(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    angle: float = 30.0,
    shift: float = 0.1,
    grid: tuple[int, int] = (31, 5),
    tries: int | None = None,
    targeted: bool = False,
    early_stop: bool = True,
    callback: Callable[[Iterate], object] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rotation-translation attack: turn and shift the image, and keep what harms most.

    Every turn and shift of a grid is tried, the mildest first; or some at random. Gradients help
    little here, since the loss has many local maxima over three numbers, and a grid is cheap. What
    comes in from outside the image is black.

    All samples are tried with the same turns and shifts, so a sample's result does not depend on
    its batch. The image itself, unmoved, is tried first: the result is never weaker than it.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to scores (N, K) whose largest is the answer.
        x: (N, C, H, W) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        angle: largest turn either way, in degrees, 0 to 180.
        shift: largest shift up, down, left or right, as a share of the image's height or width.
        grid: how many angles, and how many shifts along each of the two sides.
        tries: so many random turns and shifts in place of the grid.
        targeted: reach y instead of getting away from it.
        early_stop: leave a sample alone once its goal is reached; the mildest move that reaches
            it is then the one that is returned.
        callback: called after every query with an :class:`~modelsec.attacks.common.Iterate`: its
            ``step`` is 0 for the image itself, then the number of the move in :func:`moves`, from
            1; ``adv`` and ``loss`` are what was asked about.
        generator: draws the random moves; torch's global one if None.

    Returns:
        (N, C, H, W), dtype and device of ``x``: for each sample the move of largest margin.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Engstrom et al. (2019), https://arxiv.org/abs/1712.02779, section 3; its grid for MNIST is
        the default (31 angles to 30 degrees, 5 x 5 shifts to a tenth of the side).
    """
    x, y = check_inputs(model, x, y)
    check_images(x)
    if tries is not None:
        check_counts(tries=tries)
        ways = _random_moves(angle, shift, tries, generator)
    else:
        ways = moves(angle, shift, grid)
    if not len(x):
        return x.clone()
    objective, early_stop = Objective(model, margin, targeted), early_stop and readable(x)
    result, rows = x.clone(), torch.arange(len(x), device=x.device)
    with inference(model), torch.no_grad():
        value, reached = objective(x, y)
        best = x
        if callback is not None:
            callback(Iterate(0, 0, rows, x.clone(), value))
        for number, (turn, down, right) in enumerate(ways, 1):
            if early_stop and bool(reached.any()):
                result[rows[reached]] = best[reached]
                keep = (~reached).nonzero()[:, 0]
                x, y, best, value, rows = (part[keep] for part in (x, y, best, value, rows))
            if not len(rows):
                break
            adv = turn_and_shift(x, turn, (down, right))
            asked, reached = objective(adv, y)
            better = (asked > value) | reached if early_stop else asked > value
            best = torch.where(per_sample(better, best), adv, best)
            value = torch.where(better, asked, value)
            if callback is not None:
                callback(Iterate(0, number, rows, adv, asked))
    result[rows] = best
    return result


def moves(angle: float = 30.0, shift: float = 0.1, grid: tuple[int, int] = (31, 5)) -> list[Move]:
    """The grid of :func:`spatial`, the mildest moves first.

    Args:
        angle: largest turn either way, in degrees, 0 to 180.
        shift: largest shift, as a share of the image's height or width, 0 to 1.
        grid: how many angles, and how many shifts along each of the two sides, 1 or more; an odd
            number has "not at all" among them.

    Returns:
        (degrees counter-clockwise, share down, share right) for each move, without the one that
        changes nothing. Mild is what uses little of the two ranges together.

    Raises:
        ValueError: for ranges or counts that make no sense.
    """
    _check_ranges(angle, shift)
    if len(grid) != 2:
        raise ValueError(f"grid must be (angles, shifts along each side), got {grid}")
    check_counts(**{"grid[0]": grid[0], "grid[1]": grid[1]})
    turns, shifts = _spread(angle, grid[0]), _spread(shift, grid[1])
    ways = [(turn, down, right) for turn in turns for down in shifts for right in shifts]
    return sorted((way for way in ways if any(way)), key=lambda way: _size(way, angle, shift))


def turn_and_shift(x: Tensor, angle: float, shift: Sequence[float] = (0.0, 0.0)) -> Tensor:
    """Turn images about their middle, then shift them; bilinear, black comes in from outside.

    Args:
        x: (N, C, H, W) float in [0, 1].
        angle: degrees, counter-clockwise.
        shift: down and to the right, as shares of height and width.

    Returns:
        (N, C, H, W) in [0, 1], dtype and device of ``x``; differentiable in ``x``.
    """
    height, width = x.shape[-2:]
    exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
    # an output pixel asks where it came from: undo the shift, then the turn, in pixels
    down = torch.arange(height, device=x.device, dtype=exact.dtype) + 0.5
    right = torch.arange(width, device=x.device, dtype=exact.dtype) + 0.5
    down = (down - height * (0.5 + shift[0]))[:, None]
    right = (right - width * (0.5 + shift[1]))[None]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, along = right * cos - down * sin, right * sin + down * cos
    where = torch.stack([across * 2 / width, along * 2 / height], -1).expand(len(x), -1, -1, -1)
    moved = F.grid_sample(exact, where, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.clamp(0, 1).to(x.dtype)


def check_images(x: Tensor) -> None:
    """Refuse what has no height and width.

    Raises:
        ValueError: unless ``x`` is (N, C, H, W).
    """
    if x.dim() != 4:
        raise ValueError(f"x must be images of shape (N, C, H, W), got {tuple(x.shape)}")


def _check_ranges(angle: float, shift: float) -> None:
    if not 0 <= angle <= 180:
        raise ValueError(f"angle must be 0 to 180 degrees, got {angle}")
    if not 0 <= shift <= 1:
        raise ValueError(f"shift is a share of the image's side, 0 to 1, got {shift}")


def _random_moves(
    angle: float, shift: float, tries: int, generator: torch.Generator | None
) -> list[Move]:
    _check_ranges(angle, shift)
    device = "cpu" if generator is None else generator.device
    drawn = torch.rand(tries, 3, generator=generator, device=device, dtype=torch.float64)
    scaled = (2 * drawn - 1) * torch.tensor([angle, shift, shift], device=device)
    ways: list[list[float]] = scaled.tolist() if readable(drawn) else [[0.0] * 3] * tries
    return [(turn, down, right) for turn, down, right in ways]


def _spread(most: float, count: int) -> list[float]:
    """So many numbers from -most to most; one alone is 0."""
    last = count - 1
    return [most * (2 * k - last) / last for k in range(count)] if last else [0.0]


def _size(way: Move, angle: float, shift: float) -> float:
    """How much of the allowed turn and shifts a move uses."""
    ranges = (angle, shift, shift)
    return sum(abs(part) / most for part, most in zip(way, ranges, strict=True) if most)
