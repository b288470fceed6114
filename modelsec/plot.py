"""One look for all figures: colour-blind safe, readable on a slide, same on every machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from modelsec.intervals import Proportion, wilson
from modelsec.roc import roc_log

__all__ = [
    "COLORS",
    "attack_matrix",
    "attack_row",
    "confusion_matrix",
    "diagram",
    "distance_curve",
    "reliability_diagram",
    "roc_log",
    "security_curve",
    "show_image",
    "timeline",
    "use_style",
]

# Okabe & Ito's palette (https://jfly.uni-koeln.de/color/), made for all kinds of colour vision
COLORS = {
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "red": "#d55e00",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "black": "#000000",
}
_MARKERS = "osD^vP*"


def use_style() -> None:
    """Set matplotlib's defaults to the book's style. Call once at the top of a notebook."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=list(COLORS.values())),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "axes.titlesize": 11,
            "axes.labelsize": 11,
            "font.size": 11,
            "font.family": "DejaVu Sans",  # ships with matplotlib
            "figure.figsize": (6.4, 3.8),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "legend.frameon": False,
            "lines.linewidth": 2,
            "image.cmap": "gray",
        }
    )


def show_image(axes: Axes, image: Tensor, title: str = "", scale: float | None = None) -> None:
    """Draw one image, pixels visible; with ``scale``, a perturbation from -scale to +scale.

    Args:
        axes: where to draw.
        image: (C, H, W) with C = 1 or 3, in [0, 1] unless ``scale`` is given.
        title: above the image.
        scale: half the range of a perturbation; blue is darker, red is brighter, white is 0.
    """
    pixels = image.detach().float().cpu().permute(1, 2, 0).numpy()
    if scale is None:
        axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], vmin=0, vmax=1)
    else:
        axes.imshow(pixels.mean(-1), cmap="RdBu_r", vmin=-scale, vmax=scale)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)


def attack_row(
    clean: Tensor,
    adversarial: Tensor,
    probabilities: tuple[Tensor, Tensor],
    classes: Sequence[str],
    *,
    top: int = 5,
) -> Figure:
    """The anatomy of one attack: clean image, perturbation, attacked image, what the model says.

    Args:
        clean: (C, H, W) in [0, 1].
        adversarial: (C, H, W) in [0, 1].
        probabilities: the model's softmax output (K,) for the clean and the attacked image.
        classes: K class names.
        top: how many classes to show, the likeliest over both images.

    Returns:
        The figure.
    """
    delta = (adversarial - clean).detach()
    scale = max(float(delta.abs().max()), 1e-12)
    before, after = (p.detach().float().cpu().numpy() for p in probabilities)
    shown = np.argsort(np.maximum(before, after))[::-1][:top][::-1]
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), width_ratios=(1, 1, 1, 1.3))
    show_image(axes[0], clean, f"clean: {classes[int(before.argmax())]} ({before.max():.0%})")
    show_image(axes[1], delta, f"change: at most {scale:.3g}", scale=scale)
    show_image(
        axes[2], adversarial, f"attacked: {classes[int(after.argmax())]} ({after.max():.0%})"
    )
    rows = np.arange(len(shown))
    axes[3].barh(rows + 0.2, before[shown], 0.4, color=COLORS["blue"], label="clean")
    axes[3].barh(rows - 0.2, after[shown], 0.4, color=COLORS["red"], label="attacked")
    axes[3].set_yticks(rows, [classes[k] for k in shown])
    axes[3].set(xlim=(0, 1), xlabel="probability", ylabel="class")
    axes[3].legend(loc="lower right")
    return figure


def security_curve(
    curves: Mapping[str, Mapping[float, Proportion]],
    *,
    xlabel: str = "eps (largest change of a pixel, pixels in [0, 1])",
    clean: Proportion | None = None,
    chance: float | None = None,
) -> Figure:
    """Accuracy against attack strength, with 95% intervals.

    Args:
        curves: a name -> {eps: accuracy} for each attack or model.
        xlabel: what eps measures, with its unit.
        clean: accuracy without an attack, drawn as a dotted line.
        chance: accuracy of guessing, drawn as a dashed line.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no curve.
    """
    if not curves:
        raise ValueError("security_curve needs at least one curve")
    figure, axes = plt.subplots()
    for (name, curve), marker in zip(curves.items(), _MARKERS * len(curves), strict=False):
        eps = sorted(curve)
        low, high = zip(*(curve[e].interval for e in eps), strict=True)
        (line,) = axes.plot(eps, [curve[e].value for e in eps], marker=marker, label=name)
        axes.fill_between(eps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    if clean is not None:
        axes.axhline(clean.value, color="0.4", linestyle=":", linewidth=1, label="clean accuracy")
    if chance is not None:
        axes.axhline(chance, color="0.4", linestyle="--", linewidth=1, label="guessing")
    axes.set(xlabel=xlabel, ylabel="accuracy (shaded: 95% interval)", ylim=(-0.02, 1.02))
    axes.legend()
    return figure


def distance_curve(
    distances: Mapping[str, Tensor],
    *,
    xlabel: str,
    xlim: float | None = None,
    checks: Mapping[str, Mapping[float, Proportion]] | None = None,
) -> Figure:
    """Accuracy against every eps at once, from each image's distance to its nearest error.

    Args:
        distances: a name -> (n,) distances; 0 for an error from the start, infinite for a miss.
        xlabel: what eps measures, with its unit.
        xlim: where the axis ends; at the largest finite distance if None.
        checks: a name, as above -> {eps: accuracy} by another attack, drawn as points.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no curve.
    """
    if not distances:
        raise ValueError("distance_curve needs at least one set of distances")
    figure, axes = plt.subplots()
    finite = [d[d.isfinite()].max().item() for d in distances.values() if d.isfinite().any()]
    end = xlim if xlim is not None else max([*finite, 1e-9])
    for (name, values), color in zip(distances.items(), list(COLORS.values()) * 9, strict=False):
        near = values.double().cpu().sort().values.numpy()
        eps = near[near <= end]
        shares = 1 - np.arange(len(eps) + 1) / len(near)
        axes.step([0, *eps, end], [*shares, shares[-1]], where="post", color=color, label=name)
        for at, left in sorted((checks or {}).get(name, {}).items()):
            low, high = left.interval
            bar = [[left.value - low], [high - left.value]]
            axes.errorbar([at], [left.value], yerr=bar, fmt="o", color=color, linewidth=1)
    axes.set(xlabel=xlabel, ylabel="share of images right at every\npoint tried within eps")
    axes.set(xlim=(0, end), ylim=(-0.02, 1.02))
    axes.legend()
    return figure


def attack_matrix(
    shares: Mapping[str, Mapping[str, Proportion]], *, apart: Collection[str] = ()
) -> Figure:
    """Accuracy left in percent, attack by defence, with 95% intervals; each worst one is framed.

    Args:
        shares: an attack (row) -> {defence (column): accuracy left}; an entry may be missing.
        apart: rows that are no single attack, such as a worst case: drawn like the others, never
            framed.

    Returns:
        The figure. Of several entries that are equally bad all are framed.

    Raises:
        ValueError: if there is no entry.
    """
    columns = list(dict.fromkeys(name for row in shares.values() for name in row))
    if not columns:
        raise ValueError("attack_matrix needs at least one entry")
    figure, axes = plt.subplots(figsize=(3 + 0.85 * len(columns), 1.6 + 0.6 * len(shares)))
    table = [[float(row.get(name, np.nan)) for name in columns] for row in shares.values()]
    axes.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for j, column in enumerate(columns):
        attacked = {name: row[column] for name, row in shares.items() if column in row}
        worst = min((float(attacked[name]) for name in attacked if name not in apart), default=0)
        for i, name in enumerate(shares):
            if (share := attacked.get(name)) is None:
                continue
            low, high = (f"{100 * end:.0f}" for end in share.interval)
            ink, percent = "k" if share.value > 0.47 else "w", f"{100 * share.value:.0f}"
            axes.text(j, i - 0.14, percent, size=16, color=ink, ha="center", va="center")
            axes.text(j, i + 0.28, f"{low}–{high}", size=10, color=ink, ha="center", va="center")
            if name not in apart and share.value == worst:
                corner, color = (j - 0.46, i - 0.44), COLORS["red"]
                axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, ec=color, lw=3.5))
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(shares)), list(shares))
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.grid(False)
    return figure


def confusion_matrix(counts: Tensor, classes: Sequence[str]) -> Figure:
    """How often each class is taken for each other; what is right is left pale.

    Args:
        counts: (K, K); a row is a true class, a column a predicted one.
        classes: K class names.

    Returns:
        The figure. Colour shows mistakes only, so that they aren't drowned by what is right.
    """
    table = counts.cpu().numpy()
    wrong = table.astype(float)
    np.fill_diagonal(wrong, 0)
    figure, axes = plt.subplots(figsize=(5.6, 5))
    axes.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(wrong.max() * 1.3, 1))
    for i, j in zip(*table.nonzero(), strict=True):
        weight = "normal" if i == j else "bold"
        axes.text(j, i, f"{table[i, j]}", ha="center", va="center", fontsize=9, weight=weight)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(False)
    return figure


def reliability_diagram(axes: Axes, bins: Any, title: str = "") -> None:
    """Accuracy against confidence, bin by bin, with 95% intervals and the line that is wanted.

    Args:
        axes: where to draw.
        bins: a :class:`~modelsec.validation.calibration.Reliability`.
        title: above the diagram.
    """
    there = bins.count > 0
    confidence, accuracy, count = (
        values[there].cpu().numpy() for values in (bins.confidence, bins.accuracy, bins.count)
    )
    ends = [wilson(round(a * n), int(n)) for a, n in zip(accuracy, count, strict=True)]
    low, high = np.array(ends).T
    axes.plot([0, 1], [0, 1], "--", color="0.4", linewidth=1, label="calibrated")
    axes.errorbar(
        confidence, accuracy, yerr=(accuracy - low, high - accuracy), fmt="o", color=COLORS["blue"],
        linewidth=1, label="measured (95% interval)",
    )  # fmt: skip
    for x, y, n in zip(confidence, high, count, strict=True):
        axes.annotate(f"{n}", (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=7)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.08), xlabel="confidence (mean of the bin)", title=title)
    axes.set_ylabel("accuracy (small number: n)")
    axes.legend(loc="lower right", fontsize=8)


def diagram(
    boxes: Mapping[str, tuple[float, float]],
    arrows: Sequence[tuple[str, str, str]],
    *,
    colors: Mapping[str, str] | None = None,
    size: tuple[float, float] = (5.5, 5.5),
) -> Figure:
    """Boxes with text in them, joined by arrows that say how they relate.

    Args:
        boxes: text -> (x, y) of its centre, from (0, 0) at the bottom left to (1, 1).
        arrows: (text of one box, text of another, what the arrow says).
        colors: text -> colour of a box's frame and of the arrows that leave it; grey if absent.
        size: width and height in inches. Text keeps its size, so a narrow figure reads on a phone.

    Returns:
        The figure.

    Raises:
        ValueError: if an arrow joins a box that isn't there.
    """
    ends = {end for source, target, _ in arrows for end in (source, target)}
    if not ends <= set(boxes):
        raise ValueError(f"arrows join {sorted(ends - set(boxes))}, which are no boxes")
    frames = dict.fromkeys(boxes, "0.4") | dict(colors or {})
    figure, axes = plt.subplots(figsize=size)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    drawn = {}
    for name, (x, y) in boxes.items():
        frame = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": frames[name]}
        text = axes.text(x, y, name, ha="center", va="center", bbox=frame | {"linewidth": 2})
        drawn[name] = text.get_bbox_patch()
    for source, target, label in arrows:  # drawn after the boxes, which then have their places
        (x0, y0), (x1, y1) = boxes[source], boxes[target]
        arrow = FancyArrowPatch(
            (x0, y0),
            (x1, y1),
            patchA=drawn[source],
            patchB=drawn[target],
            shrinkA=0,
            shrinkB=2,
            arrowstyle="-|>",
            mutation_scale=14,
            color=frames[source],
            linewidth=1.5,
            zorder=4,
        )
        axes.add_patch(arrow)
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        text = axes.text(*middle, label, ha="center", va="center", size=10, style="italic")
        text.set(bbox=paper, zorder=5)
    return figure


def timeline(
    events: Sequence[tuple[float, str, str]], *, size: tuple[float, float] = (5.5, 7.5)
) -> Figure:
    """Events below one another, each joined to its place on a line of years.

    Args:
        events: (year, such as 2016.25 for April 2016; kind; what happened), the earliest first.
            Each kind has a colour and a marker of its own.
        size: width and height in inches.

    Returns:
        The figure.

    Raises:
        ValueError: if there are no events, or they are not in order.
    """
    years = [year for year, _, _ in events]
    if not years or years != sorted(years):
        raise ValueError("timeline needs at least one event, the earliest first")
    figure, axes = plt.subplots(figsize=size)
    rows = np.linspace(years[0], years[-1], len(years)) if len(years) > 1 else np.array(years)
    kinds = list(dict.fromkeys(kind for _, kind, _ in events))
    looks = dict(zip(kinds, zip(COLORS.values(), _MARKERS, strict=False), strict=False))
    for row, (year, kind, text) in zip(rows, events, strict=True):
        color, marker = looks[kind]
        axes.plot([0, 0.06, 0.1], [year, row, row], color=color, linewidth=1)
        axes.plot(0, year, marker, color=color, markersize=7, clip_on=False)
        axes.text(0.11, row, text, va="center")
    for kind, (color, marker) in looks.items():
        axes.plot([], [], marker, color=color, label=kind)
    axes.set(xlim=(0, 1), ylim=(years[-1] + 0.5, years[0] - 0.5), ylabel="year")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xticks([])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(looks))
    return figure
