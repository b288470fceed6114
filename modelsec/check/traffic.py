"""Graders for the chapter on traffic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require
from modelsec.check.loss import number

__all__ = ["least_cost", "pixels_across", "sticker_step", "whole_tracks"]


@grader("So few pixels decide at 40 metres; at 10 metres there are four times as many across.")
def pixels_across(answer: Any) -> None:
    """Grade a number: how many pixels a sign of 0.6 m covers at 40 m, focal length 1,100 pixels."""
    answer = number(answer)
    for wrong, why in (
        (
            1100 * 40 * 0.6,
            "That grows with the distance; a sign that is farther away looks smaller.",
        ),
        (1100 / 40, "That is for a sign one metre wide. This one is 0.6 metres wide."),
        (40 * 0.6, "The focal length is missing: it turns an angle into pixels."),
        (1100 * 0.6, "That is at a distance of one metre."),
        ((1100 * 0.6 / 40) ** 2, "That is the number of pixels on its area. How many across?"),
    ):
        require(not abs(answer - wrong) <= 0.01 * wrong, why)
    require(
        abs(answer - 16.5) <= 0.5,
        f"{answer:.4g} is not it. By equation (1), pixels = focal length x width / distance.",
    )


@grader("Frames of one approach now stay together, and the test tells about other roads.")
def whole_tracks(solution: Any) -> None:
    """Grade ``f(track (N,), share, generator) -> (N,) bool``: which frames are tested on."""
    sizes = torch.tensor([7, 1, 12, 5, 5, 9, 3, 8, 20, 10])
    names = torch.tensor([40, 3, 77, 12, 5, 900, 18, 2, 61, 33])
    order = torch.randperm(int(sizes.sum()), generator=torch.Generator().manual_seed(0))
    track = names.repeat_interleave(sizes)[order]
    chosen = []
    for seed, share in ((0, 0.3), (1, 0.3), (2, 0.3), (3, 0.5), (0, 0.3)):
        kept = track.clone()
        got = solution(track, share, torch.Generator().manual_seed(seed))
        require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
        require(
            got.dtype == torch.bool and got.shape == track.shape,
            f"Return one bool for each of {len(track)} frames; yours has dtype {got.dtype} and "
            f"shape {tuple(got.shape)}.",
        )
        require(torch.equal(track, kept), "The list of tracks was changed in place.")
        held = {int(name) for name in names if bool(got[track == name].any())}
        split = [name for name in held if not bool(got[track == name].all())]
        require(
            not split,
            f"Track {split[0] if split else ''} has frames on both sides: draw tracks, not frames.",
        )
        require(bool(got.any()), "Nothing is held out.")
        require(
            len(held) == round(share * len(names)),
            f"Of {len(names)} tracks {round(share * len(names))} should be held out for a share of "
            f"{share:g}; yours holds out {len(held)}. Count tracks, not frames.",
        )
        chosen.append(frozenset(held))
    require(
        chosen[0] == chosen[-1],
        "The same generator gave two different splits: draw from the generator that you are given.",
    )
    require(len(set(chosen[:3])) > 1, "Three different seeds gave the same split: draw at random.")


@grader("In a loop, with views drawn anew for each step, this makes the sticker of this chapter.")
def sticker_step(solution: Any) -> None:
    """Grade ``f(paint, where, gradients, step_size) -> paint``: one step up for many views at once."""
    generator = torch.Generator().manual_seed(3)
    paint = torch.rand(3, 6, 6, generator=generator)
    where = torch.zeros(6, 6, dtype=torch.bool)
    where[1:3, 1:5] = True
    gradients = torch.randn(9, 3, 6, 6, generator=generator)
    gradients[0] *= 20  # one view that shouts: its vote counts by its size
    kept, slopes = paint.clone(), gradients.clone()
    got = solution(paint, where, gradients, 0.1)
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(
        got.shape == paint.shape,
        f"Return one sticker of shape {tuple(paint.shape)}, not {tuple(got.shape)}.",
    )
    require(
        torch.equal(paint, kept) and torch.equal(gradients, slopes),
        "An input was changed in place: work on a new tensor.",
    )
    require(
        torch.equal(got[:, ~where], paint[:, ~where]),
        "Something changed beside the sticker. Only pixels inside where may move.",
    )
    require(bool(((got >= 0) & (got <= 1)).all()), "Some colours are outside [0, 1]: clip them.")
    total = gradients.sum(0)
    up = torch.where(where, (paint + 0.1 * total.sign()).clamp(0, 1), paint)
    down = torch.where(where, (paint - 0.1 * total.sign()).clamp(0, 1), paint)
    each = torch.where(where, (paint + 0.1 * gradients.sign().sum(0).sign()).clamp(0, 1), paint)
    mean = torch.where(where, (paint + 0.1 * gradients.sign().mean(0)).clamp(0, 1), paint)
    require(
        not torch.allclose(got, down), "You step down. These gradients are of what should grow."
    )
    for wrong in (each, mean):
        require(
            not torch.allclose(got, wrong) or torch.allclose(got, up),
            "You take signs first and then add them up. The expectation is over gradients: add them "
            "up, then take the sign.",
        )
    raw = torch.where(where, (paint + 0.1 * gradients.mean(0)).clamp(0, 1), paint)
    require(
        not torch.allclose(got, raw),
        "Every pixel should move by step_size: take the sign of the summed gradient.",
    )
    require(
        torch.allclose(got, up, atol=1e-6),
        "Inside the sticker it should be paint + step_size * sign(sum of the gradients), clipped.",
    )


@grader("Probabilities say what is likely. Costs say what to do about it.")
def least_cost(solution: Any) -> None:
    """Grade ``f(probabilities (N, K), cost (K, K)) -> (N,)``: the answers of least expected cost."""
    generator = torch.Generator().manual_seed(4)
    probabilities = torch.rand(40, 5, generator=generator).pow(3)
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    cost = 10 * torch.rand(5, 5, generator=generator) * (1 - torch.eye(5))
    expected = probabilities @ cost  # row: sum over the true class
    got = solution(probabilities.clone(), cost.clone())
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(got.shape == (40,), f"Return one answer a row, shape (40,), not {tuple(got.shape)}.")
    for wrong, why in (
        (probabilities.argmax(1), "That is the likeliest class; the costs play no part in it."),
        (
            (probabilities @ cost.T).argmin(1),
            "Rows and columns of the cost are interchanged: cost[i, j] is for taking an i for a j.",
        ),
        (expected.argmax(1), "That is the dearest answer: look for the least expected cost."),
        (
            (probabilities[:, :, None] * cost).amax(1).argmin(1),
            "You took the worst case over the classes. The expected cost is a sum over them.",
        ),
    ):
        require(not torch.equal(got.long(), wrong), why)
    require(
        torch.equal(got.long(), expected.argmin(1)),
        "For answer j the expected cost is the sum over i of probabilities[i] * cost[i, j]. Take the "
        "j where it is least.",
    )
