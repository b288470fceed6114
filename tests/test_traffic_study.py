"""The road of the chapter on traffic: prices, approaches, stickers and votes, on few pictures."""

from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec import zoo
from modelsec.sign_art import CLASSES, plates
from modelsec.signs import backdrops, draw_views, signs_rendered, take
from modelsec.training import evaluate
from modelsec.zoo.results import load_result, recorded, studies
from modelsec.zoo.sign_training import covering, sign_net
from modelsec.zoo.studies import traffic, traffic_data
from modelsec.zoo.studies import traffic_road as road

NAMES = (
    "traffic_attacks", "traffic_augment", "traffic_cards", "traffic_data", "traffic_proven",
    "traffic_stickers", "traffic_universal", "traffic_votes",
)  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return zoo.load_model("signs")


# --- prices -------------------------------------------------------------------------------------


def test_too_fast_costs_more_than_too_slow_and_right_costs_nothing() -> None:
    cost = road.mistakes()
    at = CLASSES.index
    assert cost.diag().tolist() == [0] * 16
    assert (cost + torch.eye(16)).min() == 1
    assert cost[at("limit 30"), at("limit 50")] == 1 + (50**2 - 30**2) / 100
    assert cost[at("limit 50"), at("limit 30")] == 1
    assert cost[at("stop")].argmax() == at("end of limits")
    answers = torch.tensor([at("stop"), at("limit 80")])
    assert road.mean_cost(answers, torch.tensor([at("stop"), at("stop")])) == (0 + 65) / 2
    assert set(road.SPEED) == set(CLASSES)


# --- stickers -----------------------------------------------------------------------------------


@given(seed=st.integers(0, 100), k=st.integers(0, 15), bars=st.booleans())
@settings(max_examples=20)
def test_a_sticker_stays_on_the_sign_and_in_its_mask(seed: int, k: int, bars: bool) -> None:
    where, paint = (
        road.bars() if bars else road.square(),
        torch.rand(3, 64, 64, generator=seeded(seed)),
    )
    sign = plates()[k][None]
    stuck = road.stuck_on(sign, paint, where)
    assert torch.equal(stuck[:, 3], sign[:, 3])
    on = where & (sign[0, 3] > 0.5)
    assert torch.equal(stuck[0, :3][:, on], paint[:, on])
    assert torch.equal(stuck[0, :3][:, ~on], sign[0, :3][:, ~on])
    assert 0.05 < float(on.sum() / (sign[0, 3] > 0.5).sum()) < 0.5


def test_bars_leave_the_word_alone() -> None:
    white = (plates()[road.STOP, 1] > 0.7) & (plates()[road.STOP, 3] > 0.5)
    inner = white.clone()
    inner[:14], inner[50:] = False, False
    inner[:, :8], inner[:, 56:] = False, False
    assert inner.sum() > 100  # the letters
    assert not bool((inner & road.bars()).any())


def test_a_short_training_pulls_pictures_towards_the_goal(net: nn.Module) -> None:
    sign, goals = road.stop_sign()[None], torch.full((16,), road.GOAL)
    backdrops("test", 1)  # importing the package with the photographs draws from Python's generator
    with global_generators_untouched():
        first, same = (
            road.sticker(net, sign, goals, road.bars(), steps=2, batch_size=4, generator=seeded(1))
            for _ in range(2)
        )
        made = road.sticker(
            net, sign, goals, road.bars(), steps=10, batch_size=16, generator=seeded(1)
        )
    assert torch.equal(first, same)
    assert bool(((made >= 0) & (made <= 1)).all())
    assert torch.equal(made[:, ~road.bars()], torch.full((3, int((~road.bars()).sum())), 0.5))
    behind, _ = backdrops("test", 80, 32, seeded())
    for name, compare in (("goal", road.GOAL), ("stop", road.STOP)):
        p = []
        for paint in (torch.full((3, 64, 64), 0.5), made):
            stuck = road.stuck_on(sign, paint, road.bars()).expand(80, -1, -1, -1)
            seen = take(stuck, behind, draw_views(80, seeded(2)), seeded(3))
            with torch.no_grad():
                p.append(net(seen).log_softmax(1)[:, compare].mean().item())
        assert (p[1] > p[0]) == (name == "goal")
    away = road.sticker(
        net, sign, torch.full((16,), road.STOP), road.bars(), targeted=False, steps=2,
        batch_size=16, generator=seeded(1),
    )  # fmt: skip
    assert not torch.equal(away, made)


def test_a_sticker_is_packed_and_unpacked() -> None:
    paint = torch.rand(3, 64, 64, generator=seeded())
    back = traffic.unpacked(traffic.packed(paint))
    assert (back - paint).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(traffic.unpacked(traffic.packed(back)), back)


# --- approaches and votes -----------------------------------------------------------------------


def test_an_approach_keeps_its_scene_and_comes_nearer() -> None:
    y = torch.tensor([road.GOAL, road.STOP])
    found = road.tracks(plates()[y], y, 6, "test", 0, noise=0)
    assert found.x.shape == (2, 6, 3, 32, 32)
    assert torch.equal(found.x, road.tracks(plates()[y], y, 6, "test", 0, noise=0).x)
    detail = (found.x[..., 1:] - found.x[..., :-1]).abs().mean((2, 3, 4))
    assert bool((detail[:, -1] > detail[:, 0]).all())
    near = torch.cdist(found.x.flatten(2)[0], found.x.flatten(2).flatten(0, 1))
    near[range(6), range(6)] = torch.inf
    assert bool((near.argmin(1) < 6).all())  # a frame is nearest to others of its approach


class Said(nn.Module):
    """Gives the logits that stand in a picture's first row."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :4]


def test_votes_count_answers_or_add_up_evidence() -> None:
    x = torch.zeros(2, 3, 3, 4, 4)
    x[0, :, 0, 0] = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 9.0, 0, 0]])
    x[1, :, 0, 0] = torch.tensor([[0, 0, 2.0, 1.9], [0, 0, 0, 3.0], [1.0, 0, 0, 0.9]])
    said = road.votes(Said(), x)
    assert said["frames"].tolist() == [[0, 0, 1], [2, 3, 0]]
    assert said["majority"].tolist() == [0, 3]  # no majority: the likeliest of the three
    assert said["sum"].tolist() == [1, 3]  # one frame that is sure outvotes two that are not
    rates = traffic.vote_rates(Said(), x, torch.tensor([0, 3]))
    assert rates == {"frames": 3, "majority": 2, "sum": 1}


# --- data ---------------------------------------------------------------------------------------


def test_splits_by_frame_and_by_track() -> None:
    frames, whole = traffic_data.by_frame(100, seeded()), traffic_data.by_track(10, 10, seeded())
    assert int(frames.sum()) == int(whole.sum()) == 20
    assert set(whole.view(10, 10).sum(1).tolist()) == {0, 10}
    assert len(set(frames.view(10, 10).sum(1).tolist()) - {0, 10}) > 0


@pytest.mark.parametrize("name", [n for n, t in traffic_data.augmenters().items() if t])
def test_augmenters_change_pictures_within_their_range(name: str) -> None:
    from modelsec.augmentation import transform_each

    transform = traffic_data.augmenters()[name]
    assert transform is not None
    x = torch.rand(6, 3, 32, 32, generator=seeded())
    with global_generators_untouched():
        changed = transform_each(transform, x, group=2, generator=seeded(1))
    assert not torch.equal(changed, x)
    assert bool(((changed >= 0) & (changed <= 1)).all())


def test_covering_changes_one_rectangle_and_raises_the_loss(net: nn.Module) -> None:
    few = signs_rendered("train", 40)
    x, y = few.x, torch.arange(40) % 16
    with global_generators_untouched():
        adv = covering(share=0.5, generator=seeded(2))(net, x, y, 0.0)
    assert isinstance(adv, Tensor)
    assert torch.equal(adv[20:], x[20:])
    changed = (adv != x).any(1)[:20]
    for mask in changed:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        tall, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert (int(tall), int(wide)) in {(8, 8), (4, 15), (15, 4)}
    assert evaluate(net, adv[:20], y[:20]).value < evaluate(net, x[:20], y[:20]).value
    assert bool(((adv >= 0) & (adv <= 1)).all())


def test_the_sign_network_has_the_size_that_is_told() -> None:
    assert sum(p.numel() for p in sign_net().parameters()) == 215_524


# --- the records --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_study_is_registered_and_recorded(name: str) -> None:
    assert name in studies()
    assert name in recorded()


def test_the_recorded_sticker_does_what_is_recorded(net: nn.Module) -> None:
    record = load_result("traffic_stickers")
    paint = traffic.unpacked(record["stickers"]["signs"])
    sign = road.stuck_on(road.stop_sign()[None], paint, road.bars())[0]
    answers = road.reads(net, sign, 100, 0)
    then: Any = record["found"]["signs > signs"][0]["usual"]
    assert answers.bincount(minlength=16).tolist() == pytest.approx(then, abs=2)


def test_cards_name_their_sections() -> None:
    cards = load_result("traffic_cards")
    for when in ("before", "after"):
        titles = [part["title"] for part in cards[when]["sections"]]
        assert titles[-2:] == ["A sticker on the sign", "A vote over an approach"]
        for part in cards[when]["sections"]:
            assert part["state"] in {"ok", "warning", "info", "skipped"}
            assert len(part["text"]) > 20
