"""The blocks of the matrix that are drawn from other chapters' records."""

from typing import Any

from modelsec.intervals import Proportion
from modelsec.zoo.results import load_result
from modelsec.zoo.studies import matrix_blocks as blocks

DOORS: dict[str, Any] = {
    "triggers": ["patch", "warp"],
    "repairs": ["none", "pruned"],
    "n": {"success": 450, "accuracy": 500},
    "cells": {
        "patch": {
            "none": {"success": [1.0, 1.0], "accuracy": [0.9, 0.96]},
            "pruned": {"success": [0.0, 0.2], "accuracy": [0.9, 0.9]},
        },
        "warp": {
            "none": {"success": [0.9, 0.9], "accuracy": [0.94, 0.96]},
            "pruned": {"success": [0.5, 0.7], "accuracy": [0.8, 0.8]},
        },
    },
}


def test_an_entry_is_the_share_on_which_the_attacker_gets_nothing() -> None:
    block = blocks.backdoors(DOORS)
    assert list(block) == [blocks.UNTOUCHED, "patch", "warp"]
    assert block["patch"] == {"none": Proportion(0, 450), "pruned": Proportion(405, 450)}
    assert block["warp"] == {"none": Proportion(45, 450), "pruned": Proportion(180, 450)}
    assert block[blocks.UNTOUCHED] == {"none": Proportion(470, 500), "pruned": Proportion(425, 500)}


def told(found: int, members: int) -> dict[str, Any]:
    return {"members": members, "found": {"0.01": found, "0.05": members}}


def training(accuracy: float, *found: int) -> dict[str, Any]:
    every, stray, by_loss = found
    return {
        "accuracy": [accuracy, accuracy],
        "all": told(every, 200),
        "strays": told(stray, 20),
        "loss threshold": told(by_loss, 200),
    }


def test_a_member_that_is_not_found_stays_hidden() -> None:
    rows = {
        "epsilon 1": training(0.5, 2, 0, 2),
        "epsilon 8": training(0.7, 20, 10, 2),
        "dropout": training(0.8, 100, 20, 2),
        "standard": training(0.9, 150, 20, 10),
        "clipping alone": training(0.8, 30, 5, 2),
    }
    block = blocks.secrets({"rows": rows})
    assert list(block) == [blocks.RIGHT, *blocks.ASKED]
    order = ["standard", "dropout", "clipping alone", "epsilon 8", "epsilon 1"]
    assert all(list(row) == order for row in block.values())
    assert block[blocks.RIGHT]["standard"] == Proportion(900, 1000)
    # two networks: the interval is that of one
    assert block["LiRA, all records"]["standard"] == Proportion(25, 100)
    assert block["LiRA, wrong labels"]["epsilon 8"] == Proportion(5, 10)
    assert block["LiRA, wrong labels"]["dropout"] == Proportion(0, 10)
    assert block["loss threshold"]["epsilon 1"] == Proportion(99, 100)


def test_what_is_recorded_of_secrets_makes_a_block() -> None:
    result = load_result("privacy_curve")
    block = blocks.secrets(result)
    trainings = list(block[blocks.RIGHT])
    assert set(trainings) == set(result["rows"])
    assert trainings[0] == "standard"
    assert trainings[-1] == "epsilon 1"
    lira = block["LiRA, all records"]
    assert float(lira["epsilon 1"]) > float(lira["standard"])


def test_what_is_recorded_of_backdoors_makes_a_block() -> None:
    result = load_result("backdoor_matrix")
    block = blocks.backdoors(result)
    assert list(block) == [blocks.UNTOUCHED, *result["triggers"]]
    assert all(list(row) == result["repairs"] for row in block.values())
    assert all(float(share) > 0.8 for share in block[blocks.UNTOUCHED].values())
