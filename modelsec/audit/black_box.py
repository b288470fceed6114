"""Audit section: what attackers achieve who see scores, labels, or nothing of the model at all."""

from __future__ import annotations

import torch
from torch import nn

from modelsec.attacks.black_box import square
from modelsec.attacks.hopskipjump import hopskipjump
from modelsec.attacks.queries import labels_only
from modelsec.attacks.transfer import transfer
from modelsec.audit.parts import Section, Subject, section
from modelsec.intervals import Proportion
from modelsec.models import fresh
from modelsec.tables import Table
from modelsec.training import evaluate, fit

__all__ = ["black_box"]

IMAGES, OWN, QUERIES = 100, 1000, 300


@section(title="Black-box attackers", order=58)
def black_box(subject: Subject) -> Section:
    """The accuracy that three attackers without the weights leave at the middle radius.

    On 100 images at most, with 300 queries for each: Square sees scores, HopSkipJump labels. The
    third asks nothing; it attacks a small network of its own, trained on 1000 of the training
    images, and is left out where there are none.
    """
    if subject.norm == "l1":
        return Section("The black-box attacks are here for linf and l2 only.", "skipped")
    eps = subject.radii[len(subject.radii) // 2]
    x, y, norm = subject.x[:IMAGES], subject.y[:IMAGES], subject.norm
    clean = evaluate(subject.model, x, y)
    adv = square(
        subject.model, x, y, eps=eps, queries=QUERIES, generator=subject.generator(), norm=norm
    )
    near = hopskipjump(
        labels_only(subject.model), x, y, queries=QUERIES, generator=subject.generator(), norm=norm
    )
    left: dict[str, Proportion] = {
        "scores": evaluate(subject.model, adv, y),
        "labels": Proportion(int((near.distance > eps).sum()), len(y)),
    }
    if len(subject.data.x_train):
        images = transfer(_surrogate(subject), x, y, eps=eps, norm=norm)
        left["transfer"] = evaluate(subject.model, images, y)
    measures: dict[str, float | Proportion] = {"clean": clean, **left}
    names = {"scores": "Square", "labels": "HopSkipJump", "transfer": "MI-FGSM on a surrogate"}
    asked = {"scores": QUERIES, "labels": QUERIES, "transfer": 0}
    most = min(left, key=lambda seen: left[seen].value)
    return Section(
        f"At eps {eps:g} in {subject.norm}, of {clean} without an attack, the strongest of "
        f"{len(left)} attackers without the weights leaves {left[most]}; what it sees: {most}.",
        "info",
        measures,
        Table(
            {
                "attack": names[seen],
                "sees": "nothing" if seen == "transfer" else seen,
                "queries for an image": asked[seen],
                "accuracy left": str(share),
            }
            for seen, share in left.items()
        ),
    )


def _surrogate(subject: Subject) -> nn.Module:
    x, y = subject.data.x_train[:OWN], subject.data.y_train[:OWN]
    classes = int(torch.cat([y, subject.y]).max()) + 1

    def build() -> nn.Module:
        first = nn.Linear(x[0].numel(), 128)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(128, classes))

    model = fresh(build, subject.generator()).to(x.device)
    fit(model, x, y, epochs=10, generator=subject.generator(), progress=False)
    return model
