"""The loop: a camera sees, a driver steers, the car moves, and the camera sees something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from modelsec.driving.camera import frames
from modelsec.driving.cars import WHEEL, Car, expert, new_car
from modelsec.intervals import Proportion
from modelsec.training import inference

__all__ = [
    "Drive",
    "Driver",
    "Tamper",
    "Watch",
    "by_state",
    "drive",
    "held",
    "nearest_wheel",
    "steering_of",
    "student",
    "told_by",
]

Driver = Callable[[Tensor, Sequence[Car]], Tensor | list[float]]
"""(frames (N, 1, 32, 32), cars) -> steering (N,)."""
Tamper = Callable[[Tensor, Sequence[Car]], Tensor]
"""(frames (N, 1, 32, 32), cars) -> changed frames."""
Watch = Callable[[Tensor, Tensor, Sequence[Car]], Tensor]
"""(frames (N, 1, 32, 32), steering (N,), cars) -> (N,) bool, where to stop."""


def nearest_wheel(steering: Tensor) -> Tensor:
    """The number of the nearest position of the wheel, (N,) int64, for a steering (N,)."""
    wheel = torch.tensor(WHEEL, dtype=steering.dtype, device=steering.device)
    return (steering[:, None] - wheel).abs().argmin(1)


def steering_of(logits: Tensor) -> Tensor:
    """The steering that a network means: the positions of the wheel, weighted by their probabilities.

    Args:
        logits: (N, 15).

    Returns:
        (N,), differentiable.
    """
    return logits.softmax(-1) @ torch.tensor(WHEEL, dtype=logits.dtype, device=logits.device)


def told_by(net: nn.Module, seen: Tensor) -> Tensor:
    """The steering that a network means for frames, on the network's device, where these are brought.

    Args:
        net: (N, 1, 32, 32) to logits (N, 15).
        seen: (N, 1, 32, 32) frames, on any device.

    Returns:
        (N,), differentiable.
    """
    weight = next(net.parameters(), seen)
    return steering_of(net(seen.to(weight.device)))


def by_state(_: Tensor, cars: Sequence[Car]) -> list[float]:
    """The driver that is the expert, :func:`~modelsec.driving.cars.expert`.

    Args:
        _: the frames, at which it does not look.
        cars: whose turn it is.

    Returns:
        The steering of each.
    """
    return [expert(car) for car in cars]


def held(car: Car) -> float:
    """The wheel as it was three steps before the alarm."""
    return car.wheel[max((car.alarm or 0) - 3, 0)] if car.wheel else 0.0


def student(net: nn.Module) -> Driver:
    """The driver that does what a network says to the frames, and looks at nothing else."""

    def steer(seen: Tensor, _: Sequence[Car]) -> Tensor:
        with inference(net), torch.no_grad():
            return told_by(net, seen)

    return steer


@dataclass(frozen=True)
class Drive:
    """What became of some cars, all driving alone.

    Attributes:
        steering: (N, T) the wheel at each step; NaN after the end.
        aside: (N, T) metres from the middle of the own lane, to the right, before each step.
        place: (N, T, 2) where each car was before each step, in metres; NaN after the end.
        off: (N,) bool: left the road.
        metres: (N,) how far each car came.
        steps: (N,) how many steps it made.
        alarm: (N,) the step at which the monitor rang; -1 where it never did.
        frames: (M, 1, 32, 32) as the cameras took them, if asked for; else empty.
        answer: (M,) what the expert would have done there.
        car: (M,) whose frame it is.
    """

    steering: Tensor
    aside: Tensor
    place: Tensor
    off: Tensor
    metres: Tensor
    steps: Tensor
    alarm: Tensor
    frames: Tensor
    answer: Tensor
    car: Tensor

    @property
    def off_road(self) -> Proportion:
        """The share of cars that left the road."""
        return Proportion(int(self.off.sum()), len(self.off))

    @property
    def alarmed(self) -> Proportion:
        """The share of cars that the monitor stopped."""
        return Proportion(int((self.alarm >= 0).sum()), len(self.alarm))


def drive(
    driver: Driver,
    seeds: Sequence[int],
    *,
    steps: int = 100,
    tamper: Tamper | None = None,
    monitor: Watch | None = None,
    brake: Callable[[Car], float] = held,
    keep: bool = False,
    shift: float = 0.0,
) -> Drive:
    """Let somebody drive several cars, each alone on the track, until they leave the road or time is up.

    A car that the monitor stops brakes as hard as it can; ``brake`` says how it steers meanwhile.

    Args:
        driver: (frames, cars) -> steering.
        seeds: where each car starts, see :func:`~modelsec.driving.cars.new_car`.
        steps: of a fifth of a second.
        tamper: (frames, cars) -> frames: what somebody makes of them before the driver sees them.
        monitor: (frames, steering, cars) -> (N,) bool, whether to stop; it sees the same frames.
        brake: car -> steering, for a car that the monitor stops.
        keep: keep the frames and the expert's answers.
        shift: kept frames are seen from up to so many metres aside of the car, turned by up to a
            tenth of that in radians, and answered for that place. The driver still sees the true ones.

    Returns:
        The :class:`Drive`.

    Raises:
        ValueError: for no seeds or steps, or a negative shift.
    """
    if not len(seeds) or steps < 1 or shift < 0:
        raise ValueError(
            f"need seeds, steps of 1 or more and shift of 0 or more: {seeds}, {steps}, {shift}"
        )
    cars = [new_car(seed) for seed in seeds]
    for number, car in enumerate(cars):
        car.number = number
    draw = np.random.default_rng(seeds[0])
    aside, place = (
        torch.full((len(cars), steps), math.nan),
        torch.full((len(cars), steps, 2), math.nan),
    )
    kept: list[tuple[Tensor, list[float], list[int]]] = []
    for now in range(steps):
        going = [car for car in cars if car.on_road and car.vehicle.speed > 0.1]
        if not going:
            break
        seen = frames(going)
        if keep:
            moved, turned = draw.uniform(-1, 1, (2, len(going))) * [[shift], [shift / 10]]
            shown = frames(going, aside=moved, turned=turned) if shift else seen
            told = zip(going, moved, turned, strict=True)
            answers = [expert(c, aside=a, turned=t) for c, a, t in told]
            kept.append((shown, answers, [car.number for car in going]))
        if tamper is not None:
            seen = tamper(seen, going)
        wheel = torch.as_tensor(driver(seen, going), dtype=torch.float32)
        rings = torch.zeros(len(going)) if monitor is None else monitor(seen, wheel, going)
        for car, steering, ring in zip(going, wheel.tolist(), rings.tolist(), strict=True):
            aside[car.number, now] = car.aside
            place[car.number, now] = torch.tensor(car.vehicle.position)
            if ring and car.alarm is None:
                car.alarm = now
            if car.alarm is None:
                car.step(steering)
            else:
                car.step(brake(car), 0.0)
    return _told(cars, aside, place, kept)


def _told(
    cars: list[Car], aside: Tensor, place: Tensor, kept: list[tuple[Tensor, list[float], list[int]]]
) -> Drive:
    steering = torch.full_like(aside, math.nan)
    for car in cars:
        steering[car.number, : len(car.wheel)] = torch.tensor(car.wheel)
    return Drive(
        steering=steering,
        aside=aside,
        place=place,
        off=torch.tensor([not car.on_road for car in cars]),
        metres=torch.tensor([car.metres for car in cars]),
        steps=torch.tensor([len(car.wheel) for car in cars]),
        alarm=torch.tensor([-1 if car.alarm is None else car.alarm for car in cars]),
        frames=torch.cat([shown for shown, _, _ in kept]) if kept else torch.empty(0, 1, 32, 32),
        answer=torch.tensor([a for _, answers, _ in kept for a in answers]),
        car=torch.tensor([number for _, _, numbers in kept for number in numbers]),
    )
