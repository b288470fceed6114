"""Graders of the bug clinic: each looks for a fault that a real project had.

The faults themselves stand in :mod:`modelsec.check.clinic_faults`, with the place where each was
reported. A chapter shows one of them; the reader finds what is wrong, and hands in a mended one.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.attacks.gradient import fgsm as reference_fgsm
from modelsec.attacks.gradient import pgd
from modelsec.check.grading import grader, require
from modelsec.losses import cross_entropy

__all__ = [
    "clinic_budget",
    "clinic_l1_step",
    "clinic_l2_step",
    "clinic_labels",
    "clinic_misses",
    "clinic_modes",
    "clinic_overshoot",
    "clinic_worst_case",
]


@grader("A confident model no longer stops the attack.")
def clinic_l2_step(solution: Any) -> None:
    """Grade ``f(gradient (N, ...), size) -> steps (N, ...)``: l2 length ``size``, however small."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(4, 3, 5, generator=generator)
    direction /= direction.flatten(1).norm(dim=1)[:, None, None]
    for length in (1.0, 1e-5, 1e-9, 1e-15):
        # samples of several lengths in one batch: each is divided by its own
        gradient = direction * length * torch.tensor([1.0, 2, 3, 4])[:, None, None]
        got = _like(solution(gradient.clone(), 0.5), gradient)
        size = got.flatten(1).norm(dim=1)
        require(
            torch.allclose(size, torch.full_like(size, 0.5), rtol=1e-3),
            f"Gradients of length {length:g} to {4 * length:g} give steps of length "
            f"{float(size.min()):.3g} to {float(size.max()):.3g}; all should be 0.5.",
        )
        along = (got * direction).flatten(1).sum(1)
        require((along > 0.499).all(), "The step has the right length, but not the gradient's way.")
    zero = _like(solution(torch.zeros(2, 3), 0.5), torch.zeros(2, 3))
    require(bool(torch.isfinite(zero).all()), "A gradient of zero gives NaN: it should give zero.")
    require(not zero.any(), "Where the gradient is zero there is no way to go: return zero.")


@grader("No step of this length raises the loss more.")
def clinic_l1_step(solution: Any) -> None:
    """Grade ``f(gradient (N, ...), size) -> steps (N, ...)``: the steepest step in l1."""
    generator = torch.Generator().manual_seed(2)
    gradient = torch.randn(6, 2, 8, generator=generator)
    gradient[0, 0, 3], gradient[1, 1, 5] = -9, 9  # the largest one points down, and up
    got = _like(solution(gradient.clone(), 0.7), gradient)
    size = got.flatten(1).abs().sum(1)
    require(
        torch.allclose(size, torch.full_like(size, 0.7), rtol=1e-4),
        f"The steps have l1 norms of {float(size.min()):.3g} to {float(size.max()):.3g}; all "
        "should be 0.7.",
    )
    gain = (got * gradient).flatten(1).sum(1)
    best = 0.7 * gradient.flatten(1).abs().amax(1)
    require(
        not bool((gain < 0).any()),
        "A step leads downhill: mind the sign of the gradient's largest entry.",
    )
    share = float((gain / best).min())
    require(
        share > 0.999,
        f"A step raises the loss {share:.2f} times as much as the best one of this l1 norm. "
        "Which single pixel has the steepest slope?",
    )


@grader("However many steps it takes, it stays in the ball.")
def clinic_budget(solution: Any) -> None:
    """Grade ``f(model, x, y, eps, step_size, steps) -> x_adv``: ball, box, and full strength."""
    model, x, y = _small_case(3)
    for eps, step_size, steps in ((0.1, 0.03, 12), (0.05, 0.05, 3), (0.1, 0.02, 1)):
        adv = _attacked(solution(model, x.clone(), y, eps, step_size, steps), x)
        reach = float((adv - x).abs().max())
        require(
            reach <= eps + 1e-6,
            f"With eps = {eps}, a step size of {step_size} and {steps} steps, a pixel moved by "
            f"{reach:.3f}. Around which point is the ball?",
        )
        options: dict[str, Any] = {"loss": cross_entropy, "random_start": False}
        best = pgd(
            model, x, y, eps=eps, steps=steps, step_size=step_size, early_stop=False, **options
        )
        before, after, most = (_loss(model, images, y) for images in (x, adv, best))
        require(
            after - before >= 0.9 * (most - before),
            f"It keeps to eps, but in {steps} steps the loss rose by {after - before:.2f} only; "
            f"projected gradient ascent gains {most - before:.2f}.",
        )


@grader("It leaves the model as it finds it, whoever changes its mode in between.")
def clinic_modes(solution: Any) -> None:
    """Grade ``f(model, eps) -> attack(x, y)``: every module's mode is what it was at the call."""
    model, x, y = _small_case(4)
    (norm,) = (part for part in model if isinstance(part, nn.BatchNorm1d))
    statistics = {name: value.clone() for name, value in norm.named_buffers()}
    wanted = reference_fgsm(model, x, y, eps=0.1, loss=cross_entropy)
    for at_making, at_use in ((True, False), (False, True), (True, True)):
        model.train(at_making)
        attack = solution(model, 0.1)
        require(callable(attack), f"Return the attack, a function, not {type(attack).__name__}.")
        model.train(at_use)
        adv = _attacked(attack(x.clone(), y), x)
        require(
            model.training == at_use,
            f"The attack was made while model.training was {at_making}. Then the model was put "
            f"into {'train' if at_use else 'eval'} mode, the attack was run, and model.training "
            f"was {model.training}. When should the mode be noted?",
        )
        require(
            all(torch.equal(value, statistics[name]) for name, value in norm.named_buffers()),
            "The attack changed BatchNorm's statistics: the model must be in eval mode meanwhile.",
        )
        require(
            float((adv == wanted).float().mean()) > 0.99,
            "The images are not those of FGSM on the model in eval mode.",
        )
    model.train()
    norm.eval()  # frozen by hand, as in fine-tuning
    attack = solution(model, 0.1)
    attack(x.clone(), y)
    require(
        model.training and not norm.training,
        "A BatchNorm that was in eval mode while the rest was training came back in train mode. "
        "model.training is the mode of the outermost module alone: note all of model.modules().",
    )
    with contextlib.suppress(RuntimeError):
        attack(x[:, :, :3], y)  # the model can't take images of this shape, and raises
    require(
        model.training,
        "When the model raised an error, it stayed in eval mode. Put the mode back in a finally.",
    )


@grader("Now the attack knows what the right answer is.")
def clinic_labels(solution: Any) -> None:
    """Grade ``f(model, x, y, eps) -> x_adv``: FGSM that uses the labels."""
    model, x, y = _small_case(5)
    predicted = model(x).argmax(1)
    adv = _attacked(solution(model, x.clone(), y, 0.1), x)
    require(float((adv - x).abs().max()) <= 0.1 + 1e-6, "A pixel moved by more than eps.")
    before, after = _loss(model, x, y), _loss(model, adv, y)
    best = _loss(model, reference_fgsm(model, x, y, eps=0.1), y)
    away = reference_fgsm(model, x, predicted, eps=0.1)
    require(
        not torch.allclose(adv, away, atol=1e-5),
        "It climbs away from the model's own answer. Where that is wrong already, it helps the "
        "model: use the label y.",
    )
    require(
        after - before >= 0.98 * (best - before),
        f"The loss rose by {after - before:.3f}; FGSM gives {best - before:.3f}. Print the "
        "gradient's size: what does the loss compare the answer with?",
    )


@grader("Every point lies behind the boundary, and only as far as it was told to go.")
def clinic_overshoot(solution: Any) -> None:
    """Grade ``f(model, x (N, d), y, steps, overshoot) -> points``: DeepFool for two classes."""
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(2, 20, generator=generator)
    bias = torch.tensor([0.3, 0.0])

    def model(points: Tensor) -> Tensor:
        return points @ weight.T + bias

    x = torch.rand(64, 20, generator=generator)
    seen, y = x.clone(), model(x).argmax(1)
    logits = model(x)
    nearest = (logits[:, 0] - logits[:, 1]).abs() / (weight[0] - weight[1]).norm()
    for steps, overshoot in ((1, 0.02), (3, 0.5)):
        adv = solution(model, x, y, steps, overshoot)
        require(torch.equal(x, seen), "Your function changed x in place.")
        adv = _like(adv, x)
        fooled = float((model(adv).argmax(1) != y).float().mean())
        ratio = (adv - x).norm(dim=1) / nearest
        require(
            fooled == 1,
            f"With overshoot = {overshoot}, {fooled:.0%} of the points get another answer; all "
            f"should. They lie {float(ratio.median()):.3f} times as far as the boundary.",
        )
        require(
            bool(((ratio - 1 - overshoot).abs() < 0.01).all()),
            f"With overshoot = {overshoot} the points should lie {1 + overshoot} times as far as "
            f"the boundary; yours lie {float(ratio.median()):.3f} times as far.",
        )


@grader("A miss is now the farthest of all, not the nearest.")
def clinic_misses(solution: Any) -> None:
    """Grade ``f(model, x, y, adv) -> median distance`` of what a minimum-norm attack returned."""

    def model(points: Tensor) -> Tensor:  # class 1 where the first coordinate is above a half
        lead = points[:, 0] - 0.5
        return torch.stack([-lead, lead], 1)

    generator = torch.Generator().manual_seed(7)
    x = torch.rand(9, 4, generator=generator)
    x[:, 0] = torch.linspace(0.05, 0.4, 9)
    y = torch.zeros(9, dtype=torch.long)
    found = x.clone()
    found[:, 0] = 0.51
    way = 0.51 - x[:, 0]  # falls from the first to the last

    returned = found.clone()
    returned[:3] = x[:3]  # misses, returned as they were
    got = _number(solution(model, x, y, returned))
    wanted = float(way[3:].sort().values[4])
    require(
        abs(got - float(torch.cat([way[3:], way.new_zeros(3)]).median())) > 1e-5,
        "Three of nine points are the clean images, where the attack failed. They count as a "
        "distance of 0: as if the boundary ran through them.",
    )
    require(
        abs(got - float(way[3:].median())) > 1e-5,
        "You left the misses out. That makes the others look typical: a miss is farther than any "
        "distance that was found, so count it as infinite.",
    )
    require(abs(got - wanted) <= 1e-5, f"The median should be {wanted:.3f}, you found {got:.3f}.")

    returned = found.clone()
    returned[5:] = x[5:] * torch.tensor([0.0, 1, 1, 1])  # misses too: still class 0, but moved
    got = _number(solution(model, x, y, returned))
    wanted = float(torch.cat([way[:5], way.new_full((4,), math.inf)]).median())
    require(
        abs(got - wanted) <= 1e-5,
        "An attack that fails may return any image, not only the clean one. Ask the model whether "
        "its answer changed.",
    )
    got = _number(solution(model, x, y, x.clone()))
    require(got == math.inf, f"Where every attack fails, the median is infinite; yours is {got}.")
    already = torch.ones(9, dtype=torch.long)  # now every answer was wrong from the start
    got = _number(solution(model, x, already, x.clone()))
    require(got == 0, f"An image that is wrong already needs no change; your median is {got}.")


@grader("For each image, the attack that hurts most is the one that counts.")
def clinic_worst_case(solution: Any) -> None:
    """Grade ``f(right: list of (N,) bool) -> share`` that withstands every attack."""
    first = torch.tensor([True] * 6 + [False] * 2 + [True] * 2)
    second = torch.tensor([False] * 3 + [True] * 7)
    third = torch.tensor([True] * 9 + [False])
    got = _number(solution([first, second, third]))
    require(
        abs(got - 0.8) > 1e-6,
        "That is the average over the attacks. An attacker need not share it out: which images "
        "withstand all three?",
    )
    require(
        abs(got - 0.7) > 1e-6,
        "That is what the best single attack leaves. Different attacks fool different images: "
        "take the worst case image by image.",
    )
    require(abs(got - 0.4) <= 1e-6, f"4 of 10 images withstand all three attacks; yours is {got}.")
    alone = _number(solution([first]))
    require(abs(alone - 0.8) <= 1e-6, f"A single attack that leaves 0.8 is told as {alone}.")


def _small_case(seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network with BatchNorm in eval mode, images in [0, 1], and labels of which some are wrong."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.eval()
    x = torch.rand(40, 1, 8, 8, generator=generator)
    y = model(x).argmax(1)
    y[:8] = (y[:8] + 1) % 5
    return model, x, y


def _like(got: Any, wanted: Tensor) -> Tensor:
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(
        got.shape == wanted.shape,
        f"The result should have shape {tuple(wanted.shape)}, yours has {tuple(got.shape)}.",
    )
    result: Tensor = got.detach()
    return result


def _attacked(got: Any, x: Tensor) -> Tensor:
    adv = _like(got, x)
    require(bool(torch.isfinite(adv).all()), "Some pixels are NaN or infinite.")
    require(
        float(adv.min()) >= 0 and float(adv.max()) <= 1,
        f"Pixels run from {float(adv.min()):.2f} to {float(adv.max()):.2f}: keep them in [0, 1].",
    )
    return adv


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y, reduction="sum"))


def _number(answer: Any) -> float:
    if isinstance(answer, Tensor):
        require(answer.numel() == 1, f"Return one number, not a tensor {tuple(answer.shape)}.")
        return float(answer)
    try:
        return float(answer)
    except (TypeError, ValueError):
        require(False, f"Return a number, not {type(answer).__name__}.")
        raise
