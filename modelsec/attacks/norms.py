"""The three things an attack needs to know of a norm: project, steepest, sample.

With them the loop of projected gradient ascent is written once for all norms.
Shapes: x, adv, gradient (N, ...); eps (N, 1, ...), which broadcasts against them.

An attack of many steps projects on one ball again and again. So ``project`` is made of two parts:
``region`` works out once what is needed of the ball, ``confine_`` uses it, and writes on its
argument (as torch's functions with such a name do) instead of asking for new memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["L2", "NORMS", "Linf", "Norm", "Region", "per_sample"]

Region = tuple[Tensor, Tensor]
"""Two tensors that broadcast against a batch, one row per sample."""


class Norm(Protocol):
    """One norm's geometry on images in [0, 1].

    Attributes:
        limit: the largest radius that has a meaning: no change inside the box is larger.
    """

    limit: float

    def size(self, delta: Tensor) -> Tensor:
        """The norm of each sample's perturbation: (N, ...) -> (N,)."""

    def project(self, adv: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """Bring ``adv`` into the eps-ball around ``x`` and into the box [0, 1]."""

    def region(self, x: Tensor, eps: Tensor) -> Region:
        """The eps-ball around ``x`` cut by the box [0, 1], as :meth:`confine_` wants it."""

    def confine_(self, adv: Tensor, region: Region) -> Tensor:
        """:meth:`project`, in place."""

    def steepest(self, gradient: Tensor) -> Tensor:
        """The step d of norm 1 that maximises <gradient, d>; 0 where the gradient is 0."""

    def sample(self, x: Tensor, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        """A random point, uniform in the eps-ball around ``x``, then clipped to the box."""


class Linf:
    """The largest change of any pixel."""

    limit = 1.0

    def size(self, delta: Tensor) -> Tensor:
        """See :class:`Norm`."""
        return delta.flatten(1).abs().amax(1)

    def project(self, adv: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """See :class:`Norm`."""
        return self.confine_(adv.clone(), self.region(x, eps))

    def region(self, x: Tensor, eps: Tensor) -> Region:
        """See :class:`Norm`. Ball and box are both boxes: the corners of what they share."""
        return (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)

    def confine_(self, adv: Tensor, region: Region) -> Tensor:
        """See :class:`Norm`."""
        return adv.clamp_(*region)

    def steepest(self, gradient: Tensor) -> Tensor:
        """See :class:`Norm`. The dual of linf is l1, and its maximiser is the sign (NaN: 0)."""
        return gradient.sign()

    def sample(self, x: Tensor, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        """See :class:`Norm`."""
        return (x + eps * (2 * _draw(torch.rand, x.shape, x, generator) - 1)).clamp(0, 1)


class L2:
    """The Euclidean length of the change."""

    limit = float("inf")  # sqrt(d) for d pixels

    def size(self, delta: Tensor) -> Tensor:
        """See :class:`Norm`."""
        size: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return size

    def project(self, adv: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """See :class:`Norm`. Clipping to the box afterwards only shortens the change."""
        return self.confine_(adv.clone(), self.region(x, eps))

    def region(self, x: Tensor, eps: Tensor) -> Region:
        """See :class:`Norm`. Centre and radius."""
        return x, eps

    def confine_(self, adv: Tensor, region: Region) -> Tensor:
        """See :class:`Norm`."""
        x, eps = region
        delta = adv.sub_(x)
        size = per_sample(self.size(delta), x)
        return delta.mul_(torch.where(size > eps, eps / size, 1)).add_(x).clamp_(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """See :class:`Norm`.

        Scaled by its largest entry first: the square of a tiny gradient would underflow, and an
        epsilon in the denominator would stop the attack on a confident model.
        """
        step = gradient.nan_to_num(0, 0, 0)
        for order in (torch.inf, 2):
            size = torch.linalg.vector_norm(step.flatten(1), order, dim=1)
            step.div_(per_sample(torch.where(size > 0, size, 1), step))
        return step

    def sample(self, x: Tensor, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        """See :class:`Norm`. In d dimensions the radius of a uniform point is u^(1/d)."""
        direction = _draw(torch.randn, x.shape, x, generator)
        radius = _draw(torch.rand, (len(x),), x, generator) ** (1 / x[0].numel())
        direction = direction * per_sample(radius / self.size(direction), x)
        return (x + eps * direction).clamp(0, 1)


NORMS: dict[str, Norm] = {"linf": Linf(), "l2": L2()}


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """One value per sample, shaped to broadcast against a batch.

    Args:
        values: (N,).
        x: (N, ...).

    Returns:
        The same values, (N, 1, ...).
    """
    return values.view(-1, *[1] * (x.dim() - 1))


def _draw(
    kind: Callable[..., Tensor], shape: Sequence[int], x: Tensor, generator: torch.Generator | None
) -> Tensor:
    # on the generator's own device: a CPU generator gives the same numbers for every device
    device = x.device if generator is None else generator.device
    return kind(shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
