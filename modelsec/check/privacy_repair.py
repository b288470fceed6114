"""Graders for the chapter on repairing privacy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require
from modelsec.check.loss import number
from modelsec.intervals import wilson

__all__ = [
    "epsilon_at_least",
    "members_at_most",
    "private_gradient",
    "samples_again",
    "sensitive_batch",
]


@grader("The promise does not ask how clever the attack is: this holds for all of them.")
def members_at_most(answer: Any) -> None:
    """Grade a number: of 200 members, how many can be found with epsilon 1 and 2 of 200 false alarms."""
    value = number(answer)
    right = 200 * math.e * 0.01
    for wrong, why in (
        (math.e * 0.01, "That is the share. How many of 200 members is it?"),
        (200 * math.e, "That is more than there are. Where do the false alarms come in?"),
        (2.0, "That many are found by guessing. epsilon allows a factor more."),
        (4.0, "The factor is e**epsilon, not 1 + epsilon."),
        (200 * (1 - math.exp(-1) * 0.99), "That is the other bound, for many false alarms. Here the "
         "first one is smaller."),
    ):  # fmt: skip
        require(abs(value - wrong) > 1e-3 * max(1.0, wrong), why)
    require(
        abs(value - right) < 0.05 or value == math.floor(right),
        f"{value:.4g} is not it. Put the share of false alarms, 2 of 200, and epsilon = 1 into the "
        "bound, and multiply by the number of members.",
    )


@grader("Each row has its own leash; the noise is measured against that leash.")
def private_gradient(solution: Any) -> None:
    """Grade ``f(gradients (N, D), clip, noise, z (D,)) -> (D,)``, DP-SGD's gradient."""
    generator = torch.Generator().manual_seed(0)
    for n, d, clip in ((6, 4, 0.5), (1, 3, 2.0), (5, 40, 1.0)):
        rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
        rows *= torch.tensor([0.01, 30, 1, 0.2, 5, 1], dtype=torch.float64)[:n, None]
        z = torch.randn(d, generator=generator, dtype=torch.float64)
        lengths = rows.norm(dim=1, keepdim=True)
        clipped = rows * (clip / lengths).clamp(max=1)
        quiet = solution(rows.clone(), clip, 0.0, z.clone())
        require(
            isinstance(quiet, Tensor) and quiet.shape == (d,),
            f"Return one gradient of shape ({d},), not {tuple(getattr(quiet, 'shape', ()))}.",
        )
        quiet = quiet.detach().double()
        mean = rows.mean(0)
        if n > 1:
            for wrong, why in (
                (mean, "Without noise you return the plain mean: nothing is clipped."),
                (mean * min(1.0, clip / float(mean.norm())),
                 "You clip the mean of the batch. One sample may then be all of it. Clip each row."),
                (rows.sum(0) * min(1.0, clip / float(rows.sum(0).norm())),
                 "You clip the sum of the batch. Clip each row before the sum."),
                (rows.sum(0) * min(1.0, clip / float(rows.sum(0).norm())) / n,
                 "You clip the sum of the batch. Clip each row before the sum."),
                ((rows * clip / lengths).mean(0),
                 "You give every row the norm clip. Short rows must stay as they are."),
                (rows.clamp(-clip, clip).mean(0),
                 "You clip each entry. It is the norm of a whole row that has to be limited."),
                (clipped.sum(0), "That is the sum. Divide by the size of the batch."),
            ):  # fmt: skip
                same = torch.allclose(quiet, wrong) and not torch.allclose(clipped.mean(0), wrong)
                require(not same, why)
        require(
            torch.allclose(quiet, clipped.mean(0), atol=1e-6),
            "Without noise this is not the mean of the clipped rows.",
        )
        loud = solution(rows.clone(), clip, 3.0, z.clone()).detach().double() - quiet
        size = float((loud * z).sum() / z.square().sum())  # how much of z was added
        require(
            torch.allclose(loud, size * z, atol=1e-6),
            "The noise must be a multiple of z, the same for all entries.",
        )
        for times, why in (
            (0.0, "No noise is added."),
            (3.0 / n, "The noise does not grow with clip. Its deviation is noise times clip."),
            (3.0 * clip, "The noise belongs to the sum, so it is divided by N as well."),
            (3.0 * clip / n**0.5, "The noise is added once, to the sum, not to each row."),
        ):
            if abs(times - 3.0 * clip / n) > 1e-9:
                require(abs(size - times) > 1e-6, why)
        require(
            abs(size - 3.0 * clip / n) < 1e-6,
            f"With noise 3, clip {clip} and N = {n} the factor before z is {3 * clip / n:.3g}, "
            f"yours is {size:.3g}.",
        )


def _clips_the_mean(gradients: Tensor, clip: float) -> Tensor:
    """The bug: the batch's mean gradient is clipped."""
    mean = gradients.sum(0) / len(gradients)
    return mean * min(1.0, clip / max(float(mean.norm()), 1e-12))


@grader("One sample moved the result far more than the noise was made for. The budget is void.")
def sensitive_batch(answer: Any) -> None:
    """Grade gradients (N, D) in which the last sample moves the buggy gradient by over 5 clip / N."""
    require(isinstance(answer, Tensor), "Give a tensor of gradients, one row a sample.")
    require(
        answer.dim() == 2 and len(answer) >= 2,
        f"Give gradients of shape (N, D) with N of 2 or more, not {tuple(answer.shape)}.",
    )
    rows = answer.detach().double()
    require(bool(rows.isfinite().all()), "Some gradients are not finite.")
    without = rows.clone()
    without[-1] = 0
    n = len(rows)
    moved = float((_clips_the_mean(rows, 1.0) - _clips_the_mean(without, 1.0)).norm())
    require(
        moved > 1e-9,
        "The last sample does not move the result at all. Is its gradient zero, or do the others "
        "point the same way?",
    )
    require(
        n > 2 or moved > 5 / n,
        "With two samples even the worst one moves the result by 2 at most, and 5 / N is 2.5. Take "
        "a larger batch.",
    )
    require(
        moved > 5 / n,
        f"The last sample moves the result by {moved:.3g}; clip / N is {1 / n:.3g}, and at least 5 "
        "times that is wanted. Which gradient of one sample outweighs all the others together?",
    )


@grader("The accountant bounds epsilon from above, an attack from below. They must not cross.")
def epsilon_at_least(solution: Any) -> None:
    """Grade ``f(found, members, false, others, delta) -> epsilon`` that is disproved at 95%."""

    def ask(found: int, members: int, false: int, others: int, delta: float) -> float:
        return number(solution(found, members, false, others, delta))

    got = ask(60, 100, 3, 100, 0.0)
    ends = [(wilson(60, 100, level), wilson(3, 100, level)) for level in (0.95, 0.9)] + [
        (_exact(60, 100, level), _exact(3, 100, level)) for level in (0.95, 0.9)
    ]
    right = [math.log(found[0] / false[1]) for found, false in ends]
    (low, high), (least, most) = ends[0]
    for wrong, why in (
        ([math.log(0.6 / 0.03)], "You took the measured shares. They may be lucky: take the ends of "
         "their intervals that speak against the attack."),
        ([math.log(found[1] / false[0]) for found, false in ends],
         "You took the two ends that flatter the attack. Take the other two."),
        ([math.log(low / 0.03)], "The share of false alarms is measured too: take its upper end."),
        ([math.log(low / least)], "Many false alarms speak against the attack: take the upper end."),
        ([math.log(0.6 / most), math.log(high / most)],
         "The share of members found is measured too: take its lower end."),
        ([low / most], "That is the factor. epsilon is its logarithm."),
    ):  # fmt: skip
        require(all(abs(got - value) > 1e-3 for value in wrong), why)
    require(
        any(abs(got - value) < 2e-3 for value in right),
        f"60 of 100 members found, 3 of 100 false alarms, delta 0: epsilon is at least "
        f"{right[0]:.3f}, you say {got:.3f}. Which two ends of which two intervals does it take?",
    )
    with_delta = ask(60, 100, 3, 100, 0.2)
    require(abs(with_delta - got) > 1e-3, "delta has no effect. What may be found without epsilon?")
    require(
        with_delta < got,
        "A larger delta explains a part of what was found, so epsilon can be smaller.",
    )
    require(
        ask(1, 100, 1, 100, 0.0) == 0,
        "An attack that finds no more than it errs disproves nothing: return 0, not less.",
    )
    require(ask(3, 100, 1, 100, 0.5) == 0, "delta alone explains this attack: return 0.")
    require(
        math.isfinite(ask(50, 100, 0, 100, 0.0)),
        "No false alarm of 100 is no proof that there is none: the upper end is above 0.",
    )


def _exact(hits: int, n: int, level: float) -> tuple[float, float]:
    """Clopper and Pearson's interval, which is as good an answer as Wilson's."""
    from scipy.special import betaincinv  # slow to import; the quantile of a beta distribution

    tail = (1 - level) / 2
    low, high = betaincinv(hits, n - hits + 1, tail), betaincinv(hits + 1, n - hits, 1 - tail)
    return float(low), float(high)


@grader("Few shards are spared when many people ask at once.")
def samples_again(solution: Any) -> None:
    """Grade ``f(n, shards, requests) -> number`` of samples expected to be trained on again."""
    for n, shards, requests in ((1000, 10, 20), (1000, 10, 1), (600, 1, 3), (900, 30, 7)):
        got = number(solution(n, shards, requests))
        right = n * (1 - (1 - 1 / shards) ** requests)
        if requests > 1 and shards > 1:
            require(
                abs(got - requests * n / shards) > 1e-6,
                "Two requests may fall into the same shard, which is trained again once.",
            )
            require(
                abs(got - n * (1 - 1 / shards) ** requests) > 1e-6,
                "Those are the samples that are spared. The others are trained on again.",
            )
            require(
                abs(got - right * shards / n) > 1e-6,
                "That is a number of shards. How many samples are in them?",
            )
        require(
            abs(got - right) < 1e-3 * n,
            f"n = {n}, {shards} shards, {requests} requests at once: {right:.1f} are expected, you "
            f"say {got:.1f}. With which probability does no request fall into a given shard?",
        )
