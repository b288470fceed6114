"""Audit section: how accuracy falls with the strength of FGSM and PGD."""

from __future__ import annotations

from functools import partial
from typing import Any

from modelsec.attacks import fgsm, pgd
from modelsec.audit.accuracy import clean_accuracy
from modelsec.audit.parts import Section, Subject, section
from modelsec.plot import security_curve
from modelsec.tables import Table
from modelsec.training import Evaluation, evaluate

__all__ = ["curves", "evasion"]

STEPS = 40
UNITS = {
    "linf": "eps (largest change of a pixel, pixels in [0, 1])",
    "l2": "eps (l2 length of the change, pixels in [0, 1])",
    "l1": "eps (sum of all changes, pixels in [0, 1])",
}


def curves(subject: Subject) -> dict[str, dict[float, Evaluation]]:
    """Accuracy under each attack at each radius, measured once an audit: name -> {eps: accuracy}."""
    if "curves" not in subject.cache:
        attacks: dict[str, Any] = {
            "FGSM": partial(fgsm, norm=subject.norm),
            f"PGD-{STEPS}": partial(
                pgd, norm=subject.norm, steps=STEPS, generator=subject.generator()
            ),
        }
        subject.cache["curves"] = {
            name: {
                eps: evaluate(subject.model, subject.x, subject.y, attack=partial(attack, eps=eps))
                for eps in subject.radii
            }
            for name, attack in attacks.items()
        }
    found: dict[str, dict[float, Evaluation]] = subject.cache["curves"]
    return found


@section(title="Evasion, gradient attacks", order=40)
def evasion(subject: Subject) -> Section:
    """The security curve under FGSM and PGD."""
    clean, found = clean_accuracy(subject), curves(subject)
    *_, strongest = found
    classes = len(subject.y.unique())
    half = [eps for eps, left in found[strongest].items() if left.value <= clean.value / 2]
    where = (
        f"half of the clean accuracy is lost by eps {half[0]:g}"
        if half
        else f"at eps {subject.radii[-1]:g}, the largest tested, more than half of the clean "
        "accuracy is left"
    )
    most = subject.radii[-1]
    beaten = found[strongest][most].interval[1] < 1 / classes
    figure = security_curve(found, xlabel=UNITS[subject.norm], clean=clean, chance=1 / classes)
    return Section(
        f"{strongest} in {subject.norm}: {where}. At eps {most:g} it leaves {found[strongest][most]}"
        + (", less than guessing." if beaten else "."),
        "warning" if beaten else "info",
        {
            f"{name.lower()}@{eps:g}": left
            for name, curve in found.items()
            for eps, left in curve.items()
        },
        Table(
            {"eps": f"{eps:g}"} | {name: str(curve[eps]) for name, curve in found.items()}
            for eps in subject.radii
        ),
        figure,
        f"Accuracy against eps from {subject.radii[0]:g} to {most:g} under "
        + " and ".join(
            f"{name} (at the end {curve[most].value:.3f})" for name, curve in found.items()
        )
        + f"; the clean accuracy is {clean.value:.3f}",
    )
