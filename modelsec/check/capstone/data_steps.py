"""Marking the steps before the attack: clean, augment, validate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from numbers import Real
from typing import Any, TypeGuard

import torch
from torch import Tensor

from modelsec.check.capstone.case import Case
from modelsec.check.capstone.marks import Criterion, Line, Mark, expect, marked, ramp
from modelsec.models import ConvNet, drawing_from, fresh
from modelsec.training import evaluate, fit, inference
from modelsec.validation.calibration import ece
from modelsec.validation.corruptions import corrupt
from modelsec.zoo import load_model
from modelsec.zoo.studies.capstone_case import Made, made

__all__ = ["AUGMENT", "CLEAN", "VALIDATE", "augment", "clean", "validate"]

CLEAN = (
    Criterion(
        "wrong labels", 30, "share of the wrong labels that you removed", 0, 0.95,
        "Judge each label by networks that never saw it, and give them little time to memorise.",
        "cleaning",
    ),
    Criterion(
        "planted images", 30, "share of the planted images that you removed", 0, 0.98,
        "Planted images agree with their labels for every model that learned from them. Look for "
        "what they have in common: in the features, or in a mark that the network obeys.",
        "repair/backdoors",
    ),
    Criterion(
        "copies", 10, "share of the groups of copies of which one is left at most", 0, 0.98,
        "Copies may be moved by a pixel or darker: equal bytes find only some.", "cleaning",
    ),
    Criterion(
        "strays", 10, "share of the images that are no digits that you removed", 0, 0.95,
        "How far is each image from the trusted digits?", "cleaning",
    ),
    Criterion(
        "leaked test images", 20, "share of the test images with a copy in training that you "
        "removed", 0, 0.98, "Compare the test set with the training set.", "cleaning",
    ),
)  # fmt: skip
LOST = (0.3, 0.02)
"""Share of good training samples removed: from 2% on it costs points, at 30% all."""

AUGMENT = (
    Criterion(
        "labels kept", 20, "share of augmented digits that a good reader still reads rightly", 0.6,
        0.93, "Look at what you made: would you still give each image its label?", "augmentation",
    ),
    Criterion(
        "moved digits", 60, "gain in accuracy on shifted, turned and scaled digits", 0, 0.4,
        "Show the network in training what it will meet: small turns, shifts, sizes, each image "
        "its own.", "augmentation",
    ),
    Criterion(
        "straight digits", 20, "gain in accuracy on digits as they are", -0.1, 0,
        "Too much change, and the network never sees an ordinary digit.", "augmentation",
    ),
)  # fmt: skip

VALIDATE = (
    Criterion(
        "accuracy", 20, "error of your number", 0.06, 0.01,
        "The delivered test set is not independent. Which images are?", "validation",
    ),
    Criterion(
        "interval", 15, "distance from your interval to the truth, plus what it is wider than 0.1",
        0.1, 0.005, "An interval says what your number of images can tell.", "validation",
    ),
    Criterion(
        "calibration", 15, "error of your expected calibration error", 0.06, 0.01,
        "Measure it on images that the network has not learned by heart.", "validation",
    ),
    Criterion(
        "weakest class", 15, "how much better the class you name is than the weakest", 0.15, 0.02,
        "Look at each class alone; pool all images that you may trust.", "validation",
    ),
    Criterion(
        "backdoor", 35, "1 for the right suspicion with the right class, 0.4 without", 0, 1,
        "An accuracy sees no backdoor. Scan the network for a small mark that turns everything.",
        "repair/backdoors",
    ),
)  # fmt: skip


@marked("Clean")
def clean(case: Case, train: Any, test: Any) -> Mark:
    """Mark what was removed from the data, against the truth.

    Args:
        case: the case.
        train: training samples to remove: (N,) bool, True removes; or their indices.
        test: test samples to remove, likewise.

    Returns:
        The mark.
    """
    truth = made(case.seed)
    removed = _mask("train", train, len(truth.wrong))
    dropped = _mask("test", test, len(truth.leaked))
    return clean_mark(truth, removed, dropped)


def clean_mark(truth: Made, removed: Tensor, dropped: Tensor) -> Mark:
    """The mark for two masks; see :func:`clean`.

    Args:
        truth: of the case.
        removed: (N,) bool.
        dropped: (M,) bool.

    Returns:
        The mark.
    """
    bad = truth.wrong | truth.planted | truth.stray
    groups = truth.group[(truth.group >= 0) & ~bad]
    solved = len(truth.group[(truth.group >= 0) & ~bad & removed].unique())
    copies = len(groups) - len(groups.unique())  # so many may go
    good = int((~bad).sum()) - copies
    lost = int((removed & ~bad).sum()) - solved
    found = int((removed & bad).sum()) + solved
    shares = [_share(removed, kind) for kind in (truth.wrong, truth.planted, truth.stray)]
    honest = _share(dropped, ~truth.leaked)
    leaked = _share(dropped, truth.leaked)
    values = [shares[0], shares[1], solved / max(copies, 1), shares[2], leaked]
    lines = [
        criterion.line(value, f"You removed {value:.0%} of them.")
        for criterion, value in zip(CLEAN, values, strict=True)
    ]
    lines[4] = CLEAN[4].line(
        leaked,
        f"You removed {leaked:.0%} of them, and {honest:.0%} of the others.",
        ramp(honest, 0.5, 0.02),
    )
    share = ramp(lost / good, *LOST)
    all_removed = int(removed.sum())
    note = f"Of the {all_removed} training samples that you removed {found} were bad"
    note += f" (precision {found / all_removed:.2f})." if all_removed else "."
    if share < 1:
        note += (
            f" {lost} of {good} good ones went with them ({lost / good:.0%}); from {LOST[1]:.0%} "
            f"on that costs points: all of them count {share:.2f}."
        )
    return Mark("Clean", tuple(lines), share, note)


@marked("Augment")
def augment(case: Case, function: Any, *, epochs: int = 12) -> Mark:
    """Mark an augmentation by a training with it, on clean digits that the scorer keeps.

    Args:
        case: the case.
        function: (n, 1, 28, 28) images in [0, 1] to changed ones, same shape; called on every
            batch. It may draw from torch's global generator, which is seeded.
        epochs: of the training.

    Returns:
        The mark.
    """
    expect(callable(function), "Hand in a function from images to images.")
    truth = made(case.seed)

    def checked(x: Tensor) -> Tensor:
        before = x.clone()
        got = function(x)
        expect(isinstance(got, Tensor), f"Return a tensor of images, not {type(got).__name__}.")
        expect(
            got.shape == before.shape,
            f"Return images of shape {tuple(before.shape)}, not {tuple(got.shape)}.",
        )
        expect(
            got.is_floating_point() and bool(((got >= -1e-6) & (got <= 1 + 1e-6)).all()),
            "Some pixels are not numbers in [0, 1].",
        )
        expect(torch.equal(x, before), "Your function changed the images that it was handed.")
        changed: Tensor = got.detach().to(before).clamp(0, 1)
        return changed

    with drawing_from(torch.Generator().manual_seed(3)):
        shown = checked(truth.x_hidden[:300].clone())
    kept = evaluate(load_model("convnet_robust"), shown, truth.y_hidden[:300]).value
    plain, moved = _learned(truth, checked, epochs)
    plain_before, moved_before = _without(case.seed, epochs)
    return Mark(
        "Augment",
        (
            AUGMENT[0].line(kept, f"A robust network reads {kept:.2f} of them rightly."),
            AUGMENT[1].line(
                moved - moved_before,
                f"{moved:.3f} of the moved digits are read, {moved_before:.3f} without you.",
            ),
            AUGMENT[2].line(
                plain - plain_before,
                f"{plain:.3f} of the others are read, {plain_before:.3f} without you.",
            ),
        ),
    )


def _learned(
    truth: Made, function: Callable[[Tensor], Tensor] | None, epochs: int
) -> tuple[float, float]:
    """Train on the spare digits; accuracy on hidden ones, as they are and moved."""
    generator = torch.Generator().manual_seed(0)
    model = fresh(ConvNet, generator)
    with drawing_from(torch.Generator().manual_seed(1)):
        fit(
            model, truth.x_spare, truth.y_spare, epochs=epochs, batch_size=25, lr=2e-3,
            generator=generator, progress=False,
            perturb=None if function is None else lambda m, x, y, now: function(x),
        )  # fmt: skip
    x, y = truth.x_hidden[:400], truth.y_hidden[:400]
    drawn = torch.Generator().manual_seed(2)
    moved = [corrupt(x, kind, 3, drawn) for kind in ("translate", "rotate", "scale")]
    return evaluate(model, x, y).value, evaluate(model, torch.cat(moved), y.repeat(3)).value


@lru_cache(maxsize=4)
def _without(seed: int, epochs: int) -> tuple[float, float]:
    return _learned(made(seed), None, epochs)


@marked("Validate")
def validate(case: Case, report: Any) -> Mark:
    """Mark a report on the delivered network, against what it does on 1,000 hidden digits.

    Args:
        case: the case.
        report: a mapping with "accuracy" (a number in [0, 1]), "interval" (two of them), "ece",
            "weakest" (a class), "backdoor" (True or False) and "target" (a class, or None). An
            entry that is missing, or is None, gets no points.

    Returns:
        The mark.
    """
    expect(isinstance(report, Mapping), f"Hand in a dict, not {type(report).__name__}.")
    wanted = ("accuracy", "interval", "ece", "weakest", "backdoor", "target")
    expect(
        any(report.get(name) is not None for name in wanted),
        f"The report is empty. Its entries are {', '.join(wanted)}.",
    )
    truth = made(case.seed)
    with inference(case.model), torch.no_grad():
        probabilities = case.model(truth.x_hidden).softmax(1)
    right = probabilities.argmax(1) == truth.y_hidden
    classes = torch.stack([right[truth.y_hidden == k].double().mean() for k in range(10)])
    return validate_mark(
        dict(report),
        accuracy=float(right.double().mean()),
        error=ece(probabilities, truth.y_hidden),
        classes=classes.tolist(),
        target=truth.target,
    )


def validate_mark(
    report: dict[str, Any], *, accuracy: float, error: float, classes: list[float], target: int
) -> Mark:
    """The mark for a report; see :func:`validate`.

    Args:
        report: as handed in.
        accuracy: the true accuracy.
        error: the true expected calibration error.
        classes: the true accuracy of each class.
        target: the backdoor's class.

    Returns:
        The mark.
    """
    lines = [
        _number(VALIDATE[0], report.get("accuracy"), accuracy),
        _interval(report.get("interval"), accuracy),
        _number(VALIDATE[2], report.get("ece"), error),
    ]
    weakest, least = report.get("weakest"), min(classes)
    if _is_class(weakest):
        gap = classes[int(weakest)] - least
        reason = f"Class {int(weakest)} is better than the weakest by {gap:.2f}."
        lines.append(VALIDATE[3].line(gap, reason))
    else:
        lines.append(Line(VALIDATE[3], 0, f"A class is wanted, 0 to 9, not {weakest!r}."))
    suspected, named = report.get("backdoor"), report.get("target")
    said = isinstance(suspected, bool) and suspected
    hit = said and _is_class(named) and int(named) == target
    reason = "Your suspicion and your class are right." if hit else "Your class is not the one."
    if not said:
        reason = "There is one, and your report does not say so (True is wanted)."
    lines.append(VALIDATE[4].line(1 if hit else 0.4 if said else 0, reason))
    return Mark("Validate", tuple(lines))


def _number(criterion: Criterion, value: Any, truth: float) -> Line:
    if not _is_number(value):
        return Line(criterion, 0, f"A number is wanted, not {value!r}.")
    error = abs(float(value) - truth)
    return criterion.line(error, f"You say {float(value):.3f}; that is off by {error:.3f}.")


def _interval(value: Any, truth: float) -> Line:
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    low, high = map(float, value) if pair else (1.0, 0.0)
    if not 0 <= low <= high <= 1:
        return Line(VALIDATE[1], 0, f"Two numbers low <= high in [0, 1] are wanted, not {value!r}.")
    away = max(low - truth, truth - high, 0)
    reason = f"The truth is {away:.3f} outside." if away else "It holds the truth."
    reason += f" Its width is {high - low:.3f}."
    return VALIDATE[1].line(away + max(high - low - 0.1, 0), reason)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_class(value: Any) -> TypeGuard[int]:
    return _is_number(value) and value in range(10)


def _share(chosen: Tensor, kind: Tensor) -> float:
    return int((chosen & kind).sum()) / max(int(kind.sum()), 1)


def _mask(name: str, value: Any, n: int) -> Tensor:
    """(n,) bool, of a mask or of indices."""
    try:
        given = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        given = torch.zeros(0, 0)
    if given.dtype == torch.bool:
        expect(
            given.shape == (n,),
            f"{name} needs one True or False for each of {n} samples, got {tuple(given.shape)}.",
        )
        return given
    whole = given.dim() == 1 and (not given.is_floating_point() or not len(given))
    expect(whole, f"{name} must be a mask of True and False, or a list of indices.")
    expect(
        not len(given) or (int(given.min()) >= 0 and int(given.max()) < n),
        f"Some indices in {name} are outside 0 to {n - 1}.",
    )
    mask = torch.zeros(n, dtype=torch.bool)
    mask[given.long()] = True
    return mask
