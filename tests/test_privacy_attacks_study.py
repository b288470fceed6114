"""The records of the chapter on privacy attacks: whole, in order, and made again in part."""

import pytest
import torch

from modelsec.attacks.leak import Leak
from modelsec.attacks.membership import lira, shadows, trials
from modelsec.zoo.results import load_record, load_result
from modelsec.zoo.studies.privacy_attacks import (
    ATTACKS,
    DIGITS,
    GRID,
    PATIENTS,
    first,
    learner,
    table_net,
    told,
)

RECORDS = {"privacy_digits": DIGITS, "privacy_patients": PATIENTS}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_every_setting_seed_and_target(name: str) -> None:
    record = load_record(name)
    assert set(record["result"]) == set(RECORDS[name])
    for runs in record["result"].values():
        assert set(runs) == {str(seed) for seed in record["seeds"]}
        for run in runs.values():
            assert set(run["attacks"]) == set(ATTACKS)
            assert run["train"] >= run["test"] > 0.5
            for numbers in run["attacks"].values():
                assert len(numbers["auc"]) == 32
                assert len(numbers["roc"]) == len(GRID)
                assert numbers["roc"] == sorted(numbers["roc"])
                assert numbers["roc"][-1] == 1


def test_a_part_of_the_record_is_made_again() -> None:
    setting = DIGITS["100 digits, 40 epochs"]
    x, y = setting.records()
    known = shadows(learner(setting), x, y, count=8, generator=torch.Generator().manual_seed(0))
    found = [leak.auc for leak in trials(lira, known, x, y)]
    there = load_result("privacy_digits")["100 digits, 40 epochs"]["0"]["by count"]["8"]
    assert sum(found) / 8 == pytest.approx(there["LiRA, offline"]["auc"], abs=0.01)


def test_what_is_told_of_a_target() -> None:
    """Of 100 members 30 lie above all 100 others, the rest below them."""
    member = torch.arange(200) < 100
    scores = torch.cat([torch.full((30,), 200.0), -torch.arange(1.0, 71), torch.arange(100.0)])
    numbers = told([Leak(scores, member)] * 2)
    assert numbers["tpr_1"] == numbers["tpr_5"] == [0.3, 0.3]
    assert numbers["auc"] == numbers["advantage"] == [0.3, 0.3]
    assert set(numbers["roc"][:-1]) == {0.3}


def test_digits_come_in_turn_and_a_table_gets_two_classes() -> None:
    x, y = first(200)
    assert x.shape == (200, 1, 28, 28)
    assert y.bincount().tolist() == [20] * 10
    assert table_net(10)(torch.zeros(3, 10)).shape == (3, 2)
