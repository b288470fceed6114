"""The studies behind the chapter on repairing privacy: epsilon, cheap controls.

All networks are the book's 784-128-64-10, trained on 500 of 1,000 digits. 50 of the 1,000 have a
wrong label: the strays. Each network is the target once, attacked with the help of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec import data, models
from modelsec.attacks.membership import Leak, Shadows, by_loss, lira, shadows, trials
from modelsec.repair import private_fit
from modelsec.training import evaluate, fit
from modelsec.zoo.results import study

__all__ = [
    "DELTA",
    "EPSILONS",
    "TRAININGS",
    "VIEWS",
    "digits",
    "measure",
    "private",
    "records",
    "standard",
    "told",
]

RECORDS, STRAYS, COUNT = 1000, 50, 16
EPSILONS, DELTA = (8.0, 3.0, 1.0), 1e-5
SIZES = (500, 1000, 4000)
digits = cache(data.mnist)
Train = Callable[[Tensor, Tensor, torch.Generator], nn.Module]


@cache
def records(n: int = RECORDS, strays: int = STRAYS) -> tuple[Tensor, Tensor, Tensor]:
    """The records that are in question: training images, some of them with a wrong label.

    Args:
        n: how many, the first of the training set.
        strays: how many get another label than their own, drawn with a fixed seed.

    Returns:
        x (n, 1, 28, 28), labels (n,), and which ones are strays (n,) bool.
    """
    x, y = digits().x_train[:n], digits().y_train[:n].clone()
    # a seed that nothing else draws with: the same one would put the strays in the same half
    generator = torch.Generator().manual_seed(2026)
    chosen = torch.randperm(n, generator=generator)[:strays]
    y[chosen] = (y[chosen] + torch.randint(1, 10, (strays,), generator=generator)) % 10
    stray = torch.zeros(n, dtype=torch.bool)
    stray[chosen] = True
    return x, y, stray


def standard(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    epochs: int = 30,
    decay: float = 0.0,
    dropout: float = 0.0,
    smoothing: float = 0.0,
) -> nn.Module:
    """The book's network and optimizer, on few images for long: it knows them by heart.

    Args:
        x: (N, 1, 28, 28) images.
        y: (N,) labels.
        generator: draws weights, order and dropout.
        epochs: passes over the data.
        decay: weight decay, AdamW's.
        dropout: share of the hidden units that are switched off in a step.
        smoothing: share of the label that is spread over all classes.

    Returns:
        The network in eval mode.
    """
    model = models.fresh(models.Net, generator)
    if dropout:
        model = nn.Sequential(
            *(
                part
                for layer in model.children()
                for part in (
                    (layer, nn.Dropout(dropout)) if isinstance(layer, nn.ReLU) else (layer,)
                )
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
    with models.drawing_from(generator):
        fit(
            model, x, y, epochs=epochs, optimizer=optimizer, generator=generator, progress=False,
            loss=partial(F.cross_entropy, reduction="none", label_smoothing=smoothing),
        )  # fmt: skip
    return model.eval()


def private(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    epsilon: float,
    sizes: Sequence[int] = (784, 128, 64, 10),
) -> nn.Module:
    """DP-SGD. Up to 1,000 images are in each of 40 steps; of more, a batch of 1,000 in each of 80.

    The steps are smaller where the noise is large: the learning rate is 1, or epsilon / 3 below 3.

    Args:
        x: (N, 1, 28, 28) images.
        y: (N,) labels.
        generator: draws weights, batches and noise.
        epsilon: the budget at delta 1e-5; infinite for clipping alone.
        sizes: of the layers.

    Returns:
        The network in eval mode.
    """
    model = models.fresh(lambda: models.Net(sizes), generator)
    few = len(x) <= 1000
    private_fit(
        model, x, y, epsilon=epsilon, delta=DELTA, clip=1.0, epochs=40 if few else 80000 // len(x),
        batch_size=len(x) if few else 1000, lr=min(1.0, epsilon / 3), generator=generator,
        progress=False,
    )  # fmt: skip
    return model.eval()


TRAININGS: dict[str, Train] = {
    "standard": standard,
    "early stopping": partial(standard, epochs=5),
    "weight decay": partial(standard, decay=10.0),
    "dropout": partial(standard, dropout=0.5),
    "label smoothing": partial(standard, smoothing=0.3),
    "clipping alone": partial(private, epsilon=float("inf")),
    **{f"epsilon {epsilon:g}": partial(private, epsilon=epsilon) for epsilon in EPSILONS},
    "epsilon 3, one layer": partial(private, epsilon=3.0, sizes=(784, 10)),
}


def label_alone(logits: Tensor) -> Tensor:
    """What is left if a model tells its class and nothing else: logits (..., K), 5 or 0."""
    return 5.0 * F.one_hot(logits.argmax(-1), logits.shape[-1])


def one_digit(logits: Tensor) -> Tensor:
    """Probabilities rounded to 0.1, as logits; what is rounded to 0 counts as 0.01."""
    return ((10 * logits.float().softmax(-1)).round() / 10).clamp(0.01, 0.99).log()


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "standard, one digit": one_digit,
    "standard, label alone": label_alone,
}


def told(leaks: Sequence[Leak]) -> dict[str, Any]:
    """What the attacks on several targets found.

    Args:
        leaks: one for each target.

    Returns:
        "auc", a number for each target; over all targets together: "pooled auc", "members" and
        "others", how many answers were judged, "found": share of false alarms -> members found,
        and "roc": pairs of shares (fpr, tpr), at fpr from 0.001 to 1.
    """
    together = Leak(torch.cat([a.scores for a in leaks]), torch.cat([a.member for a in leaks]))
    fpr, tpr = together.roc()
    grid = torch.logspace(-3, 0, 31, dtype=torch.double)
    at = [int((fpr <= f + 1e-12).sum()) - 1 for f in grid]
    shares = {f"{f:g}": together.tpr_at(f) for f in (0.01, 0.05)}
    return {
        "auc": [round(leak.auc, 4) for leak in leaks],
        "pooled auc": round(together.auc, 4),
        "members": shares["0.01"].n,
        "others": len(together.member) - shares["0.01"].n,
        "found": {f: share.hits for f, share in shares.items()},
        "roc": [[round(float(fpr[k]), 5), round(float(tpr[k]), 5)] for k in at],
    }


def part(leaks: Sequence[Leak], rows: Tensor) -> list[Leak]:
    """The same attacks, on some of the records."""
    return [Leak(leak.scores[rows], leak.member[rows]) for leak in leaks]


def measure(
    train: Train, generator: torch.Generator, count: int = COUNT
) -> tuple[Shadows, list[float]]:
    """Networks of one training, on random halves of the records.

    Args:
        train: one of ``TRAININGS``.
        generator: draws the halves and seeds.
        count: how many networks, an even number.

    Returns:
        Their answers to all records, and their accuracies on the 1,000 test images.
    """
    right: list[float] = []

    def counted(x: Tensor, y: Tensor, drawn: torch.Generator) -> nn.Module:
        model = train(x, y, drawn)
        right.append(evaluate(model, digits().x_test, digits().y_test).value)
        return model

    x, y, _ = records()
    return shadows(counted, x, y, count=count, generator=generator), right


def judged(answers: Shadows) -> dict[str, Any]:
    """LiRA, with shadows on both sides, on all records and on the strays; and the loss threshold."""
    x, y, stray = records()
    leaks = trials(partial(lira, online=True), answers, x, y)
    by_threshold = trials(lambda logits, _, x, y: by_loss(logits, x, y), answers, x, y)
    return {
        "all": told(leaks),
        "strays": told(part(leaks, stray)),
        "others": told(part(leaks, ~stray)),
        "loss threshold": told(by_threshold),
    }


@study(
    "privacy_curve",
    about="accuracy and LiRA under DP-SGD at three epsilons and under cheap controls",
    n=1000,
    seeds=(0,),
)
def curve(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Every training, and every view on the standard one's answers.

    Returns:
        "rows": training or view -> {"epsilon": number or None, "accuracy": one for each of the 16
        networks, "all", "strays", "others", "loss threshold": what :func:`told` says}, where "all"
        is over the 1,000 records, each target's 500 members among them. "sizes": training ->
        number of training images, as a string -> accuracy for each of 3 seeds, true labels.
    """
    rows: dict[str, Any] = {}
    for name, train in TRAININGS.items():
        answers, right = measure(train, torch.Generator().manual_seed(seeds[0]))
        epsilon = float(name.split()[1].strip(",")) if name.startswith("epsilon") else None
        rows[name] = {"epsilon": epsilon, "accuracy": right} | judged(answers)
        if name == "standard":
            for view, change in VIEWS.items():
                seen = Shadows(change(answers.logits).half(), answers.inside)
                rows[view] = {"epsilon": None, "accuracy": right} | judged(seen)
    return {"rows": rows, "sizes": _sizes()}


def _sizes() -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for name in ("standard", *(f"epsilon {epsilon:g}" for epsilon in EPSILONS)):
        found[name] = {}
        for n in SIZES:
            train = TRAININGS[name]
            if name == "standard" and n > 1000:
                train = partial(standard, epochs=10)
            made = [
                train(digits().x_train[:n], digits().y_train[:n], torch.Generator().manual_seed(s))
                for s in range(3)
            ]
            found[name][str(n)] = [
                evaluate(model, digits().x_test, digits().y_test).value for model in made
            ]
    return found
