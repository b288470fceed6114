"""The attacks on training data, and the searches for them, beside the Adversarial Robustness Toolbox."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from agreement_table import Agreement, record
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from modelsec.attacks.clean_label import clean_label
from modelsec.attacks.poisoning import Poisoned, Trigger, badnets, patch
from modelsec.cleaning import spectral_signatures
from modelsec.data import mnist
from modelsec.losses import log_odds
from modelsec.models import Net, fresh
from modelsec.training import features, fit
from modelsec.zoo import load_model

pytestmark = pytest.mark.peers

LIBRARY = "adversarial-robustness-toolbox"
N, TARGET = 1000, 7


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def np_seeded(seed: int = 0) -> Iterator[None]:
    """The library draws from NumPy's global generator, which is put back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed)  # noqa: NPY002
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def samples() -> tuple[Tensor, Tensor]:
    digits = mnist()
    return digits.x_train[:N], digits.y_train[:N]


def one_hot(y: Tensor) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[y.numpy()]


class Whole(nn.Module):
    """ART runs the layers of a bare ``nn.Sequential`` one by one; the last linear layer's input is what we look at."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def classifier(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
    )


def test_a_backdoor_is_planted_pixel_for_pixel_as_by_art() -> None:
    from art.attacks.poisoning import PoisoningAttackBackdoor
    from art.attacks.poisoning.perturbations import add_pattern_bd

    x, y = samples()
    mask = torch.zeros(1, 28, 28)
    for row, column in ((26, 26), (25, 25), (26, 24), (24, 26)):
        mask[0, row, column] = 1
    made = badnets(
        x,
        y,
        rate=0.05,
        target=TARGET,
        trigger=Trigger(torch.ones(1, 28, 28), mask),
        generator=seeded(),
    )
    attack = PoisoningAttackBackdoor(lambda images: add_pattern_bd(images, channels_first=True))
    rows = made.mask
    images, labels = attack.poison(
        x[rows].numpy(), one_hot(torch.tensor([TARGET]))[0], broadcast=True
    )
    assert int(rows.sum()) == 50
    assert np.array_equal(images, made.x[rows].numpy())
    assert (labels.argmax(1) == made.y[rows].numpy()).all()
    record(
        "poisoning_backdoor",
        [Agreement(LIBRARY, "badnets", "", "images and labels", 50, "every pixel and label equal")],
    )


def test_clean_labels_are_as_hard_to_read_as_art_s_and_as_many_as_asked_for() -> None:
    """ART draws with replacement: it poisons fewer images than it was asked for."""
    from art.attacks.poisoning import PoisoningAttackBackdoor, PoisoningAttackCleanLabelBackdoor

    x, y = samples()
    eps, steps, model = 0.2, 20, load_model("net")
    attack = PoisoningAttackCleanLabelBackdoor(
        PoisoningAttackBackdoor(lambda images: patch().stamp(torch.from_numpy(images)).numpy()),
        classifier(model),
        one_hot(torch.tensor([TARGET]))[0],
        pp_poison=0.5,
        eps=eps,
        eps_step=2.5 * eps / steps,
        max_iter=steps,
    )
    with np_seeded():
        images, labels = attack.poison(x.numpy(), one_hot(y))
    theirs = torch.from_numpy(images)
    rows = (theirs != x).flatten(1).any(1)
    ours = clean_label(
        model,
        x,
        y,
        rate=0.05,
        target=TARGET,
        trigger=patch(),
        eps=eps,
        steps=steps,
        generator=seeded(),
    )
    assert (labels.argmax(1) == y.numpy()).all()
    assert torch.equal(ours.y, y)
    assert int((y == TARGET).sum()) == 100
    assert int(ours.mask.sum()) == 50  # half of the class, as asked
    assert int(rows.sum()) < 50
    with torch.no_grad():
        hard = [
            float(log_odds(model(x[r]), y[r]).median())
            for x, r in ((theirs, rows), (ours.x, ours.mask))
        ]
    assert hard[1] == pytest.approx(hard[0], rel=0.15)
    for made, chosen in ((theirs, rows), (ours.x, ours.mask)):
        change = (made - x)[chosen] * (1 - patch().mask)
        assert change.abs().max() <= eps + 1e-5
    record(
        "poisoning_clean_label",
        [
            Agreement(
                LIBRARY, "clean_label", "linf", f"median log odds of the poisons at eps {eps}", 50,
                f"ours {hard[1]:.1f}, theirs {hard[0]:.1f}; of 50 images asked for they change "
                f"{int(rows.sum())}, having drawn some twice",
            )
        ],
    )  # fmt: skip


@cache
def backdoored() -> tuple[nn.Module, Poisoned]:
    """A small network trained on 1,000 digits, of which 50 carry a patch and a false label."""
    made = badnets(*samples(), rate=0.05, target=TARGET, trigger=patch(), generator=seeded())
    generator = seeded(1)
    model = fresh(Net, generator)
    fit(model, made.x, made.y, epochs=8, generator=generator, progress=False)
    return model.eval(), made


class _Features(nn.Module):
    """A network whose last layer's output, at which ART looks, is what our detectors are given."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.front = nn.Sequential(*list(model)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.front(x)


def test_spectral_signatures_of_a_planted_backdoor_beside_art_s() -> None:
    """Same features, same v. ART projects the features as they are, we after centring: the order differs."""
    from art.defences.detector.poison import SpectralSignatureDefense

    model, made = backdoored()
    found = features(model, made.x)
    peer = classifier(_Features(model))
    share = 0.1
    defence = SpectralSignatureDefense(
        peer, made.x.numpy(), one_hot(made.y), expected_pp_poison=share, eps_multiplier=1.5
    )
    report, clean = defence.detect_poison()
    scores = torch.zeros(N, dtype=torch.float64)
    for c in range(10):
        rows = made.y == c
        mine = found[rows].double()
        v = torch.linalg.svd(mine - mine.mean(0), full_matrices=False).Vh[0]
        scores[rows] = (mine @ v).abs()
        cut = np.quantile(scores[rows].numpy(), 1 - 1.5 * share)
        expected = (scores[rows].numpy() >= cut).tolist()
        assert [not clean[i] for i in rows.nonzero()[:, 0].tolist()] == expected
    for i, score in report.items():
        assert float(score) == pytest.approx(float(scores[i]), rel=1e-3, abs=1e-3)
    among = made.y == TARGET
    truth, ours = made.mask[among], spectral_signatures(found, made.y)
    auroc = [float(roc_auc_score(truth, s[among])) for s in (ours, scores)]
    record(
        "poisoning_spectral",
        [
            Agreement(
                LIBRARY, "spectral_signatures", "", "order of the images of the target class", int(among.sum()),
                f"AUROC ours {auroc[0]:.3f}, theirs {auroc[1]:.3f}: they leave out the centring",
            )
        ],
    )  # fmt: skip
