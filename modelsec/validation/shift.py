"""Is this input anything like the data the model learned from? Scores of strangeness.

Every score here grows as an input looks stranger, whatever sign its paper gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelsec.intervals import Proportion, bootstrap

__all__ = ["Detection", "Mahalanobis", "auroc", "detect", "energy", "msp", "threshold"]


def msp(logits: Tensor) -> Tensor:
    """One minus the largest softmax probability: how unsure the model says it is.

    Args:
        logits: (N, K).

    Returns:
        (N,), from 0 to 1 - 1/K.

    References:
        Hendrycks & Gimpel (2017), https://arxiv.org/abs/1610.02136.
    """
    return 1 - logits.softmax(1).amax(1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The free energy ``-T log sum_k exp(z_k / T)``: large where all logits are small.

    Args:
        logits: (N, K).
        temperature: T, above 0.

    Returns:
        (N,).

    Raises:
        ValueError: if the temperature is not above 0.

    References:
        Liu et al. (2020), equation 3, https://arxiv.org/abs/2010.03759.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return -temperature * (logits / temperature).logsumexp(1)


@dataclass(frozen=True)
class Mahalanobis:
    """Distance to the nearest class, in units of how much the classes' samples scatter.

    Made by :meth:`fit`.

    Attributes:
        means: (K, D) of each class.
        precision: (D, D), the inverse of the covariance that all classes share; its pseudo-inverse
            if some feature never varies.
    """

    means: Tensor
    precision: Tensor

    @classmethod
    def fit(cls, features: Tensor, y: Tensor) -> Mahalanobis:
        """From the training data's features.

        Args:
            features: (N, D).
            y: (N,) integer labels 0..K-1, each there at least once.

        Returns:
            The fitted distance.

        Raises:
            ValueError: if shapes don't fit, or a class has no sample.
        """
        if features.dim() != 2 or y.shape != features.shape[:1] or not len(y):
            raise ValueError(
                f"need features (N, D) and y (N,): got {tuple(features.shape)}, {tuple(y.shape)}"
            )
        count = y.bincount()
        if not bool((count > 0).all()):
            raise ValueError(f"every class needs a sample, got counts {count.tolist()}")
        f = features.detach().double()
        means = torch.stack([f[y == k].mean(0) for k in range(len(count))])
        rest = f - means[y]
        precision = torch.linalg.pinv(rest.T @ rest / len(f), hermitian=True)
        return cls(means.to(features.dtype), precision.to(features.dtype))

    def __call__(self, features: Tensor) -> Tensor:
        """The squared distance to the nearest class.

        Args:
            features: (M, D).

        Returns:
            (M,), at least 0.

        References:
            Lee et al. (2018), equation 2 without its sign, https://arxiv.org/abs/1807.03888.
        """
        rest = features[:, None] - self.means
        return (rest @ self.precision * rest).sum(2).amin(1)


def threshold(usual: Tensor, accept: float = 0.95) -> float:
    """The score up to which inputs are accepted, so that a share ``accept`` of usual ones is.

    Choose it on samples that will not test it.

    Args:
        usual: (N,) scores of usual inputs.
        accept: a share, above 0 and at most 1.

    Returns:
        The smallest score that does it.

    Raises:
        ValueError: for no scores, or a share out of range.
    """
    if usual.dim() != 1 or not len(usual) or not 0 < accept <= 1:
        raise ValueError(
            f"need scores (N,) and 0 < accept <= 1, got {tuple(usual.shape)} and {accept}"
        )
    needed = int(np.ceil(accept * len(usual) - 1e-9))
    return float(usual.double().sort().values[needed - 1])


def auroc(usual: Any, strange: Any) -> float:
    """The probability that a strange input has a larger score than a usual one; a tie is half.

    Args:
        usual: (N,) scores of usual inputs, array or tensor on the CPU.
        strange: (M,) scores of strange ones.

    Returns:
        The area under the ROC curve: 1 is perfect, 0.5 is a coin.

    Raises:
        ValueError: if one of the two is empty.
    """
    a, b = np.sort(np.asarray(usual)), np.asarray(strange)
    if not len(a) or not len(b):
        raise ValueError(f"auroc needs scores of both kinds, got {len(a)} and {len(b)}")
    below = np.searchsorted(a, b, "left") + np.searchsorted(a, b, "right")
    return float(below.mean() / (2 * len(a)))


@dataclass(frozen=True)
class Detection:
    """How well a score tells strange inputs from usual ones.

    Attributes:
        auroc: over all thresholds.
        interval: its 95% bootstrap interval.
        missed: the share of strange inputs that the threshold accepts. At a threshold that accepts
            95% of the usual ones this is what papers call FPR at 95% TPR.
        alarms: the share of usual inputs that it refuses.
    """

    auroc: float
    interval: tuple[float, float]
    missed: Proportion
    alarms: Proportion


def detect(usual: Tensor, strange: Tensor, at: float, *, seed: int = 0) -> Detection:
    """Measure a score on usual and strange inputs.

    Args:
        usual: (N,) scores of usual inputs, N at least 2; not those that ``at`` was chosen on.
        strange: (M,) scores of strange ones, M at least 2.
        at: scores up to here are accepted, see :func:`threshold`.
        seed: for the bootstrap.

    Returns:
        The :class:`Detection`.

    Raises:
        ValueError: if one of the two has fewer than 2 scores.
    """
    a, b = (scores.detach().cpu().double().numpy() for scores in (usual, strange))
    return Detection(
        auroc(a, b),
        bootstrap(a, b, statistic=auroc, resamples=500, seed=seed),
        Proportion(int((b <= at).sum()), len(b)),
        Proportion(int((a > at).sum()), len(a)),
    )
