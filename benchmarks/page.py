"""The page of the book that shows the results: every number on it comes from the stored JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from string import Template
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import minimum_norm
from modelsec.plot import COLORS, use_style
from modelsec.tables import Table

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parent / "reference" / "benchmarks.md"
FIGURES = ("benchmarks-evaluation.png", "benchmarks-cost.png")
AIM, LIMIT, GAIN = 1.05, 1.10, 4.0
NETS = {"convnet": "ConvNet", "convnet_robust": "robust ConvNet", "net": "Net (784-128-64-10)"}
QUANTITIES = {
    "images": "images",
    "steps": "steps",
    "width": "units in the hidden layer",
}

Results = dict[str, Any]


def write(results: Results, path: Path = PAGE) -> None:
    """Write the page, and the figures beside it."""
    path.write_text(render(results), encoding="utf-8")
    draw_evaluation(results, path.with_name(FIGURES[0]))
    draw_cost(results, path.with_name(FIGURES[1]))


def fingerprint(results: Results) -> str:
    """Stands in each figure's metadata: which results it was drawn from."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


def render(results: Results) -> str:
    """The page's text."""
    pgd, evaluation = results["pgd"], results["evaluation"]
    gain = speed_up(evaluation)
    return Template((HERE / "page.md").read_text(encoding="utf-8")).substitute(
        machine=machine(results),
        pgd_task=task(pgd, "PGD"),
        pgd_table=table(results, pgd),
        pgd_verdict=pgd_verdict(pgd),
        fgsm_task=task(results["fgsm"], "FGSM"),
        fgsm_table=table(results, results["fgsm"]),
        evaluation_n=f"{evaluation['n']:,}",
        evaluation_task=(
            f"{NETS[evaluation['model']]}, not defended, {evaluation['n']:,} images in batches of "
            f"{evaluation['batch']}, {norm(evaluation)}, {evaluation['steps']} steps, eps = "
            f"{evaluation['eps']} unless another one stands there; {turns(evaluation)}."
        ),
        evaluation_table=table(results, evaluation),
        evaluation_verdict=(
            f"At eps = {evaluation['eps']} `modelsec` is **{gain[1]:.1f} times as fast** as the "
            f"fastest peer, {gain[0]}. The aim was {GAIN:.0f} times: {met(gain[1] >= GAIN)}."
            if gain
            else "No peer is installed, so there is nothing to compare with."
        ),
        evaluation_alt=alt_of_evaluation(evaluation),
        minimum_tables="\n\n".join(
            f"**{race['attack']}, {norm(race)}, {race['steps']} steps, {race['n']} images; "
            f"{turns(race)}**\n\n" + minimum_norm.table(race)
            for race in results["minimum"]
        ),
        auto_table=auto_table(results["auto"]),
        auto_verdict=auto_verdict(results["auto"]),
        sizes_table=sizes_table(results["sizes"]),
        cost_alt=alt_of_cost(results["cost"]),
        cost_verdict=" ".join(
            f"Against {QUANTITIES[kind]}, no point lies further than "
            f"{100 * straight_line(**points)[2]:.0f}% from the line."
            for kind, points in results["cost"].items()
        ),
    )


# --- sentences ----------------------------------------------------------------------------------


def auto_verdict(races: list[Results]) -> str:
    """Auto-PGD against the floor; the protocol against the other one, network by network."""
    (climb,) = (race for race in races if race["attack"] == "APGD")
    ours = climb["rows"]["modelsec"]["cpu / floor"][1]
    text = (
        f"Auto-PGD takes **{ours:.3f} times the floor**. The aim was {AIM:.2f}: "
        f"{met(ours <= AIM)}; the limit, {LIMIT:.2f}: {met(ours <= LIMIT)}."
    )
    for race in races:
        other = race["rows"].get("torchattacks", {})
        if race["attack"] == "protocol" and "missing" not in other:
            text += (
                f" With {race['steps']} steps on {NETS[race['model']]}, torchattacks' protocol "
                f"takes **{other['cpu / modelsec'][1]:.1f} times our CPU time**."
            )
    return text


def met(yes: bool) -> str:
    return "met" if yes else "not met"


def norm(settings: Results) -> str:
    return {"linf": "l-infinity", "l2": "l2"}[settings["norm"]]


def turns(settings: Results) -> str:
    return f"{settings['turns']} turn{'s' if settings['turns'] > 1 else ''}"


def task(race: Results, attack: str) -> str:
    steps = f"{race['steps']} steps, " if race["steps"] else ""
    return (
        f"{NETS[race['model']]}, {race['batch']} images in one batch, {attack}, {norm(race)}, "
        f"{steps}eps = {race['eps']}; {turns(race)}."
    )


def peers(race: Results) -> dict[str, Results]:
    """The rows of the other libraries that ran."""
    return {
        name: row
        for name, row in race["rows"].items()
        if "missing" not in row and name != "floor" and not name.startswith("modelsec")
    }


def fastest(race: Results) -> str | None:
    """The peer that needs the least CPU time, turn by turn; None if no peer ran."""
    rows = peers(race)
    return min(rows, key=lambda name: rows[name]["cpu / modelsec"][1], default=None)


def speed_up(evaluation: Results) -> tuple[str, float] | None:
    """(the fastest peer, its CPU time over ours)."""
    name = fastest(evaluation)
    return name and (name, evaluation["rows"][name]["cpu / modelsec"][1])


def pgd_verdict(pgd: Results) -> str:
    ours = pgd["rows"]["modelsec"]["cpu / floor"][1]
    text = (
        f"`modelsec` takes **{ours:.3f} times the floor**. The aim was {AIM:.2f}: "
        f"{met(ours <= AIM)}; the limit, {LIMIT:.2f}: {met(ours <= LIMIT)}."
    )
    name = fastest(pgd)
    if name is None:
        return text
    ratio = 1 / pgd["rows"][name]["cpu / modelsec"][1]
    return (
        f"{text} Turn by turn, it takes {ratio:.2f} times the CPU time of the fastest peer, {name}."
    )


# --- tables -------------------------------------------------------------------------------------


def machine(results: Results) -> str:
    """What it was measured on, as a table."""
    facts = {"measured on": results["date"], **results["machine"]}
    facts["versions"] = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    return repr(Table({"what": key, "in this run": value} for key, value in facts.items()))


def spread(row: Results, key: str) -> str:
    """A median with its quartiles."""
    low, middle, high = row[key]
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def table(results: Results, race: Results) -> str:
    """One row per contestant."""
    rows = Table()
    for name, row in race["rows"].items():
        shown = {"library": name}
        if "missing" in row:
            cells = {"CPU time / floor": row["missing"], "wall time / floor": "", "CPU time": ""}
        else:
            cells = {
                "CPU time / floor": spread(row, "cpu / floor") if name != "floor" else "1",
                "wall time / floor": spread(row, "wall / floor") if name != "floor" else "1",
                "CPU time": seconds(row["cpu seconds"]),
            }
        if any("accuracy" in other for other in race["rows"].values()):
            left = row.get("accuracy")
            cells["accuracy left"] = "" if left is None else f"{left:.3f}"
        rows.append(shown | cells)
    return repr(rows)


def auto_table(races: list[Results]) -> str:
    """One row per race and contestant."""
    rows = Table()
    for race in races:
        what = {
            "attack": race["attack"],
            "network": f"{NETS[race['model']]}, eps {race['eps']}",
            "images": race["n"],
            "steps": race["steps"] or f"{race['queries']} queries",
        }
        for name, row in race["rows"].items():
            if row.get("missing") == "has no such attack":
                continue
            if "missing" in row:
                cells = {"CPU time": row["missing"], "CPU time / modelsec": "", "accuracy left": ""}
            else:
                left = row.get("accuracy")
                cells = {
                    "CPU time": seconds(row["cpu seconds"]),
                    "CPU time / modelsec": (
                        "1" if name == "modelsec" else spread(row, "cpu / modelsec")
                    ),
                    "accuracy left": "" if left is None else f"{left:.3f}",
                }
            rows.append(what | {"library": name} | cells)
    return repr(rows)


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def sizes_table(races: list[Results]) -> str:
    """One row per task, one column per library."""
    rows = Table()
    for race in races:
        floor = race["rows"]["floor"]["cpu seconds"] / race["steps"]
        row = {
            "network, batch": f"{NETS[race['model']].split()[0]}, {race['batch']}"
            + (", l2" if race["norm"] == "l2" else ""),
            "a gradient": seconds(floor),
        }
        for name, times in race["rows"].items():
            if name != "floor":
                absent = "–" if times.get("missing") == "has no such attack" else None
                row[name] = absent or times.get("missing") or f"{times['cpu / floor'][1]:.2f}"
        rows.append(row)
    return repr(rows)


# --- figures ------------------------------------------------------------------------------------


def straight_line(counts: list[float], seconds: list[float]) -> tuple[float, float, float]:
    """(slope, intercept, largest relative distance) of the line that fits best, relatively.

    Times spread in proportion to their size, so each is weighed by its inverse.
    """
    x, y = np.array(counts, float), np.array(seconds)
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)
    distance = np.abs(slope * x + intercept - y) / y
    return float(slope), float(intercept), float(distance.max())


def bars(evaluation: Results) -> dict[str, float]:
    """CPU seconds of all that ran."""
    rows = evaluation["rows"]
    return {name: row["cpu seconds"] for name, row in rows.items() if "missing" not in row}


def alt_of_evaluation(evaluation: Results) -> str:
    parts = ", ".join(f"{name} {seconds(value)}" for name, value in bars(evaluation).items())
    return f"Bars of the CPU time for one accuracy under attack - {parts}."


def alt_of_cost(cost: Results) -> str:
    parts = "; ".join(
        f"{QUANTITIES[kind]} from {points['counts'][0]} to {points['counts'][-1]}, "
        f"{seconds(points['seconds'][0])} to {seconds(points['seconds'][-1])}"
        for kind, points in cost.items()
    )
    return f"Three panels of CPU time with a straight line through the points - {parts}."


def draw_evaluation(results: Results, path: Path) -> None:
    """Bars: the CPU time that one accuracy under attack costs."""
    use_style()
    found = bars(results["evaluation"])
    _, axes = plt.subplots(figsize=(6.4, 0.6 + 0.4 * len(found)))
    colors = [COLORS["red" if name.startswith("modelsec") else "blue"] for name in found]
    drawn = axes.barh(list(found), list(found.values()), color=colors)
    axes.bar_label(drawn, [seconds(value) for value in found.values()], padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=f"CPU time for {results['evaluation']['n']:,} images (seconds)")
    save(results, path)


def draw_cost(results: Results, path: Path) -> None:
    """Three panels: CPU time against one quantity each, with the line that fits best."""
    use_style()
    _, panels = plt.subplots(1, 3, figsize=(9, 3.2))
    for axes, (kind, points) in zip(panels, results["cost"].items(), strict=True):
        slope, intercept, _ = straight_line(**points)
        ends = np.array([0, max(points["counts"])])
        axes.plot(ends, slope * ends + intercept, "--", color=COLORS["black"], linewidth=1)
        axes.plot(points["counts"], points["seconds"], "o", color=COLORS["red"])
        axes.set(xlabel=QUANTITIES[kind], xlim=(0, None), ylim=(0, None))
    panels[0].set_ylabel("CPU time (seconds)")
    save(results, path)


def save(results: Results, path: Path) -> None:
    plt.savefig(path, metadata={"Software": None, "Description": fingerprint(results)})
    plt.close()
