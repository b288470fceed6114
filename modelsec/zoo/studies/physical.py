"""The long results of the chapter on physical attacks: a patch for photographs, trained in two ways."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelsec import data, pretrained
from modelsec.attacks import Placement, apply_patch, patch
from modelsec.attacks.physical import View
from modelsec.training import evaluate
from modelsec.zoo.results import study

__all__ = ["TARGET", "camera", "hits", "split", "trained_patch", "unpacked"]

TARGET = "toaster"
PLACEMENT = Placement((0.25, 0.5), (-45.0, 45.0))
SCALES, ANGLES, PLACES = (0.2, 0.3, 0.4, 0.5), (0.0, 45.0, 90.0, 180.0), 3
_TRAINED_ON, _SIZE = 5, 64


def split(seed: int) -> tuple[data.Images, Tensor, Tensor]:
    """The photographs, and which of them a patch is trained on and which are held out.

    Args:
        seed: draws the split.

    Returns:
        The photographs; rows to train on (5,), rows held out (8,).
    """
    photos = data.photos()
    order = torch.randperm(len(photos.x), generator=torch.Generator().manual_seed(seed))
    return photos, order[:_TRAINED_ON], order[_TRAINED_ON:]


def hits(
    model: nn.Module, x: Tensor, sticker: Tensor, scale: float, angle: float, target: int, seed: int
) -> Tensor:
    """At how many of three random places a patch of one size and angle steers each photograph.

    Args:
        model: maps (N, 3, H, W) to logits.
        x: (N, 3, H, W) photographs.
        sticker: (3, S, S) the patch.
        scale: its side as a share of the photograph's.
        angle: degrees.
        target: the class to reach.
        seed: draws the places, the same for every patch.

    Returns:
        (N,) int64, 0 to 3.
    """
    generator, placement = (
        torch.Generator().manual_seed(seed),
        Placement((scale,) * 2, (angle,) * 2),
    )
    wanted = torch.full((len(x),), target)
    counts = torch.zeros(len(x), dtype=torch.long)
    for _ in range(PLACES):
        patched = apply_patch(x, sticker, placement.draw(x, generator))
        counts += evaluate(model, patched, wanted).correct
    return counts


def unpacked(result: dict[str, Any]) -> Tensor:
    """The recorded patch: (3, 64, 64) in [0, 1], in 256 levels, as a printer gets it.

    Args:
        result: of the study "physical_patch".

    Returns:
        The patch.
    """
    levels = np.frombuffer(base64.b64decode(result["patch"]), np.uint8).copy()
    return torch.from_numpy(levels).view(3, _SIZE, _SIZE) / 255


def camera(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """A rough simulation of a camera: fewer pixels, less light, less contrast, drawn once a batch.

    Args:
        images: (N, C, H, W) in [0, 1].
        generator: draws.

    Returns:
        (N, C, H, W) in [0, 1], differentiable in ``images``.
    """
    pixels, light, lift = torch.rand(3, generator=generator).tolist()
    size = tuple(round(side * (0.35 + 0.65 * pixels)) for side in images.shape[-2:])
    how = {"mode": "bilinear", "antialias": True}
    small = F.interpolate(images, size=size, **how)  # type: ignore[arg-type]
    seen = F.interpolate(small, size=tuple(images.shape[-2:]), **how)  # type: ignore[arg-type]
    level = 0.5 + 0.5 * light
    taken: Tensor = (seen * level + lift * (1 - level)).clamp(0, 1)
    return taken


def trained_patch(seed: int, view: View | None) -> dict[str, Any]:
    """Train a patch; stick it on every held-out photograph, at 3 places for each size and angle.

    Args:
        seed: for the split, the draws of the training and the places.
        view: what happens to a patched image in training.

    Returns:
        "patch" (see :func:`unpacked`), "train" and "held out" (names), "places", "hits" (see
        :func:`hits`) by scale and angle, and the mean "log odds against the target" of every 25
        steps.
    """
    photos, train, held_out = split(seed)
    model, classes = pretrained.efficientnet_lite0(), pretrained.imagenet_classes()
    target = classes.index(TARGET)
    losses: list[float] = []
    made = patch(
        model,
        photos.x[train],
        torch.full((len(train),), target),
        size=_SIZE,
        placement=PLACEMENT,
        steps=200,
        batch_size=6,
        step_size=0.08,
        view=view,
        callback=lambda point: losses.append(float(point.loss.mean())),
        generator=torch.Generator().manual_seed(seed),
    )
    levels = (made * 255).round().to(torch.uint8)
    packed = base64.b64encode(levels.numpy().tobytes()).decode()
    sticker, x = unpacked({"patch": packed}), photos.x[held_out]
    return {
        "patch": packed,
        "train": [photos.names[k] for k in train.tolist()],
        "held out": [photos.names[k] for k in held_out.tolist()],
        "places": PLACES,
        "log odds against the target": [
            -sum(losses[k : k + 25]) / 25 for k in range(0, len(losses), 25)
        ],
        "hits": {
            f"{scale:g}": {
                f"{angle:g}": hits(model, x, sticker, scale, angle, target, seed).tolist()
                for angle in ANGLES
            }
            for scale in SCALES
        },
    }


_ABOUT = "a patch for EfficientNet-Lite0 from 5 photographs, on the 8 held out, size by angle"


@study("physical_patch", about=_ABOUT, n=8, seeds=(0,))
def physical_patch(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`trained_patch`."""
    return trained_patch(seeds[0], None)


@study("physical_camera", about=_ABOUT + "; trained through a simulated camera", n=8, seeds=(0,))
def physical_camera(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`trained_patch`, with :func:`camera` as the view."""
    return trained_patch(seeds[0], camera)
