"""May the model say "I don't know"? Whom it then refers, and how often it is wrong about the rest.

References:
    Geifman & El-Yaniv (2017), Selective classification for deep neural networks,
    https://arxiv.org/abs/1705.08500.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelsec.intervals import Proportion

__all__ = ["Referring", "RiskCoverage", "risk_coverage"]


@dataclass(frozen=True)
class RiskCoverage:
    """How many cases are decided and how many of them wrongly, for every threshold.

    Attributes:
        threshold: (M,) confidences, falling: cases at or above are decided, others are referred.
        decided: (M,) int64, how many cases that is.
        wrong: (M,) int64, how many of them are wrong.
    """

    threshold: Tensor
    decided: Tensor
    wrong: Tensor

    @property
    def coverage(self) -> Tensor:
        """(M,) float64 share of the cases that is decided, rising to 1."""
        return self.decided.double() / self.decided[-1]

    @property
    def risk(self) -> Tensor:
        """(M,) float64 share of the decided cases that is wrong."""
        return self.wrong.double() / self.decided

    @property
    def area(self) -> float:
        """Mean risk over all numbers of decided cases; small if the surest cases are right.

        Cases of equal confidence come together, so their risk counts as often as they are many.
        """
        steps = self.decided.diff(prepend=self.decided.new_zeros(1))
        return float((self.risk * steps).sum() / self.decided[-1])

    def at(self, threshold: float) -> tuple[Proportion, Proportion | None]:
        """What one threshold does.

        Args:
            threshold: cases with a confidence of so much or more are decided.

        Returns:
            The share that is referred, and the share of the decided that is wrong; None in its
            place if nothing is decided.
        """
        n, k = int(self.decided[-1]), int((self.threshold >= threshold).sum())
        if not k:
            return Proportion(n, n), None
        decided, wrong = int(self.decided[k - 1]), int(self.wrong[k - 1])
        return Proportion(n - decided, n), Proportion(wrong, decided)


def risk_coverage(confidence: Tensor, right: Tensor) -> RiskCoverage:
    """Sort cases by confidence and count.

    Args:
        confidence: (N,) higher for surer; any scale.
        right: (N,) bool, whether the answer was right.

    Returns:
        The :class:`RiskCoverage`, on the CPU. Equal confidences share one threshold: none can part
        them.

    Raises:
        ValueError: for no case, lengths that differ, or NaN.
        TypeError: if right is not bool.
    """
    if confidence.dim() != 1 or confidence.shape != right.shape or not len(right):
        shapes = tuple(confidence.shape), tuple(right.shape)
        raise ValueError(f"confidence and right must both be (N,), N at least 1, got {shapes}")
    if right.dtype != torch.bool:
        raise TypeError(f"right must be bool, got {right.dtype}")
    if bool(confidence.isnan().any()):
        raise ValueError("confidence holds NaN")
    value, order = confidence.detach().cpu().sort(descending=True, stable=True)
    wrong = (~right.cpu()[order]).long().cumsum(0)
    last = torch.ones(len(value), dtype=torch.bool, device="cpu")
    last[:-1] = value[1:] != value[:-1]
    decided = torch.arange(1, len(value) + 1, device="cpu")
    return RiskCoverage(value[last], decided[last], wrong[last])


class Referring(nn.Module):
    """A model that refers cases it is not sure of: "refer" becomes one more class.

    Called, it gives logits (N, K + 1). The last is the largest exactly where the model's largest
    probability is below the threshold. So whatever attacks a classifier can attack the referral.

    Args:
        model: maps x to logits (N, K), K at least 2.
        threshold: the least probability with which the model may decide, between 0 and 1.

    Raises:
        ValueError: for a threshold out of range.
    """

    def __init__(self, model: nn.Module, threshold: float) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
        self.model, self.threshold = model, threshold

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (N, ...). Returns logits (N, K + 1), the last for "refer"."""
        logits: Tensor = self.model(x)
        # log(p / (1 - p)) of the leader is its logit minus the others' log-sum-exp
        leader = logits.argmax(1, keepdim=True)
        others = logits.scatter(1, leader, -math.inf).logsumexp(1, keepdim=True)
        return torch.cat([logits, others + math.log(self.threshold / (1 - self.threshold))], 1)
