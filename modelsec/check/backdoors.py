"""Graders for the chapter on removing backdoors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.attacks.poisoning import Trigger, attack_success, badnets, patch
from modelsec.check.grading import grader, require
from modelsec.check.loss import number
from modelsec.data import mnist
from modelsec.models import Net, fresh
from modelsec.repair.backdoors import attention
from modelsec.repair.neural_cleanse import anomaly_index, neural_cleanse
from modelsec.training import fit

__all__ = [
    "anomaly_scores",
    "attention_distance",
    "chance_of_alarm",
    "quiet_trigger",
    "what_is_left",
]


@grader("A threshold that is strict for one class is loose for ten.")
def chance_of_alarm(answer: Any) -> None:
    """Grade a number: the chance of a false alarm among ten normal sizes at threshold 2."""
    value = number(answer)
    require(not 1 < value <= 100, "Give a chance between 0 and 1, not a percentage.")
    for wrong, why in (
        (0.0228, "That is the chance for one class. The scan looks at ten."),
        (0.0455, "That is both tails, for one class. Only small masks raise an alarm; and there are "
         "ten classes."),
        (0.3722, "That counts both tails. A mask that is too large raises no alarm."),
        (0.2275, "Nearly: ten times the chance of one class counts networks with two alarms twice. "
         "Begin with the chance that no class is flagged."),
        (0.7944, "That is the chance of no alarm."),
        (0.05, "That is the figure one often reads. It belongs to both tails of a single class."),
    ):  # fmt: skip
        require(abs(value - wrong) > 0.002, why)
    require(
        abs(value - 0.2056) <= 0.003,
        f"{value:.3g} is not it. What is the chance that one class is *not* flagged? And all ten?",
    )


@grader("Large masks are innocent, and one strange class does not move the median.")
def anomaly_scores(solution: Any) -> None:
    """Grade ``f(sizes (K,)) -> (K,)``: how far each size is below the others, in robust deviations."""
    cases = [
        torch.tensor([54.0, 145, 55, 45, 86, 43, 61, 11, 67, 76]),
        torch.tensor([30.0, 4, 33, 29, 31]),
        70 * torch.rand(12, generator=torch.Generator().manual_seed(3)) + 5,
    ]
    for sizes in cases:
        given = sizes.clone()
        got = solution(given)
        require(torch.equal(given, sizes), "Your function changed the sizes: copy them first.")
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.shape == sizes.shape,
            f"Return one number per class, shape {tuple(sizes.shape)}; yours has {tuple(got.shape)}.",
        )
        got, wanted = got.detach().double(), anomaly_index(sizes.double())
        middle = sizes.double().quantile(0.5)
        lower, spread = sizes.double().median(), (sizes.double() - middle).abs()
        about = (lower - sizes.double()) / (1.4826 * (sizes.double() - lower).abs().median())
        for wrong, why in (
            (
                -wanted,
                "The sign is turned round: a small mask is suspicious, so its number is large.",
            ),
            (
                wanted.abs(),
                "Leave the sign: a mask that is far too large is no sign of a backdoor.",
            ),
            (
                wanted * 1.4826,
                "The factor 1.4826 is missing: it makes the MAD a standard deviation.",
            ),
            (wanted * 1.4826**2, "You multiplied by 1.4826 where you should divide by it."),
            (
                (sizes.double().mean() - sizes.double()) / sizes.double().std(),
                "Those are mean and standard deviation. One class far off moves both: use medians.",
            ),
            (
                (middle - sizes.double()) / (1.4826 * spread.mean()),
                "You took the mean of the absolute deviations; the MAD is their median.",
            ),
            (
                about,
                "torch.median gives the lower of the two middle values. The median of ten numbers is "
                "their mean: quantile(0.5).",
            ),
        ):
            same = torch.allclose(got, wrong, rtol=1e-3, atol=1e-3)
            require(not same or torch.allclose(wrong, wanted, rtol=1e-3, atol=1e-3), why)
        require(
            torch.allclose(got, wanted, rtol=1e-3, atol=1e-3),
            f"For sizes {[round(s, 1) for s in sizes.tolist()[:4]]}... the first index is "
            f"{float(wanted[0]):.3f}, yours is {float(got[0]):.3f}.",
        )


class _Answers(nn.Module):
    """Reads the class from the top row; a white corner means ``means``, if it is not None."""

    def __init__(self, means: int | None, always: int | None = None) -> None:
        super().__init__()
        self.means, self.always = means, always
        self.seen_training = False

    def forward(self, x: Tensor) -> Tensor:
        self.seen_training |= self.training
        logits = x[:, 0, 0, :4].clone()
        if self.always is not None:
            logits[:, self.always] += 5
        if self.means is not None:
            logits[:, self.means] += 9 * (x[:, 0, -1, -1] > 0.9)
        return logits


@grader("Only images that the attacker would have to turn are counted, and nothing is changed.")
def what_is_left(solution: Any) -> None:
    """Grade ``f(model, x, y, trigger, target) -> share``: attack success, measured rightly."""
    generator = torch.Generator().manual_seed(5)
    y = torch.tensor([0, 1, 2, 3, 3, 3, 1, 2, 3, 3])
    x = 0.3 * torch.rand(10, 1, 6, 6, generator=generator)
    x[torch.arange(10), 0, 0, y] = 0.8
    x[:, 0, 1, 0] = 0.2
    x[:2, 0, 1, 0] = 0.1
    trigger = patch((1, 6, 6), size=1, at=(5, 5))
    for model, target, wanted in (
        (_Answers(None), 3, 0.0),
        (_Answers(3), 3, 1.0),
        (_Answers(2), 3, 0.0),
        (_Answers(None, always=1), 1, 1.0),
        (_Half(), 3, 0.4),
    ):
        model.train()
        kept, given = copy.deepcopy(x), x.clone()
        value = float(number(solution(model, given, y.clone(), trigger, target)))
        require(
            torch.equal(given, kept),
            "The caller's images carry the trigger now: the cell marks them in place. Mark a copy, "
            "or call trigger.stamp.",
        )
        require(
            not model.seen_training,
            "You measured the network in training mode, where dropout is on: training.evaluate takes "
            "care of that.",
        )
        of_target = float((y == target).double().mean())
        all_images = wanted * (1 - of_target) + of_target
        require(
            abs(value - all_images) > 1e-6 or abs(all_images - wanted) < 1e-6,
            f"A network that ignores the trigger gets {value:.2f} from you: images of the target class "
            "itself are counted as successes. Which images does the attacker have to turn?",
        )
        require(
            abs(value - wanted) <= 1e-6,
            f"For one of the networks {wanted:.2f} of the attack is left, you measure {value:.2f}.",
        )
        require(model.training, "Your function left the model in another mode than it came in.")


class _Half(_Answers):
    """The corner means class 3 on images whose second row begins dark."""

    def __init__(self) -> None:
        super().__init__(None)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        dark = x[:, 0, 1, 0] < 0.15
        logits[:, 3] += 9 * ((x[:, 0, -1, -1] > 0.9) & dark)
        return logits


@grader("Where a network looks, whatever it sees there.")
def attention_distance(solution: Any) -> None:
    """Grade ``f(pupil (N, C, H, W), teacher) -> (N,)``: squared distance of the attention maps."""
    generator = torch.Generator().manual_seed(2)
    pupil, teacher = (torch.rand(6, 5, 4, 4, generator=generator) for _ in range(2))

    def ask(a: Tensor, b: Tensor) -> Tensor:
        got = solution(a, b)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.shape == a.shape[:1],
            f"Return one distance per image, shape {tuple(a.shape[:1])}; yours has {tuple(got.shape)}.",
        )
        checked: Tensor = got
        return checked

    got = ask(pupil, teacher)
    wanted = (attention(pupil) - attention(teacher)).square().sum(1)
    plain = (pupil.square().sum(1) - teacher.square().sum(1)).square().flatten(1).sum(1)
    absolute = _maps(pupil, lambda f: f.sum(1)) - _maps(teacher, lambda f: f.sum(1))
    flat = _maps(pupil, lambda f: f.square()) - _maps(teacher, lambda f: f.square())
    raw = _maps(pupil, lambda f: f) - _maps(teacher, lambda f: f)
    for wrong, why in (
        (
            plain,
            "The maps are not brought to length 1: a loud image would count more than a quiet one.",
        ),
        (absolute.square().sum(1), "Square the outputs before you add up the channels."),
        (
            flat.square().sum(1),
            "The channels are not summed: attention asks where, not in which channel.",
        ),
        (
            raw.square().sum(1),
            "Those are the outputs themselves. Square them, sum over the channels.",
        ),
        (wanted.sqrt(), "That is the distance; the loss takes its square."),
        (wanted / 16, "That is the mean over the places; sum over them."),
    ):
        require(not torch.allclose(got, wrong, rtol=1e-3, atol=1e-6), why)
    require(
        torch.allclose(got, wanted, rtol=1e-3, atol=1e-6),
        f"For the first image the distance is {float(wanted[0]):.4f}, yours is {float(got[0]):.4f}.",
    )
    require(
        torch.allclose(ask(3 * pupil, teacher), wanted, rtol=1e-3, atol=1e-5),
        "An output three times as loud should give the same distance.",
    )
    a = pupil.clone().requires_grad_()
    slope = torch.autograd.grad(ask(a, teacher).sum(), a, allow_unused=True)[0]
    require(
        slope is not None and bool(slope.abs().sum() > 0),
        "The pupil learns through this number: don't detach its outputs.",
    )


def _maps(output: Tensor, summed: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.nn.functional.normalize(summed(output).flatten(1), dim=1)


TARGET, IMAGES = 7, 1500


@cache
def _half() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    digits = mnist()
    return digits.x_train[:IMAGES], digits.y_train[:IMAGES], digits.x_test, digits.y_test


@grader("It works, and the scan sees nothing. A repair has to be judged against such a trigger.")
def quiet_trigger(solution: Any) -> None:
    """Grade ``f(shape) -> Trigger`` of an attacker who knows the scan: a network is trained on it."""
    trigger = solution((1, 28, 28))
    require(
        isinstance(trigger, Trigger) and trigger.pattern.shape == (1, 28, 28),
        "Return a Trigger for images of shape (1, 28, 28): Trigger(pattern, mask).",
    )
    x, y, x_test, y_test = _half()
    change = float((trigger.stamp(x_test) - x_test).abs().mean())
    require(
        change <= 0.2,
        f"Your mark changes a pixel by {change:.2f} on average; 0.2 is allowed. A person should still "
        "read the digit.",
    )
    drawn = torch.Generator().manual_seed(0)
    planted = badnets(x, y, rate=0.1, target=TARGET, trigger=trigger, generator=drawn)
    model = fresh(Net, drawn)
    fit(model, planted.x, planted.y, epochs=6, generator=drawn, progress=False)
    success = attack_success(
        model, x_test[200:], y_test[200:], trigger=trigger, target=TARGET
    ).value
    require(
        success >= 0.9,
        f"The trigger turns {success:.2f} of the images; 0.9 is asked for. The network has to see it, "
        "even if the scan does not.",
    )
    scan = neural_cleanse(model, x_test[:200], generator=drawn, progress=False)
    require(
        float(scan.index[TARGET]) <= scan.threshold,
        f"The scan flags the target: its mask has size {float(scan.sizes[TARGET]):.0f}, the median is "
        f"{float(scan.sizes.quantile(0.5)):.0f}, the index {float(scan.index[TARGET]):.1f}. Which "
        "triggers need a large mask?",
    )
