"""The capstone's match: five defended networks, and what the book's own attack does to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.attacks.gradient import pgd
from modelsec.data import mnist
from modelsec.models import drawing_from
from modelsec.repair.purification import Step, adapted, bit_depth, is_random, noise
from modelsec.zoo import load_model
from modelsec.zoo.results import study

__all__ = ["EPS", "N", "answers", "book_attack", "opponents"]

N, EPS = 50, 0.25
"""Images, and how far the match's attackers may move each pixel."""


def opponents() -> dict[str, nn.Module]:
    """The five defended networks of the match, in eval mode: some resist, some only hide."""
    plain = load_model("convnet")
    return {
        "rounded": nn.Sequential(bit_depth(3), plain).eval(),
        "coded": load_model("convnet_thermometer"),
        "distilled": load_model("convnet_distilled"),
        "noisy": nn.Sequential(noise(0.2), plain).eval(),
        "hardened": load_model("convnet_robust"),
    }


def answers(model: Callable[[Tensor], Tensor], x: Tensor, draws: int = 5) -> Tensor:
    """The class that a model gives each image: by the mean of its logits over some draws.

    Args:
        model: maps (n, ...) to logits (n, K); it may draw from torch's global generators.
        x: (n, ...).
        draws: how many. A model that answers the same twice is asked twice.

    Returns:
        (n,) classes.
    """
    several: list[Tensor] = []
    with torch.no_grad():
        for seed in range(draws):
            with drawing_from(torch.Generator().manual_seed(seed)):
                several.append(model(x))
            if seed == 1 and torch.equal(several[0], several[1]):
                break
    return torch.stack(several).mean(0).argmax(1)


def book_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """PGD with 40 steps on what an adaptive attacker sees of the model.

    Args:
        model: the defended network.
        x: (n, ...) images.
        y: (n,) labels.
        eps: the radius in linf.

    Returns:
        (n, ...) images.
    """
    view, random = model, False
    if any(isinstance(part, Step) for part in model.modules()):
        view, random = adapted(model, 5), is_random(model)
    # one lucky draw must not end the attack
    return pgd(view, x, y, eps=eps, steps=40, early_stop=not random)


def fooled(model: nn.Module, n: int = N, seed: int = 0) -> str:
    """Attack a network, and ask it about the result.

    Args:
        model: one of :func:`opponents`.
        n: test digits, from the first on.
        seed: of the attack's draws.

    Returns:
        A mark for each: "0" for one that the attack turned, "." for one that stands, "-" for one
        that was misread from the start.
    """
    digits = mnist()
    x, y = digits.x_test[:n], digits.y_test[:n]
    with drawing_from(torch.Generator().manual_seed(seed)):
        adv = book_attack(model, x, y, EPS)
    pairs = zip(answers(model, x) == y, answers(model, adv) == y, strict=True)
    return "".join("-" if not before else "." if after else "0" for before, after in pairs)


@study(
    "capstone_match",
    about="the book's PGD-40, made to measure, on the five networks of the capstone's match",
    n=N,
    seeds=(0,),
)
def capstone_match(seeds: tuple[int, ...]) -> dict[str, Any]:
    """All five, see :func:`fooled`."""
    return {"fooled": {name: fooled(model, seed=seeds[0]) for name, model in opponents().items()}}
