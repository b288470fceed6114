"""Graders for the chapter on reliable evaluation."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.check.grading import adversarial, grader, require
from modelsec.data import mnist
from modelsec.training import evaluate
from modelsec.zoo import load_model

__all__ = ["at_most_robust", "break_masked", "distrustful", "two_faced"]

REPORTED = (0.28, 0.36, 0.92, 0.65)  # https://github.com/fra31/auto-attack/issues/45


@grader("An attacker may choose the attack anew for each image, so even that is an upper bound.")
def at_most_robust(answer: Any) -> None:
    """Grade a number: the largest robust accuracy that four attacks' results allow."""
    require(isinstance(answer, Real), f"Give one number; this is of type {type(answer).__name__}.")
    value = float(answer)
    for wrong, why in (
        (
            sum(REPORTED) / 4,
            "That is the mean over the attacks. Nobody makes the attacker use weak ones in turn.",
        ),
        (max(REPORTED), "That is what the weakest attack leaves. The attacker may take another."),
        (28, "Give a share, from 0 to 1."),
        (0.28 * 0.36 * 0.92 * 0.65, "A product would hold if the attacks failed independently."),
    ):
        require(abs(value - wrong) > 1e-6, why)
    require(
        abs(value - min(REPORTED)) < 1e-6,
        "An image withstands all attacks only if it withstands the strongest of the four. How many "
        "can that be at most?",
    )


@grader("Forwards the defence, backwards something that has a slope: any attack can use it now.")
def two_faced(solution: Any) -> None:
    """Grade ``f(x, transform, stand_in) -> y``: the transform's value, the stand-in's gradient."""
    x = torch.rand(4, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def steps(x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    def bowl(x: Tensor) -> Tensor:
        return x**2

    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    for transform, stand_in in ((steps, lambda x: x), (steps, bowl), (torch.sin, bowl)):
        leaf = x.clone().requires_grad_()
        got = solution(leaf, transform, stand_in)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(got.shape == x.shape, f"The shape changed to {tuple(got.shape)}.")
        wanted = transform(x)
        require(
            not torch.allclose(got, stand_in(x)),
            "The value is the stand-in's. Forwards the defence itself must run.",
        )
        require(torch.allclose(got, wanted, atol=1e-9), "The value is not the transform's.")
        require(
            got.requires_grad,
            "No gradient comes back: something that depends on x must not be detached.",
        )
        (slope,) = torch.autograd.grad(got, leaf, weight, allow_unused=True)
        require(slope is not None, "No gradient comes back to x.")
        leaf = x.clone().requires_grad_()
        (right,) = torch.autograd.grad(stand_in(leaf), leaf, weight)
        require(
            torch.allclose(slope, right),
            "The gradient is not the stand-in's. Does the transform's own slope, or part of it, "
            "still flow back?",
        )
    watched: list[bool] = []

    def leaves_torch(x: Tensor) -> Tensor:
        watched.append(x.requires_grad)
        return (x.detach() > 0.5).to(x)

    solution(x.clone().requires_grad_(), leaves_torch, bowl)
    require(
        not any(watched),
        "The transform is handed a tensor that autograd watches: one that goes through NumPy or a "
        "file would fail. Hand it a detached copy.",
    )


class _Fixed:
    """An attack that returns what it was told to, and remembers whom it attacked."""

    def __init__(self, points: Tensor) -> None:
        self.points = points
        self.model: Any = None

    def __call__(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        self.model = model
        return self.points.clone()


def _brightness(x: Tensor) -> Tensor:
    """Logits of two classes: class 1 where the pixels' mean is above a half."""
    mean = x.flatten(1).mean(1)
    return torch.stack([0.5 - mean, mean - 0.5], 1)


@grader("Such a harness takes no attack's word for anything.")
def distrustful(solution: Any) -> None:
    """Grade ``f(model, attacks, x, y, eps) -> share right under every attack`` (linf)."""
    x = torch.tensor([0.25, 0.4, 0.4, 0.45, 0, 0.6])[:, None].repeat(1, 4)
    x[4] = torch.tensor([0.95, 0.33, 0.33, 0.31])  # its first pixel is near the wall
    y = torch.zeros(6, dtype=torch.long)  # the last one is wrong from the start

    def ask(*moves: tuple[int, float]) -> float:
        attacks = []
        for row, by in moves:
            points = x.clone()
            points[row, : 1 if row == 4 else 4] += by
            attacks.append(_Fixed(points))
        got = solution(_brightness, attacks, x.clone(), y.clone(), 0.2)
        value = _number(got)
        require(all(attack.model is not None for attack in attacks), "Not every attack was run.")
        require(
            all(attack.model is _brightness for attack in attacks),
            "An attack was run on another model than the one that is judged: that measures "
            "transfer.",
        )
        return value * len(x)

    quiet = ask((0, 0.0))
    require(
        abs(quiet - 5) < 1e-4,
        f"An attack that changes nothing leaves {quiet:g} of six images by your count. Five are "
        "right to begin with.",
    )
    both = ask((1, 0.15), (2, 0.15))
    require(
        abs(both - 4) > 1e-4,
        "Two attacks fool one image each, not the same one, and you count 4 of 6. An image stands "
        "only if it withstands both: no mean, and no minimum over whole attacks.",
    )
    require(
        abs(both - 3) < 1e-4,
        f"Two attacks fool one image each, not the same one: 3 of 6 stand, you count {both:g}.",
    )
    require(
        abs(ask((5, -0.15)) - 5) < 1e-4,
        "An attack turned a wrong answer into a right one, and your count rose. An image that is "
        "wrong without any attack does not stand.",
    )
    require(
        abs(ask((0, 0.3)) - 5) < 1e-4,
        "An attack moved pixels by more than eps, and you took it for a success.",
    )
    require(
        abs(ask((4, 0.15)) - 5) < 1e-4,
        "An attack left the range of pixels, [0, 1], and you took it for a success.",
    )
    # 0.4 + 0.2 - 0.4 is more than 0.2 in float32: rounding, and no breach
    require(
        abs(ask((1, 0.2)) - 4) < 1e-4,
        "A perturbation of exactly eps was refused. Allow for rounding, some 1e-6.",
    )


class _Masked(nn.Module):
    """The book's network behind a rounding to four grey levels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_model("net")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((3 * x).round() / 3)
        return logits


@grader("A gradient that is missing stops those who wait for it.")
def break_masked(solution: Any) -> None:
    """Grade ``f(model, x, y, eps) -> adversarial images`` on a network behind a rounding."""
    digits = mnist()
    x, y, eps = digits.x_test[:60], digits.y_test[:60], 0.2
    model = _Masked().eval()
    adv = adversarial(solution, model, x, y, eps)
    clean, left = evaluate(model, x, y), evaluate(model, adv, y)
    require(
        left.value <= 0.2,
        f"Your attack leaves {left.value:.2f} of the answers right; without an attack "
        f"{clean.value:.2f} are. Does it follow a gradient, and is that gradient zero?",
    )


def _number(answer: Any) -> float:
    """One number, of whatever kind; a Proportion too."""
    single = isinstance(answer, Tensor) and answer.numel() == 1
    require(
        single or hasattr(answer, "__float__"),
        f"Return one number, the share that stands, not {type(answer).__name__}.",
    )
    return float(answer)
