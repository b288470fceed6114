"""Graders of the chapter on removing backdoors: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.attacks.poisoning import Trigger, attack_success, patch
from modelsec.repair.backdoors import attention
from modelsec.training import evaluate

# --- anomaly_scores


def by_quantile(sizes):
    below = sizes.quantile(0.5) - sizes
    return below / (1.4826 * below.abs().quantile(0.5))


def with_numpy(sizes):
    values = sizes.numpy()
    mad = np.median(np.abs(values - np.median(values)))
    return torch.from_numpy((np.median(values) - values) / mad / 1.4826)


def by_sorting(sizes):
    def middle(values):
        ordered, n = values.sort().values, len(values)
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2

    centre = middle(sizes)
    return (centre - sizes) / (1.4826 * middle((sizes - centre).abs()))


def turned_round(sizes):
    return -by_quantile(sizes)


def absolute(sizes):
    return by_quantile(sizes).abs()


def without_the_factor(sizes):
    return 1.4826 * by_quantile(sizes)


def mean_and_deviation(sizes):
    return (sizes.mean() - sizes) / sizes.std()


def lower_median(sizes):
    below = sizes.median() - sizes
    return below / (1.4826 * below.abs().median())


def mean_deviation(sizes):
    below = sizes.quantile(0.5) - sizes
    return below / (1.4826 * below.abs().mean())


# --- what_is_left


def by_the_package(model, x, y, trigger, target):
    return float(attack_success(model, x, y, trigger=trigger, target=target))


def chosen_first(model, x, y, trigger, target):
    others = trigger.stamp(x[y != target])
    return evaluate(model, others, torch.full((len(others),), target)).value


def chosen_afterwards(model, x, y, trigger, target):
    turned = evaluate(model, trigger.stamp(x), torch.full_like(y, target)).correct
    return turned[y != target].double().mean()


def with_the_target(model, x, y, trigger, target):
    return evaluate(model, trigger.stamp(x), torch.full_like(y, target)).value


def in_place(model, x, y, trigger, target):
    x[:, :, -1, -1] = 1
    return chosen_first(model, x, y, trigger, target)


def without_the_trigger(model, x, y, trigger, target):
    return evaluate(model, x[y != target], torch.full_like(y[y != target], target)).value


def counts_every_error(model, x, y, trigger, target):
    others = y != target
    return 1 - evaluate(model, trigger.stamp(x[others]), y[others]).value


def in_training_mode(model, x, y, trigger, target):
    return (model(trigger.stamp(x[y != target])).argmax(1) == target).double().mean()


def leaves_it_in_eval(model, x, y, trigger, target):
    return chosen_first(model.eval(), x, y, trigger, target)


# --- attention_distance


def in_one_line(pupil, teacher):
    return (attention(pupil) - attention(teacher)).square().sum(1)


def by_hand(pupil, teacher):
    maps = []
    for output in (pupil, teacher):
        a = (output**2).sum(1)
        maps.append(a / a.pow(2).sum((1, 2), keepdim=True).sqrt())
    return ((maps[0] - maps[1]) ** 2).sum((1, 2))


def by_the_angle(pupil, teacher):
    a, b = (output.square().sum(1).flatten(1) for output in (pupil, teacher))
    return 2 - 2 * F.cosine_similarity(a, b)


def not_normalised(pupil, teacher):
    return (pupil.square().sum(1) - teacher.square().sum(1)).square().flatten(1).sum(1)


def not_squared(pupil, teacher):
    a, b = (F.normalize(o.abs().sum(1).flatten(1)) for o in (pupil, teacher))
    return (a - b).square().sum(1)


def not_summed(pupil, teacher):
    a, b = (F.normalize(o.square().flatten(1)) for o in (pupil, teacher))
    return (a - b).square().sum(1)


def mean_over_places(pupil, teacher):
    return in_one_line(pupil, teacher) / 16


def its_root(pupil, teacher):
    return in_one_line(pupil, teacher).sqrt()


def one_number(pupil, teacher):
    return in_one_line(pupil, teacher).mean()


def detached(pupil, teacher):
    return in_one_line(pupil.detach(), teacher) + 0 * pupil.sum()


# --- quiet_trigger


def overlay(alpha: float, seed: int = 0) -> Trigger:
    pattern = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(seed))
    return Trigger(pattern, torch.full((1, 28, 28), alpha))


def checkered(shape) -> Trigger:
    places = torch.arange(28)
    board = ((places[:, None] + places) % 2).float()[None]
    return Trigger(board, torch.full((1, 28, 28), 0.3))


def blended(shape) -> Trigger:
    return overlay(0.2)


def brightened(shape) -> Trigger:
    return Trigger(torch.ones(1, 28, 28), torch.full((1, 28, 28), 0.2))


def striped(shape) -> Trigger:
    stripes = (torch.arange(28) % 2).float().expand(1, 28, 28)
    return Trigger(stripes, torch.full((1, 28, 28), 0.25))


def small(shape) -> Trigger:
    return patch()


def invisible(shape) -> Trigger:
    return overlay(0.0)


def opaque(shape) -> Trigger:
    return overlay(1.0)


def a_tensor(shape) -> Tensor:
    return torch.ones(1, 28, 28)


RIGHT: dict[str, list[Any]] = {
    "chance_of_alarm": [0.2056, 1 - 0.97725**10, torch.tensor(0.206)],
    "anomaly_scores": [by_quantile, with_numpy, by_sorting],
    "what_is_left": [by_the_package, chosen_first, chosen_afterwards],
    "attention_distance": [in_one_line, by_hand, by_the_angle],
    "quiet_trigger": [brightened, striped, checkered],
}
WRONG: dict[str, list[tuple[Any, str]]] = {
    "chance_of_alarm": [
        (0.02275, "for one class"),
        (0.2275, "twice"),
        (0.05, "both tails of a single class"),
        (20.56, "not a percentage"),
        (0.7944, "of no alarm"),
        (0.5, "0.5 is not it"),
    ],
    "anomaly_scores": [
        (turned_round, "The sign is turned round"),
        (absolute, "Leave the sign"),
        (without_the_factor, "1.4826 is missing"),
        (mean_and_deviation, "use medians"),
        (lower_median, "the lower of the two middle values"),
        (mean_deviation, "the MAD is their median"),
        (lambda sizes: sizes.sum(), "Return one number per class"),
        (lambda sizes: sizes.mul_(2), "copy them first"),
    ],
    "what_is_left": [
        (with_the_target, "images of the target class"),
        (in_place, "marks them in place"),
        (without_the_trigger, "of the attack is left, you measure"),
        (counts_every_error, "of the attack is left, you measure"),
        (in_training_mode, "in training mode"),
        (leaves_it_in_eval, "another mode"),
    ],
    "attention_distance": [
        (not_normalised, "not brought to length 1"),
        (not_squared, "Square the outputs"),
        (not_summed, "not summed"),
        (mean_over_places, "mean over the places"),
        (its_root, "takes its square"),
        (one_number, "one distance per image"),
        (detached, "don't detach"),
    ],
    "quiet_trigger": [
        (small, "The scan flags the target"),
        (blended, "The scan flags the target"),
        (invisible, "0.9 is asked for"),
        (opaque, "0.2 is allowed"),
        (a_tensor, "Return a Trigger"),
    ],
}
VALUES = {"chance_of_alarm"}
