"""Sixteen traffic signs, drawn from circles, polygons, lines and letters.

The designs follow the Vienna Convention on Road Signs and Signals; sizes and shades are ours. Nothing
is copied from anybody's file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["CLASSES", "plates"]

_RED, _BLUE, _YELLOW, _WHITE, _BLACK = "#b81d24", "#0b4f9e", "#f6b40e", "#f4f4f2", "#161616"
_LARGE = 512  # pixels, of a drawing; it is made smaller afterwards, which smooths its edges
Point = tuple[float, float]


class _Pen:
    """Draws in coordinates from -1 to 1, right and down, on a transparent square."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (_LARGE, _LARGE), (255, 255, 255, 0))
        self.draw = ImageDraw.Draw(self.image)

    def area(self, points: Sequence[Point], colour: str, scale: float = 1.0, y: float = 0) -> None:
        self.draw.polygon([_pixel(scale * a, scale * (b - y) + y) for a, b in points], fill=colour)

    def disc(self, radius: float, colour: str, x: float = 0.0, y: float = 0.0) -> None:
        self.draw.ellipse([_pixel(x - radius, y - radius), _pixel(x + radius, y + radius)], colour)

    def line(self, points: Sequence[Point], width: float, colour: str = _BLACK) -> None:
        for a, b in points:
            self.disc(width / 2, colour, a, b)
        size = round(width * _LARGE / 2)
        self.draw.line([_pixel(a, b) for a, b in points], fill=colour, width=size)

    def text(self, words: str, width: float, colour: str) -> None:
        import matplotlib  # its fonts

        file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
        font = ImageFont.truetype(str(file), 200)
        font = font.font_variant(size=round(200 * width * _LARGE / 2 / font.getlength(words)))
        self.draw.text(_pixel(0, 0), words, font=font, fill=colour, anchor="mm")

    def person(self, x: float, y: float, size: float) -> None:
        """Somebody who walks to the left; (x, y) is the hip."""

        def at(*points: Point) -> list[Point]:
            return [(x + size * a, y + size * b) for a, b in points]

        self.disc(0.16 * size, _BLACK, *at((0.02, -0.78))[0])
        self.line(at((0, -0.5), (0, 0)), 0.26 * size)
        self.line(at((-0.32, 0.62), (-0.08, 0.05), (0.3, 0.62)), 0.15 * size)
        self.line(at((-0.36, -0.08), (0, -0.48), (0.34, -0.12)), 0.12 * size)


def _pixel(x: float, y: float) -> Point:
    return (1 + x) * _LARGE / 2, (1 + y) * _LARGE / 2


_OCTAGON = [(a, b) for a, b in ((0.414, -1), (1, -0.414), (1, 0.414), (0.414, 1))]
_OCTAGON += [(-a, -b) for a, b in _OCTAGON]
_DIAMOND = [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)]
_UP = [(0.0, -0.9), (1.0, 0.84), (-1.0, 0.84)]
_DOWN = [(-a, -b) for a, b in _UP]


def _stop(pen: _Pen) -> None:
    pen.area(_OCTAGON, _WHITE)
    pen.area(_OCTAGON, _RED, 0.94)
    pen.text("STOP", 1.55, _WHITE)


def _give_way(pen: _Pen) -> None:
    pen.area(_DOWN, _RED)
    pen.area(_DOWN, _WHITE, 0.6, -0.26)


def _no_entry(pen: _Pen) -> None:
    pen.disc(1, _RED)
    pen.area([(-0.72, -0.19), (0.72, -0.19), (0.72, 0.19), (-0.72, 0.19)], _WHITE)


def _limit(number: str) -> Callable[[_Pen], None]:
    def draw(pen: _Pen) -> None:
        pen.disc(1, _RED)
        pen.disc(0.78, _WHITE)
        pen.text(number, 1.12, _BLACK)

    return draw


def _end(pen: _Pen) -> None:
    pen.disc(1, _BLACK)
    pen.disc(0.95, _WHITE)
    for k in (-0.16, 0.0, 0.16):
        pen.line([(-0.62 + k, 0.62 + k), (0.62 + k, -0.62 + k)], 0.09)


def _priority(pen: _Pen) -> None:
    pen.area(_DIAMOND, _WHITE)
    pen.area(_DIAMOND, _YELLOW, 0.72)


def _arrow(angle: float) -> Callable[[_Pen], None]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))

    def turned(*points: Point) -> list[Point]:
        return [(a * cos - b * sin, a * sin + b * cos) for a, b in points]

    def draw(pen: _Pen) -> None:
        pen.disc(1, _WHITE)
        pen.disc(0.95, _BLUE)
        pen.area(turned((-0.13, 0.66), (0.13, 0.66), (0.13, -0.1), (-0.13, -0.1)), _WHITE)
        pen.area(turned((0, -0.74), (0.48, -0.06), (-0.48, -0.06)), _WHITE)

    return draw


def _roundabout(pen: _Pen) -> None:
    pen.disc(1, _WHITE)
    pen.disc(0.95, _BLUE)
    for start in (0, 120, 240):
        box = [_pixel(-0.62, -0.62), _pixel(0.62, 0.62)]
        pen.draw.arc(box, start + 35, start + 115, fill=_WHITE, width=round(0.1 * _LARGE))
        tip = [(r, a) for r, a in ((0.82, 42), (0.52, 2), (0.22, 42))]
        pen.area([_polar(r, start + a) for r, a in tip], _WHITE)


def _polar(radius: float, degrees: float) -> Point:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _warning(symbol: Callable[[_Pen], None]) -> Callable[[_Pen], None]:
    def draw(pen: _Pen) -> None:
        pen.area(_UP, _RED)
        pen.area(_UP, _WHITE, 0.74, 0.26)
        symbol(pen)

    return draw


def _children(pen: _Pen) -> None:
    pen.person(-0.2, 0.3, 0.5)
    pen.person(0.22, 0.38, 0.4)


def _lights(pen: _Pen) -> None:
    for y, colour in ((-0.14, _RED), (0.19, _YELLOW), (0.52, "#0f8a4b")):
        pen.disc(0.15, colour, y=y)


def _danger(pen: _Pen) -> None:
    pen.area([(-0.11, -0.34), (0.11, -0.34), (0.06, 0.32), (-0.06, 0.32)], _BLACK)
    pen.disc(0.1, _BLACK, y=0.5)


_DRAWINGS: dict[str, Callable[[_Pen], None]] = {
    "stop": _stop,
    "give way": _give_way,
    "no entry": _no_entry,
    "limit 20": _limit("20"),
    "limit 30": _limit("30"),
    "limit 50": _limit("50"),
    "limit 80": _limit("80"),
    "end of limits": _end,
    "priority road": _priority,
    "ahead": _arrow(0),
    "turn right": _arrow(90),
    "roundabout": _roundabout,
    "pedestrians": _warning(lambda pen: pen.person(0, 0.25, 0.62)),
    "children": _warning(_children),
    "traffic lights": _warning(_lights),
    "danger": _warning(_danger),
}
CLASSES = tuple(_DRAWINGS)
"""The names of the sixteen signs."""


@cache
def _drawn(size: int) -> Tensor:
    signs = []
    for draw in _DRAWINGS.values():
        pen = _Pen()
        draw(pen)
        signs.append(np.array(pen.image.resize((size, size), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(signs)).permute(0, 3, 1, 2).float() / 255


def plates(size: int = 64) -> Tensor:
    """The sixteen signs, seen from the front: colours, and where the sign is.

    Args:
        size: height and width in pixels, 8 to 512.

    Returns:
        (16, 4, size, size) float32 in [0, 1]: red, green, blue, and 1 where the sign is, 0 beside.

    Raises:
        ValueError: for a size out of range.
    """
    if not 8 <= size <= _LARGE:
        raise ValueError(f"size must be 8 to {_LARGE} pixels, got {size}")
    return _drawn(size).clone()
