"""The driving loop: the car, its camera, who drives it, and monitors beside it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from generators import global_generators_untouched
from torch import Tensor, nn

from modelsec import driving
from modelsec.driving import Car, Monitor, drive, expert, frames, new_car


@pytest.fixture(scope="module")
def calm() -> driving.Drive:
    """The expert, six cars, eight seconds."""
    return drive(driving.by_state, range(6), steps=40, keep=True)


def test_the_expert_stays_in_its_lane(calm: driving.Drive) -> None:
    assert calm.off_road.hits == 0
    assert calm.aside.abs().max() < 1.0
    assert calm.aside[:, 20:].abs().max() < 0.75
    assert torch.allclose(calm.metres, torch.tensor(40 * driving.SPEED / driving.HZ), atol=0.1)
    assert calm.steering.abs().max() < 0.7


def test_a_drive_is_the_same_again_and_draws_nothing_global(calm: driving.Drive) -> None:
    with global_generators_untouched():
        again = drive(driving.by_state, range(6), steps=40, keep=True)
        other = drive(driving.by_state, range(10, 16), steps=5)
    assert torch.equal(again.frames, calm.frames)
    assert torch.equal(again.steering, calm.steering)
    assert not torch.equal(other.steering, calm.steering[:, :5])
    alone = drive(driving.by_state, [4], steps=40)  # cars do not meet
    assert torch.allclose(alone.place[0], calm.place[4])


def test_who_steers_to_one_side_leaves_the_road() -> None:
    for side in (-0.4, 0.4):
        away = drive(lambda seen, _, s=side: torch.full((len(seen),), s), range(4), steps=40)
        assert away.off.all()
        assert bool((away.steps < 40).all())
        ended = torch.arange(40) >= away.steps[:, None]
        assert torch.equal(away.steering.isnan(), ended)
        assert torch.equal(away.place.isnan().all(-1), ended)


def test_a_car_drives_the_circle_that_its_wheel_asks_for() -> None:
    car = new_car(0)
    car.vehicle.position, car.vehicle.heading = np.array([60.0, 0.0]), 0.0
    places = []
    for _ in range(30):
        car.step(0.3)
        places.append(car.vehicle.position.copy())
    x, y = np.array(places).T
    # a circle: x^2 + y^2 + ax + by + c = 0
    a, b, c = np.linalg.lstsq(np.stack([x, y, np.ones(30)], 1), -(x**2 + y**2), rcond=None)[0]
    radius = math.sqrt(a * a / 4 + b * b / 4 - c)
    slip = math.atan(math.tan(0.3 * math.pi / 4) / 2)
    assert radius == pytest.approx(2.5 / math.sin(slip), rel=0.05)
    assert -b / 2 > 0  # to the right, where y grows


def test_the_map_says_straight_and_curve() -> None:
    car = new_car(0)
    net = car.env.road.network
    for (a, b, along), wanted in {
        ("a", "b", 10.0): 0.0,  # straight on
        ("b", "c", 5.0): -1 / 20,  # left, around a centre 20 m away
        ("e", "f", 15.0): 1 / 20,  # right
    }.items():
        lane = net.get_lane((a, b, 0))
        car.vehicle.position, car.vehicle.heading = lane.position(along, 0), lane.heading_at(along)
        car.home, car.lost = 0, 0.0
        car.vehicle.on_state_update()
        slip = math.asin(2.5 * wanted)
        assert driving.map_steering(car) == pytest.approx(
            math.atan(2 * math.tan(slip)) / (math.pi / 4), abs=0.02
        )
        assert expert(car) == pytest.approx(driving.map_steering(car), abs=0.08)


def test_the_expert_steers_back() -> None:
    for seed in range(4):
        car = new_car(seed, spread=0.0)
        assert expert(car, aside=1.0) < expert(car) < expert(car, aside=-1.0)
        assert expert(car, turned=0.1) < expert(car) < expert(car, turned=-0.1)


def test_a_frame_shows_sky_above_and_road_below(calm: driving.Drive) -> None:
    seen = calm.frames
    assert seen.shape == (240, 1, 32, 32)
    assert seen.dtype == torch.float32
    assert 0 <= seen.min() <= seen.max() <= 1
    assert seen[:, :, :8].std() < 1e-6  # nothing but sky
    assert seen[:, :, -1, 14:18].mean() == pytest.approx(104 / 255, abs=0.01)  # its own lane
    assert len(seen.flatten(1).unique(dim=0)) == 240  # a car that moves sees something else


def test_the_camera_turns_and_moves_with_the_car() -> None:
    car = new_car(0)
    lane = car.env.road.network.get_lane(("a", "b", 0))
    car.vehicle.position, car.vehicle.heading = lane.position(20.0, 2.5), lane.heading_at(20.0)
    both = frames([car])  # between two lanes of a straight road: the picture is nearly its mirror
    assert (both - both.flip(-1)).abs().mean() < 0.02
    right, turned = frames([car], aside=2.0), frames([car], turned=0.3)
    centre = (torch.arange(32.0) - 15.5).view(1, 1, 1, 32)
    light = [float(((f - f.amin()) * centre)[:, :, 14:].sum()) for f in (both, right, turned)]
    assert light[1] > light[0] + 1  # the edge on the right is nearer: more grass and line there
    assert not torch.allclose(both, turned, atol=0.05)


def test_the_ray_in_the_middle_meets_the_ground_where_geometry_says() -> None:
    camera = driving.Camera(size=2, fine=101, height=2.0, pitch=30.0, view=60.0)
    ground, sky = camera.rays()
    assert not sky[101, 101]
    assert ground[101, 101, 0] == pytest.approx(2 / math.tan(math.radians(30)), rel=0.03)
    assert ground[101, 101, 1] == pytest.approx(0, abs=0.05)
    assert bool(sky[0].all())  # 30 degrees down, and 30 up from there: the horizon
    assert not bool(sky[30:].any())
    assert bool((ground[~sky][:, 0] > 0).all())


def test_kept_frames_may_be_shifted_and_are_answered_for_their_place() -> None:
    kept = drive(driving.by_state, range(3), steps=20, keep=True, shift=1.0)
    plain = drive(driving.by_state, range(3), steps=20, keep=True)
    assert torch.equal(kept.steering, plain.steering)  # who drives sees the true frames
    assert not torch.equal(kept.frames, plain.frames)
    assert kept.answer.std() > plain.answer.std()
    assert torch.allclose(plain.answer, plain.steering.T.flatten(), atol=1e-6)
    assert plain.car.tolist() == [0, 1, 2] * 20


def test_wheel_positions_and_steering() -> None:
    assert driving.nearest_wheel(torch.tensor([-0.72, -0.04, 0.06, 0.7])).tolist() == [0, 7, 8, 14]
    logits = torch.full((2, 15), -50.0)
    logits[0, 9], logits[1, [3, 5]] = 50.0, 50.0
    assert torch.allclose(driving.steering_of(logits), torch.tensor([0.2, -0.3]), atol=1e-5)


class Blind(nn.Module):
    """Steers by the mean grey: straight on at 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        wheel = torch.tensor(driving.WHEEL)
        return -50 * (wheel - (x.mean((1, 2, 3)) - 0.5)[:, None]) ** 2


def test_tampering_reaches_the_driver_and_the_monitor() -> None:
    seen_by: list[Tensor] = []

    def watch(seen: Tensor, steering: Tensor, cars: Any) -> Tensor:
        seen_by.append(seen)
        return torch.zeros(len(cars), dtype=torch.bool)

    result = drive(
        driving.student(Blind()), [0, 1], steps=3, keep=True,
        tamper=lambda seen, _: torch.full_like(seen, 0.8), monitor=watch,
    )  # fmt: skip
    assert all(bool((s == 0.8).all()) for s in seen_by)
    assert torch.allclose(result.steering, torch.tensor(0.3), atol=0.03)
    assert result.frames.max() < 0.7  # what is kept was not tampered with


def test_a_monitor_that_rings_stops_the_car() -> None:
    def at_five(seen: Tensor, steering: Tensor, cars: Any) -> Tensor:
        return torch.tensor([len(car.wheel) == 5 and car.number == 0 for car in cars])

    stopped = drive(driving.by_state, [0, 1], steps=40, monitor=at_five, brake=expert)
    assert stopped.alarm.tolist() == [5, -1]
    assert stopped.alarmed.hits == 1
    assert stopped.off_road.hits == 0
    # 10 m/s and 5 m/s^2: two seconds, ten metres
    assert stopped.steps[0] == pytest.approx(5 + 10, abs=1)
    assert stopped.metres[0] == pytest.approx(10 + 10, abs=1.5)
    assert stopped.metres[1] == pytest.approx(80, abs=0.1)


def test_a_stopped_car_holds_an_earlier_wheel() -> None:
    car = Car(None, 0, wheel=[0.1, 0.2, 0.3, 0.4, 0.5], alarm=5)
    assert driving.held(car) == 0.3
    assert driving.held(Car(None, 0)) == 0.0


def test_a_monitor_averages_and_remembers() -> None:
    monitor = Monitor(lambda *_: torch.tensor([0.4, 0.0]), limit=0.3, over=2)
    cars = [Car(None, 0), Car(None, 0, number=1)]
    x, steering = torch.zeros(2, 1, 32, 32), torch.zeros(2)
    assert monitor(x, steering, cars).tolist() == [True, False]
    monitor.score = lambda *_: torch.tensor([-0.4, -0.9])
    assert monitor.level(x, steering, cars).tolist() == pytest.approx([0.0, 0.45])
    assert [len(car.memory) for car in cars] == [1, 1]  # looking does not count
    assert monitor(x, steering, cars).tolist() == [False, True]
    assert monitor.levels == pytest.approx([0.4, 0.0, 0.0, 0.45])


def test_the_monitors_scores() -> None:
    cars = [new_car(0), new_car(1)]
    seen = frames(cars)
    net = Blind()
    copies = driving.copies(seen)
    assert [c.shape for c in copies] == [seen.shape] * 5
    assert torch.equal(copies[1][..., 1:-1, 1:], seen[..., 1:-1, :-1])  # a pixel to the right
    steering = driving.steering_of(net(seen))
    score = driving.pixel_monitor(net).score(seen, steering, cars)
    told = torch.stack([driving.steering_of(net(c)) for c in copies])
    assert torch.allclose(score, (told - steering).abs().amax(0))
    score = driving.map_monitor().score(seen, steering, cars)
    maps = torch.tensor([driving.map_steering(car) for car in cars])
    assert torch.allclose(score, steering - maps)


def test_a_level_can_be_differentiated_and_leaves_the_network_alone() -> None:
    net, car = nn.Sequential(nn.Flatten(), nn.Linear(1024, 15)), new_car(0)
    monitor = driving.pixel_monitor(net)
    x = frames([car]).requires_grad_()
    (slope,) = torch.autograd.grad(monitor.level(x, driving.steering_of(net(x)), [car]).sum(), x)
    assert slope.abs().sum() > 0
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: new_car(-1), "seed and spread must be 0 or more, got -1"),
        (lambda: new_car(1, spread=-0.1), "got 1 and -0.1"),
        (lambda: drive(driving.by_state, []), "need seeds"),
        (lambda: drive(driving.by_state, [0], steps=0), "steps of 1 or more"),
        (lambda: drive(driving.by_state, [0], shift=-1.0), "shift of 0 or more"),
    ],
)
def test_bad_input_is_answered(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_without_the_simulator_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "highway_env.envs.racetrack_env", None)
    with pytest.raises(ImportError, match="pip install highway-env"):
        new_car(0)


def test_the_track_is_drawn_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    pictures = []
    for driver in (None, "dummy"):
        if driver:
            monkeypatch.setenv("SDL_VIDEODRIVER", driver)
        driving.track.cache_clear()
        pictures.append(driving.track()[0])
    assert torch.equal(*pictures)
    greys, counts = (pictures[0] * 255).round().unique(return_counts=True)
    assert {104, 125, 157} <= set(greys.tolist())  # road, grass, lines
    assert counts.min() > 0
