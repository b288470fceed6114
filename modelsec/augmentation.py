"""Data augmentation: torchvision's transforms, drawn anew for every image, ready for ``fit``.

A transform of ``torchvision.transforms.v2`` changes a whole batch alike, and draws from torch's
global generator. :func:`vary` and :func:`mix` turn one into what ``fit(perturb=...)`` calls: fresh
draws for every image (or small group), from a generator of the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelsec.models import drawing_from
from modelsec.training import Perturb

if TYPE_CHECKING:  # it takes seconds to import, so only where a transform is made
    from torchvision.transforms import v2

__all__ = [
    "METHODS",
    "augmix",
    "erasing",
    "geometric",
    "mix",
    "noise",
    "transform_each",
    "trivial_augment",
    "vary",
]

Transform = Callable[..., Any]
"""What torchvision calls a transform: images -> images; for mixing, (images, labels) -> both."""


def geometric(
    degrees: float = 15, shift: float = 0.1, scale: tuple[float, float] = (0.9, 1.1)
) -> v2.Transform:
    """A small turn, shift and change of size, which leave a digit what it is.

    Args:
        degrees: turn by at most this, to either side.
        shift: move by at most this share of the side, along both axes.
        scale: smallest and largest factor on the size.

    Returns:
        A transform; what comes in from outside the image is black.
    """
    from torchvision.transforms import InterpolationMode, v2

    return v2.RandomAffine(degrees, (shift, shift), scale, interpolation=InterpolationMode.BILINEAR)


def noise(sigma: float = 0.3, p: float = 0.5) -> v2.Transform:
    """Normal noise on some of the images; the others stay clean, so that both are learned.

    Args:
        sigma: standard deviation, in units of a pixel's range.
        p: probability that noise is added.

    Returns:
        A transform; pixels are clipped to [0, 1].
    """
    from torchvision.transforms import v2

    return v2.RandomApply([v2.GaussianNoise(sigma=sigma)], p=p)


def erasing(p: float = 0.5, area: tuple[float, float] = (0.02, 0.2)) -> v2.Transform:
    """Paint a random rectangle black.

    Args:
        p: probability that it happens.
        area: smallest and largest share of the image.

    Returns:
        A transform.

    References:
        Zhong et al. (2020), https://arxiv.org/abs/1708.04896.
    """
    from torchvision.transforms import v2

    return v2.RandomErasing(p=p, scale=area)


def augmix(severity: int = 3) -> v2.Transform:
    """AugMix: several chains of random operations, mixed with the image itself.

    As in the paper, operations that resemble common corruptions (brightness, contrast, colour,
    sharpness) are left out. The paper's consistency loss is not part of a transform.

    Args:
        severity: strength of the operations, 1 to 10.

    Returns:
        A transform.

    References:
        Hendrycks et al. (2020), https://arxiv.org/abs/1912.02781.
    """
    from torchvision.transforms import v2

    return _on_bytes(v2.AugMix(severity=severity, all_ops=False))


def trivial_augment() -> v2.Transform:
    """TrivialAugment: one random operation of random strength, from torchvision's wide range.

    The range was made for colour photographs: it turns images by up to 135 degrees and moves them
    by up to 32 pixels, more than an MNIST digit's whole width.

    Returns:
        A transform.

    References:
        Mueller & Hutter (2021), https://arxiv.org/abs/2103.10158.
    """
    from torchvision.transforms import v2

    return _on_bytes(v2.TrivialAugmentWide())


def transform_each(
    transform: Transform,
    x: Tensor,
    *,
    group: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Apply a transform with a fresh draw for every ``group`` images.

    torchvision draws from torch's global generators. They are seeded from ``generator`` for the
    while and put back (those of the CPU and of CUDA devices).

    Args:
        transform: images (n, C, H, W) in [0, 1] -> images of the same shape.
        x: (N, C, H, W) float in [0, 1].
        group: images that share a draw. 1 varies most; larger groups are faster.
        generator: where the draws come from; torch's global one if None.

    Returns:
        (N, C, H, W), dtype and device of ``x``.

    Raises:
        TypeError: if ``x`` is no floating-point tensor.
        ValueError: for another shape, a ``group`` below 1, or a transform that changes the shape.
    """
    _check(x, group)
    if not len(x):
        return x.clone()
    with drawing_from(generator):
        changed = torch.cat([transform(part) for part in x.split(group)])
    if changed.shape != x.shape:
        raise ValueError(
            f"the transform must keep the shape {tuple(x.shape)}, it made {tuple(changed.shape)}"
        )
    return changed.to(x.dtype)


def vary(
    transform: Transform, *, group: int = 1, generator: torch.Generator | None = None
) -> Perturb:
    """A transform of images, as the ``perturb`` of :func:`modelsec.training.fit`.

    Args:
        transform: images (n, C, H, W) in [0, 1] -> images of the same shape, label kept.
        group: images that share a draw.
        generator: where the draws come from; torch's global one if None.

    Returns:
        (model, x, y, progress) -> changed x.
    """

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        return transform_each(transform, x, group=group, generator=generator)

    return perturb


def mix(transform: Transform, *, generator: torch.Generator | None = None) -> Perturb:
    """A transform that mixes images and labels, as the ``perturb`` of :func:`~modelsec.training.fit`.

    Args:
        transform: (x, y) -> (mixed x, soft targets (N, K)), such as torchvision's ``v2.MixUp`` and
            ``v2.CutMix``. They pair each sample with its neighbour in the batch, so the batch
            must be shuffled, as ``fit`` does.
        generator: where the draws come from; torch's global one if None.

    Returns:
        (model, x, y, progress) -> (mixed x, soft targets).

    References:
        Zhang et al. (2018), https://arxiv.org/abs/1710.09412; Yun et al. (2019),
        https://arxiv.org/abs/1905.04899.
    """

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        _check(x, 1)
        with drawing_from(generator):
            mixed, targets = transform(x, y)
        return mixed, targets.to(mixed.dtype)

    return perturb


Make = Callable[[int, int, torch.Generator | None], Perturb | None]


def _vary(make: Callable[[], v2.Transform]) -> Make:
    return lambda classes, group, generator: vary(make(), group=group, generator=generator)


def _mix(kind: str) -> Make:
    def make(classes: int, group: int, generator: torch.Generator | None) -> Perturb:
        from torchvision.transforms import v2

        return mix(getattr(v2, kind)(num_classes=classes), generator=generator)

    return make


METHODS: dict[str, Make] = {
    "none": lambda classes, group, generator: None,
    "geometric": _vary(geometric),
    "noise": _vary(noise),
    "mixup": _mix("MixUp"),
    "CutMix": _mix("CutMix"),
    "AugMix": _vary(augmix),
    "TrivialAugment": _vary(trivial_augment),
}
"""What the chapter compares, by name: (classes, group, generator) -> ``perturb`` for ``fit``."""


def _on_bytes(transform: v2.Transform) -> v2.Transform:
    """A transform that torchvision defines for bytes, for floats in [0, 1]."""
    from torchvision.transforms import v2

    there = v2.ToDtype(torch.uint8, scale=True)
    return v2.Compose([there, transform, v2.ToDtype(torch.float32, scale=True)])


def _check(x: Tensor, group: int) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor in [0, 1], got {found}")
    if x.dim() != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {tuple(x.shape)}")
    if group < 1:
        raise ValueError(f"group must be 1 or more, got {group}")
