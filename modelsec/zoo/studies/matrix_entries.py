"""The rows and columns of the attack x defence matrix: :data:`ATTACKS` and :data:`DEFENCES`.

A new line in one of the two makes the matrix larger. :mod:`modelsec.zoo.studies.matrix` fills it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import attacks, data
from modelsec.attacks.norms import per_sample
from modelsec.losses import cross_entropy
from modelsec.models import drawing_from
from modelsec.repair import detection, purification, smoothing
from modelsec.training import inference
from modelsec.zoo import load_model
from modelsec.zoo.studies.broken_defences import CASES

__all__ = ["ATTACKS", "CLASSES", "DEFENCES", "Attack", "Column", "Defence", "digits"]

EPS, L2, CLASSES = 0.2, 2.0, 10
Model = Callable[[Tensor], Tensor]
Craft = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(x, y, generator) to images like x."""
digits = cache(data.mnist)


@dataclass(frozen=True)
class Defence:
    """A defended model, and what its attackers see of it.

    Attributes:
        asked: (N, C, H, W) to scores (N, K): what somebody sees who can only ask.
        inside: to logits: what somebody attacks who does not know of the defence. For a network
            that was trained to resist it is the network itself.
        aware: to logits: what somebody attacks who knows it, the defended model made fit for
            gradients.
        answer: (N, C, H, W) to (N,), what is answered, and what every attack is judged by. Below 0
            or from K on it is "refused". None takes the largest score.
        insist: whether an attack on what is asked or aware goes on after the first error: it may
            be luck where the answer is random, and lie so near the border that it is refused.
        own: norm -> attacks that were made for this defence, to be tried first.
    """

    asked: Model
    inside: Model
    aware: Model
    answer: Callable[[Tensor], Tensor] | None = None
    insist: bool = False
    own: Mapping[str, tuple[Craft, ...]] = field(default_factory=dict)

    def marks(self, x: Tensor, y: Tensor, generator: torch.Generator) -> str:
        """One character for each image: "." right, "0" wrong, "r" refused."""
        with inference(self.asked), torch.no_grad(), drawing_from(generator):
            said = self.asked(x).argmax(1) if self.answer is None else self.answer(x)
        refused = (said < 0) | (said >= CLASSES)
        kinds = torch.where(refused, 2, (said == y).int())
        return "".join("0.r"[kind] for kind in kinds.tolist())


Run = Callable[[Defence, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Attack:
    """A row of the matrix.

    Attributes:
        run: (defence, x, y, generator) to images like x.
        sees: what the attacker attacks, in words.
        norm: in which the change is limited; empty for a turn, which no norm measures.
        limit: how large the change may be, in words.
    """

    run: Run
    sees: str
    norm: str = "linf"
    limit: str = f"{EPS:g}"


@dataclass(frozen=True)
class Column:
    """A column of the matrix.

    Attributes:
        build: makes the defence.
        about: what it is, in words.
        files: the zoo's models in it. When one of them changes the column is measured again.
    """

    build: Callable[[], Defence]
    about: str
    files: tuple[str, ...] = ("convnet",)


# Rows


def _on(part: str, attack: Callable[..., Tensor], **rule: Any) -> Run:
    """An attack on a part of the defence: what is asked, inside or aware."""

    def run(defence: Defence, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        stop = part == "inside" or not defence.insist
        target = getattr(defence, part)
        return attack(target, x, y, early_stop=stop, generator=generator, **rule)

    return run


def _fgsm(defence: Defence, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return attacks.fgsm(defence.inside, x, y, eps=EPS, loss=cross_entropy)


def _protocol(defence: Defence, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    rule: dict[str, Any] = {"steps": 40, "targets": 4, "queries": 500, "progress": False}
    return attacks.autoattack(defence.inside, x, y, eps=EPS, generator=generator, **rule).adv


def _hopskipjump(defence: Defence, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    found = attacks.hopskipjump(defence.asked, x, y, norm="linf", queries=1000, generator=generator)
    return torch.where(per_sample(found.distance <= EPS, x), found.adv, x)


def _transfer(defence: Defence, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    # two networks that are no part of any column
    strangers = attacks.ensemble([load_model("net"), load_model("convnet_sigma25")])
    return attacks.transfer(strangers, x, y, eps=EPS)


def _adaptive(
    norm: str, eps: float, defence: Defence, x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    """What was made for the defence, Auto-PGD, and Auto-PGD at the four likeliest other classes."""
    rule = {"eps": eps, "norm": norm, "steps": 40}
    crafts: list[Craft] = [
        *defence.own.get(norm, ()),
        partial(_on("aware", attacks.apgd, **rule), defence),
        partial(_on("aware", attacks.apgd_targeted, targets=4, **rule), defence),
    ]
    adv, rows = x.clone(), torch.arange(len(x))
    for craft in crafts:
        if len(rows):
            adv[rows] = craft(x[rows], y[rows], generator)
            marks = defence.marks(adv[rows], y[rows], generator)
            rows = rows[torch.tensor([mark != "0" for mark in marks])]
    return adv


_INSIDE, _ANSWERS = "the network, without its defence", "answers of the defended model"
_AWARE = "the defended model, and what was made for it"
ATTACKS: dict[str, Attack] = {
    "FGSM, cross-entropy": Attack(_fgsm, _INSIDE),
    "PGD-40": Attack(_on("inside", attacks.pgd, eps=EPS), _INSIDE),
    "protocol": Attack(_protocol, _INSIDE),
    "transfer": Attack(_transfer, "two other networks"),
    "Square": Attack(
        _on("asked", attacks.square, eps=EPS, queries=1000), f"{_ANSWERS}: 1,000 scores"
    ),
    "HopSkipJump": Attack(_hopskipjump, f"{_ANSWERS}: 1,000 labels"),
    "adaptive": Attack(partial(_adaptive, "linf", EPS), _AWARE),
    "PGD-40, l2": Attack(
        _on("inside", attacks.pgd, eps=L2, norm="l2"), _INSIDE, "l2", f"{L2:g}"
    ),
    "adaptive, l2": Attack(partial(_adaptive, "l2", L2), _AWARE, "l2", f"{L2:g}"),
    "turn and shift": Attack(
        _on("asked", attacks.spatial), f"{_ANSWERS}: 774 scores", "",
        "30 degrees, a tenth of the side",
    ),
}  # fmt: skip


# Columns


def _zoo(name: str, about: str) -> Column:
    """A network that was trained to resist, or not."""

    def build() -> Defence:
        model = load_model(name)
        return Defence(model, model, model)

    return Column(build, about, (name,))


def _before(about: str, step: Callable[[], nn.Module]) -> Column:
    """A step in front of the undefended network."""

    def build() -> Defence:
        network = load_model("convnet")
        return _stepped(nn.Sequential(step(), network).eval(), network)

    return Column(build, about)


def _stepped(defended: nn.Module, inside: nn.Module) -> Defence:
    aware = purification.adapted(defended, draws=8, generator=torch.Generator().manual_seed(0))
    return Defence(defended, inside, aware, insist=purification.is_random(defended))


def _rounded() -> Defence:
    network = load_model("convnet")
    made = _stepped(nn.Sequential(purification.bit_depth(1), network).eval(), network)
    return replace(made, own=_own("1 bit"))


def _coded() -> Defence:
    return _stepped(load_model("convnet_thermometer"), load_model("convnet"))


def _squeezed() -> Defence:
    network = load_model("convnet")
    guarded = detection.feature_squeezing(network, digits().x_train[:1000])
    open_one = guarded.attacked()  # the mean score over an image and its squeezed versions
    answer = partial(_largest, guarded)
    return Defence(open_one, network, open_one, answer, insist=True, own=_own("detector"))


def _largest(model: Model, x: Tensor) -> Tensor:
    return model(x).argmax(1)


def _own(case: str) -> dict[str, tuple[Craft, ...]]:
    """The attacks of the chapter on broken defences."""
    made = {"linf": CASES[case](), "l2": CASES[f"{case}, l2"]()}
    return {norm: tuple(attack.run for attack in each.adaptive) for norm, each in made.items()}


def _smoothed() -> Defence:
    base = load_model("convnet_sigma50")
    smooth, generator = smoothing.smooth(base, 0.5), torch.Generator().manual_seed(0)
    few, more = (  # the same draws in every question, so that an attack has something to hold on to
        smooth.surrogate(digits().x_test[:1], draws=draws, generator=generator) for draws in (4, 16)
    )
    return Defence(few, base, more, partial(smooth.predict, n=200), insist=True)


DEFENCES: dict[str, Column] = {
    "none": _zoo("convnet", "a small ConvNet, trained as usual"),
    "PGD training": _zoo(
        "convnet_robust",
        "trained on the images of PGD-7: linf, radius up to 0.3, digits turned and shifted",
    ),
    "TRADES": _zoo(
        "convnet_trades", "trained with TRADES: beta 6, radius up to 0.3, digits turned and shifted"
    ),
    "IBP": _zoo("convnet_ibp", "trained with interval bounds, radius up to 0.2"),
    "smoothing": Column(
        _smoothed,
        "trained on noise of 0.5; a vote over 200 noisy copies, which may abstain",
        ("convnet_sigma50",),
    ),
    "JPEG": _before("each image is stored as a JPEG file, quality 50", purification.jpeg),
    "3 bits": _before(
        "each pixel is rounded to eight grey levels", partial(purification.bit_depth, 3)
    ),
    "1 bit": Column(_rounded, "each pixel is rounded to black or white"),
    "random size": _before(
        "each image is shrunk by a random factor and put at a random place",
        purification.random_resize,
    ),
    "thermometer": Column(
        _coded, "each pixel as a row of ten zeros and ones; trained on that",
        ("convnet", "convnet_thermometer"),
    ),
    "distillation": _zoo(
        "convnet_distilled", "trained on the soft answers of a first ConvNet, temperature 100"
    ),
    "detector": Column(_squeezed, "refuses an image whose answer changes when it is squeezed"),
}  # fmt: skip
