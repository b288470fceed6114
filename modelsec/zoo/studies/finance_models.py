"""The chapter on finance: what an applicant can change, the models of the bank, and their repairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import data, models
from modelsec.attacks.tabular import Move, Rules, cheapest
from modelsec.credit import Applicants, german_credit
from modelsec.training import fit

__all__ = [
    "BAD_COSTS",
    "CHEAP",
    "HARD",
    "RULES",
    "AtCost",
    "Blind",
    "Trees",
    "applicants",
    "blind",
    "cost",
    "hardened_net",
    "hardened_trees",
    "net",
    "payment_kept",
    "random_moves",
    "randomised_net",
    "stricter",
    "trees",
]

BAD_COSTS = 5.0
"""What accepting a bad risk costs, if refusing a good one costs 1: UCI's cost matrix."""
HARD = 100.0
"""The budget that repairs are trained against, in DM of effort."""
CHEAP = ("purpose", "telephone")
"""Columns that an applicant fills in and nobody checks."""
applicants: Callable[[], Applicants] = cache(german_credit)


def payment_kept(before: Tensor, after: Tensor) -> Tensor:
    """A money limit: the monthly payment, amount by duration, must not rise. Income stays as it is.

    Args:
        before: (N, D) rows as they were.
        after: (N, D) rows as they are to be.

    Returns:
        (N,) bool, whether the payment is no larger.
    """
    columns = applicants().columns
    amount, duration = columns.index("amount"), columns.index("duration")
    now, then = after[:, amount] * before[:, duration], before[:, amount] * after[:, duration]
    return now <= then * (1 + 1e-6)


RULES = Rules(
    tuple(applicants().columns),
    (
        Move("duration", 10, step=3, most=8, low=4, high=72),
        Move("amount", 10, step=100, most=10, direction="down", low=250),
        Move("purpose", 20, to=tuple(range(10))),
        Move("savings", 25, most=4, direction="up", high=4),
        Move("status", 40, most=3, direction="up", high=3),
        Move("other_debtors", 150, to=(1, 2)),
        Move("other_plans", 60, to=(2,)),
        Move("telephone", 30, direction="up", high=1),
    ),
    (payment_kept,),
)
"""What an applicant can change before the form is handed in, with our prices in DM of effort."""


class AtCost(nn.Module):
    """A model whose answer is the cheaper decision, since the two mistakes differ in cost.

    Args:
        model: maps rows (N, D) to the logits (N, 2) of "bad" and "good".
        bad_costs: what accepting a bad risk costs, if refusing a good one costs 1.
    """

    def __init__(self, model: nn.Module, bad_costs: float = BAD_COSTS) -> None:
        super().__init__()
        self.model, self.raised = model, math.log(bad_costs)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (N, D) rows. Returns logits (N, 2), that of "bad" raised by log(bad_costs)."""
        logits: Tensor = self.model(x)
        return logits + torch.tensor([self.raised, 0.0], device=x.device, dtype=x.dtype)


class Trees(nn.Module):
    """scikit-learn's gradient-boosted trees as a model: rows in, logits out, no gradient.

    Args:
        x: (N, D) training rows.
        y: (N,) their labels.
        weight: (N,) how much each row counts; all the same if None.
        seed: of the trees.
    """

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor | None = None, seed: int = 0) -> None:
        super().__init__()
        from sklearn.ensemble import HistGradientBoostingClassifier  # slow to import

        self.trees = HistGradientBoostingClassifier(
            max_iter=60, learning_rate=0.08, max_leaf_nodes=8, min_samples_leaf=15,
            l2_regularization=1.0, early_stopping=False, random_state=seed,
            categorical_features=[n > 0 for n in applicants().choices],
        )  # fmt: skip
        self.trees.fit(x.numpy(), y.numpy(), None if weight is None else weight.numpy())

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (N, D) rows. Returns the logarithm of the probabilities, (N, 2)."""
        if not len(x):
            return x.new_zeros(0, 2)
        answer = torch.from_numpy(self.trees.predict_proba(x.detach().cpu().numpy()))
        return answer.to(x).clamp_min(1e-9).log()


class Blind(nn.Module):
    """A model that is not shown some columns: it sees the same value for everybody.

    Args:
        model: maps rows to logits.
        columns: indices of the columns.
        value: (D,) the row whose values it sees there.
    """

    def __init__(self, model: nn.Module, columns: Sequence[int], value: Tensor) -> None:
        super().__init__()
        self.model, self.columns, self.value = model, list(columns), value

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (N, D) rows. Returns logits (N, K)."""
        x = x.clone()
        x[:, self.columns] = self.value[self.columns]
        logits: Tensor = self.model(x)
        return logits


def net(split: data.Data, seed: int, perturb: Any = None, epochs: int = 10) -> AtCost:
    """The network on a split's training rows, with the cheaper decision as its answer.

    Args:
        split: rows, as from :meth:`~modelsec.credit.Applicants.split`.
        seed: of the first weights and the order.
        perturb: as for :func:`~modelsec.training.fit`.
        epochs: passes over the rows.

    Returns:
        The model, in eval mode.
    """
    x, generator = split.x_train, torch.Generator().manual_seed(seed)
    model = models.fresh(
        lambda: models.TabularNet(applicants().choices, x.amin(0), x.amax(0)), generator
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    fit(
        model, x, split.y_train, epochs=epochs, batch_size=50, optimizer=optimizer, perturb=perturb,
        generator=generator, progress=False,
    )  # fmt: skip
    return AtCost(model).eval()


def trees(split: data.Data, seed: int) -> AtCost:
    """The trees on a split's training rows, with the cheaper decision as their answer.

    Args:
        split: rows.
        seed: of the trees.

    Returns:
        The model.
    """
    return AtCost(Trees(split.x_train, split.y_train, seed=seed)).eval()


def blind(make: Callable[[data.Data, int], AtCost], split: data.Data, seed: int) -> AtCost:
    """A model that is trained, and asked, without the columns in :data:`CHEAP`.

    Args:
        make: trains a model, such as :func:`net`.
        split: rows.
        seed: for ``make``.

    Returns:
        The model; it takes whole rows and looks away from those columns.
    """
    columns, value = [applicants().columns.index(name) for name in CHEAP], split.x_train[0]

    def hidden(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, columns] = value[columns]
        return x

    seen = data.Data(
        split.name, hidden(split.x_train), split.y_train, hidden(split.x_test), split.y_test,
        split.classes, split.source, split.licence,
    )  # fmt: skip
    return AtCost(Blind(make(seen, seed).model, columns, value)).eval()


def hardened_net(split: data.Data, seed: int, budget: float, rules: Rules = RULES) -> AtCost:
    """Adversarial training that keeps to the rules: bad risks may spend something on their row.

    Args:
        split: rows.
        seed: of the first weights and the order.
        budget: what a bad risk may spend.
        rules: what can be changed, and its prices.

    Returns:
        The model.
    """

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        x, bad = x.clone(), y == 0
        x[bad] = cheapest(AtCost(model), x[bad], y[bad], rules=rules, budget=budget).adv
        return x

    return net(split, seed, perturb, epochs=12)


def hardened_trees(
    split: data.Data, seed: int, budget: float, rules: Rules = RULES, rounds: int = 6
) -> AtCost:
    """The same for trees, which learn from a fixed set: attack, add the rows, fit again.

    Args:
        split: rows.
        seed: of the trees.
        budget: what a bad risk may spend.
        rules: what can be changed, and its prices.
        rounds: how often.

    Returns:
        The model.
    """
    x, y = split.x_train, split.y_train
    rows, count = x[y == 0], 1
    model = trees(split, seed)
    for _ in range(rounds):
        changed = cheapest(model, x[y == 0], y[y == 0], rules=rules, budget=budget).adv
        rows, count = torch.cat([rows, changed]), count + 1
        both = torch.cat([x[y == 1], rows])
        label = torch.cat([y[y == 1], y.new_zeros(len(rows))])
        weight = torch.where(label == 0, 1 / count, 1.0)  # an applicant counts once
        model = AtCost(Trees(both, label, weight, seed)).eval()
    return model


def cost(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean cost of a decision: 5 for each bad risk accepted, 1 for each good one refused.

    Args:
        model: maps rows to logits.
        x: (N, D) rows.
        y: (N,) 0 for bad, 1 for good.

    Returns:
        The mean over the rows.
    """
    with torch.no_grad():
        yes = model(x).argmax(1) == 1
    return float((BAD_COSTS * (yes & (y == 0)) + (~yes & (y == 1)).float()).mean())


def random_moves(x: Tensor, rules: Rules, budget: float, generator: torch.Generator) -> Tensor:
    """Possible changes at random, up to a budget: what augmentation can do in a table.

    Args:
        x: (N, D) rows.
        rules: what can be changed, and its prices.
        budget: the most that is spent on a row.
        generator: draws the changes.

    Returns:
        (N, D) rows, each of them possible.
    """
    options, changed = rules.options(x), x.clone()
    at = torch.arange(len(x), device=x.device)
    for _ in range(4):
        pick = torch.randint(len(options.column), (len(x),), generator=generator)
        tried = changed.clone()
        tried[at, options.column[pick]] = options.value[at, pick]
        fine = rules.price(x, tried) <= budget
        changed = torch.where(fine[:, None], tried, changed)
    return changed


def randomised_net(split: data.Data, seed: int, budget: float) -> AtCost:
    """The network trained on bad risks with possible changes at random, as augmentation does.

    Args:
        split: rows.
        seed: of the first weights, the order and the changes.
        budget: the most that is spent on a row.

    Returns:
        The model.
    """
    draws = torch.Generator().manual_seed(seed)

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        x = x.clone()
        x[y == 0] = random_moves(x[y == 0], RULES, budget, draws)
        return x

    return net(split, seed, perturb, epochs=12)


def stricter(model: AtCost, x: Tensor, accept: float) -> AtCost:
    """The same model with another threshold, at which it accepts that share of the rows.

    Args:
        model: as from :func:`trees`.
        x: (N, D) rows.
        accept: the share.

    Returns:
        The model.
    """
    with torch.no_grad():
        z = model.model(x)
    lead = (z[:, 1] - z[:, 0]).sort().values
    place = min(len(lead) - 1, round((1 - accept) * len(lead)))
    return AtCost(model.model, math.exp(float(lead[place]) - 1e-4)).eval()
