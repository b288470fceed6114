"""The attack x defence matrix: its entries, its record, its figure."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from modelsec import attacks, data, plot, zoo
from modelsec.intervals import Proportion
from modelsec.training import evaluate
from modelsec.zoo import results
from modelsec.zoo.results import load_record, make_result, store_result
from modelsec.zoo.studies import matrix
from modelsec.zoo.studies.matrix import ATTACKS, CLEAN, DEFENCES, WORST
from modelsec.zoo.studies.matrix_entries import CLASSES, Attack, Column, Defence

# --- the record that ships ------------------------------------------------------------------------

LINF = [name for name, row in ATTACKS.items() if row.norm == "linf"]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    record = load_record("defence_matrix")
    assert record["n"] == matrix.N
    return record["result"]


@pytest.fixture(scope="module")
def shares(result: dict[str, Any]) -> dict[str, dict[str, Proportion]]:
    return matrix.shares(result)


def test_every_attack_stands_against_every_defence(result: dict[str, Any]) -> None:
    assert set(result["defences"]) == set(DEFENCES)
    assert set(result["attacks"]) == set(ATTACKS)
    for column in result["defences"].values():
        assert set(column["marks"]) == {CLEAN, *ATTACKS}
        assert {len(marks) for marks in column["marks"].values()} == {matrix.N}
        assert set("".join(column["marks"].values())) <= set(".0r")
    told = {name: column["about"] for name, column in result["defences"].items()}
    assert told == {name: column.about for name, column in DEFENCES.items()}


@pytest.mark.parametrize("name", DEFENCES)
def test_a_column_was_measured_on_the_networks_that_ship(name: str, result: dict[str, Any]) -> None:
    """If this fails: MODELSEC_COLUMNS=new python -m modelsec zoo make defence_matrix --store."""
    stated = result["defences"][name]["files"]
    assert stated == {file: zoo.manifest()[file]["sha256"] for file in DEFENCES[name].files}


@pytest.mark.parametrize("name", DEFENCES)
def test_a_column_makes_sense(
    name: str, result: dict[str, Any], shares: dict[str, dict[str, Proportion]]
) -> None:
    marks = result["defences"][name]["marks"]
    assert float(shares[CLEAN][name]) > 0.85
    # who knows the defence does not do much worse than who does not
    unaware = min(float(shares[row][name]) for row in LINF if row != "adaptive")
    assert float(shares["adaptive"][name]) <= unaware + 0.1
    # the worst case is counted image by image
    fallen = {i for row in LINF for i, mark in enumerate(marks[row]) if mark == "0"}
    assert shares[WORST][name] == Proportion(matrix.N - len(fallen), matrix.N)
    assert all(float(shares[WORST][name]) <= float(shares[row][name]) for row in LINF)


@pytest.mark.parametrize(
    ("name", "model"), [("none", "convnet"), ("PGD training", "convnet_robust")]
)
def test_what_is_recorded_of_clean_images_is_what_the_network_says(
    name: str, model: str, shares: dict[str, dict[str, Proportion]]
) -> None:
    digits = data.mnist()
    now = evaluate(zoo.load_model(model), digits.x_test[: matrix.N], digits.y_test[: matrix.N])
    gap = abs(now.hits - shares[CLEAN][name].hits)
    assert gap <= 1  # another processor may decide an image on the border otherwise


@pytest.mark.parametrize("name", ["none", "PGD training"])
def test_an_entry_can_be_measured_again(name: str, result: dict[str, Any]) -> None:
    row = "FGSM, cross-entropy"  # draws nothing, so fewer images get the same marks
    now = matrix.entry(DEFENCES[name].build(), row, n=60)
    stored = result["defences"][name]["marks"][row][:60]
    assert sum(a != b for a, b in zip(now, stored, strict=True)) <= 1


# --- how it is measured ---------------------------------------------------------------------------


def bright(x: Tensor) -> Tensor:
    """Two classes: 0 is dark, 1 is bright; a third score never wins."""
    light = x.flatten(1).mean(1)
    return torch.stack([0.5 - light, light - 0.5, -torch.ones_like(light)], 1)


def test_marks_tell_right_wrong_and_refused() -> None:
    x = torch.tensor([0.1, 0.9, 0.9, 0.4]).view(4, 1, 1, 1)
    y = torch.tensor([0, 0, 1, 1])
    drawn = torch.Generator().manual_seed(0)
    assert Defence(bright, bright, bright).marks(x, y, drawn) == ".0.0"
    for refused in (CLASSES, -1):
        careful = Defence(bright, bright, bright, lambda _, r=refused: torch.tensor([0, r, 1, r]))
        assert careful.marks(x, y, drawn) == ".r.r"


def test_marks_of_a_random_defence_depend_on_the_generator_alone() -> None:
    def noisy(x: Tensor) -> Tensor:
        return bright(x + torch.randn_like(x))

    x, y = torch.full((50, 1, 1, 1), 0.5), torch.zeros(50, dtype=torch.long)
    defence = Defence(noisy, bright, bright)
    state = torch.get_rng_state()
    first, again, other = (
        defence.marks(x, y, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_shares_count_refusals_as_stopped_under_attack_and_as_lost_without() -> None:
    limits = {
        "a": {"norm": "linf", "sees": "", "limit": "0.2"},
        "b": {"norm": "linf", "sees": "", "limit": "0.2"},
        "turn": {"norm": "", "sees": "", "limit": ""},
    }
    marks = {CLEAN: "..r0", "a": ".r00", "b": "0...", "turn": "0000"}
    table = matrix.shares({"attacks": limits, "defences": {"d": {"marks": marks}}})
    assert list(table) == [CLEAN, "a", "b", "turn", WORST]
    got = {row: entry["d"].hits for row, entry in table.items()}
    # the turn has another kind of limit: it is no part of the worst case in linf
    assert got == {CLEAN: 2, "a": 2, "b": 3, "turn": 0, WORST: 1}


@pytest.mark.parametrize("row", ATTACKS)
def test_every_row_stays_within_its_limit_and_is_judged_by_the_answer(row: str) -> None:
    digits = data.mnist()
    x, y = digits.x_test[:6], digits.y_test[:6]
    attack, defence = ATTACKS[row], DEFENCES["none"].build()
    adv = attack.run(defence, x, y, torch.Generator().manual_seed(0))
    assert adv.shape == x.shape
    assert 0 <= float(adv.min()) <= float(adv.max()) <= 1
    if attack.norm:
        size = attacks.norms.NORMS[attack.norm].size(adv - x).max()
        assert float(size) <= float(attack.limit) + 1e-5
    assert evaluate(defence.asked, adv, y).hits < 6


# --- one command, or a column at a time -----------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two columns and one row that take no time; what is measured is written down."""
    measured: list[str] = []

    def build(name: str) -> Any:
        def made() -> Defence:
            measured.append(name)
            return Defence(zoo.load_model("net"), bright, bright)

        return made

    def nothing(defence: Defence, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return x

    columns = {name: Column(build(name), name, ("net",)) for name in ("a", "b")}
    monkeypatch.setattr(matrix, "DEFENCES", columns)
    monkeypatch.setattr(matrix, "ATTACKS", {"nothing": Attack(nothing, "nothing")})
    monkeypatch.setattr(results, "_RECORDED", tmp_path)
    monkeypatch.delenv("MODELSEC_COLUMNS", raising=False)
    monkeypatch.setenv("MODELSEC_PROGRESS", "0")
    return measured


def test_all_columns_are_measured_unless_told_otherwise(small: list[str]) -> None:
    for _ in range(2):
        record = store_result("defence_matrix")
    assert small == ["a", "b"] * 2
    assert list(record["result"]["defences"]) == ["a", "b"]
    marks = record["result"]["defences"]["a"]["marks"]
    assert marks[CLEAN] == marks["nothing"]
    assert 0.9 < marks[CLEAN].count(".") / matrix.N < 1


def test_one_column_is_measured_and_the_others_stay(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store_result("defence_matrix")
    small.clear()
    monkeypatch.setenv("MODELSEC_COLUMNS", " b ")
    assert store_result("defence_matrix") == whole
    assert small == ["b"]


def test_a_column_that_stays_is_told_in_the_words_of_today(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_result("defence_matrix")
    small.clear()
    matrix.DEFENCES["a"] = dataclasses.replace(matrix.DEFENCES["a"], about="other words")
    monkeypatch.setenv("MODELSEC_COLUMNS", "new")
    columns = store_result("defence_matrix")["result"]["defences"]
    assert small == []
    assert [columns[name]["about"] for name in "ab"] == ["other words", "b"]


def test_new_measures_what_has_no_record_or_other_weights(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_result("defence_matrix")
    small.clear()
    monkeypatch.setenv("MODELSEC_COLUMNS", "new")
    store_result("defence_matrix")
    assert small == []
    third = dataclasses.replace(matrix.DEFENCES["a"], about="c")
    matrix.DEFENCES["c"] = third
    store_result("defence_matrix")
    assert small == ["a"]  # c is built as a is
    changed = {"net": zoo.manifest()["net"] | {"sha256": "another"}}
    monkeypatch.setattr(matrix, "manifest", lambda: changed)
    make_result("defence_matrix")
    assert sorted(small[1:]) == ["a", "a", "b"]


def test_a_column_that_is_gone_is_dropped(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_result("defence_matrix")
    monkeypatch.setenv("MODELSEC_COLUMNS", "new")
    del matrix.DEFENCES["b"]
    assert list(make_result("defence_matrix")["result"]["defences"]) == ["a"]


def test_unknown_columns_and_other_rows_are_refused(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_result("defence_matrix")
    monkeypatch.setenv("MODELSEC_COLUMNS", "a,x")
    with pytest.raises(ValueError, match=r"MODELSEC_COLUMNS names \['x'\]; there are \['a', 'b'\]"):
        make_result("defence_matrix")
    monkeypatch.setenv("MODELSEC_COLUMNS", "a")
    matrix.ATTACKS["nothing"] = dataclasses.replace(matrix.ATTACKS["nothing"], limit="0.3")
    with pytest.raises(ValueError, match="the rows are others than those recorded"):
        make_result("defence_matrix")


# --- the figure -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with plt.rc_context():
        plot.use_style()
        yield
    plt.close("all")


TABLE = {
    "clean": {"none": Proportion(95, 100), "trained": Proportion(90, 100)},
    "pgd": {"none": Proportion(0, 100), "trained": Proportion(60, 100)},
    "square": {"none": Proportion(0, 100), "trained": Proportion(70, 100)},
    "turn": {"none": Proportion(5, 100)},
}


def framed(figure: Any) -> set[tuple[int, int]]:
    """(row, column) of every frame."""
    return {
        (round(p.get_y() + p.get_height() / 2), round(p.get_x() + p.get_width() / 2))
        for p in figure.axes[0].patches
    }


def test_the_matrix_writes_shares_and_intervals_in_percent() -> None:
    (axes,) = plot.attack_matrix(TABLE, apart=["clean"]).axes
    written = [text.get_text() for text in axes.texts]
    low, high = Proportion(60, 100).interval
    assert written.count("0") == 2
    assert written[written.index("60") + 1] == f"{100 * low:.0f}–{100 * high:.0f}" == "50–69"
    assert len(written) == 2 * 7
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(TABLE)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["none", "trained"]
    assert axes.images[0].get_clim() == (0, 1)


def test_the_worst_of_each_column_is_framed_ties_too_and_clean_never() -> None:
    assert framed(plot.attack_matrix(TABLE, apart=["clean"])) == {(1, 0), (2, 0), (1, 1)}
    alone = {"worst case": {"none": Proportion(0, 9)}, "pgd": {"none": Proportion(1, 9)}}
    assert framed(plot.attack_matrix(alone, apart=["worst case"])) == {(1, 0)}
    assert framed(plot.attack_matrix(alone, apart=list(alone))) == set()


def luminance(colour: Any) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("hits", range(0, 101, 5))
def test_every_number_can_be_read_on_its_ground(hits: int) -> None:
    (axes,) = plot.attack_matrix({"pgd": {"none": Proportion(hits, 100)}}).axes
    ground = luminance(axes.images[0].cmap(hits / 100)[:3])
    for text in axes.texts:
        ink = luminance(text.get_color())
        contrast = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        assert contrast >= 4.5


def test_an_empty_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one entry"):
        plot.attack_matrix({"pgd": {}})
