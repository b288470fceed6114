"""The capstone's case as the reader gets it: data, a model, a few trusted images, and no history."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from modelsec.models import ConvNet, fresh
from modelsec.training import Evaluation, evaluate
from modelsec.zoo import load_model
from modelsec.zoo.studies import capstone_case

__all__ = ["EPS", "Case", "case"]

EPS = 0.1
"""How far the case's attackers may move each pixel."""


@dataclass(frozen=True, eq=False)
class Case:
    """A network that is in use, and what came with it.

    Attributes:
        x_train: (N, 1, 28, 28) float in [0, 1], the images it was trained on.
        y_train: (N,) int64, their labels as delivered.
        x_test: (M, 1, 28, 28), the images of its accuracy test.
        y_test: (M,) their labels as delivered.
        x_trusted: (300, 1, 28, 28), digits whose labels you may trust.
        y_trusted: (300,) their labels.
        model: the network, (n, 1, 28, 28) to logits (n, 10), in eval mode.
        seed: which case this is; 0 is the book's.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    x_trusted: Tensor
    y_trusted: Tensor
    model: nn.Module
    seed: int

    @property
    def claimed(self) -> Evaluation:
        """The accuracy that the network was released with."""
        return evaluate(self.model, self.x_test, self.y_test)

    def __repr__(self) -> str:
        return (
            f"Case({self.seed}: {len(self.y_train)} training, {len(self.y_test)} test and "
            f"{len(self.y_trusted)} trusted images; a network)"
        )


def case(seed: int = 0) -> Case:
    """A case. The book's own is 0; a teacher who wants one that nobody has seen takes another seed.

    Args:
        seed: draws what is wrong with the data. The network of seed 0 comes with the package; for
            another seed one is trained, which takes about ten seconds.

    Returns:
        The :class:`Case`, copied: what you do to it does not change the next one.

    Raises:
        ValueError: if seed is no whole number, 0 or more.
    """
    made = capstone_case.made(seed)
    given = made.given
    model = load_model("capstone") if seed == 0 else fresh(ConvNet)
    if seed:
        model.load_state_dict(_trained(seed))
    return Case(
        given.x_train.clone(),
        given.y_train.clone(),
        given.x_test.clone(),
        given.y_test.clone(),
        made.x_trusted.clone(),
        made.y_trusted.clone(),
        model.eval(),
        seed,
    )


@lru_cache(maxsize=2)
def _trained(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = fresh(ConvNet, generator)
    capstone_case.train(model, capstone_case.made(seed).given, generator)
    return model.state_dict()
