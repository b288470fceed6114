"""Graders for the chapter on physical attacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modelsec.attacks.physical import Placement, apply_patch
from modelsec.check.grading import grader, require
from modelsec.check.loss import number
from modelsec.data import mnist
from modelsec.training import evaluate
from modelsec.zoo import load_model

__all__ = ["expected_step", "patch_at_any_angle", "photographs_behind", "stick_on"]


@grader("Resample photographs, not placements, and the interval tells the truth.")
def photographs_behind(answer: Any) -> None:
    """Grade a number: how many independent samples 25 placements on each of 8 photographs are."""
    value = number(answer)
    for wrong, why in (
        (
            200,
            "All 25 placements on a photograph came out alike: after the first one the others tell "
            "you nothing about other photographs.",
        ),
        (25, "That is how often each photograph was used. How many different ones were there?"),
        (150, "That is the number of successes."),
        (6, "That is how many photographs were steered; the two others count as well."),
    ):
        require(value != wrong, why)
    require(value == 8, f"{value:g} is not it. What was drawn independently of each other?")


@grader("With a turn and a size added, that is apply_patch.")
def stick_on(solution: Any) -> None:
    """Grade ``f(x (N, C, H, W), patch (C, S, S), top (N,), left (N,)) -> patched images``."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(5, 3, 9, 12, generator=generator, dtype=torch.float64)
    sticker = torch.rand(3, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    top, left = torch.tensor([0, 5, 2, 2, 3]), torch.tensor([8, 0, 3, 3, 1])
    wanted = x.clone()
    for image, i, j in zip(wanted, top.tolist(), left.tolist(), strict=True):
        image[:, i : i + 4, j : j + 4] = sticker.detach()
    before = x.clone()
    got = solution(x, sticker, top.clone(), left.clone())
    require(isinstance(got, Tensor), f"Return a tensor of images, not {type(got).__name__}.")
    require(got.shape == x.shape, f"x has shape {tuple(x.shape)}, your result {tuple(got.shape)}.")
    require(torch.equal(x, before), "Your function changed x in place: make a copy first.")
    under = (wanted != before).any(1, keepdim=True)
    outside = torch.where(under, 0, got.detach() - before)
    tiny = bool(outside.any()) and float(outside.abs().max()) < 1e-9
    swapped = x.clone()
    for image, i, j in zip(swapped, left.tolist(), top.tolist(), strict=True):
        part = image[:, i : i + 4, j : j + 4]
        part.copy_(sticker.detach()[:, : part.shape[1], : part.shape[2]])
    require(
        not torch.allclose(got.detach(), swapped),
        "Top and left are interchanged: top counts rows, which are the image's second last "
        "dimension.",
    )
    alike = x.clone()
    alike[:, :, int(top[0]) : int(top[0]) + 4, int(left[0]) : int(left[0]) + 4] = sticker.detach()
    require(
        not torch.allclose(got.detach(), alike),
        "All images have the patch in the same place. Each has its own, top[i] and left[i].",
    )
    require(
        not tiny, "Pixels outside the patch changed by rounding. Choose, don't add and subtract."
    )
    require(not bool(outside.any()), "Pixels outside the patch changed.")
    require(
        torch.allclose(got.detach(), wanted), "The pixels under the patch are not the patch's own."
    )
    require(
        got.requires_grad,
        "No gradient reaches the patch, so it can't be trained: don't detach it, and don't write "
        "through .data or NumPy.",
    )
    weight = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad(got, sticker, weight, allow_unused=True)
    require(slope is not None, "No gradient reaches the patch.")
    right = sum(
        each[:, i : i + 4, j : j + 4]
        for each, i, j in zip(weight, top.tolist(), left.tolist(), strict=True)
    )
    require(
        torch.allclose(slope, right),
        "The patch's gradient is not the sum of what the images say: does every image use the same "
        "patch, and does nothing else come back?",
    )


class _Draws:
    """Hands out transformations, and remembers how many."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(6)
        self.given: list[Tensor] = []

    def __call__(self) -> Tensor:
        self.given.append(torch.rand(3, generator=self.generator, dtype=torch.float64))
        return self.given[-1]


def _bent(patch: Tensor, t: Tensor) -> Tensor:
    """What an attacker wants to be large; its slope bends with the transformation ``t``."""
    weight = torch.linspace(-1, 1, patch.numel(), dtype=patch.dtype).view_as(patch)
    return ((t[0] ** 6 * 12 - 2 + 5 * weight * (t[1] - 0.3)) * patch).sum() + (
        t[2] * patch
    ).square().sum()


@grader("Around it a loop, and the patch learns to put up with whatever you draw.")
def expected_step(solution: Any) -> None:
    """Grade ``f(value, patch, draw, n, step_size) -> patch``: a step of EOT, upwards, clipped."""
    patch = torch.linspace(0, 1, 27, dtype=torch.float64).view(3, 3, 3)
    for n, step_size in ((40, 0.05), (9, 0.2)):
        draw, before = _Draws(), patch.clone()
        got = solution(_bent, patch, draw, n, step_size)
        require(isinstance(got, Tensor), f"Return a tensor, the patch, not {type(got).__name__}.")
        require(got.shape == patch.shape, f"The patch's shape changed to {tuple(got.shape)}.")
        require(torch.equal(patch, before), "Your function changed the patch in place: copy it.")
        got = got.detach()
        require(
            len(draw.given) == n,
            f"draw() was called {len(draw.given)} times for n = {n}: a fresh transformation for "
            "each of the n gradients, and no more.",
        )
        each = torch.stack([_slope(patch, t) for t in draw.given])
        require(
            float(got.min()) >= 0 and float(got.max()) <= 1,
            "A pixel of the patch is outside [0, 1]: no printer has that colour. Clip.",
        )

        def stepped(
            direction: Tensor, patch: Tensor = patch, step_size: float = step_size
        ) -> Tensor:
            return (patch + step_size * direction).clamp(0, 1)

        wanted = stepped(each.mean(0).sign())
        if torch.allclose(got, wanted):
            continue
        wrong = (
            (-each.mean(0).sign(), "The step goes down. The attacker climbs."),
            (
                each.sign().mean(0),
                "You took the sign of each gradient and averaged the signs. Average the gradients "
                "first: one that is large must be able to outweigh several small ones.",
            ),
            (
                each.sign().mean(0).sign(),
                "That is a vote of the signs. Average the gradients first: one that is large must "
                "be able to outweigh several small ones.",
            ),
            (
                _slope(patch, torch.stack(draw.given).mean(0)).sign(),
                "That is the gradient at the mean transformation. The mean of the gradients is "
                "something else, since the slope bends with the transformation.",
            ),
            (each[0].sign(), "Only the first gradient counts in your step."),
            (each[-1].sign(), "Only the last gradient counts in your step."),
            (each.mean(0), "Take the sign of the mean gradient, times step_size."),
            (each.sum(0), "Take the sign of the mean gradient, times step_size."),
        )
        for direction, why in wrong:
            require(not torch.allclose(got, stepped(direction)), why)
        require(False, "The step is not step_size times the sign of the mean of the n gradients.")


def _slope(patch: Tensor, t: Tensor) -> Tensor:
    leaf = patch.clone().requires_grad_()
    (slope,) = torch.autograd.grad(_bent(leaf, t), leaf)
    return slope


TARGET, SIZE, SCALE, NEEDED = 2, 12, 0.6, 0.42


@grader("It was trained for every angle at which it is used, and for no more.")
def patch_at_any_angle(solution: Any) -> None:
    """Grade ``f(model, x (N, 1, 28, 28), y (N,)) -> patch (1, 12, 12)``, y being the class to reach."""
    digits, model = mnist(), load_model("convnet")
    x = digits.x_train[:500]
    made = solution(model, x, torch.full((len(x),), TARGET))
    require(isinstance(made, Tensor), f"Return the patch, a tensor, not {type(made).__name__}.")
    require(
        made.shape == (1, SIZE, SIZE),
        f"The patch must have shape {(1, SIZE, SIZE)}; yours has {tuple(made.shape)}.",
    )
    made = made.detach().float()
    require(
        bool(made.isfinite().all()) and float(made.min()) >= 0 and float(made.max()) <= 1,
        "A pixel of the patch is outside [0, 1]: no printer has that colour.",
    )
    other = digits.y_test[:500] != TARGET
    x = digits.x_test[:500][other]
    y = torch.full((len(x),), TARGET)
    upright, any_angle = (
        evaluate(
            model,
            apply_patch(
                x,
                made,
                Placement((SCALE, SCALE), (-most, most)).draw(x, torch.Generator().manual_seed(7)),
            ),
            y,
        ).value
        for most in (10.0, 180.0)
    )
    said = (
        f"On {len(x)} digits your patch reaches the answer {TARGET} {upright:.2f} of the time when it "
        f"stands upright and {any_angle:.2f} of it at any angle. "
    )
    require(
        any_angle >= NEEDED,
        said
        + (
            "At which angles was it trained?"
            if upright >= NEEDED
            else "Is it trained for this class and size?"
        ),
    )
