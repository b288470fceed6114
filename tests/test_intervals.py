"""Wilson's interval against SciPy's, the proportion that carries it, and the bootstrap."""

import numpy as np
import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from modelsec.intervals import Proportion, bootstrap, wilson


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


# --- the bootstrap ------------------------------------------------------------------------------


def test_percentile_is_what_drawing_by_hand_gives() -> None:
    values = np.random.default_rng(1).exponential(size=80)
    rng = np.random.default_rng(2)
    drawn = [values[rng.integers(80, size=80)].mean() for _ in range(4000)]
    found = bootstrap(values, statistic=np.mean, resamples=4000, seed=3)
    assert found == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_agrees_with_wilson_on_a_share_in_the_middle(method) -> None:
    outcomes = np.r_[np.ones(300), np.zeros(100)]
    found = bootstrap(outcomes, statistic=np.mean, method=method, resamples=2000)
    assert found == pytest.approx(wilson(300, 400), abs=0.01)


def test_pairs_stay_together_and_unpaired_samples_do_not() -> None:
    a = np.arange(50.0)
    difference = lambda x, y: float(np.mean(x - y))  # noqa: E731
    assert bootstrap(a, a + 1, statistic=difference, paired=True) == (-1, -1)
    low, high = bootstrap(a, a + 1, statistic=difference)
    assert low < -3
    assert high > 1


def test_samples_may_differ_in_length_and_be_tensors() -> None:
    low, high = bootstrap(
        torch.zeros(5), torch.ones(7), statistic=lambda x, y: float(y.mean() - x.mean())
    )
    assert (low, high) == (1, 1)


def test_the_seed_decides_and_nobody_else_s_draws_change() -> None:
    values = np.random.default_rng(0).normal(size=30)
    with global_generators_untouched():
        first, again, other = (bootstrap(values, statistic=np.median, seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_more_confidence_is_wider() -> None:
    values = np.random.default_rng(0).normal(size=60)
    narrow, wide = (bootstrap(values, statistic=np.mean, confidence=c) for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_what_it_cannot_do_is_said() -> None:
    assert bootstrap(np.ones(9), statistic=np.mean) == (1, 1)  # too sure of itself: Wilson is not
    with pytest.raises(ValueError, match=r'BCa gives no interval.*method="percentile"'):
        bootstrap(np.ones(9), statistic=np.mean, method="BCa")


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        ((), {}, "needs samples"),
        (([1.0],), {}, "n >= 2"),
        ((np.ones((4, 2)),), {}, r"got shapes \[\(4, 2\)\]"),
        ((np.ones(4), np.ones(5)), {"paired": True}, "one length"),
        ((np.ones(4),), {"method": "normal"}, "'normal'"),
        ((np.ones(4),), {"confidence": 95}, "got 95"),
        ((np.ones(4),), {"resamples": 0}, "resamples must be 1 or more"),
    ],
)
def test_bad_input_is_named(samples, options, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bootstrap(*samples, statistic=np.mean, **options)
