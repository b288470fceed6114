"""Graders of the chapter on traffic: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import torch


def by_unique(track, share, generator):
    names = track.unique()
    held = names[torch.randperm(len(names), generator=generator)[: round(share * len(names))]]
    return torch.isin(track, held)


def by_inverse(track, share, generator):
    _, number = track.unique(return_inverse=True)
    m = int(number.max()) + 1
    chosen = torch.zeros(m, dtype=torch.bool)
    chosen[torch.rand(m, generator=generator).argsort()[: round(share * m)]] = True
    return chosen[number]


def by_loop(track, share, generator):
    names = sorted(set(track.tolist()))
    order = torch.randperm(len(names), generator=generator).tolist()
    held = {names[k] for k in order[: round(share * len(names))]}
    return torch.tensor([name in held for name in track.tolist()])


def frames_at_random(track, share, generator):
    return torch.rand(len(track), generator=generator) < share


def without_generator(track, share, generator):
    return by_unique(track, share, None)


def always_the_first(track, share, generator):
    names = track.unique()
    return torch.isin(track, names[: round(share * len(names))])


def by_frames_counted(track, share, generator):
    names, held, frames = track.unique(), [], 0
    for k in torch.randperm(len(names), generator=generator).tolist():
        if frames < share * len(track):
            held.append(names[k])
            frames += int((track == names[k]).sum())
    return torch.isin(track, torch.stack(held[:2]))


def step(paint, where, gradients, size):
    moved = (paint + size * gradients.sum(0).sign()).clamp(0, 1)
    return torch.where(where, moved, paint)


def step_by_mask(paint, where, gradients, size):
    return (paint + where * size * torch.sign(gradients.mean(0))).clamp(0, 1)


def step_by_index(paint, where, gradients, size):
    result = paint.clone()
    result[:, where] += size * gradients.sum(0).sign()[:, where]
    return result.clamp_(0, 1)


def step_in_place(paint, where, gradients, size):
    paint[:, where] += size * gradients.sum(0).sign()[:, where]
    return paint.clamp_(0, 1)


def least(probabilities, cost):
    return (probabilities @ cost).argmin(1)


def least_by_loop(probabilities, cost):
    answers = []
    for row in probabilities:
        answers.append(
            min(range(len(cost)), key=lambda j, row=row: float((row * cost[:, j]).sum()))
        )
    return torch.tensor(answers)


def least_in_numpy(probabilities, cost):
    return torch.from_numpy(np.einsum("ni,ij->nj", probabilities.numpy(), cost.numpy()).argmin(1))


RIGHT: dict[str, list[Any]] = {
    "pixels_across": [16.5, 1100 * 0.6 / 40, 16.6],
    "whole_tracks": [by_unique, by_inverse, by_loop],
    "sticker_step": [step, step_by_mask, step_by_index],
    "least_cost": [least, least_by_loop, least_in_numpy],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "pixels_across": [
        (27.5, "one metre wide"),
        (24, "focal length is missing"),
        (660, "at a distance of one metre"),
        (272.25, "How many across"),
        (26400, "looks smaller"),
        (3, "is not it"),
    ],
    "whole_tracks": [
        (frames_at_random, "draw tracks, not frames"),
        (without_generator, "generator that you are given"),
        (always_the_first, "draw at random"),
        (by_frames_counted, "Count tracks, not frames"),
        (lambda track, share, generator: torch.zeros(len(track), dtype=torch.bool), "Nothing is"),
        (lambda track, share, generator: by_unique(track, share, generator).long(), "one bool"),
    ],
    "sticker_step": [
        (step_in_place, "changed in place"),
        (lambda p, w, g, s: (p + s * g.sum(0).sign()).clamp(0, 1), "beside the sticker"),
        (lambda p, w, g, s: torch.where(w, p + s * g.sum(0).sign(), p), "clip them"),
        (lambda p, w, g, s: step(p, w, -g, s), "step down"),
        (lambda p, w, g, s: step(p, w, g.sign(), s), "take signs first"),
        (lambda p, w, g, s: torch.where(w, (p + s * g.mean(0)).clamp(0, 1), p), "Every pixel"),
        (lambda p, w, g, s: step(p, w, g[:1], s), "sum of the gradients"),
    ],
    "least_cost": [
        (lambda p, c: p.argmax(1), "likeliest class"),
        (lambda p, c: (p @ c.T).argmin(1), "interchanged"),
        (lambda p, c: (p @ c).argmax(1), "dearest"),
        (lambda p, c: (p[:, :, None] * c).amax(1).argmin(1), "worst case"),
        (lambda p, c: p @ c, "one answer a row"),
    ],
}

VALUES = {"pixels_across"}
