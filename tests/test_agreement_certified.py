"""Certificates beside ART: the same votes, radii and intervals.

ART's smoothing asks statsmodels for the Clopper-Pearson bound, which is not among the tests' packages: SciPy's exact
interval for a binomial proportion stands in for it. Its noise comes from NumPy's global generator, so ours is drawn
from there too, and the two see the same noisy images.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from agreement_table import Agreement, record
from scipy.stats import binomtest
from torch import Tensor, nn

from modelsec.data import mnist
from modelsec.repair import Smoothed, certified, ibp, smooth
from modelsec.zoo import load_model

pytestmark = pytest.mark.peers

ART = "adversarial-robustness-toolbox"
DIGITS = mnist()
SHAPE = (1, 28, 28)


def options(model: nn.Module) -> dict[str, Any]:
    return {
        "model": model,
        "loss": nn.CrossEntropyLoss(),
        "input_shape": SHAPE,
        "nb_classes": 10,
        "clip_values": (0.0, 1.0),
        "device_type": "cpu",
    }


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(smoothed: Smoothed, image: Tensor, n: int, generator: object) -> Tensor:
        drawn = np.random.normal(scale=smoothed.sigma, size=(n, *image.shape[1:]))  # noqa: NPY002
        return torch.from_numpy(drawn.astype(np.float32))

    monkeypatch.setattr(Smoothed, "_noise", noise)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize("name", ["net", "convnet_robust"])
def test_smoothing_gives_art_s_classes_and_radii(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

        class Peer(PyTorchRandomizedSmoothing):
            def _lower_confidence_bound(self, n_class_samples: float, n_total: int) -> float:
                test = binomtest(int(n_class_samples), n_total)
                return float(test.proportion_ci(1 - 2 * self.alpha, method="exact").low)

        model = load_model(name)
        n, n0, total, sigma = 12, 100, 1000, 0.25
        peer = Peer(sample_size=n0, scale=sigma, alpha=0.001, **options(model))
        x = DIGITS.x_test[:n]
        state = np.random.get_state()  # noqa: NPY002
        ours: list[tuple[int, float, int]] = []
        theirs: list[tuple[int, float, int]] = []
        try:
            for image in x.split(1):
                np.random.seed(1)  # noqa: NPY002
                proven = smooth(model, sigma).certify(image, n0=n0, n=total, batch_size=total)
                said = smooth(model, sigma).predict(image, n=n0)
                ours.append((int(proven.prediction), float(proven.radius), int(said)))
                np.random.seed(1)  # noqa: NPY002
                label, radius = peer.certify(image.numpy(), n=total, batch_size=total)
                votes = peer.predict(image.numpy())[0]
                there = int(votes.argmax()) if votes.any() else -1
                theirs.append((int(label[0]), float(radius[0]), there))
        finally:
            np.random.set_state(state)  # noqa: NPY002
    assert [(a, c) for a, _, c in ours] == [(a, c) for a, _, c in theirs]
    gap = max(abs(a[1] - b[1]) for a, b in zip(ours, theirs, strict=True))
    assert gap < 1e-6
    proven_count = sum(a >= 0 for a, _, _ in ours)
    assert proven_count >= n / 2
    record(
        f"certified_smoothing_{name}",
        [
            Agreement(
                ART, "smooth", "l2", f"classes and radii at the same noise, {name}", n,
                f"equal; radii up to {gap:.0e}",
            )
        ],
    )  # fmt: skip


class Bare(nn.Module):
    """ART's intervals know Conv2d, Linear and ReLU, and guess where the images are flattened."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(m for m in layers if not isinstance(m, nn.Flatten))
        for number, layer in enumerate(self.layers):
            self.add_module(f"part{number}", layer)
        del self.layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x.flatten(1) if isinstance(layer, nn.Linear) else x)
        return x


@pytest.mark.parametrize("kind", ["fully connected", "convolutional"])
def test_ibp_gives_art_s_intervals(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.estimators.certification.interval import PyTorchIBPClassifier

    # the network behind its normalisation, which ART's intervals do not know
    if kind == "convolutional":
        model = nn.Sequential(*list(load_model("convnet_robust"))[1:])
        images = DIGITS.x_test[:30]
    else:
        model = nn.Sequential(*list(load_model("net"))[2:])
        images = DIGITS.x_test[:30].flatten(1)
    y, eps = DIGITS.y_test[:30], 0.004
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = PyTorchIBPClassifier(
            **options(Bare(model)) | {"input_shape": tuple(images.shape[1:])}
        )
    assert capsys.readouterr().out.startswith("Inferred reshape") == (kind == "convolutional")
    found = peer.predict_intervals(images.numpy(), bounds=eps, limits=[0.0, 1.0])
    ours = ibp(model, images, eps=eps)
    gap = max(
        float((torch.from_numpy(found[:, side]).double() - bound).abs().max())
        for side, bound in enumerate(ours)
    )
    assert gap < 1e-4 * float(ours.upper.abs().max())
    assert bool((torch.from_numpy(found[:, 0]) >= ours.lower - 1e-4).all())
    theirs = torch.from_numpy(peer.certify(found, y.numpy()))
    merged = certified(model, images, y, eps=eps, method="ibp")
    # they compare bounds of single logits; ours are of differences, so nothing they prove is lost
    assert not bool((theirs & ~merged).any())
    record(
        f"certified_ibp_{kind.split()[0]}",
        [
            Agreement(
                ART, "ibp", "linf", f"intervals of the logits, {kind}", 30, f"equal up to {gap:.0e}"
            )
        ],
    )  # fmt: skip
