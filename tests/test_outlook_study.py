"""The long results of the outlook: what they hold, and that a part of them comes out again."""

import pytest
import torch

from modelsec import models
from modelsec.zoo import load_model, load_result
from modelsec.zoo.studies import outlook as study


@pytest.mark.parametrize("attack", ["FGSM", "DeepFool", "BIM"])
@pytest.mark.parametrize("name", study.NETWORKS)
def test_the_record_of_the_years_comes_out_again(name: str, attack: str) -> None:
    rows = {(row["network"], row["attack"]): row for row in load_result("outlook_attacks")["rows"]}
    kept, again = rows[name, attack], study.by_year(name, attack, n=40)
    assert again["year"] == kept["year"]
    same = sum(a == b for a, b in zip(again["marks"], kept["marks"], strict=False))
    assert same >= 39


def test_the_record_of_the_years_is_whole_and_in_order() -> None:
    rows = load_result("outlook_attacks")["rows"]
    assert [(row["network"], row["attack"]) for row in rows] == [
        (name, attack) for name in study.NETWORKS for attack in study.ATTACKS
    ]
    assert all(len(row["marks"]) == study.JUDGED for row in rows)
    assert all(set(row["marks"]) <= {"0", "1"} for row in rows)
    years = [year for year, _ in study.ATTACKS.values()]
    assert years == sorted(years)


def test_deepfool_keeps_to_the_radius() -> None:
    digits = study.digits()
    x, y = digits.x_test[:30], digits.y_test[:30]
    model, run = load_model("net"), study.ATTACKS["DeepFool"][1]
    adv = run(model, x, y, eps=0.05, generator=torch.Generator())
    moved = (adv - x).flatten(1).abs().amax(1)
    assert moved.max() <= 0.05 + 1e-6
    assert 0 < int((moved > 0).sum()) < 30  # some are farther away, and stay as they were


def test_sizes_and_parameters() -> None:
    assert study.sizes(1.0) == (784, 128, 64, 10)
    assert study.sizes(0.25) == (784, 32, 16, 10)
    assert study.parameters(1.0) == sum(p.numel() for p in models.Net().parameters()) == 109_386


@pytest.mark.parametrize(("robust", "each"), [(True, 8), (False, 1)])
def test_all_are_trained_with_as_many_updates(monkeypatch, robust: bool, each: int) -> None:
    monkeypatch.setattr(study, "UPDATES", 4)
    monkeypatch.setattr(study, "N", 20)
    rows = [study.grown(images, 0.25, 0, robust=robust) for images in (128, 256)]
    assert [row["gradients"] for row in rows] == [4 * 128 * each] * 2
    assert all(row["pgd"] <= row["clean"] for row in rows)


def test_the_record_of_scale_is_whole() -> None:
    rows = load_result("outlook_scale")["rows"]
    found = {(r["images"], r["width"], r["seed"], r["robust"]) for r in rows}
    wanted = {(m, 1.0, seed, True) for m in study.IMAGES for seed in range(3)}
    wanted |= {(4000, width, seed, True) for width in study.WIDTHS for seed in range(3)}
    assert found == wanted | {(4000, 1.0, seed, False) for seed in range(3)}
    assert len(rows) == len(found)
    gradients = {r["gradients"] for r in rows if r["robust"]}
    assert max(gradients) / min(gradients) < 1.02  # equally many updates
