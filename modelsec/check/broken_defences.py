"""Graders for the chapter on broken defences."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.check.grading import adversarial, grader, require
from modelsec.data import mnist
from modelsec.models import drawing_from
from modelsec.training import evaluate
from modelsec.zoo import load_model

__all__ = ["break_sealed", "joint_loss", "lucky_stop", "mean_gradient", "quantiser", "sealed"]

WRONG_SHARE, STEPS = 0.05, 40


@grader("So a report that counts the first success of a random model measures luck.")
def lucky_stop(answer: Any) -> None:
    """Grade a number: the chance that one of 40 draws is wrong, if each is with 0.05."""
    require(isinstance(answer, Real), f"Give one number; this is of type {type(answer).__name__}.")
    value = float(answer)
    for wrong, why in (
        (WRONG_SHARE, "That is the chance of one draw. The attack looks at forty."),
        (STEPS * WRONG_SHARE, "A chance can't be 2. Chances of draws do not simply add up."),
        (
            (1 - WRONG_SHARE) ** STEPS,
            "That is the chance that all forty draws are right. It is asked for the opposite.",
        ),
        (WRONG_SHARE**STEPS, "That is the chance that all forty are wrong. One is enough."),
    ):
        require(abs(value - wrong) > 0.004, why)
    require(0 <= value <= 1, "Give a chance, from 0 to 1.")
    require(
        abs(value - (1 - (1 - WRONG_SHARE) ** STEPS)) < 0.006,
        "What is the chance that all forty draws are right, if they are independent?",
    )


@grader("The defence runs as it is, and the gradient no longer ends at it.")
def quantiser(solution: Any) -> None:
    """Grade ``f(x, levels) -> x rounded to that many levels``, with slope 1."""
    x = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    for levels in (2, 4, 16):
        leaf = x.clone().requires_grad_()
        got = solution(leaf, levels)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(got.shape == x.shape, f"The shape changed to {tuple(got.shape)}.")
        require(
            not torch.allclose(got, x),
            "The value is x itself. Forwards the defence must round.",
        )
        wanted = (x * (levels - 1)).round() / (levels - 1)
        require(
            not torch.allclose(got, (x * levels).round() / levels),
            f"For levels={levels} you make {levels + 1} of them: 0 and 1 are levels too.",
        )
        require(
            torch.allclose(got, wanted, atol=1e-9),
            f"For levels={levels} the values are not the nearest of {levels} evenly spaced levels "
            "from 0 to 1.",
        )
        require(got.requires_grad, "No gradient comes back: round stops it, or detach.")
        (slope,) = torch.autograd.grad(got, leaf, weight, allow_unused=True)
        require(
            slope is not None and bool((slope != 0).any()),
            "The gradient is zero everywhere: that of round. Put another function in its place.",
        )
        require(
            torch.allclose(slope, weight),
            "The slope is not 1. What comes back must be what went in.",
        )


class _Coin(nn.Module):
    """Logits of three classes, linear in a random mask of the pixels."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.calls = weight, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        kept = torch.rand(x.shape, dtype=x.dtype, device=x.device) < 0.5
        return (2 * kept * x).flatten(1) @ self.weight


@grader(
    "More draws, less luck. Each step of the attack costs as many gradients as there are draws."
)
def mean_gradient(solution: Any) -> None:
    """Grade ``f(model, x, loss, draws) -> gradient by x of the loss of the mean logits``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    model = _Coin(weight)

    def bent(logits: Tensor) -> Tensor:
        return (logits[:, 0] ** 2 - logits[:, 1]).sum()

    draws = 400
    with drawing_from(generator):
        got = solution(model, x.clone(), bent, draws)
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(got.shape == x.shape, f"Return a gradient like x, not of shape {tuple(got.shape)}.")
    require(
        model.calls > 1,
        "The model was asked once. Each draw is a call of its own.",
    )
    require(
        model.calls in (draws, 2 * draws),
        f"For {draws} draws the model was asked {model.calls} times.",
    )
    z = (x.flatten(1) @ weight)[:, 0]
    wanted = (2 * z[:, None] * weight[:, 0] - weight[:, 1]).view_as(x)
    error = float((got.detach() - wanted).norm() / wanted.norm())
    summed = float((got.detach() / draws - wanted).norm() / wanted.norm())
    require(
        summed > 0.3,
        "Your gradient is about as many times too large as there are draws. Take the mean, not the sum.",
    )
    require(
        error < 0.3,
        "With 400 draws your gradient should be close to that of the expected logits, and is not. "
        "Average the logits first, then one loss, then one gradient.",
    )


@grader("Above 0 where the attacker has won, and a slope everywhere else.")
def joint_loss(solution: Any) -> None:
    """Grade ``f(logits, score, threshold, y) -> (N,)``: wrong and not refused."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    score = torch.rand(200, generator=generator, dtype=torch.float64)
    y = torch.randint(5, (200,), generator=generator)
    leaves = logits.clone().requires_grad_(), score.clone().requires_grad_()
    got = solution(leaves[0], leaves[1], 0.5, y)
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(got.shape == y.shape, f"Return one value a sample, (N,), not {tuple(got.shape)}.")
    fooled, passed = logits.argmax(1) != y, score <= 0.5
    positive = got.detach() > 0
    require(
        not bool((positive & ~fooled).any()),
        "It is above 0 for a sample that the model gets right. Such a sample is no success.",
    )
    require(
        not bool((positive & fooled & ~passed).any()),
        "It is above 0 for a sample that the detector refuses. A refused image does no harm.",
    )
    require(
        bool(positive[fooled & passed].all()),
        "It is not above 0 for a sample that is wrong and not refused: that is the success.",
    )
    by_logits, by_score = torch.autograd.grad(got.sum(), leaves, allow_unused=True)
    none = "No gradient comes back to the {}. A comparison has no slope: use differences."
    require(by_logits is not None and bool(by_logits.any()), none.format("logits"))
    require(by_score is not None and bool(by_score.any()), none.format("score"))
    require(
        bool((by_score[fooled & ~passed] < 0).all()),
        "For a wrong answer that is refused, the loss must grow as the score falls.",
    )
    right = ~fooled & passed
    require(
        bool(by_logits[right].any(1).all()),
        "For a right answer that is not refused, the loss must have a slope by the logits.",
    )


class _Shield(torch.autograd.Function):
    """The identity; on the way back each pixel's gradient has a sign of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        coin = torch.Generator().manual_seed(7)
        signs = 2.0 * torch.randint(2, gradient.shape[1:], generator=coin) - 1
        return gradient * signs.to(gradient)


class _Sealed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = load_model("net")

    def forward(self, x: Tensor) -> Tensor:
        shielded: Tensor = _Shield.apply(x)
        logits: Tensor = self.inside(shielded)
        return logits


def sealed() -> nn.Module:
    """A defended network whose defence is not told, for an exercise."""
    return _Sealed().eval()


@grader("It was never the model that was strong.")
def break_sealed(solution: Any) -> None:
    """Grade ``f(model, x, y, eps) -> adversarial images`` on the sealed network."""
    digits = mnist()
    x, y, eps = digits.x_test[:60], digits.y_test[:60], 0.15
    model = sealed()
    adv = adversarial(solution, model, x, y, eps)
    left = evaluate(model, adv, y)
    require(
        left.value <= 0.2,
        f"Your attack leaves {left.value:.2f} of the answers right. Compare a slope that autograd "
        "tells with one that you measure: the loss at x plus and minus a little, in one direction.",
    )
