"""Graders for the chapter on driving."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.check.grading import adversarial, grader, require
from modelsec.check.loss import number
from modelsec.models import ConvNet, drawing_from

__all__ = ["chance_of_false_alarm", "drives_needed", "first_ring", "push_wheel"]

_WHEEL = torch.arange(-7, 8) / 10  # as modelsec.driving.WHEEL, without its simulator


@grader("So the number of quiet drives sets the rate of false alarms, whatever the score is.")
def chance_of_false_alarm(answer: Any) -> None:
    """Grade a number: how likely a 21st drive goes above the largest level of 20 like it."""
    answer = number(answer)
    for wrong, why in (
        (0.0, "Not never: the 21st drive may happen to be the strangest of all."),
        (0.05, "Nearly: count the drives among which the strangest one is looked for."),
        (0.5, "That is the chance of being above one other drive, or above the middle one."),
        (20 / 21, "That is the chance of no alarm."),
    ):
        require(not abs(answer - wrong) < 0.002, why)
    require(
        abs(answer - 1 / 21) < 0.002,
        f"{answer:.4g} is not it. All 21 drives are alike, so each is as likely as any other to "
        "have the largest level.",
    )


class _Small(nn.Module):
    """A driver of 12 x 12 pixels that is sure of itself: a plain loss has next to no slope."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with drawing_from(torch.Generator().manual_seed(seed)):
            self.net = ConvNet(1, 12, len(_WHEEL), mean=(0.5,), std=(0.1,))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 12, 12) -> (N, 15)."""
        logits: Tensor = 8 * self.net(x)
        return logits


@grader("Many small pushes, every frame anew: that is all the attack of this chapter does.")
def push_wheel(solution: Any) -> None:
    """Grade ``f(net, frames (N, 1, H, W), side (N,), eps) -> frames`` that turn the wheel."""
    draw = torch.Generator().manual_seed(3)
    for seed in (0, 1):
        net = _Small(seed).eval()
        x = torch.rand(24, 1, 12, 12, generator=draw) * 0.6 + 0.2
        x[:4] = (x[:4] > 0.5).float()  # black and white: the box matters
        side = torch.where(torch.arange(24) % 2 == 0, 1, -1)
        adv = adversarial(solution, net, x, side, 0.1)
        gain = (side * (_steer(net, adv) - _steer(net, x))).clamp_min(-2)
        by_side = [float(gain[side == s].mean()) for s in (1, -1)]
        require(
            min(by_side) > 0 or max(by_side) <= 0,
            "One side works, the other doesn't: side is 1 or -1 for each frame, and multiplies "
            "that frame's steering.",
        )
        require(
            sum(by_side) > 0,
            "The wheel goes to the other side, or not at all. Climb side times steering; is the "
            "gradient's sign right?",
        )
        wanted = side * (_steer(net, _reference(net, x, side, 0.1)) - _steer(net, x))
        require(
            gain.mean() >= 0.6 * wanted.mean(),
            f"The wheel moves by {float(gain.mean()):.3f} on average; ten small steps move it by "
            f"{float(wanted.mean()):.3f}. Take several steps, use the gradient's sign, and go as "
            "far as eps allows.",
        )


def _steer(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        steering: Tensor = net(x).softmax(1) @ _WHEEL
    return steering


def _reference(net: nn.Module, x: Tensor, side: Tensor, eps: float) -> Tensor:
    adv = x
    for _ in range(10):
        adv = adv.detach().requires_grad_()
        push = (side * (net(adv).softmax(1) @ _WHEEL)).sum()
        (slope,) = torch.autograd.grad(push, adv)
        moved = adv.detach() + eps / 4 * slope.sign()
        adv = moved.clamp(x - eps, x + eps).clamp(0, 1)
    return adv


@grader("A mean over a few steps is calm where one step is not, and answers a little later.")
def first_ring(solution: Any) -> None:
    """Grade ``f(scores, over, limit) -> step``: where a monitor rings first, -1 if it never does."""
    for scores, over, limit, wanted, why in (
        ([0.0, 0.5, 0.0, 0.0, 0.0, 0.0], 3, 0.3, -1,
         "One strange step is averaged with those before it, at the start with fewer."),
        ([0.0] * 10 + [1.0, 1.0], 5, 0.3, 11,
         "Only the last scores are averaged, or old calm hides new trouble."),
        ([0.1, -0.6, -0.5, -0.4, -0.5], 2, 0.5, 2,
         "A wheel too far to the left counts as well: take the distance of the mean from 0."),
        ([0.4, -0.4, 0.4, -0.4, 0.4, -0.4], 4, 0.3, 0,
         "At the first step there is one score, and it is the mean."),
        ([0.2, -0.4, 0.4, -0.4, 0.4, -0.4], 4, 0.3, -1,
         "Scores to and fro cancel: average first, take the distance from 0 then."),
        ([0.0, 0.2, 0.4, 0.6, 0.8], 2, 0.5, 4,
         "Above the limit, not at it, and only the last scores are averaged."),
        ([0.9], 5, 0.3, 0, "With fewer scores than asked for, average those that there are."),
    ):  # fmt: skip
        got = number(solution(list(scores), over, limit))
        require(
            got == wanted,
            f"For scores {scores}, a mean over {over} and a limit of {limit} the answer is {wanted}, "
            f"yours is {got:g}. {why}",
        )


@grader("Without a single accident, so many drives say so little.")
def drives_needed(solution: Any) -> None:
    """Grade ``f(rate) -> drives``: without a single accident, until Wilson's upper end is below rate."""
    for rate in (0.05, 0.01, 0.2, 0.5):
        got = number(solution(rate))
        wanted = next(n for n in range(_enough(rate) - 2, _enough(rate) + 3) if _upper(n) < rate)
        require(
            not abs(got - math.ceil(3 / rate)) < 1 or abs(got - wanted) < 1e-6,
            f"{got:g} comes from the rule of three, another interval. Take modelsec.intervals.wilson.",
        )
        require(
            not (got == wanted - 1 or (got != round(got) and abs(got - wanted) < 1)),
            f"For a rate of {rate:g} you say {got:g}: round up to whole drives, until the end is "
            "below the rate.",
        )
        require(
            got == wanted,
            f"For a rate of {rate:g} it takes {wanted} drives, yours is {got:g}. With no accident "
            "the upper end of Wilson's 95% interval is z^2 / (n + z^2), z = 1.96.",
        )


_Z2 = 1.959963984540054**2


def _upper(n: int) -> float:
    return _Z2 / (n + _Z2)


def _enough(rate: float) -> int:
    return max(math.ceil(_Z2 * (1 - rate) / rate), 3)
