"""Attacks on tables: what somebody can really change in a row, at what price, and how far it gets.

A norm does not measure a change of income. Here :class:`Rules` say, column by column, which values
can be had from the present one and what each costs. The attack searches among these alone, so that
whatever it returns is a row that can exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from modelsec.attacks.common import Model
from modelsec.attacks.minimum_norm import Minimum
from modelsec.losses import margin
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = ["Move", "Options", "Rules", "cheapest"]

Limit = Callable[[Tensor, Tensor], Tensor]
"""(rows before (N, D), rows after (N, D)) -> (N,) bool: whether the change as a whole is possible."""
ROWS = 100_000  # rows shown to the model at a time
CENT = 1e-2  # the least that a change counts as
SURE = 1e-6  # a margin that rounding can't turn, in another batch


@dataclass(frozen=True)
class Move:
    """What can be done to one column, and at what price. A column without a move can't be changed.

    Args:
        column: its name.
        price: of one step; of taking on a category, if ``to`` is given.
        step: a number, or the index of an ordered category, moves by whole multiples of this.
        most: so many steps at most.
        direction: "up" and "down" are for what can only grow or only shrink.
        low, high: the ends of the range that is possible.
        to: the categories that can be taken on, as indices, for a column without an order.

    Raises:
        ValueError: for a price, step or count that is not positive, a range that is empty, an
            unknown direction, or ``to`` together with a direction.
    """

    column: str
    price: float
    step: float = 1.0
    most: int = 1
    direction: Literal["any", "up", "down"] = "any"
    low: float = -math.inf
    high: float = math.inf
    to: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.price, self.step)
        if not all(0 < size < math.inf for size in sizes) or self.most < 1 or self.low > self.high:
            raise ValueError(
                f"{self.column}: price, step and most must be positive and low at most high, got "
                f"{self.price}, {self.step}, {self.most}, {self.low} and {self.high}"
            )
        if self.direction not in ("any", "up", "down") or (self.to and self.direction != "any"):
            raise ValueError(
                f'{self.column}: direction must be "any", "up" or "down", and "any" where `to` '
                f"names categories, got {self.direction!r}"
            )

    def values(self, now: Tensor) -> tuple[Tensor, Tensor]:
        """Where the column can go from where it is.

        Args:
            now: (N,) its values.

        Returns:
            (N, V) values, and (N, V) prices; infinite where the value can't be had.
        """
        if self.to:
            goals = torch.tensor(self.to, dtype=now.dtype, device=now.device).expand(len(now), -1)
            cost = torch.full_like(goals, self.price)
        else:
            first = 0 if self.direction == "up" else -self.most
            last = 0 if self.direction == "down" else self.most
            count = torch.arange(first, last + 1, dtype=now.dtype, device=now.device)
            goals = now[:, None] + self.step * count[count != 0]
            cost = (self.price * count[count != 0].abs()).expand_as(goals)
        possible = (goals >= self.low) & (goals <= self.high) & (goals != now[:, None])
        return goals, cost.masked_fill(~possible, math.inf)


class Options(NamedTuple):
    """Every single change that somebody could make.

    Attributes:
        column: (M,) which column it changes.
        value: (N, M) to what.
        price: (N, M) at what price, from the row as it was; infinite where it is not possible.
    """

    column: Tensor
    value: Tensor
    price: Tensor


@dataclass(frozen=True)
class Rules:
    """What can be changed in the rows of a table.

    Args:
        columns: the names of all D columns.
        moves: what can be done to some of them; all others are fixed.
        limits: conditions that tie columns together, such as a payment that must not rise.

    Raises:
        ValueError: for a move of an unknown column, or two of one column.
    """

    columns: tuple[str, ...]
    moves: tuple[Move, ...]
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        moved = [move.column for move in self.moves]
        if not set(moved) <= set(self.columns) or len(set(moved)) < len(moved):
            raise ValueError(f"moves must name columns, each once: {moved} of {self.columns}")

    def without(self, *columns: str) -> Rules:
        """The same rules for somebody who can't change these columns, since they are checked."""
        kept = tuple(move for move in self.moves if move.column not in columns)
        return Rules(self.columns, kept, self.limits)

    def options(self, x: Tensor) -> Options:
        """All single changes of each row; the limits aside.

        Args:
            x: (N, D) rows.

        Returns:
            The :class:`Options`, M of them; what a row can't do has an infinite price.
        """
        column, value, price = [], [x.new_zeros(len(x), 0)], [x.new_zeros(len(x), 0)]
        for move in self.moves:
            j = self.columns.index(move.column)
            goals, cost = move.values(x[:, j])
            column += [j] * goals.shape[1]
            value.append(goals)
            price.append(cost)
        index = torch.tensor(column, dtype=torch.long, device=x.device)
        return Options(index, torch.cat(value, 1), torch.cat(price, 1))

    def price(self, x: Tensor, changed: Tensor) -> Tensor:
        """What it costs to make one row of another; infinite where the rules don't allow it.

        Args:
            x: (N, D) rows as they were.
            changed: (N, D) rows as they are to be.

        Returns:
            (N,) prices, 0 for a row that stays.
        """
        total = x.new_zeros(len(x))
        for j, name in enumerate(self.columns):
            paid = torch.full_like(total, math.inf)
            for move in self.moves:
                if move.column == name:
                    goals, cost = move.values(x[:, j])
                    there = goals == changed[:, j, None]
                    paid = cost.masked_fill(~there, math.inf).amin(1)
            total = total + torch.where(changed[:, j] == x[:, j], 0.0, paid)
        return total.masked_fill(~self.within_limits(x, changed), math.inf)

    def within_limits(self, x: Tensor, changed: Tensor) -> Tensor:
        """(N,) bool: whether a change keeps to the conditions that tie columns together."""
        kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for limit in self.limits:
            kept &= limit(x, changed)
        return kept


@threat(
    ThreatModel(
        goal="evasion",
        knowledge="scores",
        cost="a few hundred scores for each change",
        source="https://arxiv.org/abs/2208.13058",
    )
)
def cheapest(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    rules: Rules,
    budget: float = math.inf,
    targeted: bool = False,
    most: int | None = None,
) -> Minimum:
    """The cheapest change that the rules allow and that turns the model's answer, searched greedily.

    As long as the answer holds, the search takes the change that moves the score most for its
    price; if one turns the answer, it takes the cheapest of those. Then it takes back or replaces
    what is not needed. A second search looks at the score alone, and the cheaper result counts. Both
    ask for scores, no gradient, so that any model will do, trees too. A cheaper way may exist: the
    distance is an upper bound.

    Args:
        model: maps rows (N, D) to logits (N, K).
        x: (N, D) float rows, each of them possible.
        y: (N,) integer labels: the answer to get away from, or to get to.
        rules: what can be changed, and its prices.
        budget: the most that is spent on a row.
        targeted: get to y instead of away from it.
        most: so many columns are changed at most; all that can be, if None.

    Returns:
        The rows, the prices as ``distance``, and whether the answer turned. Where it did not,
        the row is the last try, within the rules and the budget, and its distance is infinite.

    Raises:
        TypeError: for rows that are no floats or labels that are no integers.
        ValueError: for shapes that don't fit, NaN, or a budget or ``most`` below 0.

    References:
        Kireev, Kulynych & Troncoso (2023), https://arxiv.org/abs/2208.13058: changes with a price
        and a greedy search. Here both are our own.
    """
    x, y = _checked(x, y, rules, budget, most)
    options, sign = rules.options(x), -1.0 if targeted else 1.0
    tries = []
    with inference(model), torch.no_grad():
        for thrift in (1.0, 0.0):  # gain for the price, gain alone: each wins on some rows
            adv, spent = x.clone(), x.new_zeros(len(x))
            score = sign * margin(model(x), y).to(x.dtype) if len(x) else spent.clone()
            rows = torch.arange(len(x), device=x.device)
            for _ in range(3 * len(rules.moves)):
                if not len(rows) or not len(options.column):
                    break
                tried, price = _neighbours(x[rows], adv[rows], options, rows, rules, budget, most)
                value = _scores(model, tried, y[rows], price, sign)
                pick, better = _choose(value, price, score[rows], spent[rows], thrift)
                rows, pick, at = rows[better], pick[better], better.nonzero()[:, 0]
                adv[rows] = tried[at, pick]
                score[rows], spent[rows] = value[at, pick], price[at, pick]
            tries.append((adv, spent.masked_fill(score <= SURE, math.inf), score))
    (adv, distance, score), (other, dearer, height) = tries
    better = (dearer < distance) | (distance.isinf() & (height > score))
    return Minimum(
        torch.where(better[:, None], other, adv),
        distance.minimum(dearer),
        distance.minimum(dearer) < math.inf,
    )


def _neighbours(
    x: Tensor,
    adv: Tensor,
    options: Options,
    rows: Tensor,
    rules: Rules,
    budget: float,
    most: int | None,
) -> tuple[Tensor, Tensor]:
    # every row that differs from ``adv`` in one column, (n, M + D, D), and its price from ``x``,
    # (n, M + D); the last D are those with one column as it was
    n, columns = x.shape
    column = torch.cat([options.column, torch.arange(columns, device=x.device)])
    value = torch.cat([options.value[rows], x], 1)
    own = torch.cat([options.price[rows], x.new_zeros(n, columns)], 1)
    paid = _paid(x, adv, options, rows)
    price = paid.sum(1, keepdim=True) - paid[:, column] + own
    tried = adv[:, None, :].repeat(1, len(column), 1)
    tried.scatter_(2, column.expand(n, -1)[..., None], value[..., None])
    flat = tried.flatten(0, 1)
    before = x[:, None, :].expand_as(tried).flatten(0, 1)
    possible = rules.within_limits(before, flat).view(n, -1) & (price <= budget)
    if most is not None:
        possible &= (tried != x[:, None, :]).sum(2) <= most
    return tried, price.masked_fill(~possible, math.inf)


def _paid(x: Tensor, adv: Tensor, options: Options, rows: Tensor) -> Tensor:
    """(n, D) what each changed column has cost."""
    there = options.value[rows] == adv[:, options.column]
    cost = options.price[rows].masked_fill(~there, math.inf)
    paid = torch.full_like(x, math.inf)
    paid.scatter_reduce_(1, options.column.expand(len(x), -1), cost, "amin")
    return paid.masked_fill(adv == x, 0.0)


def _scores(model: Model, tried: Tensor, y: Tensor, price: Tensor, sign: float) -> Tensor:
    """(n, M) the margins of the rows that are possible; minus infinity for the others."""
    wanted = price.isfinite()
    value = torch.full_like(price, -math.inf)
    labels = y[:, None].expand_as(price)[wanted]
    parts = zip(tried[wanted].split(ROWS), labels.split(ROWS), strict=True)
    value[wanted] = torch.cat(
        [value.new_zeros(0), *(sign * margin(model(r), k).to(value.dtype) for r, k in parts)]
    )
    return value


def _choose(
    value: Tensor, price: Tensor, score: Tensor, spent: Tensor, thrift: float
) -> tuple[Tensor, Tensor]:
    """For each row which neighbour to go to (n,), and whether to go at all (n,)."""
    cheap, which = price.masked_fill(value <= SURE, math.inf).min(1)
    gain = value - score[:, None]
    # what costs nothing more, or gives money back, is worth its gain as if it cost a little
    worth = gain / (price - spent[:, None]).clamp_min(CENT) ** thrift
    climb = worth.masked_fill(~price.isfinite(), -math.inf).argmax(1)
    rises = gain.gather(1, climb[:, None])[:, 0] > SURE
    go = torch.where(score > SURE, cheap < spent, cheap.isfinite() | rises)
    return torch.where(cheap.isfinite(), which, climb), go


def _checked(
    x: Tensor, y: Tensor, rules: Rules, budget: float, most: int | None
) -> tuple[Tensor, Tensor]:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not x.is_floating_point():
        raise TypeError("x must be a floating-point tensor of rows, and y a tensor of labels")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"y must hold integer class indices, got {y.dtype}: use y.long()")
    if x.dim() != 2 or x.shape[1] != len(rules.columns) or y.shape != x.shape[:1]:
        raise ValueError(
            f"x must have shape (N, {len(rules.columns)}) and y (N,), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    if bool(x.isnan().any()):
        raise ValueError("x holds NaN: fill what is missing first")
    if not budget >= 0 or (most is not None and most < 0):
        raise ValueError(f"budget and most must be 0 or more, got {budget} and {most}")
    return x.detach(), y.long()
