"""The long results of the chapter on traffic: attacks, stickers, certificates, votes and cards."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelsec import signs, zoo
from modelsec.attacks.auto import autoattack
from modelsec.attacks.gradient import pgd
from modelsec.data import Data
from modelsec.repair import smooth
from modelsec.sign_art import CLASSES, plates
from modelsec.zoo.results import study
from modelsec.zoo.studies import traffic_road as road
from modelsec.zoo.studies.traffic_data import network

__all__ = [
    "DISTANCES",
    "FRAMES",
    "MODELS",
    "ONE_VIEW",
    "YAWS",
    "approaches",
    "curves",
    "data",
    "packed",
    "protocol",
    "unpacked",
    "vote_rates",
]

MODELS = ("signs", "signs_robust", "signs_covered")
DISTANCES = (10, 20, 30, 40, 50, 60)
YAWS = (-60, -40, -20, 0, 20, 40, 60)
FRAMES = 12
ONE_VIEW: dict[str, Any] = {
    "distance": 15, "yaw": 0, "pitch": 0, "roll": 0, "shift": 0, "fill": 0.8, "light": 0.9,
    "haze": 0.1, "noise": 0.02,
}  # fmt: skip
"""What an attacker prepares for who thinks of one picture only."""


@cache
def data() -> Data:
    """The zoo's data: 4,000 pictures to train on, 1,000 to test on."""
    return signs.signs_data()


def protocol(model: str, eps: float, seed: int, n: int = 320) -> dict[str, Any]:
    """PGD-20, the standard protocol, and an attack that aims at the dearest mistake.

    Args:
        model: its name in the zoo.
        eps: in linf.
        seed: for starts and Square.
        n: how many test pictures, from the first on.

    Returns:
        Of n: "clean", "pgd", "worst case", how many are right; "reached", how many are read as the
        dearest class if PGD-20 aims at it. Means of :func:`traffic_road.mistakes`: "clean cost",
        "pgd cost", "aimed cost". And the protocol's "left" after each attack, and "warnings".
    """
    subject, x, y = zoo.load_model(model), data().x_test[:n], data().y_test[:n]
    drawn = torch.Generator().manual_seed(seed)
    dearest = road.mistakes()[y].argmax(1)
    adv = pgd(subject, x, y, eps=eps, steps=20, generator=drawn)
    aimed = pgd(subject, x, dearest, eps=eps, steps=20, targeted=True, generator=drawn)
    report = autoattack(subject, x, y, eps=eps, queries=1000, generator=drawn, progress=False)
    with torch.no_grad():
        said = {"clean": subject(x).argmax(1), "pgd": subject(adv).argmax(1)}
        said["aimed"] = subject(aimed).argmax(1)
    return {
        "clean": int((said["clean"] == y).sum()),
        "pgd": int((said["pgd"] == y).sum()),
        "worst case": report.accuracy.hits,
        "reached": int((said["aimed"] == dearest).sum()),
        "left": {attempt.name: attempt.standing for attempt in report.attempts},
        "warnings": list(report.warnings),
    } | {f"{name} cost": road.mean_cost(answers, y) for name, answers in said.items()}


@study(
    "traffic_attacks",
    about="PGD-20, PGD at the dearest mistake and the standard protocol (1,000 queries) at 4/255 and "
    "8/255, on the zoo's networks for signs",
    n=320,
    seeds=(0,),
)
def traffic_attacks(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`protocol`, by model and eps in 255ths."""
    return {model: {f"{k}": protocol(model, k / 255, seeds[0]) for k in (4, 8)} for model in MODELS}


# Stickers


def packed(paint: Tensor) -> str:
    """A sticker in 256 levels, as text: (3, 64, 64) in [0, 1]."""
    return base64.b64encode((paint * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def unpacked(text: str) -> Tensor:
    """What :func:`packed` packed."""
    levels = np.frombuffer(base64.b64decode(text), np.uint8).copy()
    return torch.from_numpy(levels).view(3, 64, 64) / 255


def curves(model: nn.Module, sign: Tensor, seed: int, n: int = 100) -> dict[str, Any]:
    """How often a stop sign, with a sticker or without, is read as an 80, and how often as a stop.

    Args:
        model: maps (N, 3, 32, 32) to logits.
        sign: (4, 64, 64).
        seed: for the pictures.
        n: how many, for each point.

    Returns:
        "usual": how often each class is read, of n, over all usual views; "distance" and "yaw":
        point -> [read as 80, read as stop]. (Turned signs are seen from 10 to 30 metres.)
    """

    def count(**ranges: Any) -> list[int]:
        answers = road.reads(model, sign, n, seed, **ranges)
        return [int((answers == k).sum()) for k in (road.GOAL, road.STOP)]

    return {
        "usual": road.reads(model, sign, n, seed).bincount(minlength=len(CLASSES)).tolist(),
        "distance": {f"{d}": count(distance=d) for d in DISTANCES},
        "yaw": {f"{a}": count(yaw=a, distance=(10, 30)) for a in YAWS},
    }


def sticker_for(model: nn.Module, seed: int, where: Tensor | None = None, **options: Any) -> Tensor:
    """A sticker on a stop sign that is to make it an 80; two bars unless told otherwise.

    Args:
        model: maps (N, 3, 32, 32) to logits.
        seed: for all that is drawn.
        where: (64, 64) bool, what it covers.
        options: for :func:`~modelsec.zoo.studies.traffic_road.sticker`.

    Returns:
        (3, 64, 64) in 256 levels.
    """
    made = road.sticker(
        model, road.stop_sign()[None], torch.tensor([road.GOAL]).expand(32),
        road.bars() if where is None else where,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip
    return unpacked(packed(made))


def all_stickers(
    models: dict[str, nn.Module], seed: int
) -> dict[str, tuple[Tensor, Tensor, tuple[str, ...]]]:
    """Every sticker that is compared: name -> (paint, what it covers, who reads it)."""
    few = signs.signs_rendered("train", 3200, seed=seed + 50)
    assert few.y is not None
    other, net = network(few.x, few.y, seed + 50), models["signs"]
    bars, whole = road.bars(), torch.ones(64, 64, dtype=torch.bool)
    faint: dict[str, Any] = {"where": whole, "within": 16 / 255, "step_size": 0.02}
    coarse = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))
    made = {
        name: (sticker_for(model, seed), bars, tuple(dict.fromkeys((name, "signs"))))
        for name, model in models.items()
    }
    return made | {
        "one view": (sticker_for(net, seed, **ONE_VIEW), bars, ("signs",)),
        "faint, one view": (sticker_for(net, seed, **faint, **ONE_VIEW), whole, ("signs",)),
        "faint": (sticker_for(net, seed, **faint), whole, ("signs",)),
        "another network": (sticker_for(other, seed), bars, MODELS),
        "grey": (torch.full((3, 64, 64), 0.5), bars, MODELS),
        # as coarse as the trained ones look, in any colours
        "random": (coarse.repeat_interleave(8, 1).repeat_interleave(8, 2), bars, MODELS),
        "nothing": (road.stop_sign()[:3], bars, MODELS),
    }


@study(
    "traffic_stickers",
    about="stickers on a stop sign, to be read as limit 80: trained for one view, for many, on "
    "another network, for each defended network; grey and random ones; faint changes of the whole "
    "sign; by distance and angle",
    n=100,
    seeds=(0, 1, 2),
)
def traffic_stickers(seeds: tuple[int, ...]) -> dict[str, Any]:
    """See :func:`curves`: made for, read by -> one entry a seed; and the stickers of the first seed."""
    models = {name: zoo.load_model(name) for name in MODELS}
    found: dict[str, list[Any]] = {}
    kept: dict[str, str] = {}
    for seed in seeds:
        for name, (paint, where, readers) in all_stickers(models, seed).items():
            if seed == seeds[0]:
                kept[name] = packed(paint)
            sign = road.stuck_on(road.stop_sign()[None], paint, where)[0]
            for reader in readers:
                found.setdefault(f"{name} > {reader}", []).append(
                    curves(models[reader], sign, seed)
                )
    return {"stickers": kept, "found": found}


@study(
    "traffic_universal",
    about="one square in the middle of every other sign, to be read as limit 80, by network",
    n=20,
    seeds=(0, 1, 2),
)
def traffic_universal(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Model -> class -> [read as 80, right] of 20, one entry a seed; "grey > signs" likewise."""
    others = [k for k in range(len(CLASSES)) if k != road.GOAL]
    found: dict[str, dict[str, list[Any]]] = {}
    kept = ""
    for seed in seeds:
        for name in (*MODELS, "grey"):
            model = zoo.load_model("signs" if name == "grey" else name)
            paint = torch.full((3, 64, 64), 0.5)
            if name != "grey":
                paint = road.sticker(
                    model, plates()[others], torch.full((45,), road.GOAL), road.square(),
                    batch_size=45, generator=torch.Generator().manual_seed(seed),
                )  # fmt: skip
            if name == "signs" and not kept:
                kept = packed(paint)
            for k in others:
                sign = road.stuck_on(plates()[k][None], paint, road.square())[0]
                answers = road.reads(model, sign, 20, seed)
                hits = [int((answers == which).sum()) for which in (road.GOAL, k)]
                found.setdefault(name, {}).setdefault(CLASSES[k], []).append(hits)
    return {"sticker": kept, "found": found}


# Certificates and votes


@study(
    "traffic_proven",
    about="smoothing signs_sigma25 (sigma 0.25, 2,000 noisy copies): radii proven in l2",
    n=160,
    seeds=(0,),
)
def traffic_proven(seeds: tuple[int, ...]) -> dict[str, Any]:
    """For each of 160 test pictures: "right" (0 or 1, an abstention is 0) and "radius"."""
    x, y = data().x_test[:160], data().y_test[:160]
    generator = torch.Generator().manual_seed(seeds[0])
    made = smooth(zoo.load_model("signs_sigma25"), 0.25).certify(
        x, n0=100, n=2000, generator=generator
    )
    right = (made.prediction == y).int().tolist()
    return {"right": right, "radius": [round(r, 4) for r in made.radius.tolist()]}


def approaches(seed: int, m: int = 160, sign: Tensor | None = None, **ranges: Any) -> road.Tracks:
    """Approaches to all signs in turn, or to one sign; before the photographs of the test.

    Args:
        seed: for all that is drawn.
        m: how many.
        sign: (4, 64, 64) a stop sign, with its sticker if it has one; all signs in turn if None.
        ranges: for :func:`modelsec.signs.draw_views`.

    Returns:
        The :class:`~modelsec.zoo.studies.traffic_road.Tracks`.
    """
    y = torch.arange(m) % len(CLASSES) if sign is None else torch.full((m,), road.STOP)
    shown = plates()[y] if sign is None else sign.expand(m, -1, -1, -1)
    return road.tracks(shown, y, FRAMES, "test", seed, **ranges)


def vote_rates(model: nn.Module, x: Tensor, wanted: Tensor) -> dict[str, int]:
    """How often each way to read gives the class that is wanted.

    Args:
        model: maps (N, 3, 32, 32) to logits.
        x: (M, T, 3, 32, 32).
        wanted: (M,).

    Returns:
        Hits: "frames" of M * T, "majority" and "sum" of M.
    """
    said = road.votes(model, x)
    hits = {"frames": int((said["frames"] == wanted[:, None]).sum())}
    return hits | {way: int((said[way] == wanted).sum()) for way in ("majority", "sum")}


@study(
    "traffic_votes",
    about="160 approaches of 12 frames: single frames against a vote, under noise, under PGD at 8/255 "
    "on all frames or half of them, and with one sticker on the sign",
    n=160,
    seeds=(0,),
)
def traffic_votes(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Model -> condition -> :func:`vote_rates`; with the sticker of "read as limit 80", else right."""
    (seed,) = seeds
    usual, noisy = approaches(seed), approaches(seed, noise=(0.12, 0.2))
    stickers = zoo.load_result("traffic_stickers")["stickers"]
    result: dict[str, Any] = {}
    for name in MODELS:
        model = zoo.load_model(name)
        generator = torch.Generator().manual_seed(seed)
        labels = usual.y.repeat_interleave(FRAMES)
        each = pgd(
            model, usual.x.flatten(0, 1), labels, eps=8 / 255, steps=10, early_stop=False,
            generator=generator,
        ).view_as(usual.x)  # fmt: skip
        chosen = torch.rand(usual.x.shape[:2], generator=generator).argsort(1) < FRAMES // 2
        half = torch.where(chosen[:, :, None, None, None], each, usual.x)
        sign = road.stuck_on(road.stop_sign()[None], unpacked(stickers[name]), road.bars())[0]
        goal = torch.full((160,), road.GOAL)
        result[name] = {
            "usual": vote_rates(model, usual.x, usual.y),
            "noisy": vote_rates(model, noisy.x, noisy.y),
            "PGD on half": vote_rates(model, half, usual.y),
            "PGD on all": vote_rates(model, each, usual.y),
            "no sticker": vote_rates(model, approaches(seed, sign=road.stop_sign()).x, goal),
            "sticker": vote_rates(model, approaches(seed, sign=sign).x, goal),
        }
    return result
