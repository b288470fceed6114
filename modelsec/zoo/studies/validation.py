"""The long results of the chapter on validation: what differs between trainings."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec import data, models
from modelsec.training import fit
from modelsec.validation import (
    Mahalanobis,
    auroc,
    ece,
    energy,
    features,
    fit_temperature,
    logits,
    msp,
    threshold,
)
from modelsec.zoo.results import study

__all__ = ["validation_seeds"]

SEEDS = tuple(range(10))


@study(
    "validation_seeds",
    about="The book's network trained ten times: accuracy, calibration, scores of strangeness.",
    n=500,
    seeds=SEEDS,
)
def validation_seeds(seeds: tuple[int, ...]) -> dict[str, Any]:
    """For each seed: everything on the second half of the test images, chosen on the first.

    Returns:
        measure -> a value per seed.
    """
    digits = data.mnist()
    strange = {
        "noise": torch.rand(1000, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        "photo crops": data.photo_crops().x,
        "drawn letters": data.drawn_letters().x,
        "other digits": data.sklearn_digits().x,
    }
    found: dict[str, list[float]] = defaultdict(list)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        net = models.fresh(models.Net, generator)
        fit(net, digits.x_train, digits.y_train, generator=generator)
        z = logits(net, digits.x_test)
        (z_choose, z_report), (y_choose, y_report) = z.split(500), digits.y_test.split(500)
        t = fit_temperature(z_choose, y_choose)
        found["accuracy"].append(float((z_report.argmax(1) == y_report).float().mean()))
        found["temperature"].append(t)
        for when, logit in (("before", z_report), ("after", z_report / t)):
            found[f"nll {when}"].append(float(F.cross_entropy(logit, y_report)))
            found[f"ece {when}"].append(ece(logit.softmax(1), y_report))
        distance = Mahalanobis.fit(features(net, digits.x_train), digits.y_train)
        usual = _scores(net, distance, digits.x_test)
        for what, x in strange.items():
            for name, values in _scores(net, distance, x).items():
                choose, report = usual[name].split(500)
                passed = values <= threshold(choose)
                found[f"auroc {name}, {what}"].append(auroc(report, values))
                found[f"missed {name}, {what}"].append(float(passed.float().mean()))
    return {key: [round(value, 6) for value in values] for key, values in found.items()}


def _scores(net: nn.Module, distance: Mahalanobis, x: Tensor) -> dict[str, Tensor]:
    z = logits(net, x)
    return {"MSP": msp(z), "energy": energy(z), "Mahalanobis": distance(features(net, x))}
