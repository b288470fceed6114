"""Graders of the chapter on cleaning: right answers pass, wrong ones are told why."""

import hashlib
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.cleaning import sample_hash

# --- fingerprint


def by_bytes(x: Tensor, y: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(x.shape)).encode())
    for tensor in (x, y):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def sample_by_sample(x: Tensor, y: Tensor) -> str:
    lines = [f"{sample_hash(image)} {label}" for image, label in zip(x, y.tolist(), strict=True)]
    return hashlib.md5("\n".join(lines).encode(), usedforsecurity=False).hexdigest()


def by_lists(x: Tensor, y: Tensor) -> str:
    return hashlib.sha512(repr((x.tolist(), y.tolist())).encode()).hexdigest()


def digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


calls = iter(range(10_000))

# --- leaked_similarity


def by_rolls(test: Tensor, train: Tensor) -> Tensor:
    rows = F.normalize(train.flatten(1), dim=1)
    best = torch.full((len(test),), -1.0)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            moved = F.normalize(torch.roll(test, (down, across), (2, 3)).flatten(1), dim=1)
            best = torch.maximum(best, (moved @ rows.T).amax(1))
    return best


def moving_the_train_images(test: Tensor, train: Tensor) -> Tensor:
    padded = F.pad(train, (1, 1, 1, 1))
    views = [padded[:, :, i : i + 10, j : j + 10] for i in range(3) for j in range(3)]
    many = torch.cat(views).flatten(1)
    return F.cosine_similarity(test.flatten(1)[:, None], many[None], dim=2).amax(1).double()


def image_by_image(test: Tensor, train: Tensor) -> Tensor:
    def length(a: Tensor) -> Tensor:
        return (a * a).sum().sqrt()

    moves = [(d, a) for d in (-1, 0, 1) for a in (-1, 0, 1)]
    views = [[torch.roll(image, m, (1, 2)) for m in moves] for image in test]
    return torch.tensor(
        [max((v * t).sum() / length(v) / length(t) for v in nine for t in train) for nine in views]
    )


def over(moves: list[tuple[int, int]]) -> Any:
    def solve(test: Tensor, train: Tensor) -> Tensor:
        rows = F.normalize(train.flatten(1), dim=1)
        views = [torch.roll(test, move, (2, 3)).flatten(1) for move in moves]
        return torch.stack([F.normalize(v, dim=1) @ rows.T for v in views]).amax((0, 2))

    return solve


PLUS = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]

# --- quiet_flips


def runner_up(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    own = p.gather(1, y[:, None])[:, 0]
    others = p.scatter(1, y[:, None], -1.0)
    return own - others.amax(1), others.argmax(1)


def doubtful(p: Tensor, y: Tensor, budget: int) -> Tensor:
    margin, other = runner_up(p, y)
    chosen = margin.argsort()[:budget]
    y[chosen] = other[chosen]
    return y


def likeliest_lie(p: Tensor, y: Tensor, budget: int) -> Tensor:
    others = p.clone()
    others[torch.arange(len(y)), y] = 0
    chosen = others.amax(1).topk(budget).indices
    labels = y.clone()
    labels[chosen] = others[chosen].argmax(1)
    return labels


def in_numpy(p: Tensor, y: Tensor, budget: int) -> Tensor:
    margin, other = (t.numpy() for t in runner_up(p, y))
    labels, chosen = y.numpy().copy(), np.argpartition(margin, budget)[:budget]
    labels[chosen] = other[chosen]
    return torch.from_numpy(labels)


def at_random(p: Tensor, y: Tensor, budget: int) -> Tensor:
    chosen = torch.randperm(len(y))[:budget]
    return y.index_add(0, chosen, torch.ones_like(chosen)) % p.shape[1]


def the_surest(p: Tensor, y: Tensor, budget: int) -> Tensor:
    margin, other = runner_up(p, y)
    chosen = margin.argsort(descending=True)[:budget]
    y[chosen] = other[chosen]
    return y


def doubtful_but_absurd(p: Tensor, y: Tensor, budget: int) -> Tensor:
    chosen = runner_up(p, y)[0].argsort()[-300:][:budget]
    y[chosen] = p[chosen].argmin(1)
    return y


RIGHT: dict[str, list[Any]] = {
    "precision_of_flags": [
        0.009 / (0.009 + 0.0297), 90 / (90 + 297), 0.2326, torch.tensor(0.2326), np.float32(0.2326),
    ],
    "fingerprint": [by_bytes, sample_by_sample, by_lists],
    "leaked_similarity": [by_rolls, moving_the_train_images, image_by_image],
    "quiet_flips": [doubtful, likeliest_lie, in_numpy],
}  # fmt: skip

WRONG: dict[str, list[tuple[Any, str]]] = {
    "precision_of_flags": [
        (0.9, "That is the recall"),
        (0.97, "left alone"),
        (0.769, "one in a hundred"),
        (0.9677, "99 right labels for each wrong one"),
        (0.7674, "innocent"),
        (0.01, "before the check"),
        (23, "not a percentage"),
        (0.5, "Of 10,000 labels 100 are wrong"),
        (math.nan, "nan is not it"),
    ],
    "fingerprint": [
        (lambda x, y: by_bytes(x, y).encode(), "not bytes"),
        (lambda x, y: by_bytes(x, y) + str(next(calls)), "Twice the same data"),
        (lambda x, y: digest(str(x), y.tolist()), "leaves out the middle"),
        (lambda x, y: digest(x.mul(100).round().tolist(), y.tolist()), "smallest step"),
        (lambda x, y: digest(x.sum((1, 2, 3)).mul(100).round().tolist(), y.tolist()), "smallest"),
        (lambda x, y: digest(x.flatten(1).sort(1).values.tolist(), y.tolist()), "no fingerprints"),
        (lambda x, y: digest(x.tolist()), "changed one label"),
        (lambda x, y: digest(x.tolist(), y.bincount().tolist()), "Two labels changed places"),
        (lambda x, y: digest(x[1:-1].tolist(), y.tolist()), "the first image and the last"),
        (
            lambda x, y: digest(sorted({(sample_hash(a), int(b)) for a, b in zip(x, y, strict=True)})),
            "Two labels changed places",
        ),
        (
            lambda x, y: digest(
                list(dict.fromkeys((sample_hash(a), int(b)) for a, b in zip(x, y, strict=True)))
            ),
            "a set forgets",
        ),
        (lambda x, y: digest(x.flatten().tolist(), y.tolist()), "another shape"),
        (lambda x, y: digest(bytes(x.untyped_storage()), y.tolist()), "laid out differently"),
    ],
    "leaked_similarity": [
        (over([(0, 0)]), "shifted by one pixel down or across"),
        (over([(0, 0), (1, 0), (0, 1), (1, 1)]), "also by -1"),
        (over(PLUS), "down *and* across"),
        (lambda test, train: by_rolls(test, train).amax(), "yours has shape ()"),
        (lambda test, train: by_rolls(train, test), "yours has shape (40,)"),
        (lambda test, train: by_rolls(test, train).numpy(), "not ndarray"),
        (lambda test, train: test.flatten(1) @ train.flatten(1).T @ torch.ones(40), "above 1"),
        (lambda test, train: -torch.cdist(test.flatten(1), train.flatten(1)).amin(1), "paler copy"),
        (lambda test, train: by_rolls(test, train).where(by_rolls(test, train) > 0.999, 0.0),
         "For images that are no copies"),
    ],
    "quiet_flips": [
        (at_random, "surprise the model least"),
        (the_surest, "surprise the model least"),
        (doubtful_but_absurd, "surprise the model least"),
        (lambda p, y, budget: y, "Exactly 4 labels must be wrong; of yours 0 are"),
        (lambda p, y, budget: doubtful(p, y, budget + 1), "of yours 5 are"),
        (lambda p, y, budget: runner_up(p, y)[0].argsort()[:budget], "Return all 30 labels"),
        (lambda p, y, budget: y + 1, "classes, 0 to 2"),
        (lambda p, y, budget: y.tolist(), "not list"),
    ],
}  # fmt: skip

VALUES = {"precision_of_flags"}  # its answer is a number, no function
