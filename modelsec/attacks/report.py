"""What an evaluation by several attacks reports."""

from __future__ import annotations

import html
from dataclasses import dataclass

from torch import Tensor

from modelsec.intervals import Proportion
from modelsec.tables import Table

__all__ = ["Attempt", "Report"]


@dataclass(frozen=True)
class Attempt:
    """What one attack of the protocol did.

    Attributes:
        name: of the attack.
        tried: how many samples it was given: those that still stood.
        fooled: how many of them it broke.
        standing: how many stand after it, of n.
        n: all samples.
        gradients: how often a sample's gradient was computed, all samples together.
        queries: how often a sample was shown to the model without a gradient.
        finished: False if it was interrupted.
    """

    name: str
    tried: int
    fooled: int
    standing: int
    n: int
    gradients: int
    queries: int
    finished: bool = True

    @property
    def left(self) -> Proportion:
        """The accuracy left after this attack and those before it."""
        return Proportion(self.standing, self.n)


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`~modelsec.attacks.auto.autoattack` found.

    Attributes:
        adv: (N, ...) for each sample the point that broke it; x where it was wrong from the start,
            or stands.
        stands: (N,) bool, True where every attack failed.
        broken_by: (N,) int, the number of the attempt that broke the sample; -1 where it was wrong
            from the start, -2 where it stands.
        attempts: one entry per attack, in the order of their turn.
        warnings: reasons to doubt the numbers, in words; empty if none was found.
        norm: of the perturbations.
        eps: their size, as it was given.
        interrupted: True if it was stopped before the end: then more might be broken.
    """

    adv: Tensor
    stands: Tensor
    broken_by: Tensor
    attempts: tuple[Attempt, ...]
    warnings: tuple[str, ...]
    norm: str
    eps: float | Tensor
    interrupted: bool = False

    @property
    def clean(self) -> Proportion:
        """The accuracy before any attack. ValueError for an empty batch."""
        return Proportion(int((self.broken_by != -1).sum()), len(self.stands))

    @property
    def accuracy(self) -> Proportion:
        """The accuracy left: samples that no attack broke. ValueError for an empty batch."""
        return Proportion(int(self.stands.sum()), len(self.stands))

    @property
    def table(self) -> Table:
        """One row per attack."""
        return Table(
            {
                "attack": entry.name + ("" if entry.finished else " (interrupted)"),
                "tried on": entry.tried,
                "broke": entry.fooled,
                "accuracy left": str(entry.left),
                "gradients": f"{entry.gradients:,}",
                "queries": f"{entry.queries:,}",
            }
            for entry in self.attempts
        )

    @property
    def summary(self) -> str:
        """One sentence."""
        if not len(self.stands):
            return "No samples were attacked."
        radius = f"{self.eps:g}" if isinstance(self.eps, float | int) else "one per sample"
        text = f"{self.norm}, eps {radius}: clean accuracy {self.clean}, left {self.accuracy}"
        return text + (" at most (interrupted)." if self.interrupted else ".")

    def __repr__(self) -> str:
        doubts = [f"Warning: {doubt}" for doubt in self.warnings]
        return "\n\n".join([self.summary, repr(self.table), *doubts])

    def _repr_html_(self) -> str:
        doubts = "".join(f"<li>{html.escape(doubt)}</li>" for doubt in self.warnings)
        return f"<p>{html.escape(self.summary)}</p>{self.table._repr_html_()}" + (
            f"<p>Warnings:</p><ul>{doubts}</ul>" if doubts else ""
        )
