"""A detector of attacked images, feature squeezing, and the loss that fools model and detector at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from modelsec.attacks.common import Model
from modelsec.losses import margin
from modelsec.repair.purification import Step, adapted, bit_depth, median
from modelsec.threat import ThreatModel, threat
from modelsec.training import Evaluation, inference
from modelsec.validation.shift import threshold

__all__ = ["Squeezing", "evade", "feature_squeezing", "stands"]


class Squeezing(nn.Module):
    """A model with a detector beside it: how far do its answers move when the image is squeezed?

    Called, it gives logits (N, K + 1): the model's, and a last one for "refused", which is the
    largest when the score is above the threshold. So the detector is a class like others,
    after Carlini & Wagner (2017), https://arxiv.org/abs/1705.07263, and attacks can follow it.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K).
        squeezers: the squeezed versions of an image.
        threshold: scores above it are refused.
    """

    def __init__(self, model: Model, squeezers: Sequence[nn.Module], threshold: float) -> None:
        super().__init__()
        self.model, self.squeezers, self.threshold = model, nn.ModuleList(squeezers), threshold

    def views(self, x: Tensor) -> Tensor:
        """The model's logits for the image and for each squeezed version of it, (1 + S, N, K)."""
        return torch.stack([self.model(x), *(self.model(squeeze(x)) for squeeze in self.squeezers)])

    def score(self, x: Tensor) -> Tensor:
        """(N,), 0 to 2: the largest l1 distance between the probabilities before and after."""
        return _distance(self.views(x))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (N, C, H, W). Returns (N, K + 1)."""
        views = self.views(x)
        # above the leader by ten times what the score is above its threshold
        refused = views[0].amax(1) + 10 * (_distance(views) - self.threshold)
        return torch.cat([views[0], refused[:, None]], 1)

    def attacked(self) -> nn.Module:
        """What an attacker follows who wants a wrong answer that is not refused.

        Returns:
            A model with logits (N, K): their mean over the image and its squeezed versions. If a
            wrong class leads in all of them the score is small by itself.
        """
        return _Mean(self.through())

    def through(self) -> Squeezing:
        """The same answers, with BPDA for squeezers without a gradient: what :func:`evade` climbs."""
        squeezers = [adapted(s) if isinstance(s, Step) else s for s in self.squeezers]
        return Squeezing(self.model, squeezers, self.threshold)


class _Mean(nn.Module):
    def __init__(self, guarded: Squeezing) -> None:
        super().__init__()
        self.guarded = guarded

    def forward(self, x: Tensor) -> Tensor:
        return self.guarded.views(x).mean(0)


@threat(
    ThreatModel(
        goal="repair", knowledge="transfer", norms=("linf", "l2"),
        cost="a forward pass per squeezer", source="https://arxiv.org/abs/1704.01155",
    )
)  # fmt: skip
def feature_squeezing(
    model: Model,
    x: Tensor,
    *,
    squeezers: Sequence[nn.Module] | None = None,
    alarms: float = 0.05,
    batch_size: int = 500,
) -> Squeezing:
    """Refuse an image if squeezing it changes the model's answer much.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K).
        x: (N, C, H, W) clean images that choose the threshold; none that will test it.
        squeezers: see :mod:`~modelsec.repair.purification`. One bit and a 2 x 2 median if None, as
            in the paper for MNIST.
        alarms: the share of the clean images that may be refused.
        batch_size: images at a time.

    Returns:
        The model with its detector.

    Raises:
        ValueError: for no images or squeezers, or alarms that are not between 0 and 1.

    References:
        Xu, Evans & Qi (2018), https://arxiv.org/abs/1704.01155, section V.
    """
    squeezers = [bit_depth(1), median(2)] if squeezers is None else list(squeezers)
    if not squeezers or not len(x) or not 0 < alarms < 1:
        raise ValueError(
            f"need images, squeezers and alarms between 0 and 1, got {len(x)} images, "
            f"{len(squeezers)} squeezers and {alarms}"
        )
    guarded = Squeezing(model, squeezers, 0.0)
    with inference(guarded), torch.no_grad():
        usual = torch.cat([guarded.score(batch) for batch in x.split(batch_size)])
    guarded.threshold = threshold(usual.cpu(), 1 - alarms)
    return guarded


def evade(logits: Tensor, y: Tensor) -> Tensor:
    """The joint loss: above 0 exactly where a wrong class beats the right one and the refusal.

    Args:
        logits: (N, K + 1), the last column the refusal.
        y: (N,) integer labels in 0..K-1.

    Returns:
        (N,), ``max_{j != y, j < K} z_j - max(z_y, z_refused)``.
    """
    refused = logits[:, -1]
    right = logits.gather(1, y.long()[:, None])[:, 0]
    lead = margin(logits[:, :-1], y) + right
    return lead - torch.maximum(right, refused)


def stands(
    guarded: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, batch_size: int = 500
) -> Evaluation:
    """The share of attacked images that do no harm: answered rightly, or refused.

    On clean images use :func:`~modelsec.training.evaluate`, for which a refusal is a mistake.

    Args:
        guarded: maps (N, ...) to (N, K + 1), the last column the refusal.
        x: (N, ...) attacked images.
        y: (N,) integer labels in 0..K-1.
        batch_size: images at a time.

    Returns:
        An :class:`~modelsec.training.Evaluation`.
    """
    outcomes = []
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        with inference(guarded), torch.no_grad():
            logits = guarded(images)
        answer = logits.argmax(1)
        outcomes.append(((answer == labels) | (answer == logits.shape[1] - 1)).cpu())
    correct = torch.cat(outcomes)
    return Evaluation(int(correct.sum()), len(correct), correct)


def _distance(views: Tensor) -> Tensor:
    """The largest l1 distance of the later views' probabilities from the first one's: (N,)."""
    p = views.softmax(2)
    return (p[1:] - p[:1]).abs().sum(2).amax(0)
