"""The studies on removing backdoors: their parts, and that their records are what they say."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from modelsec.attacks.poisoning import patch
from modelsec.repair.neural_cleanse import Scan
from modelsec.zoo import load_model, load_result
from modelsec.zoo.results import studies
from modelsec.zoo.studies import backdoor_scans as scans
from modelsec.zoo.studies import backdoors as study
from modelsec.zoo.studies.poisoned import TRIGGERS, digits, target

CONVNET = load_model("convnet")


def test_the_repairs_images_are_none_of_those_measured_on() -> None:
    given, measured = study.trusted(study.HELD)[0], study.held_out()[0]
    assert len(given) == study.HELD
    assert len(measured) == len(digits().x_test) - study.HELD
    rows = {image.numpy().tobytes() for image in given}
    assert not rows & {image.numpy().tobytes() for image in measured}
    assert torch.equal(study.trusted()[0], given[: study.CLEAN])
    assert set(study.RATES) == set(TRIGGERS)


def test_measure_tells_success_and_accuracy() -> None:
    clean = study.measure(CONVNET, patch(), 3)
    assert clean["success"] < 0.05
    assert clean["accuracy"] > 0.95
    always = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        always[1].weight.zero_()
        always[1].bias.copy_(9.0 * (torch.arange(10) == 4))
    assert study.measure(always, patch(), 4) == {"success": 1.0, "accuracy": 0.1}
    assert study.measure(always, patch(), 4, source=7)["success"] == 1.0


@pytest.mark.parametrize("by", ["places", "channels"])
def test_what_is_cut_off_is_where_the_trigger_lights_up(by: str) -> None:
    before = {key: value.clone() for key, value in CONVNET.state_dict().items()}
    part = study.carried(CONVNET, patch(), 3, by)
    assert all(torch.equal(value, before[key]) for key, value in CONVNET.state_dict().items())
    assert 0 < part["share"] <= 1 + 1e-6
    everything = study.carried(CONVNET, patch(), 3, by, count=49 if by == "places" else 32)
    assert everything["share"] == pytest.approx(1)
    assert everything["accuracy"] < 0.2  # nothing reaches the next layer
    if by == "places":  # a corner of 3 x 3 pixels is seen from four of the 49 places only
        assert part["share"] > 0.99
        assert part["accuracy"] > 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_who_knows_the_scan_plants_what_is_said(seed: int) -> None:
    clean = digits()
    called = target(seed)
    poisoned, mark, source = scans.knowing_poison("one class", seed)
    assert (clean.y_train[poisoned.mask] == source).all()
    assert (poisoned.y[poisoned.mask] == called).all()
    changed = (poisoned.x != clean.x_train).flatten(1).any(1)
    cover = changed & ~poisoned.mask
    assert int(poisoned.mask.sum()) == 200
    assert int(cover.sum()) == 400
    assert (clean.y_train[cover] != source).all()
    assert torch.equal(poisoned.y[~poisoned.mask], clean.y_train[~poisoned.mask])
    assert torch.equal(poisoned.x[changed], mark.stamp(clean.x_train[changed]))
    larger, mark, source = scans.knowing_poison("larger", seed)
    assert source is None
    assert mark.mask.sum() == 100
    assert int(larger.mask.sum()) == 200


def test_a_scan_is_recorded_as_numbers() -> None:
    scan = Scan((patch(), patch(size=5), patch(size=6), patch(size=7)), torch.ones(4))
    stored = json.loads(json.dumps(study.scanned(scan), allow_nan=False))
    assert stored["sizes"] == [9, 25, 36, 49]
    assert stored["success"] == [1, 1, 1, 1]


def test_the_records_are_whole() -> None:
    known = studies()
    assert {"backdoor_matrix", "backdoor_alarms", "backdoor_sizes", "backdoor_knowing"} <= set(
        known
    )
    matrix: dict[str, Any] = load_result("backdoor_matrix")
    assert set(matrix["cells"]) == set(TRIGGERS)
    for cells in matrix["cells"].values():
        assert sorted(cells) == sorted(study.NAMES)
        for cell in cells.values():
            for what, n in matrix["n"].items():
                assert len(cell[what]) == 3
                assert all(abs(value * n - round(value * n)) < 1e-6 for value in cell[what])
    for runs in matrix["runs"].values():
        for run in runs:
            index, flagged = run["scan"]["index"], run["scan"]["index"][run["scan"]["target"]]
            assert len(index) == 10
            assert flagged <= max(index)
    alarms = load_result("backdoor_alarms")
    assert len(alarms["net"]) >= 10
    assert all(row["accuracy"] > 0.85 for rows in alarms.values() for row in rows)
    rows = load_result("backdoor_sizes")["rows"]
    assert {(row["size"], row["lr"]) for row in rows} == {
        (size, lr) for size in scans.SIZES for lr in scans.SPEEDS
    }
    assert {row["kind"] for row in load_result("backdoor_knowing")["rows"]} == set(scans.KNOWING)
