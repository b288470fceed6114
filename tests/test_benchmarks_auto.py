"""The races of Auto-PGD, Square and the protocol run, and the record goes on where it was stopped."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import auto


@pytest.mark.peers
def test_all_races_run_and_tell_what_is_left() -> None:
    said: list[str] = []
    races = auto.measure(quick=True, say=said.append)
    assert [race["attack"] for race in races] == [task.attack for task in auto.TASKS]
    assert len(said) == len(races)
    for race in races:
        rows = race["rows"]
        assert rows["modelsec"]["cpu seconds"] > 0
        assert rows["torchattacks"]["cpu / modelsec"][1] > 0
        if race["attack"] == "APGD":  # equal work: what it costs beyond its gradients
            assert rows["modelsec"]["cpu / floor"][1] > 0
            assert "accuracy" not in rows["modelsec"]
        else:
            assert 0 <= rows["modelsec"]["accuracy"] <= 1
        if race["attack"] in ("Square", "protocol"):
            assert rows["adv-lib"] == {"missing": "has no such attack"}


def test_the_record_is_stored_after_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attacks that do nothing, so that what stands is what the model gets right."""
    made: list[tuple[str, int]] = []

    def nothing(model: nn.Module, task: auto.Task):
        made.append((task.model, task.steps))
        return lambda x, y: x

    monkeypatch.setattr(auto, "CASES", {"net": 0.1})
    monkeypatch.setattr(auto, "PROTOCOLS", {"one": (nothing, 7), "two": (nothing, 9)})
    path = tmp_path / "record.json"
    auto.record(path, batches=3, say=lambda _: None)
    part = json.loads(path.read_text())
    assert {name: len(stands) for name, stands in part["outcomes"]["net"].items()} == {"one": 375}
    assert made == [("net", 7)] * 3
    whole = auto.record(path, say=lambda _: None)
    assert whole == json.loads(path.read_text())
    assert made == [("net", 7)] * 8 + [("net", 9)] * 8
    one, two = whole["outcomes"]["net"].values()
    assert len(one) == 1000
    assert one == two
    assert 800 < sum(one) < 1000
    assert one[:375] == part["outcomes"]["net"]["one"]


def test_missing_peers_stop_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(model: nn.Module, task: auto.Task):
        raise ModuleNotFoundError(name="torchattacks")

    monkeypatch.setattr(auto, "torchattacks", absent)
    monkeypatch.setattr(auto, "adv_lib", lambda model, task: None)
    before: Tensor = torch.get_rng_state()
    race = auto.contest(auto.Task("APGD-CE", "net", 4, 0.1, 2, 0, 1), say=lambda _: None)
    assert race["rows"]["torchattacks"] == {"missing": "does not import (torchattacks)"}
    assert race["rows"]["adv-lib"] == {"missing": "has no such attack"}
    assert race["rows"]["modelsec"]["accuracy"] <= 1
    assert torch.equal(before, torch.get_rng_state())
