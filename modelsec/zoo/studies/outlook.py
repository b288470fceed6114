"""The long results of the outlook: attacks by year, and what scale buys a robust network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import models
from modelsec.attacks import apgd, apgd_targeted, bim, deepfool, fgsm, pgd, square
from modelsec.losses import cross_entropy
from modelsec.repair import decay, pgd_training, ramp
from modelsec.zoo import load_model
from modelsec.zoo.results import study
from modelsec.zoo.studies.adversarial_training import digits, harden, left, no_attack

__all__ = ["ATTACKS", "IMAGES", "NETWORKS", "WIDTHS", "by_year", "grown", "parameters", "sizes"]

N = 1000
JUDGED = 500  # images that each of the attacks by year is given
_BATCH = 128
UPDATES = 469  # of the weights, whatever the number of images: 15 epochs of 4,000
IMAGES = (500, 1000, 2000, 4000)
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
# name in the zoo -> the radius at which it is attacked, as in the chapters that made it
NETWORKS = {"convnet": 0.1, "convnet_distilled": 0.2, "convnet_robust": 0.3}
Attack = Callable[..., Tensor]


def _deepfool(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, generator: torch.Generator
) -> Tensor:
    """DeepFool looks for the nearest; what it finds within eps counts."""
    found = deepfool(model, x, y, norm="linf")
    near = found.distance <= eps
    return torch.where(near.view(-1, 1, 1, 1), found.adv, x)


def _fixed(attack: Attack, **options: Any) -> Attack:
    """An attack that draws nothing."""

    def run(
        model: nn.Module, x: Tensor, y: Tensor, *, eps: float, generator: torch.Generator
    ) -> Tensor:
        return attack(model, x, y, eps=eps, **options)

    return run


# name -> (the year in which its preprint appeared, the attack with the loss of that paper)
ATTACKS: dict[str, tuple[int, Attack]] = {
    "FGSM": (2014, _fixed(fgsm, loss=cross_entropy)),
    "DeepFool": (2015, _deepfool),
    "BIM": (2016, _fixed(bim, steps=10, loss=cross_entropy)),
    "PGD, 40 steps": (2017, partial(pgd, steps=40, loss=cross_entropy)),
    "Square, 1,000 queries": (2019, partial(square, queries=1000)),
    "APGD-CE": (2020, partial(apgd, steps=100, loss=cross_entropy)),
    "APGD-T": (2020, partial(apgd_targeted, steps=100)),
}


def by_year(name: str, attack: str, n: int = JUDGED) -> dict[str, Any]:
    """One attack on one network.

    Args:
        name: one of :data:`NETWORKS`.
        attack: one of :data:`ATTACKS`.
        n: test images, from the first on.

    Returns:
        "network", "attack", "year", and "marks": for each image "1" if it is still read, "0" if not.
    """
    year, run = ATTACKS[attack]
    model, (x, y) = load_model(name).eval(), (digits().x_test[:n], digits().y_test[:n])
    adv = run(model, x, y, eps=NETWORKS[name], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = (model(adv).argmax(1) == y) & (model(x).argmax(1) == y)
    marks = "".join("01"[int(one)] for one in right)
    return {"network": name, "attack": attack, "year": year, "marks": marks}


@study(
    "outlook_attacks",
    about="three ConvNets, linf at 0.1, 0.2 and 0.3, under seven attacks in the order of their years",
    n=JUDGED,
    seeds=(0,),
)
def outlook_attacks(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every attack on every network, with the options that the book uses."""
    return {"rows": [by_year(name, attack) for name in NETWORKS for attack in ATTACKS]}


def sizes(width: float) -> tuple[int, ...]:
    """The layers of the book's network, with hidden layers so many times as wide.

    Args:
        width: 1 for the book's own.

    Returns:
        The width of every layer.
    """
    return (784, round(128 * width), round(64 * width), 10)


def parameters(width: float) -> int:
    """How many parameters a network of a width has.

    Args:
        width: as in :func:`sizes`.

    Returns:
        The number of weights and biases.
    """
    with torch.device("meta"):
        return sum(p.numel() for p in models.Net(sizes(width)).parameters())


def grown(images: int, width: float, seed: int, robust: bool = True) -> dict[str, Any]:
    """One network of the study of scale: trained with as many updates as every other.

    Args:
        images: training images, from the first on.
        width: as in :func:`sizes`.
        seed: of the first weights, the order and the draws.
        robust: train against PGD at 0.1; on clean images if False.

    Returns:
        "images", "width", "seed", "robust"; "gradients", how many were computed in all; "clean" and
        "pgd" on the test images, the second under PGD-40 at 0.1; "seen", the same on training images.
    """
    model, each = harden(
        pgd_training if robust else no_attack, seed, build=partial(models.Net, sizes(width)),
        eps=ramp(0.1), epochs=round(UPDATES * _BATCH / images), images=images, turned=False,
        batch_size=_BATCH, lr=decay(2e-3),
    )  # fmt: skip
    return {
        "images": images,
        "width": width,
        "seed": seed,
        "robust": robust,
        "gradients": round(each * images),
        "clean": left(model, 0),
        "pgd": left(model, 0.1),
        "seen": left(model, 0.1, n=500, train=True),
    }


@study(
    "outlook_scale",
    about="784-128-64-10 and narrower and wider, on 500 to 4,000 images, with equally many updates: "
    "PGD training at 0.1 and clean training",
    n=N,
    seeds=(0, 1, 2),
)
def outlook_scale(seeds: tuple[int, ...]) -> dict[str, Any]:
    """By images at width 1; by width on all images; and clean training of the book's network."""
    wanted = [(images, 1.0) for images in IMAGES] + [
        (IMAGES[-1], width) for width in WIDTHS if width != 1
    ]
    rows = [grown(images, width, seed) for seed in seeds for images, width in wanted]
    return {"rows": rows + [grown(IMAGES[-1], 1.0, seed, robust=False) for seed in seeds]}
