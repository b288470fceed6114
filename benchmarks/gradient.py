"""FGSM and PGD against the floor and against torchattacks, Foolbox and ART.

The floor is what no gradient attack can undercut: steps x (one forward pass + one gradient by the
input). All contestants get the same model, images, steps, step size and threads, and take turns,
so that a machine which slows down slows all of them down. Told are medians of processor time.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec import attacks, data, zoo
from modelsec.tables import Table
from modelsec.training import inference

Contestants = dict[str, Callable[[], object]]
STEPS, EPS, BATCH, ROUNDS = 40, 0.1, 128, 15


def floor(model: torch.nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """The least that an attack with this many gradients can cost."""
    with inference(model):
        for _ in range(steps):
            x = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)


def contestants(model: torch.nn.Module, x: Tensor, y: Tensor, steps: int) -> Contestants:
    """Every library's PGD in linf on the same task; no early stop, so all do the same work."""
    import foolbox
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    size = 2.5 * EPS / steps
    art_model = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0, 1)
    )
    art = ProjectedGradientDescentPyTorch(
        art_model, "inf", EPS, size, max_iter=steps, batch_size=len(x), verbose=False
    )
    images, labels = x.numpy(), F.one_hot(y, 10).numpy()
    fool_model = foolbox.PyTorchModel(model, bounds=(0, 1))
    fool = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=steps, random_start=False)
    other = torchattacks.PGD(model, eps=EPS, alpha=size, steps=steps, random_start=False)
    return {
        "floor": lambda: floor(model, x, y, steps),
        "modelsec": lambda: attacks.pgd(
            model, x, y, eps=EPS, steps=steps, step_size=size, random_start=False, early_stop=False
        ),
        "torchattacks": lambda: other(x, y),
        "foolbox": lambda: fool.run(
            fool_model, x, foolbox.criteria.Misclassification(y), epsilon=EPS
        ),
        "adversarial-robustness-toolbox": lambda: art.generate(images, labels),
    }


def race(racers: Contestants, rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Median (processor, wall) seconds of each contestant, run in turn; one round to warm up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in racers}
    for turn in range(rounds + 1):
        for name, run in racers.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if turn:
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: (statistics.median(c for c, _ in rows), statistics.median(w for _, w in rows))
        for name, rows in times.items()
    }


def main() -> None:
    """Print one table."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model, digits = zoo.load_model("convnet"), data.mnist()
    x, y = digits.x_test[:BATCH], digits.y_test[:BATCH]
    results = race(contestants(model, x, y, STEPS))
    cpu_floor, wall_floor = results["floor"]
    print(
        f"PGD, linf, {STEPS} steps, ConvNet, {BATCH} images, one thread, median of {ROUNDS} turns"
    )
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}\n")
    print(
        Table(
            {
                "library": name,
                "version": "" if name == "floor" else importlib.metadata.version(name),
                "CPU time / floor": f"{cpu / cpu_floor:.2f}",
                "wall time / floor": f"{wall / wall_floor:.2f}",
                "CPU seconds": f"{cpu:.3f}",
            }
            for name, (cpu, wall) in results.items()
        )
    )
