"""Time several functions fairly on a machine that is never quite quiet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Racers = Mapping[str, Callable[[], object]]


def race(racers: Racers, turns: int, warm_up: bool = True) -> dict[str, list[tuple[float, float]]]:
    """Let all run in turn, again and again: a machine that slows down slows all of them down.

    Args:
        racers: name -> what to run.
        turns: how often each runs. The next turn begins with the next one, so that nobody always
            follows the same neighbour after a pause.
        warm_up: run each once beforehand, untimed.

    Returns:
        For each name, a list of (processor, wall) seconds, a pair per turn.
    """
    names = list(racers)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for name in names if warm_up else []:
        racers[name]()
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            cpu, wall = time.process_time(), time.perf_counter()
            racers[name]()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return times


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def summary(times: Mapping[str, list[tuple[float, float]]], *bases: str) -> dict[str, Any]:
    """For each name: median seconds, and quartiles of its ratio to each base, turn by turn.

    A ratio is taken within a turn, between neighbours in time, before the median is: what the
    machine does in the meantime then weighs on both.
    """
    rows: dict[str, Any] = {}
    for name, pairs in times.items():
        rows[name] = {}
        for position, kind in enumerate(("cpu", "wall")):
            mine = [pair[position] for pair in pairs]
            rows[name][f"{kind} seconds"] = statistics.median(mine)
            for base in bases:
                theirs = [pair[position] for pair in times[base]]
                ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
                rows[name][f"{kind} / {base}"] = quartiles(ratios)
    return rows
