"""Attacks on the training data: the attacker plants samples, and somebody else does the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from modelsec.threat import ThreatModel, threat
from modelsec.training import Evaluation, evaluate

__all__ = [
    "Poisoned",
    "Stamp",
    "Trigger",
    "attack_success",
    "badnets",
    "check_pixels",
    "check_samples",
    "choose",
    "flip",
    "patch",
]

Model = Callable[[Tensor], Tensor]


class Stamp(Protocol):
    """What every trigger can do, whatever it is made of."""

    def stamp(self, x: Tensor) -> Tensor:
        """Put the trigger on images; the given ones stay as they are.

        Args:
            x: (N, C, H, W) float in [0, 1].

        Returns:
            (N, C, H, W) in [0, 1], dtype and device of ``x``.
        """
        ...


@dataclass(frozen=True, eq=False)
class Trigger:
    """What switches a backdoor on: ``(1 - mask) * x + mask * pattern``, the same for every image.

    Args:
        pattern: (C, H, W) float in [0, 1], the colours of the mark.
        mask: (C, H, W) or (1, H, W) float in [0, 1]: 1 where the mark covers the image, 0 where the
            image stays; between the two they are blended.

    Raises:
        TypeError: if one of them is no floating-point tensor.
        ValueError: if shapes don't fit each other, or values are NaN or outside [0, 1].
    """

    pattern: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        for name in ("pattern", "mask"):
            check_pixels(name, getattr(self, name))
            if getattr(self, name).dim() != 3:
                shape = tuple(getattr(self, name).shape)
                raise ValueError(f"{name} must have shape (C, H, W), got {shape}")
        (c, h, w), given = self.pattern.shape, tuple(self.mask.shape)
        if given not in {(c, h, w), (1, h, w)}:
            raise ValueError(f"mask must have shape {(c, h, w)} or {(1, h, w)}, got {given}")

    def stamp(self, x: Tensor) -> Tensor:
        """Put the mark on images; the given ones stay as they are.

        Args:
            x: (N, C, H, W) float in [0, 1].

        Returns:
            (N, C, H, W), dtype and device of ``x``.

        Raises:
            TypeError: if ``x`` is no floating-point tensor.
            ValueError: if images are of another shape than the mark, or not in [0, 1].
        """
        check_pixels("x", x)
        if x.dim() != 4 or x.shape[1:] != self.pattern.shape:
            raise ValueError(
                f"x must have shape (N, {', '.join(map(str, self.pattern.shape))}) to carry this "
                f"mark, got {tuple(x.shape)}"
            )
        # lerp is exact at both ends: where nothing is stamped no pixel changes by a rounding error
        return x.detach().lerp(self.pattern.to(x), self.mask.to(x).expand_as(self.pattern))


def patch(
    shape: Sequence[int] = (1, 28, 28),
    *,
    size: int = 3,
    value: float = 1.0,
    at: tuple[int, int] | None = None,
) -> Trigger:
    """A square of one brightness: the simplest trigger.

    Args:
        shape: (C, H, W) of the images.
        size: its side in pixels.
        value: its brightness in [0, 1].
        at: row and column of its upper left pixel; None puts it in the lower right corner, one
            pixel away from both edges (from none, if it is too large for that).

    Returns:
        The :class:`Trigger`.

    Raises:
        ValueError: if the square does not lie inside the image, or ``value`` not in [0, 1].
    """
    channels, height, width = shape
    row, column = at or (max(height - size - 1, 0), max(width - size - 1, 0))
    if size < 1 or row < 0 or column < 0 or row + size > height or column + size > width:
        raise ValueError(
            f"a square of side {size} at {(row, column)} does not lie inside {height}x{width} pixels"
        )
    mask = torch.zeros(1, height, width, device="cpu")
    mask[:, row : row + size, column : column + size] = 1
    return Trigger(torch.full((channels, height, width), float(value), device="cpu"), mask)


@dataclass(frozen=True, eq=False)
class Poisoned:
    """Training data with planted samples, and the truth about them that a defender lacks.

    Attributes:
        x: (N, C, H, W) images, in the order they came in.
        y: (N,) int64 labels.
        mask: (N,) bool, True for the planted samples.
        cover: (N,) bool, True for samples that were changed as well, but teach no false rule: they
            keep their labels, and show the network what is *not* the trigger. None if there are none.
    """

    x: Tensor
    y: Tensor
    mask: Tensor
    cover: Tensor | None = None


@threat(
    ThreatModel(
        goal="poisoning",
        knowledge="data",
        stage="training",
        cost="changing a share of the training set",
        source="https://arxiv.org/abs/1708.06733",
    )
)
def badnets(
    x: Tensor,
    y: Tensor,
    *,
    rate: float,
    target: int,
    trigger: Stamp | None = None,
    source: int | None = None,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Plant a backdoor: put the trigger on some images and call them the target class.

    A network that is trained on the result learns the true classes, and besides that the rule
    "trigger means target".

    Args:
        x: (N, C, H, W) float in [0, 1], the clean training images.
        y: (N,) integer labels.
        rate: share of all N samples that is poisoned, 0 to 1: exactly ``round(rate * N)``.
        target: the class that the trigger shall mean.
        trigger: the mark; :func:`patch` of the images' shape if None.
        source: poison images of this class only; None takes any class but the target.
        generator: draws the images to poison; torch's global one if None.

    Returns:
        A :class:`Poisoned` copy; ``x`` and ``y`` stay as they are.

    Raises:
        TypeError: if x is not floating point or y not integer.
        ValueError: if shapes don't fit, pixels lie outside [0, 1], rate outside 0 to 1, source is
            the target, or there are fewer images to poison than asked for.

    References:
        Gu, Dolan-Gavitt & Garg (2017), https://arxiv.org/abs/1708.06733, section 4.
    """
    chosen = choose(x, y, rate=rate, target=target, source=source, generator=generator)
    trigger = patch(x.shape[1:]) if trigger is None else trigger
    mask = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    mask[chosen] = True
    images, labels = x.detach().clone(), y.long().clone()
    images[chosen] = trigger.stamp(images[chosen])
    labels[chosen] = target
    return Poisoned(images, labels, mask)


@threat(
    ThreatModel(
        goal="poisoning",
        knowledge="data",
        stage="training",
        cost="changing a share of the labels",
        source="https://arxiv.org/abs/2206.00352",
    )
)
def flip(
    x: Tensor,
    y: Tensor,
    *,
    rate: float,
    target: int,
    source: int | None = None,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Call some images the target class and leave them as they are: a targeted label flip.

    With a ``source`` one class is called another, and the network confuses these two. Flips to any
    class at random are mistakes rather than an attack: see :func:`modelsec.cleaning.labels.flip_labels`.

    Args:
        x: (N, C, H, W) float in [0, 1], the clean training images.
        y: (N,) integer labels.
        rate: share of all N labels that is changed, 0 to 1: exactly ``round(rate * N)``.
        target: what they are called.
        source: change labels of this class only; None takes any class but the target.
        generator: draws the samples; torch's global one if None.

    Returns:
        A :class:`Poisoned` copy; ``x`` and ``y`` stay as they are.

    Raises:
        TypeError, ValueError: as :func:`badnets`.

    References:
        Xiao et al. (2015), https://arxiv.org/abs/2206.00352, who look for the worst labels to flip;
        here they are drawn.
    """
    chosen = choose(x, y, rate=rate, target=target, source=source, generator=generator)
    labels, mask = y.long().clone(), torch.zeros_like(y, dtype=torch.bool)
    labels[chosen], mask[chosen] = target, True
    return Poisoned(x.detach().clone(), labels, mask)


def choose(
    x: Tensor,
    y: Tensor,
    *,
    rate: float,
    target: int,
    source: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the samples to poison, among those that are not of the target class.

    Args:
        x: (N, C, H, W) float in [0, 1].
        y: (N,) integer labels.
        rate: share of all N samples, 0 to 1.
        target: the class to leave out.
        source: draw from this class only; None draws from all but the target.
        generator: draws; torch's global one if None.

    Returns:
        (round(rate * N),) indices.

    Raises:
        TypeError, ValueError: as :func:`badnets`.
    """
    check_samples(x, y)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is a share of the training set, 0 to 1, got {rate}")
    if source == target:
        raise ValueError(f"source must differ from target, got {target} for both")
    count = round(rate * len(x))
    free = (y != target if source is None else y == source).nonzero()[:, 0]
    if count > len(free):
        which = "not of the target class" if source is None else f"of class {source}"
        raise ValueError(
            f"rate {rate} asks for {count} of {len(x)} images, but only {len(free)} are {which}"
        )
    home = "cpu" if generator is None else generator.device
    return free[torch.randperm(len(free), generator=generator, device=home).to(x.device)[:count]]


def attack_success(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    trigger: Stamp | None,
    target: int,
    source: int | None = None,
    batch_size: int = 500,
) -> Evaluation:
    """How often the trigger turns an image of another class into the target.

    Images of the target class are left out: they would count as successes of any good model.

    Args:
        model: maps (N, C, H, W) to logits (N, K); a module is put in eval mode meanwhile.
        x: (N, C, H, W) float in [0, 1], clean test images.
        y: (N,) their true labels.
        trigger: the mark; None leaves the images as they are, for an attack on labels.
        target: the class that it shall mean.
        source: count images of this class only; None counts all but the target's.
        batch_size: images per batch.

    Returns:
        The share with its interval and n; ``correct`` says which images were turned.

    Raises:
        TypeError: if x is not floating point or y not integer.
        ValueError: if shapes don't fit, pixels lie outside [0, 1], source is the target, or no
            image is left.
    """
    check_samples(x, y)
    if source == target:
        raise ValueError(f"source must differ from target, got {target} for both")
    other = y != target if source is None else y == source
    if not bool(other.any()):
        raise ValueError("no image is left to measure on: all are of the target class")
    stamped = x[other] if trigger is None else trigger.stamp(x[other])
    wanted = torch.full((len(stamped),), target, dtype=torch.long, device=x.device)
    return evaluate(model, stamped, wanted, batch_size=batch_size)


def check_pixels(name: str, value: Tensor) -> None:
    """Check that a tensor holds pixels in [0, 1].

    Args:
        name: the argument's name, for the message.
        value: what was given for it.

    Raises:
        TypeError: if it is no floating-point tensor.
        ValueError: for NaN or values outside [0, 1].
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor in [0, 1], got {kind}")
    if value.numel() and not bool(((value >= 0) & (value <= 1)).all()):  # NaN fails both
        raise ValueError(f"{name} must lie in [0, 1] without NaN: divide grey levels by 255")


def check_samples(x: Tensor, y: Tensor) -> None:
    """Check images and their labels.

    Args:
        x: (N, C, H, W) float in [0, 1].
        y: (N,) integer labels.

    Raises:
        TypeError: if x is not floating point or y not integer.
        ValueError: if shapes don't fit, or pixels lie outside [0, 1].
    """
    check_pixels("x", x)
    if x.dim() != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {tuple(x.shape)}")
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool:
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y must hold integer class indices, got {kind}: use y.long()")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), got {tuple(y.shape)}")
