"""Audit section: is there a class that a small mark turns every image into?"""

from __future__ import annotations

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from modelsec.audit.parts import Section, Subject, section
from modelsec.plot import COLORS, show_image
from modelsec.repair.neural_cleanse import Scan, neural_cleanse
from modelsec.training import inference
from modelsec.zoo.results import load_result

__all__ = ["backdoor"]

IMAGES, STEPS, CLASSES = 200, 200, (5, 50)


@section(title="A backdoor, searched for", order=65)
def backdoor(subject: Subject) -> Section:
    """Neural Cleanse on 200 images at most: the smallest mark for each class, and outliers of them.

    Measures: ``flagged``, how many classes are; ``index``, the largest anomaly index; ``size``, the
    mask's size for that class; ``median``, that of all classes.
    """
    x = subject.x[:IMAGES]
    with inference(subject.model), torch.no_grad():
        classes = subject.model(x[:1]).shape[1]
    if not CLASSES[0] <= classes <= CLASSES[1]:
        return Section(
            f"The scan looks for one class among {CLASSES[0]} to {CLASSES[1]} that differs from the "
            f"others; this model has {classes}.",
            "skipped",
        )
    scan = neural_cleanse(
        subject.model, x, steps=STEPS, generator=subject.generator(), progress=False
    )
    worst, names = int(scan.index.argmax()), subject.data.classes
    if len(names) != classes:
        names = tuple(map(str, range(classes)))
    found, typical = float(scan.sizes[worst]), float(scan.sizes.quantile(0.5))
    said = (
        f"A mark that covers {found:.1f} pixels turns {float(scan.success[worst]):.0%} of the images "
        f"into class {names[worst]}; for a typical class it takes {typical:.1f}. "
        f"The anomaly index is {float(scan.index[worst]):.1f}, an alarm begins at {scan.threshold:g}. "
    )
    alarms = [run for runs in load_result("backdoor_alarms").values() for run in runs]
    rate = sum(max(run["index"]) > scan.threshold for run in alarms)
    return Section(
        said
        + (
            "An alarm is no proof: look at the mark, and scan clean networks of the same kind. (Of "
            f"{len(alarms)} that were trained on clean digits {rate} raised one.)"
            if scan.flagged
            else "No alarm is no proof: a large trigger, a warp, or one for a single class stays below."
        ),
        "warning" if scan.flagged else "info",
        {
            "flagged": float(len(scan.flagged)),
            "index": float(scan.index[worst]),
            "size": found,
            "median": typical,
        },
        scan.table,
        _picture(scan, worst, names),
        f"Bars: the size of the smallest mark for each class, {found:.1f} pixels for "
        f"{names[worst]}, {typical:.1f} in the middle. Beside them that mark, as it was found",
    )


def _picture(scan: Scan, worst: int, names: tuple[str, ...]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), width_ratios=(2.2, 1))
    colors = [COLORS["red" if k in scan.flagged else "blue"] for k in range(len(scan.triggers))]
    axes[0].bar(range(len(colors)), scan.sizes.tolist(), color=colors)
    axes[0].set_xticks(range(len(colors)), [name[:8] for name in names], rotation=40)
    axes[0].set(xlabel="class", ylabel="size of the mask (pixels)")
    mark = scan.triggers[worst]
    show_image(axes[1], mark.mask * mark.pattern, f"mark for {names[worst]}")
    return figure
