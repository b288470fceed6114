"""Membership inference beside ART's: the same targets, the same shadow models' answers.

ART calls a record a member where the model is right about it (its rule), or lets a model judge the loss or the answers.
"""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from agreement_table import Agreement, record
from torch import Tensor, nn

from modelsec.attacks.membership import Leak, by_loss, lira, shadow_attack, shadows
from modelsec.data import mnist
from modelsec.models import Net, fresh
from modelsec.training import evaluate, fit

pytestmark = pytest.mark.peers

ART, N = "adversarial-robustness-toolbox", 600


def test_the_attacks_do_what_art_s_do_and_lira_more(capfd: pytest.CaptureFixture[str]) -> None:
    from art.attacks.inference import membership_inference as peer
    from art.estimators.classification import PyTorchClassifier

    digits, nets = mnist(), []
    x, y = digits.x_train[:N], digits.y_train[:N]

    def train(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Module:
        nets.append(fresh(Net, generator))
        fit(nets[-1], x, y, epochs=25, generator=generator, progress=False)
        return nets[-1]

    known = shadows(train, x, y, count=12, generator=torch.Generator().manual_seed(0))
    found: dict[str, list[tuple[float, float]]] = {
        "rule": [],
        "loss": [],
        "answers": [],
        "lira": [],
    }
    for t in range(0, 12, 2):
        net, member, others = nets[t].eval(), known.inside[t], known.others(t)
        wrapped: Any = PyTorchClassifier(net, nn.CrossEntropyLoss(), (1, 28, 28), 10)
        images, labels = x.numpy(), y.numpy()
        ours = Leak(by_loss(net, x, y), member)

        rule = peer.MembershipInferenceBlackBoxRuleBased(wrapped).infer(images, labels)
        assert np.array_equal(rule == 1, evaluate(net, x, y).correct.numpy())
        advantage = rule[member].mean() - rule[~member].mean()
        assert ours.advantage >= advantage - 1e-9  # the best threshold on the loss is no worse
        found["rule"].append((ours.advantage, advantage))

        one = peer.MembershipInferenceBlackBox(wrapped, input_type="loss", attack_model_type="lr")
        half = torch.arange(N) % 2 == 0  # it wants to be shown some members of the target
        inside, outside = (half & group for group in (member, ~member))
        one.fit(x[inside].numpy(), y[inside].numpy(), x[outside].numpy(), y[outside].numpy())
        judged = one.infer(x[~half].numpy(), y[~half].numpy(), probabilities=True)[:, -1]
        theirs = Leak(torch.from_numpy(judged), member[~half]).auc
        found["loss"].append((Leak(ours.scores[~half], member[~half]).auc, theirs))

        many = peer.MembershipInferenceBlackBox(wrapped, attack_model_type="rf")
        answers, classes = others.logits.flatten(0, 1).float(), y.repeat(len(others))
        seen = others.inside.flatten()
        many.fit(
            pred=answers[seen].numpy(),
            y=classes[seen].numpy(),
            test_pred=answers[~seen].numpy(),
            test_y=classes[~seen].numpy(),
        )
        judged = many.infer(images, labels, probabilities=True)[:, -1]
        theirs = Leak(torch.from_numpy(judged), member).auc
        mine = shadow_attack(net, others, x, y, generator=torch.Generator().manual_seed(t))
        found["answers"].append((Leak(mine, member).auc, theirs))
        best = Leak(lira(net, others, x, y, online=True), member).auc
        found["lira"].append((best, max(theirs, found["loss"][-1][1])))

    means = {name: np.mean(pairs, axis=0) for name, pairs in found.items()}
    with capfd.disabled():
        for name, (ours, theirs) in means.items():
            print(f"{name:<8} ours {ours:.3f}  theirs {theirs:.3f}", file=sys.stderr)
    spread = np.std([a - b for a, b in found["answers"]], ddof=1) / len(found["answers"]) ** 0.5
    assert abs(np.subtract(*means["loss"])) < 0.01
    assert means["answers"][0] >= means["answers"][1] - max(2 * spread, 0.02)
    assert means["lira"][0] > means["lira"][1] + 0.03
    words = {
        "rule": ("by_loss", "advantage of the best threshold, beside that of 'right, so a member'"),
        "loss": ("by_loss", "AUC, 6 networks; ART's logistic model of the loss"),
        "answers": ("shadow_attack", "AUC, 6 networks; ART's forest on the same shadows' answers"),
        "lira": ("lira", "AUC, online, 6 networks; the better one of ART's two"),
    }
    record(
        "membership",
        [
            Agreement(ART, attack, "", what, N, "ours {:.3f}, theirs {:.3f}".format(*means[name]))
            for name, (attack, what) in words.items()
        ],
    )
