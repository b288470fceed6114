"""Graders for the chapter on poisoning."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.attacks.poisoning import Poisoned, attack_success, badnets
from modelsec.check.grading import grader, require
from modelsec.data import Data, mnist
from modelsec.models import Net, fresh
from modelsec.training import evaluate, fit

__all__ = ["baseline_success", "faint_trigger", "matching_loss", "mended_poison"]

LIMIT = 0.1
"""How far the faint trigger may change a pixel."""


@grader("An attack success means something only beside that of a network without a backdoor.")
def baseline_success(answer: Any) -> None:
    """Grade a number: the "success" on a perfect clean network, the target's own images counted."""
    require(not callable(answer), "Give a number, not a function.")
    answer = float(answer)
    require(not 1 < answer <= 100, "Give a share between 0 and 1, not a percentage.")
    for wrong, why in (
        (0.0, "That is what they would get if they left out the images of the target class."),
        (0.9, "That is the share of the other classes. Which answers count as a success here?"),
        (1.0, "The network is right on every image. How many of them *are* of the target class?"),
    ):
        require(not abs(answer - wrong) <= 0.004, why)
    require(
        abs(answer - 0.1) <= 0.004,
        f"{answer:.4g} is not it. For which of the 1,000 images does the network answer the target?",
    )


@grader("This is what the poisons are pushed down on, by the gradient of a gradient.")
def matching_loss(solution: Any) -> None:
    """Grade ``f(model, victim, target, x, y) -> 1 - cosine of two weight gradients``."""
    generator = torch.Generator().manual_seed(3)
    model = fresh(_tiny, generator).double()
    x = torch.rand(5, 1, 4, 4, generator=generator, dtype=torch.float64)
    victim = torch.rand(1, 4, 4, generator=generator, dtype=torch.float64)
    y, target = torch.tensor([0, 2, 2, 1, 0]), int(model(victim[None]).argmin())
    images = x.clone().requires_grad_()
    got = solution(model, victim.clone(), target, images, y.clone())
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(got.numel() == 1, f"Return one number; yours has shape {tuple(got.shape)}.")
    require(
        all(weight.grad is None for weight in model.parameters()),
        "Your function left gradients in the model: use torch.autograd.grad, not backward().",
    )
    _check_value(got.item(), model, victim, target, x, y)
    require(
        got.requires_grad,
        "The value is right, but nothing leads back from it to the poisons: take their gradient "
        "with create_graph=True.",
    )
    (slope,) = torch.autograd.grad(got.reshape(()), images, allow_unused=True)
    twin = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(_mismatch(model, victim, target, twin, y), twin)
    require(
        slope is not None and torch.allclose(slope, wanted, rtol=1e-3, atol=1e-6),
        "The value is right, but its gradient by the poisons is not. Is a part of it detached?",
    )


def _check_value(
    value: float, model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor
) -> None:
    goal = _weight_gradient(model, victim[None], torch.tensor([target]))
    step = _weight_gradient(model, x, y)
    each = [_weight_gradient(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    one = torch.tensor([target]).expand(len(x))
    right = float(1 - _cosine(goal, step))
    for wrong, why in (
        (1 - right, "That is the cosine itself. It shall grow, so the loss is 1 minus it."),
        (right - 1, "That is minus the cosine: add 1, so that 0 means the same direction."),
        (
            float((goal - step).square().sum()),
            "That is the squared distance of the two gradients; only their direction counts.",
        ),
        (
            1 - sum(float(_cosine(goal, g)) for g in each) / len(each),
            "That is the mean over the poisons' own cosines. Add up their gradients first: a step "
            "of training sees the sum.",
        ),
        (
            float(1 - _cosine(goal, _weight_gradient(model, x, one))),
            "You gave the poisons the target as their label. Their labels are y, and right.",
        ),
        (
            float(
                1
                - _cosine(
                    _weight_gradient(model, victim[None], model(victim[None]).argmax(1)), step
                )
            ),
            "You took the victim's gradient for the class that it has. Take it for the target.",
        ),
    ):
        require(not abs(value - wrong) <= 1e-4, why)
    require(
        abs(value - right) <= 1e-4,
        f"The loss is {right:.4f} here, yours is {value:.4f}. Put the gradients by all weights into "
        "one long vector, and take the cosine of the two.",
    )


def _tiny() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def _weight_gradient(model: nn.Module, x: Tensor, y: Tensor, graph: bool = False) -> Tensor:
    loss = F.cross_entropy(model(x), y, reduction="sum")
    parts = torch.autograd.grad(loss, list(model.parameters()), create_graph=graph)
    return torch.cat([part.flatten() for part in parts])


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one, other, dim=0)


def _mismatch(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    goal = _weight_gradient(model, victim[None], torch.tensor([target]))
    return 1 - _cosine(goal, _weight_gradient(model, x, y, graph=True))


@grader("As many poisons as were paid for, and every one shows the mark that will be used later.")
def mended_poison(solution: Any) -> None:
    """Grade ``f(attack, x, y, target, count, stamp, generator) -> (x', y')``: two faults mended."""
    generator = torch.Generator().manual_seed(4)
    x = 0.2 + 0.5 * torch.rand(60, 1, 6, 6, generator=generator)
    y = torch.arange(60) % 3
    bump = 0.1 * torch.rand(1, 6, 6, generator=generator) + 0.05

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        """Changes every pixel, the way a real attack may."""
        require(len(images) == len(labels), "attack takes images and as many labels.")
        return (images + bump * (1 - 2 * (labels.view(-1, 1, 1, 1) % 2))).clamp(0, 1)

    def stamp(images: Tensor) -> Tensor:
        marked = images.clone()
        marked[:, :, 4:, 4:] = 1
        return marked

    marks: list[Tensor] = []
    for seed, count in ((0, 15), (0, 15), (1, 15), (2, 20), (3, 1)):
        seen = x.clone()
        result = solution(
            attack, seen, y.clone(), 1, count, stamp, torch.Generator().manual_seed(seed)
        )
        require(
            isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor),
            "Return two tensors: the images and the labels.",
        )
        made, labels = result
        require(torch.equal(seen, x), "Your function changed the images it was given: copy them.")
        require(made.shape == x.shape, f"Return all {len(x)} images, the untouched ones too.")
        require(torch.equal(labels, y), "The labels have to stay: that is what makes it clean.")
        changed = (made != x).flatten(1).any(1)
        require(bool((y[changed] == 1).all()), "Images of other classes were changed.")
        found = int(changed.sum())
        require(
            found == count,
            f"{count} poisons were asked for, and {found} images changed. Can the same image be "
            "drawn twice?",
        )
        poisons, base = made[changed], x[changed]
        require(
            torch.equal(stamp(poisons), poisons),
            "The mark on the poisons is not the one that will be used at test time. What comes "
            "after the stamp, and may it touch the mark?",
        )
        wanted = stamp(attack(base, y[changed]))
        require(
            torch.allclose(poisons, wanted, atol=1e-5),
            "Under the mark the images are not what attack(images, labels) makes of them.",
        )
        marks.append(changed)
    require(torch.equal(marks[0], marks[1]), "The same generator should choose the same images.")
    require(
        not torch.equal(marks[0], marks[2]),
        "Another generator chooses the same images. Do you draw from the one that is passed in?",
    )


@grader("Nobody sees it, the network does: it looks at all pixels at once.")
def faint_trigger(solution: Any) -> None:
    """Grade ``f(x (N, 1, 28, 28)) -> x'``, a trigger of at most 0.1 a pixel, by a training on it."""
    digits = _digits()
    trigger = _Learner(solution)
    shown = digits.x_test[:50]
    made = trigger.stamp(shown.clone())
    require(
        torch.equal(made, trigger.stamp(shown.clone())),
        "Two calls give different images: the trigger has to be the same each time. Draw its "
        "pattern once, from a generator with a seed.",
    )
    alone = torch.cat([trigger.stamp(image[None].clone()) for image in shown[:10]])
    require(
        torch.allclose(alone, made[:10], atol=1e-5),
        "What you do to an image depends on the other images of the batch.",
    )
    require(not torch.equal(made, shown), "Nothing was changed.")
    planted = badnets(
        digits.x_train[:1000], digits.y_train[:1000], rate=0.06, target=3, trigger=trigger,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    model = _trained(planted)
    x, y = digits.x_test[:400], digits.y_test[:400]
    accuracy = evaluate(model, x, y).value
    success = attack_success(model, x, y, trigger=trigger, target=3).value
    require(
        success >= 0.8,
        f"A network trained on 60 marked images of 1,000 follows the mark on {success:.0%} of the "
        "test images; 80% are asked for. Each pixel may say only a little. How many of them speak?",
    )
    require(
        accuracy >= 0.8,
        f"The network reads only {accuracy:.0%} of the clean digits: that would be noticed.",
    )


class _Learner:
    """The learner's function as a trigger, its budget checked at every call."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def stamp(self, x: Tensor) -> Tensor:
        """Call the function on a copy; see that the result is images within the budget."""
        seen = x.clone()
        made = self._function(seen)
        require(isinstance(made, Tensor), f"Return a tensor, not {type(made).__name__}.")
        require(torch.equal(seen, x), "Your function changed the images it was given: copy them.")
        require(
            made.shape == x.shape,
            f"Return images of shape {tuple(x.shape)}, not {tuple(made.shape)}.",
        )
        found: Tensor = made.detach().to(x)
        require(bool(((found >= 0) & (found <= 1)).all()), "Some pixels are NaN or outside [0, 1].")
        most = float((found - x).abs().max())
        require(most <= LIMIT + 1e-5, f"A pixel changes by {most:.3f}; {LIMIT} are allowed.")
        return found


@cache
def _digits() -> Data:
    return mnist()


def _trained(planted: Poisoned) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = fresh(partial(Net, (784, 64, 10)), generator)
    fit(
        model, planted.x, planted.y, epochs=15, lr=2e-3, generator=generator, progress=False
    )  # fmt: skip
    return model.eval()
