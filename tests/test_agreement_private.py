"""Repairs of privacy beside other libraries: DP-SGD's step against Opacus, the last layer against scikit-learn."""

import copy

import pytest
import torch
import torch.nn.functional as F
from agreement_table import Agreement, record
from torch import Tensor, nn

from modelsec.data import mnist
from modelsec.models import ConvNet, Net, fresh
from modelsec.repair import fit_head, private_fit

pytestmark = pytest.mark.peers

DIGITS = mnist()
X, Y = DIGITS.x_train[:40], DIGITS.y_train[:40]


def written_out(model: nn.Module, clip: float) -> Tensor:
    """The mean of the clipped gradients of single images, by torch.func."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, weights, (image[None],))
        return F.cross_entropy(logits, label[None])

    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, X, Y)
    flat = torch.cat([part.flatten(1) for part in rows.values()], 1)
    return (flat * (clip / flat.norm(dim=1, keepdim=True)).clamp(max=1)).mean(0)


@pytest.mark.parametrize(("name", "build"), [("Net", Net), ("ConvNet", ConvNet)])
def test_the_clipped_gradient_is_that_of_opacus(name: str, build: type[nn.Module]) -> None:
    model = fresh(build, torch.Generator().manual_seed(0))
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    wanted = written_out(copy.deepcopy(model), clip=0.7)
    private_fit(model, X, Y, noise=0.0, clip=0.7, epochs=1, batch_size=40, lr=1.0, progress=False)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    gap = float((before - after - wanted).abs().max())
    assert gap < 1e-6
    assert float(wanted.norm()) > 0.05  # there is something to compare
    record(
        f"private_{name}",
        [
            Agreement(
                "opacus",
                "private_fit",
                "",
                f"a step without noise, {name}",
                40,
                f"equal up to {gap:.0e}",
            )
        ],
    )


def test_the_last_layer_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 10, bias=False))
    x, y = DIGITS.x_train[:300], DIGITS.y_train[:300]
    ours = fit_head(model, x, y, l2=1.0)(DIGITS.x_test[:200]).softmax(1).detach().double()
    peer = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-9, max_iter=5000)
    peer.fit(model[:2](x).double(), y)
    theirs = torch.from_numpy(peer.predict_proba(model[:2](DIGITS.x_test[:200]).double()))
    gap = float((ours - theirs).abs().max())
    assert gap < 1e-5
    record(
        "private_head",
        [
            Agreement(
                "scikit-learn", "fit_head", "", "probabilities of a last layer", 200,
                f"equal up to {gap:.0e}",
            )
        ],
    )  # fmt: skip
