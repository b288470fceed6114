"""The benchmark: turns, ratios, missing peers, and that the book's page says what was measured.

No time is asserted: that is what `make bench` is for.
"""

import copy
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import __main__, page, tasks, timing
from benchmarks.libraries import FLOOR, OURS, PEERS, Library, Rule
from modelsec.data import mnist
from modelsec.zoo import load_model

NAMES = ["floor", "modelsec", "torchattacks", "adv-lib", "Foolbox", "ART"]


# --- taking turns ---------------------------------------------------------------------------------


def test_all_run_in_every_turn_and_each_begins_once() -> None:
    ran: list[str] = []
    racers = {name: lambda name=name: ran.append(name) for name in "abc"}
    times = timing.race(racers, turns=3)
    assert ran == [*"abc", *"abc", *"bca", *"cab"]  # a turn to warm up, then three
    assert {name: len(pairs) for name, pairs in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(seconds >= 0 for pairs in times.values() for pair in pairs for seconds in pair)


def test_ratios_are_taken_turn_by_turn() -> None:
    """The machine halves its speed in the second turn: the ratio of the medians would be 3 / 2."""
    times = {
        "base": [(1.0, 1.0), (2.0, 2.0), (9.0, 9.0)],
        "other": [(1.5, 3.0), (3.0, 6.0), (9, 9)],
    }
    row = timing.summary(times, "base")["other"]
    assert row["cpu / base"][1] == 1.5
    assert row["wall / base"] == [2.0, 3.0, 3.0]
    assert row["cpu seconds"] == 3.0
    assert timing.summary(times, "base")["base"]["cpu / base"] == [1, 1, 1]


def test_a_single_turn_has_no_spread() -> None:
    assert timing.quartiles([2.5]) == [2.5, 2.5, 2.5]


# --- the contestants ------------------------------------------------------------------------------


def missing(name: str) -> Library:
    def make(model: nn.Module, rule: Rule) -> None:
        raise ModuleNotFoundError(name=name)

    return Library(name, "torch" if name == "broken" else "no-such-distribution", make)


def test_a_peer_that_is_missing_or_broken_says_so_and_stops_nobody() -> None:
    model, rule = load_model("net"), Rule("linf", 0.1, 2)
    found = dict(tasks.contestants(model, rule, [missing("absent"), missing("broken")]))
    assert callable(found["floor"])
    assert callable(found["modelsec"])
    assert found["absent"] == "not installed"
    assert found["broken"] == "does not import (broken)"


@pytest.mark.peers
@pytest.mark.parametrize("rule", [Rule("linf", 0.1, 5), Rule("l2", 1.0, 5), Rule("linf", 0.1, 0)])
def test_all_contestants_do_the_same(rule: Rule) -> None:
    """They return points of the same ball, and (but for adv-lib, see below) fool as many images."""
    digits, model = mnist(), load_model("net")
    x, y = digits.x_test[:64], digits.y_test[:64]
    order = {"linf": torch.inf, "l2": 2}[rule.norm]
    right = {}
    for name, attack in tasks.contestants(model, rule):
        if isinstance(attack, str):
            assert (name, attack) == ("adv-lib", "has no such attack"), (name, attack)
            continue
        if name == "floor":
            continue
        adv = attack(x, y)
        assert adv.shape == x.shape
        size = torch.linalg.vector_norm((adv - x).flatten(1), order, dim=1)
        assert (size <= rule.eps + 1e-5).all(), name
        assert (size > 0).any(), name
        with torch.no_grad():
            right[name] = int((model(adv).argmax(1) == y).sum())
    assert len(right) >= 4
    assert max(right.values()) < 50
    # adv-lib does not look at the last point, and so may miss images that fall in the last step
    assert max(right.values()) - min(right.values()) <= 4, right


def test_the_floor_takes_one_gradient_a_step() -> None:
    digits, model, calls = mnist(), load_model("net"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    FLOOR.make(model, Rule("linf", 0.1, 7))(digits.x_test[:4], digits.y_test[:4])
    assert len(calls) == 7
    calls.clear()
    OURS.make(model, Rule("linf", 0.1, 7))(digits.x_test[:4], digits.y_test[:4])
    assert len(calls) == 8  # and a look at the last point


# --- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m benchmarks --quick --into FOLDER` leaves there."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmarks", "--quick", "--into", str(folder)])
        __main__.main()
    return folder


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.peers
def test_a_quick_run_measures_everything(quick: Path) -> None:
    results = load(quick / "results.json")
    assert results["quick"]
    assert list(results["pgd"]["rows"]) == NAMES
    assert len(results["sizes"]) == len(tasks.SIZES)
    for race in [results["pgd"], results["fgsm"], *results["sizes"]]:
        assert list(race["rows"]) == NAMES
        for row in race["rows"].values():
            assert row.get("missing") == "has no such attack" or row["cpu seconds"] > 0
    rows = results["evaluation"]["rows"]
    assert rows["floor"]["accuracy"] is None
    assert all(0 <= row["accuracy"] <= 1 for name, row in rows.items() if name != "floor")
    assert set(results["cost"]) == {"images", "steps", "width"}
    assert (quick / "benchmarks.md").read_text(encoding="utf-8") == page.render(results)


@pytest.mark.peers
def test_nothing_names_the_machine(quick: Path) -> None:
    facts = load(quick / "results.json")["machine"]
    assert set(facts) == {"processor", "cores", "threads used", "system"}
    assert platform.node() not in facts.values()


def test_a_quick_run_never_gets_into_the_book(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "--quick needs --into" in capsys.readouterr().err


def test_the_processor_s_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: A Fast One\nmodel name\t: other\n")
    assert tasks.processor(path) == "A Fast One"
    assert tasks.processor(tmp_path / "none")


# --- the page -------------------------------------------------------------------------------------


def row(ratio: float, to_ours: float) -> dict[str, Any]:
    times: dict[str, Any] = {f"{kind} seconds": ratio for kind in ("cpu", "wall")}
    for kind in ("cpu", "wall"):
        times[f"{kind} / floor"] = [ratio - 0.01, ratio, ratio + 0.01]
        times[f"{kind} / modelsec"] = [to_ours] * 3
    return times


@pytest.fixture
def made_up() -> dict[str, Any]:
    """Results with round numbers, one peer missing."""
    rows = {
        "floor": row(1, 0.96),
        "modelsec": row(1.04, 1),
        "torchattacks": row(1.06, 1.02),
        "adv-lib": {"missing": "not installed"},
        "ART": row(1.73, 1.66),
    }
    race = {"model": "convnet", "batch": 128, "norm": "linf", "eps": 0.1, "steps": 40, "turns": 25}
    left = rows | {"modelsec": row(0.2, 1)}
    left["torchattacks"], left["ART"] = row(1.04, 5.2), row(1.73, 8.7)
    left = {name: dict(found, accuracy=0.25) for name, found in left.items()}
    left["floor"]["accuracy"] = None
    left["adv-lib"] = rows["adv-lib"]
    near = {
        name: found | {"median": 1.25, "found": 200, "gradients": 100.0}
        for name, found in rows.items()
        if name != "floor" and "missing" not in found
    }
    steps = {"counts": [5, 10, 20], "seconds": [0.6, 1.1, 2.1]}
    return {
        "quick": False,
        "date": "2026-01-01",
        "machine": {"processor": "A Fast One", "cores": "2"},
        "versions": {"torch": "2.0", "adv-lib": "not installed"},
        "pgd": race | {"rows": rows},
        "fgsm": race | {"steps": 0, "rows": rows},
        "evaluation": race | {"n": 1000, "rows": left},
        "sizes": [race | {"rows": rows}],
        "minimum": [race | {"attack": "FMN", "n": 200, "rows": near}],
        "auto": [
            race | {"attack": "APGD", "n": 128, "queries": 0, "rows": rows},
            race | {"attack": "protocol", "n": 50, "queries": 5000, "rows": left},
        ],
        "cost": dict.fromkeys(page.QUANTITIES, steps),
    }


def test_the_page_tells_the_numbers_and_who_is_missing(made_up: dict[str, Any]) -> None:
    text = page.render(made_up)
    for line in (
        "| processor | A Fast One |",
        "| modelsec | 1.04 (1.03–1.05) | 1.04 (1.03–1.05) | 1.04 s |",
        "| adv-lib | not installed |  |  |",
        "`modelsec` takes **1.040 times the floor**. The aim was 1.05: met; the limit, 1.10: met.",
        "it takes 0.98 times the CPU time of the fastest peer, torchattacks.",
        "`modelsec` is **5.2 times as fast** as the fastest peer, torchattacks. "
        "The aim was 4 times: met.",
        "| ConvNet, 128 | 25 ms | 1.04 | 1.06 | not installed | 1.73 |",
        "| torchattacks | 1.2500 | 200 of 200 | 100 | 1.06 s | 1.02 (1.02–1.02) |",
        "| APGD | ConvNet, eps 0.1 | 128 | 40 | torchattacks | 1.06 s | 1.02 (1.02–1.02) |  |",
        "Auto-PGD takes **1.040 times the floor**. The aim was 1.05: met; the limit, 1.10: met. "
        "With 40 steps on ConvNet, torchattacks' protocol takes **5.2 times our CPU time**.",
    ):
        assert line in text, line
    assert "$" not in text


def test_a_missed_aim_is_told(made_up: dict[str, Any]) -> None:
    made_up["pgd"]["rows"]["modelsec"] = row(1.07, 1)
    made_up["evaluation"]["rows"]["torchattacks"] = row(1.04, 3.9)
    made_up["evaluation"]["rows"]["ART"] = row(1.73, 6)
    text = page.render(made_up)
    assert "**1.070 times the floor**. The aim was 1.05: not met; the limit, 1.10: met." in text
    assert (
        "**3.9 times as fast** as the fastest peer, torchattacks. The aim was 4 times: not met"
        in text
    )


def test_without_any_peer_nothing_is_compared(made_up: dict[str, Any]) -> None:
    for race in (made_up["pgd"], made_up["evaluation"], *made_up["auto"]):
        for name in ("torchattacks", "ART"):
            race["rows"][name] = {"missing": "not installed"}
    text = page.render(made_up)
    assert "fastest peer" not in text.replace("the fastest peer, and", "")
    assert "No peer is installed" in text


def test_a_straight_line_and_one_that_is_not() -> None:
    slope, intercept, distance = page.straight_line([1, 2, 4], [5.0, 7.0, 11.0])
    assert (slope, intercept) == (pytest.approx(2), pytest.approx(3))
    assert distance < 1e-9
    assert page.straight_line([1, 2, 4, 8], [1.0, 4.0, 16.0, 64.0])[2] > 0.3


# --- the page in the book -------------------------------------------------------------------------


def drawn_from(name: str) -> str:
    with Image.open(page.PAGE.with_name(name)) as image:
        return image.info["Description"]


def test_the_book_s_page_is_made_of_the_stored_results() -> None:
    results = load(page.RESULTS)
    assert not results["quick"]
    assert page.PAGE.read_text(encoding="utf-8") == page.render(results)
    assert {drawn_from(name) for name in page.FIGURES} == {page.fingerprint(results)}


def test_another_measurement_would_be_noticed() -> None:
    results = load(page.RESULTS)
    other = copy.deepcopy(results)
    other["pgd"]["rows"]["modelsec"]["cpu / floor"][1] += 0.01
    assert page.render(other) != page.render(results)
    assert page.fingerprint(other) != page.fingerprint(results)


def test_the_stored_results_compare_with_every_peer() -> None:
    results = load(page.RESULTS)
    assert list(results["pgd"]["rows"]) == NAMES
    assert all(
        results["versions"][library.name] not in ("", "not installed") for library in (OURS, *PEERS)
    )
    assert results["pgd"]["batch"] == 128
    assert results["pgd"]["steps"] == 40
    assert results["evaluation"]["n"] == 1000
