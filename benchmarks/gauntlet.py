"""The gauntlet: what an attack must not get wrong, tried on this book's attacks and on other libraries'.

``python -m benchmarks.gauntlet`` prints probe x library: holds or fails, with the figure, the
version and the call. One function is one probe. It is given one attack of one library, and answers
with a :class:`Reading`: whether the attack holds, and the figure that says so. Most probes come
from faults that users reported; each names where.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import functools
import io
import json
import os
import platform
import random
import time
import warnings
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy and torch are loaded
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.calls import ORDER, OURS, PEERS, Ask, Attack, Library  # noqa: E402
from modelsec.attacks import pgd  # noqa: E402
from modelsec.data import mnist  # noqa: E402
from modelsec.losses import log_odds  # noqa: E402
from modelsec.tables import Table  # noqa: E402
from modelsec.zoo import load_model  # noqa: E402

HERE = Path(__file__).parent
RESULTS = HERE / "gauntlet.json"
PAGE = HERE.parent / "reference" / "gauntlet.md"
ADDRESSES = {
    "ART": "Trusted-AI/adversarial-robustness-toolbox",
    "CleverHans": "cleverhans-lab/cleverhans",
    "Foolbox": "bethgelab/foolbox",
    "torchattacks": "Harry24k/adversarial-attacks-pytorch",
    "AutoAttack": "fra31/auto-attack",
    "TensorFlow's tutorials": "tensorflow/docs",
}


class Reading(NamedTuple):
    """What one probe saw of one attack.

    Attributes:
        holds: whether the attack does what it must.
        figure: what was measured.
    """

    holds: bool
    figure: str


class Probe(NamedTuple):
    """A probe and what the page tells of it.

    Attributes:
        name: of its function.
        kinds: which attacks it tries: "pgd l2", or "pgd" for all norms.
        issues: where users reported such a fault, as library#number.
        run: the function.
    """

    name: str
    kinds: tuple[str, ...]
    issues: tuple[str, ...]
    run: Callable[[Attack], Reading]

    @property
    def text(self) -> str:
        """Its docstring in one line: what must hold, and how it is tried."""
        return " ".join((self.run.__doc__ or "").split())

    @property
    def title(self) -> str:
        """What must hold."""
        return self.text.partition(".")[0]

    def tries(self, attack: Attack) -> bool:
        """Whether the attack is of a kind that this probe tries."""
        return attack.kind in self.kinds or attack.kind.split()[0] in self.kinds


PROBES: list[Probe] = []
Examine = Callable[[Attack], Reading]


def probe(*kinds: str, issues: tuple[str, ...] = ()) -> Callable[[Examine], Examine]:
    """Register a function as a probe of these kinds of attack."""

    def register(run: Examine) -> Examine:
        PROBES.append(Probe(run.__name__, kinds, issues, run))
        return run

    return register


# --- what the probes are run on --------------------------------------------------------------------


def drawn(seed: int) -> torch.Generator:
    """A generator of a probe's own: no library must be disturbed by it, nor the other way round."""
    return torch.Generator().manual_seed(seed)


@functools.cache
def digits(n: int) -> tuple[Tensor, Tensor]:
    """The first n test digits that the book's network finds right."""
    data, model = mnist(), load_model("net")
    with torch.no_grad():
        right = model(data.x_test[: 2 * n]).argmax(1) == data.y_test[: 2 * n]
    return data.x_test[: 2 * n][right][:n], data.y_test[: 2 * n][right][:n]


class Scale(nn.Module):
    """Logits times a factor, plus a constant: the same answers, more (or less) confident."""

    def __init__(self, inside: nn.Module, factor: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.inside, self.factor, self.shift = inside, factor, shift

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.factor * self.inside(x) + self.shift


class Watched(nn.Module):
    """Keeps what the model was asked about; ``fail_at`` makes that call raise."""

    def __init__(self, inside: nn.Module, fail_at: float = inf) -> None:
        super().__init__()
        self.inside, self.fail_at = inside, fail_at
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        self.asked.append(x.detach().clone())
        if len(self.asked) >= self.fail_at:
            raise RuntimeError("the model fails here")
        return self.inside(x)


class Cliff(nn.Module):
    """Class 1 where the image is bright, else class 0: right everywhere near, and without any slope."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = nn.Parameter(
            torch.tensor(0.1)
        )  # some libraries ask a parameter for its device

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        bright = (x.flatten(1).mean(1) > self.limit).to(x)
        lead = 4 * bright - 2 + 0 * x.flatten(1).sum(1)
        return torch.stack([-lead, lead], 1)


class Normalized(nn.Module):
    """Undoes a normalisation of the input: the model of somebody who normalises outside."""

    def __init__(self, inside: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.inside, self.mean, self.std = inside, mean, std

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.inside(x * self.std + self.mean)


def linear(classes: int = 10, scale: float = 0.35) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, and grey images near which the walls of the box are out of reach."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    generator = drawn(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    x = 0.35 + 0.3 * torch.rand(400, 1, 8, 8, generator=generator)
    with torch.no_grad():
        y = model(x).argmax(1)
    far = border(model, x, y, "l2") > 0.15  # not so near that rounding decides
    return model.eval(), x[far][:20], y[far][:20]


def border(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """How far the nearest border of a linear model lies: lead over the dual norm of its slope."""
    layer = model[1]
    with torch.no_grad():
        logits = model(x)
        lead = logits.gather(1, y[:, None]) - logits
        slope = layer.weight[y][:, None] - layer.weight[None]
        length = torch.linalg.vector_norm(slope, {"l2": 2, "linf": 1, "l1": inf}[norm], dim=2)
        return (lead / length).scatter(1, y[:, None], inf).amin(1)


def with_batchnorm() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small network in train mode, its first BatchNorm frozen by hand, with a gradient on it."""
    generator = drawn(2)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16),
        nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    model.train()
    model[2].eval()
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    model[1].weight.grad = torch.ones_like(model[1].weight)
    x = torch.rand(12, 1, 8, 8, generator=generator)
    with torch.no_grad():
        y = copy.deepcopy(model).eval()(x).argmax(1)
    return model, x, y


def answers(model: nn.Module, x: Tensor) -> Tensor:
    """The model's classes, in eval mode."""
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x).argmax(1)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The log odds against each label: cross-entropy that does not fade where the model is sure."""
    with torch.no_grad():
        return log_odds(model(x), y)


def size(adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """Each sample's change, in double precision."""
    change = (adv.double() - x.double()).flatten(1)
    return torch.linalg.vector_norm(change, ORDER[norm], dim=1)


RADIUS = {"linf": 0.1, "l2": 1.5, "l1": 10.0}  # for the digits; about as strong as each other


def share(mask: Tensor) -> str:
    return f"{int(mask.sum())} of {len(mask)}"


# --- strength --------------------------------------------------------------------------------------


@functools.cache
def overshoots(attack: Attack) -> Tensor:
    """For each of 20 images: the distance found over the exact one; infinite for a miss."""
    model, x, y = linear()
    adv = attack(model, x, y, Ask(search=1000)).adv
    ratio = size(adv, x, attack.norm) / border(model, x, y, attack.norm)
    return torch.where(answers(model, adv) != y, ratio, inf)


@probe("deepfool", "cw", "fmn", issues=("ART#219",))
def exact_distance(attack: Attack) -> Reading:
    """A minimum-norm attack finds a border whose distance is known.

    On a linear model of ten classes every one of 20 images must be fooled, none from further than
    1.25 times the exact distance.
    """
    ratio = overshoots(attack)
    found = share(ratio.isfinite())
    return Reading(bool((ratio <= 1.25).all()), f"{found} found, largest {ratio.max():.3f} times")


@probe("cw", "fmn")
def exact_to_1_percent(attack: Attack) -> Reading:
    """An attack that searches for the minimum comes within 1% of it.

    The same model and images; the median ratio counts, and a miss counts as infinitely far.
    DeepFool goes 2% too far on purpose, and is not tried.
    """
    ratio = overshoots(attack)
    return Reading(bool(ratio.median() <= 1.01), f"median {ratio.median():.3f} times")


@probe("pgd l2", "apgd l2", issues=("CleverHans#1175", "CleverHans#350"))
def confident_l2(attack: Attack) -> Reading:
    """More confidence does not weaken an attack in l2.

    200 digits, logits times 1, 3 and 6: the answers are the same, so the accuracy that is left
    may rise by 3 points at most.
    """
    x, y = digits(200)
    left = []
    for factor in (1, 3, 6):
        model = Scale(load_model("net"), factor)
        adv = attack(model, x, y, Ask(eps=RADIUS["l2"])).adv
        left.append(float((answers(model, adv) == y).float().mean()))
    return Reading(max(left) <= left[0] + 0.03, ", ".join(f"{value:.3f}" for value in left))


@functools.cache
def reference_l1() -> tuple[float, str]:
    """(accuracy left, whose) of APGD in l1: adv-lib's; where that is not installed, our PGD's."""
    (x, y), model = digits(200), load_model("net")
    for library in PEERS:
        if library.name == "adv-lib" and library.version:
            (peer,) = (one for one in library.load() if one.kind == "apgd l1")
            with generators_put_back():
                torch.manual_seed(3)
                adv = peer(model, x, y, Ask(eps=RADIUS["l1"], steps=100)).adv
            return float((answers(model, adv) == y).float().mean()), "APGD"
    adv = pgd(model, x, y, eps=RADIUS["l1"], norm="l1", steps=100, generator=drawn(3))
    return float((answers(model, adv) == y).float().mean()), "our PGD"


@probe("pgd l1", "sparse l1", "apgd l1", issues=("ART#2381", "CleverHans#828"))
def strong_l1(attack: Attack) -> Reading:
    """An attack in l1 is nearly as strong as APGD in l1.

    200 digits, eps 10, 100 steps: the accuracy left may be 5 points above that of APGD (adv-
    lib's; where that is not installed, our PGD stands in for it).
    """
    (x, y), model = digits(200), load_model("net")
    adv = attack(model, x, y, Ask(eps=RADIUS["l1"], steps=100)).adv
    left = float((answers(model, adv) == y).float().mean())
    wanted, whose = reference_l1()
    return Reading(left <= wanted + 0.05, f"{left:.3f} left, {whose} {wanted:.3f}")


@probe("deepfool", issues=("ART#219", "CleverHans#544"))
def deepfool_crosses(attack: Attack) -> Reading:
    """DeepFool really crosses the border.

    40 digits that the network finds right: at most one may come back with the same answer.
    """
    (x, y), model = digits(40), load_model("net")
    fooled = answers(model, attack(model, x, y).adv) != y
    return Reading(int(fooled.sum()) >= 39, f"{share(fooled)} cross")


@probe("cw", "fmn", issues=("Foolbox#332",))
def finds_an_error(attack: Attack) -> Reading:
    """Where there is an error, a minimum-norm attack finds one.

    20 digits, each of which lies near images that the network gets wrong: at most one may come back
    with the same answer.
    """
    (x, y), model = digits(20), load_model("net")
    fooled = answers(model, attack(model, x, y, Ask(search=200)).adv) != y
    return Reading(int(fooled.sum()) >= 19, f"{share(fooled)} found")


@probe("pgd linf", "pgd l2", "apgd linf", "cw", "fmn", "deepfool")
def shifted_logits(attack: Attack) -> Reading:
    """A constant added to all logits changes nothing.

    Softmax and answers do not depend on it; with all logits lowered by 40 an attack must fool as
    many of 20 digits, give or take one.
    """
    x, y = digits(20)
    right = []
    for shift in (0.0, -40.0):
        model = Scale(load_model("net"), shift=shift)
        adv = attack(model, x, y, Ask(eps=RADIUS[attack.norm], search=100)).adv
        right.append(int((answers(model, adv) == y).sum()))
    return Reading(abs(right[1] - right[0]) <= 1, f"{right[0]} and {right[1]} of 20 withstand")


@probe("pgd linf", "pgd l2", "apgd linf", issues=("TensorFlow's tutorials#1041",))
def labels(attack: Attack) -> Reading:
    """The labels are used, not the model's own answers.

    60 digits; for every third one the label is not what the model answers. Where the model was
    right, the loss at the label must rise for 32 of 40, and where it was wrong it must not fall
    for 19 of 20.
    """
    (x, y), model = digits(60), load_model("net")
    wrong = torch.arange(len(y)) % 3 == 2
    y = torch.where(wrong, (y + 1) % 10, y)
    adv = attack(model, x, y, Ask(eps=RADIUS[attack.norm])).adv
    before, after = loss(model, x, y), loss(model, adv, y)
    rises, falls = (after > before)[~wrong], (after < before - 1e-4)[wrong]
    fine = int(rises.sum()) >= 32 and int(falls.sum()) <= 1
    return Reading(fine, f"rises for {share(rises)}, falls for {share(falls)}")


@probe("pgd linf", "pgd l2", "apgd linf", "cw", issues=("Foolbox#425", "ART#512"))
def targets(attack: Attack) -> Reading:
    """In a targeted attack each sample has its own target.

    9 digits, targets one to nine classes on: three or more must be changed, and for all of those
    but one the target must be among the model's two best answers.
    """
    (x, y), model = digits(9), load_model("net")
    goal = (y + 1 + torch.arange(len(y)) % 9) % 10
    ask = Ask(eps=4 * RADIUS[attack.norm], steps=40, targeted=True, search=200)
    adv = attack(model, x, goal, ask).adv
    moved = (adv != x).flatten(1).any(1)
    with torch.no_grad():
        among = (model(adv).topk(2).indices == goal[:, None]).any(1)[moved]
    fine = int(moved.sum()) >= 3 and int((~among).sum()) <= 1
    return Reading(fine, f"{share(among)} near it")


@probe("pgd linf", "pgd l2", "deepfool", "cw", "fmn", issues=("Foolbox#636",))
def batch_size(attack: Attack) -> Reading:
    """A sample's result does not depend on its neighbours.

    Two digits in a batch with ten others, and each alone, without random start: where the change
    differs by more than 1% of its length, that is one too many.
    """
    (x, y), model = digits(12), load_model("net")
    ask = Ask(eps=0.5 * RADIUS[attack.norm], search=100)
    whole = attack(model, x, y, ask).adv[:2]
    single = torch.cat([attack(model, x[i : i + 1], y[i : i + 1], ask).adv for i in range(2)])
    differ = size(single, whole, "l2") > 0.01 * size(whole, x[:2], "l2").clamp_min(1e-3)
    return Reading(not bool(differ.any()), f"{share(differ)} differ")


# --- what comes back -------------------------------------------------------------------------------


@probe("pgd", "apgd", "sparse", issues=("ART#85", "ART#148", "Foolbox#388"))
def budget(attack: Attack) -> Reading:
    """The result lies in the ball and in the box.

    100 digits, ten steps: beyond rounding (1e-6 of the radius, and 1e-6 of a pixel's range)
    nothing may stick out.
    """
    (x, y), model = digits(100), load_model("net")
    radius = RADIUS[attack.norm]
    with seeded(4):
        adv = attack(model, x, y, Ask(eps=radius, steps=10, generator=drawn(4))).adv
    over = max(float(size(adv, x, attack.norm).max()) / radius - 1, 0)
    out = max(float(-adv.min()), float(adv.max() - 1), 0)
    return Reading(over <= 1e-6 and out <= 1e-6, f"{over:.1e} over eps, {out:.1e} over the box")


@probe("pgd", "apgd", "sparse", issues=("ART#73",))
def random_start(attack: Attack) -> Reading:
    """A random start is random, and lies in the ball and in the box, as does the result.

    50 digits, two runs: the first point that the model is asked about and that is not the clean
    image.
    """
    x, y = digits(50)
    radius, starts, worst = RADIUS[attack.norm], [], 0.0
    for seed in (5, 6):
        model = Watched(load_model("net"))
        ask = Ask(eps=radius, steps=2, random_start=True, generator=drawn(seed))
        with seeded(seed):
            adv = attack(model, x, y, ask).adv
        asked = [one for one in model.asked if one.shape == x.shape]
        starts.append(next((one for one in asked if not torch.equal(one, x)), x))
        for one in (starts[-1], adv):
            over = float(size(one, x, attack.norm).max()) / radius - 1
            worst = max(worst, over, float(-one.min()), float(one.max() - 1))
    moved = (starts[0] != x).flatten(1).any(1)
    differ = (starts[0] != starts[1]).flatten(1).any(1)
    fine = bool((moved & differ).all()) and worst <= 1e-4  # beyond rounding
    return Reading(fine, f"{share(moved & differ)} random, {worst:.1e} outside")


@probe("pgd linf", "pgd l2", "apgd linf", issues=("Foolbox#498", "Foolbox#425"))
def failed_output(attack: Attack) -> Reading:
    """Where the attack fails, its result can still be trained on.

    A linear model whose answers this radius cannot change: the result must raise the loss by
    half of what is possible at least, and so be neither the clean image, nor zeros, nor NaN.
    """
    model, x, y = linear()
    eps = 0.5 * float(border(model, x, y, attack.norm).min())
    adv = attack(model, x, y, Ask(eps=eps)).adv
    # no step in the ball gains more than eps times the dual norm of the slope
    slope = model[1].weight[y][:, None] - model[1].weight[None]
    dual = torch.linalg.vector_norm(slope, {"l2": 2, "linf": 1}[attack.norm], dim=2).amax(1)
    gain = (loss(model, adv, y) - loss(model, x, y)) / (eps * dual.detach())
    clean = (adv == x).flatten(1).all(1)
    black = (adv == 0).flatten(1).all(1)
    holds = bool((gain > 0.4).all()) and not bool((clean | black).any())
    return Reading(holds, f"{share(clean)} clean, {share(black)} black, gain {gain.min():.2f}")


@probe("cw", "fmn", "deepfool", issues=("ART#352",))
def misses(attack: Attack) -> Reading:
    """A miss is never counted as a success.

    A model without any slope, which no gradient can fool, and 20 images: what the library calls
    a success (or, where it does not say, what gets another answer) must be none. The model
    would take a black image for another class.
    """
    model = Cliff()
    x = 0.4 + 0.2 * torch.rand(20, 1, 8, 8, generator=drawn(7))
    y = torch.ones(20, dtype=torch.long)
    answer = attack(model, x, y, Ask(classes=2, search=50))
    found = answer.found if answer.found is not None else answers(model, answer.adv) != y
    black = (answer.adv == 0).flatten(1).all(1)
    bad = ~torch.isfinite(answer.adv).flatten(1).all(1)
    return Reading(
        not bool((found | bad).any()),
        f"{share(found)} counted" + (f", {share(black)} black" if black.any() else "")
        + (f", {share(bad)} NaN" if bad.any() else ""),
    )  # fmt: skip


@probe("deepfool", "cw", "fmn", issues=("torchattacks#51",))
def wrong_already(attack: Attack) -> Reading:
    """An image that is wrong already needs no change.

    40 digits with a label that the model does not answer: the result must be wrong still, and
    lie within 0.01 of the image.
    """
    (x, y), model = digits(40), load_model("net")
    y = (y + 1) % 10
    answer = attack(model, x, y, Ask(search=50))
    way = size(answer.adv, x, attack.norm)
    still = answers(model, answer.adv) != y
    good = still & (way <= 0.01)
    return Reading(bool(good.all()), f"{share(good)}, largest change {way.max():.3f}")


@probe("pgd linf", "pgd l2", "apgd linf", "cw", "fmn", "deepfool", issues=("CleverHans#350",))
def float64(attack: Attack) -> Reading:
    """Double precision stays double.

    Model and images in float64: the result must be float64, and hold more digits than float32
    can.
    """
    model, x, y = linear()
    model, x = model.double(), x.double() + 1e-9
    adv = attack(model, x, y, Ask(search=50)).adv
    fine = adv.dtype == torch.float64 and bool((adv != adv.float().double()).any())
    return Reading(fine, str(adv.dtype).removeprefix("torch.") + ("" if fine else ", rounded"))


@probe(
    "pgd linf", "pgd l2", "apgd linf", issues=("torchattacks#69", "Foolbox#703", "AutoAttack#86")
)
def normalised_input(attack: Attack) -> Reading:
    """Images that were normalised outside the model are noticed.

    Their pixels run from -0.4 to 2.8: the attack must refuse or warn, or keep to eps in its own
    units without cutting pixels off.
    """
    x, y = digits(20)
    model = Normalized(load_model("net"), 0.13, 0.31)
    given = (x - 0.13) / 0.31
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            adv = attack(model, given, y, Ask(eps=RADIUS[attack.norm])).adv
        except Exception as error:
            return Reading(True, f"refused: {type(error).__name__}")
    over = float(size(adv, given, attack.norm).max()) / RADIUS[attack.norm]
    if any("range" in str(one.message) or "[0" in str(one.message) for one in told):
        return Reading(True, "warned")
    return Reading(over <= 1 + 1e-5, f"silent; the change is {over:.1f} times eps")


# --- what is left behind ---------------------------------------------------------------------------

EVERY = ("pgd linf", "apgd linf", "deepfool", "cw", "fmn l2")
SHORT = Ask(steps=3, search=20)


@probe(*EVERY, issues=("Foolbox#74", "Foolbox#648", "ART#484"))
def statistics(attack: Attack) -> Reading:
    """BatchNorm learns nothing from an attack.

    A network in train mode: its running statistics must be the same afterwards, to the bit.
    """
    model, x, y = with_batchnorm()
    before = {name: value.clone() for name, value in model.named_buffers()}
    attack(model, x, y, SHORT)
    changed = [
        name for name, value in model.named_buffers() if not torch.equal(value, before[name])
    ]
    return Reading(not changed, f"{len(changed)} of {len(before)} buffers changed")


@probe(*EVERY, issues=("torchattacks#21",))
def modes(attack: Attack) -> Reading:
    """Every part of the model is left in the mode it was in.

    A network in train mode, of which one BatchNorm was put in eval mode by hand, as one does in
    fine-tuning.
    """
    model, x, y = with_batchnorm()
    before = [part.training for part in model.modules()]
    attack(model, x, y, SHORT)
    changed = [was != part.training for was, part in zip(before, model.modules(), strict=True)]
    return Reading(not any(changed), f"{sum(changed)} of {len(changed)} parts changed")


@probe(*EVERY)
def after_an_error(attack: Attack) -> Reading:
    """An error in the model leaves no more behind than a run without one.

    The model raises in its second call. Modes, statistics, .grad and requires_grad are compared
    with what they were; what a run without an error changes too is the matter of other probes.
    """
    changed = []
    for fail_at in (inf, 2):
        inside, x, y = with_batchnorm()
        model = Watched(inside, fail_at)
        before = state(model)
        with contextlib.suppress(Exception):
            attack(model, x, y, SHORT)
        changed.append(differences(before, state(model)))
    more = sorted({key for key, _ in changed[1] - changed[0]})
    return Reading(not more, ", ".join(more) + " changed" if more else "nothing more")


def state(model: nn.Module) -> dict[str, Any]:
    """All that an attack must not touch."""
    return {
        "modes": [part.training for part in model.modules()],
        "buffers": [value.clone() for value in model.buffers()],
        ".grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "parameters": [p.detach().clone() for p in model.parameters()],
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> set[tuple[str, int]]:
    """Which of them differ: what it is, and of which module or parameter."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return torch.equal(a, b)
        return type(a) is type(b) and bool(a == b)

    return {
        (key, i)
        for key in before
        for i, (a, b) in enumerate(zip(before[key], after[key], strict=True))
        if not same(a, b)
    }


@probe(*EVERY)
def gradients(attack: Attack) -> Reading:
    """The parameters' gradients are left alone.

    One parameter carries a gradient of its own, some are frozen: .grad and requires_grad must
    be the same afterwards, of parameters and images.
    """
    model, x, y = with_batchnorm()
    before, seen = state(model), x.clone()
    attack(model, x, y, SHORT)
    found = {key for key, _ in differences(before, state(model))}
    changed = sorted(found - {"modes", "buffers"})
    changed += ["x.grad"] * (x.grad is not None) + ["x.requires_grad"] * x.requires_grad
    changed += ["x itself"] * (not torch.equal(x.detach(), seen))
    return Reading(not changed, ", ".join(changed) + " changed" if changed else "nothing changed")


@probe("pgd linf", "apgd linf")
def global_generator(attack: Attack) -> Reading:
    """The global generators are left alone.

    An attack with a random start, given a generator where the library takes one: Python's,
    NumPy's and torch's must stand where they stood. (Many libraries draw from the global ones,
    as torch itself does.)
    """
    (x, y), model = digits(8), load_model("net")
    ask = Ask(steps=3, random_start=True, generator=drawn(8))
    with generators_put_back():
        before = generator_states()
        attack(model, x, y, ask)
        moved = [name for name, where in generator_states().items() if where != before[name]]
    return Reading(not moved, ", ".join(moved) + " moved" if moved else "none moved")


@probe("pgd linf", "apgd linf")
def not_reseeded(attack: Attack) -> Reading:
    """Nobody's seed is overwritten.

    After the attack the global generators must not be at the same place if they started at
    different ones, or all that follows is drawn alike.
    """
    (x, y), model, ends = digits(8), load_model("net"), []
    with generators_put_back():
        for seed in (1, 2):
            seed_all(seed)
            attack(model, x, y, Ask(steps=3, random_start=True, generator=drawn(9)))
            ends.append(generator_states())
    seeded = [name for name in ends[0] if ends[0][name] == ends[1][name]]
    return Reading(not seeded, ", ".join(seeded) + " reseeded" if seeded else "none reseeded")


def generator_states() -> dict[str, object]:
    """Where the global generators stand."""
    return {
        "torch's": torch.get_rng_state().numpy().tobytes(),
        "NumPy's": np.random.get_state()[1].tobytes(),  # noqa: NPY002
        "Python's": random.getstate(),
    }


def seed_all(seed: int) -> None:
    """Put the global generators where the seed says."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators start at a seed: many libraries draw from them."""
    with generators_put_back():
        seed_all(seed)
        yield


@contextlib.contextmanager
def generators_put_back() -> Iterator[None]:
    """Whatever happens inside, the global generators stand afterwards where they stood."""
    mine = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(mine[0])
        np.random.set_state(mine[1])  # noqa: NPY002
        torch.set_rng_state(mine[2])


# --- a run -----------------------------------------------------------------------------------------


def read(examine: Examine, attack: Attack) -> tuple[str, str]:
    """(verdict, figure) of one probe on one attack: holds, fails, or "has none" where it says so."""
    silent = io.StringIO()
    with (
        seeded(0),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        warnings.simplefilter("ignore")
        try:
            reading = examine(attack)
        except NotImplementedError as error:
            return "has none", str(error).split(".")[0]
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            return "fails", f"raised {type(error).__name__}: {first[:80]}"
    return ("holds" if reading.holds else "fails"), reading.figure


def run(
    probes: list[Probe], libraries: list[Library], say: Callable[[str], object] = print
) -> dict[str, Any]:
    """Every probe on every attack of every library that is installed.

    Args:
        probes: which.
        libraries: which.
        say: told what comes next.

    Returns:
        Results that JSON can hold; :func:`table` and :func:`render` show them.
    """
    torch.set_num_threads(1)
    loaded: dict[str, list[Attack] | str] = {}
    for library in libraries:
        if library.version is None:
            loaded[library.name] = "not installed"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded[library.name] = library.load()
        except ImportError as error:
            loaded[library.name] = f"does not import ({error.name or type(error).__name__})"
    rows = []
    for one in probes:
        say(one.title)
        for library in libraries:
            found = loaded[library.name]
            row = {"probe": one.name, "library": library.name}
            if isinstance(found, str):
                rows.append(row | {"verdict": found})
                continue
            tried = [attack for attack in found if one.tries(attack)]
            if not tried:
                rows.append(row | {"verdict": "has none"})
            for attack in tried:
                start = time.perf_counter()
                verdict, figure = read(one.run, attack)
                rows.append(
                    row
                    | {"attack": attack.kind, "call": attack.call, "verdict": verdict}
                    | {"figure": figure, "seconds": round(time.perf_counter() - start, 2)}
                )
                if verdict == "fails" and one.name in library.says:
                    rows[-1] |= {"verdict": "says so", "says": library.says[one.name]}
    versions = {"Python": platform.python_version(), "torch": torch.__version__}
    versions |= {one.name: one.version or "not installed" for one in libraries}
    return {"date": datetime.date.today().isoformat(), "versions": versions, "rows": rows}


# --- what is shown ---------------------------------------------------------------------------------

BAD = ("fails", "says so")


def rows_of(results: dict[str, Any], name: str, library: str) -> list[dict[str, Any]]:
    """All readings of one probe on one library."""
    return [row for row in results["rows"] if (row["probe"], row["library"]) == (name, library)]


def cell(rows: list[dict[str, Any]]) -> str:
    """Such readings in a few words: a verdict, and for how many attacks, if not for all."""
    tried = [row["verdict"] for row in rows if row["verdict"] != "has none"]
    if not tried:
        return "has none"
    if len(set(tried)) == 1:
        return tried[0]
    bad = [verdict for verdict in BAD if verdict in tried]
    return ", ".join(f"{verdict} {tried.count(verdict)} of {len(tried)}" for verdict in bad)


def table(results: dict[str, Any]) -> Table:
    """Probe x library."""
    libraries = dict.fromkeys(row["library"] for row in results["rows"])
    return Table(
        {"probe": name} | {library: cell(rows_of(results, name, library)) for library in libraries}
        for name in dict.fromkeys(row["probe"] for row in results["rows"])
    )


def details(results: dict[str, Any], name: str) -> Table:
    """Every reading of one probe, with its figure and its call."""
    return Table(
        {
            "library": row["library"],
            "attack": row["attack"],
            "verdict": row["verdict"],
            "figure": row["figure"],
        }
        for row in results["rows"]
        if row["probe"] == name and "attack" in row
    )


def calls(results: dict[str, Any]) -> Table:
    """Every call that was made, once."""
    made = {
        (row["library"], row["attack"]): row["call"] for row in results["rows"] if "call" in row
    }
    return Table(
        {
            "library": f"{library} {results['versions'][library]}",
            "attack": kind,
            "call": f"`{call}`",
        }
        for (library, kind), call in made.items()
    )


def spoken(name: str) -> str:
    """A probe's name as words."""
    return name.replace("_", " ").replace("1 percent", "1%")


def link(issue: str) -> str:
    """An issue as a link."""
    library, _, number = issue.partition("#")
    return f"[{issue}](https://github.com/{ADDRESSES[library]}/issues/{number})"


def render(results: dict[str, Any]) -> str:
    """The book's page."""
    known = {one.name: one for one in PROBES}
    names = list(dict.fromkeys(row["probe"] for row in results["rows"]))
    libraries = list(dict.fromkeys(row["library"] for row in results["rows"]))
    parts = []
    for name in names:
        one = known[name]
        asked = f" Reported in {', '.join(map(link, one.issues))}." if one.issues else ""
        notes = {row["says"] for row in results["rows"] if row["probe"] == name and "says" in row}
        body = one.text.partition(".")[2].strip()
        parts.append(f"### {spoken(name)}\n\n**{one.title}.** {body}{asked}\n")
        parts.append(f"{details(results, name)!r}\n")
        parts.extend(f"{note}\n" for note in sorted(notes))
    summary = Table(
        {
            "library": name,
            "version": results["versions"][name],
            "readings": str(sum(row["verdict"] in ("holds", *BAD) for row in mine)),
            "hold": str(sum(row["verdict"] == "holds" for row in mine)),
            "fail": str(sum(row["verdict"] == "fails" for row in mine)),
            "fail, and say so": str(sum(row["verdict"] == "says so" for row in mine)),
        }
        for name in libraries
        for mine in [[row for row in results["rows"] if row["library"] == name]]
    )
    return Template((HERE / "gauntlet.md").read_text(encoding="utf-8")).substitute(
        date=results["date"],
        torch=results["versions"]["torch"],
        python=results["versions"]["Python"],
        probes=len(names),
        libraries=len(libraries),
        readings=sum(row["verdict"] in ("holds", *BAD) for row in results["rows"]),
        summary=repr(summary),
        table=repr(Table(row | {"probe": spoken(row["probe"])} for row in table(results))),
        details="\n".join(parts),
        calls=repr(calls(results)),
    )


def main() -> None:
    """Read the command line and run."""
    every = [OURS, *PEERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gauntlet", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="store the results there")
    parser.add_argument(
        "--probe", action="append", metavar="NAME", choices=[one.name for one in PROBES],
        help="this probe only (may be repeated): " + ", ".join(one.name for one in PROBES),
    )  # fmt: skip
    parser.add_argument(
        "--library", action="append", metavar="NAME", choices=[one.name for one in every],
        help="this library only (may be repeated): " + ", ".join(one.name for one in every),
    )  # fmt: skip
    parser.add_argument(
        "--book", action="store_true", help="run everything, store it and write the book's page"
    )
    parser.add_argument(
        "--page-only", action="store_true", help="write the page again from the stored results"
    )
    options = parser.parse_args()
    if options.book and (options.probe or options.library):
        parser.error("--book is a run of everything: leave out --probe and --library")
    if options.page_only:
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    else:
        results = run(
            [one for one in PROBES if not options.probe or one.name in options.probe],
            [one for one in every if not options.library or one.name in options.library],
            say=lambda title: print(f"... {title}", flush=True),
        )
        for row in results["rows"]:
            if "attack" in row:
                version = results["versions"][row["library"]]
                print(
                    f"{row['probe']}: {row['library']} {version}, {row['attack']}: "
                    f"{row['verdict']} ({row['figure']})\n    {row['call']}"
                )
        print(f"\n{table(results)!r}")
    for path in [options.json, RESULTS if options.book else None]:
        if path:
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.book or options.page_only:
        PAGE.write_text(render(results), encoding="utf-8")
        print(f"The page is {PAGE}")


if __name__ == "__main__":
    main()
