"""The long results of the chapter on reliable evaluation: the full protocol on all test images."""

from __future__ import annotations

from typing import Any

import torch

from modelsec import data
from modelsec.attacks.auto import autoattack
from modelsec.attacks.gradient import pgd
from modelsec.training import evaluate
from modelsec.zoo import load_model
from modelsec.zoo.results import study

__all__ = ["protocol", "reliable_convnet", "reliable_net", "reliable_robust"]

N = 1000
MARKS = {-2: ".", -1: "x"}  # stands; wrong from the start


def protocol(model: str, eps: float, seed: int, n: int = N) -> dict[str, Any]:
    """PGD-40 alone and the full protocol, image by image, in linf.

    Args:
        model: its name in the zoo.
        eps: the radius.
        seed: for the starts and for Square.
        n: how many test images, from the first on.

    Returns:
        "eps"; "attempts", the protocol's rows; "warnings"; and two strings with a mark per image:
        "broken by" ("." stands, "x" wrong from the start, else the number of the attack, from 0)
        and "pgd" ("." right under PGD-40, "0" wrong).
    """
    digits, subject = data.mnist(), load_model(model)
    x, y = digits.x_test[:n], digits.y_test[:n]
    drawn = torch.Generator().manual_seed(seed)
    alone = evaluate(subject, pgd(subject, x, y, eps=eps, steps=40, generator=drawn), y)
    drawn = torch.Generator().manual_seed(seed)
    report = autoattack(subject, x, y, eps=eps, generator=drawn, progress=False)
    return {
        "eps": eps,
        "attempts": [
            {
                "attack": entry.name,
                "tried": entry.tried,
                "fooled": entry.fooled,
                "standing": entry.standing,
                "gradients": entry.gradients,
                "queries": entry.queries,
            }
            for entry in report.attempts
        ],
        "warnings": list(report.warnings),
        "broken by": "".join(MARKS.get(k, str(k)) for k in report.broken_by.tolist()),
        "pgd": "".join("." if right else "0" for right in alone.correct.tolist()),
    }


_ABOUT = "PGD-40 and the full protocol (100 steps, 9 targets, 5,000 queries) in linf on the zoo's "


@study("reliable_net", about=_ABOUT + "net, eps 0.1.", n=N, seeds=(0,))
def reliable_net(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`protocol`."""
    return protocol("net", 0.1, seeds[0])


@study("reliable_convnet", about=_ABOUT + "convnet, eps 0.1.", n=N, seeds=(0,))
def reliable_convnet(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`protocol`."""
    return protocol("convnet", 0.1, seeds[0])


@study("reliable_robust", about=_ABOUT + "convnet_robust, eps 0.3.", n=N, seeds=(0,))
def reliable_robust(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`protocol`."""
    return protocol("convnet_robust", 0.3, seeds[0])
