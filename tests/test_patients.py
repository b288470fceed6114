"""Tables of patients, and the ROC on logarithmic axes."""

import matplotlib.pyplot as plt
import pytest
import torch

from modelsec import patients, plot
from modelsec.attacks.leak import Leak


@pytest.mark.parametrize(
    ("table", "people", "columns"),
    [(patients.breast_cancer(), 569, 30), (patients.diabetes(), 442, 10)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_table_is_what_it_says(table: patients.Patients, people: int, columns: int) -> None:
    assert table.raw.shape == table.x.shape == (people, columns)
    assert len(table.columns) == len(set(table.columns)) == columns
    assert table.raw.dtype == torch.float32
    assert table.y.dtype == torch.int64
    assert set(table.y.tolist()) == {0, 1}
    assert torch.allclose(table.z.mean(0), torch.zeros(columns), atol=1e-4)
    assert torch.allclose(table.z.std(0), torch.ones(columns), atol=1e-4)
    assert (table.x.amin(0) == 0).all()
    assert (table.x.amax(0) == 1).all()
    assert table.raw.isfinite().all()
    assert "scikit-learn" in table.source
    assert table.licence
    assert f"{people} people, {columns} columns" in repr(table)


def test_scaling_keeps_the_order_of_the_people() -> None:
    table = patients.diabetes()
    for column in range(10):
        assert torch.equal(
            table.raw[:, column].argsort(stable=True), table.x[:, column].argsort(stable=True)
        )


def test_classes_are_known_ones() -> None:
    cancer, sugar = patients.breast_cancer(), patients.diabetes()
    counts = dict(zip(cancer.classes, cancer.y.bincount().tolist(), strict=True))
    assert counts == {"malignant": 212, "benign": 357}
    assert sugar.y.bincount().tolist() == [221, 221]
    assert sugar.columns[:4] == ("age", "sex", "bmi", "bp")


def test_groups_part_the_people() -> None:
    table = patients.diabetes()
    groups = table.groups
    assert torch.equal(groups["sex 1"], ~groups["sex 2"])
    assert torch.equal(groups["under 50"], ~groups["50 and older"])
    assert bool((table.raw[groups["under 50"], 0] < 50).all())
    assert 150 < int(groups["under 50"].sum()) < 300
    assert patients.breast_cancer().groups == {}


def test_the_roc_is_drawn_on_logarithmic_axes() -> None:
    scores = torch.tensor([3.0, 2.0, 1.0, 0.0] * 50) + torch.arange(200) / 1e3
    found = Leak(scores, torch.arange(200) % 4 < 2)
    axes = plot.roc_log({"ours": found.roc()}, low=0.01)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlim() == axes.get_ylim() == (0.01, 1)
    assert [line.get_label() for line in axes.lines] == ["ours", "guessing"]
    x, y = (values.tolist() for values in axes.lines[0].get_data())
    assert y == found.roc()[1].tolist()
    assert x[0] == pytest.approx(0.001)  # no logarithm of 0: it begins left of the axis
    assert x[-1] == 1
    _, mine = plt.subplots()
    assert plot.roc_log({"ours": found.roc()}, axes=mine) is mine
    plt.close("all")


def test_a_figure_without_a_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a curve"):
        plot.roc_log({})
    with pytest.raises(ValueError, match="0 < low < 1"):
        plot.roc_log({"a": (torch.zeros(1), torch.zeros(1))}, low=0)
