"""Auto-PGD: projected gradient ascent that picks its step sizes by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from modelsec.attacks.common import (
    Active,
    Iterate,
    Model,
    Objective,
    Search,
    check_counts,
    check_inputs,
    check_norm,
    check_radius,
    check_start,
)
from modelsec.attacks.norms import Norm, per_sample
from modelsec.losses import SampleLoss, log_odds, margin, targeted_dlr
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["apgd", "apgd_targeted", "likeliest_others"]

RHO = 0.75  # the share of steps that have to improve, or the step size is halved
ALPHA = 0.75  # the weight of the new step; the rest is momentum


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("linf", "l2"),
        cost="restarts x steps gradients",
        source="https://arxiv.org/abs/2003.01690",
    )
)
def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 100,
    loss: SampleLoss = log_odds,
    targeted: bool = False,
    random_start: bool = True,
    restarts: int = 1,
    early_stop: bool = True,
    start: Tensor | None = None,
    callback: Callable[[Iterate], object] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD: PGD with momentum whose step size falls when the loss stops rising.

    There is no step size to choose. It starts at 2 * eps, as wide as the ball. At checkpoints,
    which come more and more often, each sample is asked: did the loss rise in more than three
    quarters of the steps since the last one, and did the best loss improve? If not, its step size
    is halved and it goes back to its best point. A step goes three quarters of the way to where
    PGD would go, and keeps a quarter of the step before.

    Climbing :func:`~modelsec.losses.log_odds` is what the literature calls APGD-CE: both losses
    have the same gradient direction and the same order, so all decisions are the same, but its
    gradient stays alive where cross-entropy's is rounded to 0. With
    :func:`~modelsec.losses.dlr` it is APGD-DLR.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels; the classes to reach if ``targeted``.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        norm: "linf" or "l2".
        steps: gradient steps per restart; the checkpoints are set by it.
        loss: per-sample loss.
        targeted: descend to y instead of climbing away from it.
        random_start: begin at a random point of the ball rather than at x.
        restarts: repeat from a new random point; the worst result of all counts.
        early_stop: leave a sample alone once it is misclassified (evaluation); False goes on to
            the worst loss (adversarial training).
        start: (N, ...) begin here instead; inside the ball and the box.
        callback: called with every :class:`~modelsec.attacks.common.Iterate`, start included.
        generator: draws the random starts; torch's global one if None.

    Returns:
        (N, ...), dtype and device of ``x``: for each sample the point of highest loss after
        any step; with early stop, the first point that was misclassified, if one was.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Croce & Hein (2020), https://arxiv.org/abs/2003.01690, algorithm 1. In l1 its
        authors use another rule, https://arxiv.org/abs/2103.01208, which is not here.
    """
    x, y = check_inputs(model, x, y)
    ball = check_norm(norm, "linf", "l2")
    radius = check_radius(eps, x, ball)
    check_counts(steps=steps, restarts=restarts)
    origin = x if start is None else check_start(start, x, radius, ball)
    random_start = random_start and start is None
    if not len(x):
        return x.clone()
    objective, search = Objective(model, loss, targeted), Search(x, early_stop, callback)
    with inference(model):
        for restart in range(restarts):
            # drawn for the whole batch: a sample's start doesn't depend on which are still open
            begin = ball.sample(x, radius, generator) if random_start else origin
            _climb(objective, search, x, begin, y, radius, ball, steps, restart)
    return search.point


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="white-box",
        norms=("linf", "l2"),
        cost="targets x steps gradients",
        source="https://arxiv.org/abs/2003.01690",
    )
)
def apgd_targeted(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 100,
    targets: int | Tensor = 9,
    random_start: bool = True,
    early_stop: bool = True,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """APGD on the targeted DLR loss, aimed at one other class after the other.

    Whatever class the model ends at, any error counts. But each run has a direction of its own,
    and where the way to the likeliest wrong class is blocked another may be open.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K). With fewer than four classes there
            is no targeted DLR, and the margin to the target is climbed instead.
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels, to be got away from.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        norm: "linf" or "l2".
        steps: gradient steps for each target.
        targets: how many classes to aim at (K - 1 at most), the likeliest others first; or (N, T),
            the classes themselves.
        random_start: begin each run at a random point of the ball rather than at x.
        early_stop: leave a sample alone once it is misclassified.
        start: (N, ...) begin here instead; inside the ball and the box.
        generator: draws the random starts; torch's global one if None.

    Returns:
        (N, ...), dtype and device of ``x``: for each sample the point of highest loss of all runs;
        with early stop, the first point that was misclassified, if one was.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Croce & Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    x, y = check_inputs(model, x, y)
    ball = check_norm(norm, "linf", "l2")
    radius = check_radius(eps, x, ball)
    check_counts(steps=steps)
    if not isinstance(targets, Tensor):
        check_counts(targets=targets)
    elif targets.dim() != 2 or len(targets) != len(x) or targets.is_floating_point():
        raise ValueError(
            f"targets must be a number or class indices of shape ({len(x)}, T), got "
            f"{targets.dtype} of shape {tuple(targets.shape)}"
        )
    origin = x if start is None else check_start(start, x, radius, ball)
    random_start = random_start and start is None
    if not len(x):
        return x.clone()
    objective, search = _Aimed(model), Search(x, early_stop)
    with inference(model):
        if not isinstance(targets, Tensor):
            targets = likeliest_others(model, x, y, targets)
        for run, target in enumerate(targets.long().unbind(1)):
            begin = ball.sample(x, radius, generator) if random_start else origin
            pairs = torch.stack([y, target], 1)
            _climb(objective, search, x, begin, pairs, radius, ball, steps, run)
    return search.point


def likeliest_others(model: Model, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The classes other than y with the largest logits at x.

    Args:
        model: maps (N, ...) to logits (N, K).
        x: (N, ...) images.
        y: (N,) labels.
        count: how many classes.

    Returns:
        (N, min(count, K - 1)) class indices, the likeliest first.
    """
    seen: list[Tensor] = []

    def watched(logits: Tensor, y: Tensor) -> Tensor:
        seen.append(logits)
        return margin(logits, y)

    with torch.no_grad():
        Objective(model, watched, targeted=False)(x, y)  # checks the logits
    others = seen[0].scatter(1, y[:, None], -torch.inf)
    return others.topk(min(count, others.shape[1] - 1), dim=1).indices


class _Aimed(Objective):
    """The targeted DLR as an objective: "y" holds (label, target) in a row; any error counts."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, margin, targeted=False)

    def __call__(self, adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        label, target = y.unbind(1)
        self.loss = lambda logits, y: targeted_dlr(logits, y, target)
        return super().__call__(adv, label)


def _finite(gradient: Tensor) -> Tensor:
    return gradient.nan_to_num(0, 0, 0)


class _Best(NamedTuple):
    """The best point of a run so far, its start included, with the gradient there."""

    point: Tensor
    gradient: Tensor
    value: Tensor

    def note_(self, adv: Tensor, gradient: Tensor, value: Tensor) -> None:
        # a lerp with weights 0 and 1 selects as torch.where does, several times faster
        won = (value > self.value).to(adv.dtype)
        self.point.lerp_(adv, per_sample(won, adv))
        self.gradient.lerp_(_finite(gradient), per_sample(won, adv))
        self.value.copy_(torch.where(value > self.value, value, self.value))


def _climb(
    objective: Objective,
    search: Search,
    x: Tensor,
    begin: Tensor,
    y: Tensor,
    radius: Tensor,
    ball: Norm,
    steps: int,
    run: int,
) -> None:
    """One run of algorithm 1 from ``begin``; what it finds is noted in ``search``."""
    todo = search.open(begin, y, radius, ball.region(x, radius))
    if not len(todo.rows):
        return
    rule = _Halving(ball, todo, steps)
    for step in range(steps):
        value, reached, gradient = objective.gradient(todo.adv, todo.y)
        search.note(todo, value, reached, run, step)
        if not step:
            best = _Best(todo.adv.clone(), _finite(gradient), value.clone())
        if search.early_stop and bool(reached.any()):
            keep = (~reached).nonzero()[:, 0]
            if not len(keep):
                return
            todo, gradient = search.drop(todo, gradient, reached)
            value, best = value[keep], _Best(*(part[keep] for part in best))
            rule.keep(keep)
        if step:
            best.note_(todo.adv, gradient, value)
        back = rule.judge(step, value, best)
        if back is not None:
            todo = todo._replace(adv=torch.where(per_sample(back, todo.adv), best.point, todo.adv))
            gradient = torch.where(per_sample(back, gradient), best.gradient, gradient)
        todo = todo._replace(adv=rule.move(todo, gradient))
    with torch.no_grad():
        search.note(todo, *objective(todo.adv, todo.y), run, steps)


class _Halving:
    """How a run steps, and when it turns back: momentum, and step sizes that are halved."""

    def __init__(self, ball: Norm, todo: Active, steps: int) -> None:
        self.ball, self.size = ball, 2 * todo.size
        self.before: Tensor | None = None
        # lengths between checkpoints: 0.22 of all steps, then 0.03 less each time, at least 0.06
        self.window, self.shorter, self.shortest = (
            max(int(share * steps), 1) for share in (0.22, 0.03, 0.06)
        )
        self.next = self.window
        self.last = self.checked = torch.full(todo.y.shape[:1], torch.inf, device=todo.adv.device)
        self.rises = torch.zeros_like(self.last)
        self.halved = torch.ones_like(self.last, dtype=torch.bool)  # the first one can't be "again"

    def move(self, todo: Active, gradient: Tensor) -> Tensor:
        """The next iterate; a new tensor, inside ball and box."""
        ascent = self.ball.confine_(self.ball.step(todo.adv, self.size, gradient), todo.region)
        if self.before is not None:
            momentum = todo.adv - self.before
            # in this order a point that no step can move stays where it is, to the last digit
            ascent = torch.lerp(todo.adv, ascent, ALPHA).add_(momentum, alpha=1 - ALPHA)
            ascent = self.ball.confine_(ascent, todo.region)
        self.before = todo.adv
        return ascent

    def judge(self, step: int, value: Tensor, best: _Best) -> Tensor | None:
        """After a step: who is sent back to its best point, (n,) bool; None between checkpoints.

        The paper's conditions 1 and 2. It writes condition 1 with "<", its authors' code,
        and this, with "<=": it matters where 0.75 of a window is a whole number.
        """
        if step:
            self.rises += value > self.last
        else:
            self.checked = value
        self.last = value
        if step != self.next:
            return None
        stalled = ~self.halved & (best.value <= self.checked)
        self.halved = (self.rises <= RHO * self.window) | stalled
        self.size = torch.where(per_sample(self.halved, self.size), self.size / 2, self.size)
        self.window = max(self.window - self.shorter, self.shortest)
        self.next, self.checked = step + self.window, best.value.clone()
        self.rises = torch.zeros_like(self.rises)
        return self.halved

    def keep(self, rows: Tensor) -> None:
        """Go on with these samples only."""
        self.size, self.last, self.checked = self.size[rows], self.last[rows], self.checked[rows]
        self.rises, self.halved = self.rises[rows], self.halved[rows]
        if self.before is not None:
            self.before = self.before[rows]
