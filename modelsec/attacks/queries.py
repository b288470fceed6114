"""What a black-box attacker is left with: a function that answers, and a count of the questions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modelsec.attacks.common import Model, check_counts
from modelsec.training import inference

__all__ = ["BudgetSpent", "Queries", "labels_only", "scores_only"]


class BudgetSpent(RuntimeError):
    """A question was asked that the budget doesn't cover. The model was not asked."""


def scores_only(
    model: Model, *, probabilities: bool = True, decimals: int | None = None
) -> Callable[[Tensor], Tensor]:
    """A model as a service shows it: scores without a gradient, without parameters to read.

    Args:
        model: maps images (N, ...) to logits (N, K).
        probabilities: answer softmax(logits); False answers the logits themselves.
        decimals: round the answer to so many decimals, as many services do; None leaves it exact.

    Returns:
        A plain function from images (N, ...) to scores (N, K), in eval mode whatever mode the
        model is in.
    """

    def answer(x: Tensor) -> Tensor:
        with inference(model), torch.no_grad():
            scores = model(x)
        scores = scores.softmax(1) if probabilities else scores.clone()
        return scores if decimals is None else scores.round(decimals=decimals)

    return answer


def labels_only(model: Model) -> Callable[[Tensor], Tensor]:
    """A model as a strict service shows it: the answer, and nothing of how sure it is.

    Args:
        model: maps images (N, ...) to logits (N, K).

    Returns:
        A plain function from images (N, ...) to labels (N,), int64.
    """

    def answer(x: Tensor) -> Tensor:
        with inference(model), torch.no_grad():
            return model(x).argmax(1)

    return answer


class Queries:
    """A model that counts the images it is shown, and refuses those that a budget doesn't cover.

    The attacks keep to a budget by themselves, for each sample. This is the other side: the bill
    that the service writes, for all samples together.

    Args:
        model: maps images (N, ...) to any answer.
        budget: how many images it answers, together; None counts only.

    Attributes:
        count: images answered so far.

    Raises:
        ValueError: for a budget that is no whole number, or below 1.
    """

    def __init__(self, model: Model, budget: int | None = None) -> None:
        if budget is not None:
            check_counts(budget=budget)
        self.model, self.budget, self.count = model, budget, 0

    def __call__(self, x: Tensor) -> Tensor:
        """The model's answer to (N, ...); BudgetSpent, and no answer, if N is more than is left."""
        if self.budget is not None and self.count + len(x) > self.budget:
            raise BudgetSpent(
                f"{len(x)} images were asked about, {self.budget - self.count} of the budget of "
                f"{self.budget} queries are left"
            )
        answer = self.model(x)
        self.count += len(x)  # a call that failed was not answered
        return answer
