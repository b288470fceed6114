"""Slices: groups of images that can be described, and on which the model errs more often.

``shape_measures`` describes handwritten digits. ``find_slices`` looks at many groups, and says how
likely a group as bad as each would be by chance, also when that many were looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.intervals import Proportion

__all__ = ["Slice", "find_slices", "shape_measures"]

Condition = tuple[str, float, float]
"""(feature, low, high): low <= value < high."""
Rule = tuple[Condition, ...]


def shape_measures(x: Tensor) -> dict[str, Tensor]:
    """Four measures of handwriting, in the spirit of Morpho-MNIST.

    Args:
        x: (N, 1, H, W) float in [0, 1], bright ink on black.

    Returns:
        Each (N,) float32 on the CPU: "ink", the mean pixel; "stroke", the mean thickness of the
        strokes in pixels; "slant", how far they lean to the right, in degrees from upright;
        "width", the width of the digit divided by its height. Without ink the last three are 0.

    Raises:
        ValueError: if ``x`` is not (N, 1, H, W).

    References:
        Castro et al. (2018), Morpho-MNIST, https://arxiv.org/abs/1809.10780. Their slant, from
        second moments; their thickness is measured along the skeleton, ours over all ink.
    """
    if x.dim() != 4 or x.shape[1] != 1:
        raise ValueError(f"x must be (N, 1, H, W), got {tuple(x.shape)}")
    x = x.detach().float().cpu()
    pixels = x[:, 0]
    rows, columns = (torch.arange(float(n)) for n in pixels.shape[1:])
    mass = pixels.sum((1, 2)).clamp(min=1e-9)[:, None, None]
    dy = rows[:, None] - (pixels * rows[:, None]).sum((1, 2), keepdim=True) / mass
    dx = columns - (pixels * columns).sum((1, 2), keepdim=True) / mass
    upright = (pixels * dy * dy).sum((1, 2)).clamp(min=1e-9)
    lean = -(pixels * dx * dy).sum((1, 2)) / upright  # rows count downwards, hence the minus
    high, wide = ((pixels.amax(axis) > 0.5).sum(1) for axis in (2, 1))
    return {
        "ink": pixels.mean((1, 2)),
        "stroke": _stroke(x),
        "slant": torch.rad2deg(lean.atan()),
        "width": wide / high.clamp(min=1),
    }


def _stroke(x: Tensor, finer: int = 4) -> Tensor:
    """Mean thickness (N,): four times the mean distance of the ink to the edge.

    Across a long bar of thickness t that distance is t/4 on average. Pixels are split first, so
    that the grey ones at the edge count.
    """
    from scipy.ndimage import distance_transform_edt  # slow to import

    ink = F.interpolate(x, scale_factor=finer, mode="bilinear", align_corners=False)[:, 0] > 0.5
    # the distance to the nearest pixel's centre outside is half a pixel more than to the edge
    found = [
        4 * (distance_transform_edt(one)[one].mean() - 0.5) / finer if one.any() else 0.0
        for one in ink.numpy()
    ]
    return torch.tensor(found, dtype=torch.float32)


@dataclass(frozen=True)
class Slice:
    """A group of samples that a rule describes.

    Attributes:
        rule: its conditions, all of which hold.
        accuracy: of the model on it.
        p: the probability that a group of this size, drawn from the same samples, has as many
            errors or more (hypergeometric, one-sided).
        p_adjusted: that any of the groups looked at is as bad by chance, at most (Holm).
        looks: how many groups were looked at.
    """

    rule: Rule
    accuracy: Proportion
    p: float
    p_adjusted: float
    looks: int

    def __str__(self) -> str:
        return " and ".join(_words(*condition) for condition in self.rule)

    def members(self, features: Mapping[str, Tensor]) -> Tensor:
        """Which samples belong to it.

        Args:
            features: the same names as those it was found with, each (N,).

        Returns:
            (N,) bool.
        """
        return torch.stack(
            [(features[f] >= low) & (features[f] < high) for f, low, high in self.rule]
        ).all(0)


def _words(feature: str, low: float, high: float) -> str:
    if high - low == 1 and float(low).is_integer():
        return f"{feature} {low:.0f}"
    if low == -np.inf:
        return f"{feature} below {high:.3g}"
    return f"{feature} from {low:.3g}" + ("" if high == np.inf else f" to {high:.3g}")


def find_slices(
    correct: Tensor,
    features: Mapping[str, Tensor],
    *,
    parts: int = 5,
    depth: int = 2,
    smallest: int = 40,
) -> list[Slice]:
    """Look at all groups that one condition, or several together, describe; the worst come first.

    Args:
        correct: (N,) bool, where the model was right.
        features: a name -> (N,). Integers (a class) are taken value by value; floats are cut into
            ``parts`` of equal size.
        parts: see above, at least 2.
        depth: how many conditions at most, 1 or 2.
        smallest: groups with fewer samples are left out.

    Returns:
        The slices, those first that are least likely by chance.

    Raises:
        ValueError: for no feature, lengths that differ, or parts, depth or smallest out of range.

    References:
        Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    from scipy.stats import hypergeom  # slow to import

    n = len(correct)
    if not features or any(f.shape != (n,) for f in features.values()):
        shapes = {name: tuple(f.shape) for name, f in features.items()}
        raise ValueError(f"every feature must be ({n},) like correct, at least one: got {shapes}")
    if parts < 2 or depth not in (1, 2) or smallest < 1:
        raise ValueError(
            "parts must be 2 or more, depth 1 or 2, smallest 1 or more: got "
            f"{parts}, {depth}, {smallest}"
        )
    features = {name: f.cpu() for name, f in features.items()}
    conditions = {name: _conditions(name, f, parts) for name, f in features.items()}
    rules: list[Rule] = [(one,) for several in conditions.values() for one in several]
    if depth == 2:
        rules += [
            (one, other)
            for a, b in combinations(conditions.values(), 2)
            for one in a
            for other in b
        ]
    wrong = ~correct.bool().cpu()
    found = []
    for rule in rules:
        inside = Slice(rule, Proportion(0, 1), 1, 1, 0).members(features)
        size = int(inside.sum())
        if size >= smallest:
            errors = int(wrong[inside].sum())
            chance = float(hypergeom.sf(errors - 1, n, int(wrong.sum()), size))
            found.append((chance, rule, Proportion(size - errors, size)))
    found.sort(key=lambda entry: entry[0])
    slices, largest, looks = [], 0.0, len(found)
    for rank, (chance, rule, accuracy) in enumerate(found):
        largest = min(1.0, max(largest, chance * (looks - rank)))  # Holm's step-down
        slices.append(Slice(rule, accuracy, chance, largest, looks))
    return slices


def _conditions(name: str, values: Tensor, parts: int) -> list[Condition]:
    if not values.is_floating_point():
        return [(name, float(v), float(v) + 1) for v in values.unique()]
    cuts = np.quantile(values.double().numpy(), np.linspace(0, 1, parts + 1)[1:-1])
    edges = [-np.inf, *np.unique(cuts), np.inf]
    return [(name, float(low), float(high)) for low, high in zip(edges, edges[1:], strict=False)]
