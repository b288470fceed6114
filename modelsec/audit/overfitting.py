"""Audit section: is a model as hard to attack on images that it has never seen?"""

from __future__ import annotations

from functools import partial

from modelsec.attacks import pgd
from modelsec.audit.evasion import STEPS
from modelsec.audit.parts import Section, Subject, section
from modelsec.audit.reliability import pgd_left
from modelsec.training import evaluate

__all__ = ["IMAGES", "overfitting"]

IMAGES = 500


@section(title="Robust overfitting", order=57)
def overfitting(subject: Subject) -> Section:
    """Accuracy under PGD on training images beside that on test images.

    Adversarial training may make a model robust on its training images alone, while the clean
    accuracy tells nothing of it.

    Measures: ``train`` and ``test``, under PGD on 500 images at most of each half, at the largest
    radius at which PGD leaves a tenth or more of the test images; ``gap``, their difference.

    References:
        Rice et al. (2020), https://arxiv.org/abs/2002.11569.
    """
    halves = (subject.data.x_train, subject.data.y_train), (subject.x, subject.y)
    if not len(halves[0][0]):
        return Section("The data have no training half.", "skipped")
    eps, _ = pgd_left(subject)
    attack = partial(pgd, eps=eps, norm=subject.norm, steps=STEPS, generator=subject.generator())
    n = min(IMAGES, subject.n)
    train, test = (evaluate(subject.model, x[:n], y[:n], attack=attack) for x, y in halves)
    apart = train.interval[0] > test.interval[1]
    return Section(
        f"At eps {eps:g} PGD-{STEPS} leaves {train} of the training images and {test} of the test "
        "images" + (": more robust on what it has seen than on other images." if apart else "."),
        "warning" if apart else "ok",
        {"train": train, "test": test, "gap": train.value - test.value},
    )
