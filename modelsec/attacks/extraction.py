"""Copying a model through its answers: by solving equations where it is linear, else by training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from modelsec import models
from modelsec.attacks import queries as service
from modelsec.attacks.common import Model, check_counts
from modelsec.intervals import Proportion
from modelsec.threat import ThreatModel, threat
from modelsec.training import evaluate, fit

__all__ = ["extract", "extract_linear", "fidelity"]


@threat(
    ThreatModel(
        goal="extraction",
        knowledge="scores",
        cost="queries images, and a training",
        source="https://arxiv.org/abs/1812.02766",
    )
)
def extract(
    model: Model,
    x_pool: Tensor,
    *,
    queries: int,
    labels_only: bool = False,
    decimals: int | None = None,
    build: Callable[[], nn.Module] = models.Net,
    steps: int = 1000,
    batch_size: int = 64,
    lr: float = 1e-3,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Steal a copy: ask about images, train a network of one's own on the answers.

    Each image is asked about once. The copy is trained by Adam on cross-entropy to the answers: to
    the probabilities, or to the labels.

    Args:
        model: the victim, maps images (N, ...) to logits (N, K). It is asked for exactly ``queries``
            images, and nothing else of it is used.
        x_pool: (M, ...) float in [0, 1], the images that the attacker has; labels are not needed.
        queries: how many of them, drawn without replacement, to ask about.
        labels_only: the service answers the label alone, not the probabilities.
        decimals: the service rounds its probabilities to so many decimals; None leaves them exact.
        build: makes the untrained copy; the book's own network if nothing is said.
        steps: training steps, rounded up to whole passes over the answers.
        batch_size: images a step.
        lr: Adam's learning rate.
        generator: draws the images, the first weights and the order; torch's global one if None.

    Returns:
        The copy, in eval mode, on the device of ``x_pool``.

    Raises:
        TypeError: if the model can't be called or the pool is no floating-point tensor.
        ValueError: if there are fewer images than ``queries``, they are not in [0, 1], or a count is
            no whole number of 1 or more, or labels_only and decimals are both asked for.

    References:
        Orekondy, Schiele & Fritz (2019), https://arxiv.org/abs/1812.02766 (scores, random images);
        Correia-Silva et al. (2018), https://arxiv.org/abs/1806.05476 (labels only).
    """
    _check_pool(model, x_pool)
    check_counts(queries=queries, steps=steps, batch_size=batch_size)
    if queries > len(x_pool):
        raise ValueError(f"queries must be at most the {len(x_pool)} images there, got {queries}")
    if labels_only and decimals is not None:
        raise ValueError("decimals rounds scores: with labels_only there are none")
    home = "cpu" if generator is None else generator.device
    chosen = torch.randperm(len(x_pool), generator=generator, device=home)[:queries]
    x = x_pool.detach()[chosen.to(x_pool.device)]
    answers = torch.cat([_ask(model, batch, labels_only, decimals) for batch in x.split(500)])
    copy = models.fresh(build, generator).to(x)
    # the labels that fit is given say which answer belongs to which image
    rows = torch.arange(queries, device=x.device)
    with torch.enable_grad():
        fit(
            copy, x, answers if labels_only else rows,
            epochs=math.ceil(steps * batch_size / (math.ceil(queries / batch_size) * batch_size)),
            batch_size=batch_size, lr=lr, generator=generator, progress=False,
            perturb=None if labels_only else lambda _, batch, row, __: (batch, answers[row]),
        )  # fmt: skip
    return copy.eval()


@threat(
    ThreatModel(
        goal="extraction",
        knowledge="scores",
        cost="one image more than there are pixels",
        source="https://arxiv.org/abs/1609.02943",
    )
)
def extract_linear(model: Model, x: Tensor) -> nn.Module:
    """Solve a linear model, logistic regression, for its weights: its scores are equations.

    ``log p_k - log p_0 = (w_k - w_0) x + (b_k - b_0)`` is linear in the unknown differences, and
    they are all that the scores depend on. D + 1 images in general position determine D pixels'
    weights. With fewer, or where pixels never vary, the shortest solution is taken: right on images
    of that kind.

    Args:
        model: the victim, maps images (N, ...) to logits (N, K); its softmax is all that is asked.
        x: (M, ...) float in [0, 1], the images to ask about, such as noise.

    Returns:
        A flattening and one linear layer in float64, logits of class 0 always 0.

    Raises:
        TypeError: if the model can't be called or the images are no floating-point tensor.
        ValueError: if there is no image, they are not in [0, 1], or a probability is 0, as rounding
            makes it, of which there is no logarithm.

    References:
        Tramèr et al. (2016), https://arxiv.org/abs/1609.02943: attacks that solve equations.
    """
    _check_pool(model, x)
    p = torch.cat([service.scores_only(model)(batch) for batch in x.detach().split(500)]).double()
    if bool((p <= 0).any()):
        raise ValueError(
            "a probability of 0 has no logarithm: ask for more decimals, or about images that the "
            "model is less sure of"
        )
    odds = p.log() - p[:, :1].log()
    flat = x.detach().flatten(1).double()
    known = torch.cat([flat, torch.ones_like(flat[:, :1])], 1)
    # the pseudo-inverse, since pixels that never vary make the equations singular
    found = (torch.linalg.pinv(known) @ odds).T
    layer = nn.Linear(flat.shape[1], p.shape[1], dtype=torch.float64, device=x.device)
    with torch.no_grad():
        layer.weight.copy_(found[:, :-1])
        layer.bias.copy_(found[:, -1])
    return nn.Sequential(nn.Flatten(), _Double(), layer).eval()


def fidelity(copy: Model, model: Model, x: Tensor) -> Proportion:
    """How often a copy answers as the model does, right or wrong.

    Args:
        copy: maps images (N, ...) to logits (N, K).
        model: so does the original.
        x: (N, ...) images to ask both about, at least one.

    Returns:
        The share of equal answers, with its interval.

    Raises:
        ValueError: if there is no image.

    References:
        Jagielski et al. (2020), https://arxiv.org/abs/1909.01838, which tells it from accuracy.
    """
    if not len(x):
        raise ValueError("fidelity needs at least one image")
    answers = torch.cat([service.labels_only(model)(batch) for batch in x.split(500)])
    return evaluate(copy, x, answers)


class _Double(nn.Module):
    """To float64, so that a copy solved in it takes images of any precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def _ask(model: Model, x: Tensor, labels_only: bool, decimals: int | None) -> Tensor:
    if labels_only:
        return service.labels_only(model)(x)
    return service.scores_only(model, decimals=decimals)(x)


def _check_pool(model: Model, x: Tensor) -> None:
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"images must be a floating-point tensor in [0, 1], got {kind}")
    if x.dim() < 2 or not len(x) or not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"images must be (M, ...), at least one, in [0, 1], got shape {tuple(x.shape)}"
        )
