"""Graders for the chapter on gradient attacks."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.attacks import gradient as attacks
from modelsec.attacks.norms import NORMS, unit
from modelsec.check.grading import grader, require
from modelsec.check.loss import number, small_model
from modelsec.data import mnist
from modelsec.losses import cross_entropy
from modelsec.training import evaluate
from modelsec.zoo import load_model

__all__ = ["l1_fill", "momentum", "pgd", "step_rule", "steps_to_cross"]

EPS, STEPS, LEFT = 20.0, 20, 0.36  # of step_rule; constant steps leave more


@grader("Fewer steps, and some corners of the ball can't be reached from the other side.")
def steps_to_cross(answer: Any) -> None:
    """Grade a number: the steps of 1/255 that lead from one wall of the ball to the other."""
    answer = number(answer)
    for wrong, why in (
        (
            8,
            "That leads from the middle to a wall. From one wall to the opposite one it is further.",
        ),
        (15, "Nearly: that ends one step short of the wall."),
        (17, "One step more than it takes."),
        (2 * 8 / 255, "That is the width of the ball, in pixels of [0, 1]. How many steps is it?"),
    ):
        require(abs(answer - wrong) > 1e-3, why)
    require(
        abs(answer - 16) < 1e-6,
        f"{answer:.4g} is not it. A pixel may be anywhere from -8/255 to +8/255. How wide is that, "
        "in steps of 1/255?",
    )


@grader("That is the attack most evaluations begin with.")
def pgd(solution: Any) -> None:
    """Grade ``f(model, x, y, eps, alpha, steps, start) -> x_adv``: the last iterate, in linf."""
    generator = torch.Generator().manual_seed(5)
    model = small_model(generator)
    x = torch.rand(24, 1, 8, 8, generator=generator)
    x = torch.where(x < 0.25, 0.0, torch.where(x > 0.75, 1.0, x))
    y = torch.randint(10, (24,), generator=generator)
    noise = 2 * torch.rand(x.shape, generator=generator) - 1
    for eps, alpha, steps in ((0.1, 0.03, 7), (0.05, 0.02, 1), (0.1, 0.004, 5)):
        _examine_pgd(solution, model, x, y, eps, alpha, steps, (x + eps * noise).clamp(0, 1))


def _examine_pgd(
    solution: Any,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    start: Tensor,
) -> None:
    was, given = copy.deepcopy(model), (x.clone(), start.clone())
    adv = solution(model, x, y, eps, alpha, steps, start)
    require(isinstance(adv, Tensor), f"Return a tensor, not {type(adv).__name__}.")
    require(adv.shape == x.shape, f"x has shape {tuple(x.shape)}, your result {tuple(adv.shape)}.")
    require(
        torch.equal(x, given[0]) and torch.equal(start, given[1]),
        "Your function changed x or start in place: work on a copy.",
    )
    require(
        not any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()),
        "The model's parameters now carry a gradient: use torch.autograd.grad(loss, x).",
    )
    require(
        all(map(torch.equal, model.state_dict().values(), was.state_dict().values())),
        "The model is not as it was: an attack changes the input and nothing else.",
    )
    adv = adv.detach()
    reach = float((adv - x).abs().max())
    require(
        reach <= eps + 1e-5,
        f"After {steps} steps of {alpha} a pixel has moved by {reach:.3f}, more than eps = {eps}. "
        "Is the ball around x, or around the last iterate?",
    )
    require(
        float(adv.min()) >= 0 and float(adv.max()) <= 1,
        "Some pixels left [0, 1]: clip after each step.",
    )
    run = functools.partial(
        _last, model, x, eps=eps, step_size=alpha, steps=steps, loss=cross_entropy
    )
    wanted = run(y, start=start)
    if not _same(adv, wanted):
        _explain_pgd(adv, run, y, x, start, model, steps)
    require(
        _same(adv, wanted),
        f"With eps = {eps}, alpha = {alpha} and {steps} steps from the given start your last "
        f"iterate is not PGD's: pixels differ by up to {float((adv - wanted).abs().max()):.3f}.",
    )


def _explain_pgd(
    adv: Tensor, run: Any, y: Tensor, x: Tensor, start: Tensor, model: nn.Module, steps: int
) -> None:
    """Name the usual mistakes by what they lead to."""
    require(
        not _same(adv, run(y, start=x)),
        "You begin at x: begin at start, wherever in the ball it is.",
    )
    require(
        not _same(adv, run(y, start=start, targeted=True)),
        "The loss goes down: add alpha times the sign, don't subtract it.",
    )
    require(
        not _same(adv, run(model(x).argmax(1), start=start)),
        "The result does not depend on y: use the labels, not the model's predictions.",
    )
    require(
        not any(_same(adv, run(y, start=start, steps=other)) for other in (steps - 1, steps + 1)),
        f"That is one step too many or too few: {steps} were asked for.",
    )
    require(not _same(adv, start), "You return the start: nothing was added.")


def _last(model: nn.Module, x: Tensor, y: Tensor, *, steps: int, **options: Any) -> Tensor:
    """The last iterate of the package's PGD."""
    if steps < 1:
        return torch.full_like(x, torch.nan)
    path: list[Any] = []
    attacks.pgd(model, x, y, steps=steps, early_stop=False, callback=path.append, **options)
    last: Tensor = path[-1].adv
    return last


def _same(first: Tensor, second: Tensor) -> bool:
    # where the gradient is all but 0 its sign is a matter of rounding
    return float(((first - second).abs() < 1e-5).float().mean()) > 0.995


@grader("Each image remembers its own way, whatever else is in the batch.")
def momentum(solution: Any) -> None:
    """Grade ``f(g (N, ...), gradient (N, ...), mu) -> g (N, ...)``: equation (3), per sample."""
    generator = torch.Generator().manual_seed(6)
    gradient = torch.randn(4, 1, 5, 5, generator=generator)
    gradient *= torch.tensor([1.0, 10, 0.1, 3]).view(-1, 1, 1, 1)
    before = torch.randn(4, 1, 5, 5, generator=generator) / 25
    for mu in (1.0, 0.5, 0.0):
        got = solution(before.clone(), gradient.clone(), mu)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(got.shape == gradient.shape, f"Return shape {tuple(gradient.shape)}.")
        require(
            not torch.allclose(got, mu * before + gradient / gradient.abs().sum(), atol=1e-6),
            "You divide all gradients by one number for the whole batch: then an image's step "
            "depends on its neighbours. Sum over each image alone.",
        )
        require(
            not torch.allclose(got, mu * before + gradient, atol=1e-6),
            "The new gradient is not normalised: divide it by its l1 norm first.",
        )
        require(
            not torch.allclose(got, mu * before + unit(gradient, 2), atol=1e-6),
            "That is the l2 norm: the formula divides by the sum of absolute values.",
        )
        require(
            torch.allclose(got, mu * before + unit(gradient, 1), atol=1e-6),
            f"For mu = {mu} this is not mu * g + gradient / ||gradient||_1.",
        )
    tiny = solution(torch.zeros(4, 1, 5, 5), gradient * 1e-12, 1.0)
    require(
        torch.allclose(tiny, unit(gradient, 1), atol=1e-5),
        "Gradients of 1e-12, a confident model's, are not brought to length 1: is something added "
        "to the norm before you divide?",
    )
    flat = solution(before.clone(), torch.zeros_like(gradient), 1.0)
    require(
        torch.allclose(flat, before),
        "Where the gradient is 0 the way so far should stay: 0 / 0 is NaN.",
    )


@grader("With the box in mind, l1 is a knapsack, and you filled it.")
def l1_fill(solution: Any) -> None:
    """Grade ``f(x (d,), slope (d,), eps) -> x_adv (d,)``: the best point of l1 ball and box."""
    generator = torch.Generator().manual_seed(7)
    for eps in (0.3, 2.0, 5.5, 100.0):
        x = (1.6 * torch.rand(30, generator=generator) - 0.3).clamp(0, 1)
        slope = torch.randn(30, generator=generator)
        got = solution(x.clone(), slope.clone(), eps)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(got.shape == x.shape, f"Return one image of shape {tuple(x.shape)}.")
        spent = float((got - x).abs().sum())
        require(
            spent <= eps + 1e-4, f"With eps = {eps} your changes add up to {spent:.2f}: too much."
        )
        require(
            float(got.min()) >= -1e-6 and float(got.max()) <= 1 + 1e-6,
            "Some pixels left [0, 1]: none can go further than to its wall.",
        )
        length = torch.full((1, 1), eps)
        best = NORMS["l1"].step(x[None], length, slope[None])[0]
        gain, most = (float(((there - x) * slope).sum()) for there in (got, best))
        require(gain >= 0, "The loss goes down: a pixel with a negative slope must become darker.")
        require(
            gain >= most - 1e-3,
            f"With eps = {eps} the loss rises by {gain:.2f}, and {most:.2f} is possible. When the "
            "steepest pixel is at its wall and some of eps is left, which pixel comes next?",
        )


@grader("The same twenty gradients, better spent.")
def step_rule(solution: Any) -> None:
    """Grade ``f(progress) -> step size`` by what PGD-20 in l1 leaves of 200 digits with it."""
    sizes = [float(solution(step / STEPS)) for step in range(STEPS)]
    require(
        all(0 <= size < float("inf") for size in sizes),
        "A step size must be finite and 0 or more, for every progress from 0 up to 1.",
    )
    require(any(sizes), "All steps have length 0: nothing moves.")
    digits = mnist()
    x, y = digits.x_test[:200], digits.y_test[:200]
    attack = functools.partial(
        attacks.pgd, eps=EPS, norm="l1", steps=STEPS, step_size=solution, random_start=False
    )
    left = evaluate(load_model("convnet_robust"), x, y, attack=attack).value
    flat = max(sizes) - min(sizes) < 1e-6 * max(sizes)
    require(
        left <= LEFT,
        f"It leaves {left:.3f} of 200 digits; {LEFT} or less is wanted. "
        + (
            "Your steps are all alike. What if the first ones are long and the last ones short?"
            if flat
            else "How long are the first steps, compared with eps? And do the last ones still jump?"
        ),
    )
