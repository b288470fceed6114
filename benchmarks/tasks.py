"""What is measured: one machine, one thread, the same model, images, steps and step size for all."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import auto, minimum_norm
from benchmarks.libraries import FLOOR, OURS, PEERS, Attack, Library, Rule, modelsec
from benchmarks.timing import race, summary
from modelsec import data, models, zoo
from modelsec.training import evaluate

Say = Callable[[str], object]


class Race(NamedTuple):
    """A contest between all libraries.

    Attributes:
        model: "convnet" or "net", from the zoo.
        batch: how many test images, in one batch.
        rule: what is run on them.
        turns: how often each contestant runs.
    """

    model: str
    batch: int
    rule: Rule
    turns: int


PGD = Race("convnet", 128, Rule("linf", 0.1, 40), 21)
FGSM = Race("convnet", 128, Rule("linf", 0.1, 0), 101)
SIZES = [
    Race("convnet", 1, Rule("linf", 0.1, 20), 25),
    Race("convnet", 32, Rule("linf", 0.1, 20), 15),
    Race("convnet", 512, Rule("linf", 0.1, 20), 3),
    Race("convnet", 128, Rule("l2", 2.0, 20), 7),
    Race("net", 1, Rule("linf", 0.1, 20), 25),
    Race("net", 128, Rule("linf", 0.1, 20), 25),
    Race("net", 512, Rule("linf", 0.1, 20), 15),
    Race("net", 128, Rule("l2", 2.0, 20), 25),
]
EVALUATED, EVALUATION_BATCH, EVALUATION_TURNS = 1000, 500, 3
EVALUATION_EPS = (0.3, 0.2, 0.1)  # the first is the one that the peers are run with
COUNTS = {
    "images": (125, 250, 500, 750, 1000),
    "steps": (5, 10, 20, 40, 80),
    "width": (256, 512, 1024, 2048, 4096),
}
COST_TURNS, COST_BATCH = 5, 125


def measure(quick: bool = False, say: Say = print) -> dict[str, Any]:
    """Run everything.

    Args:
        quick: few images, few steps, few turns: to see that all of it works. The times then
            mean nothing.
        say: told what comes next.

    Returns:
        Results that JSON can hold; the page is made from them.
    """
    torch.set_num_threads(1)
    digits = data.mnist()
    x, y = digits.x_test[:EVALUATED], digits.y_test[:EVALUATED]
    if quick:
        x, y = x[:16], y[:16]
    nets = {name: zoo.load_model(name) for name in ("convnet", "net")}
    run = partial(contest, nets, x, y, quick, say)
    return {
        "quick": quick,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "pgd": run(PGD),
        "fgsm": run(FGSM),
        "evaluation": evaluation(nets["convnet"], x, y, quick, say),
        "sizes": [run(task) for task in SIZES],
        "minimum": minimum_norm.measure(nets["convnet"], x, y, quick, say),
        "auto": auto.measure(quick, say),
        "cost": {kind: cost(kind, nets["convnet"], x, y, quick, say) for kind in COUNTS},
    }


def contestants(
    model: nn.Module, rule: Rule, peers: list[Library] = PEERS
) -> Iterator[tuple[str, Attack | str]]:
    """(name, its attack, or why there is none) for the floor, modelsec and every peer."""
    for library in (FLOOR, OURS, *peers):
        if library.package and library.version is None:
            yield library.name, "not installed"
            continue
        try:
            attack = library.make(model, rule)
        except ImportError as error:
            yield library.name, f"does not import ({error.name or type(error).__name__})"
        else:
            yield library.name, attack or "has no such attack"


def contest(
    nets: dict[str, nn.Module], x: Tensor, y: Tensor, quick: bool, say: Say, task: Race
) -> dict[str, Any]:
    """One race on one batch: its settings, and a row for each contestant."""
    rule = task.rule._replace(steps=min(task.rule.steps, 2)) if quick else task.rule
    x, y = x[: task.batch], y[: task.batch]
    attack = f"PGD, {rule.steps} steps" if rule.steps else "FGSM"
    say(f"{attack}, {rule.norm}, {task.model}, {len(x)} images")
    found = dict(contestants(nets[task.model], rule))
    runs = {name: partial(run, x, y) for name, run in found.items() if callable(run)}
    turns = 1 if quick else task.turns
    times = summary(race(runs, turns), FLOOR.name, OURS.name)
    rows = {name: times.get(name, {"missing": run}) for name, run in found.items()}
    return {"model": task.model, "batch": len(x), **rule._asdict(), "turns": turns, "rows": rows}


def evaluation(model: nn.Module, x: Tensor, y: Tensor, quick: bool, say: Say) -> dict[str, Any]:
    """What an accuracy under attack costs. Peers go on with images that are fooled already."""
    rules = [Rule("linf", eps, 2 if quick else PGD.rule.steps) for eps in EVALUATION_EPS]
    say(f"accuracy under attack, {len(x)} images")
    found = dict(contestants(model, rules[0]))
    attacks: dict[str, Attack] = {}
    for name, attack in found.items():
        if name == OURS.name:
            for rule in rules:
                label = name if rule == rules[0] else f"{name}, eps {rule.eps}"
                attacks[label] = modelsec(model, rule, early_stop=True)
        elif callable(attack):
            attacks[name] = attack
    left: dict[str, float] = {}

    def run(name: str) -> None:
        attack = attacks[name]
        outcome = evaluate(
            model, x, y, attack=lambda _, x, y: attack(x, y), batch_size=EVALUATION_BATCH
        )
        left[name] = outcome.value

    turns = 1 if quick else EVALUATION_TURNS
    times = race({name: partial(run, name) for name in attacks}, turns, warm_up=False)
    rows = summary(times, FLOOR.name, OURS.name)
    for name, row in rows.items():
        row["accuracy"] = None if name == FLOOR.name else left[name]
    rows |= {name: {"missing": why} for name, why in found.items() if isinstance(why, str)}
    settings = {"model": "convnet", "n": len(x), "batch": EVALUATION_BATCH, "turns": turns}
    return settings | rules[0]._asdict() | {"rows": rows}


def cost(
    kind: str, convnet: nn.Module, x: Tensor, y: Tensor, quick: bool, say: Say
) -> dict[str, Any]:
    """Median CPU seconds of our PGD against one quantity, the others held fixed."""
    say(f"cost against {kind}")
    counts = COUNTS[kind][: 2 if quick else None]
    runs: dict[str, Callable[[], object]] = {}
    for count in counts:
        model, n, steps = convnet, COST_BATCH, 10
        if kind == "images":
            n = count
        elif kind == "steps":
            steps = count
        else:
            generator = torch.Generator().manual_seed(0)
            model = models.fresh(lambda w=count: models.Net((784, w, 10)), generator)
        attack = modelsec(model, Rule("linf", 0.1, steps))
        runs[str(count)] = partial(in_batches, attack, x[:n], y[:n])
    rows = summary(race(runs, 1 if quick else COST_TURNS))
    return {"counts": list(counts), "seconds": [row["cpu seconds"] for row in rows.values()]}


def in_batches(attack: Attack, x: Tensor, y: Tensor) -> None:
    """Batch after batch, as an evaluation does."""
    for images, labels in zip(x.split(COST_BATCH), y.split(COST_BATCH), strict=True):
        attack(images, labels)


def versions() -> dict[str, str]:
    """What ran, installed peers included."""
    found = {"Python": platform.python_version(), "torch": torch.__version__}
    for library in (OURS, *PEERS):
        found[library.name] = library.version or "not installed"
    found["NumPy"] = importlib.metadata.version("numpy")
    return found


def machine() -> dict[str, str]:
    """The kind of machine, nothing that names it."""
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads used": str(torch.get_num_threads()),
        "system": f"{platform.system()} on {platform.machine()}",
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model, as the system tells it."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    return platform.processor() or "unknown"
