"""The long results of the chapter on privacy, second half: stolen copies, and images out of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import data, models
from modelsec.attacks.extraction import extract, fidelity
from modelsec.attacks.gradient import pgd
from modelsec.attacks.gradient_inversion import (
    invert_features,
    invert_gradient,
    layer_inputs,
    step_gradient,
)
from modelsec.attacks.transfer import transfer
from modelsec.augmentation import geometric, transform_each
from modelsec.training import evaluate, fit
from modelsec.zoo import load_model
from modelsec.zoo.results import study

__all__ = [
    "ANSWERS",
    "ATTACKED",
    "BATCHES",
    "EPS",
    "NOISES",
    "OWN",
    "QUERIES",
    "STEPS",
    "back",
    "blurred",
    "by_division",
    "by_features",
    "by_search",
    "common_input",
    "copy_row",
    "exact_share",
    "pool",
    "psnr",
    "similarity",
    "stranger",
]

N, EPS, STEPS = 500, 0.1, 600
ATTACKED, OWN = slice(0, N), slice(N, 1000)  # of the test images, as in the chapter on black boxes
QUERIES = (100, 300, 1000, 3000)
POOLS = ("own", "other", "letters", "noise")
ANSWERS: dict[str, dict[str, Any]] = {
    "scores": {},
    "labels": {"labels_only": True},
    "2 decimals": {"decimals": 2},
    "1 decimal": {"decimals": 1},
}
_SEEDS = (0, 1, 2)

digits = cache(data.mnist)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def pool(name: str, count: int = max(QUERIES)) -> Tensor:
    """The images that an attacker has to ask about.

    Args:
        name: "own": 500 digits of the source that the victim learned from, which it never saw;
            "other": 1,797 digits of another source; "letters": 126 drawn letters; "noise": every
            pixel drawn by itself.
        count: how many; where there are fewer, the rest are turned and shifted copies.

    Returns:
        (count, 1, 28, 28).
    """
    if name == "noise":
        return torch.rand(count, 1, 28, 28, generator=_seeded(0))
    given = {
        "own": lambda: digits().x_test[OWN],
        "other": lambda: data.sklearn_digits().x,
        "letters": lambda: data.drawn_letters().x,
    }[name]()
    given = given[torch.randperm(len(given), generator=_seeded(0))]
    more = given.repeat(-(-count // len(given)), 1, 1, 1)[len(given) : count]
    varied = transform_each(geometric(), more, group=4, generator=_seeded(0))
    return torch.cat([given, varied])[:count]


def copy_row(name: str, queries: int, answers: str, seed: int) -> dict[str, Any]:
    """Steal the book's network once, and see what the copy is good for.

    Args:
        name: of the :func:`pool`.
        queries: images asked about; the first of the pool.
        answers: "scores" or "labels", see :data:`ANSWERS`.
        seed: of the copy.

    Returns:
        What was asked, and of 500 test images the share on which copy and victim agree
        ("fidelity"), the copy's "accuracy", the share of the victim's errors that it makes too
        ("errors"), and what the victim gets right "left" under images made on the copy.
    """
    net, x, y = load_model("net"), digits().x_test[ATTACKED], digits().y_test[ATTACKED]
    copy = extract(
        net, pool(name, queries), queries=queries, steps=STEPS, generator=_seeded(seed),
        **ANSWERS[answers],
    )  # fmt: skip
    wrong = ~evaluate(net, x, y).correct
    return {
        "pool": name,
        "queries": queries,
        "answers": answers,
        "seed": seed,
        "fidelity": fidelity(copy, net, x).value,
        "accuracy": evaluate(copy, x, y).value,
        "errors": fidelity(copy, net, x[wrong]).value,
        "left": evaluate(net, transfer(copy, x, y, eps=EPS), y).value,
    }


def stranger(seed: int) -> nn.Module:
    """The surrogate of an attacker who never asks: 500 digits of their own, with their true labels.

    Args:
        seed: of its training.

    Returns:
        A network like the victim, in eval mode, trained for as many steps as a copy.
    """
    generator = _seeded(seed)
    model = models.fresh(models.Net, generator)
    x, y = digits().x_test[OWN], digits().y_test[OWN]
    fit(model, x, y, epochs=STEPS // 8, generator=generator, progress=False)
    return model.eval()


@study(
    "privacy_extraction",
    about="The book's network copied through its answers: four pools of images, 100 to 3,000 "
    "queries, four kinds of answers; fidelity, accuracy, shared errors, transfer.",
    n=N,
    seeds=_SEEDS,
)
def privacy_extraction(seeds: tuple[int, ...]) -> dict[str, Any]:
    """A row per copy; and what is left to the victim by those who never ask or see all."""
    asked = [(p, q, a) for p in POOLS for q in QUERIES for a in ("scores", "labels")]
    asked += [("own", 1000, a) for a in ("2 decimals", "1 decimal")]
    net, x, y = load_model("net"), digits().x_test[ATTACKED], digits().y_test[ATTACKED]
    left: dict[str, list[float]] = {"stranger": [], "same weights": [], "white-box": []}
    for seed in seeds:
        adv = {
            "stranger": transfer(stranger(seed), x, y, eps=EPS),
            "same weights": transfer(net, x, y, eps=EPS),
            "white-box": pgd(net, x, y, eps=EPS, generator=_seeded(seed)),
        }
        for name, images in adv.items():
            left[name].append(evaluate(net, images, y).value)
    own = [evaluate(stranger(seed), x, y).value for seed in seeds]
    return {
        "eps": EPS,
        "clean": evaluate(net, x, y).value,
        "stranger": own,
        "rows": [copy_row(*each, seed) for seed in seeds for each in asked],
        "left": left,
    }


IMAGES, BATCHES, NOISES = 8, (1, 2, 4, 8), (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
MEAN, STD = 0.1307, 0.3081  # of the book's networks' first layer


def psnr(found: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1]: -10 times the log10 of the mean square.

    Args:
        found: (N, ...) images.
        true: (N, ...) what they should be, or something that broadcasts.

    Returns:
        (N,); at most 120.
    """
    error = (found - true).flatten(1).square().mean(1)
    return -10 * error.clamp_min(1e-12).log10()


def similarity(found: Tensor, true: Tensor) -> list[float]:
    """The structural similarity (SSIM) of each pair of grey images, 1 for equal ones.

    Args:
        found: (N, 1, H, W) in [0, 1].
        true: (N, 1, H, W) in [0, 1].

    Returns:
        N numbers.
    """
    from skimage.metrics import structural_similarity  # slow to import

    pairs = zip(found[:, 0].numpy(), true[:, 0].numpy(), strict=True)
    measure: Any = structural_similarity  # comes without types
    return [float(measure(a, b, data_range=1.0)) for a, b in pairs]


def blurred(sent: Sequence[Tensor], noise: float, generator: torch.Generator) -> list[Tensor]:
    """A gradient with normal noise on it.

    Args:
        sent: the gradient's parts.
        noise: the noise's length, as a share of the gradient's own.
        generator: draws it.

    Returns:
        New parts.
    """
    drawn = [torch.randn(part.shape, generator=generator) for part in sent]
    scale = noise * _length(sent) / _length(drawn)
    return [part + scale * extra for part, extra in zip(sent, drawn, strict=True)]


def _length(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.square().sum() for part in parts]).sum().sqrt()


def common_input(weight: Tensor, bias: Tensor) -> Tensor:
    """The one input that all units of a linear layer tell of: the least-squares fit of ``g_i x``.

    Without noise the units agree. With noise this weighs each by its share, and errors average out.

    Args:
        weight: (H, D) the gradient by the layer's weights, ``g_i x`` in row i.
        bias: (H,) that by its biases, g.

    Returns:
        (1, D).
    """
    return (bias @ weight / bias.square().sum().clamp_min(1e-30))[None]


def by_division(sent: Sequence[Tensor]) -> Tensor:
    """The image (1, 1, 28, 28) out of a gradient of the book's fully connected network."""
    return (common_input(sent[0], sent[1]) * STD + MEAN).clamp(0, 1).view(1, 1, 28, 28)


def by_features(model: nn.Module, sent: Sequence[Sequence[Tensor]]) -> Tensor:
    """Images out of a :class:`~modelsec.models.ConvNet`: features by division, then undone.

    Args:
        model: the network.
        sent: a gradient for each image.

    Returns:
        (N, 1, 28, 28) in [0, 1].
    """
    front = nn.Sequential(*list(model.children())[:6])
    return invert_features(front, torch.cat([common_input(g[4], g[5]) for g in sent]))


def by_search(
    model: nn.Module, sent: Sequence[Tensor], x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    """Images whose gradient is the one that was sent, labels known, in the order that fits best.

    Args:
        model: the network.
        sent: the gradient.
        x: (N, 1, 28, 28) the true images, for the order only.
        y: (N,) their labels.
        generator: draws the start.

    Returns:
        (N, 1, 28, 28) in [0, 1].
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    found = invert_gradient(model, sent, y, generator=generator)
    apart = torch.cdist(x.flatten(1), found.flatten(1)).square()
    return found[linear_sum_assignment(apart.numpy())[1]]


def back(how: str, state: str, batch: int, noise: float, seed: int) -> dict[str, Any]:
    """What one training step gives away of 8 digits, in batches.

    Args:
        how: "division", on the fully connected network; "features" or "search", on the
            convolutional one.
        state: "untrained" or "trained".
        batch: images a step; 1 unless ``how`` is "search".
        noise: on the gradient, see :func:`blurred`.
        seed: of the first weights, the digits and the draws.

    Returns:
        The arguments, and for each image its "psnr" and "ssim".
    """
    drawn = _seeded(seed)
    name, build = ("net", models.Net) if how == "division" else ("convnet", models.ConvNet)
    model = load_model(name) if state == "trained" else models.fresh(build, drawn)
    rows = torch.randperm(len(digits().y_train), generator=_seeded(seed))[:IMAGES]
    x, y = digits().x_train[rows], digits().y_train[rows]
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    sent = [blurred(step_gradient(model, *pair), noise, drawn) for pair in batches]
    if how == "search":
        tries = zip(sent, batches, strict=True)
        made = torch.cat([by_search(model, gradient, *pair, drawn) for gradient, pair in tries])
    elif how == "features":
        made = by_features(model, sent)
    else:
        made = torch.cat([by_division(gradient) for gradient in sent])
    row = {"how": how, "state": state, "batch": batch, "noise": noise, "seed": seed}
    return row | {"psnr": psnr(made, x).tolist(), "ssim": similarity(made, x)}


def exact_share(model: nn.Module, batch: int, seed: int, tolerance: float = 0.01) -> float:
    """Which share of a batch stands, as it is, among the rows of the first layer's gradient.

    Args:
        model: the book's fully connected network.
        batch: digits in the step.
        seed: for which.
        tolerance: largest error of a pixel.

    Returns:
        The share.
    """
    rows = torch.randperm(len(digits().y_train), generator=_seeded(seed))[:batch]
    x, y = digits().x_train[rows], digits().y_train[rows]
    sent = step_gradient(model, x, y)
    inputs = layer_inputs(sent[0], sent[1]) * STD + MEAN
    near = (inputs[None] - x.flatten(1)[:, None]).abs().amax(2).amin(1)
    return float((near <= tolerance).float().mean())


@study(
    "privacy_gradients",
    about="Digits read out of one training step: by division, through the features, by search; "
    "untrained and trained, alone and in batches, without and with noise.",
    n=IMAGES * len(_SEEDS),
    seeds=_SEEDS,
)
def privacy_gradients(seeds: tuple[int, ...]) -> dict[str, Any]:
    """A row per way, state, batch, noise and seed; and what the mean digit as a guess would give."""
    ways = [("division", "untrained"), ("division", "trained"), ("features", "trained")]
    asked: list[tuple[str, str, int, float]] = [(*way, 1, n) for way in ways for n in NOISES]
    asked += [("search", "trained", 1, 0.0)]
    asked += [("search", "untrained", batch, 0.0) for batch in BATCHES]
    asked += [("search", "untrained", 1, noise) for noise in (0.1, 1.0)]
    guesses = []
    for seed in seeds:
        rows = torch.randperm(len(digits().y_train), generator=_seeded(seed))[:IMAGES]
        guess = digits().x_train.mean(0, keepdim=True)
        guesses += psnr(guess, digits().x_train[rows]).tolist()
    return {"rows": [back(*each, seed) for seed in seeds for each in asked], "guess": guesses}
