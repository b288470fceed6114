"""Bounds on a network's answers over a whole ball of inputs: IBP and CROWN.

What holds for the bounds holds for every image in the ball, tried or not. They are made for
networks of linear layers (fully connected, convolution, :class:`~modelsec.models.Normalize`) and
ReLU, in a row.

The bounds are those of the network in real numbers. They are computed in float64 and then moved
outward, by ``64 u (1 + b)``, with u the spacing of the model's own numbers at 1 (1.2e-7 for
float32) and b the largest bound of the image: what the rounding of its forward pass may add. That
is a stated tolerance and no proof about rounding; Jia & Rinard (2020),
https://arxiv.org/abs/2003.03021, show networks on which the difference matters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelsec.attacks.common import check_inputs, check_radius
from modelsec.attacks.norms import NORMS, readable
from modelsec.repair.layers import Bounds, Layer, linear_layers, spread

__all__ = [
    "certified",
    "certified_radius",
    "crown",
    "ibp",
    "interval_margins",
    "margin_bounds",
    "relu_bounds",
]

METHODS = ("both", "crown", "ibp")


def ibp(model: nn.Module, x: Tensor, *, eps: float | Tensor, box: bool = True) -> Bounds:
    """Interval bound propagation: an interval for each neuron, layer after layer.

    Args:
        model: see :func:`~modelsec.repair.layers.linear_layers`.
        x: (N, ...) images in [0, 1].
        eps: radius in linf, in units of a pixel's range; one number, or one per image (N,).
        box: the attacker keeps pixels in [0, 1], as all attacks of the package do; False bounds
            the whole ball.

    Returns:
        Bounds on the logits, (N, K) float64.

    Raises:
        TypeError: for a model with other layers.
        ValueError: for images or a radius out of range; the message says what is wanted.

    References:
        Gowal et al. (2018), https://arxiv.org/abs/1810.12715.
    """
    layers, region, slack = _prepare(model, x, eps, box)
    for layer in layers:
        region = spread(layer, region)
    return _outward(region, slack)


def crown(model: nn.Module, x: Tensor, *, eps: float | Tensor, box: bool = True) -> Bounds:
    """CROWN: each logit between two linear functions of the image.

    Every ReLU that may be on or off is put between two lines; going back from the logits to the
    pixels, the lines become one linear function of the image, whose extreme value is known. The
    bounds of inner neurons are made the same way, and met with IBP's.

    A logit's bound may be looser than IBP's; the :meth:`~modelsec.repair.layers.Bounds.meet` of
    both is valid, and what :func:`certified` uses.

    Args:
        model: see :func:`~modelsec.repair.layers.linear_layers`.
        x: (N, ...) images in [0, 1].
        eps: radius in linf, in units of a pixel's range; one number, or one per image (N,).
        box: see :func:`ibp`.

    Returns:
        Bounds on the logits, (N, K) float64.

    Raises:
        TypeError: for a model with other layers.
        ValueError: for images or a radius out of range; the message says what is wanted.

    References:
        Zhang et al. (2018), https://arxiv.org/abs/1811.00866, with an adaptively chosen lower line.
    """
    layers, region, slack = _prepare(model, x, eps, box)
    inner = relu_bounds(layers, region)
    k = inner[-1].lower.shape[1]
    one = torch.eye(k, dtype=region.lower.dtype, device=x.device)
    both = _back(layers, inner, torch.cat([one, -one]).expand(len(x), -1, -1))
    return _outward(Bounds(both[:, :k], -both[:, k:]), slack)


def margin_bounds(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    method: str = "both",
    box: bool = True,
) -> Tensor:
    """How far the true class's logit stays above each other's, at least.

    The difference of two logits is bounded as one number. That is tighter than the difference of
    their bounds: the image that is worst for one need not be worst for the other.

    Args:
        model: see :func:`~modelsec.repair.layers.linear_layers`.
        x: (N, ...) images in [0, 1].
        y: (N,) integer labels.
        eps: radius in linf, in units of a pixel's range; one number, or one per image (N,).
        method: "ibp", "crown" or "both", the better of the two for each difference.
        box: see :func:`ibp`.

    Returns:
        (N, K) float64: a lower bound of ``z_y - z_j`` for each j; infinite at y itself.

    Raises:
        TypeError: for a model with other layers, or labels that are no integers.
        ValueError: for images, labels, a radius or a method out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    x, y = check_inputs(model, x, y)
    layers, region, slack = _prepare(model, x, eps, box)
    found: list[Tensor] = []
    if method != "crown":
        inner = _by_intervals(layers, region)
        _check_classes(inner[-1], y)
        found.append(interval_margins(layers, inner, y))
    if method != "ibp":
        inner = relu_bounds(layers, region)
        _check_classes(inner[-1], y)
        found.append(_back(layers, inner, _differences(y, inner[-1].lower)))
    best = found[0] if len(found) == 1 else torch.maximum(*found)
    moved = _outward(Bounds(best, best), slack).lower
    return moved.scatter(1, y[:, None], torch.inf)


def certified(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    method: str = "both",
    box: bool = True,
) -> Tensor:
    """Is the answer proven right for every image within eps?

    Args:
        model: see :func:`~modelsec.repair.layers.linear_layers`.
        x: (N, ...) images in [0, 1].
        y: (N,) integer labels.
        eps: radius in linf, in units of a pixel's range; one number, or one per image (N,).
        method: see :func:`margin_bounds`.
        box: see :func:`ibp`.

    Returns:
        (N,) bool. False means "not proven", and not "can be attacked".

    Raises:
        TypeError, ValueError: as :func:`margin_bounds`.
    """
    if method != "both" or not isinstance(x, Tensor) or not readable(x):
        return (margin_bounds(model, x, y, eps=eps, method=method, box=box) > 0).all(1)
    holds = certified(model, x, y, eps=eps, method="ibp", box=box)
    # CROWN is dear: only where intervals prove nothing, and there is something to prove
    right = certified(model, x, y, eps=0.0, method="ibp")
    rows = (right & ~holds).nonzero()[:, 0]
    if len(rows):
        radius = eps[rows] if isinstance(eps, Tensor) and eps.dim() else eps
        found = margin_bounds(model, x[rows], y[rows], eps=radius, method=method, box=box)
        holds[rows] = (found > 0).all(1)
    return holds


def certified_radius(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    most: float = 1.0,
    halvings: int = 10,
    method: str = "both",
    box: bool = True,
) -> Tensor:
    """The largest radius at which an image is certified, found by halving an interval.

    Args:
        model: see :func:`~modelsec.repair.layers.linear_layers`.
        x: (N, ...) images in [0, 1].
        y: (N,) integer labels.
        most: the largest radius to look for.
        halvings: the radius is known up to ``most / 2**halvings``.
        method: see :func:`margin_bounds`.
        box: see :func:`ibp`.

    Returns:
        (N,) of x's dtype: a radius that is certified; 0 where none was, a wrong answer included.

    Raises:
        TypeError, ValueError: as :func:`margin_bounds`.
    """
    proven = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    step = most
    for _ in range(halvings):
        step = step / 2
        holds = certified(model, x, y, eps=proven + step, method=method, box=box)
        proven = torch.where(holds, proven + step, proven)
    return proven


def interval_margins(layers: list[Layer], inner: list[Bounds], y: Tensor) -> Tensor:
    """IBP's lower bounds of ``z_y - z_j``, where y itself has 0.

    A last linear layer is merged with the difference: that is tighter.

    Args:
        layers: of :func:`~modelsec.repair.layers.linear_layers`.
        inner: bounds of the input of every layer, and of the output.
        y: (N,) labels.

    Returns:
        (N, K).
    """
    rows = _differences(y, inner[-1].lower)
    bounds = inner[-1]
    last = layers[-1]
    offset: Tensor | float = 0.0
    if last is not None and isinstance(last.layer, nn.Linear):
        bounds, offset = inner[-2], rows @ last.bias
        rows = rows @ last.weight
    middle, half = (bounds.upper + bounds.lower) / 2, (bounds.upper - bounds.lower) / 2
    return (rows @ middle[..., None] - rows.abs() @ half[..., None])[..., 0] + offset


def relu_bounds(layers: list[Layer], region: Bounds) -> list[Bounds]:
    """Bounds of the input of every layer, and of the output: by CROWN before each ReLU.

    Args:
        layers: of :func:`~modelsec.repair.layers.linear_layers`.
        region: bounds of the network's input.

    Returns:
        One entry per layer, and one more.
    """
    inner = [region]
    for position, layer in enumerate(layers):
        now = spread(layer, inner[-1])
        inner.append(now)
        follows = position + 1 < len(layers) and layers[position + 1] is None
        # before the first ReLU intervals are exact
        if follows and None in layers[:position] and len(now.lower):
            inner[-1] = _tightened(layers[: position + 1], inner)
    return inner


def _by_intervals(layers: list[Layer], region: Bounds) -> list[Bounds]:
    inner = [region]
    for layer in layers:
        inner.append(spread(layer, inner[-1]))
    return inner


def _tightened(layers: list[Layer], inner: list[Bounds]) -> Bounds:
    """The bounds of the last layer's outputs, by CROWN where intervals leave the sign open."""
    found = []
    for image in range(len(inner[0].lower)):  # one at a time: each has its own rows, and many
        one = [Bounds(part.lower[image, None], part.upper[image, None]) for part in inner]
        low, high = (part.flatten() for part in one[-1])
        rows = torch.arange(len(low), device=low.device)
        if readable(low):
            rows = rows[(low < 0) & (high > 0)]
        if len(rows):
            k = len(rows)
            signs = torch.eye(len(low), dtype=low.dtype, device=low.device)[rows]
            chosen = torch.cat([signs, -signs]).unflatten(1, one[-1].lower.shape[1:])
            both = _back(layers, one, chosen[None])[0]
            low = low.index_put((rows,), torch.maximum(low[rows], both[:k]))
            high = high.index_put((rows,), torch.minimum(high[rows], -both[k:]))
        found.append((low, high))
    shape = inner[-1].lower.shape
    return Bounds(*(torch.stack(ends).view(shape) for ends in zip(*found, strict=True)))


def _back(layers: list[Layer], inner: list[Bounds], a: Tensor) -> Tensor:
    """A lower bound of each row's product with the last layer's output.

    ``a`` (N, R, ...) holds R rows of coefficients per image. Going back, a layer turns
    coefficients of its output into coefficients of its input; a constant collects the rest.
    """
    constant: Tensor | float = 0.0
    for layer, before in zip(reversed(layers), reversed(inner[:-1]), strict=True):
        if layer is None:
            low, high = before
            unsure = (low < 0) & (high > 0)
            slope = torch.where(unsure, high / (high - low), (low >= 0).to(low))
            gap = torch.where(unsure, -slope * low, 0.0)  # the upper line, at 0
            under = torch.where(unsure, (high > -low).to(low), slope)  # the lower line, through 0
            up, down = a.clamp(min=0), a.clamp(max=0)
            constant = constant + (down * gap[:, None]).flatten(2).sum(2)
            a = up * under[:, None] + down * slope[:, None]
        else:
            constant = constant + (a * layer.bias).flatten(2).sum(2)
            shape = before.lower.shape[1:]
            a = layer.back(a.flatten(0, 1), shape).unflatten(0, a.shape[:2])
    low, high = inner[0]
    ends = a.clamp(min=0) * low[:, None] + a.clamp(max=0) * high[:, None]
    return ends.flatten(2).sum(2) + constant


def _differences(y: Tensor, logits: Tensor) -> Tensor:
    """For each image the rows that take z to ``z_y - z_j``: (N, K, K)."""
    one = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    return one[y][:, None] - one


def _prepare(
    model: nn.Module, x: Tensor, eps: float | Tensor, box: bool
) -> tuple[list[Layer], Bounds, float]:
    """The layers and the region in float64, and by how much to move bounds outward."""
    labels = x.new_zeros(x.shape[:1], dtype=torch.long) if isinstance(x, Tensor) else x
    x, _ = check_inputs(model, x, labels)
    radius = check_radius(eps, x, NORMS["linf"])
    # some devices have no float64
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    layers = linear_layers(model, wide)
    own = [p.dtype for p in model.parameters()] or [x.dtype]
    slack = 64 * max(torch.finfo(kind).eps for kind in own)
    middle, radius = x.to(wide), radius.to(wide)
    region = Bounds(middle - radius, middle + radius)
    return layers, Bounds(*(part.clamp(0, 1) for part in region)) if box else region, slack


def _outward(bounds: Bounds, slack: float) -> Bounds:
    largest = torch.maximum(bounds.lower.abs(), bounds.upper.abs())
    room = slack * (1 + largest.amax(1, keepdim=True)) if largest.numel() else largest
    return Bounds(bounds.lower - room, bounds.upper + room)


def _check_classes(logits: Bounds, y: Tensor) -> None:
    low = logits.lower
    if low.dim() != 2 or low.shape[1] < 2:
        raise ValueError(f"the model must return logits (N, K), K >= 2, got {tuple(low.shape)}")
    if readable(low) and len(y):
        if bool(low.isnan().any()):
            raise ValueError("the model's weights lead to NaN bounds")
        if int(y.max()) >= low.shape[1]:
            raise ValueError(f"labels must be 0 to {low.shape[1] - 1} here, got {int(y.max())}")
