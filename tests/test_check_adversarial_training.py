"""Graders of the chapter on adversarial training: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec import attacks
from modelsec.repair.adversarial_training import trades_loss as packaged

# --- trades_loss


def by_logs(clean, attacked, y, beta):
    p, q = clean.log_softmax(1), attacked.log_softmax(1)
    return F.cross_entropy(clean, y, reduction="none") + beta * (p.exp() * (p - q)).sum(1)


def by_kl_div(clean, attacked, y, beta):
    gap = F.kl_div(attacked.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True)
    return F.nll_loss(clean.log_softmax(1), y, reduction="none") + beta * gap.sum(1)


def averaged(clean, attacked, y, beta):
    return by_logs(clean, attacked, y, beta).mean()


def turned_round(clean, attacked, y, beta):
    return F.cross_entropy(clean, y, reduction="none") + beta * (
        by_logs(attacked, clean, y, 1) - F.cross_entropy(attacked, y, reduction="none")
    )


def on_attacked(clean, attacked, y, beta):
    return F.cross_entropy(attacked, y, reduction="none") + beta * (
        by_logs(clean, attacked, y, 1) - F.cross_entropy(clean, y, reduction="none")
    )


def over_the_classes(clean, attacked, y, beta):
    plain = F.cross_entropy(clean, y, reduction="none")
    return plain + beta * (by_logs(clean, attacked, y, 1) - plain) / clean.shape[1]


def detached(clean, attacked, y, beta):
    fixed = clean.detach()
    return (
        F.cross_entropy(clean, y, reduction="none")
        + by_logs(fixed, attacked, y, beta)
        - F.cross_entropy(fixed, y, reduction="none")
    )


def with_log_of_softmax(clean, attacked, y, beta):
    p, q = clean.softmax(1), attacked.softmax(1)
    gap = (p * (p.log() - q.log())).sum(1)
    return F.cross_entropy(clean, y, reduction="none") + beta * gap


# --- fast_step


def slope(model: Any, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0]


def in_one_line(model, x, y, eps, alpha, start):
    return (start + alpha * slope(model, start, y).sign()).clamp(x - eps, x + eps).clamp(0, 1)


def by_delta(model, x, y, eps, alpha, start):
    delta = (start - x + alpha * slope(model, start, y).sign()).clamp(-eps, eps)
    return (x + delta).clamp(0, 1)


def by_pgd(model, x, y, eps, alpha, start):
    path: list[Any] = []
    attacks.pgd(
        model, x, y, eps=eps, step_size=alpha, steps=1, start=start, early_stop=False,
        callback=path.append,
    )  # fmt: skip
    return path[-1].adv


def from_the_image(model, x, y, eps, alpha, start):
    return (x + alpha * slope(model, x, y).sign()).clamp(x - eps, x + eps).clamp(0, 1)


def gradient_at_the_image(model, x, y, eps, alpha, start):
    return (start + alpha * slope(model, x, y).sign()).clamp(x - eps, x + eps).clamp(0, 1)


def steps_from_the_image(model, x, y, eps, alpha, start):
    return (x + alpha * slope(model, start, y).sign()).clamp(x - eps, x + eps).clamp(0, 1)


def unprojected(model, x, y, eps, alpha, start):
    return (start + alpha * slope(model, start, y).sign()).clamp(0, 1)


def without_the_box(model, x, y, eps, alpha, start):
    return (start + alpha * slope(model, start, y).sign()).clamp(x - eps, x + eps)


def downhill(model, x, y, eps, alpha, start):
    return in_one_line(model, x, y, eps, -alpha, start)


def leaves_gradients(model, x, y, eps, alpha, start):
    here = start.clone().requires_grad_()
    F.cross_entropy(model(here), y).backward()
    return (start + alpha * here.grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)


# --- best_epoch


def as_it_goes(accuracies, patience):
    best = last = 0
    for last, accuracy in enumerate(accuracies):
        if accuracy > accuracies[best]:
            best = last
        if last - best >= patience:
            break
    return best, last


def with_numpy(accuracies, patience):
    for last in range(len(accuracies)):
        best = int(np.argmax(accuracies[: last + 1]))
        if last - best == patience:
            return best, last
    return best, len(accuracies) - 1


def with_a_counter(accuracies, patience):
    best, waited = 0, 0
    for epoch in range(1, len(accuracies)):
        if accuracies[epoch] > accuracies[best]:
            best, waited = epoch, 0
        else:
            waited += 1
        if waited == patience:
            return [best, epoch]
    return [best, len(accuracies) - 1]


def with_foresight(accuracies, patience):
    return int(np.argmax(accuracies)), len(accuracies) - 1


def keeps_the_last(accuracies, patience):
    last = as_it_goes(accuracies, patience)[1]
    return last, last


def one_too_late(accuracies, patience):
    return as_it_goes(accuracies, patience + 1)


def last_of_equals(accuracies, patience):
    best = last = 0
    for last, accuracy in enumerate(accuracies):
        if accuracy >= accuracies[best]:
            best = last
        if last - best >= patience:
            break
    return best, last


# --- collapse_alarm


def accuracy(model, x, y):
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean()


def dip_on_the_way(model, x, y, eps):
    direction = slope(model, x, y).sign()
    ends = [accuracy(model, (x + eps * t * direction).clamp(0, 1), y) for t in (0.5, 1)]
    return ends[1] - ends[0]


def lower_on_the_way(model, x, y, eps):
    direction = slope(model, x, y).sign()
    with torch.no_grad():
        losses = [
            F.cross_entropy(model((x + eps * t * direction).clamp(0, 1)), y) for t in (0.5, 1)
        ]
    return losses[0] - losses[1]


def two_steps_against_one(model, x, y, eps):
    one = (x + eps * slope(model, x, y).sign()).clamp(0, 1)
    half = (x + eps / 2 * slope(model, x, y).sign()).clamp(0, 1)
    two = (half + eps / 2 * slope(model, half, y).sign()).clamp(0, 1)
    return accuracy(model, one, y) - accuracy(model, two, y)


def by_the_clean_loss(model, x, y, eps):
    with torch.no_grad():
        return F.cross_entropy(model(x), y)


def by_fgsm_s_error(model, x, y, eps):
    return 1 - accuracy(model, (x + eps * slope(model, x, y).sign()).clamp(0, 1), y)


def by_pgd_s_success(model, x, y, eps):
    adv = x
    for _ in range(10):
        adv = (adv + eps / 4 * slope(model, adv, y).sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return 1 - accuracy(model, adv, y)


RIGHT: dict[str, list[Any]] = {
    "gradients_per_epoch": [32_000, 32_000.0, torch.tensor(32_000)],
    "trades_loss": [by_logs, by_kl_div, packaged],
    "fast_step": [in_one_line, by_delta, by_pgd],
    "best_epoch": [as_it_goes, with_numpy, with_a_counter],
    "collapse_alarm": [dip_on_the_way, lower_on_the_way, two_steps_against_one],
}
WRONG: dict[str, list[Any]] = {
    "gradients_per_epoch": [
        (28_000, "the attack alone"),
        (4_000, "ordinary training"),
        (8, "per image"),
        (31_000, "How many gradients does one image need"),
    ],
    "trades_loss": [
        (averaged, "one loss per sample"),
        (turned_round, "turned round"),
        (on_attacked, "of the clean ones"),
        (over_the_classes, "summed over the classes"),
        (detached, "don't detach the clean one"),
        (with_log_of_softmax, "log_softmax"),
    ],
    "fast_step": [
        (from_the_image, "You began at x"),
        (gradient_at_the_image, "where you are, at start"),
        (steps_from_the_image, "but stepped from x"),
        (unprojected, "project the result"),
        (without_the_box, "clip to [0, 1]"),
        (downhill, "downhill"),
        (leaves_gradients, "carry a gradient"),
    ],
    "best_epoch": [
        (with_foresight, "can't be known"),
        (keeps_the_last, "The epoch to keep is"),
        (one_too_late, "Training ends after epoch"),
        (last_of_equals, "Training ends after epoch"),
        (lambda accuracies, patience: 1, "Return two numbers"),
    ],
    "collapse_alarm": [
        (by_the_clean_loss, "What differs between them"),
        (by_fgsm_s_error, "What differs between them"),
        (by_pgd_s_success, "gradients an image"),
        (lambda model, x, y, eps: 1.0, "for all networks"),
    ],
}
VALUES = {"gradients_per_epoch"}
