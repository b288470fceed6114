"""Wilson's interval against SciPy's, and the proportion that carries it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from modelsec.intervals import Proportion, wilson


@given(
    n=st.integers(1, 10_000),
    share=st.floats(0, 1),
    confidence=st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]),
)
def test_equals_scipy(n: int, share: float, confidence: float) -> None:
    hits = round(share * n)
    expected = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert wilson(hits, n, confidence) == pytest.approx(tuple(expected), abs=1e-9)


@given(n=st.integers(1, 10_000), share=st.floats(0, 1))
def test_holds_the_share_and_stays_in_range(n: int, share: float) -> None:
    hits = round(share * n)
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert low < high


def test_does_not_shrink_to_nothing_at_the_ends() -> None:
    assert wilson(0, 1000) == pytest.approx((0, 0.00383), abs=1e-5)
    assert wilson(1000, 1000) == pytest.approx((0.99617, 1), abs=1e-5)


@pytest.mark.parametrize("counts", [(-1, 10), (11, 10), (0, 0), (float("nan"), 10)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="0 <= hits <= n"):
        wilson(*counts)
    with pytest.raises(ValueError, match="0 <= hits <= n"):
        Proportion(*counts)


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.1, float("nan")])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence)


def test_proportion_tells_value_interval_and_n() -> None:
    p = Proportion(953, 1000)
    assert float(p) == p.value == 0.953
    assert p.interval == wilson(953, 1000)
    assert str(p) == "0.953 [0.938, 0.964], n=1000"
