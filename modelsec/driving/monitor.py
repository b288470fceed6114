"""A monitor beside the driver: it looks for a reason to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.driving.cars import Car, map_steering
from modelsec.driving.loop import told_by
from modelsec.training import inference

__all__ = ["Monitor", "copies", "map_monitor", "pixel_monitor"]


@dataclass
class Monitor:
    """Rings when a number, averaged over the last steps, is too far from 0.

    It is used as the ``monitor`` of :func:`~modelsec.driving.loop.drive`.

    Attributes:
        score: (frames, steering, cars) -> (N,), 0 where nothing is strange.
        limit: it rings above this.
        over: how many steps are averaged.
        levels: every average so far, of all cars, to find a limit from.
        views: the other pictures about which it asks the driver's network, for frames; an attacker
            who knows the monitor has to think of them too.
    """

    score: Callable[[Tensor, Tensor, Sequence[Car]], Tensor]
    limit: float = float("inf")
    over: int = 1
    levels: list[float] = field(default_factory=list)
    views: Callable[[Tensor], list[Tensor]] = lambda seen: []

    def level(self, seen: Tensor, steering: Tensor, cars: Sequence[Car]) -> Tensor:
        """What it would say of these frames, without remembering them.

        Args:
            seen: (N, 1, 32, 32) frames.
            steering: (N,) what the driver makes of them.
            cars: whose they are.

        Returns:
            (N,) the average's distance from 0; differentiable if the score is.
        """
        now = self.score(seen, steering, cars)
        past = [car.memory[-self.over + 1 :] if self.over > 1 else [] for car in cars]
        before = torch.tensor([float(sum(values)) for values in past]).to(now)
        count = torch.tensor([len(values) + 1 for values in past]).to(now)
        return ((before + now) / count).abs()

    def __call__(self, seen: Tensor, steering: Tensor, cars: Sequence[Car]) -> Tensor:
        """Look at a step of some cars, and remember it.

        Args:
            seen: (N, 1, 32, 32) frames.
            steering: (N,) what the driver makes of them.
            cars: whose they are.

        Returns:
            (N,) bool, where it rings.
        """
        with torch.no_grad():
            level, score = self.level(seen, steering, cars), self.score(seen, steering, cars)
        for car, value in zip(cars, score.tolist(), strict=True):
            car.memory.append(value)
        self.levels += level.tolist()
        return level > self.limit


def copies(seen: Tensor) -> list[Tensor]:
    """Five pictures that mean nearly the same: smoothed, a pixel to the left, right, up and down.

    Args:
        seen: (N, 1, H, W) frames.

    Returns:
        Five of that shape.
    """
    wide = F.pad(seen, (1, 1, 1, 1), mode="replicate")
    high, across = seen.shape[-2:]
    moved = [(1, 0), (1, 2), (0, 1), (2, 1)]
    shifted = [wide[..., i : i + high, j : j + across] for i, j in moved]
    return [F.avg_pool2d(wide, 3, stride=1), *shifted]


def pixel_monitor(net: nn.Module, *, limit: float = float("inf"), over: int = 1) -> Monitor:
    """Asks the same network about changed copies of a frame; an attack often fits one frame alone.

    Args:
        net: the driver's network.
        limit: as for :class:`Monitor`.
        over: as for :class:`Monitor`.

    Returns:
        The monitor. Its score is the largest distance between the steering and that of a copy.
    """

    def score(seen: Tensor, steering: Tensor, _: Sequence[Car]) -> Tensor:
        with inference(net):
            told = torch.stack([told_by(net, copy) for copy in copies(seen)])
        return (told - steering.to(told.device)).abs().amax(0)

    return Monitor(score, limit, over, views=copies)


def map_monitor(*, limit: float = float("inf"), over: int = 5) -> Monitor:
    """Compares the steering with the curve on a road map: it does not look through the camera.

    Args:
        limit: as for :class:`Monitor`.
        over: as for :class:`Monitor`.

    Returns:
        The monitor. Its score is the steering minus :func:`~modelsec.driving.cars.map_steering`.
    """

    def score(_: Tensor, steering: Tensor, cars: Sequence[Car]) -> Tensor:
        return steering - torch.tensor([map_steering(car) for car in cars]).to(steering)

    return Monitor(score, limit, over)
