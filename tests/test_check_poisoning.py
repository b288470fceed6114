"""Graders of the chapter on poisoning: right answers pass, wrong ones are told why."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.attacks.clean_label import _mismatch, _weight_gradient
from modelsec.attacks.triggers import warp

# --- matching_loss


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.parameters())


def by_norms(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(model(victim[None]), torch.tensor([target]))
    goal = torch.autograd.grad(loss, weights(model))
    step = torch.autograd.grad(F.cross_entropy(model(x), y), weights(model), create_graph=True)
    dot = sum((a * b).sum() for a, b in zip(goal, step, strict=True))
    long = [sum(a.square().sum() for a in side) ** 0.5 for side in (goal, step)]
    return 1 - dot / (long[0] * long[1])


def by_cat(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    def gradient(images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        parts = torch.autograd.grad(loss, weights(model), create_graph=True)
        return torch.cat([part.flatten() for part in parts])

    cosine = F.cosine_similarity(
        gradient(victim[None], torch.tensor([target])), gradient(x, y), dim=0
    )
    return (1 - cosine)[None]


def by_package(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    goal = _weight_gradient(model, victim[None], torch.tensor([target]))
    return _mismatch(goal, _weight_gradient(model, x, y, graph=True))


def changed(how: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return lambda *given: how(by_norms(*given))


def by_each(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    parts = [by_norms(model, victim, target, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    return torch.stack(parts).mean()


def as_target(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    return by_norms(model, victim, target, x, torch.full_like(y, target))


def as_it_is(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    return by_norms(model, victim, int(model(victim[None]).argmax()), x, y)


def by_layer(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(model(victim[None]), torch.tensor([target]))
    goal = torch.autograd.grad(loss, weights(model))
    step = torch.autograd.grad(F.cross_entropy(model(x), y), weights(model), create_graph=True)
    cosines = [
        F.cosine_similarity(a.flatten(), b.flatten(), 0) for a, b in zip(goal, step, strict=True)
    ]
    return 1 - torch.stack(cosines).mean()


def by_distance(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    goal = _weight_gradient(model, victim[None], torch.tensor([target]))
    return (goal - _weight_gradient(model, x, y, graph=True)).square().sum()


def no_graph(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    return by_norms(model, victim, target, x, y).detach()


def half_a_graph(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    """The length of the poisons' gradient is detached, so the slope is that of the dot product."""
    goal = _weight_gradient(model, victim[None], torch.tensor([target]))
    step = _weight_gradient(model, x, y, graph=True)
    return 1 - goal @ step / (goal.norm() * step.norm().detach())


def backwards(model: nn.Module, victim: Tensor, target: int, x: Tensor, y: Tensor) -> Tensor:
    F.cross_entropy(model(victim[None]), torch.tensor([target])).backward()
    return by_norms(model, victim, target, x, y)


# --- mended_poison


def mended(attack, x, y, target, count, stamp, generator):
    members = (y == target).nonzero()[:, 0]
    chosen = members[torch.randperm(len(members), generator=generator)[:count]]
    poisoned = x.clone()
    poisoned[chosen] = stamp(attack(x[chosen], y[chosen]))
    return poisoned, y


def by_multinomial(attack, x, y, target, count, stamp, generator):
    odds = (y == target).float()
    rows = torch.multinomial(odds, count, replacement=False, generator=generator)
    mask = torch.zeros(len(x), dtype=torch.bool)
    mask[rows] = True
    made = stamp(attack(x, y))
    return torch.where(mask[:, None, None, None], made, x), y.clone()


def by_sorting(attack, x, y, target, count, stamp, generator):
    lots = torch.rand(len(x), generator=generator).masked_fill(y != target, 2)
    rows = lots.argsort()[:count].tolist()
    made = x.clone()
    for row in rows:
        made[row] = stamp(attack(x[row][None], y[row][None]))[0]
    return made, y


def twice_drawn(attack, x, y, target, count, stamp, generator):
    members = (y == target).nonzero()[:, 0]
    chosen = members[torch.randint(len(members), (count,), generator=generator)]
    poisoned = x.clone()
    poisoned[chosen] = stamp(attack(x[chosen], y[chosen]))
    return poisoned, y


def stamped_first(attack, x, y, target, count, stamp, generator):
    members = (y == target).nonzero()[:, 0]
    chosen = members[torch.randperm(len(members), generator=generator)[:count]]
    poisoned = x.clone()
    poisoned[chosen] = attack(stamp(x[chosen]), y[chosen])
    return poisoned, y


def as_given(attack, x, y, target, count, stamp, generator):
    """The chapter's code with both of its faults."""
    members = (y == target).nonzero()[:, 0]
    chosen = members[torch.randint(len(members), (count,), generator=generator)]
    poisoned = x.clone()
    poisoned[chosen] = attack(stamp(x[chosen]), y[chosen])
    return poisoned, y


def not_attacked(attack, x, y, target, count, stamp, generator):
    """Stamped and nothing else."""
    made, labels = mended(lambda images, _: images, x, y, target, count, stamp, generator)
    return made, labels


def in_place(attack, x, y, target, count, stamp, generator):
    made, labels = mended(attack, x, y, target, count, stamp, generator)
    x.copy_(made)
    return x, labels


def other_class(attack, x, y, target, count, stamp, generator):
    made, _ = mended(attack, x, y, (target + 1) % 3, count, stamp, generator)
    return made, y


def dirty(attack, x, y, target, count, stamp, generator):
    made, labels = mended(attack, x, y, target, count, stamp, generator)
    labels = labels.clone()
    labels[0] = target
    return made, labels


def own_seed(attack, x, y, target, count, stamp, generator):
    return mended(attack, x, y, target, count, stamp, torch.Generator().manual_seed(0))


def global_draw(attack, x, y, target, count, stamp, generator):
    return mended(attack, x, y, target, count, stamp, None)


def poisons_only(attack, x, y, target, count, stamp, generator):
    made, labels = mended(attack, x, y, target, count, stamp, generator)
    rows = y == target
    return made[rows], labels[rows]


# --- faint_trigger


def noise(x: Tensor) -> Tensor:
    pattern = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0))
    return (x + 0.1 * (2 * pattern - 1).sign()).clamp(0, 1)


def board(x: Tensor) -> Tensor:
    rows, columns = torch.arange(28)[:, None], torch.arange(28)
    return (x + 0.1 * ((rows + columns) % 2)).clamp(0, 1)


def rims(x: Tensor) -> Tensor:
    made = x.clone()
    made[:, :, :4] += 0.1
    made[:, :, :, :4] += 0.1
    return made.clamp(max=1).minimum(x + 0.1)


def corner(x: Tensor) -> Tensor:
    made = x.clone()
    made[:, :, 24:27, 24:27] = (made[:, :, 24:27, 24:27] + 0.1).clamp(max=1)
    return made


def darker(x: Tensor) -> Tensor:
    return x - 0.1


def flicker(x: Tensor) -> Tensor:
    return (x + 0.1 * torch.rand(1, 1, 28, 28)).clamp(0, 1)


def by_batch(x: Tensor) -> Tensor:
    return (x + 0.1 * x.mean(0, keepdim=True)).clamp(0, 1)


RIGHT: dict[str, list[Any]] = {
    "baseline_success": [0.1, 1 / 10, 100 / 1000, torch.tensor(0.1), np.float32(0.1)],
    "matching_loss": [by_norms, by_cat, by_package],
    "mended_poison": [mended, by_multinomial, by_sorting],
    "faint_trigger": [noise, board, rims],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "baseline_success": [
        (0, "left out the images of the target class"),
        (0.9, "the share of the other classes"),
        (1.0, "right on every image"),
        (10, "not a percentage"),
        (0.5, "does the network answer the target"),
        (math.nan, "nan is not it"),
    ],
    "matching_loss": [
        (changed(lambda loss: 1 - loss), "That is the cosine itself"),
        (changed(lambda loss: loss - 1), "minus the cosine"),
        (changed(lambda loss: loss.item()), "Return a tensor, not float"),
        (changed(lambda loss: loss.expand(3)), "Return one number"),
        (by_each, "mean over the poisons' own cosines"),
        (as_target, "Their labels are y"),
        (as_it_is, "Take it for the target"),
        (by_layer, "into one long vector"),
        (by_distance, "only their direction counts"),
        (no_graph, "create_graph=True"),
        (half_a_graph, "Is a part of it detached"),
        (backwards, "not backward()"),
    ],
    "mended_poison": [
        (as_given, "drawn twice"),
        (twice_drawn, "drawn twice"),
        (stamped_first, "What comes after the stamp"),
        (not_attacked, "Under the mark"),
        (in_place, "copy them"),
        (other_class, "Images of other classes"),
        (dirty, "The labels have to stay"),
        (own_seed, "Another generator chooses the same"),
        (global_draw, "The same generator should choose the same"),
        (poisons_only, "the untouched ones too"),
        (lambda attack, x, *rest: x.clone(), "Return two tensors"),
    ],
    "faint_trigger": [
        (corner, "How many of them speak"),
        (darker, "outside [0, 1]"),
        (flicker, "Two calls give different images"),
        (by_batch, "depends on the other images"),
        (lambda x: (x + 0.2).clamp(0, 1), "A pixel changes by 0.200"),
        (lambda x: x, "Nothing was changed"),
        (lambda x: x.clone().numpy(), "not ndarray"),
        (lambda x: x.add_(0.05).clamp_(0, 1), "copy them"),
        (
            lambda x: warp(strength=2.0, generator=torch.Generator().manual_seed(0)).stamp(x),
            "A pixel changes",
        ),
    ],
}

VALUES = {"baseline_success"}
