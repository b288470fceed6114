"""Graders for the chapter on cleaning: planted backdoors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require

__all__ = ["planted_share", "quiet_poison", "spectral_score"]


@grader("A rate over the whole training set hides how much of one class is poison.")
def planted_share(answer: Any) -> None:
    """Grade a number: the share of the target's class when 200 of 4,000 images join its 400."""
    require(not callable(answer), "Give a number, not a function.")
    answer = float(answer)
    require(not 1 < answer <= 100, "Give a share between 0 and 1, not a percentage.")
    for wrong, why in (
        (200 / 4000, "That is the share of the whole training set; ask for that of one class."),
        (200 / 400, "Nearly: the planted images are in the class as well, so it has grown."),
        (400 / 600, "That is the share of the clean images; the rest is planted."),
    ):
        require(not abs(answer - wrong) <= 0.004, why)
    require(
        abs(answer - 1 / 3) <= 0.004,
        f"{answer:.4g} is not it. How many images carry the target's label after the attack, and "
        "how many of them are planted?",
    )


@grader("The whole method fits in four lines: centre, decompose, project, square.")
def spectral_score(solution: Any) -> None:
    """Grade ``f(features (n, d)) -> scores (n,)``: tau of one class."""
    generator = torch.Generator().manual_seed(6)
    for n, d in ((60, 8), (9, 20)):  # the second has more features than samples
        features = torch.randn(n, d, generator=generator) * torch.arange(d, 0, -1) + 7
        centred = (features - features.mean(0)).double()
        u, _, v = torch.linalg.svd(centred, full_matrices=False)
        tau = (centred @ v[0]) ** 2
        seen = features.clone()
        got = _scores(solution(seen), n)
        require(torch.equal(seen, features), "Your function changed the features: copy them first.")
        for wrong, why in (
            (tau.sqrt(), "That is |(R(x_i) - R_mean) . v|, not its square."),
            (centred @ v[0], "Those are the projections; square them: both ends are suspicious."),
            (-centred @ v[0], "Those are the projections; square them: both ends are suspicious."),
            ((features.double() @ v[0]) ** 2, "v is right, but project the *centred* features."),
            (u[:, 0] ** 2, "That is u squared; multiply u by its singular value, or project on v."),
            ((centred @ v[-1]) ** 2, "That is the direction of least variance: take the first."),
            (centred.norm(dim=1) ** 2, "That is the whole length; only its part along v counts."),
            (
                (features.double() @ torch.linalg.svd(features.double()).Vh[0]) ** 2,
                "Centre first: else the largest direction is just where the mean lies.",
            ),
        ):
            require(not torch.allclose(got, wrong, rtol=1e-3, atol=1e-3), why)
        require(
            torch.allclose(got, tau, rtol=1e-3, atol=1e-3),
            f"The first sample's score is {float(tau[0]):.4f}, yours is {float(got[0]):.4f}. Is v "
            "the right singular vector of the largest singular value, of length 1?",
        )


@grader("You made the loud directions quiet, and the poison was the loudest thing left.")
def quiet_poison(solution: Any) -> None:
    """Grade ``f(features (n, d), clean (m, d)) -> scores (n,)`` by the AUROC where variance hides."""
    # imported late: grading a number needs no scikit-learn
    from sklearn.metrics import roc_auc_score

    for seed, share in ((0, 0.1), (1, 0.05), (2, 0.2)):
        features, clean, truth = _hidden(seed, share)
        got = _scores(solution(features.clone(), clean.clone()), len(features))
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
        moved = _scores(solution(features[order], clean.clone()), len(features))
        require(
            torch.allclose(moved, got[order], rtol=1e-3, atol=1e-4),
            "Your scores depend on the order of the samples.",
        )
        auroc = float(roc_auc_score(truth, got))
        said = f"With {share:.0%} poison your scores have an AUROC of {auroc:.2f}"
        require(auroc >= 0.1, f"{said}: the order is right, the sign is wrong. Turn them round.")
        require(
            auroc >= 0.95,
            f"{said}; 0.95 is asked for. In which directions does the clean sample vary? Make "
            "those small in the features, before you look for the largest direction.",
        )


def _hidden(seed: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """A class (400, 12) whose poison lies in a quiet direction, 60 clean samples, the truth.

    A random rotation mixes the directions, so that rescaling one feature after the other is of
    no use.
    """
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([20.0, 12, 12, 8, 8, 5, 5, 3, 3, 1, 1, 1])
    features, clean = (torch.randn(n, 12, generator=generator) * size for n in (400, 60))
    truth = torch.arange(400) < round(400 * share)
    features[truth, 10] += 7
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    mean = 3 * torch.randn(12, generator=generator)
    return features @ rotation + mean, clean @ rotation + mean, truth


def _scores(scores: Any, n: int) -> Tensor:
    require(isinstance(scores, Tensor), f"Return a tensor, not {type(scores).__name__}.")
    require(
        scores.shape == (n,),
        f"For {n} samples return {n} scores, shape ({n},); yours has shape {tuple(scores.shape)}.",
    )
    checked: Tensor = scores.detach().double()
    require(bool(checked.isfinite().all()), "Some scores are NaN or infinite.")
    return checked
