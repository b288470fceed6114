"""Marking attack and repair, and the match: the reader's attack and defence against the book's."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.attacks.adaptive import eot
from modelsec.attacks.apgd import apgd_targeted
from modelsec.attacks.black_box import square
from modelsec.attacks.gradient import fgsm, pgd
from modelsec.attacks.poisoning import attack_success
from modelsec.check.capstone.budget import Outcome, run
from modelsec.check.capstone.case import EPS, Case
from modelsec.check.capstone.marks import Criterion, Line, Mark, Refused, expect, marked, ramp
from modelsec.repair.purification import Step, adapted
from modelsec.training import inference
from modelsec.validation.calibration import ece
from modelsec.zoo import load_model, load_result
from modelsec.zoo.studies import capstone as arena
from modelsec.zoo.studies.capstone_case import made

__all__ = [
    "ATTACK",
    "BUDGET",
    "MATCH",
    "MATCH_EPS",
    "REPAIR",
    "attack",
    "match",
    "opponents",
    "repair",
    "withstands",
]

BUDGET = {"gradients": 50, "queries": 200}
"""What an attack may ask about each image in the fourth step."""
MATCH_BUDGET = {"gradients": 250, "queries": 500}
"""What it may ask about each image in the match."""
MATCH_EPS = arena.EPS
"""How far an attack may move each pixel in the match."""

ATTACK = (
    Criterion(
        "success", 80, "share of the right answers that your attack turns, of what PGD-40 turns",
        0.5, 1, "One step sees the loss at one point only: make many small ones.",
        "attacks/gradient",
    ),
    Criterion(
        "economy", 20, "gradients for each image, on average (if it succeeds)", 40, 8,
        "Leave images alone that are fooled already.", "attacks/gradient",
    ),
)  # fmt: skip
REPAIR = (
    Criterion(
        "clean accuracy", 25, "accuracy on hidden digits", 0.85, 0.98,
        "Train on more and better data: cleaned, augmented, the trusted images too.",
        "augmentation",
    ),
    Criterion(
        "robust accuracy", 45, "share that stands against all of the book's attacks", 0.1, 0.95,
        "Train on the worst points of the ball, and judge by more than one attack.",
        "repair/adversarial_training",
    ),
    Criterion(
        "backdoor", 20, "share of triggered digits that are read as the target", 0.5, 0.02,
        "Find the planted images and train without them, or unlearn the mark.",
        "repair/backdoors",
    ),
    Criterion(
        "calibration", 10, "expected calibration error", 0.1, 0.015,
        "Divide the logits by a temperature, fitted on images that were not trained on.",
        "validation",
    ),
)  # fmt: skip
SENSIBLE = (0.5, 0.8)
"""A repaired model that reads fewer digits than the second number loses points, below the first all."""
DEFENCE = Criterion(
    "your defence", 50, "share that stands against all of the book's attacks", 0.1, 0.95,
    "Robustness is learned in training; what hides a gradient falls to questions.",
    "repair/broken_defences",
)  # fmt: skip


MATCH = (
    *(
        Criterion(
            f"against the {name} one", 10, "images that you fool, of those that the book's "
            "attack fools", 0, 1, hint, "repair/broken_defences",
        )
        for name, hint in (
            ("rounded", "A rounding has no slope: go back through something that has one."),
            ("coded", "A code has no slope: go back through something that has one."),
            ("distilled", "Its logits are huge and its softmax is flat: which loss does not mind?"),
            ("noisy", "One draw misleads: follow the mean of several."),
            ("hardened", "Nothing is hidden here: steps, restarts, and another loss."),
        )
    ),
    DEFENCE,
)  # fmt: skip


def opponents() -> dict[str, nn.Module]:
    """The five defended networks of the match, by name, in eval mode: some resist, some only hide."""
    return arena.opponents()


@marked("Attack")
def attack(case: Case, function: Any, *, n: int = 150) -> Mark:
    """Mark an attack on the delivered network: eps 0.1 in linf, within :data:`BUDGET`.

    Args:
        case: the case.
        function: ``f(model, x, y, eps)`` to images like x. The model counts what it is asked.
        n: hidden digits.

    Returns:
        The mark.
    """
    truth = made(case.seed)
    x, y = truth.x_hidden[:n], truth.y_hidden[:n]
    done = run(case.model, function, x, y, eps=EPS, **BUDGET)
    best = _book_on_case(case.seed, n, case.model)
    return attack_mark(done, best)


def attack_mark(done: Outcome, best: float) -> Mark:
    """The mark for an attack's outcome; see :func:`attack`.

    Args:
        done: what it did.
        best: the success of the book's PGD on the same images.

    Returns:
        The mark.
    """
    share = ramp(done.success, 0.1, 0.6)
    return Mark(
        "Attack",
        (
            ATTACK[0].line(
                done.success / best,
                f"It turns {done.success:.2f} of the right answers, PGD-40 {best:.2f}."
                + done.faults,
            ),
            ATTACK[1].line(
                done.gradients,
                f"{done.gradients:.1f} gradients and {done.queries:.1f} questions for each image.",
                share,
            ),
        ),
    )


@lru_cache(maxsize=8)
def _book_on_case(seed: int, n: int, model: nn.Module) -> float:
    truth = made(seed)

    def book(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return pgd(model, x, y, eps=eps, steps=40)

    x, y = truth.x_hidden[:n], truth.y_hidden[:n]
    return max(run(model, book, x, y, eps=EPS, gradients=50, queries=50).success, 1e-9)


@marked("Repair")
def repair(case: Case, model: Any, *, n: int = 150) -> Mark:
    """Mark a repaired model on hidden digits: clean, attacked, and with the trigger.

    Args:
        case: the case.
        model: an ``nn.Module`` from images (n, 1, 28, 28) in [0, 1] to logits (n, 10).
        n: hidden digits that are attacked.

    Returns:
        The mark.
    """
    truth = made(case.seed)
    x, y = truth.x_hidden, truth.y_hidden
    with inference(_checked(model, x[:20])):
        fixed = eot(model, 5, generator=_seeded(0)) if _is_random(model) else model
        with torch.no_grad():
            logits = torch.cat([fixed(part) for part in x.split(250)])
        expect(bool(logits.isfinite().all()), "Your model answers NaN or infinity.")
        clean = float((logits.argmax(1) == y).double().mean())
        stands = withstands(case, model, x[:n], y[:n])
        left = attack_success(fixed, x, y, trigger=truth.trigger, target=truth.target).value
    return repair_mark(clean, stands, left, ece(logits.softmax(1), y))


def repair_mark(clean: float, stands: dict[str, Tensor], left: float, error: float) -> Mark:
    """The mark for a repaired model; see :func:`repair`.

    Args:
        clean: its accuracy.
        stands: of :func:`withstands`.
        left: the success of the trigger.
        error: the expected calibration error.

    Returns:
        The mark.
    """
    share = ramp(clean, *SENSIBLE)
    robust = float(list(stands.values())[-1].double().mean())
    after = ", ".join(f"{name} {rows.double().mean():.2f}" for name, rows in stands.items())
    note = "" if share == 1 else f"It reads only {clean:.2f} of the digits: all counts {share:.2f}."
    return Mark(
        "Repair",
        (
            REPAIR[0].line(clean, f"It reads {clean:.3f} of the hidden digits."),
            REPAIR[1].line(robust, f"Still standing after {after}."),
            REPAIR[2].line(left, f"The trigger turns {left:.2f} of the digits."),
            REPAIR[3].line(error, f"The error is {error:.3f}."),
        ),
        share,
        note,
    )


@marked("Match")
def match(case: Case, function: Any, model: Any, *, n: int = arena.N) -> Mark:
    """The match: an attack against the five :func:`opponents`, a defence against the book's attacks.

    Args:
        case: the case.
        function: ``f(model, x, y, eps)``, as for :func:`attack`; here eps is ``MATCH_EPS`` and
            the budget ``MATCH_BUDGET``. The five are handed over whole, with their defences.
        model: as for :func:`repair`; it is attacked at the case's eps.
        n: hidden digits, at most 50.

    Returns:
        The mark: half of it for the attack, half for the defence.
    """
    truth = made(case.seed)
    x, y = truth.x_hidden[:n], truth.y_hidden[:n]
    with inference(_checked(model, x[:20])):
        stands = withstands(case, model, x, y)
    fought = {name: _bout(other, function, x, y) for name, other in opponents().items()}
    record = load_result("capstone_match")["fooled"]
    return match_mark(fought, {k: record[k][:n].count("0") for k in fought}, stands)


def _bout(model: nn.Module, function: Any, x: Tensor, y: Tensor) -> Outcome | str:
    """What an attack does to one opponent; a sentence if it could not be run on it."""
    try:
        return run(model, function, x, y, eps=MATCH_EPS, **MATCH_BUDGET)
    except Refused as problem:
        return str(problem)
    except Exception as error:  # the reader's code may raise anything
        return f"Your code raised {type(error).__name__}: {error}"


def match_mark(
    fought: dict[str, Outcome | str], best: dict[str, int], stands: dict[str, Tensor]
) -> Mark:
    """The mark of a match; see :func:`match`.

    Args:
        fought: what the attack did to each opponent, or why it could not be run on it.
        best: how many of the same images the book's attack fools.
        stands: of :func:`withstands`, for the defence.

    Returns:
        The mark.
    """
    lines: list[Line] = []
    for criterion, (name, done) in zip(MATCH, fought.items(), strict=False):
        if isinstance(done, str):
            lines.append(Line(criterion, 0, done))
            continue
        hits = int(done.fooled.sum())
        lines.append(
            criterion.line(
                hits / best[name] if best[name] else 1,  # nothing to be had
                f"{hits} fooled; the book fools {best[name]}. {done.gradients:.0f} gradients and "
                f"{done.queries:.0f} questions for each image.{done.faults}",
            )
        )
    clean, robust = (float(list(stands.values())[place].double().mean()) for place in (0, -1))
    after = ", ".join(f"{name} {rows.double().mean():.2f}" for name, rows in stands.items())
    share = ramp(clean, *SENSIBLE)
    lines.append(DEFENCE.line(robust, f"Still standing after {after}.", share))
    return Mark("Match", tuple(lines))


def withstands(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Which images a model still reads after each of the book's attacks, one after the other.

    Each attack tries what is left: one step, PGD with 20 steps, images made on the delivered
    network, APGD at the likeliest three other classes, and Square, which needs no gradient. A step
    without a slope is gone back through (BPDA); a random model is its mean over some draws (EOT).
    Where Square finds what the gradient attacks left, the gradient hides something: then it may
    ask on.

    Args:
        case: the case.
        model: maps (n, 1, 28, 28) to logits (n, 10).
        x: (n, 1, 28, 28) digits.
        y: (n,) labels.

    Returns:
        Name -> (n,) bool, "no attack" first; each holds only where the one before does.
    """
    chance = _is_random(model)
    asked = eot(model, 5, generator=_seeded(0)) if chance else model
    steps = any(isinstance(part, Step) for part in model.modules())
    view = adapted(model, 5, generator=_seeded(1)) if steps else asked
    rule: dict[str, Any] = {"eps": EPS}
    book: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "FGSM": partial(fgsm, view, **rule),
        "PGD-20": partial(pgd, view, steps=20, early_stop=not chance, generator=_seeded(2), **rule),
        "transfer": partial(
            pgd, case.model, steps=20, early_stop=False, generator=_seeded(3), **rule
        ),
        "APGD-T": partial(apgd_targeted, view, steps=20, targets=3, generator=_seeded(4), **rule),
        "Square": partial(square, asked, queries=300, generator=_seeded(5), **rule),
        "more Square": partial(square, asked, queries=3000, generator=_seeded(6), **rule),
    }
    right = arena.answers(model, x) == y
    found = {"no attack": right.clone()}
    for name, tries in book.items():
        if name == "more Square" and not _hides(found):
            break
        rows = right.nonzero()[:, 0]
        if len(rows):
            try:
                adv = tries(x[rows], y[rows])
            except (ValueError, RuntimeError):  # no gradient: left to those that need none
                if name not in ("FGSM", "PGD-20", "APGD-T"):
                    raise
                adv = x[rows]
            right[rows] = arena.answers(model, adv) == y[rows]
        found[name] = right.clone()
    return found


def _hides(found: dict[str, Tensor]) -> bool:
    """Whether Square broke more than one image in fifty after the gradient attacks had given up."""
    before, after = list(found.values())[-2:]
    return int(before.sum()) - int(after.sum()) > len(after) / 50


def _is_random(model: Callable[[Tensor], Tensor]) -> bool:
    x = torch.full((2, 1, 28, 28), 0.5)
    with torch.no_grad():
        return not torch.equal(model(x), model(x))


_KNOWN = ("convnet", "convnet_robust", "convnet_trades", "convnet_ibp", "net_robust", "net")


def _checked(model: Any, x: Tensor) -> nn.Module:
    """The model, if it is one: shape, numbers, its own, no neighbours. Refused if not."""
    expect(isinstance(model, nn.Module), f"Hand in an nn.Module, not {type(model).__name__}.")
    module: nn.Module = model
    with inference(module), torch.no_grad():
        got = module(x)
        expect(isinstance(got, Tensor), "Your model must return a tensor of logits.")
        expect(
            got.shape == (len(x), 10),
            f"For images {tuple(x.shape)} your model must return logits ({len(x)}, 10), it returns "
            f"{tuple(got.shape)}.",
        )
        expect(bool(got.isfinite().all()), "Your model answers NaN or infinity.")
        if torch.equal(got, module(x)):
            alone = torch.cat([module(part) for part in x[:3].split(1)])
            expect(
                torch.allclose(alone, got[:3], rtol=1e-3, atol=1e-3),
                "Your model's answer to an image depends on the other images of the batch.",
            )
        for name in _KNOWN:
            other = load_model(name)(x)
            alike = nn.functional.cosine_similarity(_centred(got), _centred(other)).mean()
            expect(
                float(alike) < 0.9999,
                f"That is the zoo's {name}, not a repair of this case: train one on its data.",
            )
    return module


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
