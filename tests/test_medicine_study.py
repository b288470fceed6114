"""The clinic of the chapter on medicine: records, errors, seals, images, counts person by person."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modelsec import patients, zoo
from modelsec.attacks.membership import Shadows
from modelsec.attacks.tabular import cheapest
from modelsec.intervals import Proportion
from modelsec.validation import auroc
from modelsec.zoo.results import studies
from modelsec.zoo.studies import medicine, medicine_images, medicine_models, medicine_records

X, Y = medicine_models.measured().raw, medicine_models.measured().y


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_published_columns_come_back_from_what_was_measured() -> None:
    ten, mine = patients.diabetes().raw, medicine_models.table_of_ten(X)
    assert (mine - ten)[:, [0, 1, 2, 3, 4, 6, 9]].abs().max() == 0
    assert (mine - ten)[:, 5].abs().max() < 0.5  # LDL
    assert (mine - ten)[:, 7].abs().max() < 0.7  # the ratio, which the table rounds
    assert (mine - ten)[:, 8].abs().max() < 1e-3
    inputs = medicine_models.Derive()(X)
    assert torch.equal(medicine_models.columns_as_given(mine), inputs)
    assert inputs.mean(0).abs().max() < 0.5
    assert 0.5 < inputs.std(0).min() < inputs.std(0).max() < 2
    assert not list(medicine_models.Derive().parameters())


def test_the_halves_share_nobody() -> None:
    data = medicine_models.split(3)
    assert (len(data.y_train), len(data.y_test)) == (310, 132)
    both = torch.cat([data.x_train, data.x_test])
    assert torch.equal(both[:, 6].sort().values, X[:, 6].sort().values)
    assert not torch.equal(data.x_test, medicine_models.split(4).x_test)


def test_errors_of_measurement_stay_within_their_size() -> None:
    with global_generators_untouched():
        off = medicine_models.disturbed(X, seeded())
    assert torch.equal(off, medicine_models.disturbed(X, seeded()))
    assert torch.equal(off[:, :3], X[:, :3])
    assert ((off - X)[:, 4:].abs() <= medicine_models.ERROR * X[:, 4:] + 1e-4).all()
    assert (off - X)[:, 3].abs().max() <= medicine_models.PRESSURE
    assert (off - X)[:, 3:].abs().min(0).values.max() < 0.1  # not all as large as they may be
    assert (off - X)[:, 3].abs().max() > 0.9 * medicine_models.PRESSURE


@pytest.mark.parametrize("error", [0.02, 0.05, 0.1])
def test_what_the_attacker_hands_in_could_have_been_measured(error: float) -> None:
    w = torch.randn(8, generator=seeded(1)) / X.std(0)

    def model(x: torch.Tensor) -> torch.Tensor:
        score = (x - X.mean(0)) @ w
        return torch.stack([-score, score], 1)

    x = X[::9]
    y = model(x).argmax(1)
    found = cheapest(model, x, y, rules=medicine_models.rules(error))
    assert 0 < found.found.float().mean() < 1
    off = (found.adv - x).abs()
    assert off[:, :3].max() == 0
    assert (off[:, 4:] <= error * x[:, 4:] + 1e-3).all()
    assert off[:, 3].max() <= 100 * error + 1e-3
    assert (off - off.round()).abs().max() < 1e-3  # whole units, as a laboratory prints them
    # a linear model's answer falls exactly where the worst reading says so, up to whole units
    reach = error * x
    reach[:, :3], reach[:, 3] = 0, 100 * error
    slack = (reach @ w.abs()) - (2 * y - 1) * ((x - X.mean(0)) @ w)
    assert not bool(found.found[slack < 0].any())
    assert bool(found.found[slack > w.abs()[3:].sum()].all())


def test_a_given_table_is_believed_column_by_column() -> None:
    ten = medicine_models.table_of_ten(X[:60])
    y = torch.zeros(60, dtype=torch.long)

    def model(x: torch.Tensor) -> torch.Tensor:  # looks at LDL alone
        return torch.stack([ten[:, 5].median() - x[:, 5], x[:, 5] - ten[:, 5].median()], 1)

    found = cheapest(model, ten, y, rules=medicine_models.given_rules())
    turned = found.found & (found.distance > 0)
    assert turned.any()
    assert medicine_records.contradictions(found.adv[turned]).any(1).all()
    assert not medicine_records.contradictions(ten).any()


def test_the_published_table_contradicts_itself_nowhere() -> None:
    assert not medicine_records.contradictions(patients.diabetes().raw).any()
    assert not medicine_records.impossible(X).any()
    assert medicine_records.impossible(torch.full((2, 8), torch.nan)).all()
    wrong = patients.diabetes().raw.clone()
    wrong[0, 5] += 1  # LDL
    wrong[1, 7] += 1  # ratio
    wrong[2, 8] += 0.003  # triglycerides no longer whole
    assert medicine_records.contradictions(wrong[:3])[:2].tolist() == [
        [True, False, False],
        [False, True, False],
    ]
    assert medicine_records.contradictions(wrong[:4]).any(1).tolist() == [True, True, True, False]


RECORDS = st.dictionaries(
    st.text(max_size=4), st.one_of(st.floats(-1e3, 1e3), st.text(max_size=4)), max_size=5
)


@given(RECORDS, RECORDS, st.binary(min_size=1, max_size=9))
def test_equal_records_and_no_others_share_a_seal(one: Any, two: Any, key: bytes) -> None:
    first, second = (medicine_records.seal(record, key) for record in (one, two))
    same = sorted(map(repr, one.items())) == sorted(map(repr, two.items()))
    assert (first == second) == same
    assert first == medicine_records.seal(dict(reversed(one.items())), key)
    assert first != medicine_records.seal(one, key + b"1")
    assert len(first) == 64


def test_a_seal_stops_what_a_range_lets_pass() -> None:
    assert medicine_records.changed_unseen(X[:20], sealed=False) == Proportion(20, 20)
    assert medicine_records.changed_unseen(X[:20], sealed=True) == Proportion(0, 20)
    one, two = (medicine_records.sealed_row(X[0], person, b"k") for person in (1, 2))
    assert one != two


def test_dots_are_found_and_painted_over() -> None:
    image = medicine_images.lesions()
    dots = medicine_images.spots(image)
    after = medicine_images.painted_over(image, dots)
    assert len(dots) == 2
    assert len(medicine_images.spots(after)) == 0
    rows, columns = np.indices(image.shape)
    near = np.min([np.hypot(rows - r, columns - c) for r, c in dots], 0) <= 6
    assert np.array_equal(image[~near], after[~near])
    assert after.dtype == np.uint8
    flat = np.full((40, 40), 200, dtype=np.uint8)
    assert len(medicine_images.spots(flat)) == 0
    planted = flat.copy()
    planted[19:22, 9:12] = 60
    assert np.abs(medicine_images.spots(planted) - [20, 10]).max() <= 1


def test_a_copy_is_found_where_it_is() -> None:
    for clean, tampered in medicine_images.crops(3, seed=5):
        assert clean.shape == tampered.shape == (medicine_images.SIDE,) * 2
        assert 0 < (clean != tampered).mean() < 0.05
        assert medicine_images.copies_found(tampered) > 5 * medicine_images.copies_found(clean)
        assert medicine_images.recompressed(clean, None) is clean
        assert (medicine_images.recompressed(clean, 60) != clean).any()
    first, second = (medicine_images.crops(1, seed=5)[0][1] for _ in range(2))
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
    assert medicine_images.copies_found(np.full((64, 64), 7, dtype=np.uint8)) == 0


def planted(count: int = 12) -> Shadows:
    """Models that know whom they saw: surer of them, and right; of the others only class 1 is."""
    inside = torch.zeros(count, len(Y), dtype=torch.bool)
    for s in range(0, count, 2):
        half = torch.randperm(len(Y), generator=seeded(s))[: len(Y) // 2]
        inside[s, half] = True
        inside[s + 1] = ~inside[s]
    noise = torch.randn(count, len(Y), generator=seeded(99)) / 4
    lead = torch.where(inside, 9 * (2 * Y - 1).float(), 1.0) + noise
    return Shadows(torch.stack([-lead / 2, lead / 2], 2).half(), inside)


def test_counts_are_of_persons() -> None:
    told = medicine.counted([planted(), planted()])
    assert told["times"] == 12
    right = medicine.unpack(told["right"]) / 12
    assert np.array_equal(right[Y == 1], np.ones(221))
    assert np.array_equal(right[Y == 0], np.zeros(221))
    assert medicine.unpack(told["found 1"]).mean() / 12 > 0.95
    assert abs(medicine.unpack(told["alarms 5"]).mean() / 12 - 0.05) < 0.005
    fpr, tpr = np.array(told["roc"]).T
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()


def test_concordance_is_the_area_of_models_on_new_people() -> None:
    known = planted(4)
    pairs = medicine.concordance([known])
    lead = (known.logits[:, :, 1] - known.logits[:, :, 0]).float()
    hits = total = 0.0
    for score, inside in zip(lead, known.inside, strict=True):
        new = [score[~inside & (k == Y)] for k in (0, 1)]
        weight = len(new[0]) * len(new[1])
        hits, total = hits + weight * auroc(*new), total + weight
    seen = sum(
        (~inside[Y == 1]).float()[:, None] * (~inside[Y == 0]).float() for inside in known.inside
    )
    there = seen > 0
    assert np.average(pairs[there], weights=seen[there]) == pytest.approx(hits / total, abs=1e-3)


def test_an_interval_over_people() -> None:
    values = np.concatenate([np.zeros(221), np.ones(221)])
    some = torch.arange(442) % 2 == 0
    mean, low, high = medicine.mean_of(values, some)
    assert mean == pytest.approx(0.5, abs=0.01)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 221**0.5, rel=0.02)


@pytest.mark.parametrize("name", list(medicine_models.TRAININGS)[:4])
def test_a_training_depends_on_its_generator_alone(name: str) -> None:
    train = medicine_models.TRAININGS[name]
    with global_generators_untouched():
        one, two = (train(X[:60], Y[:60], seeded(5)) for _ in range(2))
    assert isinstance(one, nn.Module)
    assert not one.training
    with torch.no_grad():
        assert torch.equal(one(X), two(X))


def test_the_cards_are_recorded_with_their_three_own_sections() -> None:
    stored = zoo.load_result("medicine_cards")
    titles = [[section["title"] for section in stored[state]] for state in ("before", "after")]
    assert titles[0] == titles[1]
    assert titles[0][-3:] == ["Membership, with shadow models", "Integrity of records", "Referral"]
    states = {s["title"]: s["state"] for s in stored["before"]}
    assert states["Membership, with shadow models"] == states["Integrity of records"] == "warning"
    with pytest.raises(ValueError, match="before"):
        medicine.card("during")
    assert {"medicine_privacy", "medicine_copies", "medicine_cards"} <= set(studies())
