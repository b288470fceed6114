"""Graders for the chapter on adversarial training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.check.grading import grader, require
from modelsec.check.loss import number, small_model
from modelsec.data import mnist
from modelsec.repair.adversarial_training import trades_loss as reference
from modelsec.training import inference
from modelsec.zoo import load_model

__all__ = ["best_epoch", "collapse_alarm", "fast_step", "gradients_per_epoch", "trades_loss"]


@grader("Eight times the price of ordinary training: that is why cheaper methods were looked for.")
def gradients_per_epoch(answer: Any) -> None:
    """Grade a number: images times gradients in one epoch of PGD-7 training on 4,000 images."""
    value = number(answer)
    for wrong, why in (
        (28_000, "That is the attack alone. The weights need a gradient too."),
        (4_000, "That is ordinary training. The attack needs gradients as well."),
        (7, "Nearly: that is per image, and for the attack alone."),
        (8, "That is per image; the question asks for the epoch, with its 4,000 images."),
        (504, "Count images, not batches: a batch of 64 is 64 gradients."),
    ):
        require(abs(value - wrong) > 1e-6, why)
    require(
        value == 32_000,
        f"{value:,.0f} is not it. How many gradients does one image need: for the attack, and then "
        "for the weights?",
    )


@grader("Both goals in one loss: be right, and be the same everywhere near.")
def trades_loss(solution: Any) -> None:
    """Grade ``f(clean (N, K), attacked (N, K), y (N,), beta) -> losses (N,)``."""
    generator = torch.Generator().manual_seed(0)
    clean, attacked = (2 * torch.randn(12, 5, generator=generator) for _ in range(2))
    y = torch.arange(12) % 5

    def ask(clean: Tensor, attacked: Tensor, beta: float) -> Tensor:
        got = solution(clean, attacked, y.clone(), beta)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.shape == (12,),
            f"Return one loss per sample, shape (12,); yours has shape {tuple(got.shape)}.",
        )
        checked: Tensor = got
        return checked

    plain = F.cross_entropy(clean, y, reduction="none")
    got = ask(clean.clone(), attacked.clone(), 0.0)
    require(
        not torch.allclose(got, F.cross_entropy(attacked, y, reduction="none"), atol=1e-4),
        "With beta = 0 your loss is that of the attacked images. In TRADES the first term is the "
        "cross-entropy of the clean ones.",
    )
    require(
        torch.allclose(got, plain, atol=1e-4),
        "With beta = 0 nothing but the cross-entropy of the clean images should be left.",
    )
    got, wanted = ask(clean.clone(), attacked.clone(), 3.0), reference(clean, attacked, y, 3.0)
    turned = plain + 3 * (reference(attacked, clean, y, 1.0) - reference(attacked, clean, y, 0.0))
    require(
        not torch.allclose(got, turned, atol=1e-4),
        "The divergence is turned round: it is KL(clean || attacked), weighted by the clean image's "
        "probabilities. F.kl_div takes its arguments in the other order.",
    )
    require(
        torch.allclose(got, wanted, atol=1e-3),
        f"For the first sample and beta = 3 the loss is {float(wanted[0]):.4f}, yours is "
        f"{float(got[0]):.4f}. Is the divergence summed over the classes, and not averaged?",
    )
    p, q = (part.clone().requires_grad_() for part in (clean, attacked))
    slopes = torch.autograd.grad(ask(p, q, 3.0).sum(), (p, q), allow_unused=True)
    expected = torch.autograd.grad(reference(p, q, y, 3.0).sum(), (p, q))
    require(
        slopes[1] is not None and torch.allclose(slopes[1], expected[1], atol=1e-3),
        "The gradient by the attacked logits is wrong. Is something detached?",
    )
    require(
        slopes[0] is not None and torch.allclose(slopes[0], expected[0], atol=1e-3),
        "The gradient by the clean logits is wrong: both answers are to move towards each other, "
        "so don't detach the clean one.",
    )
    large = ask(100 * clean, 100 * attacked, 3.0)
    require(
        bool(large.isfinite().all()),
        "For large logits your loss is infinite or NaN. Use log_softmax in place of the logarithm "
        "of a softmax.",
    )


@grader("One gradient, and it still stays in the ball.")
def fast_step(solution: Any) -> None:
    """Grade ``f(model, x, y, eps, alpha, start) -> x_adv``: FGSM from a random start, projected."""
    generator = torch.Generator().manual_seed(1)
    model = small_model(generator)
    x = torch.rand(24, 1, 8, 8, generator=generator)
    x = torch.where(x < 0.3, 0.0, torch.where(x > 0.8, 1.0, x))
    y = torch.randint(10, (24,), generator=generator)
    for eps, alpha in ((0.2, 0.25), (0.1, 0.06)):
        noise = eps * (2 * torch.rand(x.shape, generator=generator) - 1)
        start = (x + noise).clamp(0, 1)
        was, given = copy.deepcopy(model), (x.clone(), start.clone())
        adv = solution(model, given[0], y.clone(), eps, alpha, given[1])
        require(isinstance(adv, Tensor), f"Return a tensor, not {type(adv).__name__}.")
        require(adv.shape == x.shape, f"x has shape {tuple(x.shape)}, yours {tuple(adv.shape)}.")
        require(
            torch.equal(given[0], x) and torch.equal(given[1], start),
            "Your function changed x or start in place: make a copy first.",
        )
        require(
            not any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()),
            "The weights now carry a gradient, which would disturb the training step. Use "
            "torch.autograd.grad(loss, ...) instead of loss.backward().",
        )
        require(
            all(
                torch.equal(a, b) for a, b in zip(model.parameters(), was.parameters(), strict=True)
            ),
            "The weights have changed: an attack changes the input and nothing else.",
        )
        adv = adv.detach()
        reach = float((adv - x).abs().max())
        require(
            reach <= eps + 1e-5,
            f"A pixel is {reach:.3f} away from x, more than eps = {eps}: project the result on the "
            "ball around x.",
        )
        require(
            float(adv.min()) >= 0 and float(adv.max()) <= 1,
            f"Pixels run from {float(adv.min()):.2f} to {float(adv.max()):.2f}: clip to [0, 1].",
        )

        def stepped(at: Tensor, origin: Tensor, sign: float = 1.0) -> Tensor:
            at = at.clone().requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
            there = origin + sign * alpha * g.sign()  # noqa: B023
            return there.clamp(x - eps, x + eps).clamp(0, 1)  # noqa: B023

        for wrong, why in (
            (start, "The result is the start itself: take a step along the gradient."),
            (stepped(x, x), "You began at x. The step starts at start."),
            (stepped(x, start), "You took the gradient at x. Take it where you are, at start."),
            (stepped(start, x), "You took the gradient at start, but stepped from x."),
            (stepped(start, start, -1), "You went downhill: add the sign, don't subtract it."),
        ):
            require(not torch.allclose(adv, wrong, atol=1e-5), why)
        same = (adv - stepped(start, start)).abs() <= 1e-5
        require(
            float(same.float().mean()) >= 0.999,
            f"{float((~same).float().mean()):.0%} of the pixels are not where they should be. Add "
            "alpha * sign of the gradient to start, then project on the ball around x, then clip.",
        )


@grader("Chosen without a look at the test set, and without a look into the future.")
def best_epoch(solution: Any) -> None:
    """Grade ``f(accuracies, patience) -> (epoch to keep, last epoch trained)``, from 0."""
    rising = [0.1, 0.2, 0.3]
    cases: tuple[tuple[Sequence[float], int, tuple[int, int]], ...] = (
        (rising, 2, (2, 2)),
        ([0.1, 0.5, 0.4, 0.3, 0.2], 2, (1, 3)),
        ([0.1, 0.5, 0.4, 0.3, 0.9], 2, (1, 3)),
        ([0.1, 0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2, (3, 5)),
        ([0.4, 0.4, 0.4, 0.4, 0.5], 3, (0, 3)),
        ([0.7], 5, (0, 0)),
        ([0.3, 0.2, 0.1], 5, (0, 2)),
    )
    for accuracies, patience, (best, last) in cases:
        got = solution(list(accuracies), patience)
        pair = isinstance(got, tuple | list) and len(got) == 2
        require(pair, "Return two numbers: the epoch to keep, and the last epoch trained.")
        mine = tuple(int(number(part)) for part in got)
        said = f"For {list(accuracies)} and patience {patience} you answer {mine}. "
        require(
            mine[1] == last,
            said + f"Training ends after epoch {last}: by then {patience} epochs in a row brought "
            "nothing better, or there are no more. What comes later can't be known.",
        )
        require(
            mine[0] == best,
            said + f"The epoch to keep is {best}: the best so far, the first one of equals.",
        )


class _Counting:
    """A model that counts the images it is shown while autograd watches them."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.gradients = model, 0

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            self.gradients += len(x)
        return self.model(x)  # type: ignore[no-any-return]


@grader("It rings for the collapsed network and not for the others, and costs next to nothing.")
def collapse_alarm(solution: Any) -> None:
    """Grade ``f(model, x, y, eps) -> number``, larger where Fast training has collapsed."""
    digits = mnist()
    x, y = digits.x_train[-100:], digits.y_train[-100:]
    values = {}
    for name in ("convnet_fast", "convnet_robust", "convnet_trades"):
        model = load_model(name)
        with inference(model):
            watched = _Counting(model)
            values[name] = number(solution(watched, x.clone(), y.clone(), 0.3))
            require(
                watched.gradients <= 3 * len(x),
                f"Your alarm takes {watched.gradients / len(x):.0f} gradients an image. It should "
                "be cheap enough for every epoch: three at most, and no PGD.",
            )
    require(
        all(value == value for value in values.values()),
        "Your alarm is NaN for one of the networks.",
    )
    collapsed = values.pop("convnet_fast")
    loudest = max(values.values())
    require(
        collapsed != loudest or len(set(values.values())) > 1,
        f"Your alarm says {collapsed:.3g} for all networks.",
    )
    require(
        collapsed > loudest,
        f"Your alarm says {collapsed:.3g} for the collapsed network and up to {loudest:.3g} for "
        "healthy ones. What differs between them half-way along the step?",
    )
