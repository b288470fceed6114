"""Confidence intervals: no accuracy in this project is told without one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

__all__ = ["Proportion", "bootstrap", "median_interval", "wilson"]


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


def bootstrap(
    *samples: Any,
    statistic: Callable[..., float],
    paired: bool = False,
    method: Literal["percentile", "BCa"] = "percentile",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """A bootstrap interval, for any number that is computed from samples.

    The data are drawn again, with replacement and as many as there were, and the statistic is
    computed again, ``resamples`` times. "percentile" takes the middle 95% of the results. "BCa"
    moves the two ends to correct for bias and skewness; it computes the statistic once more
    without each of the values. SciPy does the work.

    Args:
        *samples: one or more arrays (n,), or tensors on the CPU.
        statistic: takes arrays like ``samples`` and returns one number.
        paired: draw the same rows of all samples, such as a confidence and its outcome; otherwise
            each sample is drawn by itself.
        method: "percentile" or "BCa".
        confidence: the coverage aimed at, between 0 and 1.
        resamples: how often to draw, at least 1.
        seed: for the draws.

    Returns:
        The interval's ends ``(low, high)``.

    Raises:
        ValueError: for no sample, one that is not (n,) with n >= 2, paired ones that differ in
            length, an unknown method, resamples or a confidence out of range; or if the statistic
            varies too little between resamples to give an interval.

    References:
        Efron (1987), Better bootstrap confidence intervals.
    """
    arrays = [np.asarray(sample) for sample in samples]
    shapes = [array.shape for array in arrays]
    if not all(len(shape) == 1 and shape[0] >= 2 for shape in shapes) or not shapes:
        raise ValueError(f"bootstrap needs samples (n,) with n >= 2, got shapes {shapes}")
    if paired and len(set(shapes)) > 1:
        raise ValueError(f"paired samples must have one length, got shapes {shapes}")
    if method not in ("percentile", "BCa"):
        raise ValueError(f'method must be "percentile" or "BCa", got {method!r}')
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, got {resamples}")
    from scipy.stats import bootstrap as by_scipy  # slow to import, so only where it is used

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that BCa is not defined: said below
        found = by_scipy(
            arrays,
            statistic,
            vectorized=False,
            paired=paired,
            method=method,
            confidence_level=confidence,
            n_resamples=resamples,
            random_state=np.random.default_rng(seed),
        )
    low, high = (float(end) for end in found.confidence_interval)
    if not low <= high:
        raise ValueError(
            f"{method} gives no interval, since the statistic hardly varies between resamples: "
            'use method="percentile", or wilson for a share'
        )
    return low, high


def median_interval(values: Any, confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the median, from the values' order alone.

    Each value lies below the true median with probability 1/2. So the number of those below it is
    binomial, which says between which of the sorted values the median is. Nothing is assumed about
    the distribution, and values may be infinite: what no attack found counts as farthest.

    Args:
        values: (n,) an array, or a tensor on the CPU; without NaN.
        confidence: the coverage, at least.

    Returns:
        Two of the values, ``(low, high)``.

    Raises:
        ValueError: if there is a NaN, the confidence is out of range, or there are too few values
            (5 or fewer, at 95%).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    ordered = np.sort(np.asarray(values, dtype=float).ravel())
    if np.isnan(ordered).any():
        raise ValueError("median_interval got a NaN among the values")
    from scipy.stats import binom  # slow to import, so only where it is used

    n = len(ordered)
    # the k lowest values are left out where fewer than k below the median are improbable enough
    below = int(binom.ppf((1 - confidence) / 2, n, 0.5)) if n else 0
    if not below:
        raise ValueError(f"too few values for an interval of the median at {confidence}: {n}")
    return float(ordered[below - 1]), float(ordered[n - below])


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
