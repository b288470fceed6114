"""Audit section: accuracy on clean images."""

from __future__ import annotations

import torch

from modelsec.audit.parts import Section, Subject, section
from modelsec.intervals import Proportion
from modelsec.training import Evaluation, evaluate

__all__ = ["clean", "clean_accuracy"]


def clean_accuracy(subject: Subject) -> Evaluation:
    """Accuracy on the subject's test images, measured once an audit."""
    if "clean" not in subject.cache:
        subject.cache["clean"] = evaluate(subject.model, subject.x, subject.y)
    found: Evaluation = subject.cache["clean"]
    return found


@section(title="Clean accuracy", order=10)
def clean(subject: Subject) -> Section:
    """Accuracy on the test images, beside that of always giving the commonest class."""
    accuracy = clean_accuracy(subject)
    commonest = int(torch.bincount(subject.y).max())
    guess = Proportion(commonest, len(subject.y))
    better = accuracy.interval[0] > guess.value
    return Section(
        f"Accuracy {accuracy}. Always answering the commonest class would give {guess.value:.3f}"
        + ("." if better else ", which is not clearly less."),
        "ok" if better else "warning",
        {"accuracy": accuracy, "commonest_class": guess},
    )
