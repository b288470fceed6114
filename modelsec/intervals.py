"""Confidence intervals: no accuracy in this project is told without one."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

__all__ = ["Proportion", "wilson"]


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion.

    Unlike the textbook ``p +- 1.96 sqrt(p (1 - p) / n)`` it stays inside [0, 1] and does not
    shrink to nothing at p = 0 or p = 1, where robust accuracies often are.

    Args:
        hits: number of successes, 0 to ``n``.
        n: number of trials, at least 1.
        confidence: the coverage aimed at, between 0 and 1.

    Returns:
        The interval's ends ``(low, high)``.

    Raises:
        ValueError: if the counts or the confidence are out of range.

    References:
        Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"wilson needs 0 <= hits <= n and n >= 1, got hits={hits}, n={n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = hits / n
    centre = p + z * z / (2 * n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    # the ends are exact at p = 0 and p = 1; rounding must not move them past the point itself
    return min(p, max(0.0, (centre - half) / scale)), max(p, min(1.0, (centre + half) / scale))


@dataclass(frozen=True)
class Proportion:
    """A measured share, such as an accuracy: how many of how many, and what that tells.

    ``float(p)`` is the share itself, ``str(p)`` reads "0.953 [0.938, 0.964], n=1000".
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        wilson(self.hits, self.n)  # checks the counts

    @property
    def value(self) -> float:
        """The share, ``hits / n``."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% Wilson interval."""
        return wilson(self.hits, self.n)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}], n={self.n}"
