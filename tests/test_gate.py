"""The release gate: judged on the pessimistic end, never passed by luck or by what was not measured."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelsec.intervals import Proportion
from modelsec.validation.gate import DEFAULT, Requirement, Verdict, release_gate

GOOD = {
    "clean.accuracy": Proportion(970, 1000),
    "validation.worst_class": Proportion(95, 100),
    "validation.corrupted": Proportion(850, 1000),
    "validation.ece_high": 0.03,
    "evasion.pgd-40@0.03": Proportion(800, 1000),
    "sanity.failed": 0.0,
}


@dataclass
class Skipped:
    name: str
    summary: str
    verdict: str = "skipped"


@dataclass
class Card:
    measures: dict[str, Any]
    sections: tuple[Skipped, ...] = field(default=())


def gate(value: Any, **limit: float) -> Verdict:
    return release_gate({"m": value}, [Requirement("m", **limit)])


def test_a_good_report_passes_the_default_gate() -> None:
    verdict = release_gate(GOOD)
    assert verdict.passed
    assert verdict.reasons == ()
    assert str(verdict) == "PASS: 6 of 6 requirements are met"
    assert release_gate(Card(GOOD)) == verdict


@pytest.mark.parametrize("name", GOOD)
def test_every_default_requirement_can_fail_and_can_be_missing(name: str) -> None:
    bad = (
        0.5
        if name == "validation.ece_high"
        else 1.0
        if name == "sanity.failed"
        else Proportion(10, 100)
    )
    verdict = release_gate(GOOD | {name: bad})
    assert not verdict.passed
    assert [o.requirement.measure for o in verdict.outcomes if not o.passed] == [name]
    assert len(verdict.reasons) == 1
    missing = release_gate({key: value for key, value in GOOD.items() if key != name})
    assert not missing.passed
    assert "Not measured" in missing.reasons[0]


# --- judged on the pessimistic end --------------------------------------------------------------

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
limits = st.floats(0, 1)


@given(counts, limits)
def test_a_share_is_judged_on_the_end_that_is_worse(count: tuple[int, int], limit: float) -> None:
    share = Proportion(*count)
    low, high = share.interval
    assert gate(share, at_least=limit).passed == (low >= limit)
    assert gate(share, at_most=limit).passed == (high <= limit)
    assert gate(share, at_least=limit).outcomes[0].judged_on == low
    assert gate(share, at_most=limit).outcomes[0].judged_on == high


@given(counts, limits, st.integers(0, 2000))
def test_a_better_measure_never_turns_pass_into_fail(
    count: tuple[int, int], limit: float, more: int
) -> None:
    hits, n = count
    better = Proportion(min(n, hits + more), n)
    if gate(Proportion(hits, n), at_least=limit).passed:
        assert gate(better, at_least=limit).passed
    if gate(better, at_most=limit).passed:
        assert gate(Proportion(hits, n), at_most=limit).passed


@given(counts, limits, st.integers(2, 50))
def test_more_samples_with_the_same_share_never_turn_pass_into_fail(
    count: tuple[int, int], limit: float, times: int
) -> None:
    hits, n = count
    if gate(Proportion(hits, n), at_least=limit).passed:
        assert gate(Proportion(hits * times, n * times), at_least=limit).passed


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats(-5, 5))
def test_numbers_are_monotone_too(one: float, two: float, limit: float) -> None:
    worse, better = sorted((one, two))
    assert gate(better, at_least=limit).passed >= gate(worse, at_least=limit).passed
    assert gate(worse, at_most=limit).passed >= gate(better, at_most=limit).passed


@given(
    st.dictionaries(st.sampled_from([*GOOD, "other"]), st.floats(0, 1), max_size=7),
    st.lists(st.sampled_from(DEFAULT), min_size=1, max_size=6, unique=True),
)
def test_a_gate_with_a_missing_measure_never_passes(
    measures: dict[str, float], requirements: list[Requirement]
) -> None:
    verdict = release_gate(measures, requirements)
    missing = [r for r in requirements if r.measure not in measures]
    assert len(verdict.outcomes) == len(requirements)
    if missing:
        assert not verdict.passed
    assert verdict.passed == all(
        r.measure in measures and r.holds_for(measures[r.measure]) for r in requirements
    )


@given(
    st.lists(st.sampled_from(DEFAULT), min_size=1, max_size=6), st.sampled_from(DEFAULT), st.data()
)
def test_one_more_requirement_never_turns_fail_into_pass(
    requirements: list[Requirement], extra: Requirement, data: st.DataObject
) -> None:
    measures = data.draw(st.dictionaries(st.sampled_from(list(GOOD)), st.floats(0, 1)))
    assume(extra not in requirements)
    if release_gate(measures, [*requirements, extra]).passed:
        assert release_gate(measures, requirements).passed


def test_nan_and_infinity() -> None:
    assert not gate(math.nan, at_least=0).passed
    assert not gate(math.nan, at_most=1).passed
    assert "NaN" in gate(math.nan, at_least=0).reasons[0]
    assert not gate(math.inf, at_most=1).passed


def test_a_limit_may_be_met_exactly() -> None:
    assert gate(0.5, at_least=0.5).passed
    assert gate(0, at_most=0).passed
    assert gate(Proportion(10, 10), at_most=1).passed
    assert gate(Proportion(0, 10), at_least=0).passed


# --- its words ----------------------------------------------------------------------------------


def test_reasons_tell_bad_from_not_enough_samples() -> None:
    few = gate(Proportion(93, 100), at_least=0.9)
    assert "lower end of its interval, 0.863, breaks the limit 0.9" in few.reasons[0]
    assert "measure more samples" in few.reasons[0]
    bad = gate(Proportion(80, 100), at_least=0.9)
    assert "so does the estimate" in bad.reasons[0]
    assert "upper end" in gate(Proportion(1, 10), at_most=0.3).reasons[0]
    assert gate(0.4, at_least=0.5).reasons == ("0.4 breaks the limit 0.5.",)
    assert "without an interval" in gate(0.6, at_least=0.5).outcomes[0].reason


def test_a_missing_measure_says_how_to_get_it() -> None:
    asked = [Requirement("evasion.pgd-40@0.03", at_least=0.5)]
    nothing = release_gate({}, asked).reasons[0]
    assert nothing == "Not measured: run the audit with the section 'evasion'."
    other = release_gate({"evasion.pgd-40@0.1": 0.1}, asked).reasons[0]
    assert "has no 'pgd-40@0.03'; it has evasion.pgd-40@0.1" in other
    card = Card({}, (Skipped("evasion", "Not measured: the model has no gradient"),))
    assert (
        "was skipped. Not measured: the model has no gradient"
        in release_gate(card, asked).reasons[0]
    )


def test_a_verdict_reads_well() -> None:
    verdict = release_gate(GOOD | {"clean.accuracy": Proportion(1, 2), "sanity.failed": 2})
    assert str(verdict) == "FAIL: 4 of 6 requirements are met"
    rows = verdict.table()
    assert [row["requirement"] for row in rows] == [str(r) for r in DEFAULT]
    assert len({row[""] for row in rows}) == 2
    assert str(verdict) in repr(verdict)
    assert "<strong>FAIL: 4 of 6" in verdict._repr_html_()
    page = gate(0.1, at_least=0.5)._repr_html_()
    assert "<table>" in page
    assert rows[0]["measured"] == "0.500 [0.095, 0.905], n=2"


def test_what_stands_in_a_requirement_is_escaped() -> None:
    page = release_gate({}, [Requirement("<b>.x", at_least=0, why="a < b")])._repr_html_()
    assert "<b>" not in page
    assert "a &lt; b" in page


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [{}, {"at_least": 0.1, "at_most": 0.2}, {"at_least": math.nan}, {"at_most": math.inf}]
)
def test_a_requirement_has_one_finite_limit(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="one finite limit, at_least or at_most"):
        Requirement("m", **limits)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"a name like 'clean\.accuracy'"):
        Requirement("", at_least=1)
    with pytest.raises(ValueError, match="at least one, got none"):
        release_gate(GOOD, [])
    with pytest.raises(TypeError, match="audit report or a mapping of measures, got list"):
        release_gate([1, 2])
    with pytest.raises(TypeError, match="m must be a number or have an interval, got str"):
        gate("0.9", at_least=0.5)


def test_the_order_of_requirements_is_kept_and_an_iterator_will_do() -> None:
    verdict = release_gate(GOOD, iter(DEFAULT[::-1]))
    assert [o.requirement for o in verdict.outcomes] == list(DEFAULT[::-1])
