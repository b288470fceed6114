"""Graders for the chapter on the background."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.check.grading import grader, require
from modelsec.threat import ThreatModel

__all__ = ["keeps_to", "smallest_eps", "threat_card", "violations"]

# case -> (what is violated, when the attacker acts, why)
_CASES = {
    "A": (
        "integrity",
        "deployment",
        "The trained filter stays as it is. One mail at a time gets an answer that suits the "
        "sender.",
    ),
    "B": (
        "availability",
        "training",
        "Labels are changed before the model is fitted, and afterwards it is of no use to anybody.",
    ),
    "C": (
        "privacy",
        "deployment",
        "The finished model is asked, and tells something about a patient; no answer is made wrong.",
    ),
    "D": (
        "integrity",
        "training",
        "The stickers are planted in the training data; the model works, except where the attacker "
        "wants it to fail.",
    ),
    "E": (
        "privacy",
        "deployment",
        "The finished model is only asked. What leaks is the model itself; NIST files extraction "
        "under privacy.",
    ),
    "F": (
        "availability",
        "deployment",
        "The answers are right, but the others don't get theirs in time.",
    ),
}


@grader("You can read an incident report now: first what was violated, then when.")
def violations(answer: Any) -> None:
    """Grade a dict: case "A" to "F" -> (what is violated, the stage at which the attacker acts)."""
    require(isinstance(answer, dict), "Give a dictionary: {'A': ('integrity', 'training'), ...}.")
    if any(
        value is ... or (isinstance(value, tuple) and ... in value) for value in answer.values()
    ):
        raise NotImplementedError
    for case, (violated, stage, why) in _CASES.items():
        require(case in answer, f"Case {case} is missing.")
        given = answer[case]
        require(
            isinstance(given, tuple | list) and len(given) == 2,
            f"Case {case} needs two words: (what is violated, stage).",
        )
        one, two = (str(word).strip().lower() for word in given)
        require(
            one in {"integrity", "availability", "privacy"},
            f"Case {case}: NIST's three words are integrity, availability and privacy, not {one!r}.",
        )
        require(
            two in {"training", "deployment"},
            f"Case {case}: the stage is training or deployment, not {two!r}.",
        )
        require(two == stage, f"Case {case} does not happen at {two}. {why}")
        require(one == violated, f"Case {case} is not a matter of {one} in the first place. {why}")


@grader("With this card a tester knows what to try, and what would be a different attack.")
def threat_card(card: Any) -> None:
    """Grade a ThreatModel: the card thief who sees accepted or declined, and has 20 tries."""
    require(isinstance(card, ThreatModel), "Give a ThreatModel(goal=..., knowledge=..., ...).")
    require(
        card.stage == "deployment",
        "The model is trained and in use when she acts: the stage is deployment.",
    )
    require(
        card.goal != "poisoning",
        "Nothing in the scenario says that her payments are trained on: that would be poisoning.",
    )
    require(
        card.goal in {"evasion", "targeted evasion"},
        f"Her goal is one wrong answer of the model for her own input, not {card.goal}.",
    )
    require(
        card.knowledge != "scores",
        "She sees accepted or declined, no number: that is less than scores.",
    )
    require(
        card.knowledge == "labels",
        f"She has seen more, or less, than {card.knowledge!r} says. What comes back to her after "
        "each try?",
    )
    require(
        not card.norms,
        "A payment has an amount, a time and a shop. No norm of pixels measures what she may change: "
        "leave norms empty and say it in cost.",
    )
    require("20" in card.cost, "The card should say what she can spend: 20 tries. Put it in cost.")


@grader("Now nobody can sell you a stronger attack that only breaks the rules.")
def keeps_to(solution: Any) -> None:
    """Grade ``f(x, x_adv, eps, norm) -> (N,) bool``: inside the ball (linf, l2) and the box."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(6, 1, 4, 4, generator=generator) * 0.5 + 0.25  # far from the walls
    step = torch.full_like(x, 0.125)  # a power of two: x + step - x is exact enough
    step[:, :, ::2] *= -1
    corner = torch.zeros_like(x)
    corner[:, :, 0, 0] = -0.125
    one = torch.ones(6, dtype=torch.bool)
    cases = [
        ("linf", 0.125, x + step, one, "Every pixel moved by exactly eps: that is allowed."),
        ("linf", 0.125, x + 1.02 * step, ~one, "Every pixel moved by a little more than eps."),
        ("linf", 0.125, x + 1.02 * corner, ~one, "One pixel went down by more than eps: look at "
         "the size of the change, not at its sign."),
        ("l2", 0.5, x + step, one, "16 pixels moved by 0.125: the length of that is 0.5, which "
         "is allowed."),
        ("l2", 0.5, x + 1.02 * step, ~one, "16 pixels moved by 0.1275: the length of that is 0.51."),
        ("l2", 0.25, x + corner, one, "One pixel moved by 0.125, so the length is 0.125."),
    ]  # fmt: skip
    for norm, eps, adv, wanted, why in cases:
        _compare(
            solution(x.clone(), adv.clone(), eps, norm), wanted, f"For {norm}, eps {eps}: {why}"
        )
    mixed = torch.where(torch.arange(6)[:, None, None, None] % 2 == 0, x + step, x + 2 * step)
    _compare(
        solution(x.clone(), mixed, 0.125, "linf"),
        torch.arange(6) % 2 == 0,
        "Some samples keep to the ball and some don't: answer for each sample on its own.",
    )
    wall = torch.full_like(x, 0.95)
    outside = torch.where(torch.arange(6)[:, None, None, None] < 3, 0.05 - step.abs(), 1.05)
    _compare(
        solution(torch.where(outside < 0.5, 0.05, wall), outside, 0.2, "linf"),
        ~one,
        "The changes are small enough, but pixels are below 0 or above 1: that is no image.",
    )
    _compare(
        solution(x.clone(), torch.full_like(x, torch.nan), 0.125, "linf"),
        ~one,
        "An image of NaN keeps to nothing. (Every comparison with NaN is False.)",
    )


@grader("That is a minimum-norm attack in its simplest form; a later chapter has better ones.")
def smallest_eps(solution: Any) -> None:
    """Grade ``f(model, x, y, grid) -> (N,)``: first eps of the grid that flips, 0 or inf."""
    for seed, grid in ((6, (0.02, 0.05, 0.1, 0.2)), (7, (0.03, 0.08, 0.15))):
        model, x, y, exact = _linear(seed, grid)
        got = solution(model, x.clone(), y.clone(), grid)
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.shape == y.shape, f"For {len(y)} images return ({len(y)},), not {tuple(got.shape)}."
        )
        got = got.detach().double()
        require(not got.isnan().any(), "Some entries are NaN.")
        wrong = exact < 0
        require(
            bool((got[wrong] == 0).all()),
            "Some images are read wrongly without any attack: for those the answer is 0.",
        )
        never = exact > grid[-1]
        require(
            bool((got[never] == math.inf).all()),
            f"Some images stay right up to {grid[-1]}, the largest of the grid: for those the answer "
            "is infinity, not a number that flips nothing.",
        )
        allowed = torch.tensor([0.0, *grid, math.inf]).double()
        require(
            bool((got[:, None] - allowed).abs().nan_to_num(0).amin(1).max() < 1e-6),
            f"Some entries are no member of the grid {grid}: return the eps, not its index.",
        )
        for i, radius in enumerate(exact.tolist()):
            wanted = next((eps for eps in grid if eps > radius), math.inf) if radius >= 0 else 0.0
            require(
                math.isclose(float(got[i]), wanted, abs_tol=1e-6),
                f"This image flips from {radius:.3f} on, so the first of {grid} that is enough is "
                f"{wanted:g}; yours is {float(got[i]):g}.",
            )


def _linear(seed: int, grid: tuple[float, ...]) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model, images, labels, and each image's exact radius; negative: read wrongly.

    An attack of size eps lowers a linear model's margin by eps |w|_1 and no more. So an image at
    distance r along the signs of w, from grey, which is on the boundary, has the radius r. The way
    back to grey stays inside [0, 1]. No radius lies near a member of the grid.
    """
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(36, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 36, generator=generator))
        w = layer.weight[1] - layer.weight[0]
        layer.bias.copy_(torch.stack([w.sum() / 2, torch.tensor(0.0)]))
    radius = torch.rand(200, generator=generator) * 0.3 - 0.05
    clear = torch.stack([(radius - eps).abs() > 0.004 for eps in (0.0, *grid)]).all(0)
    radius = radius[clear][:80]
    y = torch.randint(2, radius.shape, generator=generator)
    noise = 0.05 * torch.randn(len(radius), 36, generator=generator)
    noise -= (noise @ w)[:, None] * w / (w @ w)  # moves no image towards the boundary
    x = 0.5 + ((2 * y - 1) * radius)[:, None] * w.sign() + noise
    model = nn.Sequential(nn.Flatten(), layer).eval()
    return model, x.clamp(0, 1).view(-1, 1, 6, 6), y, radius


def _compare(got: Any, wanted: Tensor, why: str) -> None:
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(
        got.shape == wanted.shape,
        f"Return one answer per sample, shape {tuple(wanted.shape)}; yours has {tuple(got.shape)}.",
    )
    require(got.dtype == torch.bool, f"Return True or False for each sample, not {got.dtype}.")
    require(torch.equal(got, wanted), f"{why} You answered {got.tolist()}.")
