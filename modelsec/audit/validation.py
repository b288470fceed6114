"""Audit section: every class, the confidence, worse images, and images of something else."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from modelsec.audit.accuracy import clean_accuracy
from modelsec.audit.parts import Section, Subject, section
from modelsec.intervals import Proportion, bootstrap
from modelsec.plot import COLORS
from modelsec.tables import Table
from modelsec.validation.calibration import ece, ece_if_calibrated
from modelsec.validation.corruption_report import CorruptionReport, corruption_report
from modelsec.validation.metrics import logits
from modelsec.validation.shift import Mahalanobis, auroc, energy, features

__all__ = ["CORRUPTIONS", "SEVERITIES", "photo_crops", "validation"]

CORRUPTIONS = ("gaussian_noise", "motion_blur", "brightness", "rotate", "pixelate", "occlusion")
"""One kind of each family, to stay cheap."""
SEVERITIES = (1, 2, 3)
CROPS = 200
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
    score, area = _strangers(subject, answers)
    measures["ood_auroc"] = area
    told.append(
        f"{score} tells crops of photographs from the test images with an AUROC of {area:.3f}."
    )
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


def _strangers(subject: Subject, answers: Tensor) -> tuple[str, float]:
    """The name of a score, and its AUROC; by features where there are some, else by logits."""
    strange = photo_crops(CROPS, subject.x, seed=subject.seed)
    x, y = subject.data.x_train, subject.data.y_train
    model = subject.model
    by_features = isinstance(model, nn.Module) and any(
        isinstance(module, nn.Linear) for module in model.modules()
    )
    if by_features and len(y) and bool((y.bincount() > 1).all()):
        assert isinstance(model, nn.Module)
        distance = Mahalanobis.fit(features(model, x), y)
        scores = [distance(features(model, images)) for images in (subject.x, strange)]
        name = "The Mahalanobis distance"
    else:
        scores = [energy(answers), energy(logits(model, strange))]
        name = "The energy"
    return name, auroc(*(score.double().cpu() for score in scores))


def photo_crops(n: int, like: Tensor, *, seed: int = 0) -> Tensor:
    """Crops of two real photographs, those that ship with scikit-learn, as strange inputs.

    Args:
        n: how many.
        like: (N, C, H, W) images whose size, dtype and device the crops get; C is 1 or 3.
        seed: for their places.

    Returns:
        (n, C, H, W) in [0, 1].

    Raises:
        ValueError: if the size is larger than the photographs, or C is neither 1 nor 3.
    """
    from sklearn.datasets import load_sample_images  # slow to import

    if like.dim() != 4 or like.shape[1] not in (1, 3):
        raise ValueError(f"images must be (N, 1 or 3, H, W), got {tuple(like.shape)}")
    channels, high, wide = like.shape[1:]
    photos = [torch.from_numpy(image.copy()) for image in load_sample_images().images]
    rows, columns = (min(photo.shape[i] for photo in photos) for i in (0, 1))
    if high > rows or wide > columns:
        raise ValueError(f"crops can be {rows} x {columns} at most, asked for {high} x {wide}")
    random = np.random.default_rng(seed)
    crops = []
    for i in range(n):
        top, left = random.integers(rows - high + 1), random.integers(columns - wide + 1)
        crop = photos[i % len(photos)][top : top + high, left : left + wide]
        crops.append(crop.permute(2, 0, 1))
    images = torch.stack(crops).to(like.dtype) / 255
    return (images.mean(1, keepdim=True) if channels == 1 else images).to(like.device)


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
