"""The camera of a car: what it sees of the simulator's road.

The simulator's picture of the track, seen from above, is drawn once. Each ray of the camera looks
at one spot of it. So the world is flat, and there is nothing in it but road, grass and sky.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.driving.cars import Car, new_car, pose

__all__ = ["Camera", "frames", "track"]

_GRASS, _ROAD, _LINE, _SKY = 125, 104, 157, 145  # grey levels of 255: a rainy day
_SCALE = 8.0  # pixels a metre in the picture from above


@functools.cache
def track() -> tuple[Tensor, tuple[float, float]]:
    """The simulator's picture of the whole track in grey, seen from above.

    Returns:
        (1, 1, H, W) in [0, 1], eight pixels a metre; and the place (x, y) of its top left corner.
    """
    net = new_car(0).env.road.network
    import pygame
    from highway_env.road.graphics import LaneGraphics, WorldSurface

    lanes = [lane for a in net.graph for b in net.graph[a] for lane in net.graph[a][b]]
    spots = np.array([lane.position(s, 0) for lane in lanes for s in np.arange(0, lane.length, 2)])
    low, high = spots.min(0) - 15, spots.max(0) + 15
    size = tuple(int(v) for v in (high - low) * _SCALE)
    # A surface in memory: no window is opened, so none is needed. (highway-env's own viewer draws
    # nothing at all, and says nothing, where SDL_VIDEODRIVER is "dummy".)
    surface = WorldSurface(size, 0, pygame.Surface(size))
    surface.scaling, surface.origin, surface.WHITE = _SCALE, low, (_LINE,) * 3
    surface.fill((_GRASS,) * 3)
    for lane in lanes:
        LaneGraphics.draw_ground(lane, surface, (_ROAD,) * 3, lane.width_at(0) / 2)
    for lane in lanes:
        LaneGraphics.display(lane, surface)
    grey = pygame.surfarray.array3d(surface).mean(2).T / 255
    return torch.tensor(grey, dtype=torch.float32)[None, None], (float(low[0]), float(low[1]))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks ahead and a little down.

    Attributes:
        size: pixels across and down.
        height: above the ground, in metres.
        pitch: how far it looks down, in degrees.
        view: how much it sees from side to side, in degrees.
        fine: rays across a pixel; their mean is its grey.
    """

    size: int = 32
    height: float = 2.0
    pitch: float = 18.0
    view: float = 90.0
    fine: int = 3

    def rays(self) -> tuple[Tensor, Tensor]:
        """Where each ray meets the ground.

        Returns:
            (F, F, 2) metres ahead of the camera and to its right, F = size * fine; and (F, F) bool,
            which of them meet the sky.
        """
        fine = self.size * self.fine
        across = ((torch.arange(fine) + 0.5) / fine * 2 - 1) * math.tan(math.radians(self.view / 2))
        down, right = torch.meshgrid(across, across, indexing="ij")
        cos, sin = math.cos(math.radians(self.pitch)), math.sin(math.radians(self.pitch))
        ahead, below = cos - down * sin, sin + down * cos
        sky = below < self.height / 60  # what is farther away is lost in haze
        reach = self.height / below.masked_fill(sky, 1.0)
        return torch.stack([ahead * reach, right * reach], -1), sky

    def look(self, place: Tensor, heading: Tensor) -> Tensor:
        """What it sees from some cars, a metre and a half ahead of their middle.

        Args:
            place: (N, 2) of the cars, in metres.
            heading: (N,) of the cars.

        Returns:
            (N, 1, size, size) grey in [0, 1], float32.
        """
        picture, (left, top) = track()
        ground, sky = self.rays()
        ahead, right = ground[..., 0] + 1.5, ground[..., 1]
        cos, sin = (f(heading)[:, None, None] for f in (torch.cos, torch.sin))
        x = place[:, 0, None, None] + ahead * cos - right * sin - left
        y = place[:, 1, None, None] + ahead * sin + right * cos - top
        high, wide = picture.shape[-2:]
        grid = torch.stack([x * (2 * _SCALE / wide) - 1, y * (2 * _SCALE / high) - 1], -1)
        seen = F.grid_sample(
            picture.expand(len(grid), -1, -1, -1), grid, padding_mode="border", align_corners=False
        )
        return F.avg_pool2d(seen.masked_fill(sky, _SKY / 255), self.fine).clamp(0, 1)


def frames(cars: Sequence[Car], *, aside: Any = 0.0, turned: Any = 0.0) -> Tensor:
    """What the cameras of some cars see now.

    Args:
        cars: at least one.
        aside: metres by which each camera is moved to the right, one number or (N,).
        turned: radians by which it is turned to the right, one number or (N,).

    Returns:
        (N, 1, 32, 32) grey in [0, 1].
    """
    n = len(cars)
    poses = [pose(c, a, t) for c, a, t in zip(cars, _each(aside, n), _each(turned, n), strict=True)]
    place = torch.tensor(np.array([p for p, _ in poses]), dtype=torch.float32)
    return Camera().look(place, torch.tensor([h for _, h in poses], dtype=torch.float32))


def _each(value: Any, n: int) -> list[float]:
    return [float(v) for v in np.broadcast_to(np.asarray(value, dtype=float), (n,))]
