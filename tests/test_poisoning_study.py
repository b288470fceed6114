"""The planted backdoors that two chapters share, and the records of the chapter on poisoning."""

import pytest
import torch
from generators import global_generators_untouched

from modelsec.zoo.results import load_record
from modelsec.zoo.studies import poisoned, poisoning


@pytest.mark.parametrize("name", poisoned.TRIGGERS)
def test_planted_data_hold_what_they_are_said_to(name: str) -> None:
    digits, called = poisoned.digits(), poisoned.target(1)
    with global_generators_untouched():
        made, again = (poisoned.planted(name, 0.01, 1) for _ in range(2))
    assert torch.equal(made.x, again.x)
    assert torch.equal(made.mask, again.mask)
    assert int(made.mask.sum()) == 40
    assert (made.y[made.mask] == called).all()
    right = made.y[made.mask] == digits.y_train[made.mask]
    assert right.all() if name == "clean label" else not right.any()
    mark = poisoned.stamp(name, 1)
    if name == "clean label":
        assert torch.equal(mark.stamp(made.x[made.mask]), made.x[made.mask])
    else:
        assert torch.equal(mark.stamp(digits.x_train[made.mask]), made.x[made.mask])
    assert (made.cover is not None) == (name == "warp")


def test_each_seed_has_a_target_of_its_own() -> None:
    assert len({poisoned.target(seed) for seed in range(10)}) == 10
    one, other = (poisoned.planted("blended", 0.01, seed) for seed in (0, 1))
    assert not torch.equal(one.mask, other.mask)


def test_flipped_labels_point_where_they_should() -> None:
    y = poisoned.digits().y_train
    pair, noise = (poisoning.flipped(kind, 0.02, 0) for kind in ("pair", "any"))
    assert int(pair.mask.sum()) == int(noise.mask.sum()) == 80
    assert (y[pair.mask] == 4).all()
    assert (pair.y[pair.mask] == 9).all()
    assert torch.equal(noise.y != y, noise.mask)
    assert len(noise.y[noise.mask].unique()) == 10


def test_the_records_hold_every_case_and_every_seed() -> None:
    backdoors = load_record("poisoning_backdoors")
    assert list(backdoors["result"]) == sorted(poisoning.RATES)
    for name, rates in poisoning.RATES.items():
        runs = backdoors["result"][name]
        assert set(runs) == {str(rate) for rate in rates}
        for several in runs.values():
            assert len(several) == len(backdoors["seeds"]) == 3
            assert all(0 <= run["success"] <= 900 and run["accuracy"] <= 1000 for run in several)
            assert all(0 <= value <= 1 for run in several for value in run["seen"].values())
    flips = load_record("poisoning_flips")["result"]
    assert set(flips["rates"]) == {"any", "pair"}
    assert set(flips["doubts"]) == {"any", "pair", *poisoned.TRIGGERS}
    assert set(flips["rates"]["pair"]) == {str(rate) for rate in poisoning.FLIPS}
    matching = load_record("poisoning_matching")["result"]
    for kind, budgets in poisoning.BUDGETS.items():
        assert set(matching[kind]) == {str(budget) for budget in budgets}
        for runs in matching[kind].values():
            assert len({run["row"] for run in runs}) == len(runs) == 12
            assert all(0 <= run["answer"] < 10 for run in runs)
