"""One training loop and one evaluation for the whole book."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.intervals import Proportion
from modelsec.losses import SampleLoss, cross_entropy

with warnings.catch_warnings():  # without ipywidgets it falls back to a text bar, with a warning
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

__all__ = [
    "Evaluation",
    "History",
    "Perturb",
    "check_labels",
    "evaluate",
    "features",
    "fit",
    "inference",
    "progress_bar",
]

Model = Callable[[Tensor], Tensor]
Attack = Callable[[Model, Tensor, Tensor], Tensor]
"""(model, x, y) -> perturbed x of the same shape."""
Perturb = Callable[[nn.Module, Tensor, Tensor, float], Tensor | tuple[Tensor, Tensor]]
"""(model, x, y, progress) -> perturbed x, or (perturbed x, soft targets (N, K)).

progress runs from 0 to 1 over the training. Perturbed x may hold more inputs than x, several groups
of N one after the other, for a loss that compares them."""


@dataclass
class History:
    """What happened in training, an entry per finished epoch.

    Attributes:
        loss: mean training loss.
        accuracy: training accuracy, on the inputs as trained on (perturbed, if they were; the last
            group, if there were several); a soft target counts as its largest class.
        validation: accuracy on the validation data, if there were any.
        interrupted: True if training was stopped before its last epoch.
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    validation: list[Proportion] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class Evaluation(Proportion):
    """Accuracy as a :class:`~modelsec.intervals.Proportion`, with each sample's outcome.

    Attributes:
        correct: (n,) bool on the CPU; True where the model was right (and, under an attack,
            stayed right).
    """

    correct: Tensor = field(repr=False, compare=False)


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 64,
    lr: float | Callable[[float], float] = 1e-3,
    loss: SampleLoss = cross_entropy,
    optimizer: torch.optim.Optimizer | None = None,
    perturb: Perturb | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
    replays: int = 1,
    after_epoch: Callable[[nn.Module, History], object] | None = None,
    progress: bool | None = None,
) -> History:
    """Train ``model`` in place on the mean of ``loss``, with Adam unless told otherwise.

    Ctrl-C (or Jupyter's stop button) ends training early without losing anything: the model
    keeps its last step, the history its finished epochs, and ``interrupted`` says so.

    Args:
        model: maps (N, ...) to logits (N, K). All of it is in train mode meanwhile, a BatchNorm
            frozen by hand included; every part is left in the mode it came in.
        x: (N, ...) inputs, on the model's device.
        y: (N,) integer labels, on the model's device.
        epochs: passes over the data.
        batch_size: samples per step.
        lr: learning rate, or a function from progress in [0, 1) to the learning rate.
        loss: the per-sample loss. If ``perturb`` returns soft targets it is given those, (N, K);
            of the losses in :mod:`modelsec.losses` cross-entropy alone takes them. If ``perturb``
            returns several groups of inputs it is given the logits of all, (groups * N, K).
        optimizer: over the model's parameters; Adam if None.
        perturb: called with (model, x, y, progress) on every batch; what it returns is trained
            on. Adversarial training hands its attack in here, augmentation its transform. It
            returns inputs, or (inputs, soft targets): for each input a probability per class.
        validation: (x, y), evaluated after every epoch.
        generator: draws the order of the samples; torch's global one if None.
        replays: how many steps in a row are made on each batch.
        after_epoch: called with the model and the history so far; True ends the training.
        progress: show a bar; None means yes, unless MODELSEC_PROGRESS=0 is set.

    Returns:
        The :class:`History`.

    Raises:
        ValueError: for no data, y of another shape than (N,), epochs, batch_size or replays below 1,
            or targets from ``perturb`` that are not (N, K).
        TypeError: for labels that are no integers.
        FloatingPointError: if the loss becomes NaN or infinite (nothing learned after that
            would mean anything).
    """
    check_labels(x, y)
    if min(epochs, batch_size, replays) < 1:
        raise ValueError(
            "epochs, batch_size and replays must be 1 or more, got "
            f"{epochs}, {batch_size} and {replays}"
        )
    if optimizer is None:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr(0.0) if callable(lr) else lr)
    steps = math.ceil(len(x) / batch_size) * replays
    history, modes = History(), [(module, module.training) for module in model.modules()]
    model.train()
    bar = progress_bar(epochs * steps, "training", progress)
    try:
        for epoch in range(epochs):
            total, right = 0.0, 0
            batches = _order(len(x), generator).split(batch_size)
            for step, batch in enumerate(b for b in batches for _ in range(replays)):
                now = (epoch * steps + step) / (epochs * steps)
                if callable(lr):
                    for group in optimizer.param_groups:
                        group["lr"] = lr(now)
                batch = batch.to(x.device)
                inputs, labels = x[batch], y[batch]
                targets = labels
                if perturb is not None:
                    made = perturb(model, inputs, labels, now)
                    inputs, targets = made if isinstance(made, tuple) else (made, labels)
                logits = model(inputs)
                if targets is not labels:
                    labels = _largest(targets, logits)
                value = loss(logits, targets).mean()
                if not math.isfinite(value.item()):
                    raise FloatingPointError(f"the loss became {value.item()} in epoch {epoch + 1}")
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                total += value.item() * len(batch)
                right += int((logits[-len(labels) :].argmax(1) == labels).sum())
                bar.update()
            if validation is not None:  # first: a Ctrl-C here must not leave half an epoch's entry
                history.validation.append(evaluate(model, *validation))
            history.loss.append(total / (replays * len(x)))
            history.accuracy.append(right / (replays * len(x)))
            bar.set_postfix(loss=f"{history.loss[-1]:.3f}")
            if after_epoch is not None and after_epoch(model, history) is True:
                break
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        bar.close()
        for module, mode in modes:
            module.training = mode
    return history


def evaluate(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    attack: Attack | None = None,
    batch_size: int = 500,
) -> Evaluation:
    """Accuracy of ``model`` on (x, y), or on what ``attack`` makes of x.

    Args:
        model: maps (N, ...) to logits (N, K). A module is put in eval mode meanwhile.
        x: (N, ...) inputs, on the model's device.
        y: (N,) integer labels.
        attack: called with (model, x, y) batch by batch, such as
            ``functools.partial(pgd, eps=0.1)``.
        batch_size: samples per batch.

    Returns:
        An :class:`Evaluation`: share, 95% interval, n, and which samples were right.

    Raises:
        ValueError: for no data, or y of another shape than (N,).
        TypeError: for labels that are no integers.
    """
    check_labels(x, y)
    outcomes = []
    for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        with inference(model):
            if attack is not None:
                inputs = attack(model, inputs, labels)
            with torch.no_grad():
                outcomes.append((model(inputs).argmax(1) == labels).cpu())
    correct = torch.cat(outcomes)
    return Evaluation(int(correct.sum()), len(correct), correct)


def features(model: nn.Module, x: Tensor, *, grad: bool = False, batch_size: int = 500) -> Tensor:
    """What a model's last linear layer is given: its own, most abstract description of an input.

    Args:
        model: has at least one ``nn.Linear``; the last one is that of the logits. In eval mode
            meanwhile.
        x: (N, ...) inputs on the model's device, at least one.
        grad: keep the graph, so that an attacker can differentiate.
        batch_size: inputs per batch.

    Returns:
        (N, D).

    Raises:
        ValueError: if the model has no linear layer, or there is no input.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no nn.Linear, so no features before it")
    if not len(x):
        raise ValueError("features need at least one input")
    seen: list[Tensor] = []
    handle = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with inference(model), torch.set_grad_enabled(grad):
            for batch in x.split(batch_size):
                model(batch)
    finally:
        handle.remove()
    return torch.cat([part.flatten(1) for part in seen])


@contextmanager
def inference(model: Model) -> Iterator[None]:
    """Put a module in eval mode and freeze its parameters; undo both on the way out.

    Every submodule gets back its own mode (a BatchNorm frozen inside a training model stays
    frozen) and every parameter its own ``requires_grad``, also when an exception passes
    through. A model that is no ``nn.Module`` is left alone.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)


def check_labels(x: Tensor, y: Tensor) -> None:
    """Check that there are samples, and an integer label for each.

    Args:
        x: (N, ...) samples.
        y: (N,) their labels.

    Raises:
        ValueError: if there is no sample, or y has another shape.
        TypeError: if labels are not integers.
    """
    if y.shape != x.shape[:1] or not len(x):
        raise ValueError(
            f"y must have one class index per input, at least 1: got shapes {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"y must hold integer class indices, got {y.dtype}: use y.long()")


def _largest(targets: Tensor, logits: Tensor) -> Tensor:
    """The class of each soft target; ValueError unless there is one probability per logit."""
    if targets.shape != logits.shape or not targets.is_floating_point():
        raise ValueError(
            f"perturb must return floating-point targets of shape {tuple(logits.shape)}, a "
            f"probability per class, got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    return targets.argmax(1)


def progress_bar(total: int, what: str, progress: bool | None = None) -> Any:
    """A tqdm bar that vanishes when it is done.

    Args:
        total: how many updates there will be.
        what: shown before the bar.
        progress: show it; None means yes, unless MODELSEC_PROGRESS=0 is set.

    Returns:
        The bar: call its ``update`` and, in the end, ``close``.
    """
    shown = os.environ.get("MODELSEC_PROGRESS", "1") != "0" if progress is None else progress
    return tqdm(total=total, disable=not shown, desc=what, leave=False)


def _order(n: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randperm(n, generator=generator, device=device)
