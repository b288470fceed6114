"""The chapter's long results: what they count, and that the records fit the networks they are about."""

import pytest
import torch

from modelsec.attacks import hopskipjump, labels_only, nes, scores_only
from modelsec.data import mnist
from modelsec.models import Net
from modelsec.training import evaluate
from modelsec.zoo import load_model, load_result
from modelsec.zoo.studies.black_box import ATTACKED, OWN, first_success, noise, surrogate

DIGITS, NET = mnist(), load_model("net")
X, Y = DIGITS.x_test[:16], DIGITS.y_test[:16]


@pytest.mark.parametrize("attack", ["NES", "SPSA", "Square", "HopSkipJump"])
def test_the_first_success_is_counted(attack: str) -> None:
    first = first_success(attack, NET, X, Y, 0.15, 160, seed=0)
    wrong = ~evaluate(NET, X, Y).correct
    assert torch.equal(first == 0, wrong)
    there = first[first.isfinite() & (first > 0)]
    assert len(there) >= 2
    assert ((there >= 1) & (there <= 160)).all()
    assert torch.equal(first, first_success(attack, NET, X, Y, 0.15, 160, seed=0))


def first_of(attack: str) -> tuple[int, int]:
    """An image that is fooled soonest after the first query, and with which query that was."""
    first = first_success(attack, NET, X, Y, 0.15, 320, seed=0)
    k = int(first.where(first > 0, torch.inf).argmin())
    return k, int(first[k])


def test_hopskipjump_comes_within_eps_with_the_query_that_is_told_and_not_before() -> None:
    k, q = first_of("HopSkipJump")
    for queries, hit in ((q, True), (q - 1, False)):
        near = hopskipjump(
            labels_only(NET), X, Y, norm="linf", queries=queries,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert (near.distance[k] <= 0.15) == hit


def test_nes_needs_no_more_than_the_queries_that_are_told() -> None:
    k, q = first_of("NES")
    scores = scores_only(NET, probabilities=False)
    adv = nes(scores, X, Y, eps=0.15, queries=q, generator=torch.Generator().manual_seed(0))
    assert scores(adv).argmax(1)[k] != Y[k]


def test_the_control_changes_every_pixel_that_can_move() -> None:
    changed = noise(X, 0.1, seed=3)
    assert changed.min() >= 0
    assert changed.max() <= 1
    inner = (X >= 0.1) & (X <= 0.9)
    assert torch.allclose((changed - X).abs()[inner], torch.tensor(0.1), atol=1e-6)
    assert torch.equal(changed, noise(X, 0.1, seed=3))


def test_a_surrogate_learns_from_what_the_attacker_has() -> None:
    own = DIGITS.x_test[OWN], DIGITS.y_test[OWN]
    model = surrogate(Net, own[0][:200], own[1][:200], seed=0)
    assert not model.training
    assert evaluate(model, DIGITS.x_test[ATTACKED], DIGITS.y_test[ATTACKED]).value > 0.7


@pytest.mark.parametrize("name", ["net", "convnet", "convnet_robust"])
def test_the_records_fit_the_networks(name: str) -> None:
    model, runs = load_model(name), load_result("black_box_queries")
    right = evaluate(model, DIGITS.x_test[:200], DIGITS.y_test[:200]).correct
    for first in runs["first"][name].values():
        assert len(first) == 200
        assert all(-1 <= q <= runs["queries"] for q in first)
        zero = torch.tensor([q == 0 for q in first])
        assert (zero != ~right).sum() <= 1  # one image may stand on the border on another machine
    record = load_result("black_box_transfer")
    clean = evaluate(model, DIGITS.x_test[ATTACKED], DIGITS.y_test[ATTACKED])
    assert abs(record["clean"][name] - clean.hits) <= 2
    assert all(0 <= hits <= 500 for several in record["left"].values() for hits in several)
