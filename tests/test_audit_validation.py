"""The audit's section on validation: its numbers are those of the package, and its warnings bite."""

from dataclasses import replace

import pytest
import torch
from generators import global_generators_untouched
from torch import Tensor, nn

from modelsec.audit import Report, audit
from modelsec.audit.validation import CORRUPTIONS, SEVERITIES
from modelsec.data import Data, mnist
from modelsec.intervals import Proportion
from modelsec.validation.calibration import ece
from modelsec.validation.corruption_report import corruption_report
from modelsec.validation.corruptions import KINDS
from modelsec.validation.gate import DEFAULT, release_gate
from modelsec.zoo import load_model

DIGITS = mnist()
NET = load_model("net")


def card(model, data: Data = DIGITS, n: int = 300) -> Report:
    return audit(model, data, n=n, sections=["validation"], progress=False)


@pytest.fixture(scope="module")
def report() -> Report:
    with global_generators_untouched():
        return card(NET)


def test_its_numbers_are_the_package_s(report: Report) -> None:
    x, y = DIGITS.x_test[:300], DIGITS.y_test[:300]
    p = NET(x).softmax(1).detach()
    measures = report["validation"].measures
    assert measures["ece"] == pytest.approx(ece(p, y), abs=1e-9)
    assert measures["ece"] < measures["ece_high"] < 0.2
    recalls = [float((p.argmax(1) == y)[y == k].float().mean()) for k in range(10)]
    assert float(measures["worst_class"]) == pytest.approx(min(recalls))
    assert measures["worst_class"].n == int((y == recalls.index(min(recalls))).sum())
    found = corruption_report(NET, x, y, CORRUPTIONS, SEVERITIES)
    assert measures["corrupted"] == found.mean
    assert 0.5 < measures["ood_auroc"] <= 1


def test_its_table_and_figure_show_every_class_and_corruption(report: Report) -> None:
    section = report["validation"]
    rows = [row["images"] for row in section.table or []]
    assert rows == [f"class {k}" for k in range(10)] + list(CORRUPTIONS)
    (axes,) = section.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == rows
    assert axes.get_xlabel()
    assert len(section.alt) > 20


def test_a_kind_of_every_family_is_tried() -> None:
    families = [KINDS[kind].family for kind in CORRUPTIONS]
    assert sorted(families) == sorted({kind.family for kind in KINDS.values()})


def test_the_same_seed_gives_the_same_card(report: Report) -> None:
    assert card(NET).to_json() == report.to_json()


def test_every_measure_of_the_default_gate_is_measured_by_an_audit() -> None:
    needed = {requirement.measure.split(".")[0] for requirement in DEFAULT}
    full = audit(NET, DIGITS, n=60, radii=(0.03, 0.2), sections=needed, progress=False)
    assert {requirement.measure for requirement in DEFAULT} <= set(full.measures)
    assert not any("Not measured" in reason for reason in release_gate(full).reasons)


class Changed(nn.Module):
    """The network with its logits or its input changed."""

    def __init__(self, before=lambda x: x, after=lambda z: z) -> None:
        super().__init__()
        self.net, self.before, self.after = NET, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def test_a_model_that_is_far_too_sure_is_warned_of(report: Report) -> None:
    loud = card(Changed(after=lambda z: 100 * z))["validation"]
    assert loud.verdict == "warning"
    assert "more than chance explains" in loud.summary
    assert loud.measures["ece"] > report["validation"].measures["ece"]
    assert loud.measures["worst_class"] == report["validation"].measures["worst_class"]


def test_a_model_that_is_calibrated_is_not() -> None:
    """Its confidences are drawn, and then its answers with just these probabilities."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(600, 1, 16, 16, generator=generator)
    confidence = 0.55 + 0.4 * x[:, 0, 0, 0]
    y = (torch.rand(600, generator=generator) > confidence).long()

    def model(images: Tensor) -> Tensor:
        p = 0.55 + 0.4 * images[:, 0, 0, 0]
        return torch.stack([p, 1 - p], 1).log()

    data = Data("coins", x[:0], y[:0], x, y, ("a", "b"), "drawn", "none")
    assert "no more than chance explains" in card(model, data, 600)["validation"].summary


def test_a_class_that_is_never_found_is_warned_of() -> None:
    def no_fours(z: Tensor) -> Tensor:
        return z - 50 * (torch.arange(10) == 4)

    section = card(Changed(after=no_fours))["validation"]
    assert section.verdict == "warning"
    assert section.measures["worst_class"] == Proportion(0, 30)
    assert "Lowest by class: 4" in section.summary
    assert "less than half" in section.summary


def test_without_training_data_or_layers_the_logits_are_scored() -> None:
    alone = replace(DIGITS, x_train=DIGITS.x_train[:0], y_train=DIGITS.y_train[:0])
    assert "The energy tells" in card(NET, alone, 100)["validation"].summary
    assert "The energy tells" in card(lambda x: NET(x), n=100)["validation"].summary
    assert "The Mahalanobis distance tells" in card(NET, n=100)["validation"].summary


def test_small_images_and_strange_channels_leave_the_rest() -> None:
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = Data(
        "small", x[:0], torch.zeros(0, dtype=torch.long), x, torch.arange(60) % 3, (), "", ""
    )
    section = card(lambda x: x.flatten(1)[:, :3], data)["validation"]
    assert "corrupted" not in section.measures
    assert "need images of 16 x 16" in section.summary
    assert "worst_class" in section.measures
    assert (
        release_gate(audit(lambda x: x.flatten(1)[:, :3], data, sections=["validation"])).passed
        is False
    )


def test_many_classes_show_the_worst() -> None:
    x = torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 40
    names = tuple(f"kind {k}" for k in range(40))
    data = Data("many", x[:0], y[:0], x, y, names, "", "")
    section = card(lambda x: x.flatten(1)[:, :40], data)["validation"]
    rows = [row["images"] for row in section.table or []]
    assert len(rows) == 12 + len(CORRUPTIONS)
    assert all(row.startswith("class kind ") for row in rows[:12])


@pytest.mark.parametrize(
    ("shape", "measured"),
    [((3, 20, 32), True), ((1, 64, 64), True), ((3, 224, 224), False), ((1, 16, 500), False)],
)
def test_strange_images_have_the_size_of_the_usual_ones(
    shape: tuple[int, int, int], measured: bool
) -> None:
    x = torch.rand(9, *shape, generator=torch.Generator().manual_seed(0))
    data = Data(
        "noise", x[:0], torch.zeros(0, dtype=torch.long), x, torch.arange(9) % 3, (), "", ""
    )
    seen = set()

    def model(images: Tensor) -> Tensor:
        seen.add(tuple(images.shape[1:]))
        return images.flatten(1)[:, :3]

    section = card(model, data)["validation"]
    assert seen == {shape}
    assert ("ood_auroc" in section.measures) == measured
    assert ("too few crops of this size" in section.summary) != measured
