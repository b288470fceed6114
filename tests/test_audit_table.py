"""The audit card of a model for tables: what it measures, what it warns of, and what it leaves out."""

import json
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor

from modelsec import models
from modelsec.attacks.tabular import Move, Rules
from modelsec.audit import Report, audit_table, sections
from modelsec.audit.table import ANY
from modelsec.data import Data
from modelsec.intervals import Proportion

RULES = Rules(
    ("income", "purpose", "age"), (Move("purpose", 10, to=(0, 1)), Move("income", 5, most=4))
)
COSTS = torch.tensor([[0.0, 5.0], [1.0, 0.0]])


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    income = torch.randint(0, 40, (n,), generator=draw).float()
    purpose = torch.randint(0, 2, (n,), generator=draw).float()
    age = torch.randint(20, 70, (n,), generator=draw).float()
    return torch.stack([income, purpose, age], 1), (income + 4 * purpose > 15).long()


@pytest.fixture
def table() -> Data:
    return Data("incomes", *rows(300, 0), *rows(150, 1), ("bad", "good"), "made up here", "none")


def rule(x: Tensor) -> Tensor:
    """Right for all: the score is the label's own formula."""
    score = x[:, 0] + 4 * x[:, 1] - 15.5
    return torch.stack([-score, score], 1)


def audited(model, table: Data, **options) -> Report:
    return audit_table(
        model, table, **({"rules": RULES, "budgets": (10, 20, 60), "costs": COSTS} | options)
    )


def test_it_measures_decisions_groups_and_prices(table: Data) -> None:
    old = table.x_test[:, 2] > 45
    report = audited(rule, table, groups={"old": old, "young": ~old}, name="a rule")
    found = report.measures
    assert report.heading.startswith("a rule, on 150 test rows of incomes; attacks in money")
    assert found["clean.cost"] == 0
    assert found["clean.accuracy"] == Proportion(150, 150)
    bad = int((table.y_test == 0).sum())
    assert found["validation.bad"] == Proportion(bad, bad)
    assert found["validation.bad_old"].n + found["validation.bad_young"].n == bad
    # what a yes costs is known here: 10 for the purpose, 5 for each step of the income, 4 at most
    short = 15.5 - (table.x_test[:, 0] + 4 * table.x_test[:, 1])[table.y_test == 0]
    free = (table.x_test[:, 1] == 0)[table.y_test == 0]
    steps, marked = 5 * short.clamp_min(0).ceil(), 10 + 5 * (short - 4).clamp_min(0).ceil()
    steps[short > 4] = torch.inf
    marked[(~free) | (short > 8)] = torch.inf
    price = torch.minimum(steps, marked)
    for budget in (0, 10, 20, 60):
        assert found[f"evasion.yes@{budget}"] == Proportion(int((price <= budget).sum()), bad)


def test_every_section_is_measured_or_says_why_not(table: Data) -> None:
    net = models.TabularNet((0, 2, 0), table.x_train.amin(0), table.x_train.amax(0))
    open_before = plt.get_fignums()
    report = audited(net, table)
    assert [part.name for part in report.sections] == list(sections())
    measured = {"data", "clean", "validation", "evasion", *ANY}
    for part in report.sections:
        if part.name in measured:
            assert part.verdict != "skipped", part
        else:
            assert part.verdict == "skipped"
            assert re.fullmatch(r"Not for tables: .{20,}\.", part.summary)
    assert json.loads(report.to_json())["norm"] == "money"
    assert "test rows" in report.to_html()
    assert plt.get_fignums() == open_before
    assert net.training


def test_it_warns_of_copies_of_bad_models_and_of_loopholes(table: Data) -> None:
    leaked = replace(table, x_test=torch.cat([table.x_train[:50], table.x_test[50:]]),
                     y_test=torch.cat([table.y_train[:50], table.y_test[50:]]))  # fmt: skip
    assert audited(rule, table)["data"].verdict == "warning"  # few values: some rows are the same
    assert audited(rule, leaked).measures["data.leaked_exact"].hits >= 50

    def always(x: Tensor) -> Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

    assert audited(always, table)["clean"].verdict == "warning"
    assert audited(rule, table)["clean"].verdict == "ok"
    assert audited(rule, table)["evasion"].verdict == "warning"
    closed = Rules(RULES.columns, ())
    assert audited(rule, table, rules=closed)["evasion"].verdict == "info"
    assert audited(rule, table, rules=closed).measures["evasion.yes@60"].hits == 0


def test_groups_that_differ_are_named(table: Data) -> None:
    old = table.x_test[:, 2] > 45

    def unfair(x: Tensor) -> Tensor:
        return rule(x) - 50 * (x[:, 2:] > 45) * torch.tensor([[-1.0, 1.0]])

    report = audited(unfair, table, groups={"old": old, "young": ~old})
    assert report["validation"].verdict == "warning"
    assert "good, old and good, young" in report["validation"].summary


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budgets": ()}, "rising budgets"),
        ({"budgets": (20, 10)}, "rising budgets"),
        ({"budgets": (0, 10)}, "rising budgets"),
        ({"costs": torch.zeros(3, 3)}, "costs must have shape"),
    ],
)
def test_bad_options_are_told(table: Data, options, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        audited(rule, table, **options)
