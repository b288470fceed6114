"""Graders for the chapter on augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modelsec.check.grading import grader, require

__all__ = ["mixup_each", "mixup_floor", "shift_each", "worst_of"]


@grader(
    "So a training loss under mixup says little by itself, and never compares with one without."
)
def mixup_floor(answer: Any) -> None:
    """Grade a number: the smallest mean loss on mixup's soft targets, Beta(1, 1), two classes each."""
    require(not callable(answer), "Give a number, not a function.")
    single = isinstance(answer, Real) or (isinstance(answer, Tensor) and answer.numel() == 1)
    require(single, f"Give one number; this is of type {type(answer).__name__}.")
    value = float(answer)
    for wrong, why in (
        (
            0.0,
            "Zero needs a probability of 1 for the right class. Here two classes are right in part.",
        ),
        (
            math.log(2),
            "That is the loss at a share of 1/2, the largest. Take the mean over all shares.",
        ),
        (0.25, "Nearly: that is one of the two terms, -s log s. The other class costs as much."),
        (
            math.log(10),
            "That is the loss of somebody who guesses. What is the loss of the best answer?",
        ),
        (0.5 / math.log(2), "That is measured in bits; cross-entropy uses the natural logarithm."),
    ):
        require(not abs(value - wrong) <= 0.01, why)
    require(
        abs(value - 0.5) <= 0.02,
        f"{value:.4g} is not it. The best answer gives the two classes the probabilities s and "
        "1 - s. What is its loss, and what is the mean of that over s from 0 to 1?",
    )


@grader("torchvision would have moved the whole batch alike.")
def shift_each(solution: Any) -> None:
    """Grade ``f(x, most, generator) -> x``, each image moved by whole pixels, black coming in."""
    for most in (2, 3):  # a reach written into the code would pass one of them
        _examine_shift(solution, most)


def _examine_shift(solution: Any, most: int) -> None:
    x = 0.1 + 0.9 * torch.rand(400, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    seen = x.clone()
    moved = _drawn(solution, x, most)
    require(torch.equal(x, seen), "Your function changed x in place: make a copy first.")
    require(isinstance(moved, Tensor), f"Return a tensor, not {type(moved).__name__}.")
    require(
        moved.shape == x.shape,
        f"x has shape {tuple(x.shape)}, your result {tuple(moved.shape)}.",
    )
    require(not torch.equal(moved, x), "Nothing moved.")
    reach = range(-9 + 1, 9)
    found = torch.full((len(x), 2), 99)
    for down in reach:
        for right in reach:
            same = (moved == _shifted(x, down, right)).flatten(1).all(1)
            found[same] = torch.tensor([down, right])
    wrapped = moved.flatten(1).sort(1).values == x.flatten(1).sort(1).values
    lost = found[:, 0] == 99
    require(
        not bool((wrapped.all(1) & lost).any()),
        "What leaves an image on one side comes back on the other (as torch.roll does). Let black "
        "come in instead.",
    )
    require(
        not bool(lost.any()),
        "An image of your result is no copy of its own image, moved by whole pixels with zeros "
        "coming in.",
    )
    require(len(found.unique(dim=0)) > 1, "All images moved alike: draw a shift for each of them.")
    require(
        int(found.abs().max()) <= most,
        f"With most = {most} an image moved by {int(found.abs().max())} pixels.",
    )
    for axis, (low, high) in enumerate((("up", "down"), ("left", "right"))):
        steps = set(found[:, axis].tolist())
        for end, where in ((-most, low), (most, high)):
            require(
                end in steps,
                f"With most = {most}, none of 400 images moved {most} pixels {where}. "
                "(torch.randint leaves its upper end out.)",
            )
    require(
        not torch.equal(found[:, 0].abs(), found[:, 1].abs()),
        "Every image moved as far sideways as it moved up or down: draw the two apart.",
    )
    _uses_the_generator(solution, moved, x, most)


@grader("Each image with a share of its own: more variety in a batch than torchvision's MixUp has.")
def mixup_each(solution: Any) -> None:
    """Grade ``f(x, y, classes, generator) -> (mixed x, targets)``: a share for every image."""
    n, classes = 64, 7
    x = torch.eye(n).view(
        n, 1, 8, 8
    )  # image i is white in pixel i alone, so shares can be read off
    y = torch.arange(n) % classes
    seen = x.clone(), y.clone()
    result = _drawn(solution, x, y, classes)
    require(
        torch.equal(x, seen[0]) and torch.equal(y, seen[1]),
        "Your function changed x or y in place: make a copy first.",
    )
    require(
        isinstance(result, tuple) and len(result) == 2, "Return two things: mixed images, targets."
    )
    mixed, targets = result
    for name, tensor, shape in (("images", mixed, x.shape), ("targets", targets, (n, classes))):
        require(isinstance(tensor, Tensor), f"The {name} must be a tensor.")
        require(
            tensor.shape == torch.Size(shape),
            f"The {name} must have shape {tuple(shape)}, yours have {tuple(tensor.shape)}.",
        )
    weights = mixed.detach().flatten(1).float()  # (n, n): how much of image j is in result i
    sums = weights.sum(1)
    require(
        torch.allclose(sums, torch.ones(n), atol=1e-4) and float(weights.min()) >= -1e-6,
        f"The shares of an image's parts must be 0 or more and sum to 1; here one sums to "
        f"{float(sums[(sums - 1).abs().argmax()]):.3f}.",
    )
    require(
        int((weights > 1e-6).sum(1).max()) <= 2,
        "A result may hold two images, itself and one other.",
    )
    own = weights.diagonal()
    require(float(own.min()) >= 0 and float(own.max()) > 0, "Where has the image itself gone?")
    partners = int((own < 1 - 1e-6).sum())
    require(partners > n // 2, "Nearly all images were mixed with themselves: shuffle the batch.")
    mixed_ones = own[own < 1 - 1e-6]
    require(
        float(mixed_ones.std()) > 1e-4, "All images have the same share: draw one for each image."
    )
    expected = weights @ F.one_hot(y, classes).float()
    require(
        torch.allclose(targets.float(), expected, atol=1e-4),
        "Images and labels don't belong together: mix the labels with the same partner and the "
        "same share as the images.",
    )
    require(
        float(mixed_ones.min()) < 0.25 and float(mixed_ones.max()) > 0.75,
        f"The shares run from {float(mixed_ones.min()):.2f} to {float(mixed_ones.max()):.2f} only: "
        "draw them from 0 to 1.",
    )
    _uses_the_generator(lambda *args: solution(*args)[0], mixed, x, y, classes)


@grader("One failure among many tries is a failure: that is how an attacker counts.")
def worst_of(solution: Any) -> None:
    """Grade ``f(model, x, y, changes) -> (N,) bool``: right under every one of the changes."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(200, 1, 4, 4, generator=generator)
    weights = torch.randn(16, 3, generator=generator)
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: x,
        lambda x: x.flip(-1),
        lambda x: x.roll(1, -2),
    ]

    def model(images: Tensor) -> Tensor:
        return images.flatten(1) @ weights

    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 3  # the model is wrong on some before anything is changed
    right = torch.stack([model(change(x)).argmax(1) == y for change in changes])
    seen = x.clone()
    got = solution(model, x, y.clone(), list(changes))
    require(torch.equal(x, seen), "Your function changed x in place.")
    require(
        isinstance(got, Tensor) and got.shape == (200,),
        "Return one value for each image, True or False: for 200 images a tensor of shape (200,).",
    )
    got = got.detach()
    require(
        not torch.allclose(got.double(), right.double().mean(0)) or bool(right.all()),
        "You took the mean over the changes. One failure is enough: all must be right.",
    )
    got = got.bool()
    for wrong, why in (
        (
            right.any(0),
            "Yours is True where the model is right under some change; all must be right.",
        ),
        (right[-1], "Only the last change counts in your result: keep what the others showed."),
        (right[0], "The changes make no difference in your result: is each of them applied to x?"),
        (right[1:].all(0), "The first change is missing in your result."),
        (~right.all(0), "Turned round: True should mean that the model stays right."),
    ):
        require(not torch.equal(got, wrong), why)
    require(
        torch.equal(got, right.all(0)),
        f"The model stays right on {int(right.all(0).sum())} of 200 images, you found "
        f"{int(got.sum())}. Compare the answers with y, and apply each change to x itself.",
    )


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Images moved by whole pixels, zeros coming in."""
    high, wide = x.shape[-2:]
    big = F.pad(x, (wide, wide, high, high))
    top, left = high - down, wide - right
    return big[..., top : top + high, left : left + wide]


def _drawn(solution: Any, *args: Any, seed: int = 0) -> Any:
    """What the solution returns with a fresh generator; args are copied."""
    return solution(*args, torch.Generator().manual_seed(seed))


def _uses_the_generator(solution: Any, before: Tensor, *args: Any) -> None:
    again, other = (_drawn(solution, *args, seed=seed) for seed in (0, 1))
    require(
        torch.equal(again, before) and not torch.equal(other, before),
        "The same generator state must give the same result, and another state another one: pass "
        "generator=generator to every function that draws.",
    )
