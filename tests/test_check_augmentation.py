"""Graders of the chapter on augmentation: right answers pass, wrong ones get the sentence that helps."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

# --- shift_each


def by_padding(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    big = F.pad(x, (most,) * 4)
    corner = torch.randint(2 * most + 1, (len(x), 2), generator=generator)
    high, wide = x.shape[2:]
    return torch.stack(
        [image[:, r : r + high, c : c + wide] for image, (r, c) in zip(big, corner.tolist(), strict=True)]
    )  # fmt: skip


def by_rolling(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    rows = []
    for image in x:
        down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
        image = image.roll((down, right), (-2, -1))
        if down:
            image[:, slice(0, down) if down > 0 else slice(down, None)] = 0
        if right:
            image[..., slice(0, right) if right > 0 else slice(right, None)] = 0
        rows.append(image)
    return torch.stack(rows)


def by_torchvision(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    steps = torch.randint(-most, most + 1, (len(x), 2), generator=generator).tolist()
    return torch.stack(
        [v2.functional.affine(image, 0, step, 1, [0.0, 0.0]) for image, step in zip(x, steps, strict=True)]
    )  # fmt: skip


def shift(draw: Any, fill: bool = True) -> Any:
    """A shift whose steps are (down, right) = draw(n, most, generator)."""

    def solution(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
        rows = []
        for image, (down, right) in zip(x, draw(len(x), most, generator), strict=True):
            big = F.pad(image, (9,) * 4) if fill else image.tile(3, 3)
            rows.append(big[:, 9 - down : 18 - down, 9 - right : 18 - right])
        return torch.stack(rows)

    return solution


def steps(n: int, most: int, generator: torch.Generator | None) -> list[list[int]]:
    return torch.randint(-most, most + 1, (n, 2), generator=generator).tolist()


def diagonal(n: int, most: int, generator: torch.Generator) -> list[list[int]]:
    return [[a, a] for a, _ in steps(n, most, generator)]


def exclusive(n: int, most: int, generator: torch.Generator) -> list[list[int]]:
    return torch.randint(-most, most, (n, 2), generator=generator).tolist()


def in_place(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    x.copy_(by_padding(x, most, generator))
    return x


# --- mixup_each


def mixed(
    share_of: Any, partner_of: Any, *, labels_too: bool = True, unmatched: bool = False
) -> Any:
    def solution(x: Tensor, y: Tensor, classes: int, generator: torch.Generator) -> Any:
        share, partner = share_of(len(x), generator), partner_of(len(x), generator)
        images = share[:, None, None, None]
        hot = F.one_hot(y, classes).float()
        other = hot.roll(3, 0) if unmatched else hot[partner]
        targets = share[:, None] * hot + (1 - share[:, None]) * other
        return images * x + (1 - images) * x[partner], targets if labels_too else hot

    return solution


def share(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator)


def shuffled(n: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)


def neighbour(n: int, generator: torch.Generator) -> Tensor:
    return torch.arange(n).roll(1)


def with_lerp(x: Tensor, y: Tensor, classes: int, generator: torch.Generator) -> Any:
    other, hot = x.roll(1, 0), torch.eye(classes)[y]
    s = torch.rand(len(x), 1, generator=generator)
    return torch.lerp(other, x, s[..., None, None]), torch.lerp(hot.roll(1, 0), hot, s)


def sums_wrong(x: Tensor, y: Tensor, classes: int, generator: torch.Generator) -> Any:
    images, targets = with_lerp(x, y, classes, generator)
    return images + 0.2 * x, targets


# --- worst_of


def by_loop(model: Any, x: Tensor, y: Tensor, changes: list[Any]) -> Tensor:
    right = torch.ones(len(x), dtype=torch.bool)
    for change in changes:
        right &= model(change(x)).argmax(1) == y
    return right


def by_stack(model: Any, x: Tensor, y: Tensor, changes: list[Any]) -> Tensor:
    return torch.stack([model(change(x)).argmax(1) == y for change in changes]).all(0)


def as_numbers(model: Any, x: Tensor, y: Tensor, changes: list[Any]) -> Tensor:
    right = [(model(change(x)).argmax(1) == y).int() for change in changes]
    return torch.stack(right).amin(0)


def outcomes(model: Any, x: Tensor, y: Tensor, changes: list[Any]) -> Tensor:
    return torch.stack([model(change(x)).argmax(1) == y for change in changes])


def chained(model: Any, x: Tensor, y: Tensor, changes: list[Any]) -> Tensor:
    right = torch.ones(len(x), dtype=torch.bool)
    for change in changes:
        x = change(x)
        right &= model(x).argmax(1) == y
    return right


def against_itself(model: Any, x: Tensor, y: Tensor, changes: list[Any]) -> Tensor:
    return by_stack(model, x, model(x).argmax(1), changes)


RIGHT: dict[str, list[Any]] = {
    "mixup_floor": [0.5, 1 / 2, torch.tensor(0.5), np.float32(0.5), 0.497],
    "shift_each": [by_padding, by_rolling, by_torchvision, shift(steps)],
    "mixup_each": [mixed(share, shuffled), mixed(share, neighbour), with_lerp],
    "worst_of": [by_loop, by_stack, as_numbers],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "mixup_floor": [
        (0, "two classes are right in part"),
        (math.log(2), "the mean over all shares"),
        (0.25, "one of the two terms"),
        (2.303, "guesses"),
        (0.7213, "bits"),
        (1.0, "1 is not it"),
        (float("nan"), "nan is not it"),
        ("0.5", "type str"),
    ],
    "shift_each": [
        (shift(steps, fill=False), "comes back on the other"),
        (lambda x, most, g: x.roll((1, 1), (2, 3)), "comes back on the other"),
        (shift(lambda n, most, g: steps(1, most, g) * n), "All images moved alike"),
        (shift(diagonal), "draw the two apart"),
        (shift(exclusive), "leaves its upper end out"),
        (shift(lambda n, most, g: steps(n, 2, g)), "With most = 3"),
        (shift(lambda n, most, g: steps(n, most + 1, g)), "moved by 3 pixels"),
        (shift(lambda n, most, g: steps(n, most, None)), "generator=generator"),
        (lambda x, most, g: x.clone(), "Nothing moved"),
        (in_place, "in place"),
        (lambda x, most, g: by_padding(x, most, g)[:, 0], "your result"),
        (lambda x, most, g: 0.5 * by_padding(x, most, g), "no copy"),
        (lambda x, most, g: by_padding(x, most, g).numpy(), "not ndarray"),
    ],
    "mixup_each": [
        (mixed(lambda n, g: share(1, g).expand(n), shuffled), "same share"),
        (mixed(share, shuffled, labels_too=False), "belong together"),
        (mixed(share, shuffled, unmatched=True), "belong together"),
        (mixed(share, lambda n, g: torch.arange(n)), "mixed with themselves"),
        (mixed(lambda n, g: 0.4 + 0.2 * share(n, g), shuffled), "draw them from 0 to 1"),
        (mixed(lambda n, g: torch.rand(n), shuffled), "generator=generator"),
        (sums_wrong, "sum to 1"),
        (lambda x, y, k, g: with_lerp(x, y, k, g)[0], "two things"),
        (lambda x, y, k, g: (x, y), "targets must have shape"),
    ],
    "worst_of": [
        (lambda *args: outcomes(*args).any(0), "some change"),
        (lambda *args: outcomes(*args)[-1], "Only the last change"),
        (lambda *args: outcomes(*args)[0], "make no difference"),
        (lambda *args: outcomes(*args)[1:].all(0), "first change is missing"),
        (lambda *args: ~outcomes(*args).all(0), "Turned round"),
        (lambda *args: outcomes(*args).float().mean(0), "One failure is enough"),
        (lambda *args: outcomes(*args).all(0).float().mean(), "one value for each image"),
        (chained, "apply each change to x itself"),
        (against_itself, "Compare the answers with y"),
    ],
}  # fmt: skip

VALUES = {"mixup_floor"}  # its answer is a number, no function
