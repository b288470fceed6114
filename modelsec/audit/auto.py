"""Audit section: what the standard protocol leaves, the worst case over attacks of four kinds."""

from __future__ import annotations

from modelsec.attacks.auto import autoattack
from modelsec.audit.parts import Section, Subject, section
from modelsec.intervals import Proportion

__all__ = ["protocol"]

IMAGES, QUERIES = 100, 1000


@section(title="The standard protocol", order=60)
def protocol(subject: Subject) -> Section:
    """AutoAttack's protocol at the middle radius, on 100 images at most.

    Square has 1000 queries for each image here, a fifth of what
    :func:`~modelsec.attacks.auto.autoattack` gives it; all else is as there.

    Measures: ``worst_case`` and, for each attack, the accuracy left after it and those before it.
    """
    if subject.norm == "l1":
        return Section("The protocol is here for linf and l2 only.", "skipped")
    eps = subject.radii[len(subject.radii) // 2]
    x, y = subject.x[:IMAGES], subject.y[:IMAGES]
    try:
        report = autoattack(
            subject.model, x, y, eps=eps, norm=subject.norm, queries=QUERIES, progress=False,
            generator=subject.generator(),
        )  # fmt: skip
    except ValueError as error:  # a model without gradients, say: that is a finding too
        return Section(f"The protocol could not be run: {error}", "warning")
    measures: dict[str, float | Proportion] = {"worst_case": report.accuracy}
    measures |= {attempt.name.split()[0].lower(): attempt.left for attempt in report.attempts}
    return Section(
        f"At eps {eps:g} in {subject.norm} the four attacks together leave {report.accuracy}, of "
        f"{report.clean} without an attack."
        + "".join(f" Warning: {doubt}." for doubt in report.warnings),
        "warning" if report.warnings else "info",
        measures,
        report.table,
    )
