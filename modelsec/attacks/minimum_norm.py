"""Minimum-norm attacks: not "is there an error within eps?" but "how near is the nearest one?".

Each returns a :class:`Minimum`: a point, its distance, and whether there is an error at all. A
sample that could not be fooled has distance infinity and the attack's last try; it never counts
as a success.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from modelsec.attacks.common import (
    Model,
    Objective,
    check_counts,
    check_inputs,
    check_norm,
    per_sample_value,
)
from modelsec.attacks.norms import Norm, per_sample, readable
from modelsec.losses import margin
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["Minimum", "carlini_wagner", "deepfool", "fmn"]


class Minimum(NamedTuple):
    """What a minimum-norm attack found.

    Attributes:
        adv: (N, ...) the nearest adversarial point seen; where none was, the last try.
        distance: (N,) its distance to the clean sample in the attack's norm; 0 where the clean
            sample is wrong already, infinity where nothing was found.
        found: (N,) bool, whether the goal was reached.
    """

    adv: Tensor
    distance: Tensor
    found: Tensor


class _Nearest:
    """For every sample the nearest adversarial point so far; until there is one, the last try.

    What is nearest lies close behind the border, where rounding decides: an error counts only if
    its margin is larger than what rounding can change, so that it is one in another batch too.
    """

    def __init__(self, objective: Objective, x: Tensor, y: Tensor, ball: Norm, least: float = 0):
        self.x, self.ball, self.adv = x, ball, x.clone()
        # in bfloat16, whose numbers have three digits, many distances would be the same
        precise = torch.promote_types(x.dtype, torch.float32)
        self.distance = torch.full((len(x),), torch.inf, dtype=precise, device=x.device)
        self.least = torch.full_like(self.distance, least)
        if len(x):
            with torch.no_grad():
                logits = objective.model(x)
                told = Objective(lambda _: logits, objective.loss, objective.targeted)
                value, reached = told(x, y)
            rounding = 8 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
            self.least += rounding.to(precise)
            self.distance[reached & (value > self.least)] = 0

    def note(
        self, rows: Tensor | slice, adv: Tensor, value: Tensor, reached: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Look at points of some rows; returns distances (n,), and what counts as an error."""
        adv, best = adv.detach(), self.distance[rows]
        distance = self.ball.size(adv.to(best.dtype) - self.x[rows].to(best.dtype))
        counts = reached & (value.detach() > self.least[rows])
        nearer = counts & (distance < best)
        keep = per_sample(nearer | best.isinf(), adv).to(adv.dtype)
        self.distance[rows] = torch.where(nearer, distance, best)
        # a lerp with weights 0 and 1 selects as torch.where does, several times faster
        if isinstance(rows, slice):
            self.adv[rows].lerp_(adv, keep)
        else:
            self.adv[rows] = self.adv[rows].lerp(adv, keep)
        return distance, counts

    def result(self) -> Minimum:
        """The end."""
        return Minimum(self.adv, self.distance, self.distance.isfinite())


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("l2", "linf"),
        cost="steps x (classes - 1) gradients",
        source="https://arxiv.org/abs/1511.04599",
    )
)
def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    classes: int = 10,
) -> Minimum:
    """DeepFool: step to the nearest border of the linearised model until the real one is crossed.

    The border to another class k, where ``f_k = f_y``, lies at the distance
    ``|f_k - f_y| / ||grad(f_k - f_y)||_dual``, to first order. Each step goes to the nearest one
    and a little beyond. In the end, what is beyond is taken back as far as the error lasts.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels.
        norm: "l2" or "linf", in which distance is measured.
        steps: at most so many steps; a sample is left alone at its first error.
        overshoot: a step goes (1 + overshoot) times the way, or it would end before the border.
        classes: only the borders to the ``classes - 1`` likeliest other classes are tried.

    Returns:
        A :class:`Minimum`.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Moosavi-Dezfooli et al. (2016), https://arxiv.org/abs/1511.04599, algorithm 2.
    """
    (x, y), ball = check_inputs(model, x, y), check_norm(norm, "l2", "linf")
    check_counts(steps=steps, classes=classes - 1)
    if not overshoot > 0:
        raise ValueError(f"overshoot must be positive, got {overshoot}")
    objective = Objective(model, margin, targeted=False)
    with inference(model), torch.inference_mode(False), torch.enable_grad():
        x, y = x.clone(), y.clone()
        nearest = _Nearest(objective, x, y, ball)
        rows = _where(nearest.distance > 0)  # the others are wrong as they are
        adv, label = x[rows], y[rows]
        for _ in range(steps):
            if not len(rows):
                break
            least = nearest.least[rows]
            distance, direction = _nearest_border(model, adv, label, least, classes, norm)
            # the 1e-4 is the authors': near the border steps would become too short to cross it
            length = per_sample((1 + overshoot) * (distance + 1e-4), adv).to(adv.dtype)
            adv = (adv + length * ball.steepest(direction)).clamp(0, 1)
            with torch.no_grad():
                _, counts = nearest.note(rows, adv, *objective(adv, label))
            left = _where(~counts)
            rows, adv, label = rows[left], adv[left], label[left]
        _walk_back(objective, nearest, y, share=min(2 * overshoot, 1))
    return nearest.result()


def _nearest_border(
    model: Model, adv: Tensor, y: Tensor, least: Tensor, classes: int, norm: str
) -> tuple[Tensor, Tensor]:
    """The linearised model's nearest border: distance (n,), 0 if there is none, and gradient."""
    adv = adv.detach().requires_grad_()
    logits = model(adv)
    _check_differentiable(logits)
    lead = (logits.gather(1, y[:, None]) - logits).detach() + least[:, None]
    rivals = lead.scatter(1, y[:, None], torch.inf)  # y has no border with itself
    leads, others = rivals.topk(min(classes, logits.shape[1]) - 1, dim=1, largest=False)
    distance, direction = torch.full_like(leads[:, 0], torch.inf), torch.zeros_like(adv)
    minus_y = torch.zeros_like(logits).scatter(1, y[:, None], -1)
    for lead, k in zip(leads.T, others.T, strict=True):
        weights = minus_y.scatter(1, k[:, None], 1)  # of the logits in f_k - f_y
        (gradient,) = torch.autograd.grad(logits, adv, grad_outputs=weights, retain_graph=True)
        gradient = gradient.nan_to_num(0, 0, 0)
        border = lead / _slope(gradient, norm).to(lead.dtype)
        nearer = border < distance
        distance = torch.minimum(border.nan_to_num(torch.inf, torch.inf), distance)
        direction = direction.lerp_(gradient, per_sample(nearer, adv).to(adv.dtype))
    return torch.where(distance.isfinite(), distance, 0), direction


def _slope(gradient: Tensor, norm: str) -> Tensor:
    """The dual norm (N,): how much a linear function with this gradient rises in a step of norm 1."""
    flat = gradient.flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)


@torch.no_grad()
def _walk_back(objective: Objective, nearest: _Nearest, y: Tensor, share: float) -> None:
    """Go back on the last ``share`` of the way, where the margin is nearly linear, to its zero."""
    rows = _where((nearest.distance > 0) & nearest.distance.isfinite())
    if not len(rows):
        return
    far, label, least = nearest.adv[rows], y[rows], nearest.least[rows]
    way = share * (nearest.x[rows] - far)
    ends = objective(far, label), objective(far + way, label)
    nearest.note(rows, far + way, *ends[1])
    beyond, before = ends[0][0] - least, ends[1][0] - least
    # a hundredth is left as a reserve
    back = 0.99 * (beyond / (beyond - before)).nan_to_num(0).clamp(0, 1)
    adv = far + per_sample(back, far).to(far.dtype) * way
    nearest.note(rows, adv, *objective(adv, label))


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("l2", "linf"),
        cost="steps gradients",
        source="https://arxiv.org/abs/2102.12827",
    )
)
def fmn(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "l2",
    steps: int = 100,
    step_size: float = 1.0,
    gamma: float = 0.05,
    targeted: bool = False,
) -> Minimum:
    """Fast minimum-norm attack: gradient steps in a ball whose radius follows the border.

    While a sample is not fooled its ball grows, to where the linearised border is. Once it is, the
    ball shrinks a little in every step that ends in an error and grows in the others, so that the
    search settles on the border. What the gradient asks of a pixel that is at the end of its range
    already is left out of it: on images with much black such pixels would take the whole step.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        norm: "l2" or "linf", in which distance is measured.
        steps: gradient steps.
        step_size: l2 length of the first step; it falls to a hundredth along a cosine.
        gamma: by which share the radius changes in the first steps; it falls to a fiftieth.
        targeted: look for the nearest point that is classified as y.

    Returns:
        A :class:`Minimum`.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Pintor et al. (2021), https://arxiv.org/abs/2102.12827, algorithm 1.
    """
    (x, y), ball = check_inputs(model, x, y), check_norm(norm, "l2", "linf")
    check_counts(steps=steps)
    if not 0 < gamma < 1 or not step_size > 0:
        raise ValueError(f"need 0 < gamma < 1 and step_size > 0, got {gamma} and {step_size}")
    if not len(x):
        return Minimum(x.clone(), x.new_zeros(0), x.new_zeros(0, dtype=torch.bool))
    objective, rows = Objective(model, margin, targeted), slice(None)
    with inference(model):
        nearest = _Nearest(objective, x, y, ball)
        adv, eps = x, torch.full_like(nearest.distance, torch.inf)
        for step in range(steps):
            fall = (1 + math.cos(math.pi * step / steps)) / 2
            value, reached, gradient = objective.gradient(adv, y)
            size, reached = nearest.note(rows, adv, value, reached)
            gradient = _inside(gradient, adv)
            length = _slope(gradient, "l2")
            slope = length if norm == "l2" else _slope(gradient, norm)
            border = size + torch.where(slope > 0, value.abs() / slope, torch.inf)
            share = gamma * (0.02 + 0.98 * fall)
            # a little beyond the border, or rounding could keep it there for ever
            grown = torch.where(nearest.distance.isfinite(), (1 + share) * eps, 1.002 * border)
            shrunk = torch.minimum((1 - share) * eps, nearest.distance)
            eps = torch.where(reached, shrunk, grown)
            alpha = step_size * (0.01 + 0.99 * fall) / torch.where(length > 0, length, 1)
            ascent = torch.addcmul(adv, per_sample(alpha, x), gradient)
            adv = ball.confine_(ascent, ball.region(x, per_sample(eps, x).to(x.dtype)))
        with torch.no_grad():
            nearest.note(rows, adv, *objective(adv, y))
    return nearest.result()


def _inside(gradient: Tensor, adv: Tensor) -> Tensor:
    """The gradient without what would lead out of the box (and without NaN)."""
    gradient = gradient.nan_to_num(0, 0, 0)
    room = (adv + gradient.sign()).clamp_(0, 1).sub_(adv).sign_()  # 0 where it points out
    return gradient.abs_().mul_(room)


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("l2",),
        cost="searches x steps gradients",
        source="https://arxiv.org/abs/1608.04644",
    )
)
def carlini_wagner(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "l2",
    steps: int = 1000,
    searches: int = 9,
    c: float | Tensor = 0.01,
    step_size: float = 0.01,
    confidence: float = 0.0,
    targeted: bool = False,
) -> Minimum:
    """Carlini and Wagner's l2 attack: Adam on distance plus c times what is missing to the goal.

    It minimises ``||adv - x||_2^2 + c * max(confidence - margin, 0)`` over w, where
    ``adv = (tanh(w) + 1) / 2`` is inside the box by construction. A search finds each sample's c:
    with one too small nothing is found, with one too large the distance is neglected.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        norm: "l2", the only one.
        steps: of Adam, for each c; a sample stops sooner when it gets no further.
        searches: how many values of c are tried: tenfold until one works, then by bisection.
        c: the first of them; one number, or one per sample (N,).
        step_size: Adam's, in w.
        confidence: the margin by which the wrong class has to win.
        targeted: look for the nearest point that is classified as y.

    Returns:
        A :class:`Minimum`.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Carlini & Wagner (2017), https://arxiv.org/abs/1608.04644, sections V-D and VI-A.
    """
    (x, y), ball = check_inputs(model, x, y), check_norm(norm, "l2")
    check_counts(steps=steps, searches=searches)
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    c = per_sample_value("c", c, precise).flatten()
    if (readable(c) and bool((c <= 0).any())) or not (step_size > 0 and confidence >= 0):
        given = f"{c}, {step_size} and {confidence}"
        raise ValueError(f"need c > 0, step_size > 0 and confidence >= 0, got {given}")
    objective = Objective(model, margin, targeted)
    with inference(model), torch.inference_mode(False), torch.enable_grad():
        x, y = x.clone(), y.clone()
        nearest = _Nearest(objective, x, y, ball, least=confidence)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(searches):
            hit = _descend(objective, nearest, y, c, steps, step_size)
            low, high = torch.where(hit, low, c), torch.where(hit, c, high)
            c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
    return nearest.result()


def _descend(
    objective: Objective, nearest: _Nearest, y: Tensor, c: Tensor, steps: int, step_size: float
) -> Tensor:
    """Adam with a given c for each sample; returns (N,) whether an error was seen."""
    hit, rows = torch.zeros_like(c, dtype=torch.bool), _where(nearest.distance > 0)
    clean, y, c, want = nearest.x[rows].to(c.dtype), y[rows], c[rows], nearest.least[rows]
    w = torch.atanh((2 * clean - 1) * (1 - 1e-6))
    mean, square = torch.zeros_like(w), torch.zeros_like(w)
    before = torch.full_like(c, torch.inf)
    for step in range(1, steps + 1):
        if not len(rows):
            break
        w = w.detach().requires_grad_()
        inside = (w.tanh() + 1) / 2
        adv = inside.to(nearest.x.dtype)
        value, reached = objective(adv, y)
        _check_differentiable(value)
        loss = (inside - clean).square().flatten(1).sum(1) + c * (want - value).clamp_min(0)
        gradient = torch.autograd.grad(loss.sum(), w)[0].nan_to_num(0, 0, 0)
        _, counts = nearest.note(rows, adv, value, reached)
        hit[rows] = hit[rows] | counts
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.001)
        scale = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
        w = w.detach() - step_size / (1 - 0.9**step) * mean / scale
        if step % max(steps // 10, 1) == 0:  # who gets no further is done
            left = _where(loss.detach() < 0.9999 * before)
            parts = (rows, clean, y, c, want, w, mean, square, loss.detach())
            rows, clean, y, c, want, w, mean, square, before = (part[left] for part in parts)
    return hit


def _where(mask: Tensor) -> Tensor:
    """The rows for which it is true; all of them on a device where nothing can be read."""
    if readable(mask):
        return mask.nonzero()[:, 0]
    return torch.arange(len(mask), device=mask.device)


def _check_differentiable(output: Tensor) -> None:
    if not output.requires_grad:
        raise ValueError("no gradient reaches the input through autograd: use a black-box attack")
