"""The studies of the chapter on driving: attacks, monitors, frames and cards, on few drives."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from torch import Tensor, nn

from modelsec import driving
from modelsec.driving import Car, Monitor, drive, frames, new_car
from modelsec.zoo import load_model
from modelsec.zoo.results import load_record, load_result, studies
from modelsec.zoo.studies import driving as study
from modelsec.zoo.studies import driving_cards, driving_models, driving_training

NAMES = ("driving_attacks", "driving_cards", "driving_monitors", "driving_training")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return load_model("driver")


@pytest.fixture(scope="module")
def cars() -> list[Car]:
    made = [new_car(seed) for seed in range(4)]
    for number, car in enumerate(made):
        car.number = number
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_records_are_those_of_the_studies(name: str) -> None:
    record, found = load_record(name), studies()[name]
    assert (record["n"], tuple(record["seeds"])) == (found.n, found.seeds)


def test_a_piece_of_the_record_is_measured_again(net: nn.Module) -> None:
    kept = load_result("driving_attacks")["student"]["each frame"]["8"]
    assert len(kept["off"]) == len(study.DRIVES) >= 20
    attack = study.each_frame(net, 8 / 255)
    again = study.told(drive(driving.student(net), list(study.DRIVES[:8]), tamper=attack, steps=25))
    assert sum(a != b for a, b in zip(again["off"], kept["off"][:8], strict=True)) <= 2
    for new, old in zip(again["metres"], kept["metres"], strict=False):
        assert new == pytest.approx(old, abs=20) or new >= 40  # 25 steps end at 50 m


def test_no_drive_is_used_twice() -> None:
    groups: list[Any] = [
        driving_models.TRAIN, driving_models.TEST, study.DRIVES, study.CALIBRATION, study.CLEAN,
        driving_training.TRIED, range(100, 110),
    ]  # fmt: skip
    seeds = [seed for group in groups for seed in group]
    assert len(seeds) == len(set(seeds))


def test_a_push_is_a_mean_between_the_wheel_and_its_end() -> None:
    logits = torch.randn(6, 15, generator=torch.Generator().manual_seed(0))
    side = torch.tensor([1.0, -1, 1, -1, 1, -1])
    plain = side * driving.steering_of(logits)
    y = torch.zeros(6, dtype=torch.long)
    assert torch.allclose(driving_models.pushed(side, 1e-3)(logits, y), plain, atol=1e-3)
    values = [driving_models.pushed(side, s)(logits, y) for s in (1e-3, 1.0, 10.0, 1e3)]
    assert all(bool((b >= a - 1e-3).all()) for a, b in zip(values, values[1:], strict=False))
    assert bool((values[-1] <= 0.7).all())
    # where the network is sure of straight on, the plain mean has next to no slope left
    sure = torch.full((1, 15), -12.0)
    sure[0, 7] = 12.0
    sure.requires_grad_()
    slopes = [
        torch.autograd.grad(goal, sure)[0].abs().max()
        for goal in (
            driving.steering_of(sure).sum(),
            driving_models.pushed(torch.ones(1), 40.0)(sure, y[:1]).sum(),
        )
    ]
    assert slopes[1] > 1e3 * slopes[0]


@pytest.mark.parametrize("make", [study.each_frame, study.stationary, study.knowing])
def test_attacks_keep_to_eps_and_come_from_their_seed(
    make: Any, net: nn.Module, cars: list[Car], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = frames(cars)
    more: dict[str, Any] = {}
    known = driving_models.road_frames()
    few = replace(known, x_train=known.x_train[:200])
    monkeypatch.setattr(study, "road_frames", lambda: few)
    if make is study.knowing:
        more = {"monitor": driving.pixel_monitor(net, limit=0.2)}
    with global_generators_untouched():
        first, again = (make(net, 4 / 255, seed=3, **more)(seen, cars) for _ in range(2))
    assert torch.equal(first, again)
    assert (first - seen).abs().max() <= 4 / 255 + 1e-6
    assert 0 <= first.min() <= first.max() <= 1
    with torch.no_grad():
        gain = driving.steering_of(net(first)) - driving.steering_of(net(seen))
    assert (study.side_of(cars) * gain).mean() > 0
    if make is study.knowing:
        level = more["monitor"].level(first, driving.steering_of(net(first)), cars)
        quiet = more["monitor"].level(seen, driving.steering_of(net(seen)), cars)
        assert bool(((level <= 0.2) | (level <= quiet + 1e-6)).all())


def test_a_coin_changes_each_pixel_by_eps(cars: list[Car]) -> None:
    seen = frames(cars)
    with global_generators_untouched():
        change = study.coin(2 / 255)(seen, cars) - seen
    assert torch.allclose(change.abs(), torch.tensor(2 / 255), atol=1e-6)
    assert change.mean().abs() < 2 / 255 / 10


def test_sides_alternate() -> None:
    assert study.side_of([Car(None, 0, number=i) for i in range(4)]).tolist() == [1, -1, 1, -1]


def test_a_steady_wheel_follows_slowly() -> None:
    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.full((len(x), 15), -50.0)
            logits[:, 9] = 50.0
            return logits

    steer = study.steady(Says(), keep=0.7)
    fresh, used = Car(None, 0), Car(None, 0, wheel=[0.0, -0.1])
    told = steer(torch.zeros(2, 1, 32, 32), [fresh, used])
    assert torch.as_tensor(told).tolist() == pytest.approx([0.2, 0.7 * -0.1 + 0.3 * 0.2])


def test_the_limit_is_the_largest_level_of_quiet_drives() -> None:
    monitor = study.calibrated(
        Monitor(lambda seen, steering, cars: steering), driving.by_state, range(2)
    )
    assert monitor.limit == max(monitor.levels)
    assert len(monitor.levels) == 200
    again = drive(driving.by_state, range(2), steps=20, monitor=monitor)
    assert again.alarmed.hits == 0


def test_late_labels_are_those_of_an_earlier_step() -> None:
    y = torch.arange(5 * 3)  # five steps of three cars
    got = driving_training.late(y, cars=3, drives=2, lag=2).reshape(5, 3)
    assert got[:, 2].tolist() == [2, 5, 8, 11, 14]
    assert got[:, 0].tolist() == [0, 3, 0, 3, 6]
    assert got[:, 1].tolist() == [1, 4, 1, 4, 7]


def test_what_training_showed() -> None:
    for row in load_result("driving_training")["rows"]:
        apart = torch.tensor(row["distance of drives"])
        planted = apart[: driving_training.LATE]
        assert planted.median() > 2 * apart[driving_training.LATE :].median()
        assert row["shifted"]["open"] > row["as driven"]["open"]  # worse on frames ...
        assert sum(row["shifted"]["closed"]["off"]) <= sum(row["as driven"]["closed"]["off"])


def test_the_repaired_driver_withstands_what_the_other_does_not(net: nn.Module) -> None:
    robust, seeds = load_model("driver_robust"), list(study.DRIVES[:4])
    off = [
        drive(
            driving.student(m), seeds, steps=20, tamper=study.each_frame(m, 8 / 255, steps=5)
        ).off_road.hits
        for m in (net, robust)
    ]
    assert off[0] >= 3
    assert off[1] == 0


def test_the_cards_are_those_of_the_chapter() -> None:
    kept = load_result("driving_cards")
    titles = {when: [part["title"] for part in parts] for when, parts in kept.items()}
    assert titles["before"] == titles["after"]
    for when, name in (("before", "driver"), ("after", "driver_robust")):
        made = driving_cards.card(name)
        assert made.told == kept[when]
        assert "1 test images" not in made.heading
    states = [
        {part["title"]: part["state"] for part in kept[when]}["Each frame attacked"]
        for when in ("before", "after")
    ]
    assert states[0] == "warning"
    with pytest.raises(ValueError, match="not for 'net'"):
        driving_cards.card("net")
