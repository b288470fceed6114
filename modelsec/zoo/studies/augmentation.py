"""The studies behind the chapter on augmentation: learning curves, shared draws, direction.

Every network is trained with the same number of steps on the same number of images seen, whatever
the size of its training set and whatever is done to the images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from modelsec import data, models
from modelsec.attacks import fgsm, pgd
from modelsec.augmentation import METHODS, geometric, trivial_augment, vary
from modelsec.losses import log_odds
from modelsec.training import Perturb, evaluate, fit
from modelsec.validation.corruptions import KINDS, corrupt
from modelsec.zoo.results import study

__all__ = ["BATCH", "IMAGES", "RADII", "STEPS", "measure", "slice_of", "steepness", "train"]

IMAGES = (100, 300, 1000, 4000)
STEPS, BATCH = 1200, 50
RADII = (0.01, 0.02, 0.03, 0.05, 0.1)
_TESTED = 500  # images under corruption and attack, the first of the test set
_SEEDS = (0, 1, 2, 3, 4)

digits = cache(data.mnist)
Make = Callable[[torch.Generator], Perturb | None]


def slice_of(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """A balanced slice of the training data, another one for each seed while there are others.

    Args:
        images: how many, a multiple of 10 that divides 4,000 or is small beside it.
        seed: which slice.

    Returns:
        x (images, 1, 28, 28) and y (images,).
    """
    start = seed * images % 4000
    part = slice(start, start + images)
    return digits().x_train[part], digits().y_train[part]


def train(make: Make, images: int, seed: int, steps: int = STEPS) -> nn.Module:
    """The book's network after ``steps`` steps of Adam on ``images`` images.

    Args:
        make: from a generator to the ``perturb`` of :func:`~modelsec.training.fit`.
        images: size of the training set, a multiple of the batch's 50.
        seed: of the slice, the first weights, the order and the draws.
        steps: a multiple of the steps in an epoch.

    Returns:
        The network in eval mode.
    """
    weights, order, draws = (torch.Generator().manual_seed(3 * seed + i) for i in range(3))
    model = models.fresh(models.Net, weights)
    fit(
        model,
        *slice_of(images, seed),
        epochs=steps * BATCH // images,
        batch_size=BATCH,
        perturb=make(draws),
        generator=order,
    )
    return model.eval()


def steepness(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean l1 norm of the gradient of the log odds by the image: what eps = 1 would buy, if linear.

    Args:
        model: maps x to logits.
        x: (N, ...) images.
        y: (N,) labels.

    Returns:
        The mean over the images.
    """
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_odds(model(x), y).sum(), x)
    return float(gradient.flatten(1).abs().sum(1).mean())


def measure(model: nn.Module, images: int, seed: int) -> dict[str, Any]:
    """Accuracies of a trained network: its own training slice, test, corrupted, attacked.

    Args:
        model: from :func:`train`.
        images: size of its training set.
        seed: which slice that was.

    Returns:
        "train", "test" (n = 1,000), "steepness"; "corrupted": kind -> mean over the severities,
        and "pgd": radius -> accuracy under PGD-20, both on 500 test images.
    """
    x, y = digits().x_test[:_TESTED], digits().y_test[:_TESTED]

    def attacked(eps: float) -> float:
        attack = partial(pgd, eps=eps, steps=20, generator=torch.Generator().manual_seed(seed))
        return evaluate(model, x, y, attack=attack).value

    return {
        "train": evaluate(model, *slice_of(images, seed)).value,
        "test": evaluate(model, digits().x_test, digits().y_test).value,
        "steepness": steepness(model, x, y),
        "corrupted": {
            kind: sum(evaluate(model, each, y).value for each in severities) / len(severities)
            for kind, severities in _corrupted().items()
        },
        "pgd": {f"{eps:g}": attacked(eps) for eps in RADII},
    }


@cache
def _corrupted() -> dict[str, list[Tensor]]:
    x = digits().x_test[:_TESTED]
    return {
        kind: [corrupt(x, kind, s, torch.Generator().manual_seed(0)) for s in range(1, 6)]
        for kind in KINDS
    }


def _rows(seeds: tuple[int, ...], cases: dict[str, tuple[Make, int, int]]) -> dict[str, Any]:
    """One row for each seed and case, a case being (make, images, steps)."""
    return {
        "rows": [
            {"seed": seed, "method": name.split(":")[0], "images": images}
            | measure(train(make, images, seed, steps), images, seed)
            for seed in seeds
            for name, (make, images, steps) in cases.items()
        ]
    }


@study(
    "augmentation_curves",
    about="seven ways of augmenting, four sizes of the training set: accuracy clean, corrupted, attacked",
    n=_TESTED,
    seeds=_SEEDS,
)
def curves(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every method at every size."""
    return _rows(
        seeds,
        {
            f"{name}:{images}": (partial(make, 10, 10), images, STEPS)
            for name, make in METHODS.items()
            for images in IMAGES
        },
    )


@study(
    "augmentation_groups",
    about="100 images, geometric augmentation: a draw for each image, for ten, for the whole batch",
    n=_TESTED,
    seeds=_SEEDS,
)
def groups(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Half the steps of the others: a draw for each image is slow."""
    return _rows(
        seeds,
        {str(group): (_sharing(geometric(), group), 100, STEPS // 2) for group in (1, 10, 50)},
    )


@study(
    "augmentation_groups_wide",
    about="the same for transforms of a wide range: turns by any angle, TrivialAugment; 1,000 images",
    n=_TESTED,
    seeds=_SEEDS,
)
def groups_wide(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Where neighbours in a batch share a strong change."""
    wide = {"any angle": v2.RandomRotation(180), "TrivialAugment": trivial_augment()}
    return _rows(
        seeds,
        {
            f"{name} {group}": (_sharing(transform, group), 1000, STEPS // 2)
            for name, transform in wide.items()
            for group in (1, 10, 50)
        },
    )


def _sharing(transform: v2.Transform, group: int) -> Make:
    return lambda draws: vary(transform, group=group, generator=draws)


@study(
    "augmentation_direction",
    about="4,000 images, every pixel moved by 0.1 in training: at random, or along the gradient",
    n=_TESTED,
    seeds=_SEEDS,
)
def direction(seeds: tuple[int, ...]) -> dict[str, Any]:
    """The same budget twice; the second takes one more gradient a step."""
    return _rows(
        seeds,
        {
            "random signs": (random_signs, 4000, STEPS),
            "gradient signs": (gradient_signs, 4000, STEPS),
        },
    )


def random_signs(draws: torch.Generator) -> Perturb:
    """Every pixel up or down by 0.1, at random."""

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        signs = torch.rand(x.shape, generator=draws).to(x.device) - 0.5
        return (x + 0.1 * signs.sign()).clamp(0, 1)

    return perturb


def gradient_signs(draws: torch.Generator) -> Perturb:
    """Every pixel up or down by 0.1, as the gradient says: FGSM."""
    return lambda model, x, y, progress: fgsm(model, x, y, eps=0.1)
