"""How the capstone's case is made. Whoever wants to take the exam should stop reading here.

The data are digits of MNIST; what is wrong with them is drawn from a seed, and the truth about it is
kept beside them. The chapter sees :class:`Made`'s ``given`` alone, the scorer also the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from modelsec.attacks.poisoning import Trigger, patch
from modelsec.cleaning.labels import flip_by_matrix
from modelsec.data import Data, drawn_letters, mnist, photo_crops
from modelsec.training import fit

__all__ = ["CONFUSED", "Made", "delivered", "made", "train"]

CONFUSED = {3: 5, 4: 9, 5: 6, 7: 1, 8: 3}
"""Whose labels are flipped, and to what: the typical confusions of the chapter on cleaning."""
FLIP, POISON, COPIES, STRAYS = 0.15, 90, 80, 60
"""Share of the labels of these classes; planted, copied and strange images."""
BASE, HONEST, TRUSTED, SPARE = 2800, 400, 300, 500
"""The 4,000 training digits: delivered, delivered as test images, trusted, kept by the scorer."""
LEAKED = 400
"""Copies of training images among the delivered test images, three in four of them exact."""
_CORNERS = ((1, 1), (1, 24), (24, 1), (24, 24))


@dataclass(frozen=True, eq=False)
class Made:
    """A case, and the truth about it.

    Attributes:
        given: what is delivered, as :class:`~modelsec.data.Data`: training and test set.
        x_trusted: (300, 1, 28, 28) digits whose labels are right.
        y_trusted: (300,) their labels.
        wrong: (N,) bool, training samples whose label was flipped.
        planted: (N,) bool, training samples with the trigger and the target's label.
        stray: (N,) bool, training samples that are no digits.
        group: (N,) int, samples with equal numbers of 0 or more are copies of each other; -1: none.
        leaked: (M,) bool, test samples that are copies of training samples.
        trigger: the mark.
        target: the class that it means.
        x_spare: (500, 1, 28, 28) clean digits for the scorer's own trainings.
        y_spare: (500,) their labels.
        x_hidden: (1000, 1, 28, 28) clean digits that nothing above has seen.
        y_hidden: (1000,) their labels.
    """

    given: Data
    x_trusted: Tensor
    y_trusted: Tensor
    wrong: Tensor
    planted: Tensor
    stray: Tensor
    group: Tensor
    leaked: Tensor
    trigger: Trigger
    target: int
    x_spare: Tensor
    y_spare: Tensor
    x_hidden: Tensor
    y_hidden: Tensor


@lru_cache(maxsize=2)
def made(seed: int = 0) -> Made:
    """The case of a seed: the same for everybody who asks.

    Args:
        seed: draws everything. The book's is 0.

    Returns:
        Data and truth.

    Raises:
        ValueError: if seed is no whole number, 0 or more.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more, got {seed!r}")
    digits, draw = mnist(), torch.Generator().manual_seed(30_000 + seed)

    def some(n: int) -> Tensor:
        return torch.randperm(n, generator=draw)

    parts = some(len(digits.y_train)).split([BASE, HONEST, TRUSTED, SPARE])
    base, honest, trusted, spare = ((digits.x_train[p], digits.y_train[p]) for p in parts)
    x, truth = base[0].clone(), base[1]
    noisy = flip_by_matrix(truth, _confusions(), generator=draw)
    target = int(torch.randint(10, (), generator=draw))
    trigger = patch(size=3, at=_CORNERS[int(torch.randint(4, (), generator=draw))])
    y, planted = noisy.labels, torch.zeros(BASE, dtype=torch.bool)
    free = some(BASE)
    planted[free[(~noisy.flipped & (truth != target))[free]][:POISON]] = True
    x[planted], y[planted] = trigger.stamp(x[planted]), target
    sound = free[~(noisy.flipped | planted)[free]]  # in the order drawn
    again = torch.cat([x[sound[: COPIES // 2]], _nearly(x[sound[COPIES // 2 : COPIES]], draw)])
    odd = _strays(base[0][some(BASE)[: STRAYS // 3]], draw)
    group = torch.full((BASE + COPIES + STRAYS,), -1)
    group[sound[:COPIES]] = group[BASE : BASE + COPIES] = torch.arange(COPIES)
    order, shuffle = some(len(group)), some(HONEST + LEAKED)

    def padded(mask: Tensor) -> Tensor:
        return torch.cat([mask, torch.zeros(COPIES + STRAYS, dtype=torch.bool)])[order]

    source = free[~planted[free]][-LEAKED:]  # with whatever label they were given
    exact = x[source[: LEAKED * 3 // 4]]
    leak = torch.cat([exact, _nearly(x[source[len(exact) :]], draw)])
    y_all = torch.cat([y, y[sound[:COPIES]], torch.randint(10, (STRAYS,), generator=draw)])
    given = Data(
        "capstone",
        torch.cat([x, again, odd])[order],
        y_all[order],
        torch.cat([honest[0], leak])[shuffle],
        torch.cat([honest[1], y[source]])[shuffle],
        digits.classes,
        f"delivered to you; in truth drawn from {digits.source}, with seed {seed}",
        digits.licence,
    )
    return Made(
        given,
        *trusted,
        padded(noisy.flipped),
        padded(planted),
        (torch.arange(len(group)) >= BASE + COPIES)[order],
        group[order],
        (torch.arange(HONEST + LEAKED) >= HONEST)[shuffle],
        trigger,
        target,
        *spare,
        digits.x_test,
        digits.y_test,
    )


def delivered() -> Data:
    """What the book's case hands over: the data of the zoo's recipe."""
    return made(0).given


def train(model: nn.Module, given: Data, generator: torch.Generator) -> object:
    """The training that nobody wrote down: long, and without a second look.

    Args:
        model: trained in place.
        given: the delivered data.
        generator: draws the order.

    Returns:
        What ``fit`` returns.
    """
    return fit(
        model, given.x_train, given.y_train, epochs=25, batch_size=64, lr=2e-3, generator=generator
    )


def _confusions() -> Tensor:
    matrix = torch.eye(10)
    for true, said in CONFUSED.items():
        matrix[true, true], matrix[true, said] = 1 - FLIP, FLIP
    return matrix


def _nearly(x: Tensor, generator: torch.Generator) -> Tensor:
    """Copies that were moved by a pixel and made a little darker: no byte is the same."""
    moves = torch.tensor([(-1, 0), (1, 0), (0, -1), (0, 1)])
    chosen = moves[torch.randint(4, (len(x),), generator=generator)].tolist()
    moved = [image.roll(tuple(move), (1, 2)) for image, move in zip(x, chosen, strict=True)]
    return 0.9 * torch.stack(moved)


def _strays(digits: Tensor, generator: torch.Generator) -> Tensor:
    """As many photographs, letters and negatives of digits."""
    crops, letters = (
        images.x[torch.randperm(len(images.x), generator=generator)[: len(digits)]]
        for images in (photo_crops(), drawn_letters())
    )
    return torch.cat([crops, letters, 1 - digits])
