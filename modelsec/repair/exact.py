"""The exact worst case of a tiny ReLU network: every pattern of its ReLUs, one after the other.

With each ReLU fixed on or off, the network is linear, and so is the set of images that switch its
ReLUs that way: a linear program finds the worst image among them. There are two patterns for every
ReLU whose sign is open, so this is for tiny networks. It is what bounds and attacks are checked
against.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from modelsec.attacks.common import check_inputs, check_radius
from modelsec.attacks.norms import NORMS
from modelsec.repair.bounds import relu_bounds
from modelsec.repair.layers import Bounds, Layer, linear_layers

__all__ = ["Exact", "exact_margins"]


class Exact(NamedTuple):
    """The worst case of each image.

    Attributes:
        margin: (N,) float64, the smallest ``z_y - z_j`` over all images within eps and all j.
        point: (N, ...) float64, an image at which it is reached, up to the solver's 1e-7.
        patterns: (N,) int64, how many patterns of the ReLUs there were to try.
    """

    margin: Tensor
    point: Tensor
    patterns: Tensor


def exact_margins(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    box: bool = True,
    most: int = 12,
) -> Exact:
    """Try every pattern of a tiny network's ReLUs that bounds do not rule out.

    Args:
        model: see :func:`~modelsec.repair.layers.linear_layers`.
        x: (N, ...) images in [0, 1], on the CPU.
        y: (N,) integer labels.
        eps: radius in linf, in units of a pixel's range; one number, or one per image (N,).
        box: the attacker keeps pixels in [0, 1].
        most: ReLUs with an open sign that are allowed: 2 to that power patterns are tried.

    Returns:
        An :class:`Exact`.

    Raises:
        ValueError: for images, labels or a radius out of range, or too many open ReLUs.
        TypeError: for a model with other layers.

    References:
        Tjeng et al. (2019), https://arxiv.org/abs/1711.07356, solve the same problem for larger
        networks, by mixed integer programming.
    """
    x, y = check_inputs(model, x, y)
    radius = check_radius(eps, x, NORMS["linf"]).double()
    layers, wide = linear_layers(model, torch.float64), x.double()
    found = []
    for k, label in enumerate(y.tolist()):
        image, reach = wide[k, None], radius[k, None]
        region = Bounds(image - reach, image + reach)
        if box:
            region = Bounds(region.lower.clamp(0, 1), region.upper.clamp(0, 1))
        found.append(_worst(layers, region, label, most))
    if not found:
        none = torch.empty(0, dtype=torch.float64, device=x.device)
        return Exact(none, wide, none.long())
    margins, points, tried = zip(*found, strict=True)
    return Exact(
        torch.tensor(margins, dtype=torch.float64, device=x.device),
        torch.from_numpy(np.stack(points)).view(x.shape),
        torch.tensor(tried, device=x.device),
    )


def _worst(
    layers: list[Layer], region: Bounds, label: int, most: int
) -> tuple[float, np.ndarray, int]:
    from scipy.optimize import linprog  # slow to import, so only where it is used

    inner = relu_bounds(layers, region)
    open_ = [
        ((before.lower < 0) & (before.upper > 0)).flatten()
        for layer, before in zip(layers, inner[:-1], strict=True)
        if layer is None
    ]
    unsure = int(sum(int(part.sum()) for part in open_))
    if unsure > most:
        raise ValueError(f"{unsure} ReLUs may be on or off here, at most {most} can be enumerated")
    low, high = (part.flatten().numpy() for part in region)
    best, point = np.inf, low
    for signs in product((1.0, -1.0), repeat=unsure):
        rows, offsets, limits, bounds = _linear(layers, inner, open_, signs)
        for j in range(len(rows)):
            if j == label:
                continue
            objective = rows[label] - rows[j]
            found = linprog(
                objective, A_ub=limits, b_ub=bounds, bounds=np.stack([low, high], 1), method="highs"
            )
            if found.status == 2:  # no image switches the ReLUs this way
                break
            value = found.fun + offsets[label] - offsets[j]
            if value < best:
                best, point = value, found.x
    return float(best), point, 2**unsure


def _linear(
    layers: list[Layer], inner: list[Bounds], open_: list[Tensor], signs: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The network with its ReLUs fixed, ``rows @ x + offsets``, and ``limits @ x <= bounds``."""
    start = inner[0].lower
    size = start.numel()
    # the images of the pixels' unit vectors, and of 0, carried through layer by layer
    units = torch.eye(size, dtype=torch.float64, device=start.device).view(size, *start.shape[1:])
    zero = torch.zeros_like(start)
    limits, bounds = [], []
    choices, unsure = iter(signs), iter(open_)
    for layer, before in zip(layers, inner[:-1], strict=True):
        if layer is not None:
            units, zero = layer.times(units), layer.times(zero) + layer.bias
            continue
        on = (before.lower >= 0).flatten().double()
        for k in next(unsure).nonzero()[:, 0].tolist():
            sign = next(choices)
            on[k] = float(sign > 0)
            limits.append(-sign * units.flatten(1)[:, k])
            bounds.append(sign * zero.flatten()[k])
        mask = on.view(before.lower.shape)
        units, zero = units * mask, zero * mask
    rows, offsets = units.flatten(1).T.numpy(), zero.flatten().numpy()
    if not limits:
        return rows, offsets, None, None
    return rows, offsets, torch.stack(limits).numpy(), torch.stack(bounds).numpy()
