"""The long results of the chapter on adversarial training.

On the book's own network at eps 0.1, which trains in seconds: all methods and what they cost, the weight
of TRADES, the radius. On the ConvNet at eps 0.3: what three minutes of training bring.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import data, models
from modelsec.attacks import pgd
from modelsec.attacks.auto import autoattack
from modelsec.augmentation import geometric, vary
from modelsec.repair import decay, fast, free, mart, pgd_training, ramp, trades
from modelsec.repair.schedules import Method, Radius
from modelsec.training import Perturb, evaluate, fit
from modelsec.zoo import load_model
from modelsec.zoo.results import study

__all__ = [
    "BETAS",
    "EPOCHS",
    "FEW",
    "METHODS",
    "RADII",
    "beta_row",
    "harden",
    "judged",
    "left",
    "method_row",
    "no_attack",
    "quickly",
    "radius_row",
    "worst_case",
]

N = 1000
QUERIES = 1000  # of Square for each image: a fifth of the standard protocol's
BETAS = (0.5, 2.0, 6.0, 18.0)
RADII = (0.02, 0.05, 0.1, 0.2)  # attacked at
TRAINED = (0.05, 0.1, 0.2)
EPOCHS, FEW = 28, 200  # of the ConvNet in three minutes; images that a notebook attacks again
_SEEDS = (0, 1, 2)

digits = cache(data.mnist)
Make = Callable[..., Method]


def harden(
    make: Make,
    seed: int,
    *,
    build: Callable[[], nn.Module] = models.Net,
    eps: Radius,
    epochs: int,
    turned: bool = True,
    draws: bool = True,
    images: int | None = None,
    batch_size: int = 64,
    lr: float | Callable[[float], float] = 1e-3,
    after_epoch: Callable[[nn.Module, Any], object] | None = None,
) -> tuple[nn.Module, float]:
    """Train a network adversarially on the 4,000 images, or on the first of them.

    Args:
        make: a method of :mod:`modelsec.repair`.
        seed: of the first weights, the order and the draws.
        build: makes the network.
        eps: the radius.
        epochs: passes over the data.
        turned: turn and shift the digits first.
        draws: whether the method takes a generator.
        images: how many of the images, from the first on; all if None.
        batch_size: images a step.
        lr: the learning rate.
        after_epoch: as for :func:`~modelsec.training.fit`.

    Returns:
        The network in eval mode, and how many gradients were computed for each image.
    """
    weights, drawn = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    model = models.fresh(build, weights)
    augment: Perturb | None = vary(geometric(), group=8, generator=drawn) if turned else None
    options = {"generator": drawn} if draws else {}
    method = make(eps=eps, augment=augment, **options)
    counted = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal counted
        counted += len(output) if output.requires_grad else 0

    handle = model.register_forward_hook(count)
    x, y = digits().x_train[:images], digits().y_train[:images]
    try:
        fit(
            model, x, y, epochs=epochs, batch_size=batch_size, lr=lr,
            generator=drawn, after_epoch=after_epoch, progress=False, **method,
        )  # fmt: skip
    finally:
        handle.remove()
    return model.eval(), counted / len(y)


def left(
    model: nn.Module, eps: float, *, steps: int = 40, n: int = N, train: bool = False
) -> float:
    """What PGD leaves on the first n images of a half of the data.

    Args:
        model: the network.
        eps: the radius; 0 for no attack.
        steps: of PGD.
        n: images.
        train: on the training half instead of the test half.

    Returns:
        The accuracy.
    """
    half = digits()
    x, y = (half.x_train, half.y_train) if train else (half.x_test, half.y_test)
    drawn = torch.Generator().manual_seed(0)
    attack = partial(pgd, eps=eps, steps=steps, generator=drawn) if eps else None
    return evaluate(model, x[:n], y[:n], attack=attack).value


def worst_case(model: nn.Module, eps: float, n: int = N) -> dict[str, Any]:
    """The protocol of AutoAttack with fewer queries.

    Args:
        model: the network.
        eps: the radius.
        n: test images, from the first on.

    Returns:
        "protocol", the accuracy left; "pgd", what PGD-40 leaves of the same images; "n"; "after",
        what is left after each attack; "warnings", how many.
    """
    report = autoattack(
        model, digits().x_test[:n], digits().y_test[:n], eps=eps, queries=QUERIES, progress=False,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return {
        "protocol": report.accuracy.value,
        "pgd": left(model, eps, n=n),
        "n": n,
        "after": {entry.name: entry.left.value for entry in report.attempts},
        "warnings": len(report.warnings),
    }


_OPTIONS: dict[str, Any] = {
    "epochs": 15, "batch_size": 128, "lr": decay(2e-3), "turned": False
}  # fmt: skip


def no_attack(**_: Any) -> Method:
    """Training on clean images, as a method beside the others."""
    return {}


METHODS: dict[str, tuple[Make, dict[str, Any]]] = {
    "none": (no_attack, {}),
    "pgd": (pgd_training, {}),
    "trades": (trades, {}),
    "mart": (mart, {}),
    "free": (free, {"epochs": 2, "draws": False}),
    "fast": (fast, {}),
    "noise": (partial(fast, start=2.0, step=1.0, clip=False), {}),
}


def method_row(name: str, seed: int, whole: bool = True) -> dict[str, Any]:
    """One network of the table of methods: the book's own, at eps 0.1.

    Args:
        name: one of :data:`METHODS`.
        seed: of its training.
        whole: run the protocol too.

    Returns:
        "method", "seed", "gradients" an image, "clean" and "pgd"; perhaps "worst".
    """
    make, different = METHODS[name]
    model, gradients = harden(make, seed, **{"eps": ramp(0.1)} | _OPTIONS | different)
    row: dict[str, Any] = {"method": name, "seed": seed, "gradients": gradients}
    row |= {"clean": left(model, 0), "pgd": left(model, 0.1)}
    return row | ({"worst": worst_case(model, 0.1)} if whole else {})


@study(
    "hardening_methods",
    about="784-128-64-10, eps 0.1, 15 epochs: seven methods, clean, PGD-40, the protocol",
    n=N,
    seeds=_SEEDS,
)
def methods(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every method with every seed; Free makes 2 epochs of 8 replays."""
    return {"rows": [method_row(name, seed) for seed in seeds for name in METHODS]}


_SMALL = "784-128-64-10, 15 epochs on the digits as they are: "


@study("hardening_beta", about=_SMALL + "TRADES at eps 0.1 for four weights", n=N, seeds=_SEEDS)
def by_beta(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Accuracy clean and under PGD-40 at 0.1."""
    return {"rows": [beta_row(seed, beta) for seed in seeds for beta in BETAS]}


def beta_row(seed: int, beta: float) -> dict[str, float]:
    """One network of the trade-off curve.

    Args:
        seed: of its training.
        beta: weight of the divergence.

    Returns:
        "seed", "beta", "clean" and "pgd", the accuracy under PGD-40 at 0.1.
    """
    model, _ = harden(partial(trades, beta=beta), seed, eps=ramp(0.1), **_OPTIONS)
    return {"seed": seed, "beta": beta, "clean": left(model, 0), "pgd": left(model, 0.1)}


@study("hardening_radius", about=_SMALL + "PGD training at three radii", n=N, seeds=_SEEDS)
def by_radius(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Accuracy clean and under PGD-40 at each of the radii."""
    return {"rows": [radius_row(seed, eps) for seed in seeds for eps in TRAINED]}


def radius_row(seed: int, eps: float) -> dict[str, Any]:
    """One network trained against PGD.

    Args:
        seed: of its training.
        eps: the radius of its training.

    Returns:
        "seed", "eps", "clean", and "pgd": radius -> accuracy under PGD-40.
    """
    model, _ = harden(pgd_training, seed, eps=ramp(eps), **_OPTIONS)
    at = {f"{radius:g}": left(model, radius) for radius in RADII}
    return {"seed": seed, "eps": eps, "clean": left(model, 0), "pgd": at}


def quickly(seed: int, epochs: int = EPOCHS) -> tuple[nn.Module, dict[str, float]]:
    """The recipe of the zoo's ``convnet_robust`` with fewer epochs, and what it costs.

    Args:
        seed: of the training.
        epochs: passes over the data; the zoo's recipe has 40.

    Returns:
        The ConvNet in eval mode; "epochs", "gradients" an image, and "seconds" of processor time,
        those of all threads together.
    """
    began = time.process_time()
    model, gradients = harden(
        pgd_training, seed, build=models.ConvNet, eps=ramp(0.3), epochs=epochs, lr=decay(2e-3)
    )
    seconds = round(time.process_time() - began, 1)
    return model, {"epochs": epochs, "gradients": gradients, "seconds": seconds}


def judged(model: nn.Module, eps: float, n: int = N) -> dict[str, Any]:
    """A network on clean images, under PGD-40 and under the protocol.

    Args:
        model: the network.
        eps: the radius.
        n: test images, from the first on.

    Returns:
        "clean"; "few", what PGD-40 leaves of the first 200 images; and all of :func:`worst_case`.
    """
    found = {"clean": left(model, 0, n=n), "few": left(model, eps, n=min(n, FEW))}
    return found | worst_case(model, eps, n)


@study(
    "hardening_three_minutes",
    about="the ConvNet at eps 0.3: PGD training in three minutes of processor time, and the zoo's "
    "TRADES; clean, PGD-40, the protocol",
    n=N,
    seeds=(0,),
)
def three_minutes(seeds: tuple[int, ...]) -> dict[str, Any]:
    """The time is that of one machine: run it with OMP_NUM_THREADS=1 and nothing beside it."""
    model, cost = quickly(seeds[0])
    return {
        "pgd": cost | judged(model, 0.3),
        "trades": judged(load_model("convnet_trades"), 0.3),
    }
