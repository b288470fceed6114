"""Graders of the chapter on physical attacks: right answers pass, wrong ones get the sentence that helps."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modelsec.attacks import Placement, patch

# --- stick_on


def loop(x, sticker, top, left):
    out = x.clone()
    for k in range(len(x)):
        out[k, :, top[k] : top[k] + sticker.shape[1], left[k] : left[k] + sticker.shape[2]] = (
            sticker
        )
    return out


def by_mask(x, sticker, top, left):
    n, _, h, w = x.shape
    side = sticker.shape[1]
    mask, padded = torch.zeros(n, 1, h, w, dtype=torch.bool), []
    for k in range(n):
        mask[k, :, top[k] : top[k] + side, left[k] : left[k] + side] = True
        around = (int(left[k]), w - side - int(left[k]), int(top[k]), h - side - int(top[k]))
        padded.append(F.pad(sticker, around))
    return torch.where(mask, torch.stack(padded), x)


def by_index(x, sticker, top, left):
    _, _, h, w = x.shape
    down = torch.arange(h)[None] - top[:, None]
    right = torch.arange(w)[None] - left[:, None]
    side = sticker.shape[1]
    under = ((down >= 0) & (down < side))[:, :, None] & ((right >= 0) & (right < side))[:, None]
    i, j = down.clamp(0, side - 1), right.clamp(0, side - 1)
    shown = sticker[:, i[:, :, None], j[:, None]].transpose(0, 1)
    return torch.where(under[:, None], shown, x)


def in_place(x, sticker, top, left):
    x.copy_(loop(x, sticker, top, left).detach())
    return x


def added(x, sticker, top, left):
    there = loop(torch.zeros_like(x), sticker, top, left)
    mask = loop(torch.zeros_like(x), torch.ones_like(sticker), top, left)
    return (x + 1e3) * (1 - mask) + there - 1e3 * (1 - mask)


def halved(x, sticker, top, left):
    return loop(x, 0.5 + 0.5 * sticker, top, left)


def twice_as_steep(x, sticker, top, left):
    return loop(x, 2 * sticker - sticker.detach(), top, left)


def interchanged(x, sticker, top, left):
    out = x.clone()
    for k in range(len(x)):
        part = out[k, :, left[k] : left[k] + 4, top[k] : top[k] + 4]
        part.copy_(sticker.detach()[:, : part.shape[1], : part.shape[2]])
    return out


# --- expected_step


def eot_step(value, patch, draw, n, step_size):
    leaf = patch.clone().requires_grad_()
    mean = sum(value(leaf, draw()) for _ in range(n)) / n
    (g,) = torch.autograd.grad(mean, leaf)
    return (patch + step_size * g.sign()).clamp(0, 1)


def one_by_one(value, patch, draw, n, step_size):
    total = torch.zeros_like(patch)
    for _ in range(n):
        leaf = patch.detach().clone().requires_grad_()
        total += torch.autograd.grad(value(leaf, draw()), leaf)[0]
    return torch.clamp(patch + step_size * torch.sign(total), min=0, max=1)


def with_backward(value, patch, draw, n, step_size):
    leaf = patch.clone().requires_grad_()
    for _ in range(n):
        value(leaf, draw()).backward()
    with torch.no_grad():
        return (leaf + step_size * leaf.grad.sign()).clip(0, 1)


def slopes(value, patch, draw, n):
    found = []
    for _ in range(n):
        leaf = patch.clone().requires_grad_()
        found.append(torch.autograd.grad(value(leaf, draw()), leaf)[0])
    return torch.stack(found)


def stepping(direction):
    def step(value, patch, draw, n, step_size):
        return (patch + step_size * direction(slopes(value, patch, draw, n))).clamp(0, 1)

    return step


def at_the_mean(value, patch, draw, n, step_size):
    mean = torch.stack([draw() for _ in range(n)]).mean(0)
    return eot_step(value, patch, lambda: mean, 1, step_size)


def one_draw_again_and_again(value, patch, draw, n, step_size):
    t = draw()
    return eot_step(value, patch, lambda: t, n, step_size)


def unclipped(value, patch, draw, n, step_size):
    return patch + step_size * slopes(value, patch, draw, n).mean(0).sign()


def on_the_patch_itself(value, patch, draw, n, step_size):
    return patch.copy_(eot_step(value, patch, draw, n, step_size))


# --- patch_at_any_angle


@functools.cache
def trained(angle: float, scale: float = 0.6, seed: int = 0) -> Tensor:
    from modelsec.data import mnist
    from modelsec.zoo import load_model

    options = {"size": 12, "steps": 60, "step_size": 0.1, "batch_size": 32}
    options["placement"] = Placement((scale, scale), (-angle, angle))
    x, g = mnist().x_train[:500], torch.Generator().manual_seed(seed)
    return patch(load_model("convnet"), x, torch.full((500,), 2), generator=g, **options)


def returns(make: Any) -> Any:
    return lambda model, x, y: make() if callable(make) else make


RIGHT: dict[str, list[Any]] = {
    "photographs_behind": [8, 8.0, np.int64(8)],
    "stick_on": [loop, by_mask, by_index],
    "expected_step": [eot_step, one_by_one, with_backward],
    "patch_at_any_angle": [
        returns(lambda: trained(180)),
        returns(lambda: trained(180, seed=1).double()),
        returns(lambda: trained(180, 0.55)),
    ],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "photographs_behind": [
        (200, "came out alike"),
        (25, "different ones"),
        (150, "successes"),
        (6, "the two others"),
        (33, "drawn independently"),
        ("8", "type str"),
    ],
    "stick_on": [
        (interchanged, "interchanged"),
        (lambda x, p, t, left: loop(x, p, t[:1].expand(5), left[:1].expand(5)), "same place"),
        (lambda x, p, t, left: loop(x, p.detach(), t, left), "No gradient"),
        (in_place, "in place"),
        (added, "rounding"),
        (halved, "not the patch's own"),
        (lambda x, p, t, left: loop(x, p, t, left).clamp(0.2, 1), "outside the patch changed"),
        (lambda x, p, t, left: loop(x, p, t, left)[0], "shape"),
        (twice_as_steep, "nothing else"),
        (lambda *_: 3, "not int"),
    ],
    "expected_step": [
        (stepping(lambda g: -g.mean(0).sign()), "climbs"),
        (stepping(lambda g: g.sign().mean(0)), "averaged the signs"),
        (stepping(lambda g: g.sign().sum(0).sign()), "vote"),
        (at_the_mean, "mean transformation"),
        (one_draw_again_and_again, "called 1 times"),
        (stepping(lambda g: g[0].sign()), "first gradient"),
        (stepping(lambda g: g[-1].sign()), "last gradient"),
        (stepping(lambda g: g.mean(0)), "sign of the mean"),
        (unclipped, "outside [0, 1]"),
        (on_the_patch_itself, "in place"),
        (lambda value, patch, draw, n, step_size: patch[0], "shape changed"),
        (stepping(lambda g: 0 * g[0]), "is not step_size"),
    ],
    "patch_at_any_angle": [
        (returns(lambda: trained(0)), "At which angles"),
        (returns(lambda: trained(30)), "At which angles"),
        (returns(torch.full((1, 12, 12), 0.5)), "trained for this class"),
        (returns(torch.full((1, 12, 12), 1.5)), "no printer"),
        (returns(torch.full((3, 12, 12), 0.5)), "shape"),
        (returns(3), "not int"),
    ],
}

VALUES = {"photographs_behind"}
