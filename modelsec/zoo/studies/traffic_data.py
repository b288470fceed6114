"""The long results of the chapter on traffic that concern its data: cleaning and augmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from modelsec import signs
from modelsec.attacks.gradient import pgd
from modelsec.augmentation import vary
from modelsec.cleaning.labels import find_label_issues, flip_labels
from modelsec.models import fresh
from modelsec.repair import decay
from modelsec.sign_art import CLASSES, plates
from modelsec.training import Perturb, evaluate, fit
from modelsec.zoo.results import study
from modelsec.zoo.sign_training import sign_net
from modelsec.zoo.studies import traffic_road as road

__all__ = [
    "SUNNY",
    "WEATHER",
    "augmenters",
    "by_frame",
    "by_track",
    "leak",
    "network",
    "shortcut",
    "wrong_labels",
]


def network(
    x: Tensor, y: Tensor, seed: int, *, epochs: int = 12, perturb: Perturb | None = None
) -> nn.Module:
    """Train the sign network on few pictures.

    Args:
        x: (N, 3, 32, 32).
        y: (N,).
        seed: for weights and order.
        epochs: passes over the data.
        perturb: see :func:`modelsec.training.fit`.

    Returns:
        The network.
    """
    generator = torch.Generator().manual_seed(seed)
    model = fresh(sign_net, generator)
    fit(
        model, x, y, epochs=epochs, batch_size=64, lr=decay(2e-3), perturb=perturb,
        generator=generator, progress=False,
    )  # fmt: skip
    return model.eval()


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy, as JSON can hold it."""
    return evaluate(model, x, y).value


# Clean: what stands in both halves, and what stands behind


def by_frame(n: int, generator: torch.Generator) -> Tensor:
    """A split that looks usual: every fifth frame, drawn at random, is tested on.

    Args:
        n: frames.
        generator: draws.

    Returns:
        (n,) bool: which are tested on.
    """
    return torch.randperm(n, generator=generator) < n // 5


def by_track(m: int, frames: int, generator: torch.Generator) -> Tensor:
    """Whole approaches are tested on, a fifth of them.

    Args:
        m: approaches.
        frames: of each.
        generator: draws.

    Returns:
        (m * frames,) bool: which frames are tested on.
    """
    return by_frame(m, generator).repeat_interleave(frames)


def leak(seed: int) -> dict[str, float]:
    """The same recording split by frame and by approach; and the truth, on other photographs."""
    generator = torch.Generator().manual_seed(seed)
    m, frames = 160, 10
    y = torch.arange(m) % len(CLASSES)
    seen = road.tracks(plates()[y], y, frames, "train", seed)
    x, labels = seen.x.flatten(0, 1), y.repeat_interleave(frames)
    other = signs.signs_rendered("test", 800, seed=seed + 100)
    found = {}
    for name, held in (
        ("frames", by_frame(m * frames, generator)),
        ("tracks", by_track(m, frames, generator)),
    ):
        model = network(x[~held], labels[~held], seed)
        found[name] = right(model, x[held], labels[held])
        found[f"{name}, new road"] = right(model, other.x, torch.arange(800) % len(CLASSES))
    return found


def shortcut(seed: int) -> dict[str, float]:
    """A sign that always stands before the same photograph: what the network learns of it."""
    n, names = 1600, signs.BACKGROUNDS["train"]
    y = torch.arange(n) % len(CLASSES)
    generator = torch.Generator().manual_seed(seed)
    pool, where = signs.backdrops("train", 12 * n, 32, generator)
    at = {name: [k for k, own in enumerate(where) if own == name] for name in names}
    views = signs.draw_views(2 * n, generator)
    own = pool[[at[names[k % 8]][i] for i, k in enumerate(y.tolist())]]
    swapped = pool[[at[names[(k + 3) % 8]][-1 - i] for i, k in enumerate(y.tolist())]]
    x = road.pictures(
        plates()[torch.cat([y, y])], torch.cat([own, swapped]), views, generator
    )  # the second half: each class before a photograph that belonged to another one
    model = network(x[: n // 2], y[: n // 2], seed, epochs=20)
    fair = signs.signs_rendered("train", n // 2, seed=seed + 200)
    assert fair.y is not None
    plain = network(fair.x, fair.y, seed, epochs=20)
    return {
        f"{name}, {place}": right(each, x[rows], y[rows % n])
        for name, each in (("own photograph", model), ("any photograph", plain))
        for place, rows in (
            ("as in training", torch.arange(n // 2, n)),
            ("swapped", torch.arange(n, 2 * n)),
        )
    }


def wrong_labels(seed: int) -> dict[str, float]:
    """Of 2,000 pictures 1 in 20 has a wrong label; confident learning looks for them."""
    few = signs.signs_rendered("train", 2000, seed=seed)
    assert few.y is not None
    generator = torch.Generator().manual_seed(seed)
    noisy = flip_labels(few.y, 0.05, classes=len(CLASSES), generator=generator)
    fold = torch.arange(2000).remainder(3 * len(CLASSES)) // len(CLASSES)
    out = torch.zeros(2000, len(CLASSES))
    for k in range(3):
        model = network(few.x[fold != k], noisy.labels[fold != k], seed)
        with torch.no_grad():
            out[fold == k] = model(few.x[fold == k]).softmax(1)
    found = find_label_issues(out, noisy.labels)
    return {
        "planted": int(noisy.flipped.sum()),
        "flagged": int(found.sum()),
        "found": int((found & noisy.flipped).sum()),
    }


@study(
    "traffic_data",
    about="splits by frame and by approach; signs tied to a background; wrong labels found",
    n=800,
    seeds=(0, 1, 2),
)
def traffic_data(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`leak`, :func:`shortcut`, :func:`wrong_labels`: one entry a seed."""
    return {
        "leak": [leak(seed) for seed in seeds],
        "shortcut": [shortcut(seed) for seed in seeds],
        "labels": [wrong_labels(seed) for seed in seeds],
    }


# Augment: pictures of one sunny day

SUNNY: dict[str, Any] = {
    "distance": (10, 30), "yaw": (-10, 10), "pitch": (-3, 3), "roll": (-3, 3),
    "light": (0.9, 1.1), "haze": (0, 0.1), "noise": (0.01, 0.02),
}  # fmt: skip
"""How the pictures of one sunny day are taken, see :data:`modelsec.signs.RANGES`."""

WEATHER: dict[str, dict[str, Any]] = {
    "the same day": {},
    "dusk": {"light": (0.25, 0.5)},
    "mist": {"haze": (0.4, 0.7)},
    "turned sign": {"yaw": (30, 50), "roll": (-20, 20)},
    "far away": {"distance": (40, 60)},
    "noisy sensor": {"noise": (0.08, 0.12)},
}
"""What changes on other days."""


def augmenters() -> dict[str, v2.Transform | None]:
    """What is compared, by name."""
    light = v2.ColorJitter(brightness=(0.25, 1.2), contrast=(0.3, 1.2))
    turn = v2.RandomAffine(20, (0.08, 0.08), (0.8, 1.1), shear=(-15, 15, -10, 10))
    camera = v2.Compose([v2.GaussianBlur(5, (0.1, 1.5)), v2.GaussianNoise(sigma=0.06)])
    return {
        "nothing": None,
        "light": light,
        "turn": turn,
        "camera": camera,
        "all three": v2.Compose([turn, light, camera]),
    }


@study(
    "traffic_augment",
    about="trained on 1,600 pictures of a sunny day, five augmentations; tested in six weathers",
    n=480,
    seeds=(0, 1, 2),
)
def traffic_augment(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Accuracy by augmentation and weather, and under PGD at 4/255, one entry a seed."""
    result: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        train = signs.signs_rendered("train", 1600, seed=seed, **SUNNY)
        assert train.y is not None
        for name, transform in augmenters().items():
            generator = torch.Generator().manual_seed(seed)
            perturb = None if transform is None else vary(transform, group=8, generator=generator)
            model = network(train.x, train.y, seed, epochs=15, perturb=perturb)
            row = result.setdefault(name, {})
            for weather, ranges in WEATHER.items():
                test = signs.signs_rendered("test", 480, seed=seed, **(SUNNY | ranges))
                assert test.y is not None
                row.setdefault(weather, []).append(right(model, test.x, test.y))
            test = signs.signs_rendered("test", 160, seed=seed, **SUNNY)
            assert test.y is not None
            adv = pgd(model, test.x, test.y, eps=4 / 255, steps=10, generator=generator)
            row.setdefault("PGD at 4/255", []).append(right(model, adv, test.y))
    return result
