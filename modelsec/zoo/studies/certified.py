"""The long results of the chapter on certified robustness: many votes, and many rows of bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modelsec import data
from modelsec.attacks.auto import autoattack
from modelsec.attacks.gradient import pgd
from modelsec.repair import ABSTAIN, Smoothed, certified, smooth
from modelsec.training import evaluate
from modelsec.zoo import load_model
from modelsec.zoo.results import study

__all__ = [
    "attacked",
    "certified_ibp",
    "certified_robust",
    "certified_sigma25",
    "certified_sigma50",
    "certified_sigma100",
    "votes",
]

N, ATTACKED, FIRST = 200, 50, 12
ROBUST, PROTOCOL = 30, 100
RADII = tuple(0.25 * k for k in range(15))  # certified accuracy costs nothing more per radius


def votes(name: str, sigma: float, seed: int, n: int = N) -> dict[str, Any]:
    """Certified accuracy of a smoothed model of the zoo, and what an attack leaves of it.

    Args:
        name: of the base model.
        sigma: of the noise.
        seed: for the noise and the attack.
        n: how many test images, from the first on.

    Returns:
        "base": the base model's accuracy; "abstains"; "certified": radius -> share; "left": radius
        -> the share of the first 50 on which :func:`attacked` found no error; "crossed": how often
        it found one within the certified radius; "first": the radii of the first 12 images, negative
        where the answer is wrong.
    """
    digits = data.mnist()
    x, y = digits.x_test[:n], digits.y_test[:n]
    smoothed = smooth(load_model(name), sigma)
    drawn = torch.Generator().manual_seed(seed)
    proven = smoothed.certify(x, n=10_000, generator=drawn)
    signed = torch.where(proven.prediction == y, proven.radius, -proven.radius)
    some = x[:ATTACKED], y[:ATTACKED]
    radii = [0.25, 0.5, 1.0, 1.5, 2.0, 3.0]
    stands = attacked(smoothed, *some, radii, torch.Generator().manual_seed(seed + 1))
    crossed = sum(
        int((~mask & (signed[:ATTACKED] > radius)).sum())
        for radius, mask in zip([0.0, *radii], stands, strict=True)
    )
    return {
        "sigma": sigma,
        "base": evaluate(smoothed.model, x, y).value,
        "abstains": (proven.prediction == ABSTAIN).double().mean().item(),
        "certified": {f"{r:g}": proven.accuracy(y, r).value for r in RADII},
        "left": {
            f"{radius:g}": mask.double().mean().item()
            for radius, mask in zip([0.0, *radii], stands, strict=True)
        },
        "crossed": crossed,
        "first": [round(value, 3) for value in signed[:FIRST].tolist()],
    }


def attacked(
    smoothed: Smoothed, x: Tensor, y: Tensor, radii: list[float], drawn: torch.Generator
) -> list[Tensor]:
    """PGD on the surrogate, judged by predict on fresh noise, at rising radii.

    Args:
        smoothed: the model.
        x: (N, ...) images.
        y: (N,) labels.
        radii: in l2, rising.
        drawn: draws all noise.

    Returns:
        For radius 0 and each of those: (N,) bool, False where an answer was found, at that radius
        or a smaller one, that is not the label and no abstention.
    """

    def wrong(points: Tensor, labels: Tensor) -> Tensor:
        said = smoothed.predict(points, generator=drawn)
        return (said != labels) & (said != ABSTAIN)

    stands = [~wrong(x, y)]
    stand_in = smoothed.surrogate(x, draws=16, generator=drawn)
    for radius in radii:
        left, rows = stands[-1].clone(), stands[-1].nonzero()[:, 0]
        if len(rows):
            adv = pgd(
                stand_in, x[rows], y[rows], eps=radius, norm="l2", steps=20, early_stop=False,
                generator=drawn,
            )  # fmt: skip
            left[rows] = ~wrong(adv, y[rows])
        stands.append(left)
    return stands


_VOTES = "Smoothing, n = 10,000, alpha = 0.001: certified accuracy, and what PGD leaves, sigma "


@study("certified_sigma25", about=_VOTES + "0.25.", n=N, seeds=(0,))
def certified_sigma25(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`votes`."""
    return votes("convnet_sigma25", 0.25, seeds[0])


@study("certified_sigma50", about=_VOTES + "0.5.", n=N, seeds=(0,))
def certified_sigma50(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`votes`."""
    return votes("convnet_sigma50", 0.5, seeds[0])


@study("certified_sigma100", about=_VOTES + "1.", n=N, seeds=(0,))
def certified_sigma100(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`votes`."""
    return votes("convnet_sigma100", 1.0, seeds[0])


@study(
    "certified_robust",
    about="What CROWN and IBP prove of the zoo's convnet_robust, image by image.",
    n=ROBUST,
    seeds=(0,),
)
def certified_robust(seeds: tuple[int, ...]) -> dict[str, Any]:
    """The certified share at each radius, and a mark per image: "p" is proven, "." not.

    Args:
        seeds: nothing is drawn; kept because a study takes them.

    Returns:
        method -> radius -> {"share", "marks"}.
    """
    digits, model = data.mnist(), load_model("convnet_robust")
    x, y = digits.x_test[:ROBUST], digits.y_test[:ROBUST]
    result: dict[str, Any] = {}
    for method in ("ibp", "both"):
        result[method] = {}
        for eps in (0.0, 0.1, 0.15, 0.2, 0.25, 0.3):
            holds = certified(model, x, y, eps=eps, method=method)
            marks = "".join("p" if proven else "." for proven in holds.tolist())
            result[method][f"{eps:g}"] = {"share": holds.double().mean().item(), "marks": marks}
    return result


@study(
    "certified_ibp",
    about="The full protocol on the zoo's convnet_ibp, beside what IBP proves of the same images.",
    n=PROTOCOL,
    seeds=(0,),
)
def certified_ibp(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Proof and protocol on the same images.

    Args:
        seeds: one, for the attacks.

    Returns:
        "eps", "certified", "left", and "crossed", how many proofs the protocol refuted.
    """
    digits, model = data.mnist(), load_model("convnet_ibp")
    x, y = digits.x_test[:PROTOCOL], digits.y_test[:PROTOCOL]
    eps = 0.1
    holds = certified(model, x, y, eps=eps, method="ibp")
    drawn = torch.Generator().manual_seed(seeds[0])
    report = autoattack(model, x, y, eps=eps, queries=1000, generator=drawn, progress=False)
    return {
        "eps": eps,
        "certified": holds.double().mean().item(),
        "left": report.accuracy.value,
        "crossed": int((holds & ~report.stands).sum()),
    }
