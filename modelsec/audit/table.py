"""The audit card of a model for tables: the sections that make sense for rows, and why others do not.

A row's columns have rules of their own. So the attack is the one that keeps to them, its strength
is money, and what it finds is a row that can exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from modelsec.attacks.common import Model
from modelsec.attacks.tabular import Rules, cheapest
from modelsec.audit.parts import Section, Subject, registry, sections
from modelsec.audit.report import Report
from modelsec.cleaning.duplicates import exact_duplicates
from modelsec.cleaning.labels import find_label_issues, logistic, out_of_fold_probabilities
from modelsec.data import Data
from modelsec.intervals import Proportion, bootstrap
from modelsec.plot import security_curve, use_style
from modelsec.tables import Table
from modelsec.training import inference

__all__ = ["ANY", "WHY_NOT", "audit_table"]

ANY = ("membership",)
"""Sections of the audit of images that ask nothing of the inputs: they measure rows as well."""

WHY_NOT = {
    "adaptive": "it is for models with a step that changes images",
    "certified": "the package has no proof for rows and prices",
    "distance": "a norm is no price; prices stand under evasion",
    "sanity": "its checks are about gradients and norms",
    "spatial": "a row can't be turned or shifted",
}
_ELSE = "it changes every input by a little, and most rows made like that can't exist"


def audit_table(
    model: Model,
    data: Data,
    *,
    rules: Rules,
    budgets: Sequence[float],
    costs: Tensor,
    attacker: int = 0,
    groups: Mapping[str, Tensor] | None = None,
    name: str = "model",
    unit: str = "money",
    seed: int = 0,
) -> Report:
    """Measure a model for tables and write its audit card.

    Args:
        model: maps rows (N, D) to logits (N, K); its answer is the largest.
        data: rows (N, D), with a training half.
        rules: what an attacker can change, and at what price.
        budgets: what an attacker may spend, rising; 0 is added.
        costs: (K, K) what an answer costs: a row for each true class, a column for each answer.
        attacker: the true class of those who want another answer.
        groups: a name -> (N,) bool over the test rows.
        name: what the card calls the model.
        unit: what the prices of the rules are in.
        seed: for all that is drawn.

    Returns:
        The :class:`~modelsec.audit.report.Report`; sections that mean nothing for rows say so.

    Raises:
        ValueError: for no test rows, budgets that are not positive and rising, or costs of another
            shape than (K, K).
    """
    spent = (0.0, *map(float, budgets))
    if list(spent) != sorted(set(spent)) or len(spent) < 2 or not len(data.y_test):
        raise ValueError(f"need test rows and positive, rising budgets, got {list(budgets)}")
    if costs.shape != (len(data.classes),) * 2:
        raise ValueError(f"costs must have shape (K, K) for {data.classes}, got {costs.shape}")
    subject = Subject(model, data, name, len(data.y_test), unit, spent, seed)
    with inference(model), torch.no_grad():
        answer = model(subject.x).argmax(1)
    with plt.rc_context(), plt.ioff(), inference(model):
        use_style()
        measured = {
            "data": _data(subject),
            "clean": _clean(subject, answer, costs),
            "validation": _validation(subject, answer, groups or {}),
            "evasion": _evasion(subject, rules, attacker),
        } | {key: registry[key].measure(subject) for key in ANY if key in registry}
    for part in measured.values():
        if part.figure is not None:
            plt.close(part.figure)  # the report draws it; a notebook must not draw it once more
    titles = sections() | {"evasion": "Evasion, changes that the rules allow"}
    found = []
    for key, title in titles.items():
        why = Section(f"Not for tables: {WHY_NOT.get(key, _ELSE)}.", "skipped")
        found.append(replace(measured.get(key, why), name=key, title=title))
    return Report(subject, tuple(found))


def _standard(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Logistic regression on standardised columns, as a FitPredict."""
    mean, width = x.mean(0), x.std(0).clamp_min(1e-9)
    return logistic((x - mean) / width, y, (new - mean) / width)


def _data(subject: Subject) -> Section:
    x, y = subject.data.x_train, subject.data.y_train
    leaked = Proportion(len(exact_duplicates(subject.x, x).first.unique()), len(subject.y))
    p = out_of_fold_probabilities(x, y, _standard, generator=subject.generator())
    doubt = Proportion(int(find_label_issues(p, y).sum()), len(y))
    sizes = y.bincount(minlength=len(subject.data.classes)).tolist()
    told = ", ".join(f"{k} {n}" for k, n in zip(subject.data.classes, sizes, strict=True))
    return Section(
        f"{len(y):,} training rows ({told}); {leaked.hits} test rows stand among them too; "
        f"{doubt.hits} training labels look unlikely, which in such data is no proof of an error.",
        "warning" if leaked.hits else "ok",
        {"leaked_exact": leaked, "label_issues": doubt},
    )


def _clean(subject: Subject, answer: Tensor, costs: Tensor) -> Section:
    each = costs[subject.y, answer].double().numpy()
    constant = min(float(costs[subject.y, k].double().mean()) for k in range(len(costs)))
    low, high = bootstrap(each, statistic=lambda v: float(np.mean(v)), seed=subject.seed)
    right = Proportion(int((answer == subject.y).sum()), len(subject.y))
    better = high < constant
    return Section(
        f"A decision costs {each.mean():.3f} on average (95% interval {low:.3f} to {high:.3f}); the "
        f"best constant answer costs {constant:.3f}"
        + (". " if better else ", which is not clearly more. ")
        + f"Accuracy {right}: it is not what was made small.",
        "ok" if better else "warning",
        {
            "cost": float(each.mean()),
            "cost_low": low,
            "cost_high": high,
            "constant": constant,
            "accuracy": right,
        },
    )


def _validation(subject: Subject, answer: Tensor, groups: Mapping[str, Tensor]) -> Section:
    right, names = answer == subject.y, subject.data.classes
    shares: dict[str, Proportion] = {}
    apart = []
    for k, label in enumerate(names):
        those = subject.y == k
        shares[label] = Proportion(int(right[those].sum()), int(those.sum()))
        within = {
            f"{label}, {group}": Proportion(
                int(right[those & inside].sum()), int((those & inside).sum())
            )
            for group, inside in groups.items()
            if bool((those & inside).any())
        }
        if within:
            low, high = (f(within, key=lambda g: within[g].value) for f in (min, max))
            if within[low].interval[1] < within[high].interval[0]:
                apart.append(f"{low} and {high}")
        shares |= within
    told = "; ".join(f"{label} {shares[label]}" for label in names)
    return Section(
        f"Right answers by true class: {told}. "
        + (f"Groups that differ clearly: {'; '.join(apart)}." if apart else "")
        + ("No group differs clearly, with so few rows." if groups and not apart else ""),
        "warning" if apart else "info",
        {key.replace(", ", "_").replace(" ", "_"): share for key, share in shares.items()},
        Table({"true class, group": key, "right": str(v)} for key, v in shares.items()),
    )


def _evasion(subject: Subject, rules: Rules, attacker: int) -> Section:
    those = subject.y == attacker
    x, y = subject.x[those], subject.y[those]
    price = cheapest(subject.model, x, y, rules=rules).distance
    n = len(y)
    rate = {b: Proportion(int((price <= b).sum()), n) for b in subject.radii}
    middle, most = subject.radii[len(subject.radii) // 2], subject.radii[-1]
    half = price.sort().values[(n - 1) // 2].item()
    told = f"Half of them need {half:g} at most."
    if half == torch.inf:
        told = "For half of them or more no way was found."
    measures: dict[str, float | Proportion] = {f"yes@{b:g}": share for b, share in rate.items()}
    measures |= {"median": half} if half < torch.inf else {}
    risen = rate[middle].interval[0] > rate[0.0].interval[1]
    name = subject.data.classes[attacker]
    figure = security_curve(
        {f"true class {name}": rate}, xlabel=f"budget for changes ({subject.norm})"
    )
    figure.axes[0].set_ylabel("share who get the other answer\n(shaded: 95% interval)")
    return Section(
        f"Of those whose true class is {name}, {rate[0.0]} get the other answer as they are; with a "
        f"budget of {middle:g} for changes that the rules allow, {rate[middle]}; with {most:g}, "
        f"{rate[most].value:.3f}. {told} A cheaper way may exist.",
        "warning" if risen else "info",
        measures,
        Table({"budget": f"{b:g}", "get the other answer": str(v)} for b, v in rate.items()),
        figure,
        f"The share of true class {name} that gets the other answer rises from "
        f"{rate[0.0].value:.2f} at budget 0 to {rate[most].value:.2f} at {most:g}",
    )
