"""A car of the simulator, alone on its race track, and two ways to steer it without a camera.

The car, the road and the question whether the car is still on it are those of highway-env.

References:
    Leurent (2018), An environment for autonomous driving decision-making,
    https://github.com/Farama-Foundation/HighwayEnv.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["HZ", "SPEED", "WHEEL", "Car", "expert", "map_steering", "new_car", "pose"]

HZ = 5
"""Decisions in a second."""
SPEED = 10.0
"""Metres in a second at which every car drives: 36 km/h."""
WHEEL = tuple(round(0.1 * k, 1) for k in range(-7, 8))
"""The positions of the wheel that a network chooses from, left to right."""
_BRAKE = 5.0  # m/s^2, the most that the simulator's cars do
_LOCK = math.pi / 4  # the angle of the wheels at steering 1


@dataclass
class Car:
    """A car of the simulator, alone on the track.

    Attributes:
        env: highway-env's ``RacetrackEnv``.
        home: the lane it keeps to, 0 (left) or 1 (right).
        number: which of several cars it is.
        wheel: the steering at each step so far.
        memory: for a monitor, which may remember what it likes.
        alarm: the step at which a monitor stopped it, or None.
        metres: how far it has driven.
        lost: metres by which it is wrong about its place along the road.
    """

    env: Any
    home: int
    number: int = 0
    wheel: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    alarm: int | None = None
    metres: float = 0.0
    lost: float = 0.0

    @property
    def vehicle(self) -> Any:
        """The simulator's vehicle: ``position``, ``heading``, ``speed``."""
        return self.env.vehicle

    @property
    def on_road(self) -> bool:
        """Whether its middle is on one of the two lanes, as the simulator judges."""
        return bool(self.vehicle.on_road)

    @property
    def aside(self) -> float:
        """Metres from the middle of its own lane, to the right."""
        lane, _ = self.ahead(0.0)
        return float(lane.local_coordinates(self.vehicle.position)[1])

    def ahead(self, distance: float) -> tuple[Any, float]:
        """The piece of its own lane that lies so many metres ahead, and the place on it."""
        net, (a, b, _) = self.env.road.network, self.vehicle.lane_index
        lane = net.get_lane((a, b, self.home))
        along = lane.local_coordinates(self.vehicle.position)[0] + distance
        while along > lane.length:
            along -= lane.length
            a, b = b, next(iter(net.graph[b]))
            lane = net.get_lane((a, b, self.home))
        return lane, max(float(along), 0.0)

    def step(self, steering: float, speed: float = SPEED) -> None:
        """Drive on for a fifth of a second.

        Args:
            steering: from -1 to 1; a larger one counts as that.
            speed: that the car tries to reach, braking or accelerating at 5 m/s^2.
        """
        car = self.vehicle
        pull = min(max((speed - car.speed) * HZ, -_BRAKE), _BRAKE)
        car.act({"steering": min(max(steering, -1.0), 1.0) * _LOCK, "acceleration": pull})
        self.wheel.append(steering)
        for _ in range(3):  # the simulator's own step is a fifteenth of a second
            self.env.road.step(1 / 15)
            self.metres += max(float(car.speed), 0.0) / 15


def new_car(seed: int, *, spread: float = 0.5) -> Car:
    """A car somewhere on the track.

    Args:
        seed: draws the place, the lane, and how far from its middle the car stands.
        spread: largest distance from the lane's middle in metres; the heading is off by a tenth of
            that in radians at most.

    Returns:
        The :class:`Car`, driving at :data:`SPEED`. By how much it is wrong about its place is drawn
        from a normal distribution with a standard deviation of two metres.

    Raises:
        ImportError: if highway-env is not installed.
        ValueError: for a negative seed or spread.
    """
    if seed < 0 or spread < 0:
        raise ValueError(f"seed and spread must be 0 or more, got {seed} and {spread}")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets whoever imports it
    try:
        from highway_env.envs.racetrack_env import RacetrackEnv
    except ImportError as error:
        raise ImportError(f"driving needs highway-env: pip install highway-env ({error})") from None
    config = {
        "observation": {"type": "Kinematics", "vehicles_count": 1},
        "action": {"type": "ContinuousAction"},
        "other_vehicles": 0,
    }
    env = RacetrackEnv(config)
    env.reset(seed=seed)
    draw, net = np.random.default_rng(seed), env.road.network
    sections = [(a, b) for a in net.graph for b in net.graph[a]]
    length = np.array([net.get_lane((*s, 0)).length for s in sections])
    section = sections[draw.choice(len(sections), p=length / length.sum())]
    home = int(draw.integers(2))
    lane = net.get_lane((*section, home))
    along, aside, turned = draw.uniform(-1, 1, 3) * [lane.length / 2, spread, spread / 10]
    along += lane.length / 2
    vehicle = env.vehicle
    vehicle.position, vehicle.speed = np.array(lane.position(along, aside)), SPEED
    vehicle.heading = lane.heading_at(along) + turned
    vehicle.on_state_update()
    return Car(env, home, lost=2.0 * draw.normal())


def _wheel_for(curvature: float) -> float:
    """The steering at which the simulator's car drives a circle of this curvature (1/m)."""
    slip = math.asin(min(max(curvature * 2.5, -0.9), 0.9))  # 2.5: half of the car's length
    return math.atan(2 * math.tan(slip)) / _LOCK


def expert(car: Car, look_ahead: float = 7.0, *, aside: float = 0.0, turned: float = 0.0) -> float:
    """Pure pursuit: steer on the circle that leads to a point of the lane's middle further on.

    It reads the simulator's state: place, heading and the lane's geometry. It sees no picture.

    Args:
        car: whose turn it is.
        look_ahead: how far away that point is, in metres.
        aside: answer for a car that stands so many metres further to the right.
        turned: answer for a car that is turned to the right by so much, in radians.

    Returns:
        The steering, within the range of :data:`WHEEL`.

    References:
        Coulter (1992), Implementation of the pure pursuit path tracking algorithm.
    """
    lane, along = car.ahead(look_ahead)
    place, heading = pose(car, aside, turned)
    way = lane.position(along, 0) - place
    angle, slip, curvature = math.atan2(way[1], way[0]) - heading, 0.0, 0.0
    for _ in range(3):  # a car that steers moves a little aside of its heading
        curvature = 2 * math.sin(angle - slip) / math.hypot(*way)
        slip = math.asin(min(max(curvature * 2.5, -0.9), 0.9))
    return min(max(_wheel_for(curvature), WHEEL[0]), WHEEL[-1])


def pose(car: Car, aside: float = 0.0, turned: float = 0.0) -> tuple[Any, float]:
    """Where a car is, or where another would be beside it.

    Args:
        car: the car.
        aside: metres to its right.
        turned: radians to the right.

    Returns:
        The place, (2,), and the heading.
    """
    heading = float(car.vehicle.heading)
    right = np.array([-math.sin(heading), math.cos(heading)])
    return car.vehicle.position + aside * right, heading + turned


def map_steering(car: Car) -> float:
    """The steering that a road map asks for, by the curve of the lane alone: no camera, no centring.

    The car looks at the place where it believes to be.
    """
    (here, s), (there, t) = car.ahead(car.lost), car.ahead(car.lost + 6.0)
    turn = there.heading_at(t) - here.heading_at(s)
    return _wheel_for(((turn + math.pi) % (2 * math.pi) - math.pi) / 6.0)
