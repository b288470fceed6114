"""Audit section: every class, the confidence, worse images, and images of something else."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from modelsec.audit.accuracy import clean_accuracy
from modelsec.audit.parts import Section, Subject, section
from modelsec.data import photo_crops
from modelsec.intervals import Proportion, bootstrap
from modelsec.plot import COLORS
from modelsec.tables import Table
from modelsec.training import features
from modelsec.validation.calibration import ece, ece_if_calibrated
from modelsec.validation.corruption_report import CorruptionReport, corruption_report
from modelsec.validation.metrics import logits
from modelsec.validation.shift import Mahalanobis, auroc, energy

__all__ = ["CORRUPTIONS", "SEVERITIES", "validation"]

CORRUPTIONS = ("gaussian_noise", "motion_blur", "brightness", "rotate", "pixelate", "occlusion")
"""One kind of each family, to stay cheap."""
SEVERITIES = (1, 2, 3)
FEWEST_CROPS = 20  # for an AUROC to be worth telling
MOST_CLASSES = 12  # shown one by one; of more, those with the lowest accuracy


@section(title="Validation", order=20)
def validation(subject: Subject) -> Section:
    """The worst class, the calibration error, accuracy on corrupted images, strange inputs.

    Measures: ``worst_class`` (accuracy on the class with the lowest), ``corrupted`` (mean over the
    kinds in :data:`CORRUPTIONS`, severities 1 to 3), ``ece`` and ``ece_high``, the upper end of its
    bootstrap interval, and ``ood_auroc``, how well strange images are told from the test images.
    """
    clean = clean_accuracy(subject)
    answers = logits(subject.model, subject.x)
    classes = _per_class(subject, answers)
    worst = min(classes, key=lambda name: classes[name].value)
    error, high, chance = _calibration(subject, answers.softmax(1))
    measures: dict[str, float | Proportion] = {
        "worst_class": classes[worst],
        "ece": error,
        "ece_high": high,
    }
    unsure = error > chance
    lost = classes[worst].interval[1] < clean.value / 2
    told = [
        f"Lowest by class: {worst} with {classes[worst]}"
        + (", less than half of the whole." if lost else "."),
        f"Calibration error {error:.3f}, "
        + ("more" if unsure else "no more")
        + f" than chance explains ({chance:.3f}).",
    ]
    rows = dict(sorted(classes.items(), key=lambda item: item[1].value)[:MOST_CLASSES])
    shown = {f"class {name}": rows[name] for name in classes if name in rows}
    if (report := _corruptions(subject)) is not None:
        measures["corrupted"] = report.mean
        shown |= {kind: report.of(kind) for kind in report.accuracy}
        told.append(f"On slightly to moderately corrupted images {report.mean}.")
    else:
        told.append(
            "Corruptions not measured: they need images of 16 x 16 or more, grey or colour."
        )
    if (strangers := _strangers(subject, answers)) is not None:
        score, measures["ood_auroc"] = strangers
        told.append(
            f"{score} tells crops of photographs from the test images with an AUROC of "
            f"{measures['ood_auroc']:.3f}."
        )
    else:
        told.append("Strange images not measured: too few crops of this size are at hand.")
    return Section(
        " ".join(told),
        "warning" if unsure or lost else "ok",
        measures,
        Table({"images": name, "accuracy": str(share)} for name, share in shown.items()),
        _figure(shown, clean),
        f"Accuracy with its interval for every class and corruption; the lowest is "
        f"{min(shown.values(), key=float).value:.3f}, that of all clean images {clean.value:.3f}",
    )


def _per_class(subject: Subject, answers: Tensor) -> dict[str, Proportion]:
    right = answers.argmax(1) == subject.y
    names = subject.data.classes
    found = {}
    for k in subject.y.unique().tolist():
        those = right[subject.y == k]
        name = names[k] if k < len(names) else str(k)
        found[name] = Proportion(int(those.sum()), len(those))
    return found


def _calibration(subject: Subject, p: Tensor) -> tuple[float, float, float]:
    """The ECE, the upper end of its interval, and what chance alone stays below 99 times in 100."""
    y = subject.y
    chance = ece_if_calibrated(p, generator=subject.generator()).quantile(0.99).item()
    if len(y) < 2:
        return ece(p, y), 1.0, chance
    _, high = bootstrap(
        np.arange(len(y)),
        statistic=lambda rows: ece(p[rows], y[rows]),
        resamples=200,
        seed=subject.seed,
    )
    return ece(p, y), high, chance


def _corruptions(subject: Subject) -> CorruptionReport | None:
    _, channels, high, wide = subject.x.shape if subject.x.dim() == 4 else (0, 0, 0, 0)
    if channels not in (1, 3) or min(high, wide) < 16:
        return None
    return corruption_report(
        subject.model, subject.x, subject.y, CORRUPTIONS, SEVERITIES, seed=subject.seed
    )


def _strangers(subject: Subject, answers: Tensor) -> tuple[str, float] | None:
    """The name of a score, and its AUROC; by features where there are some, else by logits."""
    strange = _photos(subject.x)
    if strange is None:
        return None
    x, y, model = subject.data.x_train, subject.data.y_train, subject.model
    layers = list(model.modules()) if isinstance(model, nn.Module) else []
    described = any(isinstance(layer, nn.Linear) for layer in layers)
    if isinstance(model, nn.Module) and described and len(y) and bool((y.bincount() > 1).all()):
        distance = Mahalanobis.fit(features(model, x), y)
        scores = [distance(features(model, images)) for images in (subject.x, strange)]
        name = "The Mahalanobis distance"
    else:
        scores = [energy(answers), energy(logits(model, strange))]
        name = "The energy"
    return name, auroc(*(score.double().cpu() for score in scores))


def _photos(like: Tensor) -> Tensor | None:
    """Crops of photographs, like the images in size, dtype and device; None if there are few."""
    if like.dim() != 4 or like.shape[1] not in (1, 3) or max(like.shape[2:]) > 427:
        return None
    channels, high, wide = like.shape[1:]
    crops = photo_crops(max(high, wide), 3 if channels == 3 else 1).x[..., :high, :wide]
    return crops.to(like) if len(crops) >= FEWEST_CROPS else None


def _figure(shown: dict[str, Proportion], clean: Proportion) -> Figure:
    figure, axes = plt.subplots(figsize=(6.4, 0.9 + 0.22 * len(shown)))
    places = np.arange(len(shown))[::-1]
    values = np.array([share.value for share in shown.values()])
    low, high = np.array([share.interval for share in shown.values()]).T
    axes.errorbar(values, places, xerr=[values - low, high - values], fmt="o", color=COLORS["blue"])
    axes.axvline(clean.value, color="0.4", linestyle=":", linewidth=1, label="all clean images")
    axes.set_yticks(places, list(shown))
    axes.set(xlabel="accuracy (bars: 95% interval)", ylabel="", xlim=(0, 1.02))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1))  # above: a point may be anywhere
    return figure
