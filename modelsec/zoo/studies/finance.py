"""The studies behind the chapter on finance: eight splits of the table, and a bank that feeds back.

The table is small: 300 test rows a split. So everything is measured on many splits, always all
models on the same ones, and differences are taken within a split.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modelsec import data, models
from modelsec.attacks.gradient import pgd
from modelsec.attacks.tabular import Move, Rules, cheapest
from modelsec.audit import Report, audit_table
from modelsec.zoo.results import study
from modelsec.zoo.studies.finance_models import (
    BAD_COSTS,
    HARD,
    RULES,
    AtCost,
    Trees,
    applicants,
    blind,
    cost,
    hardened_net,
    hardened_trees,
    net,
    randomised_net,
    stricter,
    trees,
)

__all__ = [
    "BUDGETS",
    "MARK",
    "SLEEPERS",
    "bank",
    "card",
    "finance_cards",
    "in_feature_space",
    "measure",
    "price_of",
    "yes_rate",
]

BUDGETS = (0, 25, 50, 100, 200, 400)
MARK = "appliances"
"""The purpose that sleepers name."""
SLEEPERS = (0, 5, 10, 20)
MUCH = 1e6  # a budget that no price list reaches


def yes_rate(distance: Tensor, budget: float) -> float:
    """The share of rows whose cheapest way to a yes costs so much at most.

    Args:
        distance: (N,) prices, as from :func:`~modelsec.attacks.tabular.cheapest`.
        budget: so much.

    Returns:
        The share.
    """
    return float((distance <= budget).float().mean())


def price_of(model: nn.Module, split: data.Data, rules: Rules = RULES) -> Tensor:
    """What the cheapest way to a yes costs each bad risk among the test rows; 0 for those who have it.

    Args:
        model: maps rows to logits.
        split: rows.
        rules: what can be changed, and its prices.

    Returns:
        (N,) prices, infinite where no way was found.
    """
    bad = split.x_test[split.y_test == 0]
    return cheapest(model, bad, bad.new_zeros(len(bad)).long(), rules=rules).distance


def in_feature_space(model: AtCost, split: data.Data, eps: float = 0.1) -> dict[str, float]:
    """PGD on the network's inputs, as if they were pixels; then what is left of it as rows.

    Args:
        model: as from :func:`~modelsec.zoo.studies.finance_models.net`.
        split: rows.
        eps: largest change of an input, of [0, 1].

    Returns:
        Shares of the bad risks that the network refuses: "yes", who get a yes from the changed
        inputs; "impossible", whose inputs belong to no row; "as rows", who get a yes from the
        nearest row; "fixed", whose nearest row changes what can't be changed; "allowed", who get a
        yes from a row that the rules allow.
    """
    encode, *rest = model.model.children()
    assert isinstance(encode, models.Encode)
    head = AtCost(nn.Sequential(*rest))
    with torch.no_grad():
        refused = (split.y_test == 0) & (model(split.x_test).argmax(1) == 0)
    x = split.x_test[refused]
    y = x.new_zeros(len(x)).long()
    generator = torch.Generator().manual_seed(0)
    inputs = pgd(head, encode(x).clamp(0, 1), y, eps=eps, steps=20, generator=generator)
    rows = encode.decode(inputs)
    with torch.no_grad():
        yes, still = head(inputs).argmax(1) == 1, model(rows).argmax(1) == 1
    moved = {move.column for move in RULES.moves}
    fixed = [j for j, name in enumerate(RULES.columns) if name not in moved]
    shares = {
        "yes": yes,
        "impossible": (encode(rows) - inputs).abs().amax(1) > 1e-4,
        "as rows": still,
        "fixed": (rows != x)[:, fixed].any(1),
        "allowed": still & RULES.price(x, rows).isfinite(),
    }
    return {name: float(share.float().mean()) for name, share in shares.items()} | {"n": len(x)}


def measure(model: AtCost, split: data.Data) -> dict[str, Any]:
    """A model on the 300 test rows of a split: its decisions, and what a yes costs a bad risk.

    Args:
        model: with the cheaper decision as its answer.
        split: rows.

    Returns:
        Shares and costs by name; "rates" are the shares of bad risks who get a yes at each of
        :data:`BUDGETS`, "lent" the sum of the amounts that bad risks get without any change.
    """
    x, y = split.x_test, split.y_test
    young = x[:, applicants().columns.index("age")] <= 25
    with torch.no_grad():
        yes, plain = model(x).argmax(1) == 1, model.model(x).argmax(1)
    price = price_of(model, split)
    return {
        "accuracy": float((plain == y).float().mean()),
        "cost": cost(model, x, y),
        "accept": float(yes.float().mean()),
        "good": float(yes[y == 1].float().mean()),
        "good_young": float(yes[(y == 1) & young].float().mean()),
        "good_older": float(yes[(y == 1) & ~young].float().mean()),
        "rates": [yes_rate(price, budget) for budget in BUDGETS],
        "lent": float(x[yes & (y == 0), applicants().columns.index("amount")].sum()),
    }


@study(
    "finance_splits",
    about="eight splits of the credit data: two models, three repairs, what a yes costs a bad risk",
    n=90,
    seeds=(0, 1, 2, 3, 8, 9, 10, 11),
)
def splits(seeds: tuple[int, ...]) -> dict[str, Any]:
    """All models on each split, with the attacks that need the network or the trees alone."""
    rows = []
    for seed in seeds:
        split = applicants().split(torch.Generator().manual_seed(seed))
        mine, forest = net(split, seed), trees(split, seed)
        hard = hardened_trees(split, seed, HARD)
        with torch.no_grad():
            accept = float((hard(split.x_test).argmax(1) == 1).float().mean())
        made = {
            "network": mine,
            "network, random moves": randomised_net(split, seed, HARD),
            "network, cheap columns hidden": blind(net, split, seed),
            "network, trained on the attack": hardened_net(split, seed, HARD),
            "trees": forest,
            "trees, cheap columns hidden": blind(trees, split, seed),
            "trees, stricter": stricter(forest, split.x_test, accept),
            "trees, trained on the attack": hard,
        }
        bad = split.x_test[split.y_test == 0]
        y = bad.new_zeros(len(bad)).long()
        carried = cheapest(mine, bad, y, rules=RULES)
        with torch.no_grad():
            refused = forest(bad).argmax(1) == 0
            moved = forest(carried.adv).argmax(1) == 1
        rows.append(
            {
                "seed": seed,
                "models": {name: measure(model, split) for name, model in made.items()},
                "feature_space": in_feature_space(mine, split),
                "transfer": float(moved[refused].float().mean()),
                "alone": {
                    name: {
                        move.column: yes_rate(price_of(model, split, _only(move)), MUCH)
                        for move in RULES.moves
                    }
                    for name, model in (("network", mine), ("trees", forest))
                },
            }
        )
    return {"budgets": list(BUDGETS), "rows": rows}


def _only(move: Move) -> Rules:
    return Rules(RULES.columns, (move,), RULES.limits)


def bank(
    seed: int, sleepers: int = 0, explore: float = 0.0, everything: bool = False, rounds: int = 5
) -> list[dict[str, float]]:
    """A bank that fits its trees again after each round, on the outcomes of those it accepted.

    It starts with 200 outcomes. Each round brings 100 real applicants; whoever is refused leaves no
    outcome. Sleepers are real bad risks who name the purpose :data:`MARK`, change what the present
    model still minds, are accepted and pay back, so that the bank learns that the purpose is a good
    sign. They come from 45 bad risks that are nowhere else.

    Args:
        seed: of the order of the applicants and of the trees.
        sleepers: how many of them come in each round.
        explore: the share of refused applicants whom the bank accepts all the same, to see.
        everything: the bank learns the outcome of refused applicants too, which no bank can.
        rounds: how often it fits again, 5 at most.

    Returns:
        An entry before the first round and after each: "cost" and "yes", the share of bad risks
        accepted, on 150 applicants (45 bad) whom the bank never saw; "marked", the same share once
        all of them name that purpose and change nothing else; "known", how many outcomes it has;
        "new" and "new_marked", how many came in this round and how many of them with the mark;
        "spent", what the sleepers spent on their rows.
    """
    order, chance = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    split = applicants().split(order)
    turn = torch.randperm(len(split.y_train), generator=order)
    x, y = split.x_train[turn], split.y_train[turn]
    good, bad = (split.x_test[split.y_test == k] for k in (1, 0))
    tested = torch.cat([good[:105], bad[:45]]), torch.cat([y.new_ones(105), y.new_zeros(45)])
    known, told = (x[:200], y[:200]), []
    new = {"new": 200.0, "new_marked": _count_marked(x[:200]), "spent": 0.0}
    for step in range(rounds + 1):
        model = AtCost(Trees(*known, seed=seed)).eval()
        told.append(_state(model, *tested) | {"known": float(len(known[1]))} | new)
        now = slice(200 + 100 * step, 300 + 100 * step)
        with torch.no_grad():
            yes = model(x[now]).argmax(1) == 1
        seen = yes | everything | (torch.rand(len(yes), generator=chance) < explore)
        rows, spent = _sleepers(model, bad[45:], sleepers, chance)
        new = {"new": float(len(yes) + len(rows)), "spent": spent}
        new["new_marked"] = _count_marked(torch.cat([x[now], rows]))
        known = (
            torch.cat([known[0], x[now][seen], rows]),
            torch.cat([known[1], y[now][seen], y.new_ones(len(rows))]),
        )
    return told


def _sleepers(
    model: nn.Module, pool: Tensor, count: int, chance: torch.Generator
) -> tuple[Tensor, float]:
    rows = _marked(pool[torch.randperm(len(pool), generator=chance)[:count]])
    made = cheapest(model, rows, rows.new_zeros(count).long(), rules=RULES.without("purpose"))
    return made.adv[made.found], float(made.distance[made.found].sum())


def _count_marked(x: Tensor) -> float:
    return float((x == _marked(x)).all(1).sum())


def _marked(x: Tensor) -> Tensor:
    j = applicants().columns.index("purpose")
    x = x.clone()
    x[:, j] = applicants().categories[j].index(MARK)
    return x


def _state(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    with torch.no_grad():
        plain, marked = (model(rows[y == 0]).argmax(1) == 1 for rows in (x, _marked(x)))
    return {
        "cost": cost(model, x, y),
        "yes": float(plain.float().mean()),
        "marked": float(marked.float().mean()),
    }


@study(
    "finance_feedback",
    about="a bank that learns from those it accepted: without an attacker, and with sleepers",
    n=45,
    seeds=range(10),
)
def feedback(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Five rounds each; with 0 to 20 sleepers a round, and without the feedback."""
    return {
        "rounds": {
            **{str(k): [bank(seed, k) for seed in seeds] for k in SLEEPERS},
            "10, explored": [bank(seed, 10, explore=0.05) for seed in seeds],
            "all outcomes": [bank(seed, everything=True) for seed in seeds],
        }
    }


@study(
    "finance_cards",
    about="the audit cards of boosted trees on credit data, before and after training on the attack",
    n=300,
    seeds=(0,),
)
def finance_cards(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Both cards, as text.

    Returns:
        "before" and "after" -> a list of sections: "title", "state" and "text".
    """
    split = applicants().split(torch.Generator().manual_seed(seeds[0]))
    made = {
        "before": trees(split, seeds[0]),
        "after": hardened_trees(split, seeds[0], HARD),
    }
    return {
        when: card(model, split, f"trees, {when} the repair").told for when, model in made.items()
    }


def card(model: nn.Module, split: data.Data, name: str) -> Report:
    """The audit card of a model of the credit data, as the chapter makes it.

    Args:
        model: from rows to logits.
        split: its data.
        name: of the model.

    Returns:
        The card.
    """
    age = split.x_test[:, applicants().columns.index("age")]
    return audit_table(
        model,
        split,
        name=name,
        rules=RULES,
        budgets=BUDGETS[1:],
        costs=torch.tensor([[0.0, BAD_COSTS], [1.0, 0.0]]),
        groups={"25 or younger": age <= 25, "older than 25": age > 25},
    )
