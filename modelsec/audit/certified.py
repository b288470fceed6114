"""Audit section: what is proven, beside what attacks leave. The truth lies between."""

from __future__ import annotations

from torch import nn

from modelsec.audit.evasion import STEPS, curves
from modelsec.audit.parts import Section, Subject, section
from modelsec.intervals import Proportion
from modelsec.repair import certified
from modelsec.tables import Table

__all__ = ["proven"]

IMAGES, FEW, RADII = 100, 15, 3


@section(title="What is proven", order=48)
def proven(subject: Subject) -> Section:
    """The share of answers that bounds prove right at the three smallest radii, and PGD's beside it.

    The better of IBP and CROWN for each image; 100 images at most, 15 if there are convolutions.

    Measures: ``certified@eps`` and ``left@eps``, the share that PGD leaves of the same images.
    """
    if subject.norm != "linf":
        return Section("The bounds are here for linf only.", "skipped")
    model = subject.model
    if not isinstance(model, nn.Module):
        return Section("Nothing can be proven of a model whose layers are not seen.", "skipped")
    n = FEW if any(isinstance(layer, nn.Conv2d) for layer in model.modules()) else IMAGES
    x, y = subject.x[:n], subject.y[:n]
    measures: dict[str, float | Proportion] = {}
    crossed = 0
    for eps in subject.radii[:RADII]:
        try:
            holds = certified(model, x, y, eps=eps).cpu()
        except (TypeError, ValueError) as error:
            return Section(f"Nothing can be proven here: {error}.", "skipped")
        stands = curves(subject)[f"PGD-{STEPS}"][eps].correct[: len(y)]
        measures[f"certified@{eps:g}"] = Proportion(int(holds.sum()), len(y))
        measures[f"left@{eps:g}"] = Proportion(int(stands.sum()), len(y))
        crossed += int((holds & ~stands).sum())
    smallest = subject.radii[0]
    return Section(
        f"At eps {smallest:g} the answer is proven right for {measures[f'certified@{smallest:g}']}; "
        f"PGD-{STEPS} leaves {measures[f'left@{smallest:g}']} of the same images."
        + (f" Warning: {crossed} proofs were refuted by PGD." if crossed else ""),
        "warning" if crossed else "info",
        measures,
        Table(
            {
                "eps": f"{eps:g}",
                "proven (at least)": str(measures[f"certified@{eps:g}"]),
                "left by PGD (at most)": str(measures[f"left@{eps:g}"]),
            }
            for eps in subject.radii[:RADII]
        ),
    )
