"""Audit section: the data behind the model, without which no other number means much."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.audit.parts import Section, Subject, section
from modelsec.cleaning.duplicates import exact_duplicates, near_duplicates
from modelsec.cleaning.labels import find_label_issues, logistic, out_of_fold_probabilities
from modelsec.intervals import Proportion
from modelsec.tables import Table

__all__ = ["data"]

MOST = 4000  # training samples that are looked at: the search for copies grows with their number
WIDE = 32  # larger images are averaged down before they are compared
COARSE = 14  # and for the regression, whose cost grows with the pixels
MANY_ISSUES = 0.05  # of MNIST-5k as it is about a third of this is flagged
UNEVEN = 0.2  # smallest class by largest


@section(title="Data", order=5)
def data(subject: Subject) -> Section:
    """Labels in range, balance of classes, test images that stand in the training half, label issues."""
    found = subject.data
    x, y = found.x_train[:MOST], found.y_train[:MOST]
    both = torch.cat([found.y_train, found.y_test])
    classes = len(found.classes) or int(both.max()) + 1  # a bare pair (x, y) names none
    outside = int(((both < 0) | (both >= classes)).sum())
    warnings = [f"{outside} labels name no class"] if outside else []
    rows = [("labels out of range", str(Proportion(outside, len(both))), "")]
    measures: dict[str, float | Proportion] = {"out_of_range": Proportion(outside, len(both))}
    if not len(y):
        return Section(
            "There is no training half to look at" + "".join(f"; {w}" for w in warnings) + ".",
            "warning" if outside else "skipped",
            measures,
        )
    sizes = y[(y >= 0) & (y < classes)].bincount(minlength=classes)
    balance = float(sizes.min() / sizes.max().clamp_min(1))
    measures["balance"] = balance
    rows.append(("smallest class by largest", f"{balance:.3f}", f"{sizes.tolist()} samples"))
    if balance < UNEVEN:
        warnings.append(f"the smallest class has {int(sizes.min())} samples")
    small_x, small_test = _small(x), _small(subject.x)
    copies = {
        "exact": exact_duplicates(subject.x, x).first,
        "near": near_duplicates(small_test, small_x).first,
    }
    for kind, first in copies.items():
        leaked = Proportion(len(first.unique()), len(subject.y))
        measures[f"leaked_{kind}"] = leaked
        rows.append((f"test images with an {kind} copy".replace("an n", "a n"), str(leaked), ""))
        if leaked.hits:
            warnings.append(f"{leaked.hits} test images have {kind} copies in the training half")
    flagged = _issues(small_x, y, subject) if not outside else None
    if flagged is not None:
        measures["label_issues"] = flagged
        rows.append(("training labels in doubt", str(flagged), "by logistic regression"))
        if flagged.interval[0] > MANY_ISSUES:
            warnings.append(f"{flagged.value:.0%} of the training labels are in doubt")
    doubt = f"; {flagged.hits} training labels in doubt" if flagged is not None else ""
    good = f"No copies across the split, classes even{doubt}"
    return Section(
        ("; ".join(warnings) if warnings else good)[:1].upper()
        + ("; ".join(warnings) if warnings else good)[1:]
        + f". {len(y):,} training and {len(subject.y):,} test samples looked at.",
        "warning" if warnings else "ok",
        measures,
        Table({"question": q, "answer": a, "remark": r} for q, a, r in rows),
    )


def _small(x: Tensor, most: int = WIDE) -> Tensor:
    return F.adaptive_avg_pool2d(x, most) if max(x.shape[-2:]) > most else x


def _issues(x: Tensor, y: Tensor, subject: Subject) -> Proportion | None:
    """The share of labels that confident learning doubts; None where classes are too small."""
    sizes = y.bincount()
    if len(sizes) < 2 or int(sizes[sizes > 0].min()) < 5:
        return None
    p = out_of_fold_probabilities(_small(x, COARSE), y, logistic, generator=subject.generator())
    return Proportion(int(find_label_issues(p, y).sum()), len(y))
