"""Unlearning: a trained model forgets some of its training samples, exactly or nearly.

The yardstick is the model that never saw them. :class:`Sharded` reaches it bit by bit, since it
trains a part of itself again. :func:`newton_forget` comes close to it, for a last layer that was
trained to its optimum. :func:`ascend` does not, however it may look.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.threat import ThreatModel, threat
from modelsec.training import features, inference

__all__ = ["Sharded", "ascend", "fit_head", "newton_forget"]

Model = Callable[[Tensor], Tensor]
Train = Callable[[Tensor, Tensor, torch.Generator], Model]
"""(x, y, generator) -> a model trained on them, that draws from the generator alone."""


@threat(
    ThreatModel(
        goal="repair", knowledge="data", stage="training",
        cost="a forgotten sample: one shard is trained again",
        source="https://arxiv.org/abs/1912.03817",
    )
)  # fmt: skip
class Sharded:
    """Exact unlearning by sharding (SISA): several models, each trained on its own shard.

    To forget a sample, the one model that saw it is trained again without it. The result is the
    one that would have been trained had the sample never been there, bit by bit: each sample draws
    its shard by itself, and each shard's training draws from a seed of its own, so nothing that is
    left depends on what was forgotten. The paper also slices each shard and keeps a checkpoint for
    each slice, so that less of it is trained again; that is left out.

    Args:
        train: called with (x, y, generator) for each shard; returns a model that gives logits.
        shards: how many; 1 is an ordinary model that is retrained as a whole.
        generator: draws the shards and their seeds; torch's global one if None.

    Attributes:
        models: the shards' models; None where a shard has no sample.
        trained_on: how many samples were trained on so far, at :meth:`fit` and :meth:`forget`.

    Raises:
        ValueError: if shards is below 1.

    References:
        Bourtoule et al. (2021), Machine unlearning, https://arxiv.org/abs/1912.03817.
    """

    def __init__(
        self, train: Train, *, shards: int = 5, generator: torch.Generator | None = None
    ) -> None:
        if shards < 1:
            raise ValueError(f"shards must be 1 or more, got {shards}")
        home = "cpu" if generator is None else generator.device
        drawn = torch.randint(2**31, (shards + 1,), generator=generator, device=home).tolist()
        self._partition, self._seeds = drawn[0], drawn[1:]
        self._train = train
        self.models: list[Model | None] = [None] * shards
        self.trained_on = 0

    def fit(self, x: Tensor, y: Tensor, *, without: Tensor | None = None) -> Sharded:
        """Train every shard.

        Args:
            x: (N, ...) samples.
            y: (N,) integer labels.
            without: indices of samples that are left out. The others stay in their shards: this is
                what :meth:`forget` has to be equal to.

        Returns:
            The object itself.

        Raises:
            ValueError: if the shapes don't fit, or an index is out of range.
        """
        if y.shape != x.shape[:1] or not len(x):
            raise ValueError(f"y must have shape ({len(x)},), N at least 1, got {tuple(y.shape)}")
        generator = torch.Generator(device="cpu").manual_seed(self._partition)
        shard = torch.randint(len(self.models), (len(x),), generator=generator, device="cpu")
        self._id, self._shard = torch.arange(len(x), device="cpu"), shard
        self._x, self._y = x, y
        if without is not None:
            self._drop(without)
        for number in range(len(self.models)):
            self._again(number)
        return self

    def forget(self, indices: Tensor) -> int:
        """Train again, without these samples, the shards that hold them; drop them from memory.

        Args:
            indices: (M,) places of the samples in the x that was given to :meth:`fit`.

        Returns:
            How many samples were trained on for it. Without shards it would have been all that are
            left.

        Raises:
            ValueError: before :meth:`fit`, or for an index that is out of range or was forgotten.
        """
        if not hasattr(self, "_x"):
            raise ValueError("there is nothing to forget: call fit first")
        before = self.trained_on
        for number in self._drop(indices):
            self._again(number)
        return self.trained_on - before

    def predict(self, x: Tensor) -> Tensor:
        """The mean of the shards' probabilities.

        Args:
            x: (M, ...) inputs.

        Returns:
            (M, K), each row adds up to 1.

        Raises:
            ValueError: if nothing was learned, or all of it was forgotten.
        """
        alive = [model for model in self.models if model is not None]
        if not alive:
            raise ValueError("no shard has a model: call fit, with at least one sample left")
        votes = []
        for model in alive:
            with inference(model), torch.no_grad():
                votes.append(model(x).softmax(1))
        return torch.stack(votes).mean(0)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (M, K), the logarithm of :meth:`predict`: so it can be evaluated and attacked."""
        return self.predict(x).clamp_min(torch.finfo(x.dtype).tiny).log()

    def _drop(self, indices: Tensor) -> list[int]:
        """Delete samples; returns the shards they were in."""
        gone = torch.isin(self._id, indices.cpu())
        if indices.dim() != 1 or int(gone.sum()) != len(indices.unique()):
            raise ValueError(f"indices must be (M,) places of samples still there, got {indices}")
        touched = self._shard[gone].unique().tolist()
        kept = ~gone
        self._id, self._shard = self._id[kept], self._shard[kept]
        self._x, self._y = self._x[kept.to(self._x.device)], self._y[kept.to(self._y.device)]
        return [int(number) for number in touched]

    def _again(self, number: int) -> None:
        rows = self._shard == number
        x, y = self._x[rows.to(self._x.device)], self._y[rows.to(self._y.device)]
        generator = torch.Generator(device="cpu").manual_seed(self._seeds[number])
        self.models[number] = self._train(x, y, generator) if len(x) else None
        self.trained_on += len(x)


def fit_head(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    l2: float = 1.0,
    noise: float = 0.0,
    steps: int = 50,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Train the last linear layer to its optimum, and nothing else.

    The optimum of ``sum of cross-entropies + l2 / 2 * |weights|**2`` is unique, bias included. It
    is found by Newton's method.

    Args:
        model: its last ``nn.Linear`` gives the logits; what comes before is taken as given, so it
            must not have been trained on data that may have to be forgotten. Left as it is.
        x: (N, ...) samples, N at least 1.
        y: (N,) integer labels.
        l2: weight of the penalty, above 0.
        noise: standard deviation of what is added to each weight in the end, 0 or more.
        steps: of Newton's method, at most; it ends where the gradient vanishes.
        generator: draws the noise; torch's global one if None.

    Returns:
        A copy with a new last layer, in eval mode.

    Raises:
        ValueError: if l2 is not above 0, noise is below 0, shapes don't fit or there is no linear
            layer.
    """
    made, head = _copy(model)
    phi = _design(made, head, x, y, l2)
    with torch.no_grad():
        weights = phi.new_zeros(head.out_features, phi.shape[1])
        for _ in range(steps):
            step, size = _newton(weights, phi, y, l2)
            if size < 1e-9 * max(1.0, l2):
                break
            factor, now = 1.0, _objective(weights, phi, y, l2)
            while factor > 1e-6 and _objective(weights - factor * step, phi, y, l2) > now:
                factor /= 2  # far from the optimum a whole step may overshoot
            weights = weights - factor * step
        _put(head, _noisy(weights, noise, generator))
    return made


@threat(
    ThreatModel(
        goal="repair", knowledge="data", stage="training",
        cost="one Newton step of the last layer", source="https://arxiv.org/abs/1911.03030",
    )
)  # fmt: skip
def newton_forget(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    l2: float = 1.0,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Approximate unlearning for :func:`fit_head`: one Newton step on what is kept.

    The old weights are the optimum for all samples. For those that are kept they are not: their
    gradient there is minus that of the forgotten ones. One step ``-H^-1 g`` goes to the optimum of
    the parabola that touches the kept samples' objective, and leaves an error of second order in
    the forgotten share. However small, it can be seen if nothing hides it; noise of its size does.

    Args:
        model: from :func:`fit_head`, without noise. Left as it is.
        x: (N, ...) the samples that are kept.
        y: (N,) their labels.
        l2: as it was for :func:`fit_head`.
        noise: standard deviation of what is added to each weight in the end, 0 or more. The model
            that is compared with needs the same.
        generator: draws the noise; torch's global one if None.

    Returns:
        A copy that has forgotten, in eval mode.

    Raises:
        ValueError: as for :func:`fit_head`.

    References:
        Guo et al. (2020), Certified data removal, https://arxiv.org/abs/1911.03030, section 3. Their
        noise is added to the objective in training, and is set so that it gives a guarantee.
    """
    made, head = _copy(model)
    phi = _design(made, head, x, y, l2)
    with torch.no_grad():
        parts = [head.weight] if head.bias is None else [head.weight, head.bias[:, None]]
        weights = torch.cat(parts, 1).double()
        _put(head, _noisy(weights - _newton(weights, phi, y, l2)[0], noise, generator))
    return made


@threat(
    ThreatModel(
        goal="repair", knowledge="data", stage="training",
        cost="some gradient steps", source="https://arxiv.org/abs/2302.09880",
    )
)  # fmt: skip
def ascend(
    model: nn.Module,
    forget: tuple[Tensor, Tensor],
    keep: tuple[Tensor, Tensor],
    *,
    weight: float = 1.0,
    steps: int = 20,
    lr: float = 1e-3,
    batch_size: int = 64,
    until: float | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Gradient ascent on what is to be forgotten, descent on what is kept.

    It makes the model bad at the forgotten samples, which is something else than not to have seen
    them: a model that never saw a sample often answers it correctly.

    Args:
        model: maps (N, ...) to logits (N, K). Left as it is.
        forget: (x (F, ...), y (F,)), the samples to forget.
        keep: (x (N, ...), y (N,)), those that are kept.
        weight: of the ascent; 0 is fine-tuning on what is kept, and nothing more.
        steps: of Adam, at most.
        lr: its learning rate.
        batch_size: kept samples in a step; all the forgotten ones are in each.
        until: stop when the accuracy on the forgotten samples is this low; None: never.
        generator: draws the batches; torch's global one if None.

    Returns:
        A changed copy, in eval mode.

    Raises:
        ValueError: for no samples, or settings out of range.

    References:
        Kurmanji et al. (2023), https://arxiv.org/abs/2302.09880, call it NegGrad+.
    """
    if not len(forget[0]) or not len(keep[0]) or min(steps, batch_size) < 1 or weight < 0:
        raise ValueError(
            "ascend needs samples to forget and to keep, steps and batch_size of 1 or more and a "
            f"weight of 0 or more, got {len(forget[0])}, {len(keep[0])}, {steps}, {batch_size}, {weight}"
        )
    made = copy.deepcopy(model).eval()
    optimizer = torch.optim.Adam(made.parameters(), lr=lr)
    home = "cpu" if generator is None else generator.device
    for _ in range(steps):
        logits = made(forget[0])
        if until is not None and float((logits.argmax(1) == forget[1]).double().mean()) <= until:
            break
        drawn = torch.randint(len(keep[0]), (batch_size,), generator=generator, device=home)
        rows = drawn.to(keep[0].device)
        loss = F.cross_entropy(made(keep[0][rows]), keep[1][rows])
        optimizer.zero_grad()
        (loss - weight * F.cross_entropy(logits, forget[1])).backward()
        optimizer.step()
    return made


def _copy(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    made = copy.deepcopy(model).eval()
    linear = [module for module in made.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no nn.Linear, so no last layer to train")
    return made, linear[-1]


def _design(model: nn.Module, head: nn.Linear, x: Tensor, y: Tensor, l2: float) -> Tensor:
    """The last layer's inputs in float64, with a 1 for its bias: (N, D + 1), or (N, D)."""
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, got {l2}: without it the optimum may be nowhere")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), got {tuple(y.shape)}")
    phi = features(model, x).double()
    return phi if head.bias is None else torch.cat([phi, phi.new_ones(len(phi), 1)], 1)


def _objective(weights: Tensor, phi: Tensor, y: Tensor, l2: float) -> float:
    risk = F.cross_entropy(phi @ weights.T, y, reduction="sum")
    return float(risk + l2 / 2 * weights.square().sum())


def _newton(weights: Tensor, phi: Tensor, y: Tensor, l2: float) -> tuple[Tensor, float]:
    """Newton's step (K, D) at ``weights``, and the size of the gradient there."""
    p = (phi @ weights.T).softmax(1)
    gradient = (p - F.one_hot(y, p.shape[1])).T @ phi + l2 * weights
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]  # (N, K, K)
    hessian = torch.einsum("nkl,nd,ne->kdle", curvature, phi, phi).reshape(weights.numel(), -1)
    hessian.diagonal().add_(l2)
    step = torch.linalg.solve(hessian, gradient.flatten())
    return step.view_as(weights), float(gradient.norm())


def _noisy(weights: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    if not noise >= 0:
        raise ValueError(f"noise must be 0 or more, got {noise}")
    if not noise:
        return weights
    home = weights.device if generator is None else generator.device
    drawn = torch.randn(weights.shape, generator=generator, device=home, dtype=weights.dtype)
    return weights + noise * drawn.to(weights.device)


def _put(head: nn.Linear, weights: Tensor) -> None:
    head.weight.copy_(weights[:, : head.in_features])
    if head.bias is not None:
        head.bias.copy_(weights[:, head.in_features])
