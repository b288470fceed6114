"""Attacks made once for many images: a universal perturbation, and a patch that can be moved.

Both are trained like a network: batch by batch, on images that will not be seen again when the
attack is used. So say on which images they were trained, and test them on others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.attacks.common import (
    Iterate,
    Model,
    Objective,
    check_counts,
    check_inputs,
    check_norm,
    check_radius,
)
from modelsec.attacks.spatial import check_images
from modelsec.losses import SampleLoss, log_odds
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["Placement", "Places", "View", "apply_patch", "patch", "universal"]

View = Callable[[Tensor, torch.Generator | None], Tensor]
"""(images (N, C, H, W), generator) -> what a camera might make of them; differentiable."""


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("linf", "l2"),
        cost="epochs gradients an image, once; then nothing for any other image",
        source="https://arxiv.org/abs/1811.11304",
    )
)
def universal(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    epochs: int = 10,
    batch_size: int = 100,
    step_size: float | None = None,
    cap: float = 9.0,
    targeted: bool = False,
    loss: SampleLoss = log_odds,
    callback: Callable[[Iterate], object] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Universal perturbation: one change for all images, by stochastic gradient ascent.

    Each step takes the gradient of the loss on a batch of changed images, adds it up over the
    batch, and moves the one change along it (its sign for linf). An image whose loss is above
    ``cap`` is lost already, and no longer counts. Steps get shorter until they vanish.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1], the images to learn from.
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1].
        norm: "linf" or "l2".
        epochs: how often every image is used.
        batch_size: images per step.
        step_size: of the first step, in the units of eps; eps / 4 if None, or more if the steps
            are few, so that they can cross the ball and come back.
        cap: an image with a higher loss no longer counts: it is lost, and must not outvote others.
        targeted: descend to y instead of climbing away from it.
        loss: per-sample loss; see :func:`~modelsec.attacks.gradient.fgsm`.
        callback: called with every batch's :class:`~modelsec.attacks.common.Iterate`, before the
            step that it leads to.
        generator: draws the order of the images; torch's global one if None.

    Returns:
        The change, of shape (...), dtype and device of ``x``: no larger than eps. Use it as
        ``(images + change).clamp(0, 1)``.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Shafahi et al. (2020), https://arxiv.org/abs/1811.11304. That there are such
        changes: Moosavi-Dezfooli et al. (2017), https://arxiv.org/abs/1610.08401.
    """
    x, y = check_inputs(model, x, y)
    ball = check_norm(norm, "linf", "l2")
    radius = check_radius(eps, x[:1], ball)  # one number: the change is one for all
    check_counts(epochs=epochs, batch_size=batch_size)
    if step_size is not None and not step_size > 0:
        raise ValueError(f"step_size must be above 0, got {step_size}")
    change = x.new_zeros(1, *x.shape[1:])
    if not len(x):
        return change[0]
    objective, steps = Objective(model, loss, targeted), epochs * -(-len(x) // batch_size)
    usual = radius * max(0.25, 5 / steps)
    first = usual if step_size is None else torch.full_like(radius, step_size)
    with inference(model):
        for step, rows in enumerate(_batches(len(x), batch_size, steps, generator)):
            rows = rows.to(x.device)
            adv = (x[rows] + change).clamp(0, 1)
            # the gradient at the clipped image: what is clipped now may be of use for the next one
            value, _, gradient = objective.gradient(adv, y[rows])
            if callback is not None:
                callback(Iterate(0, step, rows, adv, value))
            counts = (value < cap).to(gradient.dtype)
            total = torch.einsum("n,n...->...", counts, gradient)[None]
            change = ball.step(change, first * (1 - step / steps), total)
            if norm == "linf":
                change = change.clamp(-radius, radius)
            else:
                length = ball.size(change)
                change = change * torch.where(length > radius.flatten(), radius / length, 1)
    return change[0]


class Places(NamedTuple):
    """Where a square patch lies on each of N images.

    Attributes:
        scale: (N,) its side, as a share of the image's shorter side.
        angle: (N,) degrees counter-clockwise.
        centre: (N, 2) its middle: from the top and from the left, as shares of height and width.
    """

    scale: Tensor
    angle: Tensor
    centre: Tensor


@dataclass(frozen=True)
class Placement:
    """A distribution over :class:`Places`: sizes, angles, and any place where the patch is whole.

    Attributes:
        scale: least and largest side, as shares of the image's shorter side, above 0 to 1.
        angle: least and largest angle in degrees.

    Raises:
        ValueError: for a range that is empty or makes no sense.
    """

    scale: tuple[float, float] = (0.3, 0.5)
    angle: tuple[float, float] = (-30.0, 30.0)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be (least, largest) within 0 to 1, got {self.scale}")
        if not -360 <= self.angle[0] <= self.angle[1] <= 360:
            raise ValueError(f"angle must be (least, largest) in degrees, got {self.angle}")

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Places:
        """Draw one place for each image, all of them independently.

        Args:
            x: (N, C, H, W) the images.
            generator: draws; torch's global one if None.

        Returns:
            The :class:`Places`, on the images' device.
        """
        home = x.device if generator is None else generator.device
        drawn = torch.rand(len(x), 4, generator=generator, device=home).to(x.device)
        scale, angle = (
            low + (high - low) * u
            for (low, high), u in zip((self.scale, self.angle), drawn.T[:2], strict=True)
        )
        turn = angle.deg2rad()
        reach = scale / 2 * (turn.cos().abs() + turn.sin().abs())  # of its corners, either way
        sides = torch.tensor([float(n) for n in x.shape[-2:]], device=x.device)
        # a patch that is too large for its place when turned stands in the middle
        room = (0.5 - reach[:, None] * sides.min() / sides).clamp_min(0)
        return Places(scale, angle, 0.5 + (2 * drawn[:, 2:] - 1) * room)


def apply_patch(x: Tensor, patch: Tensor, places: Places) -> Tensor:
    """Stick a square patch on images, turned and scaled; bilinear.

    A pixel whose middle lies under the patch shows the patch. Every other pixel stays exactly as it
    is. The result can be differentiated by the patch and by the images.

    Args:
        x: (N, C, H, W) float in [0, 1].
        patch: (C, S, S) float in [0, 1].
        places: where it lies on each image.

    Returns:
        (N, C, H, W), dtype and device of ``x``.

    Raises:
        TypeError: if one of the two is no floating-point tensor.
        ValueError: if shapes don't fit each other.
    """
    for name, value in (("x", x), ("patch", patch)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating-point tensor in [0, 1], got {kind}")
    check_images(x)
    (n, channels, height, width), given = x.shape, tuple(patch.shape)
    if len(given) != 3 or given[0] != channels or given[1] != given[2]:
        raise ValueError(f"patch must have shape ({channels}, S, S) for these images, got {given}")
    shapes = [tuple(part.shape) for part in places]
    if shapes != [(n,), (n,), (n, 2)]:
        raise ValueError(f"places must be of {n} images, (N,), (N,) and (N, 2), got {shapes}")
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale, angle, centre = (part.to(x.device, exact) for part in places)
    # where each pixel's middle lies on the patch: from -1 to 1 along both sides if it lies on it
    down = torch.arange(height, device=x.device, dtype=exact) + 0.5 - centre[:, :1] * height
    right = torch.arange(width, device=x.device, dtype=exact) + 0.5 - centre[:, 1:] * width
    down, right = down[:, :, None], right[:, None, :]
    cos, sin = (f(angle.deg2rad())[:, None, None] for f in (torch.cos, torch.sin))
    half = (scale * min(height, width) / 2)[:, None, None]
    spot = torch.stack([(right * cos - down * sin) / half, (right * sin + down * cos) / half], -1)
    under = (spot.abs() <= 1).all(-1)[:, None]
    shown = F.grid_sample(
        patch.to(exact).expand(n, -1, -1, -1), spot, mode="bilinear", padding_mode="border",
        align_corners=False,
    )  # fmt: skip
    return torch.where(under, shown.clamp(0, 1).to(x.dtype), x)


@threat(
    ThreatModel(
        goal="targeted evasion",
        knowledge="white-box",
        cost="steps x batch_size gradients, once; then a printer",
        source="https://arxiv.org/abs/1712.09665",
    )
)
def patch(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    size: int = 64,
    placement: Placement | None = None,
    steps: int = 200,
    batch_size: int = 8,
    step_size: float = 0.05,
    targeted: bool = True,
    loss: SampleLoss = log_odds,
    start: Tensor | None = None,
    view: View | None = None,
    callback: Callable[[Iterate], object] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial patch: a square that makes the model answer y wherever it is stuck.

    Expectation over transformations: each step sticks the patch on some images at places, sizes
    and angles drawn anew, adds up the gradients of the loss by the patch, and moves every pixel of
    it by ``step_size`` along their sign. Nothing limits the patch but the range of pixels. Steps
    get shorter until they vanish.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K).
        x: (N, C, H, W) float in [0, 1], the images to learn from.
        y: (N,) integer labels, the classes to reach; the true ones to get away from if not
            ``targeted``.
        size: S, the patch's own resolution in pixels.
        placement: sizes and angles to be drawn; ``Placement()`` if None.
        steps: how many.
        batch_size: placements in each step; images come in random order, again and again.
        step_size: of the first step, in units of a pixel's range.
        targeted: reach y instead of getting away from it.
        loss: per-sample loss; see :func:`~modelsec.attacks.gradient.fgsm`.
        start: (C, S, S) in [0, 1], where to begin; all grey if None.
        view: what happens to a patched image before the model sees it, such as a change of light;
            differentiable, drawn from the generator it is given.
        callback: called with every step's :class:`~modelsec.attacks.common.Iterate`; its ``adv``
            are patched images as the model sees them.
        generator: draws images and places; torch's global one if None.

    Returns:
        (C, S, S) in [0, 1], dtype and device of ``x``. Use it with :func:`apply_patch`.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Brown et al. (2017), https://arxiv.org/abs/1712.09665; the expectation is that of Athalye
        et al. (2018), https://arxiv.org/abs/1707.07397.
    """
    x, y = check_inputs(model, x, y)
    check_images(x)
    check_counts(size=size, steps=steps, batch_size=batch_size)
    if not step_size > 0:
        raise ValueError(f"step_size must be above 0, got {step_size}")
    where, shape = placement or Placement(), (x.shape[1], size, size)
    if start is not None and tuple(start.shape) != shape:
        raise ValueError(f"start must have shape {shape}, got {tuple(start.shape)}")
    sticker = torch.full(shape, 0.5, device=x.device, dtype=x.dtype) if start is None else start
    sticker = sticker.detach().to(x).clamp(0, 1)
    objective = Objective(model, loss, targeted)
    with inference(model):
        for step, rows in enumerate(_batches(len(x), batch_size, steps, generator)):
            rows = rows.to(x.device)
            places = where.draw(x[rows], generator)
            with torch.inference_mode(False), torch.enable_grad():
                leaf = sticker.clone().requires_grad_()
                seen = apply_patch(x[rows].clone(), leaf, places)
                seen = seen if view is None else view(seen, generator)
            value, _, by_pixel = objective.gradient(seen, y[rows])
            (gradient,) = torch.autograd.grad(seen, leaf, by_pixel)
            if callback is not None:
                callback(Iterate(0, step, rows, seen.detach(), value))
            size_now = step_size * (1 - step / steps)
            sticker = (sticker + size_now * gradient.sign()).clamp(0, 1)
    return sticker


def _batches(
    n: int, batch_size: int, steps: int, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Rows for so many steps; every row is used once before one is used again."""
    device = "cpu" if generator is None else generator.device
    waiting: list[Tensor] = []
    for _ in range(steps if n else 0):
        if not waiting:
            waiting = list(torch.randperm(n, generator=generator, device=device).split(batch_size))
        yield waiting.pop(0)
