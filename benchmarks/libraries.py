"""The contestants: every library's FGSM and PGD behind one and the same call."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec import attacks
from modelsec.training import inference

Attack = Callable[[Tensor, Tensor], Tensor]
"""(x (N, C, H, W), y (N,)) -> adversarial images, on a model that is fixed."""


class Rule(NamedTuple):
    """What all contestants do: PGD from x, without a random start, or FGSM (steps = 0)."""

    norm: str
    eps: float
    steps: int

    @property
    def step_size(self) -> float:
        """Long enough to cross the ball and come back, as is modelsec's default."""
        return 2.5 * self.eps / max(self.steps, 1)


class Library(NamedTuple):
    """A contestant.

    Attributes:
        name: as the page shows it.
        package: the name of its distribution; "" for the floor.
        make: (model, rule) -> the attack; None where the library has no such attack.
    """

    name: str
    package: str
    make: Callable[[nn.Module, Rule], Attack | None]

    @property
    def version(self) -> str | None:
        """None if it is not installed."""
        return installed(self.package)


def floor(model: nn.Module, rule: Rule) -> Attack:
    """The least that so many gradients can cost: forward passes and gradients by the input."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        with inference(model):
            for _ in range(max(rule.steps, 1)):
                x = x.detach().requires_grad_()
                torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
        return x

    return run


def modelsec(model: nn.Module, rule: Rule, early_stop: bool = False) -> Attack:
    """Without early stop it does the same work as the others."""
    if not rule.steps:
        return lambda x, y: attacks.fgsm(model, x, y, eps=rule.eps, norm=rule.norm)
    return lambda x, y: attacks.pgd(
        model, x, y, eps=rule.eps, norm=rule.norm, steps=rule.steps, step_size=rule.step_size,
        random_start=False, early_stop=early_stop,
    )  # fmt: skip


def torchattacks(model: nn.Module, rule: Rule) -> Attack | None:
    import torchattacks as peer

    if not rule.steps:
        return peer.FGSM(model, eps=rule.eps) if rule.norm == "linf" else None
    kind = {"linf": peer.PGD, "l2": peer.PGDL2}[rule.norm]
    attack: Attack = kind(
        model, eps=rule.eps, alpha=rule.step_size, steps=rule.steps, random_start=False
    )
    return attack


def foolbox(model: nn.Module, rule: Rule) -> Attack:
    import foolbox as peer

    kinds = {
        "linf": (peer.attacks.LinfFastGradientAttack, peer.attacks.LinfPGD),
        "l2": (peer.attacks.L2FastGradientAttack, peer.attacks.L2PGD),
    }
    fast, projected = kinds[rule.norm]
    attack = (
        projected(abs_stepsize=rule.step_size, steps=rule.steps, random_start=False)
        if rule.steps
        else fast(random_start=False)
    )
    wrapped = peer.PyTorchModel(model, bounds=(0, 1))
    return lambda x, y: attack.run(wrapped, x, peer.criteria.Misclassification(y), epsilon=rule.eps)


def art(model: nn.Module, rule: Rule) -> Attack:
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    order = {"linf": np.inf, "l2": 2}[rule.norm]

    def run(x: Tensor, y: Tensor) -> Tensor:
        wrapped = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1),
            device_type="cpu",
        )  # fmt: skip
        rules = {"norm": order, "eps": rule.eps, "batch_size": len(x)}
        if rule.steps:
            attack = ProjectedGradientDescentPyTorch(
                wrapped, eps_step=rule.step_size, max_iter=rule.steps, verbose=False, **rules
            )
        else:
            attack = FastGradientMethod(wrapped, **rules)
        return torch.from_numpy(attack.generate(x.numpy(), F.one_hot(y, 10).numpy()))

    return run


def adv_lib(model: nn.Module, rule: Rule) -> Attack | None:
    """It has no FGSM, and no PGD in l2."""
    if not rule.steps or rule.norm != "linf":
        return None
    without_visdom()
    from adv_lib.attacks import pgd_linf

    return lambda x, y: pgd_linf(
        model, x, y, rule.eps, steps=rule.steps, random_init=False,
        absolute_step_size=rule.step_size,
    )  # fmt: skip


def installed(package: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def without_visdom() -> None:
    """Let adv-lib be imported where visdom is missing, which it needs for its plots only."""
    if "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None:
        stand_in = types.ModuleType("visdom")
        stand_in.__spec__ = importlib.util.spec_from_loader("visdom", loader=None)
        sys.modules["visdom"] = stand_in


FLOOR = Library("floor", "", floor)
OURS = Library("modelsec", "modelsec", modelsec)
PEERS = [
    Library("torchattacks", "torchattacks", torchattacks),
    Library("adv-lib", "adv-lib", adv_lib),
    Library("Foolbox", "foolbox", foolbox),
    Library("ART", "adversarial-robustness-toolbox", art),
]
