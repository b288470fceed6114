"""The studies of the chapter on adversarial training: what a gradient call is, and records that add up."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from modelsec.data import mnist
from modelsec.repair import fast, free, mart, pgd_training, trades
from modelsec.zoo import load_model
from modelsec.zoo.results import load_result
from modelsec.zoo.studies import adversarial_training as study


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = mnist()
    small = replace(digits, x_train=digits.x_train[:96], y_train=digits.y_train[:96])
    monkeypatch.setattr(study, "digits", lambda: small)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (partial(pgd_training, steps=7), 8),
        (partial(trades, steps=7), 9),
        (partial(mart, steps=7), 9),
        (fast, 2),
        (partial(free, replays=5), 5),
    ],
    ids=["pgd", "trades", "mart", "fast", "free"],
)
def test_gradients_are_counted_for_each_image_and_epoch(few: None, make, wanted: int) -> None:
    draws = getattr(make, "func", make) is not free
    _, gradients = study.harden(make, 0, eps=0.1, epochs=2, draws=draws, turned=False)
    assert gradients == 2 * wanted


def test_a_seed_gives_the_same_network_and_another_seed_another(few: None) -> None:
    made = [
        study.harden(fast, seed, eps=0.1, epochs=1)[0].state_dict()["2.weight"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def adds_up(row: dict[str, Any]) -> None:
    worst = row["worst"]
    after = list(worst["after"].values())
    assert after == sorted(after, reverse=True)
    assert after[-1] == worst["protocol"] <= worst["pgd"] + 0.004  # a few images of chance


def test_every_method_was_trained_with_every_seed_and_its_attacks_add_up() -> None:
    rows = load_result("hardening_methods")["rows"]
    assert {(row["method"], row["seed"]) for row in rows} == {
        (name, seed) for name in study.METHODS for seed in (0, 1, 2)
    }
    assert all(row["pgd"] <= row["clean"] for row in rows)
    assert all("worst" in row for row in rows)
    for row in rows:
        adds_up(row)
    gradients = {row["method"]: row["gradients"] for row in rows}
    # 15 epochs; Free: 2 epochs of 8 replays
    assert gradients == {
        "none": 15, "pgd": 120, "trades": 135, "mart": 135, "free": 16, "fast": 30, "noise": 30
    }  # fmt: skip


def test_the_trade_offs_hold_every_pair_once() -> None:
    rows = load_result("hardening_beta")["rows"]
    assert {(row["seed"], row["beta"]) for row in rows} == {
        (seed, beta) for seed in range(3) for beta in study.BETAS
    }
    rows = load_result("hardening_radius")["rows"]
    assert [(row["seed"], row["eps"]) for row in rows] == [
        (seed, eps) for seed in range(3) for eps in study.TRAINED
    ]
    assert all([float(r) for r in row["pgd"]] == list(study.RADII) for row in rows)
    for row in rows:  # a larger radius leaves less
        left = [row["clean"], *row["pgd"].values()]
        assert all(a >= b - 0.01 for a, b in zip(left, left[1:], strict=False))


def test_three_minutes_were_enough_for_what_they_had_to_reach() -> None:
    result = load_result("hardening_three_minutes")
    quick = result["pgd"]
    assert quick["seconds"] <= 180
    assert quick["gradients"] == 8 * quick["epochs"] == 8 * study.EPOCHS
    assert quick["clean"] >= 0.96
    assert quick["pgd"] >= 0.75
    for row in result.values():
        adds_up({"worst": row})
        assert row["n"] == study.N
        gradient, square = (row["after"][name] for name in ("FMN (in place of FAB-T)", "Square"))
        only_square = round((gradient - square) * study.N)  # a sign of masking, if they are many
        assert row["warnings"] == (only_square > 0.002 * study.N)
        assert abs(row["few"] - row["pgd"]) < 0.1  # the first 200 of the same 1,000 images


def test_what_is_recorded_of_trades_is_what_its_network_does() -> None:
    now, recorded = (
        study.judged(load_model("convnet_trades"), 0.3, n=10),
        load_result("hardening_three_minutes")["trades"],
    )
    assert now["n"] == 10
    assert now["protocol"] <= now["pgd"] <= now["clean"]
    assert study.left(load_model("convnet_trades"), 0) == pytest.approx(recorded["clean"], abs=2e-3)


def test_the_quick_training_counts_its_gradients_and_its_time(few: None) -> None:
    model, cost = study.quickly(0, epochs=1)
    assert cost["gradients"] == 8
    assert 0 < cost["seconds"] < 60
    assert not model.training
