"""The long results of the chapter on privacy, second half: what they count, and that the records fit the networks."""

import pytest
import torch
from torch import nn

from modelsec import models
from modelsec.attacks import layer_inputs, step_gradient
from modelsec.data import mnist
from modelsec.training import evaluate
from modelsec.zoo import load_model, load_result
from modelsec.zoo.studies import extraction as study

DIGITS, NET = mnist(), load_model("net")
X, Y = DIGITS.x_test[study.ATTACKED], DIGITS.y_test[study.ATTACKED]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["own", "other", "letters", "noise"])
def test_a_pool_holds_different_images_and_none_that_is_measured_on(name: str) -> None:
    pool = study.pool(name)
    assert pool.shape == (3000, 1, 28, 28)
    assert pool.min() >= 0
    assert pool.max() <= 1
    rows = pool.flatten(1).unique(dim=0)
    assert len(rows) > 2900  # two small turns may give the same image
    assert len(torch.cat([rows, X.flatten(1)]).unique(dim=0)) == len(rows) + len(X)


def test_a_pool_begins_with_images_as_they_are() -> None:
    own = DIGITS.x_test[study.OWN].flatten(1)
    first = study.pool("own")[:500].flatten(1)
    assert torch.equal(first.unique(dim=0), own.unique(dim=0))


def test_noise_on_a_gradient_is_as_long_as_it_says() -> None:
    sent = step_gradient(NET, X[:3], Y[:3])
    noisy = study.blurred(sent, 0.1, seeded())
    apart = torch.cat([(a - b).flatten() for a, b in zip(noisy, sent, strict=True)]).norm()
    whole = torch.cat([part.flatten() for part in sent]).norm()
    assert float(apart / whole) == pytest.approx(0.1, rel=1e-4)
    for a, b in zip(study.blurred(sent, 0.0, seeded()), sent, strict=True):
        assert torch.equal(a, b)


def test_least_squares_is_the_input_and_bears_noise_better_than_one_unit() -> None:
    sent = step_gradient(NET, X[:1], Y[:1])
    true = (X[0].flatten() - study.MEAN) / study.STD
    assert (study.common_input(sent[0], sent[1])[0] - true).abs().max() < 1e-4
    weight, bias = study.blurred(sent, 0.1, seeded())[:2]
    unit = bias.abs().argmax()
    alone = layer_inputs(weight[unit, None], bias[unit, None])[0]
    assert (study.common_input(weight, bias)[0] - true).norm() < (alone - true).norm()


def test_psnr_and_ssim_of_what_is_known() -> None:
    x = X[:2]
    assert study.psnr(x, x).tolist() == [120, 120]
    assert study.psnr(x * 0, x * 0 + 0.1).tolist() == pytest.approx([20, 20], rel=1e-4)
    assert study.similarity(x, x) == pytest.approx([1, 1])
    assert max(study.similarity(x, x.flip(0))) < 0.6


def test_all_images_of_a_batch_of_one_are_there_and_few_of_a_large_one() -> None:
    net = models.fresh(models.Net, seeded())
    assert study.exact_share(net, 1, 0) == 1
    assert study.exact_share(net, 64, 0) < 0.1


@pytest.mark.parametrize(("how", "state"), [("division", "trained"), ("features", "trained")])
def test_a_row_of_the_gradients_is_the_record_s(how: str, state: str) -> None:
    row = study.back(how, state, 1, 0.0, 0)
    rows = load_result("privacy_gradients")["rows"]
    wanted = {"how": how, "state": state, "batch": 1, "noise": 0.0, "seed": 0}
    (recorded,) = [r for r in rows if wanted.items() <= r.items()]
    assert row.keys() == recorded.keys()
    assert row["ssim"] == pytest.approx(recorded["ssim"], abs=0.1)


def test_a_search_finds_the_order_that_fits() -> None:
    net = models.fresh(models.Net, seeded())
    x, y = X[[3, 13]], Y[[3, 13]]
    assert y[0] == y[1]  # two of one class: their order can't be told
    found = study.by_search(net, step_gradient(net, x, y), x, y, seeded())
    crossed = (found - x.flip(0)).square().mean()
    assert (found - x).square().mean() < crossed


def test_the_records_fit_the_networks() -> None:
    record = load_result("privacy_extraction")
    assert abs(record["clean"] - evaluate(NET, X, Y).value) <= 0.004
    for row in record["rows"]:
        assert all(0 <= row[what] <= 1 for what in ("fidelity", "accuracy", "errors", "left"))
    shapes = {(r["pool"], r["queries"], r["answers"], r["seed"]) for r in record["rows"]}
    assert len(shapes) == len(record["rows"]) == 3 * (4 * 4 * 2 + 2)
    for row in load_result("privacy_gradients")["rows"]:
        assert len(row["psnr"]) == len(row["ssim"]) == study.IMAGES
    assert isinstance(study.stranger(0), nn.Module)
