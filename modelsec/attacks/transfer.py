"""Transfer attacks: made on models that the attacker owns, used on one that is never asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modelsec.attacks.common import Model
from modelsec.attacks.gradient import mi_fgsm
from modelsec.losses import SampleLoss, log_odds
from modelsec.threat import ThreatModel, threat

__all__ = ["Ensemble", "ensemble", "transfer"]


class Ensemble(nn.Module):
    """The mean of several models' logits, see :func:`ensemble`.

    Args:
        models: each maps images (N, ...) to logits (N, K).
    """

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.members = list(models)
        # so that those that are modules are frozen, moved and put in eval mode with this one
        self.inside = nn.ModuleList(m for m in self.members if isinstance(m, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits (N, K) for images (N, ...)."""
        return torch.stack([member(x) for member in self.members]).mean(0)


def ensemble(models: Sequence[Model]) -> Ensemble:
    """Several surrogates as one model: what fools all of them is likelier to fool another.

    Logits are averaged, not probabilities: a member that is very sure of itself would otherwise
    hide the gradients of the others.

    Args:
        models: at least one; each maps images (N, ...) to logits (N, K), all with the same classes.

    Returns:
        A model from images (N, ...) to the mean logits (N, K).

    Raises:
        TypeError: for something that is no sequence of callables.
        ValueError: if it is empty.

    References:
        Liu et al. (2017), https://arxiv.org/abs/1611.02770; for logits Dong et al. (2018),
        https://arxiv.org/abs/1710.06081, section 3.4.
    """
    if isinstance(models, nn.Module) or not isinstance(models, Sequence):
        raise TypeError(f"models must be a list of models, got {type(models).__name__}")
    if not models:
        raise ValueError("models must hold at least one model, got none")
    for model in models:
        if not callable(model):
            raise TypeError(f"models must hold callables only, got {type(model).__name__}")
    return Ensemble(models)


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="transfer",
        norms=("linf", "l2"),
        cost="steps gradients of a surrogate, no query",
        source="https://arxiv.org/abs/1710.06081",
    )
)
def transfer(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 10,
    decay: float = 1.0,
    targeted: bool = False,
    loss: SampleLoss = log_odds,
) -> Tensor:
    """Images made on a surrogate, to be shown to another model: MI-FGSM that never stops early.

    The first point that fools the surrogate lies just behind its border, where another model has
    none. So all steps are taken, whatever the surrogate answers.

    Args:
        model: the surrogate, or an :func:`ensemble` of them; maps images (N, ...) in [0, 1] to
            logits (N, K). The target is not needed.
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        norm: "linf" or "l2".
        steps: gradient steps.
        decay: of the momentum, see :func:`~modelsec.attacks.gradient.mi_fgsm`; 0 is BIM.
        targeted: descend to y instead of climbing away from it.
        loss: per-sample loss.

    Returns:
        (N, ...) perturbed images; how many of them fool the target is another question.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Dong et al. (2018), https://arxiv.org/abs/1710.06081, algorithms 1 and 2; Papernot et al.
        (2016), https://arxiv.org/abs/1605.07277, on why it works at all.
    """
    return mi_fgsm(
        model, x, y, eps=eps, norm=norm, steps=steps, decay=decay, targeted=targeted, loss=loss,
        early_stop=False,
    )  # fmt: skip
