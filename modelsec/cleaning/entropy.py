"""Finding a trigger by what survives other images laid over it: STRIP.

Unlike the detectors of :mod:`modelsec.cleaning.poison` it looks at one input at a time, so it can
stand guard over a model in use as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from modelsec.training import inference

__all__ = ["flag_low_entropy", "strip"]

Model = Callable[[Tensor], Tensor]


def strip(
    model: Model,
    x: Tensor,
    overlays: Tensor,
    *,
    n: int = 20,
    weights: tuple[float, float] = (1.0, 1.0),
    generator: torch.Generator | None = None,
    batch_size: int = 500,
) -> Tensor:
    """Minus the entropy of the model's answers when other images are laid over an image.

    Two digits on top of each other are hard to read: the answers vary with the overlay. With a
    trigger on it the image keeps its answer whatever is laid over it.

    Args:
        model: maps (N, C, H, W) to logits (N, K); a module is put in eval mode meanwhile.
        x: (N, C, H, W) images in [0, 1] to score.
        overlays: (M, C, H, W) clean images in [0, 1], other ones than ``x``.
        n: how many overlays to draw; all of ``x`` meet the same ones.
        weights: of the image and of the overlay in the sum, which is clipped to [0, 1]. With
            (1, 1) a trigger keeps its brightness, with (0.5, 0.5) it is halved.
        generator: draws the overlays (with replacement); torch's global one if None.
        batch_size: images per call of the model.

    Returns:
        (N,) scores ``-H``, H the entropy in bits, averaged over the overlays: 0 where all answers
        are certain, lower where they are not.

    Raises:
        ValueError: if images and overlays differ in shape, lie outside [0, 1], or n is below 1.

    References:
        Gao et al. (2019), https://arxiv.org/abs/1902.06531.
    """
    for name, images in (("x", x), ("overlays", overlays)):
        if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError(f"{name} must lie in [0, 1] without NaN")
    if x.shape[1:] != overlays.shape[1:] or not len(overlays) or n < 1:
        raise ValueError(
            f"need at least one overlay of shape {tuple(x.shape[1:])} and n >= 1, got "
            f"{tuple(overlays.shape)} and n={n}"
        )
    home = "cpu" if generator is None else generator.device
    drawn = torch.randint(len(overlays), (n,), generator=generator, device=home)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    with inference(model), torch.no_grad():
        for overlay in overlays[drawn.to(overlays.device)].to(x):
            mixed = (weights[0] * x + weights[1] * overlay).clamp(0, 1)
            logits = torch.cat([model(batch) for batch in mixed.split(batch_size)])
            log_p = logits.double().log_softmax(1)
            total += (log_p.exp() * log_p).sum(1)
    return total / (n * math.log(2))


def flag_low_entropy(scores: Tensor, clean: Tensor, *, rejected: float = 0.01) -> Tensor:
    """Flag scores above those of clean samples, of which a chosen share would be rejected.

    Args:
        scores: (N,) to judge, from :func:`strip`.
        clean: (M,) scores of clean samples that were held out: not trained on, no overlays.
        rejected: the false rejection rate, the share of clean samples one is ready to lose.

    Returns:
        (N,) bool.

    Raises:
        ValueError: if there are no clean scores, one is NaN, or the rate is not in [0, 1].
    """
    if not len(clean) or bool(clean.isnan().any()) or not 0 <= rejected <= 1:
        raise ValueError(f"need clean scores without NaN and rejected in [0, 1], got {rejected}")
    return scores > torch.quantile(clean, 1 - rejected, interpolation="higher")
