"""Audit section: is there a stronger attack at hand than the one that was believed?

Each check hands the images that PGD left right to another attack, image by image, as Carlini et
al. (2019) advise. A model that hides its gradient fails one of them, and so does one on which PGD
has not arrived yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from modelsec.attacks.black_box import square
from modelsec.attacks.common import Model
from modelsec.attacks.gradient import pgd
from modelsec.audit.evasion import STEPS, curves
from modelsec.audit.parts import Section, Subject, section
from modelsec.audit.sanity import Check, N, outcome
from modelsec.intervals import Proportion
from modelsec.tables import Table
from modelsec.training import evaluate

__all__ = ["pgd_left", "reliability", "rivals"]

QUERIES = 1000
Attack = Callable[..., Tensor]


@section(title="Reliable evaluation", order=55)
def reliability(subject: Subject) -> Section:
    """What PGD left, and what is left of that under attacks of other kinds.

    Measures: ``pgd`` and ``worst_case``, two accuracies on the first 200 images at the largest
    radius at which PGD leaves a tenth or more, and ``failed``, how many of the other attacks fool
    clearly more images.

    References:
        Carlini et al. (2019), https://arxiv.org/abs/1902.06705, section 3.
    """
    eps, rows = pgd_left(subject)
    seen = {what: outcome(check, subject) for what, check in rivals(subject).items()}
    failed = [what for what, (holds, _) in seen.items() if not holds]
    fooled = torch.stack([torch.zeros(len(rows), dtype=torch.bool), *_fooled(subject).values()])
    n = min(N, len(subject.y))
    before, after = (Proportion(k, n) for k in (len(rows), int((~fooled.any(0)).sum())))
    return Section(
        f"At eps {eps:g} PGD-{STEPS} leaves {before}; the worst case over it and the attacks below "
        f"is {after}."
        + (f" What should hold and does not: {'; '.join(failed)}." if failed else ""),
        "warning" if failed else "ok",
        {"pgd": before, "worst_case": after, "failed": float(len(failed))},
        Table(
            {"what should hold": what, "holds": "yes" if holds else "no", "seen": found}
            for what, (holds, found) in seen.items()
        ),
    )


def pgd_left(subject: Subject) -> tuple[float, Tensor]:
    """The largest radius at which PGD leaves a tenth or more (else the smallest), and what it left.

    Args:
        subject: what is audited.

    Returns:
        The radius, and the rows, among the first 200 images, that PGD left right there.
    """
    found = curves(subject)[f"PGD-{STEPS}"]
    eps = max((eps for eps, left in found.items() if left.value >= 0.1), default=min(found))
    return eps, found[eps].correct[:N].nonzero()[:, 0].to(subject.x.device)


def rivals(subject: Subject) -> dict[str, Check]:
    """The checks that apply: what should hold -> check.

    Args:
        subject: what is audited. A model under ``cache["substitute"]`` adds a transfer attack;
            in l1 there is no Square.

    Returns:
        The checks. Each leaves which images its attack fooled in ``cache["fooled"]``.
    """
    attacks: dict[str, Attack] = {
        "twice the steps fool few images more": partial(pgd, steps=2 * STEPS),
        "five random starts fool few images more": partial(pgd, steps=STEPS, restarts=5),
    }
    if subject.norm != "l1":
        attacks["an attack without gradients fools few images more"] = partial(
            square, queries=QUERIES
        )
    if "substitute" in subject.cache:
        attacks["images made on another model fool few more"] = partial(
            _transfer, subject.cache["substitute"]
        )
    return {what: partial(_rival, what, attack) for what, attack in attacks.items()}


def _rival(what: str, attack: Attack, subject: Subject) -> tuple[bool, str]:
    eps, rows = pgd_left(subject)
    fooled = torch.zeros(len(rows), dtype=torch.bool)
    if len(rows):
        x, y = subject.x[rows], subject.y[rows]
        generator = torch.Generator().manual_seed(subject.seed + 1)  # other starts than PGD had
        adv = attack(subject.model, x, y, eps=eps, norm=subject.norm, generator=generator)
        fooled = ~evaluate(subject.model, adv, y).correct
    _fooled(subject)[what] = fooled
    # two images and two in a hundred: so much may be chance, or an attack's last few steps
    few = 2 + 0.02 * min(N, len(subject.y))
    count = int(fooled.sum())
    return count <= few, f"at eps {eps:g}, {count} of the {len(rows)} that PGD-{STEPS} left"


def _fooled(subject: Subject) -> dict[str, Tensor]:
    found: dict[str, Tensor] = subject.cache.setdefault("fooled", {})
    return found


def _transfer(substitute: Model, model: Model, x: Tensor, y: Tensor, **options: object) -> Tensor:
    return pgd(substitute, x, y, steps=STEPS, early_stop=False, **options)  # type: ignore[arg-type]
