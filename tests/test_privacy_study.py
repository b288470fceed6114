"""The studies on repairing privacy: what they train and count, and what their records hold."""

from functools import partial
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from generators import global_generators_untouched
from scipy.stats import t
from torch import Tensor, nn

from modelsec import zoo
from modelsec.attacks.membership import Leak
from modelsec.intervals import wilson
from modelsec.repair import fit_head, most_found
from modelsec.zoo.studies import privacy_repair as curve
from modelsec.zoo.studies import privacy_unlearning as unlearning


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_strays_are_the_records_with_a_wrong_label() -> None:
    x, y, stray = curve.records()
    truth = curve.digits().y_train[:1000]
    assert torch.equal(x, curve.digits().x_train[:1000])
    assert torch.equal(y != truth, stray)
    assert int(stray.sum()) == 50
    half = torch.zeros(1000, dtype=torch.bool)
    half[torch.randperm(1000, generator=seeded(0))[:500]] = True  # as a study with seed 0 begins
    assert 10 < int((stray & half).sum()) < 40


def test_what_is_told_counts_over_all_targets() -> None:
    member = torch.tensor([True] * 50 + [False] * 50)
    right = Leak(member.double(), member)
    reverse = Leak(-member.double(), member)
    found = curve.told([right, right])
    assert found["auc"] == [1.0, 1.0]
    assert (found["members"], found["others"]) == (100, 100)
    assert found["found"] == {"0.01": 100, "0.05": 100}
    assert found["roc"][0] == [0.0, 1.0]
    assert curve.told([right, reverse])["pooled auc"] == pytest.approx(0.5)
    fpr = [f for f, _ in curve.told([reverse, reverse])["roc"]]
    assert fpr == sorted(fpr)


def test_views_hide_what_they_say() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [2.9, 0.5, 0.4], [0.0, 0.0, 9.0]])
    label = curve.label_alone(logits)
    assert torch.equal(label[0], label[1])
    assert torch.equal(label.argmax(1), logits.argmax(1))
    rounded = curve.one_digit(logits)
    assert torch.equal(rounded[0], curve.one_digit(logits + 5)[0])
    assert torch.equal(curve.one_digit(logits[2]), curve.one_digit(logits[2] * 2))


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"smoothing": 0.3}, {"decay": 1.0}])
def test_the_trainings_draw_from_their_generator_alone(options: dict[str, Any]) -> None:
    x, y, _ = curve.records()
    with global_generators_untouched():
        a, b, c = (
            curve.standard(x[:100], y[:100], seeded(s), epochs=1, **options) for s in (1, 1, 2)
        )
    first, second, third = (m(x[:5]) for m in (a, b, c))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert not a.training
    plain = curve.standard(x[:100], y[:100], seeded(1), epochs=1)
    assert torch.equal(plain(x[:5]), first) == (not options)


def test_the_game_counts_what_it_says() -> None:
    """A model that answers nothing but what it was told to forget is found out; one that never saw it is not."""

    def by_heart(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        return fit_head(model, x, y, l2=0.1, steps=3)

    small = {
        "nothing": lambda model, forget, keep, g: model,
        "never": lambda model, forget, keep, g: by_heart(keep[0][:50], keep[1][:50], g),
    }
    features = nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16, 10))
    train = lambda x, y, g: fit_head(features, x[400:], y[400:], l2=0.1)  # noqa: E731
    small["never"] = lambda model, forget, keep, g: fit_head(
        features, keep[0][400:], keep[1][400:], l2=0.1
    )
    found = unlearning.forgotten(train, small, seeded(), count=6)
    assert found["nothing"]["forgotten"] > found["nothing"]["never"]
    assert sum(found["nothing"]["lira"]["auc"]) / 6 > 0.55
    assert sum(found["never"]["lira"]["auc"]) / 6 == pytest.approx(0.5, abs=0.1)
    assert len(found["never"]["test"]) == 6


# The records


def test_no_recorded_attack_is_surely_above_the_line_that_the_accountant_draws() -> None:
    rows = zoo.load_result("privacy_curve")["rows"]
    private = {name: row for name, row in rows.items() if row["epsilon"] is not None}
    assert sorted(row["epsilon"] for row in private.values()) == [1, 3, 3, 8]
    for row in private.values():
        for who in ("all", "strays", "others", "loss threshold"):
            fpr, tpr = torch.tensor(row[who]["roc"], dtype=torch.double).T.tolist()
            n, m = row[who]["members"], row[who]["others"]
            found = torch.tensor([wilson(round(t * n), n)[0] for t in tpr], dtype=torch.double)
            false = torch.tensor([wilson(round(f * m), m)[1] for f in fpr], dtype=torch.double)
            line = most_found(false, row["epsilon"], curve.DELTA)
            assert bool((found <= line + 1e-9).all())


def test_the_record_has_every_training_and_view() -> None:
    found = zoo.load_result("privacy_curve")
    assert set(found["rows"]) == set(curve.TRAININGS) | set(curve.VIEWS)
    for row in found["rows"].values():
        assert len(row["accuracy"]) == len(row["all"]["auc"]) == 16
        assert row["all"]["members"] == row["all"]["others"] == 8000
        assert row["strays"]["members"] + row["others"]["members"] == 8000
    assert {size for sizes in found["sizes"].values() for size in sizes} == {"500", "1000", "4000"}


@pytest.mark.parametrize(
    ("game", "method", "hidden"),
    [
        ("network", "nothing", False),
        ("network", "fine-tuning", False),
        ("network", "ascent, small steps", False),
        ("network", "ascent, large steps", False),
        ("network", "sharding, 5", True),
        ("network", "retraining", True),
    ],
)
def test_who_has_forgotten(game: str, method: str, hidden: bool) -> None:
    """Retraining, which has nothing to hide, lies up to 0.03 from a coin: chance moves all targets together."""
    auc = zoo.load_result("privacy_unlearning")[game][method]["lira"]["auc"]
    assert (abs(sum(auc) / len(auc) - 0.5) < 0.05) == hidden


def over_games(values: list[float]) -> tuple[float, float]:
    """The 95% interval of the mean of independent games."""
    assert len(values) == unlearning.GAMES
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def test_by_lira_a_newton_step_with_noise_is_retraining() -> None:
    head = zoo.load_result("privacy_unlearning")["head"]
    auc = {name: row["games"]["lira"] for name, row in head.items()}
    step, again = auc["Newton step, noise 0.1"], auc["retraining, noise 0.1"]
    for values in (step, again):
        low, high = over_games(values)
        assert low <= 0.5 <= high
    low, high = over_games([a - b for a, b in zip(step, again, strict=True)])
    assert low <= 0 <= high


@pytest.mark.parametrize("method", ["nothing", "nothing, noise 0.1", "Newton step"])
def test_the_same_games_see_what_is_not_forgotten(method: str) -> None:
    """Were the games blind, the test above would say nothing."""
    head = zoo.load_result("privacy_unlearning")["head"]
    assert over_games(head[method]["games"]["lira"])[0] > 0.5


def test_several_games_are_told_as_one() -> None:
    one = {"test": [0.5, 0.7], "forgotten": 0.2, "never": 0.4, "lira": {"auc": [0.6, 0.8]}}
    games = [{"m": one | {"loss": {"auc": [0.5]}}}, {"m": one | {"loss": {"auc": [0.7]}}}]
    games[1]["m"] = games[1]["m"] | {"forgotten": 0.6}
    assert unlearning.replayed(games) == {
        "m": {
            "test": [0.6, 0.6],
            "forgotten": 0.4,
            "never": 0.4,
            "games": {"lira": [0.7, 0.7], "loss": [0.5, 0.7]},
        }
    }


def test_a_method_that_draws_gets_the_generator_of_its_model() -> None:
    assert set(unlearning.FORGETTING) >= {"nothing", "fine-tuning", "retraining"}
    x, y, _ = curve.records()
    tiny = partial(curve.standard, epochs=1)(x[:60], y[:60], seeded())
    pair = (x[:10], y[:10]), (x[10:60], y[10:60])
    with global_generators_untouched():
        for name in ("fine-tuning", "ascent, small steps"):
            one, two = (unlearning.FORGETTING[name](tiny, *pair, seeded(4)) for _ in range(2))
            assert torch.equal(one(x[:3]), two(x[:3]))
