"""The attack on tables: whatever it returns is a row that can exist, at the price it says."""

import itertools
import math

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec import attacks, models
from modelsec.attacks.tabular import Move, Rules, cheapest

COLUMNS = ("amount", "age", "purpose", "savings", "telephone", "payment")
CHOICES = (0, 0, 4, 3, 2, 0)
LOW, HIGH = torch.tensor([100.0, 18, 0, 0, 0, 10]), torch.tensor([1000.0, 80, 3, 2, 1, 60])


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    net = models.fresh(lambda: models.TabularNet(CHOICES, LOW, HIGH, hidden=6), generator)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net.to(dtype).eval()


def people(n: int, seed: int) -> Tensor:
    draw = torch.rand(n, len(COLUMNS), generator=torch.Generator().manual_seed(seed))
    x = (LOW + draw * (HIGH - LOW)).round()
    x[:, 0] = (x[:, 0] / 50).round() * 50
    return x


def payment_kept(before: Tensor, after: Tensor) -> Tensor:
    """A smaller amount may not come with a larger payment."""
    return after[:, 5] * after[:, 0] <= before[:, 5] * before[:, 0]


@st.composite
def rules(draw: st.DrawFn) -> Rules:
    prices = st.floats(0.5, 50)
    direction = st.sampled_from(("any", "up", "down"))
    possible = [
        Move("amount", draw(prices), step=50, most=draw(st.integers(1, 6)), direction=draw(direction),
             low=100, high=1000),
        Move("purpose", draw(prices), to=tuple(draw(st.sets(st.integers(0, 3), min_size=1)))),
        Move("savings", draw(prices), most=2, direction=draw(direction), low=0, high=2),
        Move("telephone", draw(prices), direction="up", high=1),
        Move("payment", draw(prices), step=5, most=draw(st.integers(1, 4)), direction=draw(direction),
             low=10, high=60),
    ]  # fmt: skip
    moves = draw(st.lists(st.sampled_from(possible), unique_by=lambda move: move.column))
    return Rules(COLUMNS, tuple(moves), (payment_kept,) if draw(st.booleans()) else ())


def broken(x: Tensor, adv: Tensor, known: Rules) -> list[str]:
    """What is wrong with changed rows, checked column by column, without the code under test."""
    wrong = []
    moves = {move.column: move for move in known.moves}
    for j, name in enumerate(COLUMNS):
        before, after = x[:, j], adv[:, j]
        changed = after != before
        if name not in moves:
            wrong += [f"{name} is fixed"] * bool(changed.any())
            continue
        move = moves[name]
        if CHOICES[j]:
            there = torch.isin(after, torch.arange(float(CHOICES[j])))
            wrong += [f"{name} is no category"] * (not bool(there.all()))
        if move.to:
            allowed = torch.isin(after, torch.tensor(move.to, dtype=after.dtype))
            wrong += [f"{name} can't be had"] * bool((changed & ~allowed).any())
            continue
        steps = (after - before) / move.step
        wrong += [f"{name} moves by a part of a step"] * bool((steps != steps.round()).any())
        wrong += [f"{name} moves too far"] * bool((steps.abs() > move.most).any())
        wrong += [f"{name} falls"] * (move.direction == "up" and bool((steps < 0).any()))
        wrong += [f"{name} rises"] * (move.direction == "down" and bool((steps > 0).any()))
        outside = changed & ((after < move.low) | (after > move.high))
        wrong += [f"{name} leaves its range"] * bool(outside.any())
    for limit in known.limits:
        wrong += ["a limit"] * (not bool(limit(x, adv).all()))
    return wrong


@settings(max_examples=50, deadline=None)
@given(rules(), st.integers(0, 10**6), st.sampled_from((0.0, 20.0, 60.0, math.inf)), st.booleans())
def test_every_row_it_returns_can_exist_and_costs_what_it_says(
    known: Rules, seed: int, budget: float, targeted: bool
) -> None:
    net, x = network(seed), people(8, seed)
    kept = x.clone()
    with torch.no_grad():
        y = net(x).argmax(1)
    if targeted:
        y = 1 - y
    with global_generators_untouched():
        adv, distance, found = cheapest(net, x, y, rules=known, budget=budget, targeted=targeted)
    assert torch.equal(x, kept)
    assert broken(x, adv, known) == []
    price = known.price(x, adv)
    assert bool((price <= budget + 1e-3).all())
    assert torch.allclose(price[found], distance[found], atol=1e-3)
    assert bool(distance[~found].isinf().all())
    with torch.no_grad():
        reached = (net(adv).argmax(1) == y) if targeted else (net(adv).argmax(1) != y)
    assert torch.equal(reached, found)
    # as an input of the network: one 1 for each category, all else 0
    encoded = net[0](adv)
    for j, count in enumerate(CHOICES):
        if count:
            own = encoded[:, net[0].column == j]
            assert bool(((own == 0) | (own == 1)).all())
            assert bool((own.sum(1) == 1).all())


def cheapest_of_all(net: nn.Module, row: Tensor, y: int, known: Rules) -> float:
    """The price of the cheapest change that turns the answer, from all there are."""
    options = known.options(row[None])
    each = []
    for move in known.moves:
        j = COLUMNS.index(move.column)
        here = (options.column == j) & options.price[0].isfinite()
        each.append([(j, row[j]), *((j, v) for v in options.value[0][here])])
    rows = []
    for combination in itertools.product(*each):
        changed = row.clone()
        for j, value in combination:
            changed[j] = value
        rows.append(changed)
    tried = torch.stack(rows)
    price = known.price(row.expand_as(tried), tried)
    with torch.no_grad():
        turned = net(tried).argmax(1) != y
    price = price.masked_fill(~turned, math.inf)
    return float(price.min())


@settings(max_examples=25, deadline=None)
@given(rules(), st.integers(0, 10**6))
def test_no_cheaper_than_the_best_there_is_and_seldom_far_from_it(known: Rules, seed: int) -> None:
    net, x = network(seed), people(2, seed)
    with torch.no_grad():
        y = net(x).argmax(1)
    adv, distance, found = cheapest(net, x, y, rules=known)
    for i in range(len(x)):
        best = cheapest_of_all(net, x[i], int(y[i]), known)
        assert distance[i] >= best - 1e-3
        if len(known.moves) == 1:  # then every change there is was tried
            assert distance[i] == pytest.approx(best)
            assert bool(found[i]) == (best < math.inf)
    assert broken(x, adv, known) == []


ALL = Rules(
    COLUMNS,
    (
        Move("amount", 10, step=50, most=6, direction="down", low=100),
        Move("purpose", 20, to=(0, 1, 2, 3)),
        Move("savings", 15, most=2, direction="up", high=2),
        Move("telephone", 30, direction="up", high=1),
    ),
)


def test_the_greedy_search_is_close_to_the_best_change() -> None:
    paid, best = [], []
    for seed in range(12):
        net, x = network(seed), people(6, seed)
        with torch.no_grad():
            y = net(x).argmax(1)
        paid += cheapest(net, x, y, rules=ALL).distance.tolist()
        best += [cheapest_of_all(net, row, int(k), ALL) for row, k in zip(x, y, strict=True)]
    possible = [(mine, least) for mine, least in zip(paid, best, strict=True) if least < math.inf]
    assert len(possible) >= 20
    assert sum(mine < math.inf for mine, _ in possible) >= 0.95 * len(possible)
    assert sum(mine < least + 1e-3 for mine, least in possible) >= 0.8 * len(possible)


def additive(gains: tuple[float, ...], need: float):
    """A model that says 1 when the gains of the columns that are 1 reach what is needed."""

    def answer(x: Tensor) -> Tensor:
        lead = x @ torch.tensor(gains, dtype=x.dtype) - need
        return torch.stack([-lead, lead], 1)

    return answer


def switches(*prices: float) -> Rules:
    names = tuple("abcdefgh"[: len(prices)])
    moves = (Move(n, p, direction="up", high=1) for n, p in zip(names, prices, strict=True))
    return Rules(names, tuple(moves))


def test_what_turns_out_not_to_be_needed_is_taken_back() -> None:
    # the first change looks cheap for its gain; with the second and third it is not needed
    x, y = torch.zeros(1, 4), torch.zeros(1, dtype=torch.long)
    found = cheapest(additive((1, 4, 3, 4.5), 6), x, y, rules=switches(5, 40, 35, 90))
    assert found.adv.tolist() == [[0, 1, 1, 0]]
    assert found.distance.item() == 75


def test_a_budget_holds_for_all_changes_together() -> None:
    x, y = torch.zeros(1, 5), torch.zeros(1, dtype=torch.long)
    known, model = switches(10, 10, 10, 10, 10), additive((1, 1, 1, 1, 1), 4.5)
    for budget in (0, 9, 10, 35, 49):
        found = cheapest(model, x, y, rules=known, budget=budget)
        assert not found.found
        assert found.adv.sum().item() == budget // 10  # the last try uses what there is
    assert cheapest(model, x, y, rules=known, budget=50).distance.item() == 50


def test_a_row_s_result_does_not_depend_on_its_batch() -> None:
    net, x = network(1), people(12, 1)
    with torch.no_grad():
        y = net(x).argmax(1)
    together = cheapest(net, x, y, rules=ALL)
    alone = [cheapest(net, x[i : i + 1], y[i : i + 1], rules=ALL) for i in range(len(x))]
    assert torch.equal(together.adv, torch.cat([one.adv for one in alone]))
    assert torch.equal(together.found, torch.cat([one.found for one in alone]))


def test_the_number_of_changed_columns_can_be_limited() -> None:
    net, x = network(2), people(30, 2)
    with torch.no_grad():
        y = net(x).argmax(1)
    counts = [(cheapest(net, x, y, rules=ALL, most=k).adv != x).sum(1).max() for k in (0, 1, 2)]
    assert counts == [0, 1, 2]


def test_any_function_with_scores_is_a_model_and_a_network_comes_back_as_it_was() -> None:
    net, x = network(4).train(), people(10, 4)
    net[1].weight.requires_grad_(False)
    y = net(x).argmax(1)

    def answer(rows: Tensor) -> Tensor:
        return net(rows).detach().softmax(1)

    by_scores = cheapest(answer, x, y, rules=ALL)
    by_net = cheapest(net, x, y, rules=ALL)
    assert torch.equal(by_scores.found, by_net.found)
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("n", [0, 1])
def test_few_rows_and_double_precision(n: int) -> None:
    net, x = network(5, torch.float64), people(n, 5).double()
    y = torch.zeros(n, dtype=torch.long)
    adv, distance, found = cheapest(net, x, y, rules=ALL)
    assert adv.dtype == torch.float64
    assert adv.shape == x.shape
    assert distance.shape == found.shape == (n,)


def test_a_wrong_answer_from_the_start_costs_nothing() -> None:
    net, x = network(6), people(5, 6)
    with torch.no_grad():
        y = 1 - net(x).argmax(1)
    adv, distance, found = cheapest(net, x, y, rules=ALL)
    assert bool(found.all())
    assert torch.equal(distance, torch.zeros(5))
    assert torch.equal(adv, x)


def test_what_is_checked_can_t_be_changed() -> None:
    net, x = network(7), people(20, 7)
    with torch.no_grad():
        y = net(x).argmax(1)
    known = ALL.without("purpose", "amount")
    adv = cheapest(net, x, y, rules=known).adv
    assert torch.equal(adv[:, [0, 2]], x[:, [0, 2]])
    assert [move.column for move in known.moves] == ["savings", "telephone"]


def test_prices_of_changes_that_are_not_possible_are_infinite() -> None:
    x = torch.tensor([[500.0, 30, 1, 1, 0, 20]])
    for column, value, price in (
        (0, 450, 10), (0, 300, 40), (0, 475, math.inf), (0, 550, math.inf), (0, 150, math.inf),
        (1, 29, math.inf), (2, 3, 20), (3, 2, 15), (3, 0, math.inf), (4, 1, 30), (5, 25, math.inf),
    ):  # fmt: skip
        changed = x.clone()
        changed[0, column] = value
        assert ALL.price(x, changed).item() == price, (COLUMNS[column], value)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Move("a", 0), ValueError, "must be positive"),
        (lambda: Move("a", 1, step=-1), ValueError, "must be positive"),
        (lambda: Move("a", 1, low=2, high=1), ValueError, "low at most high"),
        (lambda: Move("a", 1, direction="left"), ValueError, "direction"),  # type: ignore[arg-type]
        (lambda: Move("a", 1, direction="up", to=(1,)), ValueError, "direction"),
        (lambda: Rules(("a",), (Move("b", 1),)), ValueError, "must name columns"),
        (lambda: Rules(("a",), (Move("a", 1), Move("a", 2))), ValueError, "each once"),
        (lambda: attack(people(2, 0).long()), TypeError, "floating-point"),
        (lambda: attack(people(2, 0)[:, :3]), ValueError, r"\(N, 6\)"),
        (lambda: attack(people(2, 0), torch.zeros(2)), TypeError, "y.long()"),
        (lambda: attack(people(2, 0), torch.zeros(3).long()), ValueError, r"y \(N,\)"),
        (lambda: attack(people(2, 0) * math.nan), ValueError, "NaN"),
        (lambda: attack(people(2, 0), budget=-1.0), ValueError, "budget"),
        (lambda: attack(people(2, 0), most=-1), ValueError, "most"),
    ],
)
def test_bad_input_is_told(call, error, words) -> None:
    with pytest.raises(error, match=words):
        call()


def attack(x: Tensor, y: Tensor | None = None, **options) -> None:
    y = torch.zeros(len(x), dtype=torch.long) if y is None else y
    attacks.cheapest(network(0), x, y, rules=ALL, **options)


# --- the layer that makes inputs of rows ----------------------------------------------------------


@given(st.integers(0, 10**6))
def test_a_row_is_read_back_from_its_input(seed: int) -> None:
    encode, x = models.Encode(CHOICES, LOW, HIGH), people(6, seed)
    encoded = encode(x)
    assert encoded.shape == (6, 3 + 4 + 3 + 2)
    assert bool(((encoded >= 0) & (encoded <= 1)).all())
    assert torch.equal(encode.decode(encoded), x)


def test_an_input_that_is_no_row_goes_to_the_nearest() -> None:
    encode = models.Encode((0, 3), torch.tensor([0.0, 0]), torch.tensor([10.0, 2]))
    assert encode.decode(torch.tensor([[0.34, 0.4, 0.3, 0.9]])).tolist() == [[3.0, 2.0]]


def test_gradients_reach_numbers_and_weights() -> None:
    net, x = network(8), people(3, 8).requires_grad_()
    net(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad[:, 0] != 0).any())
    assert net[1].weight.grad is not None


@pytest.mark.parametrize(
    ("choices", "low", "high"),
    [
        ((0, 1), torch.zeros(2), torch.ones(2)),
        ((0, -2), torch.zeros(2), torch.ones(2)),
        ((0,), torch.zeros(2), torch.ones(2)),
        ((0,), torch.ones(1), torch.zeros(1)),
    ],
)
def test_bad_columns_are_told(choices, low, high) -> None:
    with pytest.raises(ValueError, match=r"need a lowest|categories"):
        models.Encode(choices, low, high)
