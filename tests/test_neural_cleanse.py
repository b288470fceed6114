"""The search for a trigger: the anomaly index, the search itself, and what a scan says."""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks.poisoning import Trigger, badnets, patch
from modelsec.data import mnist
from modelsec.models import Net, fresh
from modelsec.repair.neural_cleanse import (
    Scan,
    anomaly_index,
    find_marks,
    neural_cleanse,
    overlap,
)
from modelsec.training import fit

QUICK: dict[str, Any] = {"steps": 6, "batch_size": 8}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(seed: int = 0, channels: int = 1, classes: int = 4) -> nn.Module:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(4 * 64, classes),
        )  # fmt: skip

    return fresh(build, seeded(seed))


def images(n: int = 20, channels: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, channels, 8, 8, generator=seeded(1)).to(dtype)


# --- the anomaly index ------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1000), min_size=3, max_size=30))
def test_the_index_is_the_formula(values: list[float]) -> None:
    sizes = np.array(values)
    index = anomaly_index(torch.tensor(values, dtype=torch.float64)).numpy()
    median = np.median(sizes)
    mad = np.median(np.abs(sizes - median))
    assert not np.isnan(index).any()
    if mad > 1e-9:
        assert np.allclose(index, (median - sizes) / (1.4826 * mad))
    assert ((index > 0) <= (sizes < median)).all()


def test_the_index_forgets_unit_and_zero_point_and_survives_equal_sizes() -> None:
    sizes = torch.tensor([50.0, 61, 44, 70, 3, 55, 58])
    index = anomaly_index(sizes)
    assert index.argmax() == 4
    assert index[4] > 2
    assert torch.allclose(anomaly_index(3 * sizes + 9), index, atol=1e-4)
    assert anomaly_index(torch.tensor([5.0, 5, 5])).tolist() == [0, 0, 0]
    assert anomaly_index(torch.tensor([5.0, 5, 5, 5, 1, 9])).tolist()[4:] == [torch.inf, -torch.inf]
    for bad in (torch.ones(2), torch.ones(3, 3)):
        with pytest.raises(ValueError, match="an outlier among K values needs K >= 3"):
            anomaly_index(bad)


def test_a_scan_flags_what_is_below_the_others_and_never_what_is_above() -> None:
    def scan(sizes: list[float], threshold: float = 2.0) -> Scan:
        marks = [Trigger(torch.zeros(1, 10, 10), torch.full((1, 10, 10), s / 100)) for s in sizes]
        return Scan(tuple(marks), torch.ones(len(sizes)), threshold)

    found = scan([50, 52, 48, 51, 49, 5, 47, 20, 99])
    assert found.sizes.tolist() == pytest.approx([50, 52, 48, 51, 49, 5, 47, 20, 99])
    assert found.flagged == [5, 7]
    assert scan([50, 52, 48, 51, 49, 5, 47, 20, 99], 12).flagged == [5]
    assert scan([50, 52, 48, 51, 49, 47, 99]).flagged == []
    rows = found.table
    assert [row["flagged"] for row in rows] == ["", "", "", "", "", "yes", "", "yes", ""]
    assert rows[5]["size of the mask"] == "5.0"


@given(st.integers(1, 6), st.integers(1, 6))
def test_overlap_of_squares_is_intersection_over_union(one: int, two: int) -> None:
    a, b = (patch((1, 8, 8), size=size, at=(0, 0)) for size in (one, two))
    assert overlap(a, b) == pytest.approx(min(one, two) ** 2 / max(one, two) ** 2)
    assert overlap(b, a) == overlap(a, b)
    apart = patch((3, 8, 8), size=1, at=(7, 7))
    assert overlap(a, apart) == 0
    faint = Trigger(torch.zeros(3, 8, 8), torch.full((1, 8, 8), 0.25))
    assert overlap(faint, Trigger(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))) == 0.25


# --- the search --------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    classes=st.sampled_from([3, 4, 12]),
    seed=st.integers(0, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_scan_leaves_everything_as_it_is(
    n: int, channels: int, classes: int, seed: int, dtype: torch.dtype
) -> None:
    model = small(seed, channels, classes).to(dtype).train()
    model[0].weight.requires_grad_(False)
    x = images(n, channels, dtype)
    kept = copy.deepcopy(model.state_dict()), x.clone()
    with global_generators_untouched():
        scan, again = (
            neural_cleanse(model, x, generator=seeded(seed), progress=False, **QUICK)
            for _ in range(2)
        )
    assert all(torch.equal(v, kept[0][k]) for k, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not model[0].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, kept[1])
    assert len(scan.triggers) == classes
    assert scan.success.shape == scan.sizes.shape == scan.index.shape == (classes,)
    for mark, same in zip(scan.triggers, again.triggers, strict=True):
        assert mark.mask.shape == (1, 8, 8)
        assert mark.pattern.shape == (channels, 8, 8)
        assert mark.mask.dtype == dtype
        assert torch.equal(mark.mask, same.mask)
    other = neural_cleanse(model, x, generator=seeded(seed + 1), progress=False, **QUICK)
    assert not torch.equal(other.triggers[0].mask, scan.triggers[0].mask)


def test_the_success_is_that_of_the_marks_that_are_returned() -> None:
    model, x = small(), images(40)
    scan = neural_cleanse(model, x, steps=40, batch_size=8, generator=seeded(), progress=False)
    model.eval()
    for k, mark in enumerate(scan.triggers):
        turned = (model(mark.stamp(x)).argmax(1) == k).double().mean()
        assert float(scan.success[k]) == pytest.approx(float(turned))


def test_classes_do_not_disturb_each_other() -> None:
    """One class searched by itself, by a loop written out, is that class among others."""
    model, x = small().eval(), images(12)
    marks, _ = find_marks(
        model, x, [2, 0], steps=10, batch_size=12, patience=3, goal=0.5, generator=seeded()
    )
    drawn = seeded()
    raw = torch.randn(2, 2, 8, 8, generator=drawn)[0].clone().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.1, betas=(0.5, 0.9))
    weight, best, kept, turned = 1e-3, 1e9, None, []
    for step in range(1, 11):
        rows = (torch.rand(12, generator=drawn) * 12).long()
        mask, pattern = raw.sigmoid()
        logits = model((1 - mask) * x[rows] + mask * pattern)
        loss = F.cross_entropy(logits, torch.full((12,), 2)) + weight * mask.sum()
        (raw.grad,) = torch.autograd.grad(loss, raw)
        turned.append((logits.argmax(1) == 2).float().mean().item())
        if step % 3 == 0:
            met = sum(turned[-3:]) / 3 >= 0.5
            if met and mask.sum() < best:
                best, kept = mask.sum().item(), raw.detach().clone()
            weight = weight * 1.5 if met else weight / 1.5**1.5
        optimizer.step()
    wanted = (raw if kept is None else kept).detach().sigmoid()
    assert torch.allclose(marks[0].mask, wanted[:1], atol=1e-5)
    assert torch.allclose(marks[0].pattern, wanted[1:], atol=1e-5)


class Doors(nn.Module):
    """Class k opens when its own pixels are grey on average, 2, 6, 12 and 24 of them; 4 is home."""

    needed = (2, 6, 12, 24)

    def forward(self, x: Tensor) -> Tensor:
        doors = x.flatten(1)[:, : sum(self.needed)].split(self.needed, 1)
        means = [door.mean(1) for door in doors]
        return 40 * torch.stack([*(mean - 0.5 for mean in means), 0 * means[0]], 1)


def test_the_smallest_mark_is_as_large_as_the_door_is() -> None:
    x = 0.1 * torch.rand(64, 1, 8, 8, generator=seeded())
    scan = neural_cleanse(Doors(), x, steps=400, generator=seeded(), progress=False)
    assert scan.success.min() > 0.9
    sizes = scan.sizes.tolist()
    assert sizes[4] < 0.5
    for k, need in enumerate(Doors.needed):
        assert 0.4 * need < sizes[k] < 0.75 * need + 0.5  # grey needs half of each pixel
    own = torch.arange(64) < 2
    assert scan.triggers[0].mask.flatten()[own].sum() > 0.8 * sizes[0]
    assert (scan.triggers[0].pattern.flatten()[own] > 0.5).all()


@cache
def poisoned(target: int) -> nn.Module:
    digits = mnist()
    planted = badnets(
        digits.x_train[:1500], digits.y_train[:1500], rate=0.05, target=target, generator=seeded()
    )
    model = fresh(Net, seeded())
    fit(model, planted.x, planted.y, epochs=6, generator=seeded(), progress=False)
    return model.eval()


def test_a_planted_trigger_is_found_where_it_is() -> None:
    scan = neural_cleanse(poisoned(7), mnist().x_test[:200], generator=seeded(), progress=False)
    assert scan.flagged[0] == 7
    assert scan.success[7] > 0.95
    assert overlap(scan.triggers[7], patch()) > 0.5
    innocent = [overlap(mark, patch()) for k, mark in enumerate(scan.triggers) if k != 7]
    assert max(innocent) < 0.3


# --- bad input ---------------------------------------------------------------------------------------


def test_bad_input_gets_one_clear_error() -> None:
    model, x = small(), images()
    for bad, words in (
        (255 * x, r"x must lie in \[0, 1\].*divide by 255"),
        (x[:0], r"x must hold images \(N, C, H, W\), N >= 1"),
        (x.flatten(1), r"x must hold images \(N, C, H, W\), N >= 1"),
        (x.to("meta"), "move all to one device"),
    ):
        with pytest.raises(ValueError, match=words):
            neural_cleanse(model, bad)
    for wrong in (x.long(), x.numpy()):
        with pytest.raises(TypeError, match="x must be"):
            neural_cleanse(model, wrong)
    with pytest.raises(ValueError, match="it needs 3 or more"):
        neural_cleanse(small(classes=2), x)
    for options in ({"goal": 0}, {"goal": 1.1}, {"weight": 0}, {"lr": -1}):
        with pytest.raises(ValueError, match=r"goal must lie in \(0, 1\]"):
            neural_cleanse(model, x, **options)
    with pytest.raises(ValueError, match="steps must be a whole number, 1 or more, got 0"):
        neural_cleanse(model, x, steps=0)
    with pytest.raises(ValueError, match="can't be differentiated by its input"):
        neural_cleanse(lambda x: model(x.round().detach()), x, generator=seeded())
