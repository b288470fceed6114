"""Losses: what the trainer makes small and the attacker makes large.

Every per-sample loss here takes logits (N, K) and labels (N,) and returns (N,). It grows as the
model gets a sample more wrong. (torch's own ``cross_entropy`` averages over the batch; an attack
must not, or a sample's result would depend on its neighbours.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SampleLoss", "cross_entropy", "dlr", "log_odds", "margin", "risk", "targeted_dlr"]

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, K), labels (N,)) -> losses (N,)."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """``-log softmax(logits)[y]``, per sample.

    A soft target q, such as mixup makes, costs ``-sum_k q_k log softmax(logits)[k]``.

    Args:
        logits: (N, K) float.
        y: (N,) integer labels in 0..K-1, or (N, K) probabilities.

    Returns:
        (N,) losses, at least 0.
    """
    soft = y.dim() == 2 and y.is_floating_point()
    return F.cross_entropy(logits, y if soft else y.long(), reduction="none")


def risk(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, loss: SampleLoss = cross_entropy
) -> Tensor:
    """The empirical risk ``L(theta) = 1/m sum_i l(y_i, yhat_i; theta)`` over m samples.

    Args:
        model: maps x to logits (m, K).
        x: (m, ...) inputs.
        y: (m,) integer labels.
        loss: the per-sample loss l.

    Returns:
        A scalar tensor.
    """
    return loss(model(x), y).mean()


def _true_and_others(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The true class's logit (N,), and all logits with the true one at -inf (N, K)."""
    y = y.long()[:, None]
    return logits.gather(1, y)[:, 0], logits.scatter(1, y, float("-inf"))


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Log odds against the true class, ``log((1 - p_y) / p_y)`` with p = softmax(logits).

    Cross-entropy is ``softplus(log_odds)``, so both have the same order and the same gradient
    direction. But cross-entropy's gradient carries the factor ``1 - p_y``, which float32 loses
    (first rounding, then underflow) once the model is sure of itself; this loss doesn't. That is
    why attacks use it.

    Args:
        logits: (N, K) float, K >= 2.
        y: (N,) integer labels in 0..K-1.

    Returns:
        (N,); positive once the true class has less than half of the probability.
    """
    y = y.long()
    others = logits.scatter(1, y[:, None], float("-inf"))
    rival = others.argmax(1)
    # the sum over the other classes, told by the largest of them: others.logsumexp(1) in terms for
    # which torch has fast functions; nll_loss picks -z_y
    lead = F.nll_loss(logits, y, reduction="none") - F.nll_loss(logits, rival, reduction="none")
    return lead + F.cross_entropy(others, rival, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The margin loss ``max_{j != y} z_j - z_y``: positive exactly when the answer is wrong.

    Args:
        logits: (N, K) float, K >= 2.
        y: (N,) integer labels in 0..K-1.

    Returns:
        (N,).

    References:
        Carlini & Wagner (2017), https://arxiv.org/abs/1608.04644, f_6 without its floor.
    """
    true, others = _true_and_others(logits, y)
    return others.amax(1) - true


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: the margin divided by ``z_(1) - z_(3)`` (largest, third largest).

    The ratio does not change when all logits are scaled or shifted, so a model can't hide its
    gradient by being confident. It needs three classes; below that the plain margin is returned,
    with a warning.

    Args:
        logits: (N, K) float, K >= 2.
        y: (N,) integer labels in 0..K-1.

    Returns:
        (N,), within [-1, 1] for correctly classified samples (-1 to 0).

    References:
        Croce & Hein (2020), https://arxiv.org/abs/2003.01690, equation 6.
    """
    if logits.shape[1] < 3:
        warnings.warn("dlr needs three classes; falling back to the margin", stacklevel=2)
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    # three equal leaders: the ratio is 0 / 0, and any small positive divisor gives the limit 0
    spread = (top[:, 0] - top[:, 2]).clamp_min(torch.finfo(logits.dtype).tiny)
    return margin(logits, y) / spread


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The DLR loss aimed at one class: ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)``.

    It needs four classes; below that the margin to the target, ``z_t - z_y``, is returned, with a
    warning.

    Args:
        logits: (N, K) float, K >= 2.
        y: (N,) integer labels in 0..K-1, to be got away from.
        target: (N,) classes in 0..K-1 to be got to.

    Returns:
        (N,); positive once the target's logit is above the label's.

    References:
        Croce & Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    both = logits.gather(1, torch.stack([y.long(), target.long()], 1))
    lead = both[:, 1] - both[:, 0]
    if logits.shape[1] < 4:
        warnings.warn("targeted_dlr needs four classes; falling back to the margin", stacklevel=2)
        return lead
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return lead / spread.clamp_min(torch.finfo(logits.dtype).tiny)
