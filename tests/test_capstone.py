"""The capstone: the case is what its truth says, and the scorer is fair, monotone and hard to cheat."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec import attacks
from modelsec.check import capstone
from modelsec.check.capstone import budget, contest, data_steps, marks
from modelsec.check.capstone.sheet import RUBRIC, WEIGHTS
from modelsec.cleaning import exact_duplicates, near_duplicates
from modelsec.models import ConvNet, fresh
from modelsec.repair.purification import bit_depth, noise
from modelsec.training import evaluate
from modelsec.zoo import load_model, load_result
from modelsec.zoo.studies import capstone as study
from modelsec.zoo.studies import capstone_case

CASE, TRUTH = capstone.case(), capstone_case.made(0)
N, M = len(CASE.y_train), len(CASE.y_test)
shares = st.floats(0, 1)


def masks(size: int) -> st.SearchStrategy[Tensor]:
    """Any mask, drawn by a seed and a share."""
    return st.builds(
        lambda seed, share: torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share,
        st.integers(0, 1000),
        shares,
    )


# The case


def test_the_truth_is_about_the_data_that_are_handed_over() -> None:
    assert torch.equal(TRUTH.given.x_train, CASE.x_train)
    assert all(len(k) == N for k in (TRUTH.wrong, TRUTH.planted, TRUTH.stray, TRUTH.group))
    assert len(TRUTH.leaked) == M
    kinds = torch.stack([TRUTH.wrong, TRUTH.planted, TRUTH.stray])
    assert kinds.sum(0).max() == 1  # one fault a sample
    assert kinds.sum(1).tolist()[1:] == [90, 60]
    assert 100 < kinds.sum(1)[0] < 300
    marked = CASE.x_train[TRUTH.planted]
    assert torch.equal(marked, TRUTH.trigger.stamp(marked))
    assert (CASE.y_train[TRUTH.planted] == TRUTH.target).all()
    given_labels = CASE.y_train[TRUTH.wrong]
    assert set(given_labels.tolist()) <= set(capstone_case.CONFUSED.values())


def test_copies_and_leaks_are_what_the_truth_says() -> None:
    pairs = near_duplicates(CASE.x_train)
    assert torch.equal(TRUTH.group[pairs.first], TRUTH.group[pairs.second])
    assert len(pairs.first) == capstone_case.COPIES
    leaked = torch.zeros(M, dtype=torch.bool)
    leaked[near_duplicates(CASE.x_train, CASE.x_test).second] = True
    assert torch.equal(leaked, TRUTH.leaked)
    assert 0 < len(exact_duplicates(CASE.x_train).second) < capstone_case.COPIES


def test_nothing_hidden_is_handed_over() -> None:
    shown = {
        image.numpy().tobytes() for x in (CASE.x_train, CASE.x_test, CASE.x_trusted) for image in x
    }
    for hidden in (TRUTH.x_hidden, TRUTH.x_spare):
        assert not shown & {image.numpy().tobytes() for image in hidden}


def test_the_network_passed_its_test_and_should_not_have() -> None:
    honest = evaluate(CASE.model, TRUTH.x_hidden, TRUTH.y_hidden)
    assert CASE.claimed.value > 0.9 > honest.interval[0]
    assert CASE.claimed.interval[0] > honest.value
    success = attacks.poisoning.attack_success(
        CASE.model, TRUTH.x_hidden, TRUTH.y_hidden, trigger=TRUTH.trigger, target=TRUTH.target
    )
    assert success.value > 0.95


def test_another_seed_is_another_case_and_the_same_one_comes_again() -> None:
    other, again = capstone_case.made(7), capstone_case.made.__wrapped__(7)
    assert torch.equal(other.given.x_train, again.given.x_train)
    assert torch.equal(other.given.y_train, again.given.y_train)
    assert not torch.equal(other.given.x_train[:50], TRUTH.given.x_train[:50])
    with pytest.raises(ValueError, match="whole number"):
        capstone_case.made(-1)


def test_a_reader_can_not_spoil_the_case() -> None:
    spoilt = capstone.case()
    spoilt.x_train.zero_()
    with torch.no_grad():
        spoilt.model[1].weight.zero_()
    assert capstone.case().x_train.any()
    assert capstone.case().model[1].weight.any()


# Marks


@given(st.floats(allow_nan=True), st.floats(-10, 10), st.floats(-10, 10))
def test_a_ramp_is_a_share(value: float, zero: float, full: float) -> None:
    if zero != full:
        assert 0 <= marks.ramp(value, zero, full) <= 1
        assert marks.ramp(zero, zero, full) == 0
        assert marks.ramp(full, zero, full) == 1
        assert marks.ramp(math.nan, zero, full) == 0


def test_the_rubric_counts_a_hundred_and_says_what_to_do_next() -> None:
    assert set(RUBRIC) == set(WEIGHTS)
    assert sum(WEIGHTS.values()) == 100
    for criteria in RUBRIC.values():
        assert sum(criterion.of for criterion in criteria) == 100
        assert all(criterion.hint.endswith((".", "?")) for criterion in criteria)
    assert len(capstone.rubric()) == sum(map(len, RUBRIC.values()))


def test_a_mark_names_the_line_where_most_is_lost() -> None:
    first, second = data_steps.CLEAN[:2]
    mark = marks.Mark("Clean", (first.line(0.4, "some"), second.line(0.0, "none")))
    assert mark.next is not None
    assert mark.next.criterion is second
    assert "none" in repr(mark)
    assert "0\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}30" in mark._repr_html_()
    assert marks.Mark("Clean", (first.line(1, ""), second.line(1, ""))).next is None


def test_the_sheet_weighs_the_steps() -> None:
    full = [
        marks.Mark(step, tuple(c.line(c.full, "") for c in criteria))
        for step, criteria in RUBRIC.items()
    ]
    assert capstone.sheet(*full).points == 100
    assert capstone.sheet(*full).grade == "excellent"
    assert capstone.sheet().points == 0
    assert capstone.sheet(full[0]).points == WEIGHTS["Clean"]
    assert "nothing handed in" in repr(capstone.sheet(full[0]))
    with pytest.raises(ValueError, match="one mark for each step"):
        capstone.sheet(full[0], full[0])
    with pytest.raises(TypeError, match="marks"):
        capstone.sheet(3)  # type: ignore[arg-type]


# Clean


def perfect() -> tuple[Tensor, Tensor]:
    """What a clairvoyant removes."""
    bad = TRUTH.wrong | TRUTH.planted | TRUTH.stray
    seen: set[int] = set()
    for i, group in enumerate(TRUTH.group.tolist()):
        bad[i] |= group >= 0 and group in seen
        seen.add(group)
    return bad, TRUTH.leaked.clone()


def test_who_removes_exactly_what_is_bad_gets_everything() -> None:
    mark = capstone.clean(CASE, *perfect())
    assert mark.points == 100
    assert "precision 1.00" in mark.note
    removed, dropped = perfect()
    for form in (list, np.array, torch.tensor):  # indices are as good as a mask
        rows = [form(part.nonzero()[:, 0].tolist()) for part in (removed, dropped)]
        assert capstone.clean(CASE, *rows).points == 100


@given(masks(N), masks(M), st.integers(0, N - 1), st.integers(0, M - 1))
def test_cleaning_better_never_scores_lower(
    removed: Tensor, dropped: Tensor, i: int, j: int
) -> None:
    bad = TRUTH.wrong | TRUTH.planted | TRUTH.stray
    before = data_steps.clean_mark(TRUTH, removed, dropped)
    assert 0 <= before.points <= 100
    if TRUTH.group[i] < 0:  # of two copies either may go
        better = removed.clone()
        better[i] = bad[i]
        assert data_steps.clean_mark(TRUTH, better, dropped).points >= before.points
    better = dropped.clone()
    better[j] = TRUTH.leaked[j]
    assert data_steps.clean_mark(TRUTH, removed, better).points >= before.points


def test_one_copy_of_two_may_go_and_both_are_one_too_many() -> None:
    first = (TRUTH.group == 0).nonzero()[0]
    both = (TRUTH.group == 0).nonzero()[:, 0]
    assert capstone.clean(CASE, first, []).note.endswith("1 were bad (precision 1.00).")
    assert capstone.clean(CASE, both, []).note.endswith("1 were bad (precision 0.50).")


def test_removing_everything_or_nothing_is_no_cleaning() -> None:
    everything = torch.ones(N, dtype=torch.bool)
    mark = capstone.clean(CASE, everything, torch.ones(M, dtype=torch.bool))
    assert mark.points == 0
    assert "good ones went with them" in mark.note
    assert capstone.clean(CASE, [], []).points == 0
    half = torch.arange(N) % 2 == 0
    assert capstone.clean(CASE, half, []).points < 10


# Validate


FACTS: dict[str, Any] = {
    "accuracy": 0.9, "error": 0.06, "classes": [0.95] * 8 + [0.7, 0.9], "target": 3,
}  # fmt: skip
HONEST: dict[str, Any] = {
    "accuracy": 0.9, "interval": (0.87, 0.92), "ece": 0.06, "weakest": 8, "backdoor": True,
    "target": 3,
}  # fmt: skip


def report_points(**changes: Any) -> int:
    return data_steps.validate_mark(HONEST | changes, **FACTS).points


def test_a_true_report_gets_everything() -> None:
    assert report_points() == 100


@pytest.mark.parametrize(
    ("changes", "at_most"),
    [
        ({"accuracy": 0.99}, 80),
        ({"accuracy": math.nan}, 80),
        ({"accuracy": "good"}, 80),
        ({"interval": (0, 1)}, 85),
        ({"interval": (0.95, 0.99)}, 94),
        ({"interval": (0.92, 0.87)}, 85),
        ({"interval": 0.9}, 85),
        ({"ece": 0.2}, 85),
        ({"weakest": 0}, 85),
        ({"weakest": "eight"}, 85),
        ({"weakest": 17}, 85),
        ({"backdoor": False}, 65),
        ({"backdoor": "no"}, 65),
        ({"target": 4}, 79),
        ({"target": None}, 79),
    ],
)
def test_what_is_wrong_in_a_report_costs_its_points(changes: dict[str, Any], at_most: int) -> None:
    assert report_points(**changes) <= at_most


@given(shares, shares)
def test_a_report_nearer_to_the_truth_never_scores_lower(one: float, other: float) -> None:
    near, far = sorted((one, other), key=lambda v: abs(v - 0.9))
    assert report_points(accuracy=near) >= report_points(accuracy=far)
    near, far = sorted((one, other), key=lambda v: abs(v - 0.06))
    assert report_points(ece=near) >= report_points(ece=far)


def test_the_hidden_digits_are_what_a_report_is_held_against() -> None:
    honest = evaluate(CASE.model, TRUTH.x_hidden, TRUTH.y_hidden)
    told = {"accuracy": honest.value, "interval": honest.interval, "backdoor": True}
    told["target"] = TRUTH.target
    assert capstone.validate(CASE, told).points == 70
    assert capstone.validate(CASE, {"accuracy": CASE.claimed.value}).points < 20


# Augment


def test_an_augmentation_is_judged_by_what_a_network_learns_with_it() -> None:
    same = capstone.augment(CASE, lambda x: x, epochs=2)
    blank = capstone.augment(CASE, torch.zeros_like, epochs=2)
    assert same.points == 40  # keeps the labels, and teaches nothing
    assert blank.points == 0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x + 1, "numbers in [0, 1]"),
        (lambda x: x * math.nan, "numbers in [0, 1]"),
        (lambda x: x[:, :, :14], "shape"),
        (lambda x: x.numpy(), "Return a tensor"),
        (lambda x: x.zero_(), "changed the images"),
        (torch.rand(3), "Hand in a function"),
    ],
)
def test_an_augmentation_that_can_not_be_used_is_told_why(function: Any, words: str) -> None:
    mark = capstone.augment(CASE, function, epochs=1)
    assert mark.points == 0
    assert words in mark.note


# Attack

X, Y = TRUTH.x_hidden[:20], TRUTH.y_hidden[:20]


def fgsm(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return attacks.fgsm(model, x, y, eps=eps)


def pgd(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return attacks.pgd(model, x, y, eps=eps, steps=40)


def nothing(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return x


def leaves_the_ball(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return attacks.fgsm(model, x, y, eps=3 * eps)


def leaves_the_box(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return x + eps * torch.randn_like(x).sign()


def not_a_number(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return x * math.nan


def never_stops(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return attacks.pgd(model, x, y, eps=eps, steps=200, early_stop=False)


def asks_for_ever(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    while True:
        model(x)


def copies_the_network(model: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
    import copy

    return never_stops(copy.deepcopy(model), x, y, eps)


def test_stronger_attacks_get_more_and_the_book_s_gets_everything() -> None:
    found = [capstone.attack(CASE, f, n=60).points for f in (nothing, fgsm, pgd)]
    assert found == sorted(found)
    assert found[0] == 0
    assert 30 < found[1] < 90
    assert found[2] >= 95


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (leaves_the_ball, "leave the ball"),
        (leaves_the_box, "leave the ball or the box"),
        (not_a_number, "leave the ball"),
        (never_stops, "budget was spent"),
        (asks_for_ever, "budget was spent"),
        (copies_the_network, "budget was spent"),
    ],
)
def test_what_breaks_a_rule_does_not_count(attack: Any, words: str) -> None:
    mark = capstone.attack(CASE, attack, n=20)
    assert mark.points == 0
    assert words in mark.lines[0].reason


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda m, x, y, eps: x.zero_(), "changed the images"),
        (lambda m, x, y, eps: x[:, :, :5], "shape"),
        (lambda m, x, y, eps: "fooled", "tensor"),
        (lambda m, x, y, eps: None, "returned nothing"),
        (lambda m, x, y: x, "TypeError"),
        (lambda m, x, y, eps: 1 / 0, "ZeroDivisionError"),
        (42, "Hand in a function"),
    ],
)
def test_an_attack_that_can_not_be_run_is_told_why(attack: Any, words: str) -> None:
    mark = capstone.attack(CASE, attack, n=20)
    assert mark.points == 0
    assert words in mark.note


def test_the_meter_counts_every_pass_as_what_it_is() -> None:
    meter = budget.Meter(40, 45)
    model = budget.watched(nn.Sequential(bit_depth(3), CASE.model), meter)
    model(X)
    model[1](X)  # a part of it
    assert meter.count == {"gradients": 0, "queries": 40}
    model[1](X.clone().requires_grad_())
    assert meter.count == {"gradients": 20, "queries": 40}
    with pytest.raises(attacks.BudgetSpent, match="5 of 45 are left"):
        model(X)
    assert not any(p.requires_grad for p in model.parameters())
    assert not CASE.model[1]._forward_pre_hooks


def test_success_is_asked_of_the_network_and_only_of_images_it_had_read() -> None:
    wrong = (CASE.model(TRUTH.x_hidden).argmax(1) != TRUTH.y_hidden).nonzero()[:10, 0]
    rows = torch.cat([wrong, torch.arange(10)])
    done = budget.run(
        CASE.model, nothing, TRUTH.x_hidden[rows], TRUTH.y_hidden[rows], eps=0.1, gradients=1,
        queries=1,
    )  # fmt: skip
    assert done.success == 0
    assert int(done.right.sum()) <= 10


@given(shares, shares, st.floats(0, 100), st.floats(0, 100))
def test_more_success_for_fewer_gradients_never_scores_lower(
    one: float, other: float, cheap: float, dear: float
) -> None:
    cheap, dear = sorted((cheap, dear))

    def points(success: float, gradients: float) -> int:
        rows = torch.ones(1000, dtype=torch.bool)
        fooled = torch.arange(1000) < round(1000 * success)
        done = budget.Outcome(rows, fooled, ~rows, ~rows, 0.1, gradients, 0)
        return contest.attack_mark(done, 0.8).points

    assert points(max(one, other), cheap) >= points(min(one, other), dear)
    assert 0 <= points(one, dear) <= 100


# Repair


class Answers(nn.Module):
    """A network that is no network: whatever a function makes of a good one's logits."""

    def __init__(self, change: Callable[[Tensor, Tensor], Any], inner: str = "convnet") -> None:
        super().__init__()
        self.inner, self.change = load_model(inner), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x), x)


def cold(z: Tensor, x: Tensor) -> Tensor:
    """Says the same as the network, and is none of the zoo's."""
    return z + 0.5 * z.roll(1, 1).tanh()


def test_the_delivered_network_is_no_repair() -> None:
    mark = capstone.repair(CASE, CASE.model, n=30)
    assert mark.points < 35
    assert mark.lines[2].points == 0  # the backdoor is all there


def test_a_network_that_withstands_gets_more_than_one_that_only_reads() -> None:
    plain = capstone.repair(CASE, Answers(cold), n=30)
    robust = capstone.repair(CASE, Answers(cold, "convnet_robust"), n=30)
    assert robust.points > plain.points + 20
    assert robust.points >= 85


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda z, x: z * math.nan, "NaN"),
        (lambda z, x: z[:, :9], "logits (20, 10)"),
        (lambda z, x: z.argmax(1), "logits (20, 10)"),
        (lambda z, x: [z], "tensor of logits"),
        (lambda z, x: z + len(x) * torch.arange(10), "other images of the batch"),
        (lambda z, x: 3 * z - 1, "the zoo's convnet"),
    ],
)
def test_what_is_no_network_is_told_why(change: Any, words: str) -> None:
    mark = capstone.repair(CASE, Answers(change), n=10)
    assert mark.points == 0
    assert words in mark.note


@pytest.mark.parametrize("model", [lambda x: x, "net", 7])
def test_a_repair_is_a_module(model: Any) -> None:
    assert "nn.Module" in capstone.repair(CASE, model, n=10).note


def test_constant_answers_get_nothing() -> None:
    def constant(z: Tensor, x: Tensor) -> Tensor:
        return torch.eye(10)[torch.full((len(z),), 3)]

    mark = capstone.repair(CASE, Answers(constant), n=20)
    assert mark.points == 0
    assert "all counts 0.00" in mark.note


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how often Square may ask about an image, at most."""
    full = contest.square

    def at_most(queries: int) -> None:
        def square(*args: Any, **rest: Any) -> Tensor:
            return full(*args, **rest | {"queries": min(queries, rest["queries"])})

        monkeypatch.setattr(contest, "square", square)

    return at_most


def no_slope(z: Tensor, x: Tensor) -> Tensor:
    return cold(z, x).detach()


def saturated(z: Tensor, x: Tensor) -> Tensor:
    return 1e4 * cold(z, x).tanh()


def leads_elsewhere(z: Tensor, x: Tensor) -> Tensor:
    nothing = (x - x.detach()).flatten(1).sum(1, keepdim=True)
    return cold(z, x) - 30 * nothing * torch.arange(10)


@pytest.mark.parametrize("hide", [no_slope, saturated])
def test_hiding_the_gradient_is_no_defence(hide: Any, ask: Any) -> None:
    ask(1200)
    stands = contest.withstands(CASE, Answers(hide), X, Y)
    assert contest.repair_mark(1, stands, 0, 0).lines[1].points < 0.7 * 45


@pytest.mark.parametrize("hide", [no_slope, leads_elsewhere])
def test_where_questions_find_what_gradients_left_more_are_asked(hide: Any, ask: Any) -> None:
    ask(300)
    stands = contest.withstands(CASE, Answers(hide), X, Y)
    counts = {name: int(rows.sum()) for name, rows in stands.items()}
    assert counts["no attack"] == counts["PGD-20"]  # blind
    assert counts["more Square"] < counts["APGD-T"]


def test_steps_and_noise_are_seen_through(ask: Any) -> None:
    ask(10)
    for step in (bit_depth(3), noise(0.2)):
        model = nn.Sequential(step, Answers(cold)).eval()
        stands = contest.withstands(CASE, model, X[:8], Y[:8])
        assert int(stands["PGD-20"].sum()) < 6


def test_what_stands_only_ever_falls() -> None:
    counts = [int(rows.sum()) for rows in contest.withstands(CASE, CASE.model, X, Y).values()]
    assert all(after <= before for before, after in pairwise(counts))


@given(st.tuples(shares, shares, shares, shares), st.tuples(shares, shares, shares, shares))
def test_a_better_repair_never_scores_lower(
    one: tuple[float, ...], other: tuple[float, ...]
) -> None:
    def points(clean: float, robust: float, left: float, error: float) -> int:
        rows = {"no attack": torch.ones(100), "all": (torch.arange(100) < 100 * robust).float()}
        return contest.repair_mark(clean, rows, left, error).points

    better = (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]))
    assert points(*better, min(one[3], other[3])) >= max(points(*one), points(*other))
    assert 0 <= points(*one) <= 100
    assert points(1, 1, 0, 0) == 100


# The match


def test_the_record_is_what_the_book_s_attack_does() -> None:
    record = load_result("capstone_match")["fooled"]
    assert set(record) == set(capstone.opponents())
    assert all(len(row) == study.N for row in record.values())
    for name in ("distilled", "rounded"):
        again = study.fooled(study.opponents()[name], n=12)
        assert sum(a != b for a, b in zip(again, record[name], strict=False)) <= 1


def test_the_book_s_attack_wins_and_waiting_for_a_gradient_does_not(ask: Any) -> None:
    ask(60)
    own = Answers(cold, "convnet_robust")
    good = capstone.match(CASE, study.book_attack, own, n=6)
    poor = capstone.match(CASE, fgsm, CASE.model, n=6)
    assert good.points >= 85
    assert poor.points < 40
    assert "ValueError" in poor.lines[1].reason  # a code has no gradient; the others were met
    assert poor.lines[0].points == 0  # that of a rounding is zero
    assert poor.lines[3].points > 0


def test_a_match_without_success_or_defence_gets_nothing() -> None:
    mark = capstone.match(CASE, nothing, Answers(lambda z, x: 0 * z), n=6)
    assert mark.points == 0
    assert capstone.match(CASE, pgd, "no network", n=5).points == 0


# All of them


@pytest.mark.parametrize("marker", ["clean", "augment", "validate", "attack", "repair", "match"])
@pytest.mark.parametrize("empty", [..., None, [], {}, "", torch.zeros(0), object()])
def test_whatever_is_handed_in_gets_points_or_a_reason(marker: str, empty: Any) -> None:
    handed_in = [empty] * (2 if marker in ("clean", "match") else 1)
    with global_generators_untouched():
        mark = getattr(capstone, marker)(CASE, *handed_in)
    assert mark.points == 0
    assert mark.note
    if empty is None or empty is ...:
        assert "Not done yet" in mark.note


def test_indices_and_masks_that_do_not_fit_are_told_why() -> None:
    for train, words in (([N], "outside 0 to"), ([-1], "outside"), ([0.5], "mask"),
                         (torch.ones(3, dtype=torch.bool), "for each of")):  # fmt: skip
        assert words in capstone.clean(CASE, train, []).note


def test_a_network_on_its_own_data_is_fair_game() -> None:
    untrained = fresh(ConvNet, torch.Generator().manual_seed(0))
    mark = capstone.repair(replace(CASE), untrained, n=10)
    assert mark.points == 0
    assert "It reads only" in mark.note
