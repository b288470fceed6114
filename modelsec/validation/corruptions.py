"""Common corruptions: noise, blur, light, movement and dirt, with no attacker behind them.

``corrupt(x, "fog", 3)`` is one of 16 kinds at one of 5 severities, in the spirit of ImageNet-C
(Hendrycks & Dietterich, 2019, https://arxiv.org/abs/1903.12261) and MNIST-C (Mu & Gilmer, 2019,
https://arxiv.org/abs/1906.02337). The levels are this book's own, chosen so that a person still
reads the digits. Lengths are shares of the image's size, so that every size can be used.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from modelsec.tables import Table

__all__ = [
    "KINDS",
    "Corruption",
    "as_jpeg",
    "corrupt",
    "corruption_table",
]

SEVERITIES = (1, 2, 3, 4, 5)
Apply = Callable[[Tensor, float, torch.Generator | None], Tensor]


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        name: what :func:`corrupt` calls it.
        family: "noise", "blur", "light", "geometry", "detail" or "cover".
        about: what happens, and what a level means.
        levels: the five levels, from severity 1 to 5.
        apply: (x, level, generator) -> corrupted x, not yet clipped to [0, 1].
    """

    name: str
    family: str
    about: str
    levels: tuple[float, float, float, float, float]
    apply: Apply


KINDS: dict[str, Corruption] = {}
"""Every kind by its name; the table, the report and the book's figures are made from it."""


def _kind(family: str, about: str, *levels: float) -> Callable[[Apply], Apply]:
    """Register a corruption under its function's name, without the leading underscore."""

    def register(apply: Apply) -> Apply:
        name = apply.__name__.removeprefix("_")
        one, two, three, four, five = levels
        KINDS[name] = Corruption(name, family, about, (one, two, three, four, five), apply)
        return apply

    return register


def corrupt(
    x: Tensor, kind: str, severity: int, generator: torch.Generator | None = None
) -> Tensor:
    """Corrupt images: one kind, one severity, a fresh draw for every image.

    Args:
        x: (N, C, H, W) float in [0, 1]; C is 1 or 3, H and W are 16 or more.
        kind: one of :data:`KINDS`.
        severity: 1 (slight) to 5 (strong).
        generator: draws noise, directions and places; torch's global one if None. A generator on
            the CPU gives the same draws for every device.

    Returns:
        (N, C, H, W) in [0, 1], dtype and device of ``x``, which is left as it was.

    Raises:
        TypeError: if ``x`` is no floating-point tensor, or ``severity`` no whole number.
        ValueError: for another shape, pixels outside [0, 1], or an unknown kind or severity.
    """
    check_images(x)
    found = check_kind(kind)
    level = found.levels[check_severity(severity) - 1]
    if not len(x):
        return x.clone()
    # the CPU has no half-precision version of every step
    work = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    return found.apply(work, level, generator).clamp(0, 1).to(x.dtype)


def corruption_table() -> Table:
    """What there is to choose from: a row per kind, with its five levels."""
    return Table(
        {
            "kind": kind.name,
            "family": kind.family,
            "what happens": kind.about,
            "levels 1 to 5": ", ".join(f"{level:g}" for level in kind.levels),
        }
        for kind in KINDS.values()
    )


# Noise: the sensor


@_kind(
    "noise", "normal noise is added; the level is its standard deviation", 0.1, 0.2, 0.3, 0.4, 0.5
)
def _gaussian_noise(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return x + level * _draw(torch.randn, x.shape, x, generator)


@_kind("noise", "photons are counted; the level is how many make white", 40, 16, 8, 4, 2)
def _shot_noise(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    rates = x * level if generator is None else (x * level).to(generator.device)
    return torch.poisson(rates, generator=generator).to(x.device) / level


@_kind("noise", "pixels turn black or white; the level is their share", 0.03, 0.06, 0.12, 0.2, 0.3)
def _impulse_noise(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    shape = (len(x), 1, *x.shape[2:])  # all colours of a pixel at once
    hit = _draw(torch.rand, shape, x, generator) < level
    white = _draw(torch.rand, shape, x, generator) < 0.5
    return torch.where(hit, white.to(x.dtype), x)


# Blur: the lens and the hand


@_kind("blur", "out of focus; the level is the blur's width", 0.02, 0.035, 0.05, 0.065, 0.08)
def _gaussian_blur(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    from torchvision.transforms.v2 import functional as tv  # here: importing it takes seconds

    sigma = level * min(x.shape[2:])
    width = 2 * math.ceil(3 * sigma) + 1
    blurred: Tensor = tv.gaussian_blur(x, [width, width], [sigma, sigma])
    return blurred


@_kind("blur", "the camera moves; the level is how far", 0.08, 0.14, 0.2, 0.26, 0.32)
def _motion_blur(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    angle = math.pi * _draw(torch.rand, (len(x),), x, generator)
    way = level * torch.stack([angle.cos(), angle.sin()], 1)
    moments = [i / 8 - 0.5 for i in range(9)]  # while the shutter is open
    return torch.stack([_warp(x, shift=moment * way) for moment in moments]).mean(0)


# Light


@_kind("light", "the level is added to every pixel", 0.1, 0.2, 0.3, 0.4, 0.5)
def _brightness(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return x + level  # torchvision multiplies, which leaves black as it is


@_kind(
    "light", "pixels move towards the mean; the level is what is left", 0.6, 0.45, 0.3, 0.2, 0.12
)
def _contrast(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    from torchvision.transforms.v2 import functional as tv

    paler: Tensor = tv.adjust_contrast(x, level)
    return paler


@_kind("light", "a veil with clouds; the level is how thick", 0.2, 0.35, 0.5, 0.6, 0.7)
def _fog(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    cloud = torch.zeros_like(x[:, :1])
    for octave in range(3):  # coarse and fine lumps, the finer the weaker
        lumps = _draw(torch.rand, (len(x), 1, 2 << octave, 2 << octave), x, generator)
        cloud = cloud + F.interpolate(lumps, x.shape[2:], mode="bilinear") / 2**octave
    return x + level * (0.4 + 0.6 * cloud / 1.75) * (1 - x)  # 1 + 1/2 + 1/4 at most


# Geometry: where the object stands


@_kind("geometry", "moved up, down or sideways; the level is how far", 0.04, 0.08, 0.12, 0.16, 0.2)
def _translate(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    angle = 2 * math.pi * _draw(torch.rand, (len(x),), x, generator)
    return _warp(x, shift=level * torch.stack([angle.cos(), angle.sin()], 1))


@_kind("geometry", "turned to either side; the level is in degrees", 10, 20, 30, 40, 50)
def _rotate(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    angle = math.radians(level) * _sign(x, generator)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    return _warp(x, turn.view(-1, 2, 2))


@_kind("geometry", "slanted to either side; the level is the slope", 0.15, 0.3, 0.45, 0.6, 0.75)
def _shear(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    slope, one = level * _sign(x, generator), x.new_ones(len(x))
    return _warp(x, torch.stack([one, slope, 0 * one, one], 1).view(-1, 2, 2))


@_kind("geometry", "shrunk; the level is what is left of its size", 0.9, 0.8, 0.7, 0.6, 0.5)
def _scale(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return _warp(x, torch.eye(2, dtype=x.dtype, device=x.device).expand(len(x), 2, 2) / level)


# Detail: how the image was stored


@_kind("detail", "fewer pixels; the level is how many are left", 0.7, 0.55, 0.45, 0.35, 0.28)
def _pixelate(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    small = [max(1, round(level * side)) for side in x.shape[2:]]
    coarse = F.interpolate(x, small, mode="area")
    return F.interpolate(coarse, x.shape[2:], mode="nearest-exact")


@_kind("detail", "stored as JPEG; the level is its quality", 50, 25, 15, 8, 4)
def _jpeg(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    return as_jpeg(x, int(level))


def as_jpeg(x: Tensor, quality: int) -> Tensor:
    """Images as they come back from a JPEG file. There is no gradient through it.

    Args:
        x: (N, 1 or 3, H, W) in [0, 1].
        quality: 1 to 95.

    Returns:
        The same shape, dtype and device, in 256 grey levels.
    """
    # the codec takes bytes, on the CPU (torchvision's own is to be removed, so Pillow's)
    pixels = (x.detach() * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    stored = np.empty_like(pixels)
    for image, place in zip(pixels, stored, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            file, "JPEG", quality=quality
        )
        place[...] = np.asarray(Image.open(file)).reshape(image.shape)
    found = torch.from_numpy(stored).permute(0, 3, 1, 2)
    return found.to(x.device, x.dtype) / 255


# Cover: what stands in the way


@_kind("cover", "a grey patch lies on it; the level is its side", 0.15, 0.22, 0.29, 0.36, 0.43)
def _occlusion(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    place = _draw(torch.rand, (2, len(x)), x, generator)
    rows, columns = (
        _band(side, level, where) for side, where in zip(x.shape[2:], place, strict=True)
    )
    covered = rows[:, None, :, None] * columns[:, None, None, :]
    return x + covered * (0.5 - x)


@_kind("cover", "an upright band is inverted; the level is its width", 0.06, 0.1, 0.14, 0.18, 0.22)
def _stripe(x: Tensor, level: float, generator: torch.Generator | None) -> Tensor:
    band = _band(x.shape[3], level, _draw(torch.rand, (len(x),), x, generator))
    return x + band[:, None, None, :] * (1 - 2 * x)


# Helpers


def _draw(
    kind: Callable[..., Tensor],
    shape: Iterable[int],
    x: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    # on the generator's own device: a CPU generator gives the same numbers for every device
    device = x.device if generator is None else generator.device
    return kind(tuple(shape), generator=generator, device=device, dtype=x.dtype).to(x.device)


def _sign(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.where(_draw(torch.rand, (len(x),), x, generator) < 0.5, -1.0, 1.0).to(x.dtype)


def _band(side: int, width: float, place: Tensor) -> Tensor:
    """(N, side), 1 inside a band of ``width`` (a share of the side), soft at its two ends."""
    centres = (torch.arange(side, device=place.device, dtype=place.dtype) + 0.5) / side
    start = place[:, None] * (1 - width)
    inside = torch.minimum(centres - start, start + width - centres)
    return (inside * side + 0.5).clamp(0, 1)  # a pixel half covered counts half


def _warp(x: Tensor, matrix: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Move every image in its own way; what comes in from outside is black.

    torchvision's ``affine`` moves a whole batch alike, so this uses what lies below it. Each pixel
    of the result, seen from the centre, shows the pixel at ``matrix`` times its place.

    Args:
        x: (N, C, H, W).
        matrix: (N, 2, 2), acting on (column, row) in pixels; the identity if None.
        shift: (N, 2), to the right and down, as a share of the image's size.

    Returns:
        (N, C, H, W).
    """
    high, wide = x.shape[2:]
    theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    if matrix is None:
        theta[:, 0, 0] = theta[:, 1, 1] = 1
    else:  # affine_grid counts from -1 to 1 along both sides, whatever their lengths
        ratio = torch.tensor([[1, high / wide], [wide / high, 1]], dtype=x.dtype, device=x.device)
        theta[:, :, :2] = matrix * ratio
    if shift is not None:
        theta[:, :, 2] = -2 * shift
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def check_kind(kind: str) -> Corruption:
    """The corruption of this name; ValueError names the known ones."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind must be one of {sorted(KINDS)}, got {kind!r}")
    return KINDS[kind]


def check_severity(severity: int) -> int:
    """The severity, if it is one of 1 to 5; TypeError or ValueError otherwise."""
    if isinstance(severity, bool) or not isinstance(severity, int):
        raise TypeError(f"severity must be a whole number, got {severity!r}")
    if severity not in SEVERITIES:
        hint = "; the clean images are x itself" if severity == 0 else ""
        raise ValueError(f"severity must be 1 (slight) to 5 (strong), got {severity}{hint}")
    return severity


def check_images(x: Tensor) -> None:
    """Raise TypeError or ValueError unless x is (N, C, H, W) float in [0, 1], C 1 or 3, sides >= 16."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point in [0, 1], got {x.dtype}: use x.float() / 255")
    if x.dim() != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < 16:
        raise ValueError(
            "x must have shape (N, C, H, W) with C = 1 or 3 and H, W of 16 or more, got "
            f"{tuple(x.shape)}"
        )
    if x.device.type == "meta" or isinstance(x, FakeTensor) or not x.numel():
        return  # no values to look at
    low, high = (float(value) for value in x.aminmax())
    if math.isnan(low) or math.isnan(high):
        raise ValueError("x holds NaN pixels")
    if low < 0 or high > 1:
        hint = ": divide by 255" if low >= 0 and high > 2 else ""
        raise ValueError(f"x must lie in [0, 1], got [{low:.4g}, {high:.4g}]{hint}")
