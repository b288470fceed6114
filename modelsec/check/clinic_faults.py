"""Patients of the bug clinic: faults that real projects had, each as one short function.

They are written anew, in this book's names, so that nothing but the fault itself is left. Each says
where it was reported and which probe of ``benchmarks/gauntlet.py`` looks for it today. Most were
mended long ago: a fault that was found and reported is a good mark for a project, not a bad one.

Nothing in the package calls these functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "FAULTS",
    "Fault",
    "bim",
    "deepfool",
    "fgsm",
    "l1_step",
    "l2_step",
    "make_fgsm",
    "median_distance",
    "robust_accuracy",
]


def l2_step(gradient: Tensor, size: float) -> Tensor:
    """A step of length ``size`` along the gradient, with a guard against division by zero.

    The guard stands under the root, and 1e-12 there is 1e-6 outside it: a gradient that is shorter
    than that no longer gives a step of the length that was asked for.
    https://github.com/cleverhans-lab/cleverhans/pull/1175 tells what that did to one attack: the
    accuracy it left was 26.1%, and 1.7% with the mend.

    Args:
        gradient: (N, ...).
        size: the step's l2 length.

    Returns:
        (N, ...) steps, one per sample.
    """
    square = gradient.flatten(1).square().sum(1).clamp_min(1e-12)
    return size * gradient / square.sqrt().view(-1, *[1] * (gradient.dim() - 1))


def l1_step(gradient: Tensor, size: float) -> Tensor:
    """A step of l1 length ``size`` that should raise the loss as much as it can.

    It divides by the l1 norm, as one divides by the l2 norm for a step in l2. The length is right,
    the direction is not the steepest one.
    https://github.com/Trusted-AI/adversarial-robustness-toolbox/issues/2381, and before it
    https://github.com/cleverhans-lab/cleverhans/issues/828.

    Args:
        gradient: (N, ...).
        size: the step's l1 length.

    Returns:
        (N, ...) steps, one per sample.
    """
    length = gradient.flatten(1).abs().sum(1)
    return size * gradient / length.view(-1, *[1] * (gradient.dim() - 1))


def bim(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """The basic iterative method in l-infinity.

    Every step is projected on the ball around the last iterate, so that many steps lead far away.
    https://github.com/Trusted-AI/adversarial-robustness-toolbox/issues/85

    Args:
        model: maps images (N, ...) to logits (N, K).
        x: (N, ...) in [0, 1].
        y: (N,) labels.
        eps: the radius.
        step_size: length of a step.
        steps: how many.

    Returns:
        (N, ...) perturbed images.
    """
    adv = x.clone()
    for _ in range(steps):
        leaf = adv.clone().requires_grad_()
        loss = F.cross_entropy(model(leaf), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        moved = adv + step_size * gradient.sign()
        adv = moved.clamp(min=adv - eps, max=adv + eps).clamp(0, 1)
    return adv


def make_fgsm(model: nn.Module, eps: float) -> Callable[[Tensor, Tensor], Tensor]:
    """An attack on one model, to be used again and again, for example while it is trained.

    The mode to go back to is noted when the attack is made, not when it is used.
    https://github.com/Harry24k/adversarial-attacks-pytorch/issues/21

    Args:
        model: maps images (N, ...) to logits (N, K).
        eps: the radius.

    Returns:
        The attack, (x, y) -> perturbed images.
    """
    was_training = model.training

    def attack(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        leaf = x.clone().requires_grad_()
        loss = F.cross_entropy(model(leaf), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        model.train(was_training)
        return (x + eps * gradient.sign()).clamp(0, 1)

    return attack


def fgsm(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The fast gradient sign method.

    The loss compares the model's answer with the model's own probabilities, not with the label. At
    this point that loss has no slope: what is left are rounding errors, and their signs.
    https://github.com/tensorflow/docs/pull/1041

    Args:
        model: maps images (N, ...) to logits (N, K).
        x: (N, ...) in [0, 1].
        y: (N,) labels.
        eps: the radius.

    Returns:
        (N, ...) perturbed images.
    """
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    label = logits.softmax(1).detach()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, label, reduction="sum"), leaf)
    return (x + eps * gradient.sign()).clamp(0, 1)


def deepfool(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, steps: int, overshoot: float
) -> Tensor:
    """DeepFool for two classes: step on the boundary of the linear model, then a little further.

    ``point`` and ``adv`` are one and the same tensor, and the steps are taken in place. So
    ``point - adv`` is zero, and nothing goes further.
    https://github.com/Trusted-AI/adversarial-robustness-toolbox/issues/219

    Args:
        model: maps (N, d) to logits (N, 2).
        x: (N, d).
        y: (N,) labels, which the model finds right.
        steps: how many.
        overshoot: how much further, as a share of the way.

    Returns:
        (N, d) points behind the boundary.
    """
    adv = x.clone()
    point = adv
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        logits = model(leaf)
        lead = logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])
        (gradient,) = torch.autograd.grad(lead.sum(), leaf)
        point -= lead.detach() * gradient / gradient.square().sum(1, keepdim=True)
    return adv + (1 + overshoot) * (point - adv)


def median_distance(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, adv: Tensor) -> float:
    """How far the model's decisions lie away, told by a minimum-norm attack.

    Where such an attack fails, many return the image itself. Here that counts as a distance of 0,
    as if the boundary ran through the image.
    https://github.com/Trusted-AI/adversarial-robustness-toolbox/issues/352

    Args:
        model: maps (N, ...) to logits (N, K).
        x: (N, ...) the clean images.
        y: (N,) labels.
        adv: (N, ...) what the attack returned.

    Returns:
        The median l2 distance.
    """
    distance: float = (adv - x).flatten(1).norm(dim=1).median().item()
    return distance


def robust_accuracy(right: list[Tensor]) -> float:
    """The accuracy under several attacks.

    It averages over the attacks. An attacker would take the best of them for each image.
    https://github.com/fra31/auto-attack/issues/45

    Args:
        right: for each attack (N,) bool, True where the model is still right.

    Returns:
        A share.
    """
    return sum(r.float().mean().item() for r in right) / len(right)


@dataclass(frozen=True)
class Fault:
    """One patient.

    Attributes:
        name: of its grader, ``check.<name>``.
        function: what is wrong.
        issue: where it was reported, as repository#number.
        url: the same as an address.
        probe: of the gauntlet, which looks for it; "" if the fault is none of an attack.
    """

    name: str
    function: Callable[..., Any]
    issue: str
    url: str
    probe: str


_GITHUB = "https://github.com/"
_ART = "Trusted-AI/adversarial-robustness-toolbox"


def _fault(name: str, function: Callable[..., Any], place: str, probe: str) -> Fault:
    repository, _, number = place.replace("/pull/", "/issues/").partition("/issues/")
    return Fault(name, function, f"{repository}#{number}", _GITHUB + place, probe)


FAULTS = (
    _fault("clinic_l2_step", l2_step, "cleverhans-lab/cleverhans/pull/1175", "confident_l2"),
    _fault("clinic_l1_step", l1_step, f"{_ART}/issues/2381", "strong_l1"),
    _fault("clinic_budget", bim, f"{_ART}/issues/85", "budget"),
    _fault("clinic_modes", make_fgsm, "Harry24k/adversarial-attacks-pytorch/issues/21", "modes"),
    _fault("clinic_labels", fgsm, "tensorflow/docs/pull/1041", "labels"),
    _fault("clinic_overshoot", deepfool, f"{_ART}/issues/219", "deepfool_crosses"),
    _fault("clinic_misses", median_distance, f"{_ART}/issues/352", "misses"),
    _fault("clinic_worst_case", robust_accuracy, "fra31/auto-attack/issues/45", ""),
)
"""All of them, in the order of the chapters."""
