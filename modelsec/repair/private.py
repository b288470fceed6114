"""Training with differential privacy: DP-SGD by Opacus, and what its budget says about attackers.

A training is (epsilon, delta)-private if adding or removing one person's sample changes the
probability of any outcome by a factor of at most ``e**epsilon``, up to delta. DP-SGD reaches this
in three steps: draw a batch by chance, clip each sample's gradient, add Gaussian noise to the sum.

References:
    Abadi et al. (2016), Deep learning with differential privacy, https://arxiv.org/abs/1607.00133.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from modelsec.models import drawing_from
from modelsec.threat import ThreatModel, threat
from modelsec.training import check_labels, progress_bar

__all__ = ["Budget", "most_found", "noise_for", "private_fit", "spent"]


@dataclass(frozen=True)
class Budget:
    """What a private training has spent, and how.

    Attributes:
        epsilon: the budget, by the accountant; infinite without noise.
        delta: the probability with which the promise may fail.
        noise: standard deviation of the noise, in units of ``clip``.
        clip: the largest norm of one sample's gradient.
        rate: probability with which a sample is in a batch.
        steps: steps that were made.
        interrupted: True if training was stopped before its end; epsilon is what was spent then.
    """

    epsilon: float
    delta: float
    noise: float
    clip: float
    rate: float
    steps: int
    interrupted: bool = False


@threat(
    ThreatModel(
        goal="repair", knowledge="white-box", stage="training",
        cost="two backward passes a step, and accuracy", source="https://arxiv.org/abs/1607.00133",
    )
)  # fmt: skip
def private_fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float | None = None,
    noise: float | None = None,
    delta: float = 1e-5,
    clip: float = 1.0,
    epochs: int = 20,
    batch_size: int = 250,
    lr: float = 0.5,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> Budget:
    """Train ``model`` in place on cross-entropy with DP-SGD; Opacus does the work.

    Batches are drawn by chance: each sample is in each batch with the same probability (Poisson
    sampling), so they differ in size and may be empty. The promise is about samples that come or
    go one by one. The number of samples, all settings and the weights before training count as
    known to everybody: choosing them by looking at the data is not covered by epsilon.

    The model must not mix samples. Put GroupNorm in place of BatchNorm.

    Args:
        model: maps (N, ...) to logits (N, K). It comes back without Opacus' hooks, every part in
            the mode it came in. Frozen parameters stay as they are.
        x: (N, ...) inputs, on the model's device.
        y: (N,) integer labels, on the model's device.
        epsilon: the budget to keep to; the noise is chosen for it. Either this or ``noise``.
        noise: standard deviation of the noise, in units of ``clip``; 0 for clipping alone.
        delta: the probability with which the promise may fail; well below 1 / N.
        clip: each sample's gradient is shortened to this norm, over all parameters.
        epochs: N samples in expectation are one epoch.
        batch_size: expected size of a batch; N is divided into a whole number of batches.
        lr: learning rate of plain SGD.
        optimizer: over the model's parameters, in place of plain SGD.
        generator: draws batches, noise and dropout; torch's global generators if None. Whoever
            knows its seed can take the noise away again: it is for experiments. Noise that
            protects anybody has to come from a secure source (Opacus' ``secure_mode``).
        progress: show a bar; None means yes, unless MODELSEC_PROGRESS=0 is set.

    Returns:
        The :class:`Budget`. After Ctrl-C it is what was spent until then; the model keeps its last
        step.

    Raises:
        ValueError: unless exactly one of epsilon and noise is given; for no data, y of another shape
            than (N,), settings out of range, or a model with a layer that mixes samples.
        TypeError: for labels that are no integers.
        FloatingPointError: if the loss becomes NaN or infinite.

    References:
        Abadi et al. (2016), https://arxiv.org/abs/1607.00133, algorithm 1. Yousefpour et al.
        (2021), Opacus, https://arxiv.org/abs/2109.12298.
    """
    _check(x, y, epsilon, noise, delta, clip, epochs, batch_size)
    from opacus import PrivacyEngine  # takes seconds to import
    from opacus.validators.errors import UnsupportedModuleError

    # what the loader deals out are places in x, so that x stays on its device
    places = DataLoader(TensorDataset(torch.arange(len(x), device="cpu")), batch_size=batch_size)
    rate, per_epoch = 1 / len(places), len(places)
    if noise is None:
        assert epsilon is not None
        noise = noise_for(epsilon, rate, epochs * per_epoch, delta=delta)
    trained = [p for p in model.parameters() if p.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    optimizer = torch.optim.SGD(trained, lr=lr) if optimizer is None else optimizer
    done, interrupted = 0, False
    bar = progress_bar(epochs * per_epoch, "private training", progress)
    try:
        model.train()
        with drawing_from(generator), _quiet():
            try:
                hooks, private, criterion, batches = PrivacyEngine().make_private(
                    module=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(),
                    data_loader=places, noise_multiplier=noise, max_grad_norm=clip,
                    grad_sample_mode="ghost", wrap_model=False,
                )  # fmt: skip
            except UnsupportedModuleError as error:
                why = str(error).split(". ")[0]  # the rest is long
                raise ValueError(f"model has a layer that mixes samples: {why}") from None
            try:
                for _ in range(epochs):
                    for (batch,) in batches:
                        batch = batch.to(x.device)
                        private.zero_grad()
                        loss = criterion(model(x[batch]), y[batch])
                        if len(batch) and not math.isfinite(loss.item()):
                            raise FloatingPointError(f"the loss became {loss.item()}")
                        loss.backward()
                        private.step()
                        done += 1
                        bar.update()
            finally:
                hooks.cleanup()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bar.close()
        for p in trained:
            p.grad = None
            if hasattr(p, "summed_grad"):
                del p.summed_grad
        for module, mode in modes:
            module.training = mode
    total = spent(noise, rate, done, delta=delta)
    return Budget(total, delta, noise, clip, rate, done, interrupted)


def spent(
    noise: float, rate: float, steps: int, *, delta: float = 1e-5, accountant: str = "prv"
) -> float:
    """The epsilon of a number of steps of DP-SGD, by Opacus' accountant.

    Args:
        noise: standard deviation of the noise, in units of the clipping norm.
        rate: probability with which a sample is in a batch, up to 1.
        steps: how many.
        delta: the probability with which the promise may fail.
        accountant: "prv" composes the distribution of the loss numerically and gives an upper
            bound within 0.01; "rdp" bounds its moments, which is quicker and looser.

    Returns:
        epsilon; 0 for no step, infinite without noise.

    Raises:
        ValueError: for settings out of range.

    References:
        Gopi et al. (2021), https://arxiv.org/abs/2106.02848 (prv). Mironov et al. (2019),
        https://arxiv.org/abs/1908.10530 (rdp).
    """
    _in_range(noise=noise, rate=rate, steps=steps, delta=delta)
    if accountant not in ("prv", "rdp"):
        raise ValueError(f'accountant must be "prv" or "rdp", got {accountant!r}')
    if not steps or not noise:
        return 0.0 if not steps else math.inf
    from opacus.accountants import create_accountant

    book = create_accountant(accountant)
    book.history = [(noise, rate, steps)]
    with _quiet():
        return float(book.get_epsilon(delta))


@cache
def noise_for(epsilon: float, rate: float, steps: int, *, delta: float = 1e-5) -> float:
    """The least noise, up to a half percent, with which a training keeps to epsilon.

    Args:
        epsilon: the budget, above 0.
        rate: probability with which a sample is in a batch.
        steps: of the training.
        delta: the probability with which the promise may fail.

    Returns:
        Standard deviation of the noise, in units of the clipping norm; 0 for an infinite epsilon.

    Raises:
        ValueError: for settings out of range.
    """
    _in_range(rate=rate, steps=steps, delta=delta)
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    if math.isinf(epsilon) or not steps:
        return 0.0

    def fits(noise: float) -> bool:
        return spent(noise, rate, steps, delta=delta) <= epsilon

    high = 1.0  # Opacus' own search begins with tiny noise, where its accountant is very slow
    while not fits(high):
        high *= 2
        if high > 1e5:
            raise ValueError(f"epsilon {epsilon} is too small for an accountant exact to 0.01")
    low = high / 2
    while fits(low):
        low, high = low / 2, low
    while high - low > 0.004 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def most_found(fpr: Tensor, epsilon: float, delta: float = 0.0) -> Tensor:
    """The share of members that any attack can find at a share of false alarms, at most.

    ``min(e**epsilon fpr + delta, 1 - e**-epsilon (1 - delta - fpr))``: the definition of privacy
    applied to the event "the attack says member", and to its opposite.

    Args:
        fpr: shares of false alarms, any shape, in [0, 1].
        epsilon: the budget; may be infinite.
        delta: the probability with which the promise may fail.

    Returns:
        The largest possible true positive rate, like ``fpr``.

    Raises:
        ValueError: for an fpr or delta outside [0, 1], or a negative epsilon.

    References:
        Kairouz, Oh & Viswanath (2015), https://arxiv.org/abs/1311.0776.
    """
    if not (epsilon >= 0 and 0 <= delta <= 1 and bool(((fpr >= 0) & (fpr <= 1)).all())):
        raise ValueError(
            f"fpr and delta must lie in [0, 1], epsilon must be 0 or more: {fpr=}, {epsilon=}, {delta=}"
        )
    if epsilon > 700:  # e**epsilon overflows; nothing is promised
        return torch.ones_like(fpr)
    few = math.exp(epsilon) * fpr + delta
    many = 1 - math.exp(-epsilon) * (1 - delta - fpr)
    return torch.minimum(few, many).clamp(0, 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of Opacus that say nothing new here: the docstrings do."""
    with warnings.catch_warnings():
        for message in ("Secure RNG turned off", "Full backward hook is firing"):
            warnings.filterwarnings("ignore", message=message)
        # the accountants take log(0) where a probability is 0, and handle the result
        for message in ("divide by zero", "invalid value", "overflow", "Optimal order"):
            warnings.filterwarnings("ignore", message=message)
        yield


def _in_range(
    *, noise: float = 1.0, rate: float = 1.0, steps: int = 1, delta: float = 0.5, clip: float = 1.0
) -> None:
    for name, value, fine, wanted in (
        ("noise", noise, 0 <= noise < math.inf, "a finite number, 0 or more"),
        ("rate", rate, 0 < rate <= 1, "in (0, 1]"),
        ("steps", steps, steps >= 0, "0 or more"),
        ("delta", delta, 0 < delta < 1, "between 0 and 1"),
        ("clip", clip, 0 < clip < math.inf, "a finite number above 0"),
    ):
        if not fine:
            raise ValueError(f"{name} must be {wanted}, got {value}")


def _check(
    x: Tensor, y: Tensor, epsilon: float | None, noise: float | None, delta: float, clip: float,
    epochs: int, batch_size: int,
) -> None:  # fmt: skip
    check_labels(x, y)
    if (epsilon is None) == (noise is None):
        raise ValueError(f"give either epsilon or noise, got {epsilon=} and {noise=}")
    if min(epochs, batch_size) < 1:
        raise ValueError(f"epochs and batch_size must be 1 or more, got {epochs} and {batch_size}")
    _in_range(noise=1.0 if noise is None else noise, delta=delta, clip=clip)
