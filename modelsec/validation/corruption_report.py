"""Accuracy under common corruptions, by kind and severity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from modelsec.intervals import Proportion
from modelsec.tables import Table
from modelsec.training import Evaluation, Model, evaluate
from modelsec.validation.corruptions import (
    KINDS,
    SEVERITIES,
    check_images,
    check_kind,
    check_severity,
    corrupt,
)

__all__ = ["CorruptionReport", "corruption_report"]


@dataclass(frozen=True, repr=False)
class CorruptionReport:
    """Accuracy by kind and severity; a notebook shows it as a table.

    Attributes:
        clean: accuracy on the images as they are.
        accuracy: kind -> severity -> accuracy, all on the same images.
    """

    clean: Evaluation
    accuracy: dict[str, dict[int, Evaluation]]

    @property
    def mean(self) -> Proportion:
        """Mean corruption accuracy, over all kinds and severities measured.

        Its interval counts images, not pairs of image and corruption: what happens to one image
        under two corruptions is not independent. (A mean of several answers per image varies no
        more than one answer does, so Wilson's interval for n images is wide enough.)
        """
        return _mean(e for row in self.accuracy.values() for e in row.values())

    def of(self, kind: str) -> Proportion:
        """Mean accuracy of one kind over its severities; the interval counts images."""
        return _mean(self.accuracy[kind].values())

    @property
    def worst(self) -> str:
        """The kind with the lowest mean accuracy."""
        return min(self.accuracy, key=lambda kind: self.of(kind).value)

    def table(self) -> Table:
        """A row per kind: its family, the accuracy at each severity, and the mean with interval."""
        return Table(
            {"kind": kind, "family": KINDS[kind].family}
            | {f"severity {s}": f"{e.value:.3f}" for s, e in row.items()}
            | {"mean": str(self.of(kind))}
            for kind, row in self.accuracy.items()
        )

    def __repr__(self) -> str:
        return f"{self.table()!r}\n\nclean {self.clean}; mean under corruption {self.mean}"

    def _repr_html_(self) -> str:
        foot = f"<p>Clean: {self.clean}. Mean under corruption: {self.mean}.</p>"
        return self.table()._repr_html_() + foot


def corruption_report(
    model: Model,
    x: Tensor,
    y: Tensor,
    kinds: Iterable[str] | None = None,
    severities: Iterable[int] = SEVERITIES,
    *,
    seed: int = 0,
    batch_size: int = 500,
) -> CorruptionReport:
    """Accuracy under common corruptions.

    Every kind at every severity starts from the same seed, so that severities differ by their
    level and not by luck, and a kind's result does not depend on which others are measured.

    Args:
        model: maps (N, C, H, W) in [0, 1] to logits (N, K).
        x: (N, C, H, W) float in [0, 1].
        y: (N,) integer labels.
        kinds: names from :data:`~modelsec.validation.corruptions.KINDS`; all if None.
        severities: which of 1 to 5.
        seed: for the draws.
        batch_size: images per batch.

    Returns:
        The :class:`CorruptionReport`.

    Raises:
        TypeError: as :func:`~modelsec.validation.corruptions.corrupt`.
        ValueError: as :func:`~modelsec.validation.corruptions.corrupt`, or if no kind or no severity is asked for.
    """
    chosen, grades = list(KINDS if kinds is None else kinds), list(severities)
    if not chosen or not grades:
        raise ValueError(f"need a kind and a severity, got kinds={chosen}, severities={grades}")
    for kind in chosen:
        check_kind(kind)
    for severity in grades:
        check_severity(severity)
    check_images(x)

    def measure(kind: str, severity: int) -> Evaluation:
        generator = torch.Generator().manual_seed(seed)
        return evaluate(
            model,
            x,
            y,
            attack=lambda _, images, __: corrupt(images, kind, severity, generator),
            batch_size=batch_size,
        )

    return CorruptionReport(
        evaluate(model, x, y, batch_size=batch_size),
        {kind: {severity: measure(kind, severity) for severity in grades} for kind in chosen},
    )


def _mean(outcomes: Iterable[Proportion]) -> Proportion:
    listed = list(outcomes)
    n = listed[0].n
    return Proportion(round(sum(e.hits for e in listed) / len(listed)), n)
