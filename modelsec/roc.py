"""The ROC on logarithmic axes, which show the corner where an attacker is sure."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

__all__ = ["roc_log"]


def roc_log(
    curves: Mapping[str, tuple[Tensor, Tensor]], *, low: float = 1e-3, axes: Axes | None = None
) -> Axes:
    """Members found against false alarms, both axes logarithmic, with the line of guessing.

    Args:
        curves: a name -> (share of false alarms, share of members found), (M,) each and rising, as
            ``Leak.roc()`` of :mod:`modelsec.attacks.membership` returns them.
        low: where both axes begin: not below one non-member.
        axes: where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no curve, or ``low`` is not between 0 and 1.
    """
    if not curves or not 0 < low < 1:
        raise ValueError(f"roc_log needs a curve and 0 < low < 1, got {len(curves)} and {low}")
    axes = plt.subplots(figsize=(4.4, 3.9))[1] if axes is None else axes
    for name, (false, true) in curves.items():
        # a step: between two thresholds nothing more is found
        axes.step(np.maximum(false.numpy(), low / 10), true.numpy(), where="post", label=name)
    axes.plot([low, 1], [low, 1], "--", color="0.4", linewidth=1, label="guessing")
    axes.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low, 1))
    axes.set(
        xlabel="share of false alarms (log scale)", ylabel="share of members found (log scale)"
    )
    axes.legend(loc="lower right", fontsize=9)
    return axes
