"""Planted backdoors: what detectors find at several poison rates, and what removal leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from modelsec.attacks.poisoning import attack_success, badnets, patch
from modelsec.cleaning.entropy import flag_low_entropy, strip
from modelsec.cleaning.poison import (
    activation_clustering,
    flag_top,
    reclassify,
    spectral_signatures,
    whiten,
)
from modelsec.data import Data, mnist
from modelsec.models import ConvNet, fresh
from modelsec.training import evaluate, features, fit
from modelsec.zoo.results import study

__all__ = ["cleaning_poison", "one_backdoor", "train"]

RATES = {"any": (0.005, 0.01, 0.02, 0.05, 0.1), "one": (0.005, 0.01, 0.02, 0.05)}
"""Shares of the training set that are poisoned: images of any class but the target, or of one
class (which holds a tenth of the data, so no more than a tenth can be poisoned)."""
ASSUMED = 0.1
"""What the spectral method is told: at most this share of a class is poisoned."""


def train(
    x: Tensor, y: Tensor, seed: int, build: Callable[[], nn.Module] = ConvNet, **options: Any
) -> nn.Module:
    """A network, the book's convolutional one if nothing is said, trained for eight epochs.

    Args:
        x: (N, 1, 28, 28) images.
        y: (N,) labels.
        seed: for the first weights and the order of the data.
        build: makes the untrained network.
        **options: of :func:`modelsec.training.fit`, in place of those used here.

    Returns:
        The model, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    model = fresh(build, generator)
    options = {"epochs": 8, "batch_size": 128, "lr": 2e-3} | options
    fit(model, x, y, generator=generator, progress=False, **options)
    return model.eval()


def one_backdoor(data: Data, kind: str, rate: float, seed: int) -> dict[str, Any]:
    """Plant one backdoor, try the detectors on it, remove what each flags, train again.

    The first half of the test images is held out as trusted data: for whitening, and for STRIP
    (250 as overlays, 250 for its threshold). All else is measured on the other half.

    Args:
        data: MNIST.
        kind: "any" or "one": which classes are poisoned.
        rate: share of the training set.
        seed: also chooses the target class, and the one class.

    Returns:
        Accuracy and attack success before, and for each detector its AUROC among the images that
        carry the target's label, the share of the poison that it found, the share of clean images
        that it removed, and accuracy and attack success after removal and training again. For
        STRIP as a guard of the model in use also the shares of test images that it stops, with
        the trigger and without; for clustering "judge", the same two measures of the network that
        reads the suspects, and "cut", the share of the poison that was among them.
    """
    target = (7 + 3 * seed) % 10
    source = None if kind == "any" else (target + 5) % 10
    trigger = patch()
    planted = badnets(
        data.x_train, data.y_train, rate=rate, target=target, trigger=trigger, source=source,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    x_test, y_test = data.x_test[500:], data.y_test[500:]

    def measure(model: nn.Module) -> dict[str, float]:
        return {
            "accuracy": evaluate(model, x_test, y_test).value,
            "success": attack_success(
                model, x_test, y_test, trigger=trigger, target=target, source=source
            ).value,
        }

    model = train(planted.x, planted.y, seed)
    result: dict[str, Any] = {"target": target, "before": measure(model)}
    overlays, clean = data.x_test[:250], data.x_test[250:500]
    other = y_test != target if source is None else y_test == source
    low = [
        strip(model, images, overlays, generator=torch.Generator().manual_seed(seed))
        for images in (planted.x, clean, x_test, trigger.stamp(x_test[other]))
    ]
    stopped = [float(flag_low_entropy(guarded, low[1]).double().mean()) for guarded in low[2:]]
    result["guard"] = dict(zip(("clean", "triggered"), stopped, strict=True))
    x, y = planted.x, planted.y
    found = features(model, x)
    clean_found = features(model, data.x_test[:500])
    white = whiten(found, y, clean_found, data.y_test[:500])
    clusters = activation_clustering(found, y, seed=seed)
    judge = train(x[~clusters.smaller], y[~clusters.smaller], seed)
    detected = {
        "spectral": _spectral(found, y),
        "whitened": _spectral(white, y),
        "clustering": (clusters.scores, reclassify(judge, x, y, clusters.smaller)),
    }
    detected["strip"] = low[0], flag_low_entropy(low[0], low[1])
    among = planted.y == target
    for name, (scores, flagged) in detected.items():
        again = train(x[~flagged], y[~flagged], seed)
        result[name] = {
            "auroc": float(roc_auc_score(planted.mask[among], scores[among])),
            "found": float(flagged[planted.mask].double().mean()),
            "lost": float(flagged[~planted.mask].double().mean()),
            "after": measure(again),
        }
    result["clustering"]["judge"] = measure(judge)
    result["clustering"]["cut"] = float(clusters.smaller[planted.mask].double().mean())
    return result


def _spectral(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    tau = spectral_signatures(features, y)
    return tau, flag_top(tau, y, eps=ASSUMED)


@study(
    "cleaning_poison",
    about="Backdoors planted in 4,000 digits: detection at several poison rates, "
    "and accuracy and attack success after removal and training again",
    n=500,
    seeds=(0, 1, 2, 3, 4),
)
def cleaning_poison(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Run :func:`one_backdoor` for both kinds, all rates and all seeds.

    Args:
        seeds: one backdoor each.

    Returns:
        {"any" or "one": {rate: [a result for each seed]}}.
    """
    data = mnist()
    return {
        kind: {
            str(rate): [one_backdoor(data, kind, rate, seed) for seed in seeds] for rate in rates
        }
        for kind, rates in RATES.items()
    }
