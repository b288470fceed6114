"""Adversarial training: make small the loss that an attacker has made large.

Every method here returns keywords of :func:`modelsec.training.fit`, and is used as
``fit(model, x, y, epochs=20, **trades(eps=ramp(0.3)))``. The attack is made anew on every batch,
against the model as it is at that moment. :mod:`modelsec.repair.fast_training` has cheaper ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from modelsec.attacks.common import check_inputs, check_norm, check_radius
from modelsec.attacks.gradient import pgd
from modelsec.losses import SampleLoss, cross_entropy
from modelsec.repair.schedules import Method, Radius, augmented, check_settings, radius_at
from modelsec.threat import ThreatModel, threat
from modelsec.training import Perturb, inference

__all__ = ["mart", "mart_loss", "pgd_training", "trades", "trades_loss"]

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(clean logits (N, K), attacked logits (N, K), labels (N,)) -> losses (N,)."""


@threat(
    ThreatModel(
        goal="repair",
        knowledge="white-box",
        norms=("linf", "l2", "l1"),
        stage="training",
        cost="steps gradients more for each step of training",
        source="https://arxiv.org/abs/1706.06083",
    )
)
def pgd_training(
    *,
    eps: Radius,
    steps: int = 7,
    norm: str = "linf",
    augment: Perturb | None = None,
    generator: torch.Generator | None = None,
) -> Method:
    """Adversarial training with PGD: minimise the mean of ``max_{|delta| <= eps} l(x + delta, y)``.

    The maximum is looked for by :func:`~modelsec.attacks.gradient.pgd` from a random start; its
    worst point is trained on.

    Args:
        eps: the radius trained for; often :func:`~modelsec.repair.schedules.ramp`.
        steps: gradient steps of each attack.
        norm: "linf", "l2" or "l1".
        augment: changes the clean images first, such as :func:`modelsec.augmentation.vary`.
        generator: draws the random starts; torch's global one if None.

    Returns:
        Keywords of :func:`modelsec.training.fit`.

    Raises:
        ValueError: for an unknown norm, or steps below 1.

    References:
        Madry et al. (2018), https://arxiv.org/abs/1706.06083, equation 2.1.
    """
    check_settings(norm, steps)

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        x = augmented(augment, model, x, y, progress)
        return pgd(
            model, x, y, eps=radius_at(eps, progress), steps=steps, norm=norm, early_stop=False,
            generator=generator,
        )  # fmt: skip

    return {"perturb": perturb}


@threat(
    ThreatModel(
        goal="repair",
        knowledge="white-box",
        norms=("linf", "l2", "l1"),
        stage="training",
        cost="steps + 1 gradients more for each step of training",
        source="https://arxiv.org/abs/1901.08573",
    )
)
def trades(
    *,
    eps: Radius,
    beta: float = 6.0,
    steps: int = 7,
    norm: str = "linf",
    augment: Perturb | None = None,
    generator: torch.Generator | None = None,
) -> Method:
    """TRADES: be right on the clean image, and give every image near it the same answer.

    The attack looks for the point whose answer differs most from the clean image's; labels play
    no part in it. Clean and attacked images are shown to the model as one batch of 2 N, so a
    BatchNorm layer sees both together.

    Args:
        eps: the radius trained for; often :func:`~modelsec.repair.schedules.ramp`.
        beta: weight of the second goal, 0 or more. It trades clean accuracy for robustness.
        steps: gradient steps of each attack.
        norm: "linf", "l2" or "l1".
        augment: changes the clean images first, such as :func:`modelsec.augmentation.vary`.
        generator: draws the attack's starts; torch's global one if None.

    Returns:
        Keywords of :func:`modelsec.training.fit`.

    Raises:
        ValueError: for an unknown norm, steps below 1, or a beta below 0.

    References:
        Zhang et al. (2019), https://arxiv.org/abs/1901.08573, algorithm 1 (whose weight is
        ``1 / lambda``).
    """
    check_settings(norm, steps, beta=beta)
    ball = check_norm(norm)

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        x, y = check_inputs(model, augmented(augment, model, x, y, progress), y)
        radius = radius_at(eps, progress)
        with inference(model), torch.no_grad():
            clean = model(x)
        # a little off x: at x itself the divergence is 0, its minimum, and has no slope
        begin = ball.sample(x, check_radius(radius, x, ball).clamp_max(1e-3), generator)
        adv = pgd(
            model, x, y, eps=radius, steps=steps, norm=norm, start=begin, early_stop=False,
            loss=lambda logits, _: _divergence(clean, logits),
        )  # fmt: skip
        return torch.cat([x, adv])

    return {"perturb": perturb, "loss": _on_pairs(partial(trades_loss, beta=beta))}


def trades_loss(clean: Tensor, attacked: Tensor, y: Tensor, beta: float = 6.0) -> Tensor:
    """``cross_entropy(clean, y) + beta * KL(softmax(clean) || softmax(attacked))``, per sample.

    Args:
        clean: (N, K) logits of the clean images.
        attacked: (N, K) logits of the attacked ones.
        y: (N,) labels.
        beta: weight of the divergence.

    Returns:
        (N,).

    References:
        Zhang et al. (2019), https://arxiv.org/abs/1901.08573.
    """
    return cross_entropy(clean, y) + beta * _divergence(clean, attacked)


@threat(
    ThreatModel(
        goal="repair",
        knowledge="white-box",
        norms=("linf", "l2", "l1"),
        stage="training",
        cost="steps + 1 gradients more for each step of training",
        source="https://openreview.net/forum?id=rklOg6EFwS",
    )
)
def mart(
    *,
    eps: Radius,
    beta: float = 5.0,
    steps: int = 7,
    norm: str = "linf",
    augment: Perturb | None = None,
    generator: torch.Generator | None = None,
) -> Method:
    """MART: :func:`pgd_training` that works hardest on images which are wrong without an attack.

    Args:
        eps: the radius trained for; often :func:`~modelsec.repair.schedules.ramp`.
        beta: weight of the divergence, 0 or more.
        steps: gradient steps of each attack.
        norm: "linf", "l2" or "l1".
        augment: changes the clean images first, such as :func:`modelsec.augmentation.vary`.
        generator: draws the random starts; torch's global one if None.

    Returns:
        Keywords of :func:`modelsec.training.fit`.

    Raises:
        ValueError: for an unknown norm, steps below 1, or a beta below 0.

    References:
        Wang et al. (2020), https://openreview.net/forum?id=rklOg6EFwS.
    """
    check_settings(norm, steps, beta=beta)

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        x = augmented(augment, model, x, y, progress)
        adv = pgd(
            model, x, y, eps=radius_at(eps, progress), steps=steps, norm=norm, early_stop=False,
            generator=generator,
        )  # fmt: skip
        return torch.cat([x, adv])

    return {"perturb": perturb, "loss": _on_pairs(partial(mart_loss, beta=beta))}


def mart_loss(clean: Tensor, attacked: Tensor, y: Tensor, beta: float = 5.0) -> Tensor:
    """``-log q_y - log(1 - max_{k != y} q_k) + beta * KL(p || q) * (1 - p_y)``, per sample.

    p and q are the probabilities of the clean and of the attacked image. The second term pushes
    the strongest wrong class down; the last factor counts most where the clean answer is wrong.

    Args:
        clean: (N, K) logits of the clean images.
        attacked: (N, K) logits of the attacked ones.
        y: (N,) labels.
        beta: weight of the divergence.

    Returns:
        (N,).

    References:
        Wang et al. (2020), https://openreview.net/forum?id=rklOg6EFwS.
    """
    rows = y.long()[:, None]
    rival = attacked.scatter(1, rows, -torch.inf).argmax(1, keepdim=True)
    # 1 - q_rival as a sum over the other classes: the difference from 1 would lose its digits
    rest = attacked.scatter(1, rival, -torch.inf).logsumexp(1) - attacked.logsumexp(1)
    wrong = 1 - clean.softmax(1).gather(1, rows)[:, 0]
    return cross_entropy(attacked, y) - rest + beta * _divergence(clean, attacked) * wrong


def _divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(attacked)), per sample: (N,)."""
    p, q = clean.log_softmax(1), attacked.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def _on_pairs(loss: PairLoss) -> SampleLoss:
    """The loss for ``fit`` after a batch of clean images and then the same ones attacked."""

    def on_pairs(logits: Tensor, y: Tensor) -> Tensor:
        clean, attacked = logits.chunk(2)
        return loss(clean, attacked, y)

    return on_pairs
