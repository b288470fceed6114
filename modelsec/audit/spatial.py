"""Audit section: what is left when somebody may turn and shift the image and choose how."""

from __future__ import annotations

from modelsec.attacks.common import Iterate
from modelsec.attacks.spatial import moves
from modelsec.attacks.spatial import spatial as attack
from modelsec.audit.parts import Section, Subject, section
from modelsec.intervals import Proportion
from modelsec.tables import Table
from modelsec.training import evaluate

__all__ = ["spatial"]

IMAGES, GRID = 200, (7, 3)
RANGES = ((15.0, 0.05), (30.0, 0.1))  # degrees either way; share of the side


@section(title="Turned and shifted", order=47)
def spatial(subject: Subject) -> Section:
    """The worst of 62 turns and shifts, on 200 images at most, for a mild range and a wider one.

    Measures: ``turned@15`` and ``turned@30``, the accuracies under the worst move; and
    ``any@30``, the mean over the moves of the wider range, as if nobody chose.
    """
    x, y = subject.x[:IMAGES], subject.y[:IMAGES]
    clean = evaluate(subject.model, x, y)
    measures: dict[str, float | Proportion] = {}
    rows = []
    for angle, shift in RANGES:
        right: list[float] = []

        def count(point: Iterate, right: list[float] = right) -> None:
            if point.step:
                right.append(float((point.loss < 0).double().mean()))

        adv = attack(
            subject.model, x, y, angle=angle, shift=shift, grid=GRID, early_stop=False,
            callback=count,
        )  # fmt: skip
        worst, mean = evaluate(subject.model, adv, y), sum(right) / len(right)
        measures[f"turned@{angle:g}"], measures[f"any@{angle:g}"] = worst, mean
        rows.append((angle, shift, worst, mean))
    angle, shift, worst, mean = rows[-1]
    return Section(
        f"The worst of {len(moves(grid=GRID))} turns up to {angle:g} degrees and shifts up to "
        f"{shift:.0%} of the side leaves {worst}; without any {clean.value:.3f} are right, over all "
        f"of these moves {mean:.3f}. No norm of a perturbation limits such a change.",
        "info",
        measures,
        Table(
            {
                "turned up to": f"{angle:g} degrees",
                "shifted up to": f"{shift:.0%} of the side",
                "worst move": str(worst),
                "mean over the moves": f"{mean:.3f}",
            }
            for angle, shift, worst, mean in rows
        ),
    )
