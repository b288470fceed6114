"""Adversarial training beside ART's: one step of TRADES, and what Fast shows the model."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from agreement_table import Agreement, record
from torch import Tensor, nn

from modelsec.attacks import pgd
from modelsec.data import mnist
from modelsec.repair import fast, trades
from modelsec.training import fit
from modelsec.zoo import load_model

pytestmark = pytest.mark.peers

LIBRARY = "adversarial-robustness-toolbox"
EPS, BETA = 0.1, 4.0
N = 64


class Whole(nn.Module):
    """Hides that a model is a Sequential: of one, ART's trainers take the first layer's accuracy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def classifier(model: nn.Module) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=Whole(model),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
    )


class _Handed:
    """An attack of ART's kind that returns the images it was made with."""

    def __init__(self, adv: Tensor) -> None:
        self.adv = adv.numpy()

    def generate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self.adv


def test_one_step_of_trades_ends_with_art_s_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ART's own
        from art.defences.trainer import AdversarialTrainerTRADESPyTorch
    digits = mnist()
    x, y = digits.x_train[:N], digits.y_train[:N]
    ours, theirs = load_model("net").train(), load_model("net").train()
    adv = pgd(ours, x, y, eps=EPS, steps=5, early_stop=False, random_start=False)
    trainer = AdversarialTrainerTRADESPyTorch(classifier(theirs), _Handed(adv), BETA)
    trainer._batch_process(x.numpy(), y.numpy())
    fit(
        ours, x, y, epochs=1, batch_size=N, progress=False,
        optimizer=torch.optim.SGD(ours.parameters(), lr=0.05),
        # fit shuffles; the mean over one batch does not depend on the order
        perturb=lambda model, images, labels, _: torch.cat([images, adv[_where(images, x)]]),
        loss=trades(eps=EPS, beta=BETA)["loss"],
    )  # fmt: skip
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    gap = max(float((a - b).detach().abs().max()) for a, b in pairs)
    start = load_model("net")
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(ours.parameters(), start.parameters(), strict=True)
    )
    assert moved > 1e-3
    assert gap < 1e-5
    record(
        "training_trades",
        [
            Agreement(
                LIBRARY, "trades", "linf", "weights after one step of training", N,
                f"differ by {gap:.1e} at most, of {moved:.1e} moved",
            )
        ],
    )  # fmt: skip


def _where(images: Tensor, x: Tensor) -> Tensor:
    """The rows of x that the images are."""
    return (images[:, None] == x[None]).flatten(2).all(2).float().argmax(1)


def test_fast_shows_the_model_what_art_s_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.defences.trainer import (
            AdversarialTrainerFBFPyTorch,
            adversarial_trainer_fbf_pytorch,
        )
    digits = mnist()
    # pulled to the middle: ART's random start may leave [0, 1], ours does not
    x, y = 0.35 + 0.3 * digits.x_train[:N], digits.y_train[:N]
    model = load_model("convnet")
    generator = torch.Generator().manual_seed(2)
    start = EPS * (2 * torch.rand(x.shape, generator=generator) - 1)
    ours = fast(eps=EPS, generator=torch.Generator().manual_seed(2))["perturb"](model, x, y, 0.0)
    assert isinstance(ours, Tensor)
    monkeypatch.setattr(
        adversarial_trainer_fbf_pytorch,
        "random_sphere",
        lambda *_: start.flatten(1).numpy().astype(np.float64),
    )
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    trainer = AdversarialTrainerFBFPyTorch(classifier(model), eps=EPS)
    trainer._batch_process(x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()], 0.0)
    # where the gradient is 0 up to rounding its sign is chance
    same = ((ours - seen[-1]).abs() < 1e-5).float().mean().item()
    assert same > 0.999
    record(
        "training_fast",
        [
            Agreement(
                LIBRARY, "fast", "linf", "pixels shown to the model in one step", N,
                f"{same:.4%} equal up to 1e-5",
            )
        ],
    )  # fmt: skip
