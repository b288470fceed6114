"""Defensive distillation: a training that was published as a defence, and hides the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.models import fresh
from modelsec.threat import ThreatModel, threat
from modelsec.training import fit, inference

__all__ = ["distilled"]


@threat(
    ThreatModel(
        goal="repair", knowledge="white-box", norms=("l2",), stage="training",
        cost="two trainings", source="https://arxiv.org/abs/1511.04508",
    )
)  # fmt: skip
def distilled(
    build: Callable[[], nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    temperature: float = 100.0,
    epochs: int = 10,
    lr: float = 1e-2,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Defensive distillation: a network is trained on another one's soft answers.

    Teacher and pupil are of one kind and both learn at a temperature T, that is with logits divided
    by T in the softmax. In use T is 1 again, so the pupil's logits are T times larger than they
    need be, and its softmax has no gradient left.

    Args:
        build: makes an untrained network, on x's device.
        x: (N, ...) training images.
        y: (N,) integer labels.
        temperature: T, 1 or more.
        epochs: of each of the two trainings.
        lr: Adam's learning rate. Logits must grow T times as far as usual, so it is larger.
        generator: draws weights and orders; torch's global one if None.
        progress: as for :func:`~modelsec.training.fit`.

    Returns:
        The pupil, in eval mode.

    Raises:
        ValueError: if the temperature is below 1.

    References:
        Papernot et al. (2016), https://arxiv.org/abs/1511.04508, section IV.
    """
    if not isinstance(temperature, int | float) or not temperature >= 1:
        raise ValueError(f"temperature must be 1 or more, got {temperature!r}")

    def warm(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits / temperature, target, reduction="none")

    options: dict[str, Any] = {"epochs": epochs, "lr": lr, "loss": warm}
    options |= {"generator": generator, "progress": progress}
    teacher, pupil = fresh(build, generator), fresh(build, generator)
    fit(teacher, x, y, **options)

    def soft(_: nn.Module, batch: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        with inference(teacher), torch.no_grad():
            return batch, (teacher(batch) / temperature).softmax(1)

    fit(pupil, x, y, perturb=soft, **options)
    return pupil.eval()
