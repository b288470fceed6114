"""What an audit is made of: the subject that is measured, and the sections that measure it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from modelsec.attacks.common import Model
from modelsec.data import Data
from modelsec.intervals import Proportion
from modelsec.tables import Table

__all__ = ["RADII", "Registered", "Section", "Subject", "registry", "section", "sections"]

RADII = {
    "linf": (0.01, 0.02, 0.03, 0.05, 0.1, 0.2),
    "l2": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
    "l1": (1.0, 2.0, 4.0, 6.0, 10.0, 15.0),
}
Verdict = Literal["ok", "warning", "info", "skipped"]


@dataclass(frozen=True)
class Subject:
    """What is audited, and how.

    Attributes:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K).
        data: on the model's device; its training half may be empty.
        name: what the report calls the model.
        n: how many test images are used at most.
        norm: the norm of the attacks.
        radii: their sizes, rising, in pixels of [0, 1].
        seed: for all that is drawn.
        cache: what one section measured and another may use: key -> value.
    """

    model: Model
    data: Data
    name: str = "model"
    n: int = 1000
    norm: str = "linf"
    radii: tuple[float, ...] = RADII["linf"]
    seed: int = 0
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def x(self) -> Tensor:
        """The test images, the first n: (n, C, H, W)."""
        return self.data.x_test[: self.n]

    @property
    def y(self) -> Tensor:
        """Their labels, (n,)."""
        return self.data.y_test[: self.n]

    def generator(self) -> torch.Generator:
        """A fresh generator with the audit's seed, so that a section does not depend on others."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Section:
    """What a section found.

    Attributes:
        summary: one or two sentences for the card.
        verdict: "ok", "warning", "info" (a number without a threshold), or "skipped" (and why).
        measures: name -> number; a share is a Proportion, so that its interval goes with it.
        table: details, or None.
        figure: a picture, or None.
        alt: what the picture shows, for those who do not see it.
        name, title: filled in by the audit.
    """

    summary: str
    verdict: Verdict = "info"
    measures: Mapping[str, float | Proportion] = field(default_factory=dict)
    table: Table | None = None
    figure: Figure | None = None
    alt: str = ""
    name: str = ""
    title: str = ""


Measure = Callable[[Subject], Section]


@dataclass(frozen=True)
class Registered:
    """A section's function, with its name and place."""

    name: str
    title: str
    order: int
    measure: Measure


registry: dict[str, Registered] = {}


def section(*, title: str, order: int) -> Callable[[Measure], Measure]:
    """Decorator that adds a section to every audit, under its function's name.

    Args:
        title: its heading.
        order: where it stands; sections with smaller numbers come first.

    Returns:
        The decorator.

    Raises:
        ValueError: if another function is registered under the same name.
    """

    def register(measure: Measure) -> Measure:
        name = measure.__name__
        known = registry.get(name)
        if known is not None and known.measure.__module__ != measure.__module__:
            raise ValueError(f"{name!r} is a section already, in {known.measure.__module__}")
        registry[name] = Registered(name, title, order, measure)
        return measure

    return register


def sections() -> dict[str, str]:
    """The names of all sections with their titles, in the order of the report."""
    ordered = sorted(registry.values(), key=lambda entry: (entry.order, entry.name))
    return {entry.name: entry.title for entry in ordered}
