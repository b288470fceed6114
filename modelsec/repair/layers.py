"""A ReLU network as bounds see it: layers z -> W z + b of whatever kind, and ReLUs between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from modelsec.models import Normalize

__all__ = ["Bounds", "Layer", "Linear", "linear_layers", "spread"]

M = TypeVar("M", bound=nn.Module)


class Bounds(NamedTuple):
    """Two tensors of one shape: no value lies below the first or above the second."""

    lower: Tensor
    upper: Tensor

    def meet(self, other: Bounds) -> Bounds:
        """What two bounds say together: the larger lower and the smaller upper one."""
        return Bounds(
            torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper)
        )


@dataclass(frozen=True)
class Linear:
    """One layer as z -> W z + b, whatever kind of layer it is.

    Attributes:
        layer: as it stands in the network.
        weight: W, as the layer keeps it.
        bias: b, in a shape that broadcasts against the layer's output.
    """

    layer: nn.Module
    weight: Tensor
    bias: Tensor

    def times(self, z: Tensor, weight: Tensor | None = None) -> Tensor:
        """W z, for z (N, ...); or another W's of the same layout."""
        weight = self.weight if weight is None else weight
        if isinstance(self.layer, nn.Linear):
            return F.linear(z, weight)
        if isinstance(self.layer, nn.Conv2d):
            conv = self.layer
            return F.conv2d(z, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return z.flatten(1) if isinstance(self.layer, nn.Flatten) else z * weight

    def back(self, a: Tensor, shape: torch.Size) -> Tensor:
        """``a W``, for rows a (R, ...) over the layer's output; shape is that of its input."""
        if isinstance(self.layer, nn.Linear):
            return a @ self.weight
        if isinstance(self.layer, nn.Conv2d):
            conv, size = self.layer, (len(a), *shape)
            rows: Tensor = conv2d_input(
                size, self.weight, a, conv.stride, conv.padding, conv.dilation, conv.groups
            )
            return rows
        return a.unflatten(1, shape) if isinstance(self.layer, nn.Flatten) else a * self.weight


Layer = Linear | None
"""A linear layer, or None for a ReLU."""


def linear_layers(model: nn.Module, dtype: torch.dtype | None = None) -> list[Layer]:
    """The layers of a network of linear layers and ReLU.

    Args:
        model: an ``nn.Sequential``, possibly of others, of Linear, Conv2d, Flatten, ReLU, Identity,
            Dropout (which does nothing in eval mode) and :class:`~modelsec.models.Normalize`.
        dtype: of the weights that are returned; their own if None.

    Returns:
        The layers, a ReLU as None.

    Raises:
        TypeError: for another layer, or a model that is none of these; it names what it met.
    """
    if _is(model, nn.Sequential):
        return [step for layer in model for step in linear_layers(layer, dtype)]
    if _is(model, nn.ReLU):
        return [None]
    if _is(model, nn.Identity) or _is(model, nn.Dropout):
        return []
    if _is(model, Normalize):
        mean, std = (_cast(part, dtype) for part in (model.mean, model.std))
        return [Linear(model, 1 / std, -mean / std)]
    if _is(model, nn.Flatten) and (model.start_dim, model.end_dim) == (1, -1):
        nothing = torch.zeros((), dtype=dtype, device="cpu")  # a number: it goes with any device
        return [Linear(model, nothing, nothing)]
    if _is(model, nn.Linear):
        return [_linear(model, model.bias, (-1,), dtype)]
    if _is(model, nn.Conv2d) and model.padding_mode == "zeros" and isinstance(model.padding, tuple):
        return [_linear(model, model.bias, (-1, 1, 1), dtype)]
    raise TypeError(
        "bounds are for an nn.Sequential of Linear, Conv2d (zero padding, given in numbers), "
        f"Flatten, ReLU, Dropout and Normalize; got {_told(model)}"
    )


def spread(layer: Layer, region: Bounds) -> Bounds:
    """An interval for each of a layer's outputs, from one for each of its inputs.

    Args:
        layer: of :func:`linear_layers`.
        region: bounds of its input, (N, ...).

    Returns:
        Bounds of its output. For a linear layer the middle goes through W and the half width
        through ``|W|``.
    """
    if layer is None:
        return Bounds(region.lower.relu(), region.upper.relu())
    middle, half = (region.upper + region.lower) / 2, (region.upper - region.lower) / 2
    centre = layer.times(middle) + layer.bias
    reach = layer.times(half, layer.weight.abs())
    return Bounds(centre - reach, centre + reach)


def _is(model: object, kind: type[M]) -> TypeGuard[M]:
    """Of this kind, and not of one derived from it that computes something else."""
    own: object = getattr(type(model), "forward", None)
    return isinstance(model, kind) and own is kind.forward


def _linear(
    layer: nn.Linear | nn.Conv2d, bias: Tensor | None, shape: tuple[int, ...],
    dtype: torch.dtype | None,
) -> Linear:  # fmt: skip
    offset = layer.weight.new_zeros(len(layer.weight)) if bias is None else bias
    return Linear(layer, _cast(layer.weight, dtype), _cast(offset, dtype).view(shape))


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value if dtype is None else value.detach().to(dtype)


def _told(model: object) -> str:
    if isinstance(model, nn.Module) and not list(model.children()):
        return repr(model)
    return type(model).__name__
