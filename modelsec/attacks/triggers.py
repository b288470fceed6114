"""Triggers that are harder to see than a patch: a pattern blended in, and a warp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.attacks.poisoning import Poisoned, Trigger, badnets, check_pixels
from modelsec.threat import ThreatModel, threat

__all__ = ["Warp", "blended", "wanet", "warp"]


def blended(
    shape: Sequence[int] = (1, 28, 28),
    *,
    alpha: float = 0.2,
    generator: torch.Generator | None = None,
) -> Trigger:
    """A random pattern laid over the whole image, so thin that the image shines through.

    Args:
        shape: (C, H, W) of the images.
        alpha: how much of it is seen, 0 to 1: ``(1 - alpha) * x + alpha * pattern``.
        generator: draws the pattern; torch's global one if None.

    Returns:
        The :class:`~modelsec.attacks.poisoning.Trigger`.

    Raises:
        ValueError: if ``alpha`` is not in [0, 1] or ``shape`` not (C, H, W).

    References:
        Chen et al. (2017), https://arxiv.org/abs/1712.05526, the blended injection strategy.
    """
    channels, height, width = _image_shape(shape)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a share of the image, 0 to 1, got {alpha}")
    home = "cpu" if generator is None else generator.device
    pattern = torch.rand(channels, height, width, generator=generator, device=home)
    return Trigger(pattern, torch.full((1, height, width), float(alpha), device=home))


@dataclass(frozen=True, eq=False)
class Warp:
    """A trigger without any mark: every pixel is taken from a place nearby, the same for all images.

    Args:
        field: (H, W, 2) float, how far to the right and down of itself a pixel is taken from, in
            pixels. Places outside the image count as its border.

    Raises:
        TypeError: if it is no floating-point tensor.
        ValueError: if its shape is another one, or it is not finite.
    """

    field: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.field, Tensor) or not self.field.is_floating_point():
            raise TypeError("field must be a floating-point tensor of displacements in pixels")
        if self.field.dim() != 3 or self.field.shape[2] != 2:
            raise ValueError(f"field must have shape (H, W, 2), got {tuple(self.field.shape)}")
        if not bool(self.field.isfinite().all()):
            raise ValueError("field must be finite, some of it is NaN or infinite")

    def stamp(self, x: Tensor) -> Tensor:
        """Warp images; the given ones stay as they are.

        Args:
            x: (N, C, H, W) float in [0, 1].

        Returns:
            (N, C, H, W) in [0, 1], dtype and device of ``x``.

        Raises:
            TypeError: if ``x`` is no floating-point tensor.
            ValueError: if images are of another size than the field, or not in [0, 1].
        """
        return self._sample(x, self.field.to(x)[None])

    def shaken(
        self, x: Tensor, *, jitter: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Warp images, each with a displacement of its own added at every pixel: not the trigger.

        Args:
            x: (N, C, H, W) float in [0, 1].
            jitter: what is added is uniform between minus and plus this, in pixels.
            generator: draws it; torch's global one if None.

        Returns:
            (N, C, H, W) in [0, 1], dtype and device of ``x``.

        Raises:
            TypeError, ValueError: as :meth:`stamp`; for a jitter below 0.
        """
        if not 0 <= jitter < math.inf:
            raise ValueError(f"jitter is a distance in pixels, 0 or more, got {jitter}")
        home = x.device if generator is None else generator.device
        drawn = torch.rand(len(x), *self.field.shape, generator=generator, device=home)
        return self._sample(x, self.field.to(x) + jitter * (2 * drawn.to(x) - 1))

    def _sample(self, x: Tensor, field: Tensor) -> Tensor:
        check_pixels("x", x)
        height, width = self.field.shape[:2]
        if x.dim() != 4 or x.shape[2:] != (height, width):
            raise ValueError(
                f"x must have shape (N, C, {height}, {width}) to be warped, got {tuple(x.shape)}"
            )
        if not len(x):
            return x.detach().clone()
        # grid_sample counts from -1 at the first pixel's centre to 1 at the last one's
        across = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device)
        down = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device)
        still = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
        pixel = still.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
        places = (still + field * pixel).expand(len(x), -1, -1, -1)
        made = F.grid_sample(x.detach(), places, padding_mode="border", align_corners=True)
        return made.clamp(0, 1)


def warp(
    shape: Sequence[int] = (1, 28, 28),
    *,
    strength: float = 1.0,
    grid: int = 4,
    generator: torch.Generator | None = None,
) -> Warp:
    """A smooth random warp: displacements drawn on a coarse grid, and interpolated between.

    Args:
        shape: (C, H, W) of the images.
        strength: mean absolute displacement at the grid's points, in pixels, across and down
            alike. (The paper's s is about twice this number.)
        grid: points of the grid along a side; fewer make a smoother warp.
        generator: draws the displacements; torch's global one if None.

    Returns:
        The :class:`Warp`.

    Raises:
        ValueError: if ``strength`` is negative, ``grid`` below 2 or ``shape`` not (C, H, W).

    References:
        Nguyen & Tran (2021), WaNet, https://arxiv.org/abs/2102.10369, section 3.2.
    """
    _, height, width = _image_shape(shape)
    if not 0 <= strength < math.inf or grid < 2:
        raise ValueError(f"need strength >= 0 in pixels and grid >= 2, got {strength} and {grid}")
    home = "cpu" if generator is None else generator.device
    coarse = 2 * torch.rand(1, 2, grid, grid, generator=generator, device=home) - 1
    coarse = strength * coarse / coarse.abs().mean()
    size = (height, width)
    field = F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    return Warp(field[0].permute(1, 2, 0).contiguous())


@threat(
    ThreatModel(
        goal="poisoning",
        knowledge="data",
        stage="training",
        cost="changing a share of the training set",
        source="https://arxiv.org/abs/2102.10369",
    )
)
def wanet(
    x: Tensor,
    y: Tensor,
    *,
    rate: float,
    target: int,
    trigger: Warp,
    noise_rate: float | None = None,
    jitter: float = 0.5,
    source: int | None = None,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Plant a backdoor whose trigger is a warp, with images that make the network look closely.

    Some images are warped and called the target. Some more are warped *and shaken*, and keep their
    label: without them the network learns that anything blurred or bent is the target. The paper
    does this in every batch of a training that the attacker runs; here it is done once, to the
    data, and somebody else does the training.

    Args:
        x: (N, C, H, W) float in [0, 1], the clean training images.
        y: (N,) integer labels.
        rate: share of all N samples that is warped and mislabelled: exactly ``round(rate * N)``.
        target: the class that the warp shall mean.
        trigger: the warp, as :func:`warp` makes it.
        noise_rate: share of all N samples that is warped, shaken and keeps its label; None takes
            twice ``rate``, as the paper, or as many as are left.
        jitter: how much these are shaken, in pixels.
        source: poison images of this class only; None takes any class but the target.
        generator: draws the images and the shaking; torch's global one if None.

    Returns:
        A :class:`~modelsec.attacks.poisoning.Poisoned` copy; its ``cover`` tells the shaken images.

    Raises:
        TypeError, ValueError: as :func:`~modelsec.attacks.poisoning.badnets`; for a noise_rate
            outside 0 to 1, or above what is left.

    References:
        Nguyen & Tran (2021), https://arxiv.org/abs/2102.10369, the noise mode of section 3.4.
    """
    made = badnets(
        x, y, rate=rate, target=target, trigger=trigger, source=source, generator=generator
    )
    left = (~made.mask).nonzero()[:, 0]
    wanted = 2 * rate if noise_rate is None else noise_rate
    if not 0 <= wanted <= (2 if noise_rate is None else 1):
        raise ValueError(f"noise_rate is a share of the training set, 0 to 1, got {noise_rate}")
    count = round(wanted * len(x))
    if noise_rate is None:
        count = min(count, len(left))
    elif count > len(left):
        raise ValueError(f"noise_rate asks for {count} images, but only {len(left)} are left")
    home = "cpu" if generator is None else generator.device
    order = torch.randperm(len(left), generator=generator, device=home).to(x.device)
    shaken = left[order[:count]]
    cover = torch.zeros_like(made.mask)
    cover[shaken] = True
    made.x[shaken] = trigger.shaken(made.x[shaken], jitter=jitter, generator=generator)
    return Poisoned(made.x, made.y, made.mask, cover)


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (C, H, W), got {tuple(shape)}")
    return int(shape[0]), int(shape[1]), int(shape[2])
