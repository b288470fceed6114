"""Graders of the chapter on tools: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest, norm
from torch import nn


def rows_by_transpose(weight, channels, height, width):
    cube = weight.reshape(-1, channels, height, width)
    return cube.transpose(0, 2, 3, 1).reshape(len(weight), -1).T


def rows_by_index(weight, channels, height, width):
    order = [
        (c * height + h) * width + w
        for h in range(height)
        for w in range(width)
        for c in range(channels)
    ]
    return weight[:, order].T


def rows_in_torch(weight, channels, height, width):
    cube = torch.from_numpy(weight).view(-1, channels, height, width)
    return cube.permute(2, 3, 1, 0).reshape(-1, len(weight))


def turned(weight, channels, height, width):
    cube = weight.reshape(-1, channels, height, width)
    return cube.transpose(0, 3, 2, 1).reshape(len(weight), -1).T


def in_place(weight, channels, height, width):
    weight *= 2
    return rows_by_transpose(weight / 2, channels, height, width)


def scrambled(weight, channels, height, width):
    return rows_by_transpose(weight, channels, height, width)[::-1]


def bim_in_numpy(gradient, x, y, eps, step_size, steps):
    adv = x.copy()
    for _ in range(steps):
        adv = adv + step_size * np.sign(gradient(adv, y))
        adv = np.clip(np.clip(adv, x - eps, x + eps), 0, 1)
    return adv


def bim_by_delta(gradient, x, y, eps, step_size, steps):
    delta = np.zeros_like(x)
    for _ in range(steps):
        delta += step_size * np.sign(gradient(x + delta, y)).astype(x.dtype)
        delta = np.clip(delta, np.maximum(-eps, -x), np.minimum(eps, 1 - x))
    return x + delta


def bim_in_torch(gradient, x, y, eps, step_size, steps):
    low, high = (torch.from_numpy(np.clip(x + end, 0, 1)) for end in (-eps, eps))
    adv = torch.from_numpy(x.copy())
    for _ in range(steps):
        sign = torch.from_numpy(np.sign(gradient(adv.numpy(), y)))
        adv = torch.minimum(torch.maximum(adv + step_size * sign, low), high)
    return adv.float().numpy()


def bim_with(**other):
    """BIM with one thing done in another way."""

    def attack(gradient, x, y, eps, step_size, steps):
        if other.get("in_place"):
            x -= 0.01
        adv = np.clip(x + other.get("start", 0), 0, 1)
        for _ in range(steps + other.get("more", 0)):
            slope = gradient(adv, y if other.get("true", True) else (y + 1) % 4)
            way = np.sign(slope) if other.get("sign", True) else slope
            base = adv if other.get("goes_on", True) else x
            adv = base + other.get("factor", 1) * step_size * way
            if other.get("ball", True):
                adv = np.clip(adv, x - eps, x + eps)
            if other.get("box", True):
                adv = np.clip(adv, 0, 1)
        return adv.astype(other.get("dtype", np.float32))

    return attack


class Wrapped:
    """What a grader sees of ART's classifier, for a wrapping that is right or wrong."""

    def __init__(
        self, model, *, clip_values=(0, 1), nb_classes=10, input_shape=(1, 28, 28), loss=None
    ):
        self.model, self.clip_values = model, clip_values
        self.nb_classes, self.input_shape = nb_classes, input_shape
        self.loss = loss or F.cross_entropy

    def predict(self, x):
        return self.model(torch.from_numpy(x)).detach().numpy()

    def loss_gradient(self, x, y):
        point = torch.from_numpy(x).requires_grad_()
        loss = self.loss(self.model(point), torch.from_numpy(y))
        return torch.autograd.grad(loss, point)[0].numpy()


def by_art(model):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=(1, 28, 28), nb_classes=10,
        clip_values=(0, 1), device_type="cpu",
    )  # fmt: skip


def by_art_with_arrays(model):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(reduction="sum"), [1, 28, 28], 10,
        clip_values=(np.zeros((1, 28, 28)), np.ones((1, 28, 28))), device_type="cpu",
    )  # fmt: skip


def art_twice_normalised(model):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1),
        preprocessing=(0.1307, 0.3081), device_type="cpu",
    )  # fmt: skip


def trains_it(model):
    with torch.no_grad():
        model[-1].bias.add_(1e-5)
    return Wrapped(model)


def p_by_scipy(a, b):
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return binomtest(only_a, only_a + only_b).pvalue


def p_one_side(a, b):
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return binomtest(max(only_a, only_b), only_a + only_b, alternative="greater").pvalue


def p_by_enumeration(a, b):
    differ = np.flatnonzero(a != b)
    seen = abs(int(a[differ].sum()) - len(differ) / 2)
    row = [1.0]
    for _ in differ:
        row = [(left + right) / 2 for left, right in zip([0.0, *row], [*row, 0.0], strict=True)]
    return sum(p for k, p in enumerate(row) if abs(k - len(differ) / 2) >= seen)


def p_unpaired(a, b):
    share = (a.mean() + b.mean()) / 2
    z = (a.mean() - b.mean()) / np.sqrt(2 * share * (1 - share) / len(a))
    return 2 * norm.sf(abs(z))


RIGHT: dict[str, list[Any]] = {
    "eps_in_pixels": [0.03081, 0.0308, 0.031, torch.tensor(0.1 * 0.3081)],
    "flatten_order": [rows_by_transpose, rows_by_index, rows_in_torch],
    "any_library_bim": [bim_in_numpy, bim_by_delta, bim_in_torch, bim_with()],
    "art_wrapping": [by_art, by_art_with_arrays, Wrapped],
    "paired_p_value": [p_by_scipy, p_by_enumeration, lambda a, b: float(p_by_scipy(a, b))],
}

# grader -> (a wrong answer, words of the sentence it gets)
WRONG: dict[str, list[tuple[Any, str]]] = {
    "eps_in_pixels": [
        (0.1, "on the normalised images"),
        (0.3246, "Turned round"),
        (0.1 * 0.3081 - 0.1307, "The mean shifts"),
        (0.01307, "Which of the two"),
        (7.857, "grey levels"),
        (0.05, "by how much does x change"),
        ("0.03", "type str"),
    ],
    "flatten_order": [
        (lambda w, c, h, k: w.T, "torch's order"),
        (lambda w, c, h, k: rows_by_transpose(w, c, h, k).T, "a row for each input"),
        (turned, "changed places"),
        (scrambled, "Which row"),
        (in_place, "were changed"),
    ],
    "any_library_bim": [
        (bim_with(ball=False), "Clip to x - eps"),
        (bim_with(box=False), "clip to the box"),
        (bim_with(factor=-1), "makes the loss smaller"),
        (bim_with(sign=False), "step_size * sign(gradient)"),
        (bim_with(goes_on=False), "step_size * sign(gradient)"),
        (bim_with(start=0.02), "no random start"),
        (bim_with(more=1), "was called 8 times"),
        (bim_with(true=False), "Hand the labels y"),
        (bim_with(in_place=True), "changed in place"),
        (bim_with(dtype=np.float64), "are float64"),
        (lambda g, x, y, eps, step, n: x.copy(), "never called gradient"),
        (lambda g, x, y, eps, step, n: bim_in_numpy(g, x, y, eps, step, n)[0], "Return images of shape"),
    ],
    "art_wrapping": [
        (lambda m: Wrapped(nn.Sequential(m, nn.Softmax(1))), "predict returns probabilities"),
        (lambda m: Wrapped(m, clip_values=None), "clip_values is None"),
        (lambda m: Wrapped(m, clip_values=(0, 255)), "(0, 255)"),
        (lambda m: Wrapped(m, nb_classes=1), "there are 10 digits"),
        (lambda m: Wrapped(m, input_shape=(28, 28, 1)), "channels first"),
        (lambda m: Wrapped(m, loss=lambda z, y: -F.cross_entropy(z, y)), "Which loss"),
        (lambda m: Wrapped(m, loss=lambda z, y: F.multi_margin_loss(z, y.argmax(1))), "Which loss"),
        (art_twice_normalised, "normalises them itself"),
        (lambda m: m, "no 'predict'"),
        (trains_it, "weights were changed"),
    ],
    "paired_p_value": [
        (p_one_side, "both sides count"),
        (p_unpaired, "these are the same ones"),
        (lambda a, b: 1 - p_by_scipy(a, b), "is a fair coin"),
        (lambda a, b: 2.0, "between 0 and 1"),
        (lambda a, b: abs(a.mean() - b.mean()), "is a fair coin"),
        (lambda a, b: a, "Give one number"),
    ],
}  # fmt: skip

VALUES = {"eps_in_pixels"}
