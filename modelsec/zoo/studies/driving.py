"""The studies behind the chapter on driving: attacks on the camera, repair, monitors, what training buys.

A drive is 100 steps of a fifth of a second at 10 m/s: 200 m of a track of 380 m. Drives of a study
start at places of their own, which no network has learned from. Half of the cars are pushed to the
right and half to the left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import driving
from modelsec.attacks.gradient import pgd
from modelsec.attacks.physical import universal
from modelsec.driving import Car, Drive, Monitor, Tamper
from modelsec.zoo import load_model
from modelsec.zoo.results import study
from modelsec.zoo.studies.driving_models import EPS, pushed, road_frames

__all__ = [
    "CALIBRATION",
    "CLEAN",
    "DRIVES",
    "calibrated",
    "changes",
    "coin",
    "each_frame",
    "knowing",
    "side_of",
    "stationary",
    "steady",
    "told",
]

DRIVES = range(3000, 3040)
"""Where the drives start that are attacked."""
CALIBRATION = range(4000, 4020)
"""Drives from which the monitors' limits come."""
CLEAN = range(5000, 5060)
"""Drives on which their false alarms are counted."""


def side_of(cars: Sequence[Car]) -> Tensor:
    """Where each car is pushed to: 1, right, for even numbers; -1, left, for odd ones."""
    return torch.tensor([1.0 - 2.0 * (car.number % 2) for car in cars])


def each_frame(net: nn.Module, eps: float, seed: int = 0, steps: int = 10) -> Tamper:
    """PGD on every frame anew, so that the wheel goes to one side.

    Args:
        net: the driver's network.
        eps: largest change of a pixel, of [0, 1].
        seed: of the random starts.
        steps: gradient steps for a frame.

    Returns:
        What to hand to :func:`modelsec.driving.loop.drive` as ``tamper``.
    """
    draw = torch.Generator().manual_seed(seed)

    def tamper(seen: Tensor, cars: Sequence[Car]) -> Tensor:
        y = torch.zeros(len(seen), dtype=torch.long)
        return pgd(
            net, seen, y, eps=eps, steps=steps, loss=pushed(side_of(cars)), early_stop=False,
            generator=draw,
        )  # fmt: skip

    return tamper


def changes(net: nn.Module, eps: float, seed: int = 0) -> dict[int, Tensor]:
    """Two changes that stay the same for all frames and all cars, learned on the expert's frames.

    Args:
        net: the driver's network.
        eps: their size.
        seed: of the order of the frames.

    Returns:
        1 -> the change that pushes to the right, -1 -> to the left, each (1, 32, 32).
    """
    x = road_frames().x_train
    y = torch.zeros(len(x), dtype=torch.long)

    def to(side: int) -> Tensor:
        return universal(
            net, x, y, eps=eps, epochs=3, cap=float("inf"),
            loss=lambda logits, _: pushed(torch.full((len(logits),), float(side)))(logits, _),
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    return {side: to(side) for side in (1, -1)}


def stationary(net: nn.Module, eps: float, seed: int = 0) -> Tamper:
    """One change for all frames, as by a stain on the lens; see :func:`changes`.

    Args:
        net: the driver's network.
        eps: its size.
        seed: of the order of the frames that it is learned on.

    Returns:
        As :func:`each_frame`.
    """
    to = changes(net, eps, seed)

    def tamper(seen: Tensor, cars: Sequence[Car]) -> Tensor:
        change = torch.stack([to[int(side)] for side in side_of(cars)])
        return (seen + change).clamp(0, 1)

    return tamper


def coin(eps: float, seed: int = 0) -> Tamper:
    """The control: each pixel of each frame goes up or down by eps, by a coin.

    Args:
        eps: as for the attacks.
        seed: of the coin.

    Returns:
        As :func:`each_frame`.
    """
    draw = torch.Generator().manual_seed(seed)

    def tamper(seen: Tensor, _: Sequence[Car]) -> Tensor:
        sign = torch.randint(2, seen.shape, generator=draw) * 2 - 1
        return (seen + eps * sign).clamp(0, 1)

    return tamper


def knowing(
    net: nn.Module,
    eps: float,
    monitor: Monitor,
    seed: int = 0,
    steps: int = 10,
    everything: bool = True,
) -> Tamper:
    """PGD by somebody who knows the monitor: push as far as it lets pass.

    The attack climbs the push, for the frame and for all other pictures about which the monitor
    asks the network, minus a fine for what lies above nine tenths of the limit. Then it asks the
    monitor itself, and sends the largest part of the change at which it would stay silent.

    Args:
        net: the driver's network.
        eps: largest change of a pixel.
        monitor: with its limit.
        seed: of the random starts.
        steps: gradient steps for a frame.
        everything: push those other pictures along; if not, the fine alone has to do.

    Returns:
        As :func:`each_frame`.
    """
    draw = torch.Generator().manual_seed(seed)
    wheels = len(driving.WHEEL)

    def tamper(seen: Tensor, cars: Sequence[Car]) -> Tensor:
        def all_of(x: Tensor) -> Tensor:
            logits = net(x)
            level = monitor.level(x, driving.steering_of(logits), cars)
            others = [net(view) for view in monitor.views(x)] if everything else []
            return torch.cat([level[:, None], logits, *others], 1)

        def fined(out: Tensor, y: Tensor) -> Tensor:
            push = pushed(side_of(cars))
            pushes = torch.stack([push(logits, y) for logits in out[:, 1:].split(wheels, 1)])
            return pushes.mean(0) - 5 * (out[:, 0] - 0.9 * monitor.limit).clamp_min(0)

        y = torch.zeros(len(seen), dtype=torch.long)
        adv = pgd(
            all_of, seen, y, eps=eps, steps=steps, loss=fined, early_stop=False, generator=draw
        )
        sent = seen.clone()
        for part in (0.2, 0.4, 0.6, 0.8, 1.0):
            tried = seen + part * (adv - seen)
            with torch.no_grad():
                silent = all_of(tried)[:, 0] <= 0.98 * monitor.limit
            sent[silent] = tried[silent]
        return sent

    return tamper


def steady(net: nn.Module, keep: float = 0.7) -> driving.Driver:
    """A repair that costs nothing: the wheel follows the network slowly.

    Args:
        net: the driver's network.
        keep: the share of the last step's steering that stays.

    Returns:
        The driver.
    """
    plain = driving.student(net)

    def steer(seen: Tensor, cars: Sequence[Car]) -> Tensor:
        now = torch.as_tensor(plain(seen, cars))
        before = [
            car.wheel[-1] if car.wheel else float(s) for car, s in zip(cars, now, strict=True)
        ]
        return keep * torch.tensor(before) + (1 - keep) * now

    return steer


def calibrated(monitor: Monitor, driver: driving.Driver, seeds: Sequence[int]) -> Monitor:
    """The monitor with its limit: the largest level in some drives without an attack.

    If a later drive is like these k, the chance that it goes above all of them is 1 in k + 1.

    Args:
        monitor: without a limit.
        driver: who drives.
        seeds: where these drives start.

    Returns:
        The same monitor, changed.
    """
    driving.drive(driver, seeds, monitor=monitor)
    monitor.limit = max(monitor.levels)
    return monitor


def told(drive: Drive) -> dict[str, Any]:
    """What a record keeps of some drives.

    Args:
        drive: as driven.

    Returns:
        "off": which cars left the road (0 or 1); "metres", "alarm" (-1 for none) and "steps" of each;
        "aside": each car's largest distance from the middle of its lane, in metres.
    """
    return {
        "off": drive.off.int().tolist(),
        "metres": [round(v, 1) for v in drive.metres.tolist()],
        "alarm": drive.alarm.tolist(),
        "steps": drive.steps.tolist(),
        "aside": [round(v, 3) for v in drive.aside.abs().nan_to_num(0.0).amax(1).tolist()],
    }


@study(
    "driving_attacks",
    about="the student and the repaired one under changes of their camera's frames: 40 drives each",
    n=40,
    seeds=(0,),
)
def attacked(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Each condition on the same drives: network -> change -> radius in 1/255 -> what became of them."""
    (seed,) = seeds
    plain, robust = load_model("driver"), load_model("driver_robust")

    def run(driver: driving.Driver, tamper: Tamper | None = None) -> dict[str, Any]:
        return told(driving.drive(driver, DRIVES, tamper=tamper))

    def all_of(net: nn.Module, driver: driving.Driver, each: Sequence[int]) -> dict[str, Any]:
        return {
            "none": {"0": run(driver)},
            "each frame": {str(e): run(driver, each_frame(net, e / 255, seed)) for e in each},
        }

    return {
        "student": all_of(plain, driving.student(plain), (2, 4, 8))
        | {
            "coin": {str(e): run(driving.student(plain), coin(e / 255, seed)) for e in (2, 4, 8)},
            "stationary": {
                str(e): run(driving.student(plain), stationary(plain, e / 255, seed))
                for e in (2, 4, 8)
            },
        },
        "steady wheel": all_of(plain, steady(plain), (4, 8)),
        "repaired": all_of(robust, driving.student(robust), (4, 8, 12, 16))
        | {
            "stationary": {"8": run(driving.student(robust), stationary(robust, 8 / 255, seed))},
        },
    }


@study(
    "driving_monitors",
    about="two monitors beside the student: false alarms, attacks, and attackers who know them",
    n=40,
    seeds=(0,),
)
def monitored(seeds: tuple[int, ...]) -> dict[str, Any]:
    """For each monitor its limit, the alarms on drives without an attack, and those under attack."""
    (seed,) = seeds
    plain, robust = load_model("driver"), load_model("driver_robust")
    return {
        "pixels": _watched(plain, driving.pixel_monitor(plain), seed, driving.held, by_fine=True),
        "map": _watched(plain, driving.map_monitor(), seed),
        "map, repaired": _watched(robust, driving.map_monitor(), seed),
    }


def _watched(
    net: nn.Module,
    monitor: Monitor,
    seed: int,
    brake: Callable[[Car], float] = driving.map_steering,
    by_fine: bool = False,
) -> dict[str, Any]:
    driver = driving.student(net)
    calibrated(monitor, driver, CALIBRATION)

    def run(seeds: Sequence[int], tamper: Tamper | None = None) -> dict[str, Any]:
        return told(driving.drive(driver, seeds, tamper=tamper, monitor=monitor, brake=brake))

    few = DRIVES[:20]
    found = {
        "limit": monitor.limit,
        "none": run(CLEAN),
        "each frame": {str(e): run(DRIVES, each_frame(net, e / 255, seed)) for e in (4, 8)},
        "stationary": {"8": run(DRIVES, stationary(net, EPS, seed))},
        "knowing": {str(e): run(few, knowing(net, e / 255, monitor, seed)) for e in (4, 8)},
    }
    if by_fine:
        attack = knowing(net, EPS, monitor, seed, everything=False)
        found["knowing, fine alone"] = {"8": run(few, attack)}
    return found
