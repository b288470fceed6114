"""Reading training images out of one training step: gradient inversion.

Where a linear layer meets the image first, its gradient holds the image, and one division gets it out.
Deeper networks take a search for images that have this gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modelsec.attacks.common import Model, check_counts
from modelsec.attacks.descent import (
    check_classes,
    check_search,
    descend,
    ordinary,
    total_variation,
)
from modelsec.attacks.norms import draw
from modelsec.losses import cross_entropy
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["gradient_labels", "invert_features", "invert_gradient", "layer_inputs", "step_gradient"]


def step_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """What a participant of shared training sends: the gradient of the mean cross-entropy.

    Args:
        model: maps (N, ...) to logits (N, K); used in the mode that it is in, and left as it is.
        x: (N, ...) the participant's images.
        y: (N,) their labels.

    Returns:
        One tensor for each of ``model.parameters()``, in their order.
    """
    return _gradient(model, _leaves(model), x, y, graph=False)


def layer_inputs(weight: Tensor, bias: Tensor, *, tolerance: float = 1e-6) -> Tensor:
    """What a linear layer was given, from the gradients of its weights and biases: exactly.

    For one input x the gradient of row i is ``g_i x`` and that of bias i is ``g_i``, so their ratio
    is x. For a batch it is a mean of the inputs, weighted by what unit i is to blame for in each;
    a unit that only one input sets off still shows this one as it is.

    Args:
        weight: (H, D) the gradient by the layer's weights.
        bias: (H,) the gradient by its biases.
        tolerance: units whose bias gradient is smaller than this share of the largest one are left
            out: they would divide rounding errors.

    Returns:
        (M, D), one candidate for each unit that is left, in the units' order; of a single input all
        are equal. Empty if no unit has a gradient.

    Raises:
        ValueError: if the shapes are not (H, D) and (H,), or tolerance is not in [0, 1).

    References:
        Phong et al. (2018), https://doi.org/10.1109/TIFS.2017.2787987; Geiping et al. (2020),
        https://arxiv.org/abs/2003.14053, who prove it for a linear layer anywhere in a network.
    """
    if weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"weight and bias must have shapes (H, D) and (H,), got {tuple(weight.shape)} and "
            f"{tuple(bias.shape)}"
        )
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), got {tolerance}")
    if not len(bias):
        return weight
    size = bias.abs()
    used = (size > tolerance * size.max()) & (size > 0)
    return weight[used] / bias[used, None]


def gradient_labels(bias: Tensor, n: int = 1) -> Tensor:
    """The labels of a batch, from the gradient of the last layer's biases.

    With cross-entropy it is the mean of ``p - onehot(y)``. Only a label makes an entry negative: of
    a single image it is told for sure. In a batch the lowest entry is taken for a label, 1 / n is
    given back to it, and so on: right as long as the probabilities are alike.

    Args:
        bias: (K,) the gradient of the mean loss by the last layer's biases.
        n: images in the batch.

    Returns:
        (n,) int64 labels, sorted.

    Raises:
        ValueError: if bias is not (K,), or n below 1.

    References:
        Zhao, Mopuri & Bilen (2020), https://arxiv.org/abs/2001.02610, for one image.
    """
    check_counts(n=n)
    if bias.dim() != 1 or not len(bias):
        raise ValueError(f"bias must have shape (K,), got {tuple(bias.shape)}")
    left, found = bias.detach().clone(), []
    for _ in range(n):
        lowest = left.argmin()
        left[lowest] += 1 / n
        found.append(lowest)
    return torch.stack(found).sort().values


@threat(
    ThreatModel(
        goal="privacy",
        knowledge="white-box",
        stage="training",
        cost="steps gradients of a gradient",
        source="https://arxiv.org/abs/2003.14053",
    )
)
def invert_gradient(
    model: nn.Module,
    gradient: Sequence[Tensor],
    y: Tensor,
    *,
    shape: Sequence[int] = (1, 28, 28),
    steps: int = 300,
    distance: Literal["cosine", "l2"] = "cosine",
    weight: float = 1e-5,
    step_size: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Gradient inversion: images whose gradient is the one that was sent.

    Adam is given the sign of the gradient, and its steps are cut to a tenth after 3/8, 5/8 and 7/8
    of them, as the authors do.

    Args:
        model: the network, as it was when the gradient was computed.
        gradient: one tensor for each of ``model.parameters()``, as :func:`step_gradient` returns.
        y: (N,) labels of the N images that went into it, such as :func:`gradient_labels` tells.
        shape: of an image.
        steps: gradient steps.
        distance: "cosine", one minus the cosine of the two gradients as one long vector, or "l2",
            their squared distance.
        weight: of the :func:`~modelsec.attacks.descent.total_variation`; 0 for none.
        step_size: in pixel values.
        generator: draws the start, noise; torch's global one if None.

    Returns:
        (N, ...) images in [0, 1], dtype and device of the gradient. Their order within a class is
        arbitrary.

    Raises:
        TypeError: if the model is no module, or labels are no integers.
        ValueError: if the gradient does not fit the model's parameters, for labels that are not (N,),
            an unknown distance, a negative weight, no step, or a step size of 0 or less.

    References:
        Zhu, Liu & Han (2019), https://arxiv.org/abs/1906.08935 ("l2", with L-BFGS); Geiping et al.
        (2020), https://arxiv.org/abs/2003.14053 ("cosine", total variation, signs).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    check_search(model, steps, step_size, weight)
    y = check_classes("y", y)
    if distance not in ("cosine", "l2"):
        raise ValueError(f'distance must be "cosine" or "l2", got {distance!r}')
    wanted = [ordinary(tensor) for tensor in gradient]
    shapes = [tuple(p.shape) for p in model.parameters()]
    if [tuple(tensor.shape) for tensor in wanted] != shapes or not shapes:
        raise ValueError(
            "gradient must have one tensor for each of model.parameters(), of shapes "
            f"{shapes}, got {[tuple(tensor.shape) for tensor in wanted]}"
        )
    leaves = _leaves(model)
    point = draw(torch.rand, (len(y), *shape), wanted[0], generator)

    def cost(at: Tensor) -> Tensor:
        made = _gradient(model, leaves, at, y, graph=True)
        if distance == "cosine":
            size = _inner(made, made).sqrt() * _inner(wanted, wanted).sqrt()
            value = 1 - _inner(made, wanted) / size.clamp_min(torch.finfo(size.dtype).tiny)
        else:
            apart = [a - b for a, b in zip(made, wanted, strict=True)]
            value = _inner(apart, apart)
        return value + weight * total_variation(at).sum()

    return descend(cost, point, steps, step_size, boxed=True, signed=True, cut=10)


def invert_features(
    front: Model,
    wanted: Tensor,
    *,
    shape: Sequence[int] = (1, 28, 28),
    steps: int = 300,
    weight: float = 1e-5,
    step_size: float = 0.05,
) -> Tensor:
    """Images that the front of a network turns into the features that are wanted.

    Needs no gradient of a gradient: after :func:`layer_inputs` has told what a layer deep inside was
    given, only the layers before it are left to be undone. Starts from grey.

    Args:
        front: maps images (N, ...) to features (N, ...); a module is frozen and in eval mode meanwhile.
        wanted: (N, ...) the features.
        shape: of an image.
        steps: of Adam, whose steps are cut to a third after 3/8, 5/8 and 7/8 of them.
        weight: of the :func:`~modelsec.attacks.descent.total_variation`, beside the squared distance as a share of the
            features' squared length.
        step_size: in pixel values.

    Returns:
        (N, ...) images in [0, 1], dtype and device of ``wanted``.

    Raises:
        TypeError: for a front that can't be called, or features that are not floating point.
        ValueError: if the front makes features of another shape, or for a negative weight, no step,
            or a step size of 0 or less.

    References:
        Mahendran & Vedaldi (2015), https://arxiv.org/abs/1412.0035; layer by layer and
        in closed form: Zhu & Blaschko (2021), https://arxiv.org/abs/2010.07733.
    """
    check_search(front, steps, step_size, weight)
    if not isinstance(wanted, Tensor) or not wanted.is_floating_point():
        kind = wanted.dtype if isinstance(wanted, Tensor) else type(wanted).__name__
        raise TypeError(f"wanted must be a floating-point tensor, got {kind}")
    wanted = ordinary(wanted)
    size = wanted.flatten(1).square().sum(1).clamp_min(torch.finfo(wanted.dtype).tiny)

    def cost(at: Tensor) -> Tensor:
        made = front(at)
        if made.shape != wanted.shape:
            raise ValueError(
                f"wanted must have the shape of the front's features, {tuple(made.shape)}, got "
                f"{tuple(wanted.shape)}"
            )
        apart = (made - wanted).flatten(1).square().sum(1)
        return apart / size + weight * total_variation(at)

    point = torch.full((len(wanted), *shape), 0.5, dtype=wanted.dtype, device=wanted.device)
    with inference(front):
        return descend(cost, point, steps, step_size, boxed=True, cut=3)


def _leaves(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that take gradients, whatever the model's own are set to."""
    return {name: ordinary(p).requires_grad_() for name, p in model.named_parameters()}


def _gradient(
    model: nn.Module, leaves: dict[str, Tensor], x: Tensor, y: Tensor, *, graph: bool
) -> tuple[Tensor, ...]:
    """The gradient of the mean loss by the parameters; with ``graph``, it can be differentiated."""
    buffers = {name: ordinary(buffer) for name, buffer in model.named_buffers()}
    with torch.inference_mode(False), torch.enable_grad():
        loss = cross_entropy(functional_call(model, leaves | buffers, (x,)), y).mean()
        return torch.autograd.grad(loss, list(leaves.values()), create_graph=graph)


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(p * q).sum() for p, q in zip(a, b, strict=True)]).sum()
