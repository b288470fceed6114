"""Audit section: how far the nearest error lies, as a distribution over the test images."""

from __future__ import annotations

import torch
from torch import Tensor

from modelsec.attacks.minimum_norm import fmn
from modelsec.audit.evasion import UNITS
from modelsec.audit.parts import Section, Subject, section
from modelsec.intervals import Proportion, median_interval
from modelsec.plot import distance_curve
from modelsec.tables import Table

__all__ = ["distance"]

IMAGES, STEPS = 200, 60


@section(title="Distance to the nearest error", order=45)
def distance(subject: Subject) -> Section:
    """Median and curve of the distances that FMN finds, on 200 images at most."""
    if subject.norm == "l1":
        return Section("FMN is here for linf and l2 only.", "skipped")
    x, y = subject.x[:IMAGES], subject.y[:IMAGES]
    near = fmn(subject.model, x, y, norm=subject.norm, steps=STEPS).distance.cpu()
    n, missed = len(near), int(near.isinf().sum())
    middle = float(near.double().sort().values[(n - 1) // 2])
    measures: dict[str, float | Proportion] = {"found": Proportion(n - missed, n)}
    told = "no error on half of them or more" if middle == torch.inf else f"median {middle:.3g}"
    if middle < torch.inf:
        measures["median"] = middle
    if n >= 6 and middle < torch.inf:
        low, high = median_interval(near)
        measures |= {"median_low": low} | ({"median_high": high} if high < torch.inf else {})
        told += f" (95% interval {low:.3g} to {high:.3g})"
    misses = f", {missed} without an error found" if missed else ""
    return Section(
        f"FMN-{STEPS} in {subject.norm}, the nearest error it finds: {told}, n={n}{misses}. "
        "The true distances are at most these.",
        "info",
        measures,
        Table(
            {"eps": f"{eps:g}", "right beyond eps": str(_left(near, eps))}
            for eps in _radii(subject)
        ),
        distance_curve({f"FMN-{STEPS}": near}, xlabel=UNITS[subject.norm]),
        f"The share of images whose nearest error found lies farther than eps: it falls from "
        f"{_left(near, 0).value:.3f} at 0 to {_left(near, subject.radii[-1]).value:.3f} at "
        f"{subject.radii[-1]:g}",
    )


def _radii(subject: Subject) -> list[float]:
    return [0.0, *subject.radii]


def _left(near: Tensor, eps: float) -> Proportion:
    """The images on which no error was found within eps: an upper bound on the accuracy there."""
    return Proportion(int((near > eps).sum()), len(near))
