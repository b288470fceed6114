"""Can the model's confidence be read as a probability? Measured, and mended by one number.

References:
    Guo, Pleiss, Sun & Weinberger (2017), On calibration of modern neural networks,
    https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Reliability",
    "Tempered",
    "ece",
    "ece_if_calibrated",
    "fit_temperature",
    "reliability",
]


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy, bin by bin.

    Attributes:
        edges: (B + 1,) where the bins begin and end; bin b holds the confidences above edges[b],
            up to and including edges[b + 1].
        count: (B,) samples in each.
        confidence: (B,) their mean confidence, NaN in an empty bin.
        accuracy: (B,) the share of them that is right, NaN in an empty bin.
    """

    edges: Tensor
    count: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def ece(self) -> float:
        """The expected calibration error: mean over all samples of their bin's gap (Guo, eq. 3)."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num(0)
        return float((self.count * gaps).sum() / self.count.sum())


def reliability(probabilities: Tensor, y: Tensor, *, bins: int = 15) -> Reliability:
    """Sort predictions into bins of equal width by their confidence, the largest probability.

    Args:
        probabilities: (N, K) rows that sum to 1.
        y: (N,) integer labels.
        bins: B.

    Returns:
        The :class:`Reliability`.

    Raises:
        ValueError: for no data, lengths that differ, rows that are no probabilities (logits, for
            example), or less than one bin.
    """
    _check(probabilities, y, bins)
    confidence, predicted = probabilities.double().max(1)
    return _binned(confidence, (predicted == y).double(), bins)


def _binned(confidence: Tensor, right: Tensor, bins: int) -> Reliability:
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    # right-closed, as in the paper; a confidence a rounding error above 1 belongs to the last bin
    where = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    count = where.bincount(minlength=bins)
    mean = [where.bincount(weights=v, minlength=bins) / count for v in (confidence, right)]
    return Reliability(edges, count, mean[0], mean[1])


def ece(probabilities: Tensor, y: Tensor, *, bins: int = 15) -> float:
    """The expected calibration error with bins of equal width: 0 is best, 1 is worst.

    Args:
        probabilities: (N, K) rows that sum to 1.
        y: (N,) integer labels.
        bins: how many.

    Returns:
        The mean gap between confidence and accuracy. It depends on the bins, and even a perfectly
        calibrated model's is not 0: see :func:`ece_if_calibrated`.

    Raises:
        ValueError: as :func:`reliability`.
    """
    return reliability(probabilities, y, bins=bins).ece


def ece_if_calibrated(
    probabilities: Tensor,
    *,
    bins: int = 15,
    draws: int = 200,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The ECE that chance alone gives: that of a model whose confidences are true.

    Each draw decides for every sample anew whether the prediction is right, with a probability
    equal to its confidence.

    Args:
        probabilities: (N, K) rows that sum to 1.
        bins: how many.
        draws: how often to draw.
        generator: draws the outcomes; torch's global one if None.

    Returns:
        (draws,) values of the ECE.

    Raises:
        ValueError: as :func:`reliability`, or for less than one draw.
    """
    _check(probabilities, probabilities[:, 0], bins)
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    confidence = probabilities.double().amax(1)
    home = confidence.device if generator is None else generator.device
    values = []
    for _ in range(draws):
        luck = torch.rand(len(confidence), generator=generator, dtype=torch.float64, device=home)
        right = (luck.to(confidence.device) < confidence).double()
        values.append(_binned(confidence, right, bins).ece)
    return torch.tensor(values, dtype=torch.float64)


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature T that makes the cross-entropy of ``logits / T`` smallest, by L-BFGS.

    Fit it on samples that neither trained the model nor will test it.

    Args:
        logits: (N, K).
        y: (N,) integer labels.

    Returns:
        T, above 0; above 1 where the model was too sure of itself.

    Raises:
        ValueError: for no data, lengths that differ or logits that are not finite; or if every
            prediction is right, since then no T is the best: the smaller the better.
    """
    if logits.dim() != 2 or y.shape != logits.shape[:1] or not len(y):
        raise ValueError(
            f"need logits (N, K) and y (N,), N at least 1: got {tuple(logits.shape)} and "
            f"{tuple(y.shape)}"
        )
    z, labels = logits.detach().double(), y.long()
    if not bool(z.isfinite().all()):
        raise ValueError("logits must be finite, got NaN or infinity")
    if bool((z.argmax(1) == labels).all()):
        raise ValueError("every prediction is right, so no temperature is best: use more samples")
    # in log T, so that T stays positive; begun where the logits have the size of 1
    log_t = z.std().clamp(min=1e-6).log().requires_grad_()
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(z / log_t.exp(), labels)
        (log_t.grad,) = torch.autograd.grad(loss, log_t)
        return loss

    optimizer.step(closure)
    return float(log_t.detach().exp())


class Tempered(nn.Module):
    """A model with its logits divided by a temperature: same answers, another confidence.

    Args:
        model: maps x to logits.
        temperature: above 0.

    Raises:
        ValueError: if the temperature is not above 0.
    """

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.model, self.temperature = model, temperature

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (N, ...). Returns logits (N, K)."""
        logits: Tensor = self.model(x) / self.temperature
        return logits


def _check(probabilities: Tensor, y: Tensor, bins: int) -> None:
    if probabilities.dim() != 2 or y.shape != probabilities.shape[:1] or not len(y):
        raise ValueError(
            f"need probabilities (N, K) and y (N,), N at least 1: got "
            f"{tuple(probabilities.shape)} and {tuple(y.shape)}"
        )
    whole = probabilities.detach().double().sum(1)
    # written so that NaN is refused as well
    if not (bool((probabilities >= 0).all()) and bool(((whole - 1).abs() <= 1e-3).all())):
        raise ValueError(
            "every row must be probabilities that sum to 1: of logits take .softmax(1) first"
        )
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
