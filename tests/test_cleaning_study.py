"""The records behind the chapter on cleaning: what they hold fits together."""

import pytest
import torch

from modelsec.zoo import load_result
from modelsec.zoo.results import load_record
from modelsec.zoo.studies.cleaning import PAIRS, counts, nudge, transition


def test_the_transition_matrix_moves_the_named_pairs_only() -> None:
    matrix = transition(0.2)
    assert torch.allclose(matrix.sum(1), torch.ones(10))
    assert {tuple(p) for p in (matrix == 0.2).nonzero().tolist()} == set(PAIRS)
    assert torch.equal(transition(0.0), torch.eye(10))


def test_counts_count() -> None:
    flagged, wrong = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    assert counts(flagged, wrong) == {"flagged": 2, "wrong": 2, "found": 1}


def test_a_nudge_is_a_shift_by_a_pixel_at_most_drawn_from_its_generator() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    perturb = nudge(torch.Generator().manual_seed(0))
    places = {tuple(perturb(None, x, None, 0.0)[0, 0].nonzero()[0].tolist()) for _ in range(200)}
    assert places == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}


@pytest.mark.parametrize("name", ["cleaning_symmetric", "cleaning_matrix"])
def test_each_run_of_the_records_adds_up(name: str) -> None:
    record = load_record(name)
    runs = record["result"]["runs"]
    assert [run["seed"] for run in runs] == record["seeds"]
    for run in runs:
        for rules in run["checks"].values():
            for found in rules.values():
                assert 0 < found["found"] <= min(found["flagged"], found["wrong"])
                assert found["wrong"] == 400 or name == "cleaning_matrix"
            # pruning never flags a label that the judge shares
            assert rules["noise rate"]["flagged"] <= rules["disagree"]["flagged"]
            assert rules["off-diagonal"]["found"] <= rules["disagree"]["found"]
        assert run["accuracy"]["noisy"] < run["accuracy"]["true labels"]


def test_the_more_fours_are_nines_the_smaller_the_share_that_is_found() -> None:
    shares: dict[float, list[float]] = {}
    for run in load_result("cleaning_one_way")["runs"]:
        shares.setdefault(run["rate"], []).append(run["found"] / run["wrong"])
    means = [sum(v) / len(v) for _, v in sorted(shares.items())]
    assert len(means) == 6
    assert means[0] > means[3] > means[5]


def test_the_digits_own_suspects_are_places_in_the_data() -> None:
    flagged = load_result("cleaning_as_given")["flagged"]
    assert all(0 <= e["index"] < 5000 and 1 <= e["times"] <= 5 for e in flagged)
    own = [e["self_confidence"] for e in flagged]
    assert own == sorted(own)
