"""Wrong labels: noise with a known truth, out-of-fold probabilities, confident learning."""

import math

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from modelsec.cleaning import labels as module
from modelsec.cleaning.labels import (
    confident_joint,
    confident_thresholds,
    find_label_issues,
    flip_by_matrix,
    flip_labels,
    logistic,
    network,
    out_of_fold_probabilities,
    self_confidence,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- noise --------------------------------------------------------------------------------------


@given(
    n=st.integers(0, 60),
    classes=st.integers(2, 9),
    rate=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_symmetric_noise_changes_exactly_as_many_as_it_says(n, classes, rate, seed) -> None:
    y = torch.randint(classes, (n,), generator=seeded(seed))
    before = y.clone()
    with global_generators_untouched():
        noisy = flip_labels(y, rate, classes=classes, generator=seeded(seed))
        again = flip_labels(y, rate, classes=classes, generator=seeded(seed))
    assert torch.equal(y, before)
    assert torch.equal(noisy.labels, again.labels)
    assert torch.equal(noisy.flipped, noisy.labels != y)
    assert int(noisy.flipped.sum()) == round(rate * n)
    assert noisy.labels.dtype == torch.int64
    assert n == 0 or 0 <= int(noisy.labels.min()) <= int(noisy.labels.max()) < classes


def test_symmetric_noise_prefers_no_class_and_no_sample() -> None:
    y = torch.zeros(40_000).long()
    noisy = flip_labels(y, 0.5, classes=5, generator=seeded())
    shares = noisy.labels.bincount(minlength=5) / len(y)
    assert torch.allclose(shares, torch.tensor([0.5] + [0.125] * 4), atol=0.01)
    halves = noisy.flipped.view(2, -1).float().mean(1)
    assert torch.allclose(halves, torch.tensor([0.5, 0.5]), atol=0.02)


def test_noise_by_a_matrix_follows_its_rows() -> None:
    matrix = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    y = torch.arange(3).repeat(20_000)
    with global_generators_untouched():
        noisy = flip_by_matrix(y, matrix, generator=seeded())
    assert torch.equal(noisy.flipped, noisy.labels != y)
    for i in range(3):
        shares = noisy.labels[y == i].bincount(minlength=3) / 20_000
        assert torch.allclose(shares, matrix[i], atol=0.015)
        assert bool((shares[matrix[i] == 0] == 0).all())


@pytest.mark.parametrize("kind", ["symmetric", "matrix"])
def test_without_a_generator_noise_draws_from_torch_s_own(kind) -> None:
    y = torch.arange(10).repeat(5)
    matrix = torch.full((10, 10), 0.1)
    draws = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            noisy = (
                flip_labels(y, 0.5, classes=10)
                if kind == "symmetric"
                else flip_by_matrix(y, matrix)
            )
        draws.append(noisy.labels)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_noise_on_no_labels_is_no_labels() -> None:
    none = torch.zeros(0).long()
    assert flip_by_matrix(none, torch.eye(3)).labels.shape == (0,)
    assert flip_labels(none, 0.5, classes=3).labels.shape == (0,)


BAD_NOISE = [
    (lambda y: flip_labels(y, 1.5, classes=3), ValueError, "rate must be a share"),
    (lambda y: flip_labels(y, math.nan, classes=3), ValueError, "rate must be a share"),
    (lambda y: flip_labels(y, 0.1, classes=2), ValueError, "y must hold classes 0 to K-1"),
    (lambda y: flip_labels(y - 1, 0.1, classes=3), ValueError, "got -1 to 1"),
    (lambda y: flip_labels(y.float(), 0.1, classes=3), TypeError, "integer class indices"),
    (lambda y: flip_labels(y[:, None], 0.1, classes=3), ValueError, r"y must be \(N,\)"),
    (lambda y: flip_by_matrix(y, torch.ones(3, 3)), ValueError, "rows that are probabilities"),
    (lambda y: flip_by_matrix(y, torch.eye(3)[:2]), ValueError, r"must be \(K, K\)"),
    (lambda y: flip_by_matrix(y, torch.eye(3) * math.nan), ValueError, "rows that are"),
    (
        lambda y: flip_by_matrix(y, torch.tensor([[2.0, -1, 0], [0, 1, 0], [0, 0, 1]])),
        ValueError,
        "rows that are probabilities",
    ),
    (lambda y: flip_by_matrix(y, torch.eye(2)), ValueError, "got 0 to 2 for K = 2"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_NOISE)
def test_bad_input_to_the_noise_is_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(torch.tensor([0, 1, 2, 2]))


# --- out-of-fold probabilities --------------------------------------------------------------------


def test_no_sample_is_predicted_by_a_model_that_saw_it() -> None:
    y = torch.arange(3).repeat(11)
    x = torch.arange(33.0)[:, None]  # each sample is its own name
    asked = []

    def spy(a: Tensor, b: Tensor, new: Tensor) -> Tensor:
        assert not set(a.flatten().tolist()) & set(new.flatten().tolist())
        assert torch.equal(b, y[a[:, 0].long()])  # labels travel with their samples
        asked.extend(new.flatten().tolist())
        return torch.nn.functional.one_hot(new[:, 0].long() % 3, 3).float()

    with global_generators_untouched():
        p = out_of_fold_probabilities(x, y, spy, folds=4, generator=seeded())
    assert sorted(asked) == x.flatten().tolist()
    assert torch.equal(p.argmax(1), y)


def test_every_fold_holds_its_share_of_every_class() -> None:
    y = torch.cat([torch.zeros(20), torch.ones(10)]).long()[torch.randperm(30, generator=seeded())]
    sizes = []

    def spy(a: Tensor, b: Tensor, new: Tensor) -> Tensor:
        sizes.append(b.bincount().tolist())
        return torch.full((len(new), 2), 0.5)

    out_of_fold_probabilities(y[:, None].float(), y, spy, folds=5, generator=seeded())
    assert sizes == [[16, 8]] * 5


def test_what_is_not_kept_trains_nothing_and_is_predicted_all_the_same() -> None:
    y = torch.arange(2).repeat(10)
    x = torch.arange(20.0)[:, None]
    keep = torch.arange(20) >= 4

    def spy(a: Tensor, b: Tensor, new: Tensor) -> Tensor:
        assert float(a.min()) >= 4
        return new.repeat(1, 2)

    p = out_of_fold_probabilities(x, y, spy, folds=3, keep=keep, generator=seeded())
    assert torch.equal(p[:, 0], x[:, 0])


@pytest.mark.parametrize("kind", ["logistic", "network"])
def test_both_models_learn_two_clouds_and_repeat_themselves(kind) -> None:
    y = torch.arange(2).repeat(40)
    x = torch.randn(80, 4, generator=seeded()) + 4 * y[:, None]
    x[:, :] = x.clone()

    def run() -> Tensor:
        generator = seeded()
        build = lambda: torch.nn.Linear(4, 2)  # noqa: E731
        judge = (
            logistic
            if kind == "logistic"
            else network(build, epochs=30, lr=0.1, generator=generator, progress=False)
        )
        return out_of_fold_probabilities(x, y, judge, generator=generator)

    with global_generators_untouched():
        p = run()
    assert p.shape == (80, 2)
    assert torch.allclose(p.sum(1), torch.ones(80), atol=1e-5)
    assert float((p.argmax(1) == y).float().mean()) > 0.95
    assert torch.equal(p, run())


def test_logistic_gives_a_class_without_samples_the_probability_zero() -> None:
    y = torch.tensor([0, 2] * 10)
    p = logistic(y[:, None].float(), y, y[:4, None].float())
    assert p.shape == (4, 3)
    assert bool((p[:, 1] == 0).all())


def test_bad_folds_are_named() -> None:
    x, y = torch.rand(10, 2), torch.arange(2).repeat(5)
    for folds in (1, 6):
        with pytest.raises(ValueError, match="folds must be 2 or more"):
            out_of_fold_probabilities(x, y, logistic, folds=folds)
    with pytest.raises(ValueError, match="x and y must go together"):
        out_of_fold_probabilities(x[:9], y, logistic)
    with pytest.raises(TypeError, match="integer class indices"):
        out_of_fold_probabilities(x, y.float(), logistic)


# --- confident learning ---------------------------------------------------------------------------


def by_hand(p: Tensor, y: Tensor) -> tuple[list[float], list[list[int]], list[bool]]:
    """Thresholds, joint and off-diagonal issues, in plain Python after equations 1 and 2."""
    classes, rows = p.shape[1], p.double().tolist()
    t = []
    for j in range(classes):
        own = [row[j] for row, label in zip(rows, y.tolist(), strict=True) if label == j]
        t.append(sum(own) / len(own) if own else math.inf)
    joint = [[0] * classes for _ in range(classes)]
    issues = []
    for row, label in zip(rows, y.tolist(), strict=True):
        sure = [j for j in range(classes) if row[j] >= max(t[j], 2e-6) - 1e-6]
        best = max(sure, key=lambda j: row[j]) if sure else None
        if best is not None:
            joint[label][best] += 1
        issues.append(best not in (None, label) and row[label] < max(row) - 1e-6)
    return t, joint, issues


@st.composite
def cases(draw) -> tuple[Tensor, Tensor]:
    """Probabilities of a fair model, and labels of which some are wrong."""
    generator = seeded(draw(st.integers(0, 10_000)))
    classes, n = draw(st.integers(2, 6)), draw(st.integers(20, 120))
    y = torch.randint(classes, (n,), generator=generator)
    z = draw(st.floats(0.3, 4)) * torch.randn(n, classes, generator=generator)
    z[range(n), y] += draw(st.floats(0, 4))
    given = flip_labels(y, draw(st.floats(0, 0.5)), classes=classes, generator=generator)
    return z.softmax(1), given.labels


@given(cases())
def test_thresholds_joint_and_issues_are_those_of_the_paper(case) -> None:
    p, y = case
    t, joint, issues = by_hand(p, y)
    found = confident_thresholds(p, y).tolist()
    assert all(a == b or math.isclose(a, b, rel_tol=1e-9) for a, b in zip(found, t, strict=True))
    assert confident_joint(p, y).tolist() == joint
    assert find_label_issues(p, y, prune="off-diagonal").tolist() == issues


@given(cases(), st.integers(0, 99))
def test_the_order_of_the_samples_does_not_matter(case, seed) -> None:
    p, y = case
    order = torch.randperm(len(y), generator=seeded(seed))
    for prune in ("noise rate", "off-diagonal"):
        found = find_label_issues(p, y, prune=prune)
        assert torch.equal(found[order], find_label_issues(p[order], y[order], prune=prune))


@given(cases())
def test_pruning_by_noise_rate_takes_as_many_as_it_counted_and_the_worst_ones(case) -> None:
    p, y = case
    flagged = find_label_issues(p, y)
    assert not bool((flagged & (p.argmax(1) == y)).any())
    counted = module._calibrated(confident_joint(p, y), y)
    assert counted.sum(1).tolist() == y.bincount(minlength=p.shape[1]).tolist()
    assert int(flagged.sum()) <= int(counted.sum() - counted.diagonal().sum())
    for i in range(p.shape[1]):
        for j in range(p.shape[1]):
            members = (y == i).nonzero()[:, 0]
            k = min(int(counted[i, j]), len(members))
            if i != j and k:
                margin = p[members, j] - p[members, i]
                worst = members[margin.topk(k).indices]
                wrong = p[worst, i] < p[worst].amax(1) - 1e-6
                assert bool(flagged[worst][wrong].all())


def test_labels_that_a_perfect_model_contradicts_are_found_and_no_others() -> None:
    y = torch.arange(4).repeat(50)
    noisy = flip_labels(y, 0.2, classes=4, generator=seeded())
    p = torch.nn.functional.one_hot(y, 4) * 0.9 + 0.025
    for prune in ("noise rate", "off-diagonal"):
        assert torch.equal(find_label_issues(p, noisy.labels, prune=prune), noisy.flipped)


def test_self_confidence_is_the_given_label_s_probability() -> None:
    p = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    assert self_confidence(p, torch.tensor([1, 1])).tolist() == pytest.approx([0.1, 0.7])


def test_a_class_without_samples_takes_part_in_nothing() -> None:
    p, y = torch.tensor([[0.1, 0.2, 0.7]] * 3 + [[0.8, 0.1, 0.1]] * 3), torch.tensor([0, 1] * 3)
    assert confident_thresholds(p, y)[2] == math.inf
    assert confident_joint(p, y)[:, 2].sum() == 0


BAD_PROBABILITIES = [
    (lambda p, y: find_label_issues(p, y, prune="both"), ValueError, "prune must be"),
    (lambda p, y: find_label_issues(p[:2], y), ValueError, "one row per label"),
    (lambda p, y: find_label_issues(p * 3, y), ValueError, "apply softmax"),
    (lambda p, y: find_label_issues(p * math.nan, y), ValueError, "without NaN"),
    (lambda p, y: find_label_issues(p, y + 1), ValueError, "got 1 to 2 for K = 2"),
    (lambda p, y: confident_joint(p, y.float()), TypeError, "integer class indices"),
    (lambda p, y: self_confidence(p[0], y), ValueError, r"must be \(N, K\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_PROBABILITIES)
def test_bad_probabilities_are_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.5, 0.5]]), torch.tensor([0, 1, 1]))


# --- agreement with cleanlab ----------------------------------------------------------------------


def odd(p: Tensor, y: Tensor) -> Tensor:
    """Samples for which cleanlab departs from equation 1 of the paper.

    Where several classes reach their thresholds it takes the likeliest of all classes, also if
    that one does not reach its own.
    """
    reached = p >= confident_thresholds(p, y) - 1e-6
    return (reached.sum(1) > 1) & ~reached.gather(1, p.argmax(1, keepdim=True))[:, 0]


@pytest.mark.peers
@given(cases())
def test_off_diagonal_flags_what_cleanlab_flags(case) -> None:
    from cleanlab.filter import find_label_issues as theirs

    p, y = case
    assume(len(y.unique()) == p.shape[1])
    found = theirs(y.numpy(), p.double().numpy(), filter_by="confident_learning", n_jobs=1)
    same = torch.from_numpy(found) == find_label_issues(p, y, prune="off-diagonal")
    assert bool((same | odd(p, y)).all())


@pytest.mark.peers
@given(cases())
def test_noise_rate_flags_what_cleanlab_flags_up_to_ties(case) -> None:
    """Ties: two counts of a row with one remainder, of which one is rounded up."""
    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues as theirs

    p, y = case
    assume(int(y.bincount(minlength=p.shape[1]).min()) > 1 and not bool(odd(p, y).any()))
    given, table = y.numpy(), p.double().numpy()
    joint = confident_joint(p, y)
    ours = module._calibrated(joint, y)
    assume(int(ours.diagonal().min()) >= 1)  # cleanlab keeps a sample of each class in any case
    counted = torch.from_numpy(compute_confident_joint(given, table))
    differ = (ours != counted).any(1)
    for row in differ.nonzero()[:, 0].tolist():
        exact = joint[row].double().clone()
        exact[row] = max(float(exact[row]), 1)
        exact *= (y == row).sum() / exact.sum()
        rest = (exact - exact.floor())[ours[row] != counted[row]]
        assert float(rest.max() - rest.min()) < 1e-9
    mine = find_label_issues(p, y)
    found = torch.from_numpy(theirs(given, table, filter_by="prune_by_noise_rate", n_jobs=1))
    assert torch.equal(mine[~differ[y]], found[~differ[y]])


@pytest.mark.peers
def test_on_digits_both_flag_the_same() -> None:
    from cleanlab.filter import find_label_issues as theirs
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
    noisy = flip_labels(y, 0.1, classes=10, generator=seeded())
    p = out_of_fold_probabilities(x, noisy.labels, logistic, generator=seeded())
    names = {"off-diagonal": "confident_learning", "noise rate": "prune_by_noise_rate"}
    for prune, filter_by in names.items():
        mine = find_label_issues(p, noisy.labels, prune=prune)
        found = theirs(noisy.labels.numpy(), p.double().numpy(), filter_by=filter_by, n_jobs=1)
        differ = int((torch.from_numpy(found) != mine).sum())
        assert differ <= (0 if prune == "off-diagonal" else 10), prune  # 10: one tie a class
        assert int((mine & noisy.flipped).sum()) > 0.6 * int(noisy.flipped.sum())
