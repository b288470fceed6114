"""The long results of the chapter on broken defences: what authors would show, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import data
from modelsec.attacks.black_box import square
from modelsec.attacks.gradient import pgd
from modelsec.losses import SampleLoss, cross_entropy, log_odds, margin
from modelsec.models import drawing_from
from modelsec.repair import detection, purification
from modelsec.training import Evaluation, evaluate, inference
from modelsec.zoo import load_model
from modelsec.zoo.results import study

__all__ = ["CASES", "Attack", "Case", "N", "broken_defences", "flip_pixels", "measure"]

N, LINF, L2 = 500, 0.2, 2.0


@dataclass(frozen=True)
class Attack:
    """One attack on one defence.

    Attributes:
        run: (x, y, generator) to images like x.
        what: in words.
        gradients: how many an image takes at most; for Square, how many queries.
    """

    run: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    what: str
    gradients: int


@dataclass(frozen=True)
class Case:
    """A defence, what its authors would show for it, and what its attackers do.

    Attributes:
        defended: the judge: (N, C, H, W) to logits.
        claimed: the attack as claimed.
        adaptive: those that were made for it; an image stands only if it stands against all.
        norm, eps: the threat model.
        refuses: whether the last logit stands for a refusal.
    """

    defended: nn.Module
    claimed: Attack
    adaptive: tuple[Attack, ...]
    norm: str = "linf"
    eps: float = LINF
    refuses: bool = False

    def judge(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Evaluation:
        """How attacked images fare; random defences draw once an image."""
        with drawing_from(generator):
            return detection.stands(self.defended, x, y) if self.refuses else evaluate(
                self.defended, x, y
            )  # fmt: skip


def flip_pixels(
    view: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    fooled: Callable[[Tensor], Tensor],
    loss: SampleLoss = log_odds,
    beyond: float = 0.01,
    most: int = 60,
) -> Tensor:
    """Move one pixel after another just across the grey of a half, in l2.

    Against a rounding to black and white a small change of many pixels is lost, and a change across
    the middle is a whole flip. So the l2 budget is spent on few pixels: those of the largest slope
    per squared length.

    Args:
        view: what is attacked, with a gradient: (N, C, H, W) to logits.
        x: (N, C, H, W) in [0, 1].
        y: (N,) labels.
        eps: the l2 radius.
        fooled: images to (N,) bool: who needs no more flips.
        loss: to be climbed.
        beyond: how far across the middle a pixel goes.
        most: flips.

    Returns:
        (N, C, H, W), within eps of x.
    """
    goal = 0.5 + beyond * torch.where(x > 0.5, -1.0, 1.0)
    way, done = goal - x, torch.zeros_like(x, dtype=torch.bool)
    for _ in range(most):
        now = torch.where(done, goal, x).requires_grad_()
        (slope,) = torch.autograd.grad(loss(view(now), y).sum(), now)
        gain = slope / way  # slope times length, per squared length
        spent = (way.square() * done).flatten(1).sum(1).view(-1, 1, 1, 1)
        allowed = ~done & (gain > 0) & (spent + way.square() <= eps**2)
        best, pixel = gain.masked_fill(~allowed, 0).flatten(1).max(1)
        rows = ((best > 0) & ~fooled(now.detach())).nonzero()[:, 0]
        if not len(rows):
            break
        done.view(len(x), -1)[rows, pixel[rows]] = True
    return torch.where(done, goal, x)


def _climb(model: nn.Module, what: str, draws: int = 1, **options: Any) -> Attack:
    """PGD, in linf at the study's radius unless told otherwise."""
    options = {"eps": LINF, "steps": 40, **options}
    steps = options["steps"] * options.get("restarts", 1)

    def run(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return pgd(model, x, y, generator=generator, **options)

    return Attack(run, what, steps * draws)


def _asked(model: nn.Module, queries: int = 1000, **options: Any) -> Attack:
    def run(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return square(model, x, y, queries=queries, generator=generator, **{"eps": LINF, **options})

    return Attack(run, f"Square, {queries:,} queries", queries)


def _flips(defended: nn.Module, eps: float) -> Attack:
    view = purification.adapted(defended)

    def run(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        with inference(view):
            return flip_pixels(
                view, x, y, eps=eps, fooled=lambda adv: ~evaluate(defended, adv, y).correct
            )

    return Attack(run, "pixel flips", 60)


def _undefended(norm: str, eps: float) -> Case:
    model = load_model("convnet")
    rule: dict[str, Any] = {"norm": norm, "eps": eps}
    plain = _climb(model, "PGD-40", **rule)
    return Case(model, plain, (plain,), **rule)


def _trained(norm: str, eps: float) -> Case:
    model = load_model("convnet_robust")
    rule: dict[str, Any] = {"norm": norm, "eps": eps}
    several = (
        _climb(model, "PGD-100, 2 starts", steps=100, restarts=2, **rule),
        _climb(model, "PGD-100, margin", steps=100, loss=margin, **rule),
        _asked(model, **rule),
    )
    return Case(model, _climb(model, "PGD-40", **rule), several, **rule)


def _rounded(bits: int) -> Case:
    model = nn.Sequential(purification.bit_depth(bits), load_model("convnet")).eval()
    through = purification.adapted(model)
    several = (_climb(through, "PGD-100, BPDA", steps=100), _asked(model))
    return Case(model, _climb(model, "PGD-40 on the defended network"), several)


def _one_bit_l2() -> Case:
    model = nn.Sequential(purification.bit_depth(1), load_model("convnet")).eval()
    rule: dict[str, Any] = {"norm": "l2", "eps": L2}
    several = (
        _climb(purification.adapted(model), "PGD-100, BPDA", steps=100, **rule),
        _flips(model, L2),
    )
    return Case(model, _climb(model, "PGD-40 on the defended network", **rule), several, **rule)


def _stored() -> Case:
    inside = load_model("convnet")
    model = nn.Sequential(purification.jpeg(50), inside).eval()
    several = (
        _climb(inside, "PGD-40 on the bare network, all steps", early_stop=False),
        _climb(purification.adapted(model), "PGD-40, BPDA", early_stop=False),
    )
    return Case(model, _climb(inside, "PGD-40 on the bare network"), several)


def _drawn(step: Callable[[], purification.Step]) -> Case:
    model, draws = nn.Sequential(step(), load_model("convnet")).eval(), 10
    averaged = purification.adapted(model, draws, generator=torch.Generator().manual_seed(1))
    mean = _climb(averaged, f"PGD-40, EOT of {draws}", draws, early_stop=False)
    return Case(model, _climb(model, "PGD-40 on the defended network"), (mean,))


def _coded() -> Case:
    model, inside = load_model("convnet_thermometer"), load_model("convnet")
    several = (
        _climb(purification.adapted(model), "PGD-100, BPDA", steps=100),
        _climb(inside, "PGD-40 on a plain network, all steps", early_stop=False),
    )
    return Case(model, _climb(inside, "PGD-40 on a plain network"), several)


def _pupil() -> Case:
    model = load_model("convnet_distilled")
    several = (_climb(model, "PGD-40, margin", loss=margin), _climb(model, "PGD-40, log odds"))
    return Case(model, _climb(model, "PGD-40, cross-entropy", loss=cross_entropy), several)


def _guarded(norm: str, eps: float) -> Case:
    inside = load_model("convnet")
    model = detection.feature_squeezing(inside, data.mnist().x_train[:1000])
    several = (_deceive(model, norm, eps),)
    return Case(
        model, _climb(inside, "PGD-40 on the network alone", norm=norm, eps=eps), several,
        norm=norm, eps=eps, refuses=True,
    )  # fmt: skip


def _deceive(model: detection.Squeezing, norm: str, eps: float) -> Attack:
    """First all views are fooled on the mean; then the joint loss says what is still missing."""
    mean, joint = model.attacked(), model.through()
    rule: dict[str, Any] = {"norm": norm, "eps": eps, "early_stop": False}

    def run(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        if norm == "l2":
            with inference(mean):
                start = flip_pixels(
                    mean, x, y, eps=eps,
                    fooled=lambda adv: ~detection.stands(model, adv, y).correct,
                )  # fmt: skip
        else:
            start = pgd(mean, x, y, steps=40, generator=generator, **rule)
        adv = pgd(joint, x, y, steps=60, start=start, loss=detection.evade, **rule)
        # the search keeps its best point, but a start that has won already is only a start
        lost = detection.stands(model, start, y).correct.to(x.device).view(-1, 1, 1, 1)
        return torch.where(lost, adv, start)

    first = "pixel flips" if norm == "l2" else "PGD-40 on the views' mean"
    return Attack(run, f"{first}, then the joint loss", 120 if norm == "l2" else 100)


CASES: dict[str, Callable[[], Case]] = {
    "none": partial(_undefended, "linf", LINF),
    "3 bits": partial(_rounded, 3),
    "JPEG, quality 50": _stored,
    "random size": partial(_drawn, purification.random_resize),
    "noise of 0.2": partial(_drawn, purification.noise),
    "thermometer": _coded,
    "distillation": _pupil,
    "1 bit": partial(_rounded, 1),
    "detector": partial(_guarded, "linf", LINF),
    "adversarial training": partial(_trained, "linf", LINF),
    "none, l2": partial(_undefended, "l2", L2),
    "1 bit, l2": _one_bit_l2,
    "detector, l2": partial(_guarded, "l2", L2),
    "adversarial training, l2": partial(_trained, "l2", L2),
}


def measure(name: str, n: int = N, seed: int = 0, *, adaptive: bool = True) -> dict[str, Any]:
    """One defence: clean, as claimed, and under its adaptive attacks, image by image.

    Args:
        name: one of :data:`CASES`.
        n: how many test images, from the first on.
        seed: for whatever draws.
        adaptive: False measures the first two only.

    Returns:
        "norm", "eps"; "clean", "claimed": a string with a mark per image, "." for one that stands
        and "0" for one that falls; "attacks": what -> {"marks", "gradients"}, the adaptive ones.
        On clean images a refusal counts as a mistake, under attack it does no harm.
    """
    case, digits = CASES[name](), data.mnist()
    x, y = digits.x_test[:n], digits.y_test[:n]
    judge = partial(torch.Generator().manual_seed, seed + 1)

    def marks(attack: Attack) -> str:
        drawn = torch.Generator().manual_seed(seed)
        with drawing_from(drawn):  # a random defence draws while it is attacked
            adv = attack.run(x, y, drawn)
        return _marks(case.judge(adv, y, judge()))

    with drawing_from(judge()):
        clean = _marks(evaluate(case.defended, x, y))
    found: dict[str, Any] = {"norm": case.norm, "eps": case.eps, "clean": clean}
    found |= {"claim": case.claimed.what, "claimed": marks(case.claimed)}
    found["claimed gradients"] = case.claimed.gradients
    found["attacks"] = {
        attack.what: {"marks": marks(attack), "gradients": attack.gradients}
        for attack in (case.adaptive if adaptive else ())
    }
    return found


@study(
    "broken_defences",
    about="defences as claimed and under adaptive attacks: MNIST-5k, small ConvNets, linf 0.2, l2 2",
    n=N,
    seeds=(0,),
)
def broken_defences(seeds: tuple[int, ...]) -> dict[str, Any]:
    """All of :data:`CASES`, see :func:`measure`."""
    return {name: measure(name, seed=seeds[0]) for name in CASES}


def _marks(outcome: Evaluation) -> str:
    return "".join("." if right else "0" for right in outcome.correct.tolist())
