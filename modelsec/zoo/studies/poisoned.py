"""The planted backdoors that two chapters share: the one that plants them, and the one that repairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from modelsec import data
from modelsec.attacks.clean_label import clean_label
from modelsec.attacks.poisoning import Poisoned, Stamp, badnets, patch
from modelsec.attacks.triggers import Warp, blended, wanet, warp
from modelsec.zoo import load_model
from modelsec.zoo.studies.poison import train

__all__ = ["ALPHA", "EPS", "STRENGTH", "TRIGGERS", "planted", "stamp", "target", "victim"]

ALPHA = 0.1
"""How much of the blended pattern is seen."""
STRENGTH = 1.5
"""Of the warp: mean displacement at its grid's points, in pixels."""
EPS = 0.3
"""How far the clean-label attack may change a pixel of its base images."""

TRIGGERS: dict[str, Callable[[torch.Generator], Stamp]] = {
    "patch": lambda generator: patch(),
    "blended": lambda generator: blended(alpha=ALPHA, generator=generator),
    "warp": lambda generator: warp(strength=STRENGTH, generator=generator),
    "clean label": lambda generator: patch(),
}
"""How each attack's trigger is made: the mark of the last one is a patch again, its labels are right."""

digits = cache(data.mnist)


def target(seed: int) -> int:
    """The class that the trigger means, another one for each seed.

    Args:
        seed: of the run.

    Returns:
        The class.
    """
    return (7 + 3 * seed) % 10


def stamp(name: str, seed: int) -> Stamp:
    """The trigger that :func:`planted` uses.

    Args:
        name: one of :data:`TRIGGERS`.
        seed: of the run; the patch is the same for all.

    Returns:
        The trigger.
    """
    return TRIGGERS[name](torch.Generator().manual_seed(100 + seed))


def planted(name: str, rate: float, seed: int) -> Poisoned:
    """The 4,000 training digits with one backdoor planted.

    Args:
        name: one of :data:`TRIGGERS`.
        rate: share of the training set; at most a tenth for clean labels, which need images of the
            target class.
        seed: chooses the target class, the trigger and the images.

    Returns:
        The poisoned data. Attack success is measured with ``stamp(name, seed)`` and ``target(seed)``.
    """
    x, y = digits().x_train, digits().y_train
    mark, called = stamp(name, seed), target(seed)
    generator = torch.Generator().manual_seed(seed)
    if name == "clean label":
        # the attacker's own network: of the same kind, from other first weights
        own = load_model("convnet")
        return clean_label(
            own, x, y, rate=rate, target=called, trigger=mark, eps=EPS, generator=generator
        )
    if isinstance(mark, Warp):
        return wanet(x, y, rate=rate, target=called, trigger=mark, generator=generator)
    return badnets(x, y, rate=rate, target=called, trigger=mark, generator=generator)


def victim(poisoned: Poisoned, seed: int) -> nn.Module:
    """The network of somebody who trusts these data: the book's ConvNet, eight epochs.

    Args:
        poisoned: training data.
        seed: for the first weights and the order of the data.

    Returns:
        The network, in eval mode.
    """
    return train(poisoned.x, poisoned.y, seed)
