"""Audit section: may the attacks' results be believed?

An attack that fails says nothing if it was blind. These checks, after Carlini et al. (2019) and
Athalye et al. (2018), catch the usual causes: a random or unstable model, gradients that are zero,
an attack too weak for its budget.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from modelsec.attacks import pgd
from modelsec.attacks.common import Objective, check_norm, check_radius
from modelsec.audit.evasion import STEPS, curves
from modelsec.audit.parts import Section, Subject, section
from modelsec.losses import cross_entropy, log_odds, margin
from modelsec.tables import Table
from modelsec.training import evaluate

__all__ = ["CHECKS", "Check", "N", "outcome", "sanity"]

N = 200  # images for the checks that cost attacks of their own
Check = Callable[[Subject], tuple[bool, str]]
"""subject -> (whether it holds, what was seen)."""


@section(title="Sanity of the evaluation", order=50)
def sanity(subject: Subject) -> Section:
    """Checks that a masked, random or otherwise misjudged model fails.

    References:
        Carlini et al. (2019), https://arxiv.org/abs/1902.06705; Athalye et al. (2018),
        https://arxiv.org/abs/1802.00420, section 3.1.
    """
    seen = {what: outcome(check, subject) for what, check in CHECKS.items()}
    failed = [what for what, (holds, _) in seen.items() if not holds]
    summary = f"{len(seen) - len(failed)} of {len(seen)} checks hold."
    if failed:
        summary += (
            f" What should hold and does not: {'; '.join(failed)}. An accuracy under attack may "
            "then be far too high."
        )
    return Section(
        summary,
        "warning" if failed else "ok",
        {"failed": float(len(failed))},
        Table(
            {"what should hold": what, "holds": "yes" if holds else "no", "seen": found}
            for what, (holds, found) in seen.items()
        ),
    )


def outcome(check: Check, subject: Subject) -> tuple[bool, str]:
    """Run a check; one that can't be run does not hold.

    Args:
        check: subject -> (whether it holds, what was seen).
        subject: what is audited.

    Returns:
        What the check returns, or False and why it could not be run.
    """
    try:
        return check(subject)
    except ValueError as error:  # a model without gradients, say: that is a finding too
        return False, f"could not be checked: {error}"


def _logits(subject: Subject, x: Tensor) -> Tensor:
    with torch.no_grad():
        return subject.model(x)


def _gap(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def _same_twice(subject: Subject) -> tuple[bool, str]:
    x = subject.x[:N]
    gap = _gap(_logits(subject, x), _logits(subject, x))
    return gap == 0, f"largest difference {gap:.2g}"


def _alone_as_in_a_batch(subject: Subject) -> tuple[bool, str]:
    x = subject.x[:20]
    together = _logits(subject, x)
    gap = _gap(together, torch.cat([_logits(subject, image[None]) for image in x]))
    # sums in another order differ in the last digits
    return gap <= 1e-3 * max(float(together.abs().max()), 1.0), f"largest difference {gap:.2g}"


def _gradient_is_alive(subject: Subject) -> tuple[bool, str]:
    x, y = subject.x[:N], subject.y[:N]
    _, _, gradient = Objective(subject.model, log_odds, targeted=False).gradient(x, y)
    flat = gradient.flatten(1)
    alive = flat.isfinite().all(1) & (flat != 0).any(1)
    return bool(alive.all()), f"so for {int(alive.sum())} of {len(x)} images"


def _steps_beat_one_step(subject: Subject) -> tuple[bool, str]:
    found = curves(subject)
    one, many = found["FGSM"], found[f"PGD-{STEPS}"]
    more = max(many[eps].hits - one[eps].hits for eps in subject.radii)
    return more <= _slack(subject), f"at most {max(more, 0)} images more survive PGD than FGSM"


def _falls_with_eps(subject: Subject) -> tuple[bool, str]:
    left = [accuracy.hits for accuracy in curves(subject)[f"PGD-{STEPS}"].values()]
    rise = max((more - less for less, more in pairwise(left)), default=0)
    return rise <= _slack(subject), f"the largest rise is of {max(rise, 0)} images"


def _slack(subject: Subject) -> float:
    """Images by which chance alone may turn an order round."""
    return 2 + 0.01 * len(subject.y)


def _attack_beats_noise(subject: Subject) -> tuple[bool, str]:
    ball, eps = check_norm(subject.norm), subject.radii[-1]
    noisy = ball.sample(subject.x, check_radius(eps, subject.x, ball), subject.generator())
    noise = evaluate(subject.model, noisy, subject.y)
    attack = curves(subject)[f"PGD-{STEPS}"][eps]
    seen = f"at eps {eps:g} noise leaves {noise.value:.3f}, PGD {attack.value:.3f}"
    return attack.hits < noise.hits - _slack(subject) or noise.hits <= _slack(subject), seen


def _middle(subject: Subject) -> float:
    return subject.radii[len(subject.radii) // 2]


def _unlimited_attack_wins(subject: Subject) -> tuple[bool, str]:
    x, y = subject.x[:N], subject.y[:N]
    pixels = float(x[0].numel())
    eps = {"linf": 1.0, "l2": pixels**0.5, "l1": pixels}[subject.norm]
    attack = partial(
        pgd, eps=eps, norm=subject.norm, steps=100, restarts=2, generator=subject.generator()
    )
    left = evaluate(subject.model, x, y, attack=attack)
    return left.value <= 0.05, f"it leaves {left.hits} of {left.n}"


def _losses_agree(subject: Subject) -> tuple[bool, str]:
    x, y, eps = subject.x[:N], subject.y[:N], _middle(subject)
    left = {}
    for loss in (cross_entropy, log_odds, margin):
        attack = partial(pgd, eps=eps, norm=subject.norm, loss=loss, generator=subject.generator())
        left[loss.__name__] = evaluate(subject.model, x, y, attack=attack).value
    seen = ", ".join(f"{name} leaves {value:.2f}" for name, value in left.items())
    return max(left.values()) - min(left.values()) <= 0.1, f"at eps {eps:g} {seen}"


CHECKS: dict[str, Check] = {
    "the same input gives the same logits twice": _same_twice,
    "an image's logits do not depend on the rest of its batch": _alone_as_in_a_batch,
    "the gradient by the input is finite and not zero": _gradient_is_alive,
    "many steps are as strong as one": _steps_beat_one_step,
    "a larger eps leaves less": _falls_with_eps,
    "the attack clearly beats noise of the same size": _attack_beats_noise,
    "an attack without a limit fools nearly every image": _unlimited_attack_wins,
    "it matters little which loss is climbed": _losses_agree,
}
