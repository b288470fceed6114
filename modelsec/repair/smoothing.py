"""Randomized smoothing: a guarantee in l2 for any model, with a stated probability.

The smoothed model answers with the class that the base model names most often when Gaussian noise
is added to the input. How far that answer cannot change follows from how often it is named.

The theorem speaks of real numbers. Noise and sums here are floating-point numbers; Voracek & Hein
(2022), https://arxiv.org/abs/2207.07209, show models built to exploit the difference.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modelsec.attacks.common import Model, check_counts, check_inputs
from modelsec.attacks.norms import readable
from modelsec.intervals import Proportion
from modelsec.repair.schedules import Method, augmented
from modelsec.threat import ThreatModel, threat
from modelsec.training import Perturb, inference

__all__ = ["ABSTAIN", "Certificate", "Smoothed", "noise_training", "probability_bound", "smooth"]

ABSTAIN = -1
"""The answer of a smoothed model whose vote was too close to tell."""


def probability_bound(hits: int | Tensor, n: int, alpha: float = 0.001) -> Tensor:
    """Clopper & Pearson's lower bound on a probability: too high with probability alpha at most.

    Args:
        hits: how often the event was seen in n independent trials; one number, or (N,).
        n: the number of trials, at least 1.
        alpha: how often, over repetitions, the bound may lie above the truth.

    Returns:
        float64, the shape of ``hits``.

    Raises:
        ValueError: for counts or an alpha out of range.

    References:
        Clopper & Pearson (1934), https://doi.org/10.1093/biomet/26.4.404.
    """
    check_counts(n=n)
    _check_alpha(alpha)
    seen = hits if isinstance(hits, Tensor) else torch.tensor(hits, device="cpu")
    if not readable(seen):
        return torch.empty_like(seen, dtype=torch.float64)
    if bool((seen < 0).any() | (seen > n).any()):
        raise ValueError(f"hits must be from 0 to n = {n}, got {hits}")
    from scipy.special import betaincinv  # slow to import, so only where it is used

    k = seen.cpu().double().numpy()
    # with no hit the bound is 0, where the beta distribution is not defined
    found = torch.as_tensor(betaincinv(k.clip(1), n - k.clip(1) + 1, alpha), device="cpu")
    wide = torch.float32 if seen.device.type == "mps" else torch.float64  # some have no float64
    return torch.where(seen.cpu() > 0, found, 0.0).to(seen.device, wide)


class Certificate(NamedTuple):
    """What :meth:`Smoothed.certify` proves, image by image.

    Attributes:
        prediction: (N,) the smoothed model's answer; ABSTAIN where the vote was too close.
        radius: (N,) float64, within which (in l2) the answer is proven not to change; 0 where it
            abstained.
        lower: (N,) float64, the lower bound on the winner's probability under noise.
    """

    prediction: Tensor
    radius: Tensor
    lower: Tensor

    def accuracy(self, y: Tensor, radius: float = 0.0) -> Proportion:
        """Certified accuracy: the share with a right answer that is proven beyond ``radius``.

        Args:
            y: (N,) the true labels.
            radius: in l2.

        Returns:
            The share. An abstention counts as wrong.
        """
        stands = (self.prediction == y) & (self.radius > radius)
        return Proportion(int(stands.sum()), len(y))


class Smoothed:
    """The smoothed version of a model. :func:`smooth` makes one.

    It has no exact answer that a computer could give: both methods draw noise, and are wrong with
    probability alpha at most, for each image by itself.

    Attributes:
        model: the base model.
        sigma: the noise's standard deviation, in units of a pixel's range.
    """

    def __init__(self, model: Model, sigma: float) -> None:
        self.model, self.sigma = model, sigma

    def predict(
        self,
        x: Tensor,
        *,
        n: int = 1000,
        alpha: float = 0.001,
        batch_size: int = 1000,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The most frequent class under noise, if it is clear which one that is.

        Args:
            x: (N, ...) images in [0, 1].
            n: noisy copies of each image.
            alpha: the probability, at most, of an answer that is not the smoothed model's.
            batch_size: noisy copies at a time.
            generator: draws the noise; torch's global one if None.

        Returns:
            (N,) int64 classes; ABSTAIN where the two most frequent are too close.

        Raises:
            TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

        References:
            Cohen et al. (2019), https://arxiv.org/abs/1902.02918, PREDICT.
        """
        _check_alpha(alpha)
        counts = self._votes(x, n, batch_size, generator)
        if not readable(x) or not len(x):
            return torch.full((len(x),), ABSTAIN, device=x.device)
        from scipy.stats import binom

        best, second = (row.cpu().numpy() for row in counts.topk(2).values.T)
        # were the two equally frequent, how often would the vote be as one-sided as this?
        tail = 2 * binom.cdf(second, best + second, 0.5)
        clear = torch.as_tensor(tail <= alpha, device=x.device)
        return torch.where(clear, counts.argmax(1), ABSTAIN)

    def certify(
        self,
        x: Tensor,
        *,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        batch_size: int = 1000,
        generator: torch.Generator | None = None,
    ) -> Certificate:
        """The smoothed model's answer, and a radius in l2 within which it does not change.

        A first sample chooses the class, a second one bounds its probability p from below. The
        radius is ``sigma * quantile(p)``, quantile being that of the standard normal distribution.
        One sample for both would choose the class that was lucky, and bound it by its luck.

        Args:
            x: (N, ...) images in [0, 1].
            n0: noisy copies of each image to choose the class.
            n: noisy copies to bound its probability.
            alpha: the probability, at most, that what is said of an image is false.
            batch_size: noisy copies at a time.
            generator: draws the noise; torch's global one if None.

        Returns:
            A :class:`Certificate`.

        Raises:
            TypeError, ValueError: for input of the wrong kind; the message says what is wanted.

        References:
            Cohen et al. (2019), https://arxiv.org/abs/1902.02918, CERTIFY and theorem 1.
        """
        _check_alpha(alpha)
        chosen = self._votes(x, n0, batch_size, generator).argmax(1)
        hits = self._votes(x, n, batch_size, generator).gather(1, chosen[:, None])[:, 0]
        lower = probability_bound(hits, n, alpha)
        radius = self.sigma * torch.special.ndtri(lower)
        clear = lower > 0.5
        return Certificate(
            torch.where(clear, chosen, ABSTAIN), torch.where(clear, radius, 0.0), lower
        )

    def surrogate(
        self, x: Tensor, *, draws: int = 16, generator: torch.Generator | None = None
    ) -> nn.Module:
        """A model with a gradient that stands for the smoothed one: attack it, judge with predict.

        Its answer is the logarithm of the mean of the base model's probabilities over some draws
        of noise. They are drawn once, so that an attack's steps all climb the same function.

        Args:
            x: (N, ...) images like those to be attacked; only their shape is used.
            draws: of noise.
            generator: draws the noise; torch's global one if None.

        Returns:
            A model, for any attack. Its cost is that of ``draws`` passes.

        Raises:
            ValueError: if draws is not a whole number, 1 or more.

        References:
            Salman et al. (2019), https://arxiv.org/abs/1906.04584.
        """
        check_counts(draws=draws)
        return _Surrogate(self.model, self._noise(x[:1], draws, generator))

    def _noise(self, image: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        shape = (n, *image.shape[1:])
        # drawn on the generator's device, where one is given
        home = image.device if generator is None else generator.device
        drawn = torch.randn(shape, generator=generator, device=home, dtype=image.dtype)
        return self.sigma * drawn.to(image.device)

    def _votes(
        self, x: Tensor, n: int, batch_size: int, generator: torch.Generator | None
    ) -> Tensor:
        """How often each class is named for each image: (N, K)."""
        check_counts(n=n, batch_size=batch_size)
        labels = x.new_zeros(x.shape[:1], dtype=torch.long) if isinstance(x, Tensor) else x
        x = check_inputs(self.model, x, labels)[0]
        if not len(x):
            return x.new_zeros((0, 2), dtype=torch.long)
        rows = []
        with inference(self.model), torch.no_grad():
            for image in x.split(1):
                counts: Tensor | int = 0
                for start in range(0, n, batch_size):
                    noise = self._noise(image, min(batch_size, n - start), generator)
                    logits = _checked(self.model(image + noise), len(noise))
                    # comparing spares a one-hot matrix, and works without values too
                    classes = torch.arange(logits.shape[1], device=x.device)
                    counts = counts + (logits.argmax(1, keepdim=True) == classes).sum(0)
                rows.append(counts)
        return torch.stack([row for row in rows if isinstance(row, Tensor)])


class _Surrogate(nn.Module):
    noise: Tensor

    def __init__(self, model: Model, noise: Tensor) -> None:
        super().__init__()
        self.model = model  # a module becomes a part: frozen and in eval mode under attack
        self.register_buffer("noise", noise)

    def forward(self, x: Tensor) -> Tensor:
        draws = len(self.noise)
        many = (x[:, None] + self.noise.to(x.dtype)).flatten(0, 1)
        logits = _checked(self.model(many), len(many))
        said = logits.log_softmax(1).unflatten(0, (len(x), draws))
        mean: Tensor = said.logsumexp(1) - math.log(draws)
        return mean


@threat(
    ThreatModel(
        goal="repair",
        knowledge="white-box",
        norms=("l2",),
        cost="thousands of forward passes an answer",
        source="https://arxiv.org/abs/1902.02918",
    )
)
def smooth(model: Model, sigma: float) -> Smoothed:
    """Make a model answer by vote over noisy copies of its input, which can be certified.

    A base model that was not trained on noise (:func:`noise_training`) votes less surely.

    Args:
        model: maps images (N, ...) to logits (N, K). It is shown noisy images, with pixels outside
            [0, 1]: the theorem wants them unclipped.
        sigma: the noise's standard deviation, in units of a pixel's range. More noise gives larger
            radii and a lower accuracy.

    Returns:
        The :class:`Smoothed` model.

    Raises:
        TypeError: if the model can't be called.
        ValueError: if sigma is not a positive number.

    References:
        Cohen, Rosenfeld & Kolter (2019), https://arxiv.org/abs/1902.02918.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    return Smoothed(model, _check_sigma(sigma))


@threat(
    ThreatModel(
        goal="repair",
        knowledge="white-box",
        norms=("l2",),
        stage="training",
        cost="that of training",
        source="https://arxiv.org/abs/1902.02918",
    )
)
def noise_training(
    sigma: float, *, augment: Perturb | None = None, generator: torch.Generator | None = None
) -> Method:
    """Training on noisy images, for a base model that is to be smoothed.

    Args:
        sigma: the noise's standard deviation, that of the smoothing to come.
        augment: changes the clean images first, such as :func:`modelsec.augmentation.vary`.
        generator: draws the noise; torch's global one if None.

    Returns:
        Keywords of :func:`modelsec.training.fit`.

    Raises:
        ValueError: if sigma is not a positive number.

    References:
        Cohen, Rosenfeld & Kolter (2019), https://arxiv.org/abs/1902.02918.
    """
    smoothed = Smoothed(_nothing, _check_sigma(sigma))

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        x = augmented(augment, model, x, y, progress)
        return x + smoothed._noise(x, len(x), generator)

    return {"perturb": perturb}


def _nothing(x: Tensor) -> Tensor:
    return x


def _check_sigma(sigma: float) -> float:
    if not _is_number(sigma) or not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be a positive number, got {sigma!r}")
    return float(sigma)


def _check_alpha(alpha: float) -> None:
    if not _is_number(alpha) or not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


def _checked(logits: Tensor, n: int) -> Tensor:
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model must return a tensor of logits, got {type(logits).__name__}")
    if logits.dim() != 2 or len(logits) != n or logits.shape[1] < 2:
        raise ValueError(
            f"the model must return logits of shape ({n}, K) with K >= 2, got {tuple(logits.shape)}"
        )
    if readable(logits) and bool(logits.isnan().any()):
        raise ValueError("the model returned NaN logits")
    return logits
