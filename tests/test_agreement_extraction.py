"""Stolen copies and inverted models beside ART, with the same victim, questions and budget.

What is compared, and where the rules differ:

* Copies: ART's CopycatCNN and KnockoffNets ask about as many images of the same pool and train a network of the same
  kind for as many steps, with Adam at the same rate. What they store as scores are the victim's outputs as they are,
  so theirs is a victim that ends with a softmax.
* MIFace: plain gradient ascent on the probability, 0.1 a step, from a black image. Its threshold works the other way
  round from what its name says: a class is given up at once if it begins with a probability below 1 - threshold. So the
  threshold is set to 1 here, and all steps are taken. Compared is the probability that as many gradients lead to.
"""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from agreement_table import Agreement, record
from torch import nn

from modelsec.attacks import extract, fidelity, invert
from modelsec.data import mnist
from modelsec.models import Net, fresh
from modelsec.zoo import load_model

pytestmark = [pytest.mark.peers, pytest.mark.slow]

ART = "adversarial-robustness-toolbox"
DIGITS = mnist()
POOL, X = DIGITS.x_test[500:], DIGITS.x_test[:500]
STEPS, SEEDS = 200, (0, 1, 2)


def wrapped(model: nn.Module) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 28, 28), 10,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), clip_values=(0, 1),
        device_type="cpu",
    )  # fmt: skip


def by_art(name: str, labels_only: bool, seed: int) -> nn.Module:
    from art.attacks import extraction

    victim = nn.Sequential(load_model("net"), nn.Softmax(1))
    copy = fresh(Net, torch.Generator().manual_seed(seed))
    attack = getattr(extraction, name)(
        wrapped(victim), batch_size_fit=64, batch_size_query=500, nb_epochs=STEPS // 8,
        nb_stolen=500, use_probability=not labels_only,
    )  # fmt: skip
    state = np.random.get_state()  # noqa: NPY002  (the library draws from the global one)
    np.random.seed(seed)  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attack.extract(POOL.numpy(), thieved_classifier=wrapped(copy))
    np.random.set_state(state)  # noqa: NPY002
    return copy.eval()


@pytest.mark.parametrize("labels_only", [True, False], ids=["labels", "scores"])
@pytest.mark.parametrize("name", ["CopycatCNN", "KnockoffNets"])
def test_copies_are_as_faithful(name: str, labels_only: bool) -> None:
    net = load_model("net")
    theirs, ours = [], []
    for seed in SEEDS:
        theirs.append(fidelity(by_art(name, labels_only, seed), net, X).value)
        copy = extract(
            net, POOL, queries=500, labels_only=labels_only, steps=STEPS,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        ours.append(fidelity(copy, net, X).value)
    mean = [sum(each) / len(SEEDS) for each in (ours, theirs)]
    chance = 1.96 * (2 * mean[1] * (1 - mean[1]) / len(X)) ** 0.5
    assert abs(mean[0] - mean[1]) <= chance
    what = "labels" if labels_only else "probabilities"
    seen = f"ours {mean[0]:.3f}, theirs {mean[1]:.3f} (mean of {len(SEEDS)} copies)"
    compared = f"fidelity of copies by {name}, 500 queries, {what}"
    record(f"extraction_{name}_{what}", [Agreement(ART, "extract", "", compared, len(X), seen)])


def test_the_same_number_of_gradients_makes_the_model_as_sure(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from art.attacks.inference.model_inversion import MIFace

    net, classes = load_model("net"), torch.arange(10)
    peer = wrapped(nn.Sequential(load_model("net"), nn.Softmax(1)))
    found = MIFace(peer, max_iter=200, threshold=1.0, batch_size=10, verbose=False).infer(
        None, classes.numpy()
    )
    theirs = net(torch.from_numpy(found)).softmax(1)[classes, classes]
    ours = net(invert(net, classes, steps=200, generator=torch.Generator().manual_seed(0)))
    ours = ours.softmax(1)[classes, classes]
    assert ours.min() >= theirs.min() - 1e-3
    seen = f"ours {ours.mean():.4f}, theirs {theirs.mean():.4f}"
    compared = "mean probability of the ten classes after 200 gradients (its MIFace)"
    record("inversion_miface", [Agreement(ART, "invert", "", compared, 10, seen)])
    with capfd.disabled():
        print(seen, file=sys.stderr)
