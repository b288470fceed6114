"""Graders for the chapter on the loss."""

from __future__ import annotations

import copy
import math
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.attacks.gradient import fgsm as reference_fgsm
from modelsec.attacks.gradient import pgd
from modelsec.check.grading import grader, require
from modelsec.data import mnist
from modelsec.losses import log_odds
from modelsec.training import evaluate
from modelsec.zoo import load_model

__all__ = ["cross_entropy", "fgsm", "risk_of_guessing", "saturation", "worst_case"]


@grader("A risk well below this number means that the network has learned something.")
def risk_of_guessing(answer: Any) -> None:
    """Grade a number: the cross-entropy of a classifier that finds all ten classes equally likely."""
    answer = number(answer)
    for wrong, why in (
        (0.1, "That is the probability of the true class; the loss is minus its logarithm."),
        (1.0, "That is the logarithm to base 10; cross-entropy uses the natural one."),
        (math.log2(10), "That is the logarithm to base 2; cross-entropy uses the natural one."),
        (-math.log(10), "Nearly: the loss is minus the logarithm, so it is positive."),
    ):
        require(not abs(answer - wrong) <= 0.02, why)
    require(
        abs(answer - math.log(10)) <= 0.01,
        f"{answer:.4g} is not it. Each class gets the probability 1/10; what is -log of that?",
    )


@grader("It holds for logits of 1,000 too. Written by hand, that takes the log-sum-exp trick.")
def cross_entropy(solution: Any) -> None:
    """Grade ``f(logits (N, K), y (N,)) -> losses (N,)``: right, per sample, and stable."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(16, 10, generator=generator) * 3
    y = torch.randint(10, (16,), generator=generator)
    wanted = F.cross_entropy(logits, y, reduction="none")
    got = _one_per_sample(solution(logits.clone(), y.clone()), 16)
    require(
        not torch.allclose(got, -wanted, atol=1e-4),
        "The sign is turned round: the loss is minus the log probability, so it is never negative.",
    )
    require(
        not torch.allclose(got, wanted / math.log(2), atol=1e-4),
        "Your logarithm has base 2; cross-entropy uses the natural one.",
    )
    predicted = F.cross_entropy(logits, logits.argmax(1), reduction="none")
    require(
        not torch.allclose(got, predicted, atol=1e-4),
        "You took the probability of the predicted class; take that of the true class, y.",
    )
    require(
        torch.allclose(got, wanted, atol=1e-4),
        f"For the first sample the loss is {float(wanted[0]):.4f}, yours is {float(got[0]):.4f}. "
        "Is every row's softmax divided by its own sum?",
    )
    large = _one_per_sample(solution(logits * 1000, y.clone()), 16)
    require(
        bool(torch.isfinite(large).all()),
        "For logits around 1,000 your loss is infinite or NaN: exp overflows. Subtract each row's "
        "largest logit first; the softmax does not change.",
    )
    require(
        torch.allclose(large, F.cross_entropy(logits * 1000, y, reduction="none"), rtol=1e-4),
        "For logits around 1,000 your loss is wrong: don't clip; subtract each row's largest logit.",
    )


@grader("A complete attack, in a handful of lines.")
def fgsm(solution: Any) -> None:
    """Grade ``f(model, x, y, eps) -> x_adv``: ball, box, labels, model untouched, full strength."""
    generator = torch.Generator().manual_seed(2)
    model = small_model(generator)
    x = torch.rand(32, 1, 8, 8, generator=generator)
    x = torch.where(x < 0.25, 0.0, torch.where(x > 0.75, 1.0, x))  # many pixels at the walls
    y = torch.randint(10, (32,), generator=generator)
    for eps in (0.1, 0.03):  # a budget written into the code would pass one of them
        _examine_fgsm(solution, model, x, y, eps)


def _examine_fgsm(solution: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> None:
    seen, was = x.clone(), copy.deepcopy(model)
    adv = solution(model, x, y, eps)
    require(isinstance(adv, Tensor), f"Return a tensor, not {type(adv).__name__}.")
    require(adv.shape == x.shape, f"x has shape {tuple(x.shape)}, your result {tuple(adv.shape)}.")
    require(torch.equal(x, seen), "Your function changed x in place: make a copy first.")
    require(
        not any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()),
        "The model's parameters now carry a gradient, which would disturb a training step. "
        "Use torch.autograd.grad(loss, x) instead of loss.backward().",
    )
    require(
        all(
            p.requires_grad == q.requires_grad and torch.equal(p, q)
            for p, q in zip(model.parameters(), was.parameters(), strict=True)
        ),
        "The model's parameters are not as they were: an attack changes the input and nothing else.",
    )
    require(
        all(m.training == n.training for m, n in zip(model.modules(), was.modules(), strict=True)),
        "The model came back in another mode: after train() or eval() put the old mode back.",
    )
    require(not x.requires_grad, "x itself now requires a gradient: work on x.clone().")
    adv = adv.detach()
    require(bool(torch.isfinite(adv).all()), "Some pixels are NaN or infinite.")
    reach = float((adv - x).abs().max())
    require(
        reach <= eps + 1e-5, f"A pixel moved by {reach:.3f}, more than eps = {eps}: step by eps."
    )
    require(
        float(adv.min()) >= 0 and float(adv.max()) <= 1,
        f"Pixels run from {float(adv.min()):.2f} to {float(adv.max()):.2f}: clip them to [0, 1].",
    )
    require(reach > 1e-6, "The result equals x: nothing was added.")
    before, after = (_mean_loss(model, inputs, y) for inputs in (x, adv))
    best = _mean_loss(model, reference_fgsm(model, x, y, eps=eps), y)
    predicted = model(x).argmax(1)
    as_labels = reference_fgsm(model, x, predicted, eps=eps)
    require(
        not torch.allclose(adv, as_labels, atol=1e-5),
        "The result does not depend on y: use the true labels, not the model's predictions.",
    )
    require(
        after > before,
        "The loss went down. The attacker climbs: add the sign, don't subtract it.",
    )
    require(
        after - before >= 0.99 * (best - before),
        f"The loss rose by {after - before:.3f}; a full step along the sign gives "
        f"{best - before:.3f}. Does every pixel move by eps, wherever the box allows it?",
    )


@grader("One line, and no attack on a linear model can do better.")
def worst_case(solution: Any) -> None:
    """Grade ``f(w (d,), margin, eps, norm) -> float``: a linear model's smallest margin."""
    generator = torch.Generator().manual_seed(3)
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", torch.inf)):
        w = torch.randn(20, generator=generator)
        margin, eps = 1.7, 0.3
        got = number(solution(w.clone(), margin, eps, norm))
        cost = eps * float(torch.linalg.vector_norm(w, dual))
        same = eps * float(torch.linalg.vector_norm(w, {"linf": torch.inf, "l2": 2, "l1": 1}[norm]))
        require(
            abs(got - (margin + cost)) > 1e-4,
            "The attacker lowers the margin: subtract, don't add.",
        )
        require(
            norm == "l2" or abs(got - (margin - same)) > 1e-4,
            f"For {norm} you took the norm of w in which eps is measured; you need its dual.",
        )
        require(
            abs(got - (margin - cost)) <= 1e-4,
            f"For {norm}, margin {margin} and eps {eps} the worst case is {margin - cost:.4f}; "
            f"yours is {got:.4f}. How much can <w, delta> change when delta's {norm} norm is eps?",
        )


@grader("The model was sure of itself, not robust, and your loss sees the difference.")
def saturation(solution: Any) -> None:
    """Grade a per-sample loss by what PGD does with it to a network whose logits are times 100."""
    generator = torch.Generator().manual_seed(4)
    logits, y = torch.randn(16, 10, generator=generator), torch.arange(16) % 10
    got = solution(logits.clone().requires_grad_(), y.clone())
    _one_per_sample(got, 16)
    require(
        got.requires_grad,
        "No gradient comes out of your loss: does it use detach(), .item(), or argmax alone?",
    )
    better = logits.scatter_add(1, y[:, None], torch.ones(16, 1))  # the true logit, one higher
    require(
        float(solution(better, y.clone()).sum()) < float(solution(logits.clone(), y.clone()).sum()),
        "Your loss does not fall when the true class's logit rises. PGD makes the loss larger.",
    )
    digits = mnist()
    x, labels = digits.x_test[:200], digits.y_test[:200]
    model = nn.Sequential(load_model("net"), _Scale(100))

    def left(loss: Any) -> float:
        attacked = pgd(model, x, labels, eps=0.1, steps=20, loss=loss, random_start=False)
        return evaluate(model, attacked, labels).value

    mine, reference = left(solution), left(log_odds)
    said = f"PGD with your loss leaves {mine:.2f} of the predictions right, the log odds {reference:.2f}. "
    require(
        mine <= 0.5, said + "Is its gradient zero where the network is sure? Try gradient_size."
    )
    require(
        mine <= reference + 0.1,
        said + "Its gradient lives, but it aims badly: which class should it push up?",
    )


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def small_model(generator: torch.Generator) -> nn.Module:
    """An untrained network for images (N, 1, 8, 8) and ten classes, in eval mode."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def _mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


def number(answer: Any) -> float:
    """One number, of whatever kind: Python's, NumPy's, or a tensor of one element."""
    require(not callable(answer), "Give a number, not a function.")
    single = isinstance(answer, Real) or (isinstance(answer, Tensor) and answer.numel() == 1)
    require(single, f"Give one number; this is of type {type(answer).__name__}.")
    return float(answer)


def _one_per_sample(losses: Any, n: int) -> Tensor:
    require(isinstance(losses, Tensor), f"Return a tensor, not {type(losses).__name__}.")
    require(
        losses.shape == (n,),
        f"For {n} samples return {n} losses, shape ({n},); yours has shape {tuple(losses.shape)}. "
        + (
            "Don't average."
            if losses.dim() == 0
            else "One number per sample, not a column or table."
        ),
    )
    checked: Tensor = losses.detach().float()
    return checked
