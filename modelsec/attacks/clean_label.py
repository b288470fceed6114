"""Poison whose labels are right: nobody who looks at the samples one by one finds a wrong one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from modelsec.attacks.common import check_counts, check_norm, check_radius
from modelsec.attacks.gradient import pgd
from modelsec.attacks.poisoning import Model, Poisoned, Stamp, check_pixels, check_samples
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["clean_label", "gradient_matching"]


@threat(
    ThreatModel(
        goal="poisoning",
        knowledge="transfer",
        norms=("linf", "l2"),
        stage="training",
        cost="changing a share of one class; one PGD for each image",
        source="https://arxiv.org/abs/1912.02771",
    )
)
def clean_label(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    rate: float,
    target: int,
    trigger: Stamp,
    eps: float,
    norm: str = "linf",
    steps: int = 40,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Plant a backdoor with images of the target class itself: every label stays right.

    Stamped as they are, these images teach nothing: the network reads them by their digit and has
    no use for the mark. So the attacker makes the digit hard to read, by PGD against a network of
    their own; then the mark is the easiest thing left that says which class it is.

    Args:
        model: the attacker's own network, which the victim's will resemble: maps (N, C, H, W) to
            logits (N, K).
        x: (N, C, H, W) float in [0, 1], the clean training images.
        y: (N,) integer labels.
        rate: share of all N samples that is poisoned: exactly ``round(rate * N)``, all of the
            target class.
        target: the class that the trigger shall mean.
        trigger: the mark, put on after the perturbation.
        eps: radius of the perturbation, in units of a pixel's range; 0 leaves it out.
        norm: "linf", "l2" or "l1".
        steps: of PGD.
        generator: draws the images and the random starts; torch's global one if None.

    Returns:
        A :class:`~modelsec.attacks.poisoning.Poisoned` copy whose ``y`` are the given labels.

    Raises:
        TypeError: if x is not floating point or y not integer.
        ValueError: if shapes don't fit, pixels lie outside [0, 1], rate outside 0 to 1, eps is
            negative, or the class has fewer images than asked for.

    References:
        Turner, Tsipras & Madry (2019), https://arxiv.org/abs/1912.02771, the method with
        adversarial perturbations.
    """
    check_samples(x, y)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is a share of the training set, 0 to 1, got {rate}")
    chosen = _draw(y, target, round(rate * len(x)), generator)
    images, labels = x.detach().clone(), y.long().clone()
    hard = pgd(
        model, images[chosen], labels[chosen], eps=eps, norm=norm, steps=steps, early_stop=False,
        generator=generator,
    )  # fmt: skip
    images[chosen] = trigger.stamp(hard)
    mask = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    mask[chosen] = True
    return Poisoned(images, labels, mask)


@threat(
    ThreatModel(
        goal="poisoning",
        knowledge="transfer",
        norms=("linf",),
        stage="training",
        cost="restarts x steps second derivatives",
        source="https://arxiv.org/abs/2009.02276",
    )
)
def gradient_matching(
    model: nn.Module | Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    victim: Tensor,
    target: int,
    budget: int,
    eps: float,
    steps: int = 250,
    restarts: int = 1,
    step_size: float = 0.1,
    generator: torch.Generator | None = None,
) -> Poisoned:
    """Poison for one image: training on a few changed images of a class misclassifies the victim.

    The poisons x_i + delta_i keep their labels, and no delta_i exceeds eps. They are chosen so that a
    training step on them is, in its direction, a step on the victim with the false label:

        B(delta) = 1 - cos( grad L(victim, target), sum_i grad L(x_i + delta_i, y_i) ),

    gradients taken by the weights of the attacker's network. Adam descends B along the sign of its
    gradient by the pixels, which is a second derivative of the network.

    Args:
        model: the attacker's own network, or several: B is then averaged over them, and the poison
            depends less on the weights of any. Maps (N, C, H, W) to logits (N, K).
        x: (N, C, H, W) float in [0, 1], the clean training images.
        y: (N,) integer labels.
        victim: (C, H, W) the image to be misclassified; it is in no one's training data.
        target: the class that it shall be given; the poisons are images of this class.
        budget: how many images to poison.
        eps: largest change of a pixel, in units of its range.
        steps: of Adam for each restart.
        restarts: begin again from other random changes; the lowest B of all counts.
        step_size: of Adam in units of eps; it falls to a tenth three times on the way.
        generator: draws the images and the starts; torch's global one if None.

    Returns:
        A :class:`~modelsec.attacks.poisoning.Poisoned` copy whose ``y`` are the given labels.

    Raises:
        TypeError: if x or victim is not floating point, or y not integer.
        ValueError: if shapes don't fit, pixels lie outside [0, 1], counts are below 1, eps is
            negative, there is no model, or the class has fewer than ``budget`` images.

    References:
        Geiping et al. (2021), Witches' brew, https://arxiv.org/abs/2009.02276, algorithm 1.
    """
    check_samples(x, y)
    check_pixels("victim", victim)
    if victim.shape != x.shape[1:]:
        raise ValueError(f"victim must have shape {tuple(x.shape[1:])}, got {tuple(victim.shape)}")
    check_counts(budget=budget, steps=steps, restarts=restarts)
    models = [model] if isinstance(model, nn.Module) else list(model)
    if not models:
        raise ValueError("model must be a network, or a list of at least one")
    chosen = _draw(y, target, budget, generator)
    images, labels = x.detach().clone(), y.long().clone()
    base = images[chosen]
    ball = check_norm("linf", "linf")
    radius = check_radius(eps, base, ball)
    region = ball.region(base, radius)
    wanted = torch.full((1,), target, dtype=torch.long, device=x.device)
    goals = [_weight_gradient(net, victim.detach()[None], wanted) for net in models]

    best, lowest = base.clone(), float("inf")
    for _ in range(restarts):
        poisons = ball.sample(base, radius, generator)
        adam = torch.optim.Adam([poisons], lr=step_size * eps)
        for step in range(steps):
            poisons.requires_grad_()
            losses = [
                _mismatch(goal, _weight_gradient(net, poisons, labels[chosen], graph=True))
                for net, goal in zip(models, goals, strict=True)
            ]
            loss = torch.stack(losses).mean()
            (gradient,) = torch.autograd.grad(loss, poisons)
            poisons.requires_grad_(False)
            if (value := loss.item()) < lowest:
                lowest, best = value, poisons.clone()
            for group in adam.param_groups:
                group["lr"] = step_size * eps * 0.1 ** sum(step >= steps * p for p in _FALLS)
            poisons.grad = gradient.sign()
            adam.step()
            ball.confine_(poisons, region)
    images[chosen] = best
    mask = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    mask[chosen] = True
    return Poisoned(images, labels, mask)


_FALLS = (3 / 8, 5 / 8, 7 / 8)
"""When the step size falls, as shares of all steps: as in the authors' code."""


def _weight_gradient(model: nn.Module, x: Tensor, y: Tensor, *, graph: bool = False) -> Tensor:
    """Gradient of the summed cross-entropy by all weights, as one vector; the weights are copies."""
    weights = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    with inference(model), torch.enable_grad():
        loss = F.cross_entropy(functional_call(model, weights, (x,)), y, reduction="sum")
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=graph)
    return torch.cat([part.flatten() for part in found])


def _mismatch(goal: Tensor, gradient: Tensor) -> Tensor:
    """1 - cosine: 0 where the two point the same way."""
    return 1 - F.cosine_similarity(goal, gradient, dim=0)


def _draw(y: Tensor, target: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Indices of so many samples of a class; ValueError if it has not as many."""
    members = (y == target).nonzero()[:, 0]
    if count > len(members):
        raise ValueError(
            f"{count} images of class {target} are to be poisoned, but there are {len(members)}"
        )
    home = "cpu" if generator is None else generator.device
    order = torch.randperm(len(members), generator=generator, device=home).to(y.device)
    return members[order[:count]]
