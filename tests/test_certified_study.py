"""The studies behind the chapter on certified robustness, and their records: proofs and attacks do not cross."""

import pytest
import torch

from modelsec.data import mnist
from modelsec.repair import ABSTAIN, smooth
from modelsec.zoo import load_model, load_result
from modelsec.zoo.studies.certified import attacked

DIGITS = mnist()


@pytest.mark.parametrize("name", ["sigma25", "sigma50", "sigma100"])
def test_what_is_certified_falls_with_the_radius_and_nothing_crossed(name: str) -> None:
    result = load_result(f"certified_{name}")
    for curve in (result["certified"], result["left"]):
        radii = [float(radius) for radius in curve]
        shares = list(curve.values())
        assert radii == sorted(radii)
        assert shares == sorted(shares, reverse=True)
    assert result["crossed"] == 0
    assert result["certified"]["0"] > 0.8
    cap = 3.2 * result["sigma"]  # no vote of 10,000 proves more
    assert all(share == 0 for r, share in result["certified"].items() if float(r) > cap)
    assert max(result["first"]) <= cap


def test_proofs_of_the_other_two_networks_stand_below_the_attacks() -> None:
    found = load_result("certified_ibp")
    assert found["crossed"] == 0
    assert found["certified"] <= found["left"]
    robust = load_result("certified_robust")
    for eps, both in robust["both"].items():
        boxes = robust["ibp"][eps]["marks"]
        assert all(b == "p" for a, b in zip(boxes, both["marks"], strict=True) if a == "p")
        assert both["share"] == both["marks"].count("p") / 30


def test_an_image_that_fell_does_not_rise_again() -> None:
    x, y = DIGITS.x_test[:2], DIGITS.y_test[:2]
    smoothed = smooth(load_model("convnet_sigma50"), 0.5)
    drawn = torch.Generator().manual_seed(0)
    masks = attacked(smoothed, x, y, [0.01, 4.0], drawn)
    assert len(masks) == 3
    assert bool((masks[0] >= masks[1]).all() and (masks[1] >= masks[2]).all())
    assert bool(masks[1].any())
    assert not bool(masks[2].all())
    proven = smoothed.certify(x, n=500, generator=drawn)
    assert bool((proven.prediction[masks[0]] != ABSTAIN).all())
