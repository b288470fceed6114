"""The study behind steps 1 to 3 of the chapter on driving: what is learned from, and what comes of it.

Each network is asked twice: how far it is from the expert on frames of the expert's own drives (open
loop), and what becomes of cars that it drives itself (closed loop).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modelsec import driving
from modelsec.models import fresh
from modelsec.zoo.results import study
from modelsec.zoo.studies.driving import each_frame, told
from modelsec.zoo.studies.driving_models import TRAIN, aggregate, learn, network, road_frames

__all__ = ["LATE", "TRIED", "distance_of_drives", "late", "measured", "open_loop"]

TRIED = range(6000, 6020)
"""Where the drives start in which the networks are tried."""
LATE = 6
"""How many of the 20 drives are labelled late."""
LAG = 10
"""By how many steps."""


def late(y: Tensor, cars: int = len(TRAIN), drives: int = LATE, lag: int = LAG) -> Tensor:
    """Labels of which those of some drives come too late, as from a clock that is wrong.

    Args:
        y: (N,) the positions of the wheel, step by step, all cars of a step together.
        cars: how many there are.
        drives: of so many, the first ones, the label is that of an earlier step.
        lag: how many steps earlier.

    Returns:
        (N,) labels.
    """
    by_car = y.reshape(-1, cars).clone()
    for car in range(drives):
        by_car[lag:, car] = y.reshape(-1, cars)[:-lag, car]
    return by_car.flatten()


def distance_of_drives(
    x: Tensor, y: Tensor, cars: int = len(TRAIN), folds: int = 2, epochs: int = 5, seed: int = 0
) -> Tensor:
    """How far each drive's labels are from a network that has learned from other drives alone.

    Args:
        x: (N, 1, 32, 32) frames, step by step, all cars of a step together.
        y: (N,) their labels.
        cars: how many there are.
        folds: the drives are dealt into so many groups.
        epochs: of training.
        seed: of the networks.

    Returns:
        (cars,) the mean distance of steering and label.
    """
    wheel, car = torch.tensor(driving.WHEEL), torch.arange(len(y)) % cars
    apart = torch.zeros(len(y))
    for fold in range(folds):
        own = car % folds == fold
        draw = torch.Generator().manual_seed(seed)
        net = learn(fresh(network, draw), x[~own], y[~own], draw, epochs)
        with torch.no_grad():
            apart[own] = (driving.steering_of(net(x[own])) - wheel[y[own]]).abs()
    return apart.reshape(-1, cars).mean(0)


def open_loop(net: nn.Module) -> float:
    """The mean distance from the expert's position of the wheel, on frames of its own drives."""
    test = road_frames()
    wheel = torch.tensor(driving.WHEEL)
    with torch.no_grad():
        apart = driving.steering_of(net(test.x_test)) - wheel[test.y_test]
    return float(apart.abs().mean())


def measured(net: nn.Module, attacks: bool = False) -> dict[str, Any]:
    """What is recorded of a network.

    Args:
        net: in eval mode.
        attacks: try it under PGD of 4 and 8 of 255 too.

    Returns:
        "open": its distance from the expert; "closed": what became of the cars it drove; "attacked".
    """
    driver = driving.student(net)
    result: dict[str, Any] = {
        "open": open_loop(net),
        "closed": told(driving.drive(driver, TRIED)),
    }
    if attacks:
        result["attacked"] = {
            str(e): told(driving.drive(driver, TRIED, tamper=each_frame(net, e / 255)))
            for e in (4, 8)
        }
    return result


@study(
    "driving_training",
    about="networks that learned from frames as driven, shifted, labelled late, cleaned, or while driving",
    n=20,
    seeds=(0, 1, 2),
)
def trained(seeds: tuple[int, ...]) -> dict[str, Any]:
    """The same frames for all seeds; what differs is the network and the order."""
    straight, shifted = road_frames(0.0), road_frames()
    x, y = shifted.x_train, shifted.y_train
    wrong, car = late(y), torch.arange(len(y)) % len(TRAIN)
    rows = []
    for seed in seeds:

        def taught(x: Tensor, y: Tensor, seed: int = seed) -> nn.Module:
            draw = torch.Generator().manual_seed(seed)
            return learn(fresh(network, draw), x, y, draw)

        plain = taught(straight.x_train, straight.y_train)
        more = straight.x_train, straight.y_train
        driver = plain
        for turn in range(2):
            more = aggregate(driver, *more, range(100 + 5 * turn, 105 + 5 * turn))
            driver = taught(*more)
        apart = distance_of_drives(x, wrong, seed=seed)
        kept = ~torch.isin(car, apart.topk(LATE).indices)
        rows.append(
            {
                "as driven": measured(plain),
                "shifted": measured(taught(x, y), attacks=True),
                "driven by itself": measured(driver),
                "some late": measured(taught(x, wrong)),
                "late ones left out": measured(taught(x[kept], wrong[kept])),
                "distance of drives": [round(v, 4) for v in apart.tolist()],
            }
        )
    return {"rows": rows}
