"""Audit section: what an attacker who knows the model's input steps takes of its accuracy under PGD."""

from __future__ import annotations

from typing import Any

from torch import nn

from modelsec.attacks import pgd
from modelsec.audit.evasion import STEPS
from modelsec.audit.parts import Section, Subject, section
from modelsec.audit.sanity import N
from modelsec.models import drawing_from
from modelsec.repair.purification import Step, adapted
from modelsec.training import evaluate

__all__ = ["adaptive"]


@section(title="Adaptive attack", order=58)
def adaptive(subject: Subject) -> Section:
    """PGD on the model as it is, and on what its attacker makes of it, at the middle radius.

    For models with a :class:`~modelsec.repair.purification.Step` in them, on 200 images at most.

    Measures: ``plain``, ``adaptive``, two accuracies, and ``taken``, the first minus the second.

    References:
        Athalye, Carlini & Wagner (2018), https://arxiv.org/abs/1802.00420.
    """
    model = subject.model
    parts = model.modules() if isinstance(model, nn.Module) else ()
    if not isinstance(model, nn.Module) or not any(isinstance(part, Step) for part in parts):
        return Section(
            "The model has no input step that this audit can go around. That is no proof that its "
            "gradients can be followed: see the sections on sanity and reliability.",
            "skipped",
        )
    eps = subject.radii[len(subject.radii) // 2]
    x, y = subject.x[:N], subject.y[:N]
    options: dict[str, Any] = {"eps": eps, "norm": subject.norm, "steps": STEPS}
    with drawing_from(subject.generator()):  # a random step draws from the global generators
        try:
            adv = pgd(model, x, y, generator=subject.generator(), **options)
        except ValueError:  # no gradient comes back at all
            adv = x
        plain = evaluate(model, adv, y)
        seen = adapted(model, generator=subject.generator())
        options |= {"early_stop": False, "generator": subject.generator()}
        aware = evaluate(model, pgd(seen, x, y, **options), y)
    taken = plain.value - aware.value
    masked = plain.hits - aware.hits > 2 + 0.02 * len(y)
    return Section(
        f"At eps {eps:g} in {subject.norm} PGD-{STEPS} leaves {plain}. Around the model's own input "
        f"steps it leaves {aware}."
        + (" The first figure says nothing about the model." if masked else ""),
        "warning" if masked else "ok",
        {"plain": plain, "adaptive": aware, "taken": taken},
    )
