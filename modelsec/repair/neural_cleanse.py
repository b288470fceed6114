"""Neural Cleanse: look for a trigger in the network itself, and unlearn it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.attacks.common import Model, check_counts, check_inputs
from modelsec.attacks.norms import draw
from modelsec.attacks.poisoning import Stamp, Trigger
from modelsec.repair.backdoors import check_clean, repaired_copy, some
from modelsec.tables import Table
from modelsec.threat import ThreatModel, threat
from modelsec.training import fit, inference, progress_bar

__all__ = ["Scan", "anomaly_index", "find_marks", "neural_cleanse", "overlap", "unlearn"]

GROUP = 10  # so many classes are worked on at once


def anomaly_index(sizes: Tensor) -> Tensor:
    """How far each value lies below the others, in robust standard deviations.

    ``(median - size) / (1.4826 MAD)``, where MAD is the median of the absolute deviations from the
    median. For normal values 1.4826 MAD estimates their standard deviation.

    Args:
        sizes: (K,) such as the l1 norms of K masks.

    Returns:
        (K,) positive where a value is smaller than the median; infinite where it differs and
        half of the values or more are equal.

    Raises:
        ValueError: if there are fewer than three values.

    References:
        Wang et al. (2019), https://doi.org/10.1109/SP.2019.00031, section IV.
    """
    if sizes.dim() != 1 or len(sizes) < 3:
        raise ValueError(f"an outlier among K values needs K >= 3, got shape {tuple(sizes.shape)}")
    below = sizes.quantile(0.5) - sizes
    return torch.where(below == 0, 0.0, below / (1.4826 * below.abs().quantile(0.5)))


@dataclass(frozen=True, eq=False)
class Scan:
    """What a search for triggers found: one for each class.

    Attributes:
        triggers: K of them, a mark that turns images into class k.
        success: (K,) share of the images that it turned into class k at the end.
        threshold: of the anomaly index.
    """

    triggers: tuple[Trigger, ...]
    success: Tensor
    threshold: float = 2.0

    @property
    def sizes(self) -> Tensor:
        """(K,) l1 norm of each mask: how many pixels it covers, in whole ones."""
        return torch.stack([trigger.mask.sum() for trigger in self.triggers])

    @property
    def index(self) -> Tensor:
        """(K,) the :func:`anomaly_index` of the sizes."""
        return anomaly_index(self.sizes)

    @property
    def flagged(self) -> list[int]:
        """The classes whose mask is smaller than the others' by the threshold; the worst first."""
        index = self.index
        return [k for k in index.argsort(descending=True).tolist() if index[k] > self.threshold]

    @property
    def table(self) -> Table:
        """A row for each class."""
        rows = zip(self.sizes.tolist(), self.success.tolist(), self.index.tolist(), strict=True)
        return Table(
            {
                "class": k,
                "size of the mask": f"{size:.1f}",
                "turns": f"{success:.2f}",
                "anomaly index": f"{index:.1f}",
                "flagged": "yes" if index > self.threshold else "",
            }
            for k, (size, success, index) in enumerate(rows)
        )


@threat(
    ThreatModel(
        goal="repair", knowledge="data", stage="training",
        cost="for each class an optimisation on a few clean images",
        source="https://doi.org/10.1109/SP.2019.00031",
    )
)  # fmt: skip
def neural_cleanse(
    model: Model,
    x: Tensor,
    *,
    threshold: float = 2.0,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Scan:
    """Look, for every class, for the smallest mark that turns all images into that class.

    A class that needs a far smaller one than the others is suspicious: such a mark may have been
    trained in. (It may also be that the class is easy to reach: see the rate of false alarms.)

    Args:
        model: maps (N, C, H, W) in [0, 1] to logits (N, K), K >= 3; it stays as it is.
        x: (N, C, H, W) float in [0, 1], clean images of all classes; no labels are needed.
        threshold: of the anomaly index, above which a class is flagged.
        generator: draws starts and images; torch's global one if None.
        progress: show a bar; None means yes, unless MODELSEC_PROGRESS=0 is set.
        **options: steps, batch_size, lr, weight, goal, patience of :func:`find_marks`.

    Returns:
        The :class:`Scan`.

    Raises:
        TypeError: if x is no floating-point tensor.
        ValueError: if x does not fit, there are no images or fewer than three classes, or an
            option is out of range.

    References:
        Wang et al. (2019), https://doi.org/10.1109/SP.2019.00031, section IV.
    """
    x = _check_images(model, x)
    with inference(model), torch.no_grad():
        classes = list(range(model(x[:1]).shape[1]))
    if len(classes) < 3:
        raise ValueError("the scan compares classes with each other: it needs 3 or more")
    triggers: list[Trigger] = []
    success: list[float] = []
    bar = progress_bar(len(classes), "scan", progress)
    for group in (classes[k : k + GROUP] for k in range(0, len(classes), GROUP)):
        found, turned = find_marks(model, x, group, generator=generator, **options)
        triggers += found
        success += turned
        bar.update(len(group))
    bar.close()
    return Scan(tuple(triggers), torch.tensor(success, device=x.device), threshold)


def find_marks(
    model: Model,
    x: Tensor,
    classes: Sequence[int],
    *,
    steps: int = 200,
    batch_size: int = 20,
    lr: float = 0.1,
    weight: float = 1e-3,
    goal: float = 0.99,
    patience: int = 5,
    generator: torch.Generator | None = None,
) -> tuple[list[Trigger], list[float]]:
    """The smallest marks that turn images into given classes, as far as Adam finds them.

    Mask m and pattern p of a class minimise the cross-entropy of ``(1 - m) x + m p`` towards it,
    plus a weight times the l1 norm of m. The weight adapts: after every ``patience`` steps it
    grows by the factor 1.5 if the mark turned ``goal`` of their images, and falls by 1.5 to the
    power 1.5 if not. The smallest mask that met the goal is kept; the last one, if none did.

    Args:
        model: maps (N, C, H, W) in [0, 1] to logits (N, K); it stays as it is.
        x: (N, C, H, W) float in [0, 1], clean images.
        classes: those to look for, all at once.
        steps: of Adam.
        batch_size: images a step, drawn with replacement, the same ones for all classes.
        lr: learning rate; mask and pattern are sigmoids of what is learned.
        weight: of the l1 norm, to begin with.
        goal: the share of images that a mark has to turn, above 0, at most 1.
        patience: steps between two looks at the weight.
        generator: draws starts and images; torch's global one if None.

    Returns:
        A :class:`~modelsec.attacks.poisoning.Trigger` for each class, and the shares of all of x
        that they turn into it.

    Raises:
        TypeError: if x is no floating-point tensor.
        ValueError: if x does not fit, there are no images, an option is out of range, or the model
            can't be differentiated.

    References:
        Wang et al. (2019), https://doi.org/10.1109/SP.2019.00031, section IV. Rates and factors
        are those of their code; it makes many more steps, and begins with a weight of 0.
    """
    x = _check_images(model, x)
    check_counts(steps=steps, batch_size=batch_size, patience=patience)
    if not 0 < goal <= 1 or not weight > 0 or not lr > 0:
        raise ValueError(
            f"goal must lie in (0, 1], weight and lr above 0, got {goal}, {weight} and {lr}"
        )
    targets = torch.tensor(list(classes), device=x.device)
    n, (_, c, h, w) = len(targets), x.shape
    raw = draw(torch.randn, (n, 1 + c, h, w), x, generator).requires_grad_()  # mask, then pattern
    optimizer = torch.optim.Adam([raw], lr=lr, betas=(0.5, 0.9))
    weights, best = torch.full_like(raw[:, 0, 0, 0], weight), torch.full_like(raw[:, 0, 0, 0], 1e9)
    kept, turned = raw.detach().clone(), []
    with inference(model), torch.enable_grad():
        for step in range(1, steps + 1):
            rows = some(x, batch_size, generator)
            mask, pattern = raw.sigmoid()[:, None].split([1, c], 2)
            stamped = (1 - mask) * x[rows] + mask * pattern
            logits = model(stamped.flatten(0, 1))
            if step == 1 and not _follows(logits, raw):
                raise ValueError("the model's answer can't be differentiated by its input: no scan")
            wanted = targets.repeat_interleave(batch_size)
            sizes = mask.sum((1, 2, 3, 4))
            away = F.cross_entropy(logits, wanted, reduction="none").view(n, -1).mean(1)
            # a sum over the classes: each has a mask and a pattern of its own
            (raw.grad,) = torch.autograd.grad((away + weights * sizes).sum(), raw)
            turned.append((logits.argmax(1) == wanted).view(n, -1).to(x).mean(1))
            if step % patience == 0:
                met = torch.stack(turned[-patience:]).mean(0) >= goal
                better = met & (sizes < best)
                kept[better], best[better] = raw.detach()[better], sizes.detach()[better]
                weights = torch.where(met, weights * 1.5, weights / 1.5**1.5)
            optimizer.step()
        never = best == 1e9
        kept[never] = raw.detach()[never]
        marks = [Trigger(m[1:], m[:1]) for m in kept.sigmoid()]
        return marks, [
            _turned(model, mark.stamp(x), k) for mark, k in zip(marks, classes, strict=True)
        ]


@threat(
    ThreatModel(
        goal="repair", knowledge="data", stage="training",
        cost="a scan, then an epoch or two on a few clean images",
        source="https://doi.org/10.1109/SP.2019.00031",
    )
)  # fmt: skip
def unlearn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    triggers: Sequence[Stamp],
    *,
    share: float = 0.2,
    epochs: int = 10,
    lr: float = 1e-3,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Unlearning: train on with clean images, some of which carry the mark and their true label.

    Args:
        model: the network; it stays as it is.
        x: (N, C, H, W) float in [0, 1], clean images.
        y: (N,) their true labels.
        triggers: marks to unlearn, such as those of the flagged classes in a :class:`Scan`. With
            none, the network is handed back as a copy: no alarm, no repair.
        share: how many images of a batch are marked, 0 to 1; each mark is as likely.
        epochs: passes over the images.
        lr: Adam's learning rate.
        batch_size: images a step.
        generator: draws the order, and which images are marked; torch's global one if None.
        progress: as for :func:`modelsec.training.fit`.

    Returns:
        A new network, in eval mode.

    Raises:
        TypeError: if the model is no module, or x or y of the wrong kind.
        ValueError: if there are no images, or values are out of range.

    References:
        Wang et al. (2019), https://doi.org/10.1109/SP.2019.00031, section VI: one epoch on a tenth
        of the training data, a fifth of it marked.
    """
    x, y = check_clean(model, x, y)
    if not 0 <= share <= 1:
        raise ValueError(f"share of marked images must be from 0 to 1, got {share}")

    def mark(_: nn.Module, batch: Tensor, labels: Tensor, now: float) -> Tensor:
        chosen = draw(torch.rand, (len(batch),), batch, generator)
        which = (chosen / share * len(triggers)).long() if share else chosen.long() + len(triggers)
        marked = batch.clone()
        for k, trigger in enumerate(triggers):
            marked[which == k] = trigger.stamp(batch[which == k])
        return marked

    options: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
    with repaired_copy(model) as repaired:
        if triggers:
            fit(repaired, x, y, perturb=mark, generator=generator, progress=progress, **options)
    return repaired


def overlap(found: Trigger, true: Trigger) -> float:
    """How far two masks cover the same pixels: the sum of the minima over that of the maxima.

    For masks of 0 and 1 it is the intersection over the union.

    Args:
        found: one mark.
        true: another, of the same height and width.

    Returns:
        A number from 0 to 1; 1 if the masks are the same.
    """
    one, two = (mark.mask.amax(0).double() for mark in (found, true))
    return float(torch.minimum(one, two).sum() / torch.maximum(one, two).sum())


def _check_images(model: Model, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    labels = torch.zeros(x.shape[:1], dtype=torch.long, device=x.device)
    x, _ = check_inputs(model, x, labels)
    if x.dim() != 4 or not len(x):
        raise ValueError(f"x must hold images (N, C, H, W), N >= 1, got shape {tuple(x.shape)}")
    return x


def _follows(logits: Tensor, raw: Tensor) -> bool:
    """Whether the logits depend on the marks, through autograd."""
    if not logits.requires_grad:
        return False
    ones = torch.ones_like(logits)
    slope = torch.autograd.grad(logits, raw, ones, retain_graph=True, allow_unused=True)
    return slope[0] is not None


def _turned(model: Model, x: Tensor, target: int) -> float:
    with torch.no_grad():
        answers = [model(batch).argmax(1) == target for batch in x.split(500)]
    return float(torch.cat(answers).double().mean())
