"""Graders for the chapter on cleaning: labels, copies, fingerprints."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.check.grading import grader, require
from modelsec.cleaning.labels import find_label_issues, logistic, out_of_fold_probabilities
from modelsec.data import mnist

__all__ = ["fingerprint", "leaked_similarity", "precision_of_flags", "quiet_flips"]


@grader(
    "The rarer the fault, the more of the flagged samples are innocent: look before you delete."
)
def precision_of_flags(answer: Any) -> None:
    """Grade a number: the precision at 1% noise, recall 0.9, and 3% of right labels flagged."""
    require(not callable(answer), "Give a number, not a function.")
    answer = float(answer)
    require(not 1 < answer <= 100, "Give a share between 0 and 1, not a percentage.")
    for wrong, why in (
        (0.9, "That is the recall: which share of the wrong labels is flagged. Turn it round."),
        (0.97, "That is the share of the right labels that are left alone."),
        (
            0.0297 / (0.009 + 0.0297),
            "Is that the share of the flagged that are innocent? Or did you take one wrong label "
            "in ten? It is one in a hundred.",
        ),
        (0.9 / 0.93, "Nearly: there are 99 right labels for each wrong one. Count samples."),
        (0.01, "That is the share before the check; what is it among the flagged?"),
    ):
        require(not abs(answer - wrong) <= 0.002, why)
    right = 0.009 / (0.009 + 0.0297)
    require(
        abs(answer - right) <= 0.004,
        f"{answer:.4g} is not it. Of 10,000 labels 100 are wrong: how many of these are flagged, "
        "and how many of the other 9,900?",
    )


@grader("Whatever is changed, one short string tells. Keep it where the data are not.")
def fingerprint(solution: Any) -> None:
    """Grade ``f(x (N, C, H, W), y (N,)) -> str``: changes with every change, and with nothing else."""
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(300, 1, 6, 6, generator=generator)
    y = torch.randint(10, (300,), generator=generator)
    x[17], y[17], y[40] = x[40], 3, 8  # one image twice, with two labels
    first = solution(x.clone(), y.clone())
    require(isinstance(first, str), f"Return a string, not {type(first).__name__}.")
    require(
        first == solution(x.clone(), y.clone()),
        "Twice the same data, two fingerprints: does a date, a draw or hash() get into yours?",
    )
    strided = (
        x.transpose(2, 3).contiguous().transpose(2, 3)
    )  # the same values, laid out differently
    require(
        first == solution(strided, y.clone()),
        "The same values laid out differently in memory must give the same fingerprint: "
        "use .contiguous() before you take the bytes.",
    )
    middle = x.clone()
    middle[150, 0, 3, 3] = torch.nextafter(middle[150, 0, 3, 3], torch.tensor(2.0))
    tone = middle.clone()
    tone[150, 0, 3, 3] = x[150, 0, 3, 3] + 0.01
    ends, moved, label, swapped = x.clone(), x.clone(), y.clone(), y.clone()
    ends[0, 0, 0, 0], ends[-1, 0, -1, -1] = 0.5, 0.5
    moved[150, 0, 3, 3], moved[150, 0, 3, 4] = x[150, 0, 3, 4], x[150, 0, 3, 3]
    label[150] = (label[150] + 1) % 10
    swapped[17], swapped[40] = y[40], y[17]
    for changed, labels, why in (
        (ends, y, "I changed the first image and the last, and you did not see it."),
        (tone, y, "I changed one pixel in the middle of the data, and you did not see it. "
         "(str(x) leaves out the middle.)"),
        (middle, y, "I changed one pixel by the smallest step of float32, and you did not see it. "
         "Hash the bytes: printing or rounding loses digits."),
        (moved, y, "Two pixels of an image changed places, and you did not see it: sums and means "
         "are no fingerprints."),
        (x, label, "I changed one label, and you did not see it."),
        (x, swapped, "Two labels changed places, and you did not see it: which label goes with "
         "which place?"),
        (x[1:], y[1:], "The first sample is gone, and you did not see it."),
        (torch.cat([x, x[:1]]), torch.cat([y, y[:1]]), "A sample was added twice over, and you "
         "did not see it: a set forgets how often something is in it."),
        (x.view(300, 1, 4, 9), y, "The same bytes in another shape are other images: hash the "
         "shape as well."),
    ):  # fmt: skip
        require(solution(changed.clone(), labels.clone()) != first, why)


@grader("A test image that also trained the model measures its memory. Now you can find it.")
def leaked_similarity(solution: Any) -> None:
    """Grade ``f(test (M, 1, H, W), train (N, 1, H, W)) -> (M,)``: best cosine over shifts up to 1."""
    generator = torch.Generator().manual_seed(8)
    train = torch.zeros(40, 1, 10, 10)
    train[:, :, 2:8, 2:8] = torch.rand(40, 1, 6, 6, generator=generator)
    train = train * (train > 0.5)
    moves = [(d, a) for d in (-1, 0, 1) for a in (-1, 0, 1)]
    test = torch.cat([0.6 * torch.roll(train[i : i + 1], m, (2, 3)) for i, m in enumerate(moves)])
    fresh = torch.zeros(5, 1, 10, 10)
    fresh[:, :, 2:8, 2:8] = torch.rand(5, 1, 6, 6, generator=generator)
    test = torch.cat([test, fresh])
    got = solution(test.clone(), train.clone())
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(
        got.shape == (len(test),),
        f"For {len(test)} test images return {len(test)} numbers; yours has shape {tuple(got.shape)}.",
    )
    got = got.detach().double()
    table = torch.stack([_unit(torch.roll(test, m, (2, 3))) @ _unit(train).T for m in moves])
    wanted = table.amax((0, 2)).double()
    require(
        bool((got <= 1 + 1e-4).all()),
        "Some similarities are above 1: divide by the lengths of both images.",
    )
    require(
        abs(float(got[4]) - 1) <= 1e-3,
        f"The fifth test image is a paler copy of a training image; its similarity should be 1, "
        f"yours is {float(got[4]):.3f}. The cosine does not see brightness.",
    )
    straight = [i for i, move in enumerate(moves) if 0 in move]
    require(
        bool((got[straight] - 1).abs().amax() <= 1e-3),
        "A copy shifted by one pixel down or across was not found: try all shifts, also by -1.",
    )
    require(
        bool((got[:9] - 1).abs().amax() <= 1e-3),
        "A copy shifted down *and* across was not found: there are nine shifts.",
    )
    require(
        torch.allclose(got, wanted, atol=2e-3),
        "The copies are right. For images that are no copies yours differs from the largest "
        "cosine over all training images and nine shifts.",
    )


@grader("Wrong labels that look like doubt are not found. Noise is an accident; this is a choice.")
def quiet_flips(solution: Any) -> None:
    """Grade ``f(probabilities (N, K), y (N,), budget) -> labels (N,)``: wrong ones that are not found.

    The probabilities are out-of-fold, by logistic regression on the true labels of 800 digits.
    """
    small = torch.rand(30, 3, generator=torch.Generator().manual_seed(9)).softmax(1)
    _changed(solution, small, small.argmax(1), 4)
    x, y, p = _case()
    budget = 40
    labels = _changed(solution, p, y, budget)
    found = find_label_issues(_judge(x, labels), labels) & (labels != y)
    share = float(found.sum()) / budget
    require(
        share <= 0.1,
        f"Of your {budget} wrong labels {share:.0%} are found; at most 10% may be. (Of random "
        "ones most are.) For which samples would a wrong label surprise the model least, and "
        "which wrong label?",
    )


@cache
def _case() -> tuple[Tensor, Tensor, Tensor]:
    """800 digits, their labels, and out-of-fold probabilities."""
    digits = mnist()
    x, y = digits.x_train[:800], digits.y_train[:800]
    return x, y, _judge(x, y)


def _judge(x: Tensor, y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return out_of_fold_probabilities(x, y, logistic, generator=generator)


def _changed(solution: Any, p: Tensor, y: Tensor, budget: int) -> Tensor:
    labels = solution(p.clone(), y.clone(), budget)
    require(isinstance(labels, Tensor), f"Return a tensor, not {type(labels).__name__}.")
    require(
        labels.shape == y.shape and not labels.is_floating_point() and labels.dtype != torch.bool,
        f"Return all {len(y)} labels, as integers: the changed ones among the unchanged.",
    )
    require(
        int(labels.min()) >= 0 and int(labels.max()) < p.shape[1],
        f"Labels must be classes, 0 to {p.shape[1] - 1}.",
    )
    different = int((labels != y).sum())
    require(
        different == budget,
        f"Exactly {budget} labels must be wrong; of yours {different} are.",
    )
    whole: Tensor = labels.long()
    return whole


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.flatten(1), dim=1)
