"""Audit section: do a model's answers tell whom it was trained on?"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch

from modelsec.attacks.leak import Leak
from modelsec.attacks.membership import by_loss
from modelsec.audit.parts import Section, Subject, section
from modelsec.intervals import Proportion, wilson
from modelsec.roc import roc_log

__all__ = ["membership"]

FPR = {"tpr_1": 0.01, "tpr_5": 0.05}


@section(title="Membership", order=75)
def membership(subject: Subject) -> Section:
    """The simplest attack on membership, a threshold on the loss: training against test images.

    The first images of each half, as many as the audit uses. LiRA, with shadow models, may find
    more: an "ok" here proves nothing.

    Measures: ``auc``; ``advantage``; ``tpr_1`` and ``tpr_5``, the share of the members found at 1%
    and 5% false alarms, where that is one test image or more.

    References:
        Yeom et al. (2018), https://arxiv.org/abs/1709.01604.
    """
    halves = (
        (subject.data.x_train[: subject.n], subject.data.y_train[: subject.n]),
        (subject.x, subject.y),
    )
    if not len(halves[0][0]):
        return Section("The data have no training half.", "skipped")
    inside, outside = (by_loss(subject.model, *half).cpu() for half in halves)
    member = torch.arange(len(inside) + len(outside)) < len(inside)
    leak, n = Leak(torch.cat([inside, outside]), member), len(outside)
    found = {name: leak.tpr_at(fpr) for name, fpr in FPR.items() if fpr * n >= 1}
    # more members than false alarms, both intervals apart
    apart = any(
        share.interval[0] > wilson(round(FPR[name] * n), n)[1] for name, share in found.items()
    )
    told = "".join(f" At {FPR[name]:.0%} false alarms: {found[name]}." for name in found)
    measures: dict[str, float | Proportion] = {"auc": leak.auc, "advantage": leak.advantage}
    figure, axes = plt.subplots(figsize=(4.4, 3.9))
    roc_log({"threshold on the loss": leak.roc()}, low=min(0.1, 1 / n), axes=axes)
    return Section(
        f"A threshold on the loss tells training from test images with AUC {leak.auc:.3f}. Members "
        f"found:{told or ' too few images to tell.'} Shadow models may find more.",
        "warning" if apart else "ok",
        measures | found,
        figure=figure,
        alt=f"Members found against false alarms on logarithmic axes; the area under it is {leak.auc:.3f}",
    )
