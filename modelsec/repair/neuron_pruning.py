"""Adversarial neuron pruning: which units of a network does an attack on its weights go through?"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from modelsec.attacks.common import check_counts
from modelsec.attacks.norms import draw
from modelsec.repair.backdoors import check_clean, hidden_layers, some
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference, progress_bar

__all__ = ["anp", "neuron_masks", "scaled"]


def scaled(model: nn.Module, x: Tensor, weight: dict[str, Tensor], bias: dict[str, Tensor]) -> Any:
    """The model's answer with each unit's weights, and its bias, multiplied by a number.

    Args:
        model: the network; it stays as it is.
        x: (N, ...) images.
        weight: a layer's name -> (units,) factors of their weights.
        bias: the same for their biases; layers that are missing keep theirs.

    Returns:
        (N, K) logits, through which the factors can be differentiated.
    """
    changed = {}
    for name, module in hidden_layers(model).items():
        factor = weight[name].view(-1, *[1] * (module.weight.dim() - 1))
        changed[f"{name}.weight"] = factor * module.weight
        if module.bias is not None and name in bias:
            changed[f"{name}.bias"] = bias[name] * module.bias
    return functional_call(model, changed, (x,))


def neuron_masks(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 0.4,
    alpha: float = 0.2,
    steps: int = 120,
    lr: float = 0.2,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """How much of each unit is left when the network has to withstand an attack on its weights.

    Each unit of the hidden layers gets a mask m from 0 to 1. In every step an adversary multiplies
    its weights by m + delta and its bias by 1 + xi, with delta and xi from -eps to eps, such that
    the loss on clean images becomes large (one step along the gradient's sign, from a random
    start). Then the masks move so that ``alpha`` times the loss without the adversary, plus
    1 - alpha times the loss with it, becomes small.

    Args:
        model: the network; it stays as it is, in eval mode meanwhile.
        x: (N, ...) float in [0, 1], clean images.
        y: (N,) their integer labels.
        eps: the adversary's limit, as a share of a unit's weights.
        alpha: weight of the loss without the adversary, 0 to 1.
        steps: steps of the masks.
        lr: their learning rate (gradient descent with momentum 0.9).
        batch_size: images a step, drawn with replacement.
        generator: draws images and starts; torch's global one if None.
        progress: show a bar; None means yes, unless MODELSEC_PROGRESS=0 is set.

    Returns:
        A layer's name -> (units,) masks.

    Raises:
        TypeError: if the model is no module, or x or y of the wrong kind.
        ValueError: if there are no images, values are out of range, or there is no hidden layer.

    References:
        Wu & Wang (2021), https://arxiv.org/abs/2110.14430, algorithm 1. (Their code puts masks and
        noise into BatchNorm layers. Here they multiply the weights, as in the paper's formulas.)
    """
    x, y = check_clean(model, x, y)
    check_counts(steps=steps, batch_size=batch_size)
    if not eps >= 0 or not 0 <= alpha <= 1:
        raise ValueError(f"eps must be 0 or more, alpha from 0 to 1, got {eps} and {alpha}")
    layers = hidden_layers(model)
    if not layers:
        raise ValueError("the model has no hidden layer whose units could be masked")
    masks = {
        name: torch.ones(len(layer.weight), dtype=x.dtype, device=x.device).requires_grad_()
        for name, layer in layers.items()
    }
    optimizer = torch.optim.SGD(list(masks.values()), lr=lr, momentum=0.9)
    none = {name: torch.ones_like(mask) for name, mask in masks.items()}

    def loss(batch: Tensor, labels: Tensor, noise: dict[str, Tensor]) -> Tensor:
        weight = {name: masks[name] + noise[name][0] for name in masks}
        bias = {name: none[name] + noise[name][1] for name in masks}
        return F.cross_entropy(scaled(model, batch, weight, bias), labels)

    bar = progress_bar(steps, "masks", progress)
    silence = {name: torch.stack([torch.zeros_like(one)] * 2) for name, one in none.items()}
    with inference(model), torch.enable_grad():
        for _ in range(steps):
            rows = some(x, batch_size, generator)
            noise = {
                name: (
                    eps * (2 * draw(torch.rand, (2, len(one)), x, generator) - 1)
                ).requires_grad_()
                for name, one in none.items()
            }
            slopes = torch.autograd.grad(loss(x[rows], y[rows], noise), list(noise.values()))
            worst = {
                name: (start.detach() + eps * slope.sign()).clamp(-eps, eps)
                for (name, start), slope in zip(noise.items(), slopes, strict=True)
            }
            value = alpha * loss(x[rows], y[rows], silence)
            value = value + (1 - alpha) * loss(x[rows], y[rows], worst)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            with torch.no_grad():
                for mask in masks.values():
                    mask.clamp_(0, 1)
            bar.update()
    bar.close()
    return {name: mask.detach() for name, mask in masks.items()}


@threat(
    ThreatModel(
        goal="repair", knowledge="data", stage="training",
        cost="three passes a step on a few clean images, and some units",
        source="https://arxiv.org/abs/2110.14430",
    )
)  # fmt: skip
def anp(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threshold: float = 0.2,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
    **options: Any,
) -> nn.Module:
    """Adversarial neuron pruning: switch off the units through which the weights are attacked.

    Units whose mask ends below ``threshold`` lose their weights; their biases stay.

    Args:
        model: the network; it stays as it is.
        x: (N, ...) float in [0, 1], clean images.
        y: (N,) their integer labels.
        threshold: of the masks, 0 to 1.
        generator: draws images and the adversary's starts; torch's global one if None.
        progress: show a bar; None means yes, unless MODELSEC_PROGRESS=0 is set.
        **options: eps, alpha, steps, lr, batch_size of :func:`neuron_masks`.

    Returns:
        A new network, in eval mode.

    Raises:
        TypeError: if the model is no module, or x or y of the wrong kind.
        ValueError: if there are no images, values are out of range, or there is no hidden layer.

    References:
        Wu & Wang (2021), https://arxiv.org/abs/2110.14430.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be from 0 to 1, got {threshold}")
    masks = neuron_masks(model, x, y, generator=generator, progress=progress, **options)
    repaired = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, module in hidden_layers(repaired).items():
            module.weight[masks[name] < threshold] = 0
    return repaired
