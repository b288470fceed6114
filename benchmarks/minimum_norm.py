"""Minimum-norm attacks beside the other libraries': distance, errors found, gradients, CPU time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.libraries import OURS, PEERS, Attack, without_visdom
from benchmarks.timing import race, summary
from modelsec import attacks
from modelsec.tables import Table

Say = Callable[[str], object]


class Task(NamedTuple):
    """What all contestants do.

    Attributes:
        attack: "DeepFool", "FMN" or "Carlini-Wagner".
        norm: in which distance is measured.
        steps: at most so many; for Carlini-Wagner, for each value of c.
        turns: how often each contestant runs; the slow ones, see :data:`PATIENCE`, run once.
        images: how many, in one batch.
    """

    attack: str
    norm: str
    steps: int
    turns: int
    images: int = 200


TASKS = (
    Task("DeepFool", "l2", 50, 11),
    Task("DeepFool", "linf", 50, 11),
    Task("FMN", "l2", 100, 11),
    Task("FMN", "linf", 100, 11),
    Task("Carlini-Wagner", "l2", 100, 5, 50),
)
PATIENCE = 10.0  # CPU seconds: the slowest take minutes, and a factor of 20 needs no second look
# Carlini-Wagner: the same first c, number of values of c, and step size for all who have them
C, SEARCHES, STEP_SIZE = 1.0, 5, 0.1


def modelsec(model: nn.Module, task: Task) -> Attack:
    options: dict[str, Any] = {"norm": task.norm, "steps": task.steps}
    if task.attack == "Carlini-Wagner":
        options |= {"c": C, "searches": SEARCHES, "step_size": STEP_SIZE}
    kinds: dict[str, Callable[..., Any]] = {
        "DeepFool": attacks.deepfool,
        "FMN": attacks.fmn,
        "Carlini-Wagner": attacks.carlini_wagner,
    }
    return lambda x, y: kinds[task.attack](model, x, y, **options).adv


def adv_lib(model: nn.Module, task: Task) -> Attack:
    without_visdom()
    from adv_lib.attacks import carlini_wagner_l2, df, fmn

    order = {"l2": 2, "linf": math.inf}[task.norm]
    if task.attack == "DeepFool":
        return lambda x, y: df(model, x, y, steps=task.steps, norm=order)
    if task.attack == "FMN":
        return lambda x, y: fmn(model, x, y, steps=task.steps, norm=order)
    return lambda x, y: carlini_wagner_l2(
        model, x, y, max_iterations=task.steps, initial_const=C, binary_search_steps=SEARCHES,
        learning_rate=STEP_SIZE,
    )  # fmt: skip


def foolbox(model: nn.Module, task: Task) -> Attack:
    import foolbox as peer

    kinds = {
        ("DeepFool", "l2"): peer.attacks.L2DeepFoolAttack,
        ("DeepFool", "linf"): peer.attacks.LinfDeepFoolAttack,
        ("FMN", "l2"): peer.attacks.L2FMNAttack,
        ("FMN", "linf"): peer.attacks.LInfFMNAttack,
    }
    if task.attack == "Carlini-Wagner":
        attack = peer.attacks.L2CarliniWagnerAttack(
            steps=task.steps, initial_const=C, binary_search_steps=SEARCHES, stepsize=STEP_SIZE
        )
    else:
        attack = kinds[task.attack, task.norm](steps=task.steps)
    wrapped = peer.PyTorchModel(model, bounds=(0, 1))
    return lambda x, y: attack.run(wrapped, x, peer.criteria.Misclassification(y))


def art(model: nn.Module, task: Task) -> Attack | None:
    """It has no FMN, and no DeepFool in l-infinity."""
    if task.attack == "FMN" or task.norm == "linf":
        return None
    from art.attacks.evasion import CarliniL2Method, DeepFool
    from art.estimators.classification import PyTorchClassifier

    def run(x: Tensor, y: Tensor) -> Tensor:
        wrapped = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
            device_type="cpu",
        )  # fmt: skip
        if task.attack == "DeepFool":
            attack = DeepFool(
                wrapped, max_iter=task.steps, epsilon=0.02, batch_size=len(x), verbose=False
            )
        else:
            attack = CarliniL2Method(
                wrapped, max_iter=task.steps, initial_const=C, binary_search_steps=SEARCHES,
                learning_rate=STEP_SIZE, batch_size=len(x), verbose=False,
            )  # fmt: skip
        return torch.from_numpy(attack.generate(x.numpy(), F.one_hot(y, 10).numpy()))

    return run


def torchattacks(model: nn.Module, task: Task) -> Attack | None:
    """It has no FMN, no DeepFool in l-infinity, and its Carlini-Wagner does not search for c."""
    if task.attack == "FMN" or task.norm == "linf":
        return None
    import torchattacks as peer

    if task.attack == "DeepFool":
        attack: Attack = peer.DeepFool(model, steps=task.steps)
        return attack
    one: Attack = peer.CW(model, c=C, steps=task.steps, lr=STEP_SIZE)
    return one


MAKERS = {
    "modelsec": modelsec,
    "torchattacks": torchattacks,
    "adv-lib": adv_lib,
    "Foolbox": foolbox,
    "ART": art,
}


class Counting(nn.Module):
    """A model that counts for how many images a gradient was asked."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.gradients = inside, 0

    def forward(self, x: Tensor) -> Tensor:
        """What the model says, with a hook for the backward pass."""
        logits: Tensor = self.inside(x)
        if logits.requires_grad:
            logits.register_hook(self.see)
        return logits

    def see(self, gradient: Tensor) -> None:
        """Called in each backward pass."""
        self.gradients += len(gradient)


def distances(model: nn.Module, x: Tensor, y: Tensor, adv: Tensor, norm: str) -> Tensor:
    """(N,) by the model's own answers: infinite for a miss, 0 for an image that is wrong already."""
    order = {"l2": 2, "linf": math.inf}[norm]
    size: Tensor = torch.linalg.vector_norm((adv - x).flatten(1), order, dim=1)
    with torch.no_grad():
        size = torch.where(model(adv).argmax(1) != y, size, torch.inf)
        return torch.where(model(x).argmax(1) != y, 0, size)


def outcome(model: nn.Module, x: Tensor, y: Tensor, library: str, task: Task) -> dict[str, Any]:
    """One run of one library, with its gradients counted; or why there is none."""
    counting = Counting(model).eval()
    try:
        attack = MAKERS[library](counting, task)
    except ImportError as error:
        return {"missing": f"does not import ({error.name or type(error).__name__})"}
    if attack is None:
        return {"missing": "has no such attack"}
    start = time.process_time()
    adv = attack(x, y).detach().float()
    spent = time.process_time() - start
    near = distances(model, x, y, adv, task.norm)
    found, middle = near.isfinite(), float(near.sort().values[(len(near) - 1) // 2])
    return {
        "median": middle if math.isfinite(middle) else None,
        "found": int(found.sum()),
        "gradients": counting.gradients / len(x),
        "first run": spent,
    }


def contest(
    model: nn.Module, x: Tensor, y: Tensor, task: Task, quick: bool = False, say: Say = print
) -> dict[str, Any]:
    """One task: its settings, and a row for each library.

    Args:
        model: maps (N, 1, 28, 28) to logits (N, 10).
        x: (N, 1, 28, 28) in [0, 1]; all in one batch.
        y: (N,) labels.
        task: what is to be done.
        quick: one turn of few steps, to see that all of it works.
        say: told what comes next.

    Returns:
        What JSON can hold.
    """
    if quick:  # with fewer steps adv-lib's Carlini-Wagner divides by zero
        task = task._replace(steps=10, turns=1)
    say(f"{task.attack}, {task.norm}, {task.steps} steps, {len(x)} images")
    installed = {library.name for library in (OURS, *PEERS) if library.version is not None}
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name in MAKERS:
        if name not in installed:
            rows[name] = {"missing": "not installed"}
            continue
        rows[name] = outcome(model, x, y, name, task)
        attack = None if "missing" in rows[name] else MAKERS[name](model, task)
        if attack is not None:
            runs[name] = partial(attack, x, y)
    fast = {
        name: run
        for name, run in runs.items()
        if name == OURS.name or rows[name]["first run"] <= PATIENCE
    }
    times = summary(race(fast, task.turns, warm_up=False), OURS.name)
    for name in runs.keys() - fast.keys():  # once, beside one run of ours
        pair = {OURS.name: runs[OURS.name], name: runs[name]}
        times[name] = summary(race(pair, 1, warm_up=False), OURS.name)[name]
    for name, row in times.items():
        rows[name] |= row
    return task._asdict() | {"n": len(x), "rows": rows}


def measure(
    model: nn.Module, x: Tensor, y: Tensor, quick: bool = False, say: Say = print
) -> list[dict[str, Any]]:
    """All tasks, one after the other, each on the first of the images."""
    counts = [8 if quick else task.images for task in TASKS]
    return [
        contest(model, x[:n], y[:n], task, quick, say)
        for n, task in zip(counts, TASKS, strict=True)
    ]


def table(result: dict[str, Any]) -> str:
    """One task as Markdown: a row per library."""
    rows = Table()
    for name, row in result["rows"].items():
        if "missing" in row:
            cells = [row["missing"], "", "", "", ""]
        else:
            middle = row["median"]
            low, ratio, high = row["cpu / modelsec"]
            cells = [
                "none: more than half are missed" if middle is None else f"{middle:.4f}",
                f"{row['found']} of {result['n']}",
                f"{row['gradients']:.0f}",
                f"{row['cpu seconds']:.2f} s",
                f"{ratio:.2f} ({low:.2f}–{high:.2f})" if name != OURS.name else "1",
            ]
        keys = ("median distance", "errors found", "gradients an image", "CPU time")
        rows.append(
            {"library": name} | dict(zip((*keys, "CPU time / modelsec"), cells, strict=True))
        )
    return repr(rows)
