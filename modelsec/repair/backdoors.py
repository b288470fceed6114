"""Repairs of a network with a backdoor, from a few clean images and without the trigger.

Each returns a new network; the given one stays as it is. None of them needs the training data.
Adversarial neuron pruning stands in :mod:`modelsec.repair.neuron_pruning`, the search for the
trigger in :mod:`modelsec.repair.neural_cleanse`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.attacks.common import check_inputs
from modelsec.attacks.norms import draw
from modelsec.losses import cross_entropy
from modelsec.threat import ThreatModel, threat
from modelsec.training import evaluate, fit, inference

__all__ = [
    "activity",
    "attention",
    "check_clean",
    "fine_prune",
    "fine_tune",
    "hidden_layers",
    "nad",
    "prune",
    "repaired_copy",
    "some",
]


def check_clean(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check what every repair is given.

    Args:
        model: the network to repair.
        x: (N, ...) float in [0, 1], clean images.
        y: (N,) their integer labels.

    Returns:
        x detached from any graph, and y as int64.

    Raises:
        TypeError: if the model is no module, or x or y of the wrong kind.
        ValueError: if there are no images, or values, shapes or devices don't fit.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    x, y = check_inputs(model, x, y)
    if not len(x):
        raise ValueError("x holds no clean images: a repair needs some")
    return x, y


def some(x: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Rows of a batch, drawn with replacement.

    Args:
        x: (N, ...) what to draw from, N at least 1.
        count: how many.
        generator: draws; torch's global one of x's device if None.

    Returns:
        (count,) indices.
    """
    # a rounding up to 1 would lie behind the last row
    return (draw(torch.rand, (count,), x, generator) * len(x)).long().clamp(max=len(x) - 1)


@contextmanager
def repaired_copy(model: nn.Module) -> Iterator[nn.Module]:
    """A copy to be trained; afterwards it is in eval mode, and frozen where the model is.

    Args:
        model: is left alone.

    Returns:
        A context manager that gives the copy.
    """
    repaired = copy.deepcopy(model).requires_grad_(True)
    yield repaired
    repaired.zero_grad(set_to_none=True)
    for own, given in zip(repaired.parameters(), model.parameters(), strict=True):
        own.requires_grad_(given.requires_grad)
    repaired.eval()


@threat(
    ThreatModel(
        goal="repair", knowledge="data", stage="training", cost="some epochs on a few clean images",
        source="https://arxiv.org/abs/1805.12185",
    )
)  # fmt: skip
def fine_tune(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 20,
    lr: float = 3e-3,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Fine-tuning: train on, with clean images only.

    Args:
        model: the network; it stays as it is.
        x: (N, ...) float in [0, 1], clean images.
        y: (N,) their integer labels.
        epochs: passes over them.
        lr: Adam's learning rate.
        batch_size: images a step.
        generator: draws the order; torch's global one if None.
        progress: as for :func:`modelsec.training.fit`.

    Returns:
        A new network, in eval mode.

    Raises:
        TypeError: if the model is no module, or x or y of the wrong kind.
        ValueError: if there are no images, or values are out of range.

    References:
        Liu, Dolan-Gavitt & Garg (2018), https://arxiv.org/abs/1805.12185.
    """
    x, y = check_clean(model, x, y)
    options: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
    with repaired_copy(model) as repaired:
        fit(repaired, x, y, generator=generator, progress=progress, **options)
    return repaired


def hidden_layers(model: nn.Module, kind: type[nn.Module] | None = None) -> dict[str, Any]:
    """The convolutions and linear layers of a model, without the last linear one, of the logits.

    Args:
        model: the network.
        kind: ``nn.Conv2d`` or ``nn.Linear``, for layers of this kind only.

    Returns:
        A name in ``model.named_modules()`` -> the layer, in the order of the network.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    if last := [name for name, module in found.items() if isinstance(module, nn.Linear)]:
        del found[last[-1]]
    return {n: m for n, m in found.items() if kind is None or isinstance(m, kind)}


def _layer(model: nn.Module, name: str | None) -> Any:
    """The layer of that name; the last convolution, or the last hidden linear layer, if None."""
    known = hidden_layers(model)
    usual = list(hidden_layers(model, nn.Conv2d)) or list(known)
    if not usual or (name is not None and name not in known):
        raise ValueError(f"layer must be one of the hidden layers {list(known)}, got {name!r}")
    return known[usual[-1] if name is None else name]


def activity(model: nn.Module, x: Tensor, *, layer: str | None = None) -> Tensor:
    """How much images use each unit of a layer: the mean of the positive part of its output.

    Args:
        model: the network; in eval mode meanwhile.
        x: (N, ...) images, at least one.
        layer: one of :func:`hidden_layers`; the last convolution if None, or the last of all where
            there is no convolution.

    Returns:
        (units,) one number for each channel of a convolution, or each unit of a linear layer.

    Raises:
        ValueError: if there is no such layer, or no image.
    """
    module = _layer(model, layer)
    if not len(x):
        raise ValueError("x holds no images to measure the activity on")
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output.relu()))
    try:
        with inference(model), torch.no_grad():
            for batch in x.split(500):
                model(batch)
    finally:
        handle.remove()
    return torch.cat([part.flatten(2).mean(2) if part.dim() > 2 else part for part in seen]).mean(0)


def prune(model: nn.Module, units: Tensor, *, layer: str | None = None) -> nn.Module:
    """Switch units off: their weights and biases become 0.

    A BatchNorm behind the layer may still add a constant.

    Args:
        model: the network; it stays as it is.
        units: (n,) indices of the units.
        layer: as for :func:`activity`.

    Returns:
        A new network, in eval mode.

    Raises:
        ValueError: if there is no such layer, or no such unit.
    """
    pruned = copy.deepcopy(model).eval()
    module = _layer(pruned, layer)
    count = len(module.weight)
    if len(units) and not 0 <= int(units.min()) <= int(units.max()) < count:
        raise ValueError(f"units must be from 0 to {count - 1}, got {units.tolist()}")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter[units] = 0
    return pruned


@threat(
    ThreatModel(
        goal="repair", knowledge="data", stage="training",
        cost="some epochs on a few clean images, and some channels",
        source="https://arxiv.org/abs/1805.12185",
    )
)  # fmt: skip
def fine_prune(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layer: str | None = None,
    max_drop: float = 0.04,
    epochs: int = 20,
    lr: float = 3e-3,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Fine-pruning: switch off the units that clean images use least, then train on.

    Units go one after the other, the least active first, as long as the accuracy on the clean
    images does not fall by more than ``max_drop``. The idea: a backdoor lives in units that sleep
    until the trigger wakes them. What was switched off stays off.

    Args:
        model: the network; it stays as it is.
        x: (N, ...) float in [0, 1], clean images.
        y: (N,) their integer labels.
        layer: where to prune, as for :func:`activity`.
        max_drop: how much accuracy on the clean images pruning may cost, 0 to 1.
        epochs: passes over them afterwards.
        lr: Adam's learning rate.
        batch_size: images a step.
        generator: draws the order; torch's global one if None.
        progress: as for :func:`modelsec.training.fit`.

    Returns:
        A new network, in eval mode.

    Raises:
        TypeError: if the model is no module, or x or y of the wrong kind.
        ValueError: if there are no images, values are out of range, or there is no such layer.

    References:
        Liu, Dolan-Gavitt & Garg (2018), https://arxiv.org/abs/1805.12185.
    """
    x, y = check_clean(model, x, y)
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is a share of accuracy, 0 to 1, got {max_drop}")
    order = activity(model, x, layer=layer).argsort()
    least = evaluate(model, x, y).hits - max_drop * len(x)
    count = 0
    while count + 1 < len(order):
        if evaluate(prune(model, order[: count + 1], layer=layer), x, y).hits < least - 1e-6:
            break
        count += 1
    with repaired_copy(prune(model, order[:count], layer=layer)) as repaired:
        alive = torch.ones(len(order), dtype=torch.bool, device=x.device)
        alive[order[:count]] = False
        # Adam leaves alone what has never had a gradient
        handles = [
            parameter.register_hook(lambda g: g * alive.view(-1, *[1] * (g.dim() - 1)))
            for parameter in _layer(repaired, layer).parameters()
        ]
        options: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
        fit(repaired, x, y, generator=generator, progress=progress, **options)
        for handle in handles:
            handle.remove()
    return repaired


def attention(output: Tensor) -> Tensor:
    """Where a convolution looks: the squares of its output, summed over the channels.

    Args:
        output: (N, C, H, W). Only its positive part counts, as behind a ReLU.

    Returns:
        (N, H * W), each row of length 1 (or 0, where nothing is positive).
    """
    return F.normalize(output.relu().square().sum(1).flatten(1), dim=1)


@threat(
    ThreatModel(
        goal="repair", knowledge="data", stage="training",
        cost="two trainings on a few clean images", source="https://arxiv.org/abs/2101.05930",
    )
)  # fmt: skip
def nad(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    beta: float = 10.0,
    epochs: int = 20,
    lr: float = 3e-3,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Neural attention distillation: a fine-tuned copy teaches the network where to look.

    The teacher is the network after :func:`fine_tune`. The pupil starts as the network itself and
    is trained on the same images. Its loss is cross-entropy, plus ``beta`` times the squared
    distance between its :func:`attention` and the teacher's, summed over the convolutions.

    Args:
        model: the network, with at least one convolution; it stays as it is.
        x: (N, C, H, W) float in [0, 1], clean images.
        y: (N,) their integer labels.
        beta: weight of the attention.
        epochs: of each of the two trainings.
        lr: Adam's learning rate.
        batch_size: images a step.
        generator: draws the orders; torch's global one if None.
        progress: as for :func:`modelsec.training.fit`.

    Returns:
        A new network, in eval mode.

    Raises:
        TypeError: if the model is no module, or x or y of the wrong kind.
        ValueError: if there are no images, values are out of range, or there is no convolution.

    References:
        Li et al. (2021), https://arxiv.org/abs/2101.05930.
    """
    x, y = check_clean(model, x, y)
    if not beta >= 0:
        raise ValueError(f"beta must be 0 or more, got {beta}")
    if not hidden_layers(model, nn.Conv2d):
        raise ValueError("nad compares where convolutions look, and the model has none")
    options: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
    options |= {"generator": generator, "progress": progress}
    teacher = fine_tune(model, x, y, **options)
    looks: dict[nn.Module, list[Tensor]] = {}

    def watch(network: nn.Module) -> list[Any]:
        seen = looks[network] = []
        layers = hidden_layers(network, nn.Conv2d).values()
        return [
            layer.register_forward_hook(lambda _, __, output: seen.append(attention(output)))
            for layer in layers
        ]

    def ask(pupil: nn.Module, batch: Tensor, labels: Tensor, now: float) -> Tensor:
        looks[pupil].clear()
        looks[teacher].clear()
        with inference(teacher), torch.no_grad():
            teacher(batch)
        return batch

    with repaired_copy(model) as pupil:

        def loss(logits: Tensor, target: Tensor) -> Tensor:
            pairs = zip(looks[pupil], looks[teacher], strict=True)
            apart = sum((mine - theirs).square().sum(1) for mine, theirs in pairs)
            return cross_entropy(logits, target) + beta * apart

        handles = watch(pupil) + watch(teacher)
        fit(pupil, x, y, loss=loss, perturb=ask, **options)
        for handle in handles:
            handle.remove()
    return pupil
