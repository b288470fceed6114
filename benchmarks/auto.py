"""Auto-PGD, Square and the standard protocol beside other libraries: what they cost, what they leave.

:func:`measure` runs the races. ``python -m benchmarks.auto`` measures what torchattacks' protocol
leaves of 1000 images, as it comes, and stores it in protocol.json, batch by batch: it takes a
quarter of an hour, and goes on where it was stopped. What ours leaves of them is a result of the
zoo.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy and torch are loaded
    os.environ.setdefault(name, "1")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.libraries import FLOOR, OURS, Attack, Rule, floor, without_visdom  # noqa: E402
from benchmarks.timing import race, summary  # noqa: E402
from modelsec import attacks, data, zoo  # noqa: E402
from modelsec.training import evaluate  # noqa: E402

Say = Callable[[str], object]
RECORD = Path(__file__).parent / "protocol.json"


class Task(NamedTuple):
    """A contest over one attack.

    Attributes:
        attack: "APGD", "APGD-CE", "Square" or "protocol".
        model: of the zoo.
        n: images, in one batch.
        eps: in linf.
        steps: gradient steps of each run.
        queries: of Square, for each image.
        turns: how often each contestant runs.
    """

    attack: str
    model: str
    n: int
    eps: float
    steps: int
    queries: int
    turns: int


TASKS = [
    # all gradients for all images, the same work for everyone
    Task("APGD", "convnet", 128, 0.1, 40, 0, 15),
    # an accuracy is asked for: who is fooled may be left alone
    Task("APGD-CE", "convnet", 1000, 0.1, 100, 0, 3),
    Task("Square", "convnet", 250, 0.1, 0, 500, 3),
    # as torchattacks comes, with 10 steps, and with the 100 of the paper
    Task("protocol", "convnet", 100, 0.1, 10, 5000, 1),
    Task("protocol", "convnet", 100, 0.1, 100, 5000, 3),
    Task("protocol", "convnet_robust", 50, 0.3, 10, 5000, 1),
    Task("protocol", "convnet_robust", 50, 0.3, 100, 5000, 3),
]


def measure(quick: bool = False, say: Say = print) -> list[dict[str, Any]]:
    """Run all races.

    Args:
        quick: few images, few steps, one turn: to see that all of it works. The times then
            mean nothing.
        say: told what comes next.

    Returns:
        For each task its settings and a row for each contestant: seconds, ratios to the floor
        (for "APGD") and to us, and the accuracy left (for the other tasks).
    """
    torch.set_num_threads(1)
    if quick:
        tasks = [
            task._replace(n=4, steps=min(task.steps, 2), queries=min(task.queries, 5), turns=1)
            for task in TASKS
        ]
        return [contest(task, say) for task in tasks]
    return [contest(task, say) for task in TASKS]


def contest(task: Task, say: Say = print) -> dict[str, Any]:
    """One race."""
    say(f"{task.attack}, {task.model}, {task.n} images, {task.steps} steps")
    digits = data.mnist()
    x, y = digits.x_test[: task.n], digits.y_test[: task.n]
    model = zoo.load_model(task.model).eval()
    left: dict[str, float] = {}
    runs: dict[str, Callable[[], object]] = {}
    missing: dict[str, dict[str, Any]] = {}
    if task.attack == "APGD":
        runs[FLOOR.name] = partial(floor(model, Rule("linf", task.eps, task.steps)), x, y)

    def run(name: str, attack: Attack) -> None:
        adv = attack(x, y)
        if task.attack != "APGD":
            left[name] = evaluate(model, adv, y).value

    for name, make in {OURS.name: ours, "torchattacks": torchattacks, "adv-lib": adv_lib}.items():
        try:
            attack = make(model, task)
        except ImportError as error:
            missing[name] = {"missing": f"does not import ({error.name or type(error).__name__})"}
            continue
        if attack is None:
            missing[name] = {"missing": "has no such attack"}
        else:
            runs[name] = partial(run, name, attack)
    with torch.random.fork_rng(devices=[]):  # the peers seed the global generator
        times = race(runs, task.turns, warm_up=task.turns > 1)
    bases = [base for base in (FLOOR.name, OURS.name) if base in runs]
    rows = summary(times, *bases)
    for name, row in rows.items():
        if name in left:
            row["accuracy"] = left[name]
    return task._asdict() | {"rows": rows | missing}


def ours(model: nn.Module, task: Task) -> Attack:
    """In the race of equal work without early stop, from a random start as the others."""
    generator = torch.Generator().manual_seed(0)
    rule = {"eps": task.eps, "generator": generator}
    if task.attack == "Square":
        return partial(attacks.square, model, queries=task.queries, **rule)
    if task.attack == "protocol":
        return lambda x, y: (
            attacks.autoattack(
                model, x, y, steps=task.steps, queries=task.queries, progress=False, **rule
            ).adv
        )
    return partial(attacks.apgd, model, steps=task.steps, early_stop=task.attack != "APGD", **rule)


def torchattacks(model: nn.Module, task: Task) -> Attack:
    """Its AutoAttack takes 10 steps and has no such argument: its attacks are told one by one."""
    import torchattacks as peer

    rule = {"eps": task.eps, "norm": "Linf", "seed": 0}
    if task.attack == "Square":
        return peer.Square(model, n_queries=task.queries - 1, **rule)
    if task.attack == "protocol":
        protocol = peer.AutoAttack(model, **rule)
        for attack in protocol._autoattack.attacks:
            attack.steps = task.steps
            attack.n_queries = task.queries - 1  # the first point is not counted
        return protocol
    return peer.APGD(model, steps=task.steps, loss="ce", **rule)


def adv_lib(model: nn.Module, task: Task) -> Attack | None:
    """It has neither Square nor a protocol."""
    if not task.attack.startswith("APGD"):
        return None
    without_visdom()
    from adv_lib.attacks import apgd

    return lambda x, y: apgd(
        model, x, y, task.eps, float("inf"), n_iter=task.steps, loss_function="ce"
    )


# --- what the whole protocol leaves of 1000 images ----------------------------------------------

RECORDED, BATCH, QUERIES = 1000, 125, 5000
CASES = {"convnet": 0.1, "convnet_robust": 0.3}
PROTOCOLS = {"torchattacks": (torchattacks, 10)}
"""With the steps that it takes unless it is told otherwise."""


def record(path: Path = RECORD, batches: int | None = None, say: Say = print) -> dict[str, Any]:
    """Measure what is missing in the record, and store it after every batch.

    Args:
        path: of the record.
        batches: stop after so many; None for all.
        say: told what comes next.

    Returns:
        The record: {model: {library: one outcome per image, 1 where it stands}}, with settings.
    """
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    digits = data.mnist()
    found |= {"n": RECORDED, "eps": CASES, "queries": QUERIES}
    found["steps"] = {library: steps for library, (_, steps) in PROTOCOLS.items()}
    for model_name, eps in CASES.items():
        model = zoo.load_model(model_name).eval()
        for library, (make, steps) in PROTOCOLS.items():
            outcomes = found.setdefault("outcomes", {}).setdefault(model_name, {})
            stands: list[int] = outcomes.setdefault(library, [])
            while len(stands) < RECORDED:
                if batches == 0:
                    return found
                batches = None if batches is None else batches - 1
                say(f"{model_name}, {library}: {len(stands)} of {RECORDED}")
                part = slice(len(stands), len(stands) + BATCH)
                x, y = digits.x_test[part], digits.y_test[part]
                task = Task("protocol", model_name, BATCH, eps, steps, QUERIES, 1)
                with torch.random.fork_rng(devices=[]):
                    adv: Tensor = make(model, task)(x, y)
                stands += evaluate(model, adv, y).correct.int().tolist()
                found["date"] = datetime.date.today().isoformat()
                path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def main() -> None:
    """Read the command line and record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auto", description=__doc__)
    parser.add_argument("--batches", type=int, help="stop after so many batches")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        found = record(batches=options.batches)
    for model, outcomes in found["outcomes"].items():
        print(model, {name: sum(stands) / len(stands) for name, stands in outcomes.items()})


if __name__ == "__main__":
    main()
