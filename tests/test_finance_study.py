"""The bank of the chapter on finance: its decisions, its rules, its repairs and its loop, on few rows."""

import math
from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from torch import Tensor, nn

from modelsec.attacks.tabular import cheapest
from modelsec.data import Data
from modelsec.zoo.results import load_result, studies
from modelsec.zoo.studies import finance, finance_models
from modelsec.zoo.studies.finance_models import CHEAP, RULES, AtCost, Trees, applicants


@pytest.fixture(scope="module")
def split() -> Data:
    return applicants().split(torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def trees(split: Data) -> AtCost:
    return finance_models.trees(split, 0)


class Fixed(nn.Module):
    """Logits whose softmax is a given probability of a bad risk: the first column."""

    def forward(self, x: Tensor) -> Tensor:
        p = x[:, :1]
        return torch.cat([p, 1 - p], 1).log()


def test_the_answer_is_the_cheaper_decision() -> None:
    p = torch.tensor([[0.1], [0.16], [0.17], [0.5], [0.9]])
    expected = torch.stack([1 - p[:, 0], 5 * p[:, 0]], 1).argmin(1)  # refusing, accepting
    assert torch.equal(AtCost(Fixed())(p).argmax(1), expected)
    assert AtCost(Fixed(), 1.0)(p).argmax(1).tolist() == [1, 1, 1, 0, 0]


def test_what_a_decision_costs() -> None:
    x, y = torch.tensor([[0.1], [0.1], [0.9], [0.9]]), torch.tensor([0, 1, 0, 1])
    assert finance_models.cost(AtCost(Fixed()), x, y) == (5 + 0 + 0 + 1) / 4


def test_the_payment_must_not_rise() -> None:
    amount, duration = (RULES.columns.index(name) for name in ("amount", "duration"))
    x = applicants().raw[:3].clone()
    changed = x.clone()
    changed[0, amount] *= 0.9
    changed[1, duration] -= 3
    changed[2, duration] += 3
    assert finance_models.payment_kept(x, changed).tolist() == [True, False, True]
    assert bool(finance_models.payment_kept(x, x).all())


def test_fixed_columns_are_fixed_and_every_option_names_a_category() -> None:
    people = applicants()
    fixed = {"age", "personal_status", "foreign_worker", "job", "credit_history", "property"}
    assert not fixed & {move.column for move in RULES.moves}
    options = RULES.options(people.raw)
    for j, count in enumerate(people.choices):
        here = options.column == j
        if count and bool(here.any()):
            value = options.value[:, here][options.price[:, here].isfinite()]
            assert bool(((value >= 0) & (value < count) & (value == value.round())).all())


def test_random_moves_can_be_made_and_come_from_the_generator(split: Data) -> None:
    x = split.x_test[:60]
    with global_generators_untouched():
        first, second = (
            finance_models.random_moves(x, RULES, 100, torch.Generator().manual_seed(s))
            for s in (1, 1)
        )
    assert torch.equal(first, second)
    assert bool((RULES.price(x, first) <= 100).all())
    assert (first != x).any(1).float().mean() > 0.5


def test_trees_answer_with_logarithms_of_probabilities(split: Data, trees: AtCost) -> None:
    assert torch.allclose(trees.model(split.x_test).exp().sum(1), torch.ones(300), atol=1e-5)
    assert trees.model(split.x_test[:0]).shape == (0, 2)
    right = (trees.model(split.x_test).argmax(1) == split.y_test).float().mean()
    assert right > 0.7


def test_a_weight_of_two_is_a_row_twice(split: Data) -> None:
    x, y = split.x_train[:200], split.y_train[:200]
    weight = torch.where(y == 0, 2.0, 1.0)
    twice = torch.cat([x, x[y == 0]]), torch.cat([y, y[y == 0]])
    one, two = Trees(x, y, weight), Trees(*twice)
    # binning and the smallest leaf count rows, not weights: close, not equal
    apart = (one(split.x_test)[:, 0].exp() - two(split.x_test)[:, 0].exp()).abs().mean()
    assert apart < 0.1


def test_a_blind_model_does_not_see_the_cheap_columns(split: Data) -> None:
    model = finance_models.blind(finance_models.trees, split, 0)
    x = split.x_test.clone()
    for name in CHEAP:
        x[:, RULES.columns.index(name)] = 1
    assert torch.equal(model(x), model(split.x_test))


def test_a_stricter_model_accepts_the_share_that_was_asked_for(split: Data, trees: AtCost) -> None:
    for share in (0.1, 0.25):
        model = finance_models.stricter(trees, split.x_test, share)
        accepted = (model(split.x_test).argmax(1) == 1).float().mean().item()
        assert accepted == pytest.approx(share, abs=0.02)


def test_trees_that_are_trained_on_the_attack_are_dearer_to_game(
    split: Data, trees: AtCost
) -> None:
    hard = finance_models.hardened_trees(split, 0, 100, rounds=2)
    before, after = (finance.yes_rate(finance.price_of(m, split), 100) for m in (trees, hard))
    assert after < before - 0.1


def test_pgd_on_inputs_makes_nobody(split: Data) -> None:
    model = finance_models.net(split, 0)
    found = finance.in_feature_space(model, split)
    assert found["yes"] > 0.2
    assert found["impossible"] > 0.99
    assert found["allowed"] <= found["as rows"]


def test_measures_are_shares_and_prices_rise(split: Data, trees: AtCost) -> None:
    found = finance.measure(trees, split)
    assert found["rates"] == sorted(found["rates"])
    assert len(found["rates"]) == len(finance.BUDGETS)
    with torch.no_grad():
        yes = trees(split.x_test[split.y_test == 0]).argmax(1) == 1
    assert found["rates"][0] == pytest.approx(yes.float().mean().item())
    bad = split.x_test[split.y_test == 0]
    assert torch.equal(
        finance.price_of(trees, split),
        cheapest(trees, bad, bad.new_zeros(90).long(), rules=RULES).distance,
    )


def test_the_bank_learns_from_those_it_accepts() -> None:
    plain = finance.bank(1, rounds=2)
    everything = finance.bank(1, everything=True, rounds=2)
    assert [step["known"] for step in everything] == [200, 300, 400]
    assert plain[0] == everything[0]
    assert 200 < plain[1]["known"] < 300
    assert plain == finance.bank(1, rounds=2)


def test_sleepers_carry_the_mark_are_accepted_and_are_known_as_good() -> None:
    plain, poisoned = finance.bank(2, rounds=1), finance.bank(2, sleepers=10, rounds=1)
    assert poisoned[0] == plain[0]
    joined = poisoned[1]["new"] - plain[1]["new"]
    assert 0 < joined <= 10
    assert poisoned[1]["known"] - plain[1]["known"] == joined
    assert poisoned[1]["new_marked"] - plain[1]["new_marked"] == joined
    assert poisoned[1]["spent"] > 0


@pytest.mark.parametrize("name", ["finance_splits", "finance_feedback"])
def test_the_studies_are_registered(name: str) -> None:
    found: Any = studies()[name]
    assert len(found.seeds) >= 8
    assert not math.isnan(found.n)


def test_the_cards_are_those_of_the_models() -> None:
    kept = load_result("finance_cards")
    assert [part["title"] for part in kept["before"]] == [part["title"] for part in kept["after"]]
    split = applicants().split(torch.Generator().manual_seed(0))
    made = finance.card(finance_models.trees(split, 0), split, "trees, before the repair")
    assert made.told == kept["before"]
