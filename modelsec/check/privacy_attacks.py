"""Graders for the chapter on privacy attacks: membership."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from modelsec.attacks.leak import Leak
from modelsec.check.grading import grader, require

__all__ = ["honest_shadows", "members_found", "named_rightly", "offline_score"]


@grader("The same attack names other people where members are rare. The base rate decides.")
def named_rightly(answer: Any) -> None:
    """Grade a number: the share of members among those named, 1 in 100, 10% found, 1% alarms."""
    require(not callable(answer), "Give a number, not a function.")
    single = isinstance(answer, Real) or (isinstance(answer, Tensor) and answer.numel() == 1)
    require(single, f"Give one number; this is of type {type(answer).__name__}.")
    value = float(answer)
    require(0 <= value <= 1, f"It is a share, from 0 to 1, not {value:g}.")
    require(
        abs(value - 0.1 / 0.11) > 5e-3,
        "That holds where half of all candidates are members. Here it is one in a hundred.",
    )
    require(
        abs(value - 0.1) > 2e-3,
        "That is the share of the members that is named. Asked for is the share of members among "
        "those who are named.",
    )
    require(
        abs(value - 0.99) > 2e-3,
        "1% false alarms does not mean that 1% of those named are named wrongly. Count people: of "
        "10,000 candidates, 9,900 are no members.",
    )
    wanted = 0.01 * 0.1 / (0.01 * 0.1 + 0.99 * 0.01)
    require(
        abs(value - wanted) < 1e-3,
        f"{value:.4g} is not it. Of 10,000 candidates 100 are members: how many of them are named, "
        "and how many of the other 9,900?",
    )


@grader("This is the number to report, with the share of false alarms beside it.")
def members_found(solution: Any) -> None:
    """Grade ``f(scores (N,), member (N,), fpr) -> share of members found``."""

    def ask(scores: Tensor, member: Tensor, fpr: float) -> float:
        got = solution(scores.clone(), member.clone(), fpr)
        require(
            hasattr(got, "__float__") and not (isinstance(got, Tensor) and got.numel() != 1),
            f"Return one number, a share, not {type(got).__name__}.",
        )
        return float(got)

    member = torch.arange(200) < 100
    levels = {98.5: 8, 95.5: 5, 94.5: 27, 93.5: 15, -1.0: 45}  # the members' scores
    high = [score for score, count in levels.items() for _ in range(count)]
    ladder = torch.cat([torch.tensor(high), torch.arange(100.0)])
    found = ask(ladder, member, 0.05)
    require(
        abs(found - 0.45) > 1e-6,
        "Members have the higher scores. Does your threshold keep those above it?",
    )
    require(
        abs(found - 0.13) > 1e-6,
        "You are one short. At 5 of 100 false alarms the threshold may stand on the sixth highest "
        "non-member: nobody who scores as high as that is named.",
    )
    require(
        abs(found - 0.4) < 1e-6,
        f"Of the members 0.4 lie above all but 5 of 100 non-members, you say {found:g}. Only the "
        "non-members set the threshold, only the members are counted.",
    )
    few = torch.arange(120) < 20
    scores = torch.cat([torch.full((20,), 95.5), torch.arange(100.0)])
    require(
        abs(ask(scores, few, 0.04) - 1) < 1e-6,
        "20 members lie above all but 4 of 100 non-members. At 4% false alarms all are found; did "
        "you count the false alarms among all records?",
    )
    require(
        abs(ask(scores, few, 0.03)) < 1e-6,
        "The same at 3% false alarms: none is found, as a fourth false alarm would be needed. A "
        "threshold may not go beyond what is allowed.",
    )
    tied = torch.zeros(200)
    require(
        abs(ask(tied, member, 0.05)) < 1e-6,
        "All scores are equal, and you find members. A threshold can't part what is tied: whoever "
        "takes the members takes all non-members too.",
    )
    turn = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    require(
        abs(ask(ladder[turn], member[turn], 0.05) - 0.4) < 1e-6,
        "Your answer depends on the order of the records.",
    )


@grader("Each record is compared with itself: with models that differ in nothing but that record.")
def offline_score(solution: Any) -> None:
    """Grade ``f(phi (N,), known (S, N), inside (S, N)) -> scores (N,)``: offline LiRA."""
    generator = torch.Generator().manual_seed(0)
    n = 400
    difficulty = 4 * torch.randn(n, generator=generator)
    inside = torch.rand(16, n, generator=generator).argsort(0) < 8
    known = difficulty + torch.randn(16, n, generator=generator) + 3 * inside
    member = torch.rand(n, generator=generator) < 0.5
    phi = difficulty + torch.randn(n, generator=generator) + 3 * member

    def ask(phi: Tensor, known: Tensor, inside: Tensor) -> Tensor:
        got = solution(phi.clone(), known.clone(), inside.clone())
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.shape == phi.shape,
            f"One score per record: {tuple(phi.shape)}, not {tuple(got.shape)}.",
        )
        require(not bool(got.isnan().any()), "Some scores are NaN.")
        scores: Tensor = got.double()
        return scores

    got = ask(phi, known, inside)
    auc = Leak(got, member).auc
    require(auc > 0.5, "Your scores are higher for non-members. The surer, the likelier a member.")
    with_others = known + 5 * inside
    require(
        torch.allclose(got, ask(phi, with_others, inside), atol=1e-3),
        "Your scores change with the answers of models that were trained on the record. Offline, "
        "only the others count.",
    )
    shift = 10 * torch.rand(n, generator=generator)
    moved = ask(phi + shift, known + shift, inside)
    require(
        torch.allclose(got, moved, atol=1e-2),
        "When a record is easier for all models, the target included, its score must not change. "
        "Subtract the mean of the models without it, record by record.",
    )
    higher = ask(phi + 1, known, inside)
    require(bool((higher > got).all()), "A surer target must mean a higher score for every record.")
    best = Leak(phi - known.where(~inside, torch.zeros(())).sum(0) / 8, member).auc
    require(
        auc > best - 0.03,
        f"An area under the ROC of {auc:.3f}, where {best:.3f} is possible. Do you divide the sum by "
        "the number of models without the record?",
    )


@grader("No leak, no members found. Test an attack first where there is nothing to find.")
def honest_shadows(solution: Any) -> None:
    """Grade ``f(phi (S, N), inside (S, N), target) -> scores (N,)``: the target is no shadow."""
    generator = torch.Generator().manual_seed(0)
    count, n = 8, 20_000

    def world(leak: float) -> tuple[Tensor, Tensor]:
        halves = torch.rand(count // 2, n, generator=generator) < 0.5
        inside = torch.stack([halves, ~halves], 1).flatten(0, 1)
        hard = 3 * torch.randn(n, generator=generator)
        noise = torch.randn(count, n, generator=generator)
        return hard + noise + leak * inside, inside

    def ask(phi: Tensor, inside: Tensor, target: int) -> Leak:
        got = solution(phi.clone(), inside.clone(), target)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(got.shape == (n,), f"One score per record: ({n},), not {tuple(got.shape)}.")
        require(not bool(got.isnan().any()), "Some scores are NaN.")
        return Leak(got, inside[target])

    quiet, secret = world(0.0)
    for target in (0, 5):
        found = ask(quiet, secret, target).tpr_at(0.01)
        require(
            found.value < 0.02,
            f"No model here knows its members from others, and you find {found.value:.3f} of them "
            "at 0.01 false alarms. Whose answers are in the mean, and is the target among them?",
        )
    loud, secret = world(3.0)
    found = ask(loud, secret, 3).tpr_at(0.01)
    require(
        found.value > 0.4,
        f"Here the models do leak, and you find only {found.value:.3f} of the members at 0.01 false "
        "alarms. Compare the target with the other models that were trained without the record.",
    )
