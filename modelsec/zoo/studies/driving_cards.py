"""The audit cards of the chapter on driving, made from what its other studies recorded."""

from __future__ import annotations

from typing import Any

from modelsec import zoo
from modelsec.audit.parts import Section, Subject
from modelsec.audit.report import Report
from modelsec.intervals import Proportion
from modelsec.tables import Table
from modelsec.zoo.results import study
from modelsec.zoo.studies.driving_models import EPS, road_frames
from modelsec.zoo.studies.driving_training import open_loop

__all__ = ["card", "left_lane", "off_road"]

_NAMES = {"driver": "student", "driver_robust": "repaired"}
_MONITOR = {"driver": "map", "driver_robust": "map, repaired"}


def off_road(outcome: dict[str, Any]) -> Proportion:
    """The share of cars that left the road, from what :func:`~modelsec.zoo.studies.driving.told` kept."""
    return Proportion(sum(outcome["off"]), len(outcome["off"]))


def left_lane(outcome: dict[str, Any]) -> Proportion:
    """The share of cars that left their own lane, to the other one or off the road."""
    pairs = zip(outcome["off"], outcome["aside"], strict=True)
    return Proportion(sum(bool(off) or aside > 2.5 for off, aside in pairs), len(outcome["off"]))


def card(name: str) -> Report:
    """The card of a driver: frames, open loop, closed loop, two attacks, a monitor.

    Args:
        name: "driver" or "driver_robust", of the zoo.

    Returns:
        The report.

    Raises:
        ValueError: for another name.
    """
    if name not in _NAMES:
        raise ValueError(f"there is a card for each of {sorted(_NAMES)}, not for {name!r}")
    net, data = zoo.load_model(name), road_frames()
    drives = zoo.load_result("driving_attacks")[_NAMES[name]]
    watched = zoo.load_result("driving_monitors")[_MONITOR[name]]
    subject = Subject(net, data, name, len(data.y_test), "linf", (EPS,))
    parts = (
        _data(len(data.y_train), len(data.y_test)),
        _open(open_loop(net)),
        _closed(off_road(drives["none"]["0"]), max(drives["none"]["0"]["aside"])),
        _evasion(drives["each frame"]),
        _stationary(off_road(drives["stationary"]["8"])),
        _monitor(watched),
    )
    return Report(subject, parts)


def _data(train: int, test: int) -> Section:
    return Section(
        f"{train:,} frames of 20 drives by the expert, each seen from beside the car too far left or "
        f"right; {test} of 5 other drives. One track: nothing is known about another road.",
        "info",
        {"train": train, "test": test},
        name="data",
        title="Data",
    )


def _open(apart: float) -> Section:
    return Section(
        f"On the expert's own frames the wheel is {apart:.4f} from the expert's on average. That does "
        "not say how it drives.",
        "info",
        {"distance": apart},
        name="clean",
        title="Open loop",
    )


def _closed(off: Proportion, aside: float) -> Section:
    return Section(
        f"Of the cars that it drives {off} leave the road within 200 m; none comes farther than "
        f"{aside:.2f} m from the middle of its lane.",
        "ok" if not off.hits else "warning",
        {"off_road": off, "aside": aside},
        name="validation",
        title="Closed loop",
    )


def _evasion(by_radius: dict[str, Any]) -> Section:
    shares = {int(e): off_road(outcome) for e, outcome in by_radius.items()}
    trained_for = round(EPS * 255)
    lane = left_lane(by_radius[str(trained_for)])
    return Section(
        f"With every frame changed by {trained_for}/255 at most, {shares[trained_for]} leave the road, "
        f"and {lane} their lane.",
        "warning" if lane.interval[0] > 0.05 else "info",
        {f"off_road@{e}": share for e, share in shares.items()} | {"left_lane": lane},
        Table({"eps (1/255)": e, "leave the road": str(share)} for e, share in shares.items()),
        name="evasion",
        title="Each frame attacked",
    )


def _stationary(off: Proportion) -> Section:
    return Section(
        f"With one change of 8/255 for all frames, {off} leave the road.",
        "warning" if off.interval[0] > 0.05 else "info",
        {"off_road": off},
        name="stationary",
        title="The same change on all frames",
    )


def _monitor(watched: dict[str, Any]) -> Section:
    quiet = watched["none"]["alarm"]
    false = Proportion(sum(step >= 0 for step in quiet), len(quiet))
    left = {kind: off_road(watched[kind]["8"]) for kind in ("each frame", "knowing")}
    return Section(
        f"The monitor with the map rings in {false} of the drives without an attack. Beside it, "
        f"{left['each frame']} leave the road at 8/255, and {left['knowing']} if the attacker knows it.",
        "warning" if left["knowing"].interval[0] > 0.05 else "info",
        {"false_alarms": false, "off_road": left["each frame"], "off_road_known": left["knowing"]},
        name="monitor",
        title="Monitor with a map",
    )


@study(
    "driving_cards",
    about="the audit cards of the driver, before and after adversarial training",
    n=40,
    seeds=(0,),
)
def cards(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Both cards, as text.

    Returns:
        "before" and "after" -> a list of sections: "title", "state" and "text".
    """
    return {
        when: card(name).told for when, name in (("before", "driver"), ("after", "driver_robust"))
    }
