"""Traffic signs that this package draws itself, and a camera that looks at them.

A pinhole camera takes pictures of the drawings in :mod:`modelsec.sign_art`, in front of real
photographs. It is differentiable, so that an attacker can ask what a sticker on a sign should look
like. The pictures are a simulation: nothing here was printed or photographed.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.data import Data, Images, photos
from modelsec.sign_art import CLASSES, plates

__all__ = [
    "BACKGROUNDS",
    "FOCAL",
    "RANGES",
    "WIDTH",
    "Split",
    "Views",
    "backdrops",
    "draw_views",
    "signs_data",
    "signs_rendered",
    "take",
]

Split = Literal["train", "test"]
"""Which photographs stand behind the signs."""

FOCAL = 1100.0
"""The camera's focal length in pixels, as of one with 1,280 pixels across 60 degrees."""

WIDTH = 0.6
"""A sign's width in metres."""

BACKGROUNDS = {
    "train": ("astronaut", "brick", "camera", "coffee", "grass", "hubble", "rocket", "retina"),
    "test": ("chelsea", "china", "clock", "flower", "gravel"),
}
"""The photographs of :func:`~modelsec.data.photos` that stand behind the signs: none in both."""


class Views(NamedTuple):
    """How each of N pictures is taken.

    Attributes:
        distance: (N,) metres from the camera to the sign.
        yaw, pitch, roll: (N,) degrees by which the sign is turned: about the vertical, about the
            horizontal, in its own plane.
        shift: (N, 2) of the sign's middle, down and right, as shares of the picture's side.
        fill: (N,) the sign's width as a share of the picture's side; a detector cut the picture out.
        light: (N,) factor on all colours.
        haze: (N,) share of a grey veil.
        noise: (N,) the sensor's, a standard deviation in units of a pixel's range.
    """

    distance: Tensor
    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    shift: Tensor
    fill: Tensor
    light: Tensor
    haze: Tensor
    noise: Tensor


RANGES: dict[str, tuple[float, float]] = {
    "distance": (10, 60),
    "yaw": (-40, 40),
    "pitch": (-10, 10),
    "roll": (-10, 10),
    "shift": (-0.08, 0.08),
    "fill": (0.65, 0.95),
    "light": (0.35, 1.15),
    "haze": (0, 0.4),
    "noise": (0.01, 0.06),
}


def draw_views(
    n: int, generator: torch.Generator | None = None, **ranges: float | tuple[float, float]
) -> Views:
    """Draw how so many pictures are taken, each number uniformly and on its own.

    Args:
        n: how many.
        generator: draws; torch's global one if None.
        ranges: for any field of :class:`Views` other ends than the usual ones, or one number for
            all pictures. The others are drawn as ever: the same numbers for the same generator.

    Returns:
        The :class:`Views`.

    Raises:
        TypeError: for a field that there is not.
        ValueError: for a range whose ends are the wrong way round.
    """
    if unknown := set(ranges) - set(RANGES):
        raise TypeError(f"a view has the fields {list(RANGES)}, not {sorted(unknown)}")
    found = {}
    for name, usual in RANGES.items():
        asked = ranges.get(name, usual)
        low, high = asked if isinstance(asked, tuple) else (asked, asked)
        if not low <= high:
            raise ValueError(f"{name} must be (least, largest), got {asked}")
        shape = (n, 2) if name == "shift" else (n,)
        device = "cpu" if generator is None else generator.device
        found[name] = low + (high - low) * torch.rand(shape, generator=generator, device=device)
    return Views(**found)


def take(
    signs: Tensor, behind: Tensor, views: Views, generator: torch.Generator | None = None
) -> Tensor:
    """Take pictures of signs.

    A pinhole camera sees each sign, a plane turned in space, in front of its background. Far away
    a sign covers few pixels of the camera: across they are :data:`~modelsec.signs.FOCAL` times
    :data:`~modelsec.signs.WIDTH` / distance. The picture is as blurred as if it were made of so
    many. Then come light, haze and noise.

    Args:
        signs: (N, 4, S, S) such as ``plates()[y]``, in [0, 1].
        behind: (N, 3, H, H) backgrounds in [0, 1], which say how large the pictures are.
        views: N of them.
        generator: draws the noise; torch's global one if None.

    Returns:
        (N, 3, H, H) in [0, 1]; differentiable in ``signs`` and ``behind``.

    Raises:
        ValueError: if shapes don't fit each other.
    """
    n, size = len(signs), behind.shape[-1]
    if signs.dim() != 4 or signs.shape[1] != 4 or behind.shape != (n, 3, size, size):
        raise ValueError(
            "need signs (N, 4, S, S) and backgrounds (N, 3, H, H), got "
            f"{tuple(signs.shape)} and {tuple(behind.shape)}"
        )
    if len(views.distance) != n:
        raise ValueError(f"need {n} views, one for each sign, got {len(views.distance)}")
    views = Views(*(part.to(signs) for part in views))
    # two by two rays a pixel; their mean has no steps at the sign's edge
    spot = _where(views, 2 * size)
    seen = F.grid_sample(signs, spot, mode="bilinear", padding_mode="zeros", align_corners=False)
    seen = F.avg_pool2d(seen, 2)
    colour, there = seen[:, :3], seen[:, 3:]
    # bilinear sampling at the edge mixes in the colour of nothing, which is black, as it does alpha
    picture = colour + (1 - there) * behind
    coarse = size * views.fill * views.distance / (FOCAL * WIDTH)  # a camera's pixel in ours
    picture = _blurred(picture, 0.5 * coarse)
    light, haze, noise = (part[:, None, None, None] for part in views[-3:])
    picture = light * ((1 - haze) * picture + 0.7 * haze)
    device = signs.device if generator is None else generator.device
    grain = torch.randn(picture.shape, generator=generator, device=device).to(picture)
    return (picture + noise * grain).clamp(0, 1)


def _where(views: Views, size: int) -> Tensor:
    """For each pixel the point of the sign that it sees, from -1 to 1: (N, size, size, 2)."""
    yaw, pitch, roll = (angle.deg2rad() for angle in (views.yaw, views.pitch, views.roll))
    one, zero = torch.ones_like(yaw), torch.zeros_like(yaw)

    def matrix(*rows: list[Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    turn = (
        matrix([yaw.cos(), zero, yaw.sin()], [zero, one, zero], [-yaw.sin(), zero, yaw.cos()])
        @ matrix([one, zero, zero], [zero, pitch.cos(), -pitch.sin()], [zero, pitch.sin(), pitch.cos()])
        @ matrix([roll.cos(), -roll.sin(), zero], [roll.sin(), roll.cos(), zero], [zero, zero, one])
    )  # fmt: skip
    # a point (u, v) of the sign lies at turn (u, v, 0) + (0, 0, depth), in halves of its width
    depth = 2 * views.distance / WIDTH
    place = torch.cat([turn[:, :, :2], torch.stack([zero, zero, depth], -1)[..., None]], -1)
    # the lens divides by depth; the detector's cut makes the sign as wide as fill, and moves it
    scale = views.fill * depth
    down, right = 2 * views.shift[:, 0], 2 * views.shift[:, 1]
    lens = matrix([scale, zero, right], [zero, scale, down], [zero, zero, one])
    back = torch.linalg.inv(lens @ place)
    at = (torch.arange(size, device=yaw.device) + 0.5).to(yaw) * 2 / size - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1)
    seen = torch.einsum("nij,hwj->nhwi", back, rays)
    return seen[..., :2] / seen[..., 2:]


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian blur of its own width, in pixels, for each image."""
    reach = max(1, math.ceil(2.5 * float(sigma.max()))) if len(x) else 1
    steps = torch.arange(-reach, reach + 1, device=x.device).to(x)
    weight = torch.exp(-(steps**2) / (2 * sigma[:, None].clamp_min(0.05) ** 2))
    kernel = (weight / weight.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)
    n, channels, height, width = x.shape
    flat = F.pad(x, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return flat.view(n, channels, height, width)


def backdrops(
    split: Split,
    n: int,
    size: int = 32,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Crops of the photographs that stand behind the signs.

    Args:
        split: "train" or "test": which photographs, see :data:`BACKGROUNDS`.
        n: how many crops.
        size: their height and width in pixels.
        generator: draws; torch's global one if None.

    Returns:
        (n, 3, size, size) in [0, 1], and the name of the photograph behind each.

    Raises:
        ValueError: for another split, or a size that is too small or too large.
    """
    if split not in BACKGROUNDS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    if not 8 <= size <= 256:
        raise ValueError(f"size must be 8 to 256 pixels, got {size}")
    whole = _photographs()
    device = "cpu" if generator is None else generator.device
    drawn = torch.rand(n, 4, generator=generator, device=device).tolist()
    names, crops = [], []
    for which, width, down, right in drawn:
        name = BACKGROUNDS[split][int(which * len(BACKGROUNDS[split]))]
        side = 40 + int(100 * width)
        top, left = int(down * (256 - side)), int(right * (256 - side))
        crop = whole[name][None, :, top : top + side, left : left + side]
        crops.append(F.interpolate(crop, size=(size, size), mode="bilinear", antialias=size < side))
        names.append(name)
    # antialiasing rounds: a pixel may come out just above 1
    return torch.cat(crops).clamp(0, 1) if crops else torch.empty(0, 3, size, size), tuple(names)


@cache
def _photographs() -> dict[str, Tensor]:
    images = photos(256)
    return dict(zip(images.names, images.x, strict=True))


def signs_rendered(
    split: Split,
    n: int,
    *,
    size: int = 32,
    seed: int = 0,
    **ranges: float | tuple[float, float],
) -> Images:
    """Pictures of traffic signs, 16 classes in turn, each taken in its own way.

    They are drawn, not photographed. Training and test pictures have different photographs behind
    the signs, and draws of their own.

    Args:
        split: "train" or "test".
        n: how many.
        size: height and width in pixels, 8 to 256.
        seed: for all that is drawn.
        ranges: for :func:`draw_views`, such as ``light=(0.1, 0.3)`` for pictures taken at dusk.

    Returns:
        The :class:`~modelsec.data.Images`: x (n, 3, size, size), y, and as ``names`` the photograph
        behind each sign.

    Raises:
        ValueError: for another split, or a number out of range.
        TypeError: for a range that there is not.

    References:
        Convention on Road Signs and Signals, done at Vienna on 8 November 1968.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))
    behind, names = backdrops(split, n, size, generator)
    views = draw_views(n, generator, **ranges)
    y = torch.arange(n) % len(CLASSES)
    pictures = [
        take(plates()[y[rows]], behind[rows], Views(*(part[rows] for part in views)), generator)
        for rows in torch.arange(n).split(500)
    ]
    return Images("rendered signs", torch.cat(pictures), y, CLASSES, _SOURCE, _LICENCE, names)


_SOURCE = (
    "drawn by this package after the Vienna Convention's designs, before photographs packaged with "
    "scikit-image and scikit-learn (china by danielbuechele, flower by vultilion)"
)
_LICENCE = (
    "the drawings: that of this package; the photographs behind them: CC0, public domain, CC BY 2.0 "
    "(china, flower)"
)


def signs_data(n_train: int = 4000, n_test: int = 1000, *, size: int = 32, seed: int = 0) -> Data:
    """:func:`signs_rendered` twice: pictures to train on, and others to test on.

    Args:
        n_train: how many to train on.
        n_test: how many to test on.
        size: height and width in pixels, 8 to 256.
        seed: for all that is drawn.

    Returns:
        The :class:`~modelsec.data.Data`.

    Raises:
        ValueError: for a number out of range.
    """
    train = signs_rendered("train", n_train, size=size, seed=seed)
    test = signs_rendered("test", n_test, size=size, seed=seed)
    assert train.y is not None
    assert test.y is not None
    return Data(train.name, train.x, train.y, test.x, test.y, CLASSES, train.source, train.licence)
