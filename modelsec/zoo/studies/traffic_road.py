"""The road of the chapter on traffic: what a mistake costs, approaches, stickers and votes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from modelsec.attacks.common import Model
from modelsec.intervals import Proportion
from modelsec.losses import log_odds
from modelsec.sign_art import CLASSES, plates
from modelsec.signs import Split, Views, backdrops, draw_views, take
from modelsec.training import inference
from modelsec.validation.metrics import logits

__all__ = [
    "BARS",
    "GOAL",
    "SPEED",
    "STOP",
    "Tracks",
    "bars",
    "mean_cost",
    "mistakes",
    "pictures",
    "reads",
    "square",
    "sticker",
    "stuck_on",
    "tracks",
    "votes",
]

STOP = CLASSES.index("stop")
GOAL = CLASSES.index("limit 80")

SPEED = {
    "stop": 0, "give way": 10, "no entry": 0, "limit 20": 20, "limit 30": 30, "limit 50": 50,
    "limit 80": 80, "end of limits": 100, "priority road": 50, "ahead": 50, "turn right": 20,
    "roundabout": 20, "pedestrians": 30, "children": 30, "traffic lights": 30, "danger": 40,
}  # fmt: skip
"""How fast our imaginary car passes a sign that it has read, in km/h. We made these up."""


def mistakes() -> Tensor:
    """What it costs to take a sign (row) for another one (column): (16, 16) float32.

    Any mistake costs 1. If the car drives faster than it should, (v_read^2 - v_true^2) / 100 is
    added, v in km/h: what the energy of a crash grows with.
    """
    v = torch.tensor([float(SPEED[name]) for name in CLASSES])
    too_fast = (v[None] ** 2 - v[:, None] ** 2).clamp_min(0) / 100
    return (1 + too_fast) * (1 - torch.eye(len(CLASSES)))


def mean_cost(answers: Tensor, y: Tensor) -> float:
    """Mean of :func:`mistakes` over answers.

    Args:
        answers: (N,) classes that were read.
        y: (N,) the true ones.

    Returns:
        The mean.
    """
    return mistakes()[y, answers].mean().item()


class Tracks(NamedTuple):
    """M approaches of T frames each.

    Attributes:
        x: (M, T, 3, 32, 32) the frames, the farthest first.
        y: (M,) the sign.
    """

    x: Tensor
    y: Tensor


def tracks(
    signs: Tensor,
    y: Tensor,
    frames: int,
    split: Split,
    seed: int,
    **ranges: Any,
) -> Tracks:
    """A car comes nearer to each sign, from 60 metres to 10.

    Background, angle, light, haze and size in the picture stay for an approach; the distance
    shrinks, and place and noise are new in each frame.

    Args:
        signs: (M, 4, S, S), such as ``plates()[y]``.
        y: (M,) their classes.
        frames: T.
        split: "train" or "test": which photographs stand behind.
        seed: for all that is drawn.
        ranges: for :func:`modelsec.signs.draw_views`.

    Returns:
        The :class:`Tracks`.
    """
    generator, m = torch.Generator().manual_seed(seed), len(y)
    behind, _ = backdrops(split, m, 32, generator)
    base = draw_views(m, generator, **ranges)
    one = [part.repeat_interleave(frames, 0) for part in base]
    views = Views(*one)._replace(
        distance=torch.linspace(60, 10, frames).repeat(m),
        shift=draw_views(m * frames, generator).shift,
    )
    rows = torch.arange(m).repeat_interleave(frames)
    x = pictures(signs[rows], behind[rows], views, generator)
    return Tracks(x.view(m, frames, *x.shape[1:]), y)


def pictures(
    signs: Tensor, behind: Tensor, views: Views, generator: torch.Generator | None
) -> Tensor:
    """:func:`modelsec.signs.take`, 500 at a time.

    Args:
        signs: (N, 4, S, S).
        behind: (N, 3, H, H).
        views: N of them.
        generator: draws the noise.

    Returns:
        (N, 3, H, H).
    """
    return torch.cat(
        [
            take(signs[k], behind[k], Views(*(part[k] for part in views)), generator)
            for k in torch.arange(len(signs)).split(500)
        ]
    )


BARS = (0.3, 0.64, 0.62)
"""Of :func:`bars`: from where to where above and below the middle, and half the width."""


def bars(size: int = 64) -> Tensor:
    """Two bars, above and below the word STOP: (size, size) bool, where the sticker may be."""
    at = (torch.arange(size) + 0.5) * 2 / size - 1
    low, high, half = BARS
    down = (at.abs() >= low) & (at.abs() <= high)
    return down[:, None] & (at.abs() <= half)[None]


def square(side: float = 0.6, size: int = 64) -> Tensor:
    """A square in the middle of a sign, a little low.

    Args:
        side: as a share of half the sign's width.
        size: of the mask, in pixels.

    Returns:
        (size, size) bool, where the sticker may be.
    """
    at = (torch.arange(size) + 0.5) * 2 / size - 1
    return ((at - 0.2).abs() <= side / 2)[:, None] & (at.abs() <= side / 2)[None]


def stuck_on(signs: Tensor, paint: Tensor, where: Tensor) -> Tensor:
    """Signs with a sticker on their surface.

    Args:
        signs: (N, 4, S, S).
        paint: (3, S, S) in [0, 1], the sticker's colours.
        where: (S, S) bool, what it covers. Beside the sign there is nothing to stick it on.

    Returns:
        (N, 4, S, S); differentiable in ``paint``.
    """
    under = where & (signs[:, 3:] > 0.5)
    return torch.cat([torch.where(under, paint, signs[:, :3]), signs[:, 3:]], 1)


def sticker(
    model: Model,
    signs: Tensor,
    y: Tensor,
    where: Tensor,
    *,
    targeted: bool = True,
    within: float | None = None,
    steps: int = 150,
    batch_size: int = 32,
    step_size: float = 0.1,
    generator: torch.Generator | None = None,
    **ranges: Any,
) -> Tensor:
    """Train a sticker for the surface of signs: expectation over distance, angle, light and place.

    Args:
        model: maps (N, 3, 32, 32) to logits.
        signs: (K, 4, S, S) the signs it will be stuck on, one after the other.
        y: (K,) the classes to reach; the true ones to get away from if not ``targeted``.
        where: (S, S) bool, what it may cover.
        targeted: reach y.
        within: how far colours may be from the first sign's own; any colours if None.
        steps: how many.
        batch_size: pictures in each.
        step_size: of the first step, in units of a pixel's range; they get shorter.
        generator: draws everything; torch's global one if None.
        ranges: for :func:`modelsec.signs.draw_views`: what the attacker prepares for.

    Returns:
        (3, S, S) in [0, 1].
    """
    paint = torch.full_like(signs[0, :3], 0.5) if within is None else signs[0, :3].clone()
    low, high = (0.0, 1.0) if within is None else (paint - within, paint + within)
    pool, _ = backdrops("train", 300, 32, generator)
    sign = -1 if targeted else 1
    with inference(model):
        for step in range(steps):
            rows = (torch.arange(batch_size) + step * batch_size) % len(signs)
            behind = pool[torch.randint(len(pool), (batch_size,), generator=generator)]
            views = draw_views(batch_size, generator, **ranges)
            leaf = paint.clone().requires_grad_()
            seen = take(stuck_on(signs[rows], leaf, where), behind, views, generator)
            gain = sign * log_odds(model(seen), y[rows]).sum()
            (slope,) = torch.autograd.grad(gain, leaf)
            paint = paint + step_size * (1 - step / steps) * slope.sign()
            paint = paint.clamp(low, high).clamp(0, 1)  # type: ignore[arg-type]
    return paint


def reads(
    model: Model,
    sign: Tensor,
    n: int,
    seed: int,
    split: Split = "test",
    **ranges: Any,
) -> Tensor:
    """What a model reads on n pictures of one sign.

    Args:
        model: maps (N, 3, 32, 32) to logits.
        sign: (4, S, S), with its sticker if it has one.
        n: how many pictures.
        seed: for all that is drawn.
        split: which photographs stand behind.
        ranges: for :func:`modelsec.signs.draw_views`.

    Returns:
        (n,) classes.
    """
    generator = torch.Generator().manual_seed(seed)
    behind, _ = backdrops(split, n, 32, generator)
    views = draw_views(n, generator, **ranges)
    return logits(model, pictures(sign.expand(n, -1, -1, -1), behind, views, generator)).argmax(1)


def votes(model: Model, x: Tensor) -> dict[str, Tensor]:
    """Three ways to read approaches.

    Args:
        model: maps (N, 3, 32, 32) to logits.
        x: (M, T, 3, 32, 32).

    Returns:
        "frames": (M, T) the answer to each frame; "majority": (M,) the commonest of them; "sum":
        (M,) the class of largest log-probability, added up over the frames.
    """
    m, t = x.shape[:2]
    said = logits(model, x.flatten(0, 1)).log_softmax(1).view(m, t, -1)
    each = said.argmax(2)
    counts = torch.nn.functional.one_hot(each, said.shape[2]).sum(1).double()
    # of two classes that are equally common the likelier one
    counts += said.double().mean(1).softmax(1) * 0.5
    return {"frames": each, "majority": counts.argmax(1), "sum": said.sum(1).argmax(1)}


def share(hits: Tensor) -> Proportion:
    """A bool tensor as a proportion."""
    return Proportion(int(hits.sum()), hits.numel())


def stop_sign() -> Tensor:
    """The stop sign, without a sticker: (4, 64, 64)."""
    return plates()[STOP]
