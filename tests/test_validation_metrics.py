"""The confusion matrix, the report by class and cross-validation, beside scikit-learn's."""

import numpy as np
import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn

from modelsec.intervals import Proportion
from modelsec.validation import class_report, confusion, cross_validate, logits

pairs = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n)] * 2)
)


@given(pairs)
@pytest.mark.peers
def test_confusion_and_report_are_scikit_learn_s(labels: tuple[list[int], list[int]]) -> None:
    y, predicted = (torch.tensor(part) for part in labels)
    counts = confusion(y, predicted, 4)
    assert counts.tolist() == confusion_matrix(y, predicted, labels=range(4)).tolist()
    rows = class_report(y, predicted, "abcd")
    theirs = precision_recall_fscore_support(y, predicted, labels=range(4), zero_division=0)
    for row, precision, recall, f1, support in zip(rows, *theirs, strict=True):
        assert float(row["precision"] or 0) == pytest.approx(precision)
        assert float(row["recall"] or 0) == pytest.approx(recall)
        assert row["F1"] == pytest.approx(f1, abs=1e-4)
        assert row["n"] == support
    assert [row["class"] for row in rows] == list("abcd")


def test_the_report_has_intervals_and_says_where_nothing_can_be_counted() -> None:
    rows = class_report(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 2]), "abc")
    assert rows[0]["precision"] == Proportion(1, 1)
    assert rows[0]["recall"] == Proportion(1, 2)
    assert rows[1]["precision"] is None  # never predicted
    assert rows[2]["recall"] is None  # never there
    assert rows[1]["F1"] == 0


@pytest.mark.parametrize(
    ("y", "predicted", "error", "words"),
    [
        ([0, 1], [0], ValueError, "both be"),
        ([[0]], [[0]], ValueError, "both be"),
        ([0, 3], [0, 0], ValueError, r"y must lie in 0\.\.2, got 0 to 3"),
        ([0, 0], [-1, 0], ValueError, "predicted must lie in"),
        ([0.0], [0], TypeError, "y must hold integer"),
        ([0], [True], TypeError, "predicted must hold integer"),
    ],
)
def test_bad_labels_are_named(y, predicted, error, words: str) -> None:
    with pytest.raises(error, match=words):
        confusion(torch.tensor(y), torch.tensor(predicted), 3)


# --- what a model answers -----------------------------------------------------------------------


def test_logits_leave_the_model_as_it_was_and_do_not_depend_on_the_batch() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).train()
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    found = logits(model, x, batch_size=2)
    assert torch.allclose(found, logits(model, x), atol=1e-6)
    assert not found.requires_grad
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_no_table_of_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(5, K\) for 5 inputs, got \(5,\)"):
        logits(lambda x: x.sum(1), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="at least one input"):
        logits(lambda x: x, torch.zeros(0, 2))


# --- cross-validation ---------------------------------------------------------------------------


def remember(x: Tensor, y: Tensor, fold: int):
    """A nearest neighbour: right on everything it has seen."""
    return lambda new: torch.nn.functional.one_hot(y[torch.cdist(new, x).argmin(1)], 3).float()


@settings(max_examples=20, deadline=None)
@given(folds=st.integers(2, 6), seed=st.integers(0, 5))
def test_every_sample_is_tested_once_by_a_model_that_has_not_seen_it(folds: int, seed: int) -> None:
    x = torch.arange(36.0)[:, None]
    y = torch.arange(36) % 3
    seen: list[set[float]] = []
    tested: list[set[float]] = []

    def train(x: Tensor, y: Tensor, fold: int):
        assert fold == len(seen)
        seen.append(set(x[:, 0].tolist()))

        def model(new: Tensor) -> Tensor:
            tested.append(set(new[:, 0].tolist()))
            assert not seen[-1] & tested[-1]
            return torch.nn.functional.one_hot(new[:, 0].long() % 3, 3).float()

        return model

    with global_generators_untouched():
        found = cross_validate(train, x, y, folds=folds, seed=seed)
    assert sorted(v for part in tested for v in part) == x[:, 0].tolist()
    assert [f.value for f in found.folds] == [1] * folds
    assert found.pooled == Proportion(36, 36)
    assert found.spread == 0
    assert bool(found.correct.all())


def test_a_model_that_only_remembers_is_found_out() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 2, generator=generator), torch.arange(90) % 3
    found = cross_validate(remember, x, y)
    assert float(found.pooled) < 0.6
    values = [f.value for f in found.folds]
    assert found.spread == pytest.approx(np.std(values, ddof=1))
    assert float(found.pooled) == pytest.approx(np.mean(values))  # folds of one size
    assert torch.equal(found.correct, found.logits.argmax(1) == y)


def test_the_folds_keep_the_share_of_each_class() -> None:
    y = torch.tensor([0] * 60 + [1] * 30)
    counts = []

    def train(x: Tensor, y: Tensor, fold: int):
        counts.append(y.bincount().tolist())
        return lambda new: torch.zeros(len(new), 2)

    cross_validate(train, torch.zeros(90, 1), y, folds=3)
    assert counts == [[40, 20]] * 3


@pytest.mark.parametrize(("n", "folds"), [(12, 1), (12, 5), (11, 2)])
def test_impossible_folds_are_refused(n: int, folds: int) -> None:
    with pytest.raises(ValueError, match="2 to 4 folds"):
        cross_validate(remember, torch.zeros(n, 1), torch.arange(12) % 3, folds=folds)
