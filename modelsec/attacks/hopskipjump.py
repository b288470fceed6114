"""HopSkipJump: an attack that sees nothing but labels, and walks along the decision boundary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from modelsec.attacks.common import Model, check_counts, check_inputs, check_norm
from modelsec.attacks.minimum_norm import Minimum
from modelsec.attacks.norms import Norm, draw, per_sample, readable, unit
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["Progress", "hopskipjump"]

STARTS = 50  # images of noise that are tried at most


class Progress(NamedTuple):
    """What a callback is shown, after every question.

    Attributes:
        queries: (N,) how often each sample was shown to the model.
        distance: (N,) to its nearest adversarial point so far; infinity if there is none.
    """

    queries: Tensor
    distance: Tensor


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="labels",
        norms=("l2", "linf"),
        cost="queries",
        source="https://arxiv.org/abs/1904.02144",
    )
)
def hopskipjump(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "l2",
    queries: int = 2000,
    directions: int = 100,
    gamma: float = 1.0,
    start: Tensor | None = None,
    targeted: bool = False,
    callback: Callable[[Progress], object] | None = None,
    generator: torch.Generator | None = None,
) -> Minimum:
    """HopSkipJump: find the boundary by bisection, estimate its direction from labels, jump, repeat.

    It begins at an image far away that has the goal: one that is given, or noise. Round t:

    1. bisection between that point and x, down to the boundary;
    2. ``directions * sqrt(t)`` small random changes are tried there; the mean of those that reach
       the goal minus that of the others points away from the boundary;
    3. a jump that way (along its signs in linf), as long as the distance to x divided by sqrt(t),
       halved until the goal is reached again.

    All samples are tried with the same directions. Each point that was asked about counts, so the
    nearest one that reached the goal is returned, whichever step asked.

    Args:
        model: maps images (N, ...) in [0, 1] to labels (N,), or to scores (N, K) whose largest is
            the label; of scores nothing else is used.
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        norm: "l2" or "linf", in which distance is measured.
        queries: how often each sample may be shown to the model, at most. The first is x itself.
        directions: changes tried in the first round.
        gamma: the bisection ends at this share of the way, divided by d^1.5 (l2) or d^2 (linf) for
            d pixels.
        start: (N, ...) images in [0, 1] to begin at, such as images of other classes. A sample
            whose start has not the goal goes on to noise, or has no result if ``targeted``.
        targeted: look for a point that is classified as y; needs ``start``.
        callback: called after every question with a :class:`Progress`.
        generator: draws noise and directions; torch's global one if None.

    Returns:
        A :class:`~modelsec.attacks.minimum_norm.Minimum`. Where nothing was found (all noise has
        the label y, say), adv is x.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Chen, Jordan & Wainwright (2020), https://arxiv.org/abs/1904.02144, algorithms 1 and 2, and
        its authors' code, https://github.com/Jianbo-Lab/HSJA.
    """
    (x, y), ball = check_inputs(model, x, y), check_norm(norm, "l2", "linf")
    check_counts(queries=queries, directions=directions)
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    if start is not None:
        start = _check_begin(start, x)
    elif targeted:
        raise ValueError("a targeted search needs a start: images of the classes to reach")
    ask = _Asking(model, x, y, ball, targeted, queries, callback)
    d = x[0].numel() if len(x) else 1
    theta = gamma / d ** (1.5 if norm == "l2" else 2)
    with inference(model), torch.no_grad():
        point, rows = _begin(ask, start, generator)
        step = 0
        while len(rows):
            step += 1
            near = _bisect(ask, point[rows], rows, theta)
            distance = ball.size(near - x[rows])
            # how far the bisection may have ended from the boundary, times what all pixels add up to
            delta = theta * d ** (0.5 if norm == "l2" else 1) * distance
            if step == 1:
                delta = torch.full_like(distance, 0.1)
            count = int(directions * math.sqrt(step))
            away = _direction(ask, near, rows, delta, count, generator)
            point[rows] = _jump(ask, near, rows, away, distance / math.sqrt(step))
            rows = ask.left(rows)
    return ask.result()


class _Asking:
    """Asks, counts for each sample, and keeps its nearest point that reached the goal."""

    def __init__(
        self, model: Model, x: Tensor, y: Tensor, ball: Norm, targeted: bool, queries: int,
        callback: Callable[[Progress], object] | None,
    ) -> None:  # fmt: skip
        self.model, self.x, self.y, self.ball = model, x, y, ball
        self.targeted, self.queries, self.callback = targeted, queries, callback
        self.used, self.calls = torch.zeros_like(y), 0
        self.adv = x.clone()
        precise = torch.promote_types(x.dtype, torch.float32)
        self.distance = torch.full((len(x),), torch.inf, dtype=precise, device=x.device)

    def open(self, rows: Tensor) -> Tensor:
        """(n,) which of these may be asked about: queries are left, and distance 0 is not reached."""
        if not readable(rows):
            return torch.full_like(rows, self.calls < self.queries, dtype=torch.bool)
        return (self.used[rows] < self.queries) & (self.distance[rows] > 0)

    def left(self, rows: Tensor) -> Tensor:
        """Those of the rows that may be asked about."""
        if not readable(rows):
            return rows if self.calls < self.queries else rows[:0]
        return rows[self.open(rows)]

    def __call__(self, points: Tensor, rows: Tensor) -> Tensor:
        """(n,) whether points (n, ...) of as many samples reach the goal; False where none is left."""
        where = torch.arange(len(rows), device=rows.device)
        if readable(rows):
            where = where[self.open(rows)]
        reached = torch.zeros_like(rows, dtype=torch.bool)
        if not len(where):
            return reached
        rows, points = rows[where], points[where]
        reached[where] = hit = (self.label(points) == self.y[rows]) == self.targeted
        self.used[rows] += 1
        self.calls += 1
        best = self.distance[rows]
        size = self.ball.size(points.to(best.dtype) - self.x[rows].to(best.dtype))
        nearer = hit & (size < best)
        self.distance[rows] = torch.where(nearer, size, best)
        self.adv[rows] = torch.where(per_sample(nearer, points), points, self.adv[rows])
        if self.callback is not None:
            self.callback(Progress(self.used.clone(), self.distance.clone()))
        return reached

    def label(self, points: Tensor) -> Tensor:
        """The model's labels (n,), whether it answers labels or scores."""
        answer = self.model(points)
        if not isinstance(answer, Tensor):
            raise TypeError(f"the model must return a tensor, got {type(answer).__name__}")
        if answer.dim() == 1 and len(answer) == len(points) and not answer.is_floating_point():
            return answer
        scores = answer.dim() == 2 and answer.shape[1] > 1 and answer.is_floating_point()
        if not scores or len(answer) != len(points):
            raise ValueError(
                f"the model must return labels of shape ({len(points)},) or scores of shape "
                f"({len(points)}, K) with K >= 2, got {answer.dtype} of shape {tuple(answer.shape)}"
            )
        if readable(answer):
            if bool(answer.isnan().any()):
                raise ValueError("the model returned NaN scores for inputs in [0, 1]")
            if int(self.y.max()) >= answer.shape[1]:
                raise ValueError(
                    f"labels must be 0 to {answer.shape[1] - 1} for this model, got {int(self.y.max())}"
                )
        return answer.argmax(1)

    def result(self) -> Minimum:
        """The end."""
        return Minimum(self.adv, self.distance, self.distance.isfinite())


def _begin(
    ask: _Asking, start: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A point for each sample that has the goal, and the rows of those for which there is one.

    What is not given is noise: in full at first, then darker and darker, since to many networks
    all noise of one kind is one class.
    """
    x, point = ask.x, ask.x.clone()
    rows = torch.arange(len(x), device=x.device)
    reached = ask(x, rows)  # is it wrong as it is?
    if start is not None:
        reached = ask(start, rows)
        point = start.clone()
    if not ask.targeted and len(x):
        # drawn at once: what is drawn later doesn't depend on how many were tried
        noise = draw(torch.rand, (STARTS, *x.shape[1:]), x, generator)
        for k, image in enumerate(noise):
            todo = ask.left(rows[~reached] if readable(x) else rows)
            if not len(todo):
                break
            point[todo] = image * (1 - k / STARTS)
            reached[todo] = ask(point[todo], todo)
    return point, ask.left(rows[reached] if readable(x) else rows)


def _bisect(ask: _Asking, point: Tensor, rows: Tensor, theta: float) -> Tensor:
    """The last point before the boundary on the way from ``point``, which has the goal, to x.

    In l2 the way is straight. In linf it is that of the ball that shrinks.
    """
    x, size = ask.x[rows], ask.ball.size(point - ask.x[rows])
    low, high = torch.zeros_like(size), torch.ones_like(size)

    def at(share: Tensor) -> Tensor:
        if ask.ball is check_norm("linf"):
            radius = per_sample(share * size, x)
            return torch.minimum(torch.maximum(point, x - radius), x + radius)
        return torch.lerp(x, point, per_sample(share, x))

    # a float has no more digits than 24 halvings can tell apart
    for _ in range(min(math.ceil(math.log2(1 / min(theta, 0.5))), 24)):
        middle = (low + high) / 2
        hit = ask(at(middle), rows)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return at(high)


def _direction(
    ask: _Asking, point: Tensor, rows: Tensor, delta: Tensor, count: int,
    generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """The step of norm 1 that leads away from the boundary, as labels tell: (n, ...).

    The signs phi = +-1 of the answers are centred, which takes out that more of them may have the
    goal than not. Weighted by them, the changes tried add up to a vector that points away.
    """
    straight = ask.ball is not check_norm("linf")
    reach = per_sample(delta, point)
    sums = torch.zeros(3, *point.shape, dtype=ask.distance.dtype, device=point.device)
    told, asked = torch.zeros_like(ask.distance[rows]), torch.zeros_like(ask.distance[rows])
    for _ in range(count):
        if not len(ask.left(rows)):
            break
        change = draw(torch.randn if straight else torch.rand, (1, *point.shape[1:]), point, generator)  # fmt: skip
        change = unit(change if straight else 2 * change - 1, 2)
        tried = (point + reach * change).clamp(0, 1)
        may = ask.open(rows).to(told.dtype)
        phi = torch.where(ask(tried, rows), 1, -1) * may
        way = (tried - point).to(sums.dtype) / reach
        sums[0] += per_sample(phi, way) * way
        sums[1] += per_sample(may, way) * way
        told, asked = told + phi, asked + may
    mean = told / asked.clamp_min(1)
    centred = sums[0] - per_sample(mean, sums[1]) * sums[1]
    alike = per_sample(mean.abs() == 1, centred)  # all the same answer: nothing to centre
    return ask.ball.steepest(torch.where(alike, sums[0], centred)).to(point.dtype)


def _jump(ask: _Asking, point: Tensor, rows: Tensor, away: Tensor, length: Tensor) -> Tensor:
    """Go that way, half as far again and again until the goal is reached; else stay."""
    todo, at = torch.arange(len(rows), device=rows.device), point.clone()
    for _ in range(24):
        new = (point + per_sample(length, point) * away).clamp(0, 1)
        hit = ask(new[todo], rows[todo])
        at[todo] = torch.where(per_sample(hit, new[todo]), new[todo], at[todo])
        if readable(rows):
            todo = todo[~hit & ask.open(rows[todo])]
        if not len(todo):
            break
        length = length / 2
    return at


def _check_begin(start: Tensor, x: Tensor) -> Tensor:
    if not isinstance(start, Tensor):
        raise TypeError(f"start must be a torch.Tensor, got {type(start).__name__}")
    if start.shape != x.shape:
        raise ValueError(f"start must have x's shape {tuple(x.shape)}, got {tuple(start.shape)}")
    start = start.detach().to(x)
    if readable(start) and start.numel() and not bool(((start >= 0) & (start <= 1)).all()):
        raise ValueError("start must hold images in [0, 1]")
    return start
