"""How the zoo's networks for traffic signs are trained: as usual, and against four kinds of trouble."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelsec.data import Data
from modelsec.losses import cross_entropy
from modelsec.models import ConvNet
from modelsec.repair import decay, noise_training, pgd_training, ramp
from modelsec.sign_art import CLASSES
from modelsec.training import History, Perturb, fit, inference

__all__ = ["covered", "covering", "hardened", "noisy", "plain", "sign_net"]


def sign_net() -> ConvNet:
    """The book's ConvNet for 32x32 colour pictures of 16 signs: 215,524 parameters."""
    return ConvNet(3, 32, len(CLASSES), mean=(0.44, 0.36, 0.36), std=(0.23, 0.2, 0.21))


def plain(model: nn.Module, data: Data, generator: torch.Generator, *, epochs: int = 25) -> History:
    """Cross-entropy, Adam, a learning rate that falls towards the end.

    Args:
        model: trained in place.
        data: its training half is used.
        generator: draws the order.
        epochs: passes over the data.

    Returns:
        What happened.
    """
    return _fit(model, data, generator, epochs)


def hardened(model: nn.Module, data: Data, generator: torch.Generator) -> History:
    """Adversarial training: PGD with 5 steps in linf, eps up to 8/255.

    Args:
        model: trained in place.
        data: its training half is used.
        generator: draws order and starts.

    Returns:
        What happened.
    """
    method = pgd_training(eps=ramp(8 / 255), steps=5, generator=generator)
    return _fit(model, data, generator, 20, method["perturb"])


def noisy(model: nn.Module, data: Data, generator: torch.Generator) -> History:
    """Training on Gaussian noise of sigma 0.25, for a network that is to be smoothed.

    Args:
        model: trained in place.
        data: its training half is used.
        generator: draws order and noise.

    Returns:
        What happened.
    """
    return _fit(model, data, generator, 25, noise_training(0.25, generator=generator)["perturb"])


def covered(model: nn.Module, data: Data, generator: torch.Generator) -> History:
    """Training with rectangles on pictures, filled by an attacker; see :func:`covering`.

    Args:
        model: trained in place.
        data: its training half is used.
        generator: draws order, places and starts.

    Returns:
        What happened.
    """
    return _fit(model, data, generator, 25, covering(generator=generator))


def covering(
    *,
    shapes: tuple[tuple[int, int], ...] = ((8, 8), (4, 15), (15, 4)),
    share: float = 0.6,
    steps: int = 4,
    step_size: float = 0.3,
    generator: torch.Generator | None = None,
) -> Perturb:
    """Stick an adversarial rectangle on some of the pictures: defence against occlusion attacks.

    It lies anywhere; its pixels start at random and take a few steps up the loss. The paper also
    searches for the worst place, and covers every picture. Here the place is drawn, which costs
    less, and some pictures stay as they are, which keeps the clean accuracy up.

    Args:
        shapes: (height, width) in pixels; each batch has one of them.
        share: of the pictures in a batch that are covered.
        steps: gradient steps.
        step_size: of each, in units of a pixel's range.
        generator: draws shapes, places and starts; torch's global one if None.

    Returns:
        ``perturb`` for :func:`modelsec.training.fit`.

    References:
        Wu, Tong & Vorobeychik (2020), https://arxiv.org/abs/1909.09552.
    """

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        rest = x[round(share * len(x)) :]  # batches come shuffled
        x, y = x[: len(x) - len(rest)], y[: len(x) - len(rest)]
        draw = torch.rand(len(x), 2, generator=generator)
        which = int(torch.randint(len(shapes), (), generator=generator))
        (tall, wide), (height, width) = shapes[which], x.shape[-2:]
        top, left = (draw * torch.tensor([height - tall + 1, width - wide + 1])).long().T
        rows, columns = torch.arange(height) - top[:, None], torch.arange(width) - left[:, None]
        under = ((rows >= 0) & (rows < tall))[:, None, :, None]
        under = (under & ((columns >= 0) & (columns < wide))[:, None, None, :]).to(x.device)
        adv = torch.where(under, torch.rand(x.shape, generator=generator).to(x), x)
        with inference(model):
            for _ in range(steps):
                leaf = adv.clone().requires_grad_()
                (slope,) = torch.autograd.grad(cross_entropy(model(leaf), y).sum(), leaf)
                adv = torch.where(under, (adv + step_size * slope.sign()).clamp(0, 1), x)
        return torch.cat([adv, rest])

    return perturb


def _fit(
    model: nn.Module,
    data: Data,
    generator: torch.Generator,
    epochs: int,
    perturb: Perturb | None = None,
) -> History:
    return fit(
        model, data.x_train, data.y_train, epochs=epochs, batch_size=100, lr=decay(2e-3),
        perturb=perturb, generator=generator,
    )  # fmt: skip
