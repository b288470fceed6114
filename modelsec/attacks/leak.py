"""What an attack on membership finds, told as a ROC curve, at the shares of false alarms that matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modelsec.intervals import Proportion

__all__ = ["Leak"]


@dataclass(frozen=True, eq=False)
class Leak:
    """How well scores tell members from non-members.

    Attributes:
        scores: (N,) an attack's, higher for likelier members.
        member: (N,) bool, the truth.

    Raises:
        ValueError: if the two do not fit each other, a score is NaN, or all are (or none is) members.
    """

    scores: Tensor
    member: Tensor

    def __post_init__(self) -> None:
        if self.scores.dim() != 1 or self.scores.shape != self.member.shape:
            shapes = tuple(self.scores.shape), tuple(self.member.shape)
            raise ValueError(f"scores and member must both have shape (N,), got {shapes}")
        if bool(self.scores.isnan().any()):
            raise ValueError("scores hold NaN")
        if not 0 < int(self.member.sum()) < len(self.member):
            raise ValueError("member must name at least one member and one non-member")

    def roc(self) -> tuple[Tensor, Tensor]:
        """Share of false alarms and share of members found, for every threshold.

        Returns:
            (fpr, tpr), float64 (M,) each, rising from 0 to 1. Equal scores share one point: a
            threshold can't part them.
        """
        scores, order = self.scores.cpu().sort(descending=True)
        found = self.member.cpu()[order].double()
        last = torch.ones(len(scores), dtype=torch.bool, device="cpu")
        last[:-1] = scores[1:] != scores[:-1]
        points = torch.stack([1 - found, found]).cumsum(1)[:, last]
        points = torch.cat([torch.zeros(2, 1, dtype=torch.double, device="cpu"), points], 1)
        fpr, tpr = points / points[:, -1:]
        return fpr, tpr

    @property
    def auc(self) -> float:
        """Area under the ROC: how often a member scores higher than a non-member (a tie: half)."""
        fpr, tpr = self.roc()
        return float(torch.trapezoid(tpr, fpr))

    @property
    def advantage(self) -> float:
        """Largest difference of the two shares; the best guess is right in (1 + advantage) / 2.

        References:
            Yeom et al. (2018), https://arxiv.org/abs/1709.01604, definition 4.
        """
        fpr, tpr = self.roc()
        return float((tpr - fpr).max())

    def tpr_at(self, fpr: float) -> Proportion:
        """Share of the members found, where the share of false alarms is at most ``fpr``.

        Args:
            fpr: between 0 and 1.

        Returns:
            The share with its interval, n the number of members. The interval takes the threshold
            as given; it was set on the same non-members.

        Raises:
            ValueError: if so small a share is not even one of the non-members.
        """
        members = int(self.member.sum())
        others = len(self.member) - members
        if not 0 < fpr < 1 or fpr * others < 1 - 1e-9:
            raise ValueError(
                f"fpr must lie between 0 and 1 and be one non-member or more: {fpr} of {others} is "
                f"{fpr * others:.3g}"
            )
        false, true = self.roc()
        best = true[false <= fpr + 1e-12].max()
        return Proportion(round(float(best) * members), members)
