"""What an attack needs to know of a norm: project, steepest (and step), sample.

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
from torch._subclasses.fake_tensor import FakeTensor

__all__ = [
    "L1",
    "L2",
    "NORMS",
    "Linf",
    "Norm",
    "Region",
    "draw",
    "per_sample",
    "readable",
    "unit",
]

Region = tuple[Tensor, Tensor]
"""Two tensors that broadcast against a batch, one row per sample."""


def readable(x: Tensor) -> bool:
    """False for tensors that have a shape but no values (device "meta", FakeTensorMode)."""
    return x.device.type != "meta" and not isinstance(x, FakeTensor)


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

    def step(self, adv: Tensor, size: Tensor, gradient: Tensor) -> Tensor:
        """A step of length ``size`` uphill from ``adv``, not yet projected; a new tensor."""

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

    def step(self, adv: Tensor, size: Tensor, gradient: Tensor) -> Tensor:
        """See :class:`Norm`."""
        return torch.addcmul(adv, size, self.steepest(gradient))

    def sample(self, x: Tensor, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        """See :class:`Norm`."""
        return (x + eps * (2 * draw(torch.rand, x.shape, x, generator) - 1)).clamp(0, 1)


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

        An epsilon in the denominator would stop the attack on a confident model.
        """
        return unit(gradient, 2)

    def step(self, adv: Tensor, size: Tensor, gradient: Tensor) -> Tensor:
        """See :class:`Norm`."""
        return torch.addcmul(adv, size, self.steepest(gradient))

    def sample(self, x: Tensor, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        """See :class:`Norm`. In d dimensions the radius of a uniform point is u^(1/d)."""
        direction = draw(torch.randn, x.shape, x, generator)
        radius = draw(torch.rand, (len(x),), x, generator) ** (1 / x[0].numel())
        direction = direction * per_sample(radius / self.size(direction), x)
        return (x + eps * direction).clamp(0, 1)


class L1:
    """The sum of all changes: few pixels may change much, or many a little.

    Ball and box cut each other: a corner of the l1 ball lies a whole eps away on one pixel, and no
    pixel has that much room. Both ``step`` and ``confine_`` mind the box, as Croce & Hein (2021),
    https://arxiv.org/abs/2103.01208, show they must: clipping after a projection on the ball alone
    throws away most of the budget.
    """

    limit = float("inf")  # d for d pixels

    def size(self, delta: Tensor) -> Tensor:
        """See :class:`Norm`."""
        return delta.flatten(1).abs().sum(1)

    def project(self, adv: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """See :class:`Norm`."""
        return self.confine_(adv.clone(), self.region(x, eps))

    def region(self, x: Tensor, eps: Tensor) -> Region:
        """See :class:`Norm`. Centre and radius."""
        return x, eps

    def confine_(self, adv: Tensor, region: Region) -> Tensor:
        """See :class:`Norm`. The nearest point (in l2) of ball and box together.

        It changes pixel i by ``clip(|u_i| - cut, 0, room_i)`` where ``u = adv - x`` and room_i is
        the way to the box's wall (the paper's proposition 1).
        """
        x, eps = region
        delta = adv.sub_(x)
        way = delta.abs().flatten(1)
        room = torch.where(delta > 0, 1 - x, x).flatten(1)
        limit = eps.flatten()
        share = torch.minimum(way, room)
        over = share.sum(1) > limit
        if not readable(adv) or bool(over.any()):
            boxed = readable(adv) and torch.equal(share, way)
            cut = _cut_inside(way, limit) if boxed else _cut(way, room, limit)
            way = way - torch.where(over, cut, 0)[:, None]
        way = torch.minimum(way.clamp_min_(0), room)
        size = way.sum(1)  # rounding may have left it a hair above eps
        way *= torch.where(size > limit, limit / size, 1)[:, None]
        return delta.sign_().mul_(way.view_as(x)).add_(x).clamp_(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """See :class:`Norm`. The dual of l1 is linf: all goes to the pixel of largest slope."""
        flat = gradient.nan_to_num(0, 0, 0).flatten(1)
        first = flat.abs().argmax(1, keepdim=True)
        slope = flat.gather(1, first).sign()
        return torch.zeros_like(flat).scatter_(1, first, slope).view_as(gradient)

    def step(self, adv: Tensor, size: Tensor, gradient: Tensor) -> Tensor:
        """See :class:`Norm`. The steepest pixel up to the box's wall, then the next, and so on."""
        slope, flat = gradient.nan_to_num(0, 0, 0).flatten(1), adv.flatten(1)
        room = torch.where(slope > 0, 1 - flat, flat).masked_fill_(slope == 0, 0)
        worth = slope.abs().masked_fill_(room == 0, 0)
        # few pixels are steep enough to be reached: look for the steepest, and for more if need be
        size, d = size.flatten(1), flat.shape[1]
        few = min(_FEW, d) if readable(adv) else d
        while True:
            order = worth.topk(few, dim=1).indices
            rooms = room.gather(1, order)
            if few == d or bool((rooms.sum(1, keepdim=True) >= size).all()):
                break
            few = min(8 * few, d)
        move = torch.minimum((size - (rooms.cumsum(1) - rooms)).clamp_min_(0), rooms)
        move *= slope.gather(1, order).sign_()
        return flat.scatter_add(1, order, move).view_as(adv)

    def sample(self, x: Tensor, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        """See :class:`Norm`. Exponential lengths: d of d + 1 of them share the radius out."""
        flat = x.flatten(1)
        uniform = draw(torch.rand, (len(flat), flat.shape[1] + 1), x, generator)
        # 1 - u is never 0; in d dimensions the last share is what keeps the point off the surface
        lengths = -torch.log1p(-uniform)
        share = lengths[:, :-1] / lengths.sum(1, keepdim=True)
        sign = draw(torch.rand, flat.shape, x, generator).sub_(0.5).sign_()
        return (x + eps * (share * sign).view_as(x)).clamp(0, 1)


_FEW = 32


def _cut(way: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """The cut (n,) at which ``clip(way - cut, 0, room)`` sums to eps; way, room (n, d)."""
    # the sum falls as the cut rises, and is piecewise linear: sort its kinks, see where it meets
    # eps; each pixel's share falls with slope -1 between the kinks way - room and way
    kinks, order = torch.cat([way - room, way], 1).clamp_min(0).sort(1)
    slopes = torch.cat([-torch.ones_like(way), torch.ones_like(way)], 1).gather(1, order)
    slopes = slopes.cumsum(1)
    falls = slopes[:, :-1] * kinks.diff(dim=1)
    start = torch.minimum(way, room).sum(1, keepdim=True)
    total = torch.cat([start, start + falls.cumsum(1)], 1)  # the sum at every kink
    at = (
        (total >= eps[:, None]).sum(1, keepdim=True).sub_(1).clamp_min_(0)
    )  # the last one above eps
    high, slope, kink = (part.gather(1, at)[:, 0] for part in (total, slopes, kinks))
    return kink + torch.where(slope < 0, (eps - high) / slope, 0)


def _cut_inside(way: Tensor, eps: Tensor) -> Tensor:
    """:func:`_cut` where no way is longer than its room, as after a step that minds the box.

    The sum is convex then, and Newton's method from 0 ends after a few rounds.
    """
    cut = torch.zeros_like(eps)
    while True:
        above = way > cut[:, None]
        size = torch.where(above, way, 0).sum(1) - eps
        better = size / above.sum(1).clamp_min_(1)
        if not bool((better > cut).any()):
            return cut
        cut = torch.maximum(cut, better)


NORMS: dict[str, Norm] = {"linf": Linf(), "l2": L2(), "l1": L1()}


def unit(gradient: Tensor, order: float) -> Tensor:
    """Each sample's gradient scaled to a norm of 1, however small it is.

    Scaled by its largest entry first: the square of a tiny gradient would underflow.

    Args:
        gradient: (N, ...); NaN and infinite entries count as 0.
        order: of the norm, such as 2.

    Returns:
        (N, ...), a new tensor; 0 where the gradient is 0.
    """
    step = gradient.nan_to_num(0, 0, 0)
    for each in (torch.inf, order):
        size = torch.linalg.vector_norm(step.flatten(1), each, dim=1)
        step.div_(per_sample(torch.where(size > 0, size, 1), step))
    return step


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """One value per sample, shaped to broadcast against a batch.

    Args:
        values: (N,).
        x: (N, ...).

    Returns:
        The same values, (N, 1, ...).
    """
    return values.view(-1, *[1] * (x.dim() - 1))


def draw(
    kind: Callable[..., Tensor], shape: Sequence[int], x: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Random numbers, drawn on the generator's own device: the same ones for every device of x.

    Args:
        kind: ``torch.rand`` or ``torch.randn``.
        shape: of the result.
        x: gives dtype and device.
        generator: torch's global one of x's device if None.

    Returns:
        A tensor of that shape beside ``x``.
    """
    device = x.device if generator is None else generator.device
    return kind(shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
