"""HopSkipJump, SPSA and NES beside other libraries, at as many questions as the peer asked.

Square stands in test_agreement_auto. What is compared, and where the rules differ:

* HopSkipJump: the median distance over the same images, those that are right without an attack. The
  peer is run first, behind a count of the images it shows; ours then has as many for each image.
  Foolbox looks for its first noise with up to 51 questions and ends its bisections later, ART
  bisects less finely and draws for each image. Both have an interval for the median; ours must not
  lie above it.
* SPSA: torchattacks follows the paper, but draws the signs of all channels alike, and asks about
  points outside [0, 1] too. It has no l2. Both take the same number of pairs a step, and Adam's
  learning rate is set to ours. Success is compared by the binomial interval.
* No peer here has NES: it is compared with the same SPSA.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from agreement_table import Agreement, record
from torch import Tensor, nn

from modelsec.attacks import hopskipjump, labels_only, nes, spsa
from modelsec.data import mnist
from modelsec.intervals import median_interval
from modelsec.training import evaluate
from modelsec.zoo import load_model

pytestmark = pytest.mark.peers

ORDER = {"l2": 2.0, "linf": float("inf")}


class Counted(nn.Module):
    """A model that counts the images it is shown, as float32 whatever a peer hands in."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.count = inside, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        return self.inside(x.float())


def right(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The book's network, and those of the first n test images that it gets right."""
    net, digits = load_model("net"), mnist()
    x, y = digits.x_test[:n], digits.y_test[:n]
    rows = evaluate(net, x, y).correct
    return net, x[rows], y[rows]


def by_foolbox(model: Counted, x: Tensor, y: Tensor, norm: str) -> Tensor:
    import foolbox

    attack = foolbox.attacks.HopSkipJumpAttack(steps=4, constraint=norm)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return attack.run(wrapped, x, foolbox.criteria.Misclassification(y))


def by_art(model: Counted, x: Tensor, y: Tensor, norm: str) -> Tensor:
    from art.attacks.evasion import HopSkipJump
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = HopSkipJump(wrapped, norm=2 if norm == "l2" else np.inf, max_iter=4, verbose=False)
    state = np.random.get_state()  # noqa: NPY002  (its directions come from NumPy's global one)
    np.random.seed(0)  # noqa: NPY002
    adv = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    np.random.set_state(state)  # noqa: NPY002
    return adv


PEERS: dict[str, tuple[str, Callable[..., Tensor], int]] = {
    "Foolbox": ("foolbox", by_foolbox, 100),
    "ART": ("adversarial-robustness-toolbox", by_art, 40),
}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("peer", PEERS)
def test_hopskipjump_comes_as_near_with_as_many_queries(peer: str, norm: str) -> None:
    library, run, n = PEERS[peer]
    net, x, y = right(n)
    counted = Counted(net).eval()
    adv = run(counted, x, y, norm)
    queries = counted.count // len(x)
    theirs = torch.linalg.vector_norm((adv - x).flatten(1), ORDER[norm], dim=1)
    theirs[evaluate(net, adv, y).correct] = torch.inf  # a miss
    near = hopskipjump(
        labels_only(net), x, y, norm=norm, queries=queries,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert near.found.all()
    ours, other = (float(d.sort().values[len(x) // 2]) for d in (near.distance, theirs))
    assert ours <= median_interval(theirs)[1], (peer, norm, queries, ours, other)
    row = Agreement(
        library, "hopskipjump", norm, f"median distance on net, {queries:,} queries", len(x),
        f"modelsec {ours:.3g}, it {other:.3g}",
    )  # fmt: skip
    record(f"hopskipjump_{peer}_{norm}", [row])


def test_estimated_gradients_are_not_weaker_at_equal_queries() -> None:
    import torchattacks

    net, digits, rows = load_model("net"), mnist(), []
    x, y = digits.x_test[:200], digits.y_test[:200]
    counted, eps, steps, pairs = Counted(net).eval(), 0.1, 12, 25
    attack = torchattacks.SPSA(
        counted, eps=eps, lr=eps / 2, nb_iter=steps, nb_sample=pairs, max_batch_size=pairs
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = evaluate(net, attack(x, y), y)
    queries = counted.count // len(x)
    assert queries == 2 * steps * pairs
    options: dict[str, Any] = {"eps": eps, "queries": queries, "pairs": pairs}
    for name, ours in (("spsa", spsa), ("nes", nes)):
        run = partial(ours, **options, generator=torch.Generator().manual_seed(0))
        left = evaluate(net, x, y, attack=run)
        assert left.value <= theirs.interval[1], (name, str(left), str(theirs))
        seen = f"modelsec leaves {left.value:.3f}, its SPSA leaves {theirs.value:.3f}"
        what = f"accuracy left at eps {eps}, {queries} queries"
        rows.append(Agreement("torchattacks", name, "linf", what, len(x), seen))
    record("estimated_gradient", rows)
