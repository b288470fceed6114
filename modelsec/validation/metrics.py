"""How good, class by class, and how sure: the confusion matrix, its rows and columns, k-fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelsec.intervals import Proportion
from modelsec.tables import Table
from modelsec.training import Evaluation, Model, inference

__all__ = ["CrossValidation", "class_report", "confusion", "cross_validate", "logits"]

Train = Callable[[Tensor, Tensor, int], nn.Module]
"""(x, y, fold) -> a trained model."""


def logits(model: Model, x: Tensor, *, batch_size: int = 500) -> Tensor:
    """What a model answers, without a gradient and in eval mode.

    Args:
        model: maps (N, ...) to logits (N, K).
        x: (N, ...) inputs, on the model's device; at least one.
        batch_size: samples per batch.

    Returns:
        (N, K) logits.

    Raises:
        ValueError: for no input, or if the model's answers are not (N, K).
    """
    if not len(x):
        raise ValueError("x must hold at least one input, got none")
    with inference(model), torch.no_grad():
        answers = [model(batch) for batch in x.split(batch_size)]
    found = torch.cat(answers)
    if found.dim() != 2 or len(found) != len(x):
        raise ValueError(
            f"the model must return logits ({len(x)}, K) for {len(x)} inputs, got "
            f"{tuple(found.shape)}"
        )
    return found


def confusion(y: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """The confusion matrix: entry (i, j) counts the samples of class i that were taken for a j.

    Args:
        y: (N,) true labels, integers in 0..classes-1.
        predicted: (N,) predicted ones.
        classes: K.

    Returns:
        (K, K) int64 counts.

    Raises:
        ValueError: if the two are not (N,) each, or a label is out of range.
        TypeError: for labels that are no integers.
    """
    for name, labels in (("y", y), ("predicted", predicted)):
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"{name} must hold integer class indices, got {labels.dtype}")
        if labels.dim() != 1 or labels.shape != y.shape:
            raise ValueError(
                f"y and predicted must both be (N,), got {tuple(y.shape)} and "
                f"{tuple(predicted.shape)}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"{name} must lie in 0..{classes - 1}, got {int(labels.min())} to "
                f"{int(labels.max())}"
            )
    cells = y.long() * classes + predicted.long()
    return cells.bincount(minlength=classes * classes).view(classes, classes)


def class_report(y: Tensor, predicted: Tensor, classes: Sequence[str]) -> Table:
    """Precision and recall of every class, with their intervals.

    Precision: of the samples that were taken for the class, the share that belongs to it. Recall:
    of the samples that belong to it, the share that was taken for it. F1 is their harmonic mean.

    Args:
        y: (N,) true labels, integers.
        predicted: (N,) predicted ones.
        classes: K class names.

    Returns:
        A row per class: class, precision and recall (each a Proportion, or None where there is
        nothing to count), F1 (0 if no sample was found), n.

    Raises:
        ValueError: if the two are not (N,) each, or a label is out of range.
        TypeError: for labels that are no integers.
    """
    counts = confusion(y, predicted, len(classes))
    rows = Table()
    for k, name in enumerate(classes):
        hits, taken, there = (int(v) for v in (counts[k, k], counts[:, k].sum(), counts[k].sum()))
        rows.append(
            {
                "class": name,
                "precision": Proportion(hits, taken) if taken else None,
                "recall": Proportion(hits, there) if there else None,
                "F1": round(2 * hits / (taken + there), 4) if taken + there else 0.0,
                "n": there,
            }
        )
    return rows


@dataclass(frozen=True)
class CrossValidation:
    """What k-fold cross-validation measured.

    Attributes:
        folds: the accuracy of each fold's model on the fold that it has not seen.
        logits: (N, K) out of fold: every sample's come from the model that has not seen it.
        y: (N,) the labels.
    """

    folds: tuple[Evaluation, ...]
    logits: Tensor
    y: Tensor

    @property
    def correct(self) -> Tensor:
        """(N,) bool: where the model that had not seen the sample was right."""
        return self.logits.argmax(1) == self.y

    @property
    def pooled(self) -> Proportion:
        """The share of all samples that were right. Its interval takes them for independent."""
        return Proportion(int(self.correct.sum()), len(self.y))

    @property
    def spread(self) -> float:
        """The standard deviation of the folds' accuracies."""
        return float(torch.tensor([f.value for f in self.folds], dtype=torch.float64).std())


def cross_validate(
    train: Train, x: Tensor, y: Tensor, *, folds: int = 5, seed: int = 0
) -> CrossValidation:
    """K-fold: train on all folds but one, test on that one, and so on around.

    Args:
        train: called with (x, y, fold), the part to train on and the fold's number; returns the
            trained model.
        x: (N, ...) inputs.
        y: (N,) integer labels; the folds hold the same share of every class.
        folds: how many, at least 2 and at most the size of the smallest class.
        seed: shuffles the samples before they are dealt out.

    Returns:
        The :class:`CrossValidation`.

    Raises:
        ValueError: for too few or too many folds, or lengths that differ.
    """
    from sklearn.model_selection import StratifiedKFold  # slow to import

    smallest = int(y.bincount()[y.unique()].min()) if len(y) else 0
    if len(x) != len(y) or not 2 <= folds <= smallest:
        raise ValueError(
            f"cross_validate needs as many labels as inputs and 2 to {smallest} folds (the "
            f"smallest class): got {len(x)} inputs, {len(y)} labels, {folds} folds"
        )
    dealt = StratifiedKFold(folds, shuffle=True, random_state=seed).split(y.cpu(), y.cpu())
    found: Tensor | None = None
    results = []
    for fold, (rest, held_out) in enumerate(dealt):
        seen, new = (torch.from_numpy(part).to(y.device) for part in (rest, held_out))
        answers = logits(train(x[seen], y[seen], fold), x[new])
        if found is None:
            found = answers.new_zeros(len(y), answers.shape[1])
        found[new] = answers
        right = (answers.argmax(1) == y[new]).cpu()
        results.append(Evaluation(int(right.sum()), len(right), right))
    assert found is not None  # there are 2 folds or more
    return CrossValidation(tuple(results), found, y)
