"""The studies behind the chapter on medicine: who was in the study, what privacy costs whom, the cards.

The table has 442 people, so everything is counted person by person: how often the models that had
not seen somebody were right about them, and how often an attack names them. Intervals are then
over people, not over models, of which there could be as many as one likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modelsec.attacks.membership import Shadows, lira, shadows, trials
from modelsec.attacks.tabular import cheapest
from modelsec.audit import Report, Section, audit_table
from modelsec.data import Data
from modelsec.intervals import Proportion
from modelsec.tables import Table
from modelsec.training import inference
from modelsec.validation.referral import Referring
from modelsec.zoo.results import load_result, study
from modelsec.zoo.studies.medicine_models import (
    COLUMNS,
    EPSILONS,
    TRAININGS,
    measured,
    rules,
    split,
)
from modelsec.zoo.studies.medicine_records import changed_unseen

__all__ = [
    "COUNT",
    "FPR",
    "GROUPS",
    "SUBJECTS",
    "SURE",
    "answers",
    "card",
    "concordance",
    "counted",
    "judged",
    "mean_of",
    "unpack",
]

COUNT = 40
"""Models for each seed, half of them with a given person."""
FPR = {"1": 0.01, "5": 0.05}
SURE = 0.7
"""The probability below which a case is referred."""
GROUPS = ("everybody", "sex 1", "sex 2", "under 50", "50 and older")
SUBJECTS = {"before": "network", "after": f"logistic, epsilon {EPSILONS[1]:g}"}
"""What the two audit cards are about."""


def answers(name: str, seed: int, count: int = COUNT) -> Shadows:
    """Models of one training, each on a random half of the people.

    Args:
        name: one of ``TRAININGS``.
        seed: draws the halves, first weights and noise.
        count: how many, an even number.

    Returns:
        What they answer to all 442.
    """
    table, draw = measured(), torch.Generator().manual_seed(seed)
    return shadows(TRAININGS[name], table.raw, table.y, count=count, generator=draw)


def judged(known: Shadows) -> tuple[Tensor, Tensor]:
    """LiRA, with shadow models on both sides of each person, on every model in turn.

    Args:
        known: as from :func:`answers`.

    Returns:
        Scores (S, 442), and who was in (S, 442).
    """
    table = measured()
    attack = partial(lira, online=True, fixed_variance=False)
    leaks = trials(attack, known, table.raw, table.y)
    return torch.stack([leak.scores for leak in leaks]), known.inside


def counted(several: Sequence[Shadows]) -> dict[str, Any]:
    """What is counted for each person over all models.

    Args:
        several: one for each seed.

    Returns:
        Strings of 442 counts, see :func:`unpack`: "right", by models that had not seen the person;
        "found" and "alarms", how often LiRA names them rightly and wrongly, where the threshold is
        set so that 1 or 5 in 100 of all verdicts on non-members are false alarms. "times", how many
        models had seen each of them, and as many had not; "roc", pairs of shares (false alarms,
        members found).
    """
    y = measured().y
    scores, inside = (torch.cat(part) for part in zip(*map(judged, several), strict=True))
    right = torch.cat([known.logits.argmax(2) == y for known in several])
    told: dict[str, Any] = {"times": int(inside[:, 0].sum()), "right": _pack(right & ~inside)}
    others = scores[~inside].sort(descending=True).values
    for name, fpr in FPR.items():
        named = scores > others[int(fpr * len(others))]
        told |= {f"found {name}": _pack(named & inside), f"alarms {name}": _pack(named & ~inside)}
    grid = (torch.logspace(-3, 0, 31) * (len(others) - 1)).long()
    told["roc"] = [
        [
            round(float((others > t).double().mean()), 5),
            round(float((scores[inside] > t).double().mean()), 5),
        ]
        for t in others[grid]
    ]
    return told


def unpack(counts: str) -> NDArray[np.float64]:
    """(442,) numbers from the string that a record keeps them in."""
    return np.array(counts.split(), dtype=float)


def _pack(flags: Tensor) -> str:
    return " ".join(map(str, flags.sum(0).tolist()))


def mean_of(values: NDArray[np.float64], members: Tensor) -> tuple[float, float, float]:
    """A mean over people with its 95% interval, as if they had been drawn from many more.

    Args:
        values: (442,) one number a person.
        members: (442,) bool, over whom.

    Returns:
        mean, low, high.
    """
    some = values[members.numpy()]
    half = 1.96 * some.std(ddof=1) / len(some) ** 0.5
    return float(some.mean()), float(some.mean() - half), float(some.mean() + half)


def concordance(several: Sequence[Shadows]) -> NDArray[np.float64]:
    """How often models that had seen neither of two people rank them rightly.

    Its mean over pairs is the area under the ROC curve of a model on new people.

    Args:
        several: one for each seed.

    Returns:
        (P, Q), for each of P people of class 1 and Q of class 0.
    """
    y = measured().y
    hits, pairs = torch.zeros(2, int((y == 1).sum()), int((y == 0).sum()))
    for known in several:
        lead = (known.logits[:, :, 1] - known.logits[:, :, 0]).float()
        for score, inside in zip(lead, known.inside, strict=True):
            high, low = score[y == 1, None], score[None, y == 0]
            new = (~inside[y == 1, None] & ~inside[None, y == 0]).float()
            hits += new * ((high > low).float() + (high == low).float() / 2)
            pairs += new
    shares: NDArray[np.float64] = (hits / pairs).double().numpy()
    return shares


def _areas(pairs: NDArray[np.float64], base: NDArray[np.float64]) -> dict[str, list[float]]:
    """For each group: area and what is lost of it against a base, with 95% intervals over people."""
    table, draw = measured(), np.random.default_rng(0)
    everybody = torch.ones(len(table.y), dtype=torch.bool)
    told = {}
    for name in GROUPS:
        inside = table.groups.get(name, everybody)
        rows, columns = (inside[table.y == k].numpy() for k in (1, 0))
        here, there = (part[rows][:, columns] for part in (pairs, base))
        values = []
        for _ in range(400):
            a, b = (draw.multinomial(n, [1 / n] * n) / n for n in here.shape)
            values.append([a @ here @ b, a @ (there - here) @ b])
        ends = np.percentile(values, [2.5, 97.5], axis=0).T
        means = [here.mean(), (there - here).mean()]
        told[name] = [round(float(v), 4) for m, e in zip(means, ends, strict=True) for v in (m, *e)]
    return told


@study(
    "medicine_privacy",
    about="ten trainings on the diabetes table: accuracy and LiRA person by person, areas by group",
    n=442,
    seeds=(0, 1, 2),
)
def privacy(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every training: 40 models for each seed, all of them the target once.

    Returns:
        training -> what :func:`counted` says, and "auc": group -> area, low, high, and what is lost
        against the network, low, high.
    """
    told: dict[str, Any] = {}
    base: NDArray[np.float64] | None = None
    for name in TRAININGS:
        several = [answers(name, seed) for seed in seeds]
        pairs = concordance(several)
        base = pairs if base is None else base
        told[name] = counted(several) | {"auc": _areas(pairs, base)}
    return told


def card(state: str) -> tuple[Report, nn.Module, Data]:
    """An audit card of the chapter, on the 132 test people of split 0.

    To the sections of a table it adds three: LiRA (from the record "medicine_privacy"), seals on
    records, and referral under attack.

    Args:
        state: "before", the network; or "after", logistic regression with an epsilon, seals, referral.

    Returns:
        The report, the model and the data.

    Raises:
        ValueError: for another state.
    """
    if state not in SUBJECTS:
        raise ValueError(f'state must be "before" or "after", got {state!r}')
    data, name = split(0), SUBJECTS[state]
    model = TRAININGS[name](data.x_train, data.y_train, torch.Generator().manual_seed(0))
    age, sex = (data.x_test[:, COLUMNS.index(column)] for column in ("age", "sex"))
    report = audit_table(
        model, data, rules=rules(), budgets=(0.5, 1, 2, 5), costs=1 - torch.eye(2), attacker=1,
        groups={"sex 1": sex == 1, "sex 2": sex == 2, "under 50": age < 50, "50 and older": age >= 50},
        name=name, unit="errors of measurement",
    )  # fmt: skip
    extra = (_lira(name), _seals(data, sealed=state == "after"), _referral(model, data, state))
    return replace(report, sections=(*report.sections, *extra)), model, data


def _lira(name: str) -> Section:
    row = load_result("medicine_privacy")[name]
    everybody = torch.ones(len(measured().y), dtype=torch.bool)
    found = {k: mean_of(unpack(row[f"found {k}"]) / row["times"], everybody) for k in FPR}
    told = "; ".join(
        f"{m:.3f} ({low:.3f} to {high:.3f}) at {k}%" for k, (m, low, high) in found.items()
    )
    proven = (
        f" No attack can find more than epsilon {name.split()[-1]} allows."
        if "epsilon" in name
        else ""
    )
    return Section(
        f"LiRA, {3 * COUNT} models on halves of the 442: members found at few false alarms: {told} "
        f"(95% intervals over people).{proven}",
        "warning" if found["1"][1] > 0.02 else "ok",
        {f"found_{k}": m for k, (m, _, _) in found.items()},
        name="lira",
        title="Membership, with shadow models",
    )


def _seals(data: Data, sealed: bool) -> Section:
    unseen = changed_unseen(data.x_test, sealed=sealed)
    return Section(
        f"Each test record with one value changed by one unit: {unseen} pass the checks at the "
        "door (impossible values"
        + (
            "; a seal on every record). Whoever holds the key can seal anything."
            if sealed
            else ")."
        ),
        "warning" if unseen.hits else "ok",
        {"unseen": unseen},
        name="integrity",
        title="Integrity of records",
    )


def _referral(model: nn.Module, data: Data, state: str) -> Section:
    guarded = Referring(model, SURE if state == "after" else 0.5)
    x, y = data.x_test, data.y_test
    with inference(guarded), torch.no_grad():
        answer = guarded(x).argmax(1)
    kept, sick = answer < 2, x[y == 1]
    passed = Proportion(int((~kept).sum()), len(y))
    wrong = Proportion(int((answer[kept] != y[kept]).sum()), int(kept.sum()))
    slow = sick.new_zeros(len(sick)).long()
    missed = Proportion(int((answer[y == 1] == 0).sum()), len(sick))
    found = cheapest(guarded, sick, slow, rules=rules(), targeted=True).found
    sent = Proportion(int(found.sum()), len(sick))
    told = {"referred": passed, "wrong": wrong, "missed": missed, "sent": sent}
    start = (
        f"Below a probability of {SURE:g} a case is referred: {passed}. "
        if state == "after"
        else ("Nothing is referred. ")
    )
    return Section(
        f"{start}Of the decided, {wrong} are wrong. Of the fast cases {missed} are called slow; if "
        f"their values may be off by their errors, {sent}.",
        "warning" if sent.interval[0] > missed.value else "info",
        told,
        Table({"share": key, "measured": str(value)} for key, value in told.items()),
        name="referral",
        title="Referral",
    )


@study(
    "medicine_cards",
    about="the audit cards of the chapter on medicine, before and after the repair",
    n=132,
    seeds=(0,),
)
def cards(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Both cards, as text.

    Returns:
        "before" and "after" -> a list of sections: "title", "state" and "text".
    """
    return {state: card(state)[0].told for state in SUBJECTS}
