"""Graders for the chapter on tools. They know the libraries by what they do: none is imported."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from modelsec.check.grading import grader, require
from modelsec.check.loss import number
from modelsec.models import Net, fresh
from modelsec.training import inference

__all__ = ["any_library_bim", "art_wrapping", "eps_in_pixels", "flatten_order", "paired_p_value"]


@grader("A radius is told with its unit, or it tells nothing.")
def eps_in_pixels(answer: Any) -> None:
    """Grade a number: what 0.1 on images divided by 0.3081 is, as a share of a pixel's range."""
    answer = number(answer)
    for wrong, why in (
        (0.1, "That is the radius on the normalised images. One unit there is how much of a pixel?"),
        (0.1 / 0.3081, "Turned round: normalising divides by 0.3081, so going back multiplies."),
        (0.1 * 0.3081 - 0.1307, "The mean shifts an image and its attacked copy alike, so it plays no part."),
        (0.1 * 0.3081 + 0.1307, "The mean shifts an image and its attacked copy alike, so it plays no part."),
        (0.1 * 0.1307, "The mean shifts, the standard deviation scales. Which of the two changes a distance?"),
        (0.1 * 0.3081 * 255, "That is in grey levels from 0 to 255. Here a pixel's range is 1."),
    ):  # fmt: skip
        require(not abs(answer - wrong) <= 5e-4 * max(1, abs(wrong)), why)
    require(
        abs(answer - 0.1 * 0.3081) <= 3e-4,
        f"{answer:.4g} is not it. If x' = (x - m) / s changes by 0.1, by how much does x change?",
    )


@grader("With this and a transposed kernel a convolutional network moves house, too.")
def flatten_order(solution: Any) -> None:
    """Grade ``f(weight (O, C*H*W), channels, height, width) -> kernel (H*W*C, O)``."""
    rng = np.random.default_rng(4)
    for channels, height, width in ((3, 2, 4), (1, 3, 5), (5, 3, 3)):
        size = channels * height * width
        weight = rng.standard_normal((6, size)).astype(np.float32)
        kept = weight.copy()
        got = np.asarray(solution(weight, channels, height, width))
        require(np.array_equal(weight, kept), "The weights handed in were changed: copy them.")
        require(
            got.shape == (size, 6),
            f"Return shape ({size}, 6), a row for each input, not {got.shape}: Keras computes x @ kernel.",
        )
        image = rng.standard_normal((channels, height, width)).astype(np.float32)
        wanted = weight @ image.ravel()
        if np.allclose(np.moveaxis(image, 0, -1).ravel() @ got, wanted, atol=1e-3):
            continue
        require(
            not np.allclose(image.ravel() @ got, wanted, atol=1e-3),
            f"With {channels} channels the rows still stand in torch's order, channel by channel. Keras "
            "flattens pixel by pixel, the channels of a pixel side by side.",
        )
        turned = np.transpose(image, (2, 1, 0)).ravel() @ got
        require(
            not np.allclose(turned, wanted, atol=1e-3),
            "Height and width have changed places: in Keras the last index of a pixel is its column.",
        )
        require(
            False,
            f"For an image of shape {image.shape} the layer's answer differs from torch's. Which row "
            "belongs to channel c of pixel (h, w)?",
        )


@grader("One attack for every library: it asks for nothing but a gradient.")
def any_library_bim(solution: Any) -> None:
    """Grade ``f(gradient, x, y, eps, step_size, steps) -> images``, all of them NumPy arrays."""
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((4, 12)).astype(np.float32)
    x = rng.random((5, 2, 2, 3), dtype=np.float32)
    x[0], x[1] = 0.01, 0.99  # the box is near
    y = np.array([0, 1, 2, 3, 0])
    asked: list[np.ndarray[Any, Any]] = []
    labels: list[np.ndarray[Any, Any]] = []

    def gradient(images: Any, true: Any) -> Any:
        images = np.asarray(images)
        asked.append(images.copy())
        labels.append(np.asarray(true).copy())
        return _slope(weights, images, np.asarray(true))

    eps, step_size, steps = 0.1, 0.04, 7
    kept = x.copy()
    got = np.asarray(solution(gradient, x, y, eps, step_size, steps))
    require(np.array_equal(x, kept), "x was changed in place: begin with a copy.")
    require(got.shape == x.shape, f"Return images of shape {x.shape}, not {got.shape}.")
    require(bool(np.isfinite(got).all()), "Some pixels are NaN or infinite.")
    require(bool(asked), "Your attack never called gradient(x, y).")
    require(
        all(np.array_equal(true, y) for true in labels),
        "Hand the labels y to gradient as they are.",
    )
    most = float(np.abs(got - x).max())
    require(
        most <= eps + 1e-5, f"A pixel moved by {most:.3f}; eps is {eps}. Clip to x - eps, x + eps."
    )
    require(
        bool((got >= 0).all() and (got <= 1).all()),
        "Some pixels are outside [0, 1]: clip to the box.",
    )
    require(
        len(asked) == steps, f"gradient was called {len(asked)} times; {steps} steps need {steps}."
    )
    require(
        np.array_equal(asked[0], x),
        "The first gradient is taken at x itself: BIM has no random start.",
    )
    wanted = _bim(weights, x, y, eps, step_size, steps)
    down = _bim(weights, x, y, eps, -step_size, steps)
    require(
        not np.allclose(got, down, atol=1e-4),
        "Your attack makes the loss smaller: step along the gradient.",
    )
    require(
        np.allclose(got, wanted, atol=1e-4),
        f"After {steps} steps a pixel is {np.abs(got - wanted).max():.3f} from where it should be. Each step "
        "is step_size * sign(gradient), from the last point, clipped to the ball and to the box.",
    )
    require(
        got.dtype == np.float32,
        f"x is float32, your images are {got.dtype}: a model in float32 would not take them.",
    )


@grader(
    "Same logits, same gradient, same box: now a number from ART can stand beside one from here."
)
def art_wrapping(solution: Any) -> None:
    """Grade ``f(model) -> estimator``, such as ART's PyTorchClassifier, for a network of this book."""
    model = fresh(lambda: Net((784, 16, 10)), torch.Generator().manual_seed(3))
    before = [value.clone() for value in model.state_dict().values()]
    generator = torch.Generator().manual_seed(8)
    x = torch.rand(6, 1, 28, 28, generator=generator)
    y = torch.randint(10, (6,), generator=generator)
    wrapped = solution(model)
    for name in ("predict", "loss_gradient", "clip_values", "nb_classes", "input_shape"):
        require(
            hasattr(wrapped, name),
            f"What you return has no {name!r}. Return the PyTorchClassifier itself.",
        )
    require(wrapped.nb_classes == 10, f"nb_classes is {wrapped.nb_classes}; there are 10 digits.")
    require(
        tuple(wrapped.input_shape) == (1, 28, 28),
        f"input_shape is {tuple(wrapped.input_shape)}; one image is (1, 28, 28), channels first.",
    )
    answers = np.asarray(wrapped.predict(x.numpy()))
    with inference(model), torch.no_grad():
        logits = model(x)
    require(
        not np.allclose(answers, logits.softmax(1).numpy(), atol=1e-4),
        "predict returns probabilities. CrossEntropyLoss wants logits, and takes the softmax itself.",
    )
    require(
        np.allclose(answers, logits.numpy(), atol=1e-3),
        "predict does not return the model's logits. Is something done to the images before? The model "
        "normalises them itself.",
    )
    one_hot = F.one_hot(y, 10).float().numpy()  # as ART's attacks hand labels over
    _is_gradient(np.asarray(wrapped.loss_gradient(x.numpy(), one_hot)), model, x, y)
    clip = wrapped.clip_values
    require(clip is not None, "clip_values is None, so the attack may leave the box: say (0, 1).")
    low, high = (float(np.ravel(end)[0]) for end in clip)
    require(
        (low, high) == (0, 1),
        f"clip_values is ({low:g}, {high:g}); the model's pixels are in [0, 1].",
    )
    after = model.state_dict().values()
    require(all(map(torch.equal, before, after)), "The model's weights were changed.")


def _is_gradient(got: Any, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    point = x.clone().requires_grad_()
    with inference(model):
        (slope,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
    signs = float((np.sign(got) == slope.sign().numpy()).mean())
    require(
        signs >= 0.99,
        f"On {1 - signs:.0%} of the pixels loss_gradient has another sign than the gradient of the "
        "cross-entropy. Which loss did you hand over?",
    )


@grader("Only the images on which the two disagree tell them apart.")
def paired_p_value(solution: Any) -> None:
    """Grade ``f(right_a (n,), right_b (n,)) -> p``: an exact two-sided test on the same images."""
    for only_a, only_b, both, none in (
        (8, 1, 300, 91),
        (3, 0, 500, 97),
        (6, 6, 10, 4),
        (1, 14, 700, 85),
    ):
        a = np.repeat([True, False, True, False], [only_a, only_b, both, none])
        b = np.repeat([False, True, True, False], [only_a, only_b, both, none])
        order = np.random.default_rng(1).permutation(len(a))
        got = number(solution(a[order], b[order]))
        differ, fewer = only_a + only_b, min(only_a, only_b)
        tail = sum(math.comb(differ, k) for k in range(fewer + 1)) / 2**differ
        wanted = min(1.0, 2 * tail)
        case = f"A alone is right on {only_a} images, B alone on {only_b}"
        require(0 <= got <= 1 + 1e-9, f"A p-value lies between 0 and 1; yours is {got:.4g}.")
        require(
            wanted == 1 or not abs(got - tail) <= 1e-6,
            f"{case}: {tail:.4g} is the probability of one side. Nobody said beforehand which of the two "
            "is better, so both sides count.",
        )
        require(
            not abs(got - _unpaired(a, b)) <= 1e-3 or abs(got - wanted) <= 1e-3,
            f"{case}. You compare two shares as if they came from different images; these are the same ones.",
        )
        require(
            abs(got - wanted) <= 1e-6,
            f"{case}: p is {wanted:.4g}, yours {got:.4g}. If the two are equally good, each image on which "
            "they disagree is a fair coin.",
        )


def _unpaired(a: Any, b: Any) -> float:
    """The two-sided z-test for two independent shares."""
    share = (a.mean() + b.mean()) / 2
    z = abs(a.mean() - b.mean()) / math.sqrt(2 * share * (1 - share) / len(a))
    return math.erfc(z / math.sqrt(2))


def _slope(weights: Any, x: Any, y: Any) -> Any:
    """The gradient of the cross-entropy of softmax(weights @ x), summed over the images."""
    logits = x.reshape(len(x), -1) @ weights.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return (p @ weights).reshape(x.shape).astype(np.float32)


def _bim(weights: Any, x: Any, y: Any, eps: float, step_size: float, steps: int) -> Any:
    adv = x
    for _ in range(steps):
        adv = adv + np.float32(step_size) * np.sign(_slope(weights, adv, y))
        adv = np.clip(np.clip(adv, x - eps, x + eps), 0, 1)
    return adv
