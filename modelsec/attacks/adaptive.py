"""Wrappers for attacks on defended models: BPDA for what has no gradient, EOT for what is random.

Neither is an attack. Each makes of a defended model, or of a part of it, one that an attack can
follow; any attack of the package may then be run on it. Whether the attack won is asked of the
defence itself, not of the wrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.attacks.common import Model, check_counts
from modelsec.models import drawing_from

__all__ = ["bpda", "eot"]

Transform = Callable[[Tensor], Tensor]


def bpda(transform: Transform, stand_in: Transform | None = None) -> nn.Module:
    """Backward pass differentiable approximation: one function forwards, another one backwards.

    The layer gives exactly what ``transform`` gives. Its gradient is that of ``stand_in`` at the
    same input. Build the attacked model with it, ``nn.Sequential(bpda(transform), model)``, or
    put it in the place of a layer further inside.

    Args:
        transform: the step without a useful gradient, (N, ...) to (N, ...), such as a rounding.
            It may take a detour through NumPy or a file format: it never meets autograd.
        stand_in: differentiable, about the same function, and with results of the same shape; the
            identity if None, for transforms that change their input little.

    Returns:
        A layer. Modules among the two are parts of it, and so are put in eval mode and frozen
        during an attack.

    Raises:
        TypeError: if one of the two can't be called, or (in use) returns no tensor.
        ValueError: in use, if the two return different shapes.

    References:
        Athalye, Carlini & Wagner (2018), https://arxiv.org/abs/1802.00420, section 4.1.
    """
    return _Bpda(transform, stand_in)


def eot(model: Model, draws: int = 20, *, generator: torch.Generator | None = None) -> nn.Module:
    """Expectation over transformations: the mean logits of a randomised model over some draws.

    An attack on it follows the mean of many gradients in place of the gradient of one draw. Every
    call draws anew. Logits are averaged and not probabilities: where the model is sure, a
    probability's gradient is lost to rounding. The mean of log-probabilities, which the paper
    takes, is the mean of the logits but for one constant per sample, and the losses of
    :mod:`modelsec.losses` do not see such a constant.

    Memory does not grow with ``draws``: nothing is kept of a draw but its seed, and going back it
    is made again. A gradient thus takes two forward passes a draw. It goes to the input alone,
    not to parameters.

    Args:
        model: maps (N, ...) to logits (N, K), and draws from torch's global generators, as torch's
            functions do unless told otherwise. (One with a generator of its own would go back
            through another draw than forwards.)
        draws: how many draws each call averages, at least 1.
        generator: draws one seed a draw; torch's global one if None.

    Returns:
        A model, for any attack.

    Raises:
        TypeError: if the model can't be called.
        ValueError: if draws is not a whole number, 1 or more.

    References:
        Athalye, Engstrom, Ilyas & Kwok (2018), https://arxiv.org/abs/1707.07397, section 2.1; for
        randomised defences https://arxiv.org/abs/1802.00420, section 4.2.
    """
    return _Eot(model, draws, generator)


class _Bpda(nn.Module):
    def __init__(self, transform: Transform, stand_in: Transform | None) -> None:
        super().__init__()
        for name, function in (("transform", transform), ("stand_in", stand_in)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, got {type(function).__name__}")
        self.transform = transform
        self.stand_in = nn.Identity() if stand_in is None else stand_in

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            exact = self.transform(x.detach())
        if not isinstance(exact, Tensor):
            raise TypeError(f"transform must return a tensor, got {type(exact).__name__}")
        if not torch.is_grad_enabled():
            return exact
        smooth = self.stand_in(x)
        shape = tuple(getattr(smooth, "shape", ()))
        if shape != tuple(exact.shape):
            raise ValueError(
                f"stand_in must return what transform returns, shape {tuple(exact.shape)}, got "
                f"{shape}" + (": give a stand_in" if isinstance(self.stand_in, nn.Identity) else "")
            )
        swapped: Tensor = _Swap.apply(smooth, exact)
        return swapped


class _Swap(torch.autograd.Function):
    """The value of the second argument, the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, exact: Tensor) -> Tensor:
        return exact.clone()  # smooth + (exact - smooth) would round

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Eot(nn.Module):
    def __init__(self, model: Model, draws: int, generator: torch.Generator | None) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        check_counts(draws=draws)
        self.model, self.draws, self.generator = model, draws, generator

    def forward(self, x: Tensor) -> Tensor:
        device = "cpu" if self.generator is None else self.generator.device
        seeds = torch.randint(2**31, (self.draws,), generator=self.generator, device=device)
        averaged: Tensor = _Mean.apply(x, self.model, seeds.tolist())
        return averaged


class _Mean(torch.autograd.Function):
    """The mean over seeded runs of a model; backwards each run is made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: Model, seeds: list[int]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.model, ctx.seeds = model, seeds
        total = _run(model, x, seeds[0])
        for seed in seeds[1:]:
            total = total + _run(model, x, seed)
        return total / len(seeds)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        share, total = gradients[0] / len(ctx.seeds), None
        for seed in ctx.seeds:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                logits = _run(ctx.model, leaf, seed)
            if not logits.requires_grad:
                return None, None, None  # the model lets no gradient through: the attack says so
            (part,) = torch.autograd.grad(logits, leaf, share, allow_unused=True)
            if part is not None:
                total = part if total is None else total + part
        return total, None, None


def _run(model: Model, x: Tensor, seed: int) -> Tensor:
    with drawing_from(torch.Generator().manual_seed(seed)):
        return model(x)
