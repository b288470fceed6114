"""Membership inference: was this record in the training data? Scores, higher for likelier members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelsec.attacks.common import check_counts
from modelsec.attacks.leak import Leak
from modelsec.losses import log_odds
from modelsec.threat import ThreatModel, threat
from modelsec.training import inference

__all__ = [
    "Leak",
    "Shadows",
    "by_loss",
    "confidence",
    "lira",
    "shadow_attack",
    "shadows",
    "trials",
]

Model = Callable[[Tensor], Tensor]
Train = Callable[[Tensor, Tensor, torch.Generator], Model]
"""(x, y, generator) -> a model trained on them, that draws from the generator alone."""
Attack = Callable[[Tensor, "Shadows", Tensor, Tensor], Tensor]
"""(the target's logits, shadows, x, y) -> scores (N,)."""


@dataclass(frozen=True, eq=False)
class Shadows:
    """What shadow models answer, and which records each of them was trained on.

    Attributes:
        logits: (S, N, K) float16, the answers of S models to N records.
        inside: (S, N) bool, True where the model was trained on the record.

    Raises:
        TypeError: if logits are not floating point, or inside is not bool.
        ValueError: if the shapes do not fit each other.
    """

    logits: Tensor
    inside: Tensor

    def __post_init__(self) -> None:
        if not self.logits.is_floating_point() or self.inside.dtype != torch.bool:
            raise TypeError(
                f"logits must be floating point and inside bool, got {self.logits.dtype} and "
                f"{self.inside.dtype}"
            )
        if self.logits.dim() != 3 or self.inside.shape != self.logits.shape[:2]:
            raise ValueError(
                "logits must have shape (S, N, K) and inside (S, N), got "
                f"{tuple(self.logits.shape)} and {tuple(self.inside.shape)}"
            )

    def __len__(self) -> int:
        return len(self.logits)

    def confidence(self, y: Tensor) -> Tensor:
        """Each model's :func:`confidence` in the true class, (S, N) float32, for y (N,)."""
        flat = confidence(self.logits.flatten(0, 1).float(), y.cpu().repeat(len(self)))
        return flat.view(self.inside.shape)

    def others(self, target: int) -> Shadows:
        """All but one model, which becomes the target, and its twin.

        The twin was trained on all that the target was not. It has to go too: each record is in
        exactly half of all models, so what is missing in the rest would tell who was in the target.

        Args:
            target: the number of the model.

        Returns:
            The rest.
        """
        alike = (self.inside == self.inside[target]).double().mean(1)
        rest = (alike > 0) & (alike < 1)
        return Shadows(self.logits[rest], self.inside[rest])


def shadows(
    train: Train, x: Tensor, y: Tensor, *, count: int, generator: torch.Generator | None = None
) -> Shadows:
    """Train shadow models, each on a random half of the records.

    They come in twins: the second is trained on the half that the first was not. So every record
    is inside half of the models, and outside the other half.

    Args:
        train: called with (x, y, generator), returns a model. It should imitate how the target was
            trained: same network, epochs, number of records.
        x: (N, ...) records, N at least 2.
        y: (N,) integer labels.
        count: how many models, an even number.
        generator: draws the halves and each model's own seed; torch's global one if None.

    Returns:
        The :class:`Shadows`, on the CPU, logits rounded to float16.

    Raises:
        TypeError: if y is not integer.
        ValueError: if count is odd or below 2, shapes don't fit, or records are fewer than two.
    """
    _check(x, y)
    check_counts(count=count)
    if count % 2 or len(x) < 2:
        given = f"{count} for {len(x)} records"
        raise ValueError(f"count must be even and records two or more (twins share them): {given}")
    home = "cpu" if generator is None else generator.device
    inside = torch.zeros(count, len(x), dtype=torch.bool, device="cpu")
    answers = []
    for s in range(count):
        if s % 2:
            inside[s] = ~inside[s - 1]
        else:
            half = torch.randperm(len(x), generator=generator, device=home)[: len(x) // 2]
            inside[s, half.cpu()] = True
        seed = int(torch.randint(2**31, (), generator=generator, device=home))
        rows = inside[s].to(x.device)
        model = train(x[rows], y[rows], torch.Generator().manual_seed(seed))
        limit = torch.finfo(torch.float16).max
        answers.append(_answers(model, x, y).cpu().clamp(-limit, limit).half())
    return Shadows(torch.stack(answers), inside)


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """How sure a model is of the true class, on a scale without ends: ``log(p_y / (1 - p_y))``.

    Over several trainings it is nearly normally distributed, which p itself is not. Cross-entropy
    is ``log(1 + exp(-confidence))``, so both have the same order; but float32 rounds the loss of a
    very sure model to 0.

    Args:
        logits: (N, K) float.
        y: (N,) integer labels.

    Returns:
        (N,).

    References:
        Carlini et al. (2022), https://arxiv.org/abs/2112.03570, section V.
    """
    return -log_odds(logits, y)


@threat(
    ThreatModel(
        goal="privacy",
        knowledge="scores",
        cost="one answer a record",
        source="https://arxiv.org/abs/1709.01604",
    )
)
def by_loss(model: Model | Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The simplest attack: the smaller the loss, the likelier a member.

    Args:
        model: maps x to logits (N, K), or those logits.
        x: (N, ...) records.
        y: (N,) their labels.

    Returns:
        (N,) scores: the :func:`confidence`, which has the order of the loss, reversed.

    Raises:
        TypeError: if y is not integer.
        ValueError: if shapes don't fit, or logits are NaN.

    References:
        Yeom et al. (2018), https://arxiv.org/abs/1709.01604, adversary 2.
    """
    return confidence(_answers(model, x, y), y)


@threat(
    ThreatModel(
        goal="privacy",
        knowledge="scores",
        cost="some shadow models, an attack model; one answer a record",
        source="https://arxiv.org/abs/1610.05820",
    )
)
def shadow_attack(
    model: Model | Tensor,
    shadows: Shadows,
    x: Tensor,
    y: Tensor,
    *,
    rows: int = 50_000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An attack model learns from shadow models how a member is answered, and judges the target.

    It is one for all classes, gradient-boosted trees of scikit-learn, and is shown the class; the
    paper trains one for each class, and leaves open of what kind.

    Args:
        model: the target, maps x to logits (N, K), or those logits.
        shadows: their answers to the same x.
        x: (N, ...) records.
        y: (N,) their labels.
        rows: answers that it is trained on, at most.
        generator: draws them, if there are more; torch's global one if None.

    Returns:
        (N,) scores: the attack model's log odds for "member".

    Raises:
        TypeError: if y is not integer.
        ValueError: if shapes don't fit, logits are NaN, or rows is below 1.

    References:
        Shokri et al. (2017), https://arxiv.org/abs/1610.05820, section V.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # slow to import

    check_counts(rows=rows)
    logits = _answers(model, x, y)
    known, classes = _fitting(shadows, logits).flatten(0, 1), y.cpu().repeat(len(shadows))
    home = "cpu" if generator is None else generator.device
    chosen = torch.randperm(len(known), generator=generator, device=home)[:rows].cpu()
    # nothing in it is drawn: no early stopping, no sampling of features
    attacker = HistGradientBoostingClassifier(early_stopping=False, random_state=0)
    seen = _features(known[chosen].float(), classes[chosen])
    attacker.fit(seen.numpy(), shadows.inside.flatten()[chosen].numpy())
    verdict = attacker.decision_function(_features(logits.cpu().float(), y.cpu()).numpy())
    return torch.from_numpy(verdict).to(logits)


@threat(
    ThreatModel(
        goal="privacy",
        knowledge="scores",
        cost="tens of shadow models or more; one answer a record",
        source="https://arxiv.org/abs/2112.03570",
    )
)
def lira(
    model: Model | Tensor,
    shadows: Shadows,
    x: Tensor,
    y: Tensor,
    *,
    online: bool = False,
    fixed_variance: bool = True,
) -> Tensor:
    """Likelihood-ratio attack: is the target surer of a record than models that never saw it?

    Offline, only models without the record count: the score is how many standard deviations the
    target's :func:`confidence` lies above theirs, which has the order of the paper's one-sided test.
    Online, it is the logarithm of the likelihood ratio of two normal distributions.

    Args:
        model: the target, maps x to logits (N, K), or those logits.
        shadows: their answers to the same x. The target must not be among them.
        x: (N, ...) records.
        y: (N,) their labels.
        online: use the models that were trained on a record as well.
        fixed_variance: one variance, pooled over all records and both cases, which few shadows
            can estimate; False: each record and case has its own.

    Returns:
        (N,) scores.

    Raises:
        TypeError: if y is not integer.
        ValueError: if shapes don't fit, logits are NaN, or a record has too few shadows: one is
            needed on each side that is used, two if the variance is not fixed.

    References:
        Carlini et al. (2022), https://arxiv.org/abs/2112.03570, algorithm 1 and section VI.
    """
    logits = _answers(model, x, y)
    _fitting(shadows, logits)
    target, known = confidence(logits.float(), y), shadows.confidence(y).to(logits.device)
    inside = shadows.inside.to(logits.device)
    sides = (~inside, inside) if online else (~inside,)
    counts = [side.sum(0) for side in sides]
    needed = 1 if fixed_variance else 2
    for count, word in zip(counts, ("without", "with"), strict=False):
        if not bool((count >= needed).all()):
            raise ValueError(
                f"shadows: for each record {needed} or more must be trained {word} it, record "
                f"{int(count.argmin())} has {int(count.min())}"
            )
    zero = known.new_zeros(())
    means = [known.where(side, zero).sum(0) / n for side, n in zip(sides, counts, strict=True)]
    squares = [
        (known - mean).square().where(side, zero).sum(0)
        for side, mean in zip(sides, means, strict=True)
    ]
    if fixed_variance:
        free = sum(int((n - 1).sum()) for n in counts)
        if not free:
            raise ValueError("shadows: a variance needs two of them on the same side of a record")
        variances = [torch.stack(squares).sum() / free] * len(sides)
    else:
        variances = [s / (n - 1) for s, n in zip(squares, counts, strict=True)]
    deviations = [v.clamp(min=1e-12).sqrt() for v in variances]
    ratios = [(target - mean) / sd for mean, sd in zip(means, deviations, strict=True)]
    if not online:
        return ratios[0]
    (out, within), (wide, narrow) = ratios, deviations
    return (out.square() - within.square()) / 2 + (wide / narrow).log()


def trials(
    attack: Attack, shadows: Shadows, x: Tensor, y: Tensor, *, targets: int | None = None
) -> list[Leak]:
    """Let each shadow model be the target once, attacked with the help of the others.

    Args:
        attack: called with (logits of the target, :meth:`Shadows.others`, x, y), returns scores;
            :func:`lira` and :func:`shadow_attack` fit.
        shadows: from :func:`shadows`.
        x: (N, ...) the records that they answered.
        y: (N,) their labels.
        targets: how many, the first ones; all if None.

    Returns:
        A :class:`~modelsec.attacks.leak.Leak` for each target.

    Raises:
        ValueError: for fewer models than targets.
    """
    count = len(shadows) if targets is None else targets
    if not 1 <= count <= len(shadows):
        raise ValueError(f"targets must be 1 to {len(shadows)}, got {count}")
    return [
        Leak(
            attack(shadows.logits[s].to(x.device).float(), shadows.others(s), x, y).cpu(),
            shadows.inside[s].cpu(),
        )
        for s in range(count)
    ]


def _check(x: Tensor, y: Tensor) -> None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise TypeError(f"x and y must be tensors, got {type(x).__name__} and {type(y).__name__}")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"y must hold integer class indices, got {y.dtype}: use y.long()")
    if x.dim() < 1 or y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), got {tuple(y.shape)}")


def _answers(model: Model | Tensor, x: Tensor, y: Tensor, batch_size: int = 500) -> Tensor:
    """The logits (N, K) of a model, or those given, checked."""
    _check(x, y)
    if isinstance(model, Tensor):
        logits = model.detach()
    elif callable(model):
        with inference(model), torch.no_grad():
            logits = torch.cat([model(part).detach() for part in x.split(batch_size)])
    else:
        raise TypeError(f"model must be callable or a tensor, got {type(model).__name__}")
    if logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(
            f"logits must have shape ({len(x)}, K) with K >= 2, got {tuple(logits.shape)}"
        )
    if bool(logits.isnan().any()):
        raise ValueError("the logits hold NaN")
    return logits


def _fitting(shadows: Shadows, logits: Tensor) -> Tensor:
    """The shadows' logits, if they answer the same records with the same classes."""
    if shadows.logits.shape[1:] != logits.shape or not len(logits):
        raise ValueError(
            f"shadows answer {tuple(shadows.logits.shape[1:])} records and classes, the target "
            f"{tuple(logits.shape)}; they must be the same, and one record or more"
        )
    return shadows.logits


def _features(logits: Tensor, y: Tensor) -> Tensor:
    """What the attack model is shown: confidence, log probabilities, which class is the true one."""
    # logarithms: a probability next to 1 is rounded to 1, those of the other classes are not
    told = torch.cat([confidence(logits, y)[:, None], logits.log_softmax(1)], 1)
    return torch.cat([told, nn.functional.one_hot(y.long(), logits.shape[1]).to(told)], 1)
