"""Figures: what is drawn, and that a reader can tell what it means."""

from collections.abc import Iterator

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgb

from modelsec import plot
from modelsec.intervals import Proportion
from modelsec.validation import reliability


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with plt.rc_context():
        plot.use_style()
        yield
    plt.close("all")


CURVES = {
    "net": {0.1: Proportion(8, 100), 0.0: Proportion(93, 100), 0.05: Proportion(40, 100)},
    "convnet": {0.0: Proportion(96, 100), 0.1: Proportion(24, 100)},
}


def test_security_curve_is_drawn_in_order_with_intervals_and_labels() -> None:
    (axes,) = plot.security_curve(CURVES, chance=0.1).axes
    line = axes.lines[0]
    assert line.get_xdata().tolist() == [0.0, 0.05, 0.1]
    assert line.get_ydata().tolist() == [0.93, 0.4, 0.08]
    low, high = CURVES["net"][0.1].interval
    band = axes.collections[0].get_paths()[0].vertices
    at_end = band[band[:, 0] == 0.1][:, 1]
    assert at_end.min() == pytest.approx(low)
    assert at_end.max() == pytest.approx(high)
    assert "eps" in axes.get_xlabel()
    assert "pixel" in axes.get_xlabel()
    assert "95%" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "net", "convnet", "guessing",
    ]  # fmt: skip
    assert list(axes.lines[2].get_ydata()) == [0.1, 0.1]


def test_curves_differ_by_marker_too_for_those_who_see_no_colour() -> None:
    (axes,) = plot.security_curve(CURVES).axes
    assert axes.lines[0].get_marker() != axes.lines[1].get_marker()
    assert axes.lines[0].get_color() != axes.lines[1].get_color()


def test_more_curves_than_markers_are_all_drawn() -> None:
    many = {str(i): {0.0: Proportion(1, 2)} for i in range(20)}
    assert len(plot.security_curve(many).axes[0].lines) == 20


def test_no_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        plot.security_curve({})


@pytest.mark.parametrize("channels", [1, 3])
def test_attack_row_shows_image_change_result_and_probabilities(channels: int) -> None:
    clean = torch.full((channels, 8, 8), 0.5)
    attacked = (clean + 0.1).requires_grad_()
    before, after = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.85, 0.05])
    figure = plot.attack_row(clean, attacked, (before, after), ("cat", "dog", "owl"), top=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["clean: cat (70%)", "change: at most 0.1", "attacked: dog (85%)"]
    change = figure.axes[1].images[0]
    assert change.get_clim() == pytest.approx((-0.1, 0.1))
    assert change.get_array().max() == pytest.approx(0.1)
    bars = figure.axes[3]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["cat", "dog"]
    assert sorted(bar.get_width() for bar in bars.patches) == pytest.approx([0.1, 0.2, 0.7, 0.85])
    assert bars.get_xlabel() == "probability"


def test_an_unchanged_image_is_drawn_too() -> None:
    image, p = torch.zeros(1, 4, 4), torch.tensor([0.5, 0.5])
    assert len(plot.attack_row(image, image, (p, p), "ab").axes) == 4


def test_images_share_one_grey_scale() -> None:
    _, axes = plt.subplots()
    plot.show_image(axes, torch.full((1, 4, 4), 0.25), "a title")
    assert axes.images[0].get_clim() == (0, 1)
    assert axes.images[0].get_array().shape == (4, 4)
    assert axes.get_title() == "a title"


def test_colours_differ_in_lightness() -> None:
    grey = sorted(sum(to_rgb(colour)) for colour in plot.COLORS.values())
    assert len(set(plot.COLORS.values())) == 7
    assert min(b - a for a, b in zip(grey, grey[1:], strict=False)) > 0.01


def test_a_diagram_joins_its_boxes_and_says_how_they_relate() -> None:
    boxes = {"attack": (0.2, 0.2), "model": (0.8, 0.8), "owner": (0.2, 0.8)}
    arrows = [("attack", "model", "breaks"), ("owner", "model", "keeps")]
    (axes,) = plot.diagram(boxes, arrows, colors={"attack": plot.COLORS["red"]}).axes
    assert {text.get_text() for text in axes.texts} == {*boxes, "breaks", "keeps"}
    first, second = axes.patches
    assert to_rgb(first.get_edgecolor()[:3]) == to_rgb(plot.COLORS["red"])
    assert to_rgb(second.get_edgecolor()[:3]) == to_rgb("0.4")
    with pytest.raises(ValueError, match="'modle'"):
        plot.diagram(boxes, [("attack", "modle", "breaks")])


EVENTS = [(2004.6, "attack", "spam"), (2017.5, "defence", "training"), (2025.2, "attack", "text")]


def test_a_timeline_puts_each_event_at_its_year_and_on_a_row_of_its_own() -> None:
    figure = plot.timeline(EVENTS)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["spam", "training", "text"]
    rows = [text.get_position()[1] for text in axes.texts]
    assert rows == sorted(set(rows))
    marks = [line for line in axes.lines if line.get_marker() != "None" and len(line.get_xdata())]
    assert [line.get_ydata()[0] for line in marks] == [year for year, _, _ in EVENTS]
    looks = [(line.get_color(), line.get_marker()) for line in marks]
    assert looks[0] == looks[2]
    assert looks[0][0] != looks[1][0]
    assert looks[0][1] != looks[1][1]
    below, above = axes.get_ylim()
    assert below > above  # time runs downwards
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["attack", "defence"]


@pytest.mark.parametrize("events", [[], EVENTS[::-1]])
def test_a_timeline_wants_events_in_order(events: list[tuple[float, str, str]]) -> None:
    with pytest.raises(ValueError, match="the earliest first"):
        plot.timeline(events)


def test_confusion_matrix_writes_every_count_and_colours_mistakes_only() -> None:
    figure = plot.confusion_matrix(torch.tensor([[90, 2], [0, 7]]), ("cat", "dog"))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["90", "2", "7"]
    assert axes.images[0].get_array().tolist() == [[0, 2], [0, 0]]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_reliability_diagram_leaves_out_empty_bins() -> None:
    p = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.55, 0.45]])
    bins = reliability(p, torch.tensor([0, 1, 0]), bins=6)
    _, axes = plt.subplots()
    plot.reliability_diagram(axes, bins, "before")
    points = axes.containers[0].lines[0]
    assert points.get_xdata().tolist() == pytest.approx([0.55, 0.7, 0.9])
    assert points.get_ydata().tolist() == [1, 0, 1]
    assert [text.get_text() for text in axes.texts] == ["1", "1", "1"]
    assert axes.get_title() == "before"
    assert axes.get_xlabel()
    assert axes.get_ylabel()
