"""Model inversion: which image makes a model sure of a class?

Without a prior the answer is noise, since most images that a network is sure about look like nothing.
With one it is an image, and which part of it the model told and which the prior is the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from modelsec.attacks.common import Model
from modelsec.attacks.descent import (
    check_classes,
    check_search,
    descend,
    precision,
    total_variation,
)
from modelsec.attacks.norms import draw, readable
from modelsec.losses import cross_entropy
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["Decoder", "PcaPrior", "invert", "pca_prior"]


class Decoder(Protocol):
    """A prior that can draw: it makes an image of a short code, whose entries are standard normal."""

    @property
    def codes(self) -> int:
        """The length D of a code."""

    def __call__(self, z: Tensor) -> Tensor:
        """Codes (N, D) to images (N, ...) in [0, 1], differentiable."""


@dataclass(frozen=True, eq=False)
class PcaPrior:
    """A linear decoder, ``mean + z @ basis`` clipped to [0, 1], see :func:`pca_prior`.

    Attributes:
        mean: (...) the mean of the public images.
        basis: (D, ...) their principal directions, each as long as its standard deviation.
    """

    mean: Tensor
    basis: Tensor

    @property
    def codes(self) -> int:
        """The length of a code."""
        return len(self.basis)

    def __call__(self, z: Tensor) -> Tensor:
        """Codes (N, D) to images (N, ...) in [0, 1]."""
        image: Tensor = self.mean + torch.tensordot(z, self.basis, dims=1)
        return image.clamp(0, 1)


def pca_prior(x: Tensor, codes: int = 30) -> PcaPrior:
    """What images look like, learned from public ones: their mean and directions of most variance.

    Args:
        x: (M, ...) float in [0, 1], M > ``codes``: images that the attacker may have, without labels.
        codes: how many directions.

    Returns:
        The :class:`PcaPrior`, dtype and device of ``x``.

    Raises:
        TypeError: if ``x`` is no floating-point tensor.
        ValueError: if ``codes`` is not from 1 to M - 1 or exceeds the number of pixels, or x is not
            in [0, 1].
    """
    _check_images(x)
    flat = x.detach().flatten(1)
    if not isinstance(codes, int) or not 1 <= codes <= min(len(x) - 1, flat.shape[1]):
        raise ValueError(
            f"codes must be from 1 to {min(len(x) - 1, flat.shape[1])} for images of shape "
            f"{tuple(x.shape)}, got {codes!r}"
        )
    mean = flat.mean(0)
    _, size, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    basis = directions[:codes] * (size[:codes, None] / (len(x) - 1) ** 0.5)
    return PcaPrior(mean.view(x.shape[1:]), basis.view(codes, *x.shape[1:]))


Prior = Literal["tv"] | Decoder | None


@threat(
    ThreatModel(
        goal="privacy",
        knowledge="white-box",
        cost="steps gradients",
        source="https://doi.org/10.1145/2810103.2813677",
    )
)
def invert(
    model: Model,
    target: Tensor,
    *,
    shape: Sequence[int] = (1, 28, 28),
    steps: int = 200,
    prior: Prior = None,
    weight: float | None = None,
    step_size: float = 0.05,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Model inversion: images that the model is sure belong to the target classes.

    Minus the log probability of the target is made small, by Adam. Without a prior any image will
    do, and the first one found is noise. "tv" starts from nearly black, and an image pays for its
    :func:`~modelsec.attacks.descent.total_variation`. A decoder such as :func:`pca_prior` leaves
    nothing but the images that it can draw: a code is searched, and pays for half its squared
    length, as if it were normal. With weight 1 the result is the likeliest code given the class.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        target: (N,) integer classes, one for each image that is wanted.
        shape: of an image; a decoder says it by itself.
        steps: gradient steps.
        prior: None, "tv", or a :class:`Decoder`.
        weight: of the prior's cost; 0.003 for "tv" and 0.02 for a decoder, if None.
        step_size: Adam's learning rate, in pixel values, or in standard deviations of a code.
        generator: draws the starts: noise, for "tv" a tenth as bright, or codes for a decoder; torch's
            global one if None.

    Returns:
        (N, ...) images in [0, 1], on the device of ``target``, in the model's precision.

    Raises:
        TypeError: for a model that can't be called, or targets that are no integers.
        ValueError: for targets that are not (N,) or not classes of the model, an unknown prior, a
            negative weight, no step, or a step size of 0 or less.

    References:
        Fredrikson, Jha & Ristenpart (2015), https://doi.org/10.1145/2810103.2813677
        (gradient descent without a prior); total variation: Mahendran & Vedaldi (2015),
        https://arxiv.org/abs/1412.0035; searching the codes of what public data taught: Zhang et
        al. (2020), https://arxiv.org/abs/1911.07135 (there a GAN).
    """
    known = prior is None or prior == "tv" or (callable(prior) and hasattr(prior, "codes"))
    if not known:
        raise ValueError(f'prior must be None, "tv" or a decoder with .codes, got {prior!r}')
    weight = (0.003 if prior == "tv" else 0.02) if weight is None else weight
    check_search(model, steps, step_size, weight)
    target = check_classes("target", target)
    kind = prior.mean.dtype if isinstance(prior, PcaPrior) else precision(model)
    like = torch.empty(0, dtype=kind, device=target.device)
    if prior is None or prior == "tv":
        decode: Callable[[Tensor], Tensor] = _itself
        point = draw(torch.rand, (len(target), *shape), like, generator)
        point = point / 10 if prior == "tv" else point  # smoothing takes long to get rid of noise
    else:
        decode = prior
        point = draw(torch.randn, (len(target), prior.codes), like, generator)

    def cost(at: Tensor) -> Tensor:
        x = decode(at)
        logits = model(x)
        if readable(logits) and int(target.max()) >= logits.shape[1]:
            raise ValueError(
                f"target must hold classes 0 to {logits.shape[1] - 1} of this model, got "
                f"{int(target.max())}"
            )
        value = cross_entropy(logits, target)
        if prior == "tv":
            return value + weight * total_variation(x)
        return value if prior is None else value + weight / 2 * at.square().sum(1)

    with inference(model):
        found = descend(cost, point, steps, step_size, boxed=decode is _itself)
    with torch.no_grad():
        return decode(found)


def _itself(x: Tensor) -> Tensor:
    return x


def _check_images(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor in [0, 1], got {kind}")
    if x.dim() < 2 or (readable(x) and not bool(((x >= 0) & (x <= 1)).all())):
        raise ValueError(f"x must be images (M, ...) in [0, 1], got shape {tuple(x.shape)}")
