"""What every gradient attack needs besides its loop: checks, the objective, the bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modelsec.attacks.norms import NORMS, Norm, Region, per_sample, readable
from modelsec.losses import SampleLoss

__all__ = [
    "Iterate",
    "Model",
    "Objective",
    "Search",
    "check_counts",
    "check_inputs",
    "check_norm",
    "check_radius",
    "check_start",
    "per_sample_value",
]

Model = Callable[[Tensor], Tensor]


class Iterate(NamedTuple):
    """What a callback is shown: one point of the attack's path.

    Attributes:
        restart: 0, 1, ...
        step: 0 is the start; ``steps`` is the last iterate.
        rows: (n,) which samples of the batch these are (with early stop, those still active).
        adv: (n, ...) the iterate.
        loss: (n,) its objective.
    """

    restart: int
    step: int
    rows: Tensor
    adv: Tensor
    loss: Tensor


def check_norm(norm: str, *known: str) -> Norm:
    """The geometry of a norm by its name, one of ``known`` (any if none is told).

    Raises:
        ValueError: for another one; it names those that are known.
    """
    allowed = sorted(known or NORMS)
    if not isinstance(norm, str) or norm not in allowed:
        raise ValueError(
            f"norm must be one of {allowed}{' for this attack' if known else ''}, got {norm!r}"
        )
    return NORMS[norm]


def check_counts(**counts: int) -> None:
    """Check numbers of steps, restarts, queries, by the names of their arguments.

    Raises:
        ValueError: for one that is no whole number, or below 1.
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more, got {count!r}")


def check_inputs(model: Model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check what every attack is given.

    Args:
        model: what is to be attacked.
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels.

    Returns:
        x detached from any graph, and y as int64.

    Raises:
        TypeError: if x or y is no tensor, x is not floating point, y not integer, or the model
            can't be called.
        ValueError: if shapes or devices don't fit, or pixels are NaN or outside [0, 1].
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point in [0, 1], got {x.dtype}: use x.float() / 255")
    if x.dim() < 2:
        raise ValueError(f"x must have a batch dimension, (N, ...), got shape {tuple(x.shape)}")
    if y.dim() == 0:
        raise ValueError("x and y need a batch dimension: for one sample pass x[None] and y[None]")
    if y.shape != x.shape[:1]:
        hint = ": pass class indices, y.argmax(1), not one-hot rows" if y.dim() == 2 else ""
        raise ValueError(f"y must have shape ({len(x)},), got {tuple(y.shape)}{hint}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"y must hold integer class indices, got {y.dtype}: use y.long()")
    homes = {str(x.device)}
    if isinstance(model, nn.Module):
        homes = {str(p.device) for p in [*model.parameters(), *model.buffers()]} or homes
    if str(x.device) not in homes or x.device != y.device:
        raise ValueError(
            f"x is on {x.device}, y on {y.device}, the model on {', '.join(sorted(homes))}: "
            "move all to one device"
        )
    x = x.detach()
    if readable(x) and x.numel():
        low, high = (float(v) for v in x.aminmax())  # both are NaN if one pixel is
        if low != low:
            raise ValueError("x holds NaN pixels")
        if low < 0 or high > 1:
            scaled = low >= 0 and high > 2
            hint = "divide by 255" if scaled else "keep the normalisation in the model"
            raise ValueError(f"x must lie in [0, 1], got [{low:.4g}, {high:.4g}]: {hint}")
        if int(y.min()) < 0:
            raise ValueError(f"labels must be 0 or more, got {int(y.min())}")
    return x, y.long()


def per_sample_value(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """A radius or step size, one for all or one per sample, as (N, 1, ...) beside x (N, ...).

    Args:
        name: the argument's name, for the message.
        value: one number, or (N,).
        x: the batch.

    Returns:
        (N, 1, ...), dtype and device of ``x``.

    Raises:
        TypeError: if it is neither a number nor a tensor.
        ValueError: if it is negative, not finite, or of another length than the batch.
    """
    if not isinstance(value, Real | Tensor):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    given = torch.as_tensor(value, dtype=x.dtype, device=x.device).detach()
    if given.dim() > 1 or (given.dim() == 1 and len(given) != len(x)):
        raise ValueError(
            f"{name} must be a number or of shape ({len(x)},), got {tuple(given.shape)}"
        )
    if readable(given) and not bool((given.isfinite() & (given >= 0)).all()):
        raise ValueError(f"{name} must be finite and 0 or more, got {value}")
    return per_sample(given.expand(len(x)), x)


def check_radius(eps: float | Tensor, x: Tensor, ball: Norm) -> Tensor:
    """The radius as (N, 1, ...), see :func:`per_sample_value`; refuses one in grey levels.

    Args:
        eps: one number, or (N,).
        x: the batch.
        ball: the norm's geometry.

    Returns:
        (N, 1, ...), dtype and device of ``x``.

    Raises:
        TypeError: if it is neither a number nor a tensor.
        ValueError: if it is negative, not finite, of another length, or larger than the box.
    """
    radius = per_sample_value("eps", eps, x)
    if readable(radius) and bool((radius > ball.limit).any()):
        raise ValueError(
            f"eps is in units of a pixel's range [0, 1], got {eps}: for 8 grey levels write 8 / 255"
        )
    return radius


def check_start(start: Tensor, x: Tensor, radius: Tensor, ball: Norm) -> Tensor:
    """Check a given starting point: x's shape, inside the ball and the box, up to rounding.

    Args:
        start: (N, ...) the point.
        x: (N, ...) the clean batch.
        radius: (N, 1, ...) the ball's.
        ball: its geometry.

    Returns:
        The point, projected: rounding may have left it a hair outside.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if it has another shape or lies elsewhere.
    """
    if not isinstance(start, Tensor):
        raise TypeError(f"start must be a torch.Tensor, got {type(start).__name__}")
    if start.shape != x.shape:
        raise ValueError(f"start must have x's shape {tuple(x.shape)}, got {tuple(start.shape)}")
    start = start.detach().to(x)
    inside = ball.project(start, x, radius)
    if readable(x) and not torch.allclose(start, inside, rtol=0, atol=1e-6):
        raise ValueError("start must lie within eps of x and in [0, 1]")
    return inside


class Objective:
    """What the attack drives up: the loss at y, or minus the loss at the target.

    Args:
        model: maps (N, ...) to logits (N, K).
        loss: per-sample loss.
        targeted: True if labels are targets to reach.
    """

    def __init__(self, model: Model, loss: SampleLoss, targeted: bool) -> None:
        self.model, self.loss, self.targeted = model, loss, targeted
        self.checked = False

    def __call__(self, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (objective (n,), reached (n,) bool) at ``adv``."""
        logits = self.model(adv)
        if not self.checked:
            _check_logits(logits, adv, y)
            self.checked = True
        value = self.loss(logits, y)
        shape = tuple(getattr(value, "shape", ()))
        if shape != y.shape:
            raise ValueError(
                f"loss must return one value per sample, shape {tuple(y.shape)}, got {shape}: "
                'in torch losses use reduction="none"'
            )
        answer = logits.argmax(1)
        return (-value, answer == y) if self.targeted else (value, answer != y)

    def gradient(self, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (objective, reached, gradient (n, ...)) at ``adv``.

        The objective is summed over the batch, never averaged: each sample's gradient is its
        own. ``autograd.grad`` touches nobody's ``.grad``.
        """
        with torch.inference_mode(False), torch.enable_grad():
            # tensors made in inference mode can't take part in autograd, their clones can
            adv, y = (part.clone() if part.is_inference() else part.detach() for part in (adv, y))
            value, reached = self(adv.requires_grad_(), y)
            gradient = None
            if value.requires_grad:
                ones = torch.ones_like(value)  # each sample's weight in the sum
                (gradient,) = torch.autograd.grad(value, adv, grad_outputs=ones, allow_unused=True)
            if gradient is None:
                raise ValueError(
                    "the model's output does not depend on its input through autograd (detached, "
                    "or not differentiable): use a black-box attack, or BPDA"
                )
        return value.detach(), reached, gradient


def _check_logits(logits: Tensor, x: Tensor, y: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model must return a tensor of logits, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"the model must return floating-point logits, got {logits.dtype}")
    if logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(
            f"the model must return logits of shape ({len(x)}, K) with K >= 2, got "
            f"{tuple(logits.shape)}"
        )
    if readable(logits):
        if bool(logits.isnan().any()):
            raise ValueError("the model returned NaN logits for inputs in [0, 1]")
        if int(y.max()) >= logits.shape[1]:
            raise ValueError(
                f"labels must be 0 to {logits.shape[1] - 1} for this model, got {int(y.max())}"
            )


class Active(NamedTuple):
    """The samples under attack right now: n of the batch's N, row by row."""

    rows: Tensor
    adv: Tensor
    y: Tensor
    size: Tensor
    region: Region


class Search:
    """For every sample the worst point seen so far, and which samples are still worth work.

    Args:
        x: (N, ...) the clean batch.
        early_stop: leave a sample alone once its goal is reached.
        callback: shown every point that is noted.
    """

    def __init__(
        self, x: Tensor, early_stop: bool, callback: Callable[[Iterate], object] | None = None
    ) -> None:
        self.point = x.clone()
        self.value = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.reached = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.early_stop = early_stop and readable(x)
        self.callback = callback

    def open(self, adv: Tensor, y: Tensor, size: Tensor, region: Region) -> Active:
        """The samples whose goal is not reached yet (all of them, without early stop)."""
        todo = Active(torch.arange(len(y), device=y.device), adv, y, size, region)
        return self.drop(todo, adv, self.reached)[0]

    def note(self, todo: Active, value: Tensor, reached: Tensor, restart: int, step: int) -> None:
        """Keep the points that beat what was seen; the start itself (step 0) is only a start.

        With early stop a point that reached the goal is kept whatever its loss: a misclassified
        image may have a lower cross-entropy than one that is still classified correctly.
        """
        # a plain callable's parameters are not frozen, and its logits may have another dtype than x
        value = value.detach().to(self.value.dtype)
        if self.callback is not None:
            self.callback(Iterate(restart, step, todo.rows, todo.adv, value))
        if not step and not self.early_stop:
            return
        whole = len(todo.rows) == len(self.point)
        better = value > (self.value if whole else self.value[todo.rows])
        if self.early_stop:
            better = better | reached if step else reached
            self.reached[todo.rows] = reached
        if whole:
            # a lerp with weights 0 and 1 selects as torch.where does, several times faster
            self.point.lerp_(todo.adv, per_sample(better, todo.adv).to(todo.adv.dtype))
            self.value = torch.where(better, value, self.value)
        else:
            won = todo.rows[better]
            self.point[won], self.value[won] = todo.adv[better], value[better]

    def drop(self, todo: Active, gradient: Tensor, reached: Tensor) -> tuple[Active, Tensor]:
        """Go on without the samples that reached their goal."""
        if not self.early_stop or not bool(reached.any()):
            return todo, gradient
        keep = (~reached).nonzero().squeeze(1)
        rows, adv, y, size = (part[keep] for part in todo[:4])
        first, second = (part[keep] for part in todo.region)
        return Active(rows, adv, y, size, (first, second)), gradient[keep]
