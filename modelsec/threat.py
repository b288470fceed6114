"""Threat cards: who attacks, what they want, know and may do.

Every attack and every repair of the package carries one, attached by a decorator, so that the
tables of the book are made from the code itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from modelsec.tables import Table

__all__ = ["Registered", "ThreatModel", "card", "registry", "table", "threat"]

Goal = Literal["evasion", "targeted evasion", "poisoning", "privacy", "extraction", "repair"]
Knowledge = Literal["white-box", "scores", "labels", "transfer", "data", "none"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ThreatModel:
    """One threat, in the three words of the field: goal, knowledge, capability.

    Args:
        goal: what the attacker wants (for a repair: "repair").
        knowledge: what they see: the weights ("white-box"), the "scores" or only the "labels" that
            the model answers, another model ("transfer"), the training "data", or "none".
        norms: norms in which the change of an input is measured; empty where that has no meaning.
        stage: when they act, "training" or "deployment".
        cost: what it takes, in words ("one gradient").
        source: the paper, as a link.

    Raises:
        ValueError: for a goal or knowledge outside the lists above.
    """

    goal: Goal
    knowledge: Knowledge
    norms: tuple[str, ...] = ()
    stage: Literal["training", "deployment"] = "deployment"
    cost: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for name, kinds in (("goal", Goal), ("knowledge", Knowledge)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(
                    f"{name} must be one of {get_args(kinds)}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class Registered:
    """A function with its threat card."""

    name: str
    function: Callable[..., Any]
    threat: ThreatModel


registry: dict[str, Registered] = {}


def threat(model: ThreatModel) -> Callable[[F], F]:
    """Decorator that attaches a threat card to a function and lists it in :data:`registry`.

    Raises:
        ValueError: if another function is registered under the same name.
    """

    def attach(function: F) -> F:
        name = function.__name__
        known = registry.get(name)
        if known is not None and known.function.__module__ != function.__module__:
            raise ValueError(f"{name!r} is registered already, by {known.function.__module__}")
        registry[name] = Registered(name, function, model)
        return function

    return attach


def card(function: Callable[..., Any]) -> ThreatModel:
    """The card of a registered function.

    Raises:
        KeyError: if the function carries none.
    """
    found = registry.get(getattr(function, "__name__", ""))
    if found is None or found.function is not function:
        raise KeyError(f"{function!r} has no threat card: decorate it with @threat(...)")
    return found.threat


def table(cards: Mapping[str, ThreatModel] | None = None) -> Table:
    """Threat cards as a table, one row each: those given, or all registered attacks and repairs.

    Args:
        cards: a name -> its card; everything in :data:`registry`, by name, if None.

    Returns:
        The rows, as a list that a notebook draws. What no given card says has no column.
    """
    import modelsec.attacks
    import modelsec.repair  # noqa: F401  (importing the two fills the registry)

    if cards is None:
        cards = {name: entry.threat for name, entry in sorted(registry.items())}
    said = [f for f in fields(ThreatModel) if any(getattr(c, f.name) for c in cards.values())]
    rows = Table()
    for name, model in cards.items():
        row = {"name": name}
        for field in said:
            value = getattr(model, field.name)
            row[field.name] = ", ".join(value) if isinstance(value, tuple) else value
        rows.append(row)
    return rows
