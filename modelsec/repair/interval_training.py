"""Training for a certificate: the loss of the worst case that interval bounds allow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.attacks.common import check_radius
from modelsec.attacks.norms import NORMS
from modelsec.repair.bounds import interval_margins
from modelsec.repair.layers import Bounds, linear_layers, spread
from modelsec.repair.schedules import Method, augmented
from modelsec.threat import ThreatModel, threat
from modelsec.training import Perturb

__all__ = ["ibp_training"]


@threat(
    ThreatModel(
        goal="repair",
        knowledge="white-box",
        norms=("linf",),
        stage="training",
        cost="two more passes a step",
        source="https://arxiv.org/abs/1810.12715",
    )
)
def ibp_training(
    *,
    eps: float,
    kappa: float = 0.5,
    warm_up: float = 0.1,
    ramp: float = 0.6,
    augment: Perturb | None = None,
) -> Method:
    """Interval bound propagation training: fit the images, and the worst case of their intervals.

    The loss is ``k * cross_entropy(z) + (1 - k) * cross_entropy(worst z)``, where the worst logits
    are what IBP cannot rule out within the radius. Radius and k both change slowly, or the network
    gives up and answers the same for all images: during the warm-up the radius is 0 and k is 1,
    then the one grows to ``eps`` while the other falls to ``kappa``.

    Use it as ``training.fit(model, x, y, epochs=40, **ibp_training(eps=0.1))``. The model must be one
    that :func:`~modelsec.repair.layers.linear_layers` reads.

    Args:
        eps: the radius in linf that the training ends with, in units of a pixel's range. Gowal et
            al. take one larger than that to be certified.
        kappa: the weight of the clean loss in the end, from 0 to 1.
        warm_up: share of the training before the radius grows.
        ramp: share of the training after which it grows no more.
        augment: changes the clean images first, such as :func:`modelsec.augmentation.vary`.

    Returns:
        Keywords of :func:`modelsec.training.fit`, for one training at a time.

    Raises:
        ValueError: for a radius, weight or share out of range.

    References:
        Gowal et al. (2018), https://arxiv.org/abs/1810.12715.
    """
    check_radius(eps, torch.zeros(1, 1, device="cpu"), NORMS["linf"])
    if not 0 <= kappa <= 1 or not 0 <= warm_up < ramp <= 1:
        raise ValueError(
            "kappa must be from 0 to 1, and 0 <= warm_up < ramp <= 1; got "
            f"{kappa=}, {warm_up=}, {ramp=}"
        )
    training = _Training(eps, kappa, warm_up, ramp, augment)
    return {"perturb": training.perturb, "loss": training.loss}


class _Training:
    """What the two functions that fit calls have in common: first perturb, then loss."""

    def __init__(
        self, eps: float, kappa: float, warm_up: float, ramp: float, augment: Perturb | None
    ) -> None:
        self.eps, self.kappa, self.warm_up, self.ramp = eps, kappa, warm_up, ramp
        self.augment = augment
        self.worst, self.weight = torch.empty(0, device="cpu"), 1.0

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        x = augmented(self.augment, model, x, y, progress)
        grown = min(max((progress - self.warm_up) / (self.ramp - self.warm_up), 0.0), 1.0)
        self.weight = 1 - grown * (1 - self.kappa)
        eps, layers = grown * self.eps, linear_layers(model)
        inner = [Bounds((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))]
        for layer in layers:
            inner.append(spread(layer, inner[-1]))
        # logits whose differences to the true one are the worst ones
        self.worst = -interval_margins(layers, inner, y)
        return x

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        clean = F.cross_entropy(logits, y, reduction="none")
        worst = F.cross_entropy(self.worst, y, reduction="none")
        return self.weight * clean + (1 - self.weight) * worst
