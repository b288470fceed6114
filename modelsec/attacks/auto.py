"""The standard protocol: attacks of four kinds one after the other, and the worst case counts."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modelsec.attacks.apgd import apgd, apgd_targeted, likeliest_others
from modelsec.attacks.black_box import square
from modelsec.attacks.common import (
    Model,
    Objective,
    check_counts,
    check_inputs,
    check_norm,
    check_radius,
)
from modelsec.attacks.minimum_norm import fmn
from modelsec.attacks.norms import per_sample
from modelsec.attacks.report import Attempt, Report
from modelsec.losses import dlr, margin
from modelsec.training import inference, progress_bar

__all__ = ["autoattack"]


def autoattack(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    batch_size: int = 500,
    progress: bool | None = None,
    generator: torch.Generator | None = None,
) -> Report:
    """The standard protocol of AutoAttack: nothing to tune, and the worst case counts.

    Four attacks take turns, each on the samples that still stand: APGD-CE; APGD on the targeted
    DLR loss, aimed at the likeliest other classes one by one; a minimum-norm attack; and Square,
    which needs no gradient. A sample stands if the model is right about it and all four fail.

    The third one is FAB-T in the original. Here it is :func:`~modelsec.attacks.minimum_norm.fmn`,
    a minimum-norm attack that is faster and simpler; its row in the report says so.

    The report warns, as the original does, of models on which these attacks can't be trusted:
    whose answers are random, that return probabilities, whose gradients are zero, that compute
    gradients while they answer, or that Square breaks where the gradient fails.

    Args:
        model: maps images (N, ...) in [0, 1] to logits (N, K).
        x: (N, ...) float in [0, 1].
        y: (N,) integer labels.
        eps: radius in units of a pixel's range [0, 1]; one number, or one per sample (N,).
        norm: "linf" or "l2".
        steps: gradient steps of each run.
        targets: how many other classes are aimed at; K - 1 at most.
        queries: Square's budget for each sample.
        batch_size: samples per batch. The result does not depend on it.
        progress: show a bar; None means yes, unless MODELSEC_PROGRESS=0 is set.
        generator: for the random starts and Square; torch's global one if None. One seed per
            attack is drawn from it, and it is never seeded.

    Returns:
        A :class:`~modelsec.attacks.report.Report`. Ctrl-C (or Jupyter's stop button) ends the
        protocol early; what is finished is reported.

    Raises:
        TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

    References:
        Croce & Hein (2020), https://arxiv.org/abs/2003.01690; the warnings follow flags_doc.md in
        https://github.com/fra31/auto-attack.
    """
    x, y = check_inputs(model, x, y)
    radius = check_radius(eps, x, check_norm(norm, "linf", "l2")).flatten()
    check_counts(steps=steps, targets=targets, queries=queries, batch_size=batch_size)
    trial = _Trial(model, x, y, radius, batch_size)
    doubts: list[str] = []
    interrupted = False
    if not len(x):
        return trial.report(doubts, norm, eps, interrupted)
    with inference(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(targeted_)?dlr needs")  # the report says it
        others = trial.look()
        attacks = _attacks(trial, norm, steps, queries, others[:, :targets], generator)
        runs = sum(len(attack.runs) for attack in attacks)
        bar = progress_bar(runs * len(x), "autoattack", progress)
        try:
            for doubt in _doubts(trial, norm, generator):
                doubts.append(doubt)
            for attack in attacks:
                trial.run(attack, bar)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            bar.close()
    doubts += _doubts_of_the_end(trial)
    return trial.report(doubts, norm, eps, interrupted)


Run = Callable[[Tensor], Tensor]
"""rows (n,) -> adversarial candidates (n, ...) for these rows."""


class _Attack(NamedTuple):
    name: str
    runs: list[Run]


class _Counted:
    """A model that counts the samples it is shown."""

    def __init__(self, model: Model) -> None:
        self.model, self.gradients, self.queries = model, 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            self.gradients += len(x)
        else:
            self.queries += len(x)
        return self.model(x)


class _Trial:
    """The samples, which of them stand, and what was done to them."""

    def __init__(self, model: Model, x: Tensor, y: Tensor, eps: Tensor, batch_size: int) -> None:
        self.model, self.x, self.y, self.eps = _Counted(model), x, y, eps
        self.batch_size = batch_size
        self.adv = x.clone()
        self.broken_by = torch.full((len(x),), -2, device=x.device)
        self.attempts: list[Attempt] = []

    @property
    def stands(self) -> Tensor:
        return self.broken_by == -2

    def look(self) -> Tensor:
        """Look at the clean samples: marks the wrong ones, returns the other classes by rank."""
        ranks = []
        for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
            ranks.append(likeliest_others(self.model, x, y, 10**9))
        for rows in self.batches():
            self.broken_by[rows[self.wrong(self.x[rows], rows)]] = -1
        return torch.cat(ranks)

    def batches(self) -> list[Tensor]:
        """The rows that stand, in batches."""
        rows = self.stands.nonzero()[:, 0]
        return list(rows.split(self.batch_size)) if len(rows) else []

    def wrong(self, adv: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(adv).argmax(1) != self.y[rows]

    def run(self, attack: _Attack, bar: Any) -> None:
        """Let an attack try all samples that stand; one entry in ``attempts``, come what may."""
        number, before = len(self.attempts), (self.model.gradients, self.model.queries)
        tried, finished = torch.zeros_like(self.stands), False
        try:
            for run in attack.runs:
                done = 0
                for rows in self.batches():
                    adv = run(rows)
                    won = self.wrong(adv, rows)
                    tried[rows] = True
                    self.adv[rows[won]] = adv[won]
                    self.broken_by[rows[won]] = number
                    done += len(rows)
                    bar.update(len(rows))
                bar.update(len(self.x) - done)
            finished = True
        finally:
            self.attempts.append(
                Attempt(
                    attack.name,
                    int(tried.sum()),
                    int((self.broken_by == number).sum()),
                    int(self.stands.sum()),
                    len(self.x),
                    self.model.gradients - before[0],
                    self.model.queries - before[1],
                    finished,
                )
            )

    def report(
        self, doubts: list[str], norm: str, eps: float | Tensor, interrupted: bool
    ) -> Report:
        return Report(
            self.adv, self.stands, self.broken_by, tuple(self.attempts), tuple(doubts), norm, eps,
            interrupted,
        )  # fmt: skip


def _attacks(
    trial: _Trial,
    norm: str,
    steps: int,
    queries: int,
    targets: Tensor,
    generator: torch.Generator | None,
) -> list[_Attack]:
    """The protocol. Each run draws from a generator of its own, for all samples at once.

    So a sample's start depends neither on the batch size nor on who has been broken before.
    """
    model, x, y, eps = trial.model, trial.x, trial.y, trial.eps
    rule: dict[str, Any] = {"norm": norm, "steps": steps}
    seeds = _seeds(2 + targets.shape[1], generator)

    def start(seed: int, rows: Tensor) -> Tensor:
        drawn = check_norm(norm).sample(x, per_sample(eps, x), _seeded(seed))
        return drawn[rows]

    def climb(rows: Tensor) -> Tensor:
        begin = start(seeds[0], rows)
        return apgd(model, x[rows], y[rows], eps=eps[rows], start=begin, **rule)

    def aim(rank: int) -> Run:
        def run(rows: Tensor) -> Tensor:
            begin, aims = start(seeds[2 + rank], rows), targets[rows, rank, None]
            return apgd_targeted(
                model, x[rows], y[rows], eps=eps[rows], targets=aims, start=begin, **rule
            )

        return run

    def shrink(rows: Tensor) -> Tensor:
        found = fmn(model, x[rows], y[rows], **rule)
        near = per_sample(found.distance <= eps[rows], x)
        return torch.where(near, found.adv, x[rows])

    def ask(rows: Tensor) -> Tensor:
        return square(
            model, x[rows], y[rows], eps=eps[rows], norm=norm, queries=queries,
            generator=_seeded(seeds[1]),
        )  # fmt: skip

    return [
        _Attack("APGD-CE", [climb]),
        _Attack("APGD-T", [aim(rank) for rank in range(targets.shape[1])]),
        _Attack("FMN (in place of FAB-T)", [shrink]),
        _Attack("Square", [ask]),
    ]


def _seeds(count: int, generator: torch.Generator | None) -> list[int]:
    device = "cpu" if generator is None else generator.device
    seeds: list[int] = torch.randint(2**62, (count,), generator=generator, device=device).tolist()
    return seeds


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _doubts(trial: _Trial, norm: str, generator: torch.Generator | None) -> Iterator[str]:
    """What the first batch tells before any attack."""
    rows = torch.arange(min(len(trial.x), trial.batch_size, 250), device=trial.x.device)
    x, y = trial.x[rows], trial.y[rows]
    with torch.no_grad():
        answers = torch.stack([trial.model(x) for _ in range(5)]).double()
    scale = torch.linalg.vector_norm(answers, dim=2).amax(0).clamp_min(1e-10)
    gap = torch.linalg.vector_norm(answers - answers[0], dim=2).amax(0) / scale
    if bool((gap > 1e-4).any()) or bool((answers.argmax(2) != answers[0].argmax(1)).any()):
        yield (
            "the same image gets other logits when it is shown again: the model is random, and "
            "these attacks follow one draw at a time. Attack the mean of many draws (eot)"
        )
    logits, classes = answers[0], answers.shape[2]
    if bool((logits > -1e-5).all() & ((logits.sum(1) - 1).abs() < 1e-5).all()):
        yield (
            "the outputs look like probabilities: give the attack logits, the outputs before the "
            "softmax, or gradients are lost to rounding"
        )
    if classes < 4:
        yield (
            f"with {classes} classes there is no targeted DLR loss: the margin to the target took "
            "its place"
        )
    start = check_norm(norm).sample(
        x, per_sample(trial.eps[rows], x), _seeded(_seeds(1, generator)[0])
    )
    loss = dlr if classes > 2 else margin
    _, wrong, gradient = Objective(trial.model, loss, targeted=False).gradient(start, y)
    dead = ~wrong & ~((gradient != 0) & gradient.isfinite()).flatten(1).any(1)
    if bool(dead.any()):
        yield (
            f"the gradient is zero at the start for {int(dead.sum())} of {len(x)} samples: attacks "
            "that follow it are blind there. Look for a step without a gradient (bpda)"
        )
    if _computes_gradients(trial.model, x[:1]):
        yield (
            "the model computes gradients while it answers: it adapts to its input, and needs an "
            "attack of its own"
        )


def _computes_gradients(model: Model, x: Tensor) -> bool:
    """Whether a forward pass calls autograd."""
    codes = {torch.autograd.grad.__code__, torch.autograd.backward.__code__}
    calls: list[bool] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in codes:
            calls.append(True)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        with torch.no_grad():
            model(x)
    finally:
        sys.setprofile(before)
    return bool(calls)


def _doubts_of_the_end(trial: _Trial) -> list[str]:
    last = trial.attempts[-1] if trial.attempts else None
    if last is None or last.name != "Square" or last.fooled <= 0.002 * last.n:
        return []
    return [
        f"Square, which sees no gradient, broke {last.fooled} samples that the attacks before it "
        "did not: the gradient may be misleading, and the accuracy left too high. Give Square more "
        "queries, or write an adaptive attack"
    ]
