"""The long results of the chapter on black-box attacks: success against queries, and transfer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modelsec import data, models
from modelsec.attacks.black_box import square
from modelsec.attacks.common import Iterate
from modelsec.attacks.estimated_gradient import nes, spsa
from modelsec.attacks.hopskipjump import Progress, hopskipjump
from modelsec.attacks.queries import labels_only, scores_only
from modelsec.attacks.transfer import ensemble, transfer
from modelsec.training import evaluate, fit
from modelsec.zoo import load_model
from modelsec.zoo.results import study

__all__ = [
    "ATTACKED",
    "OWN",
    "black_box_queries",
    "black_box_transfer",
    "first_success",
    "noise",
    "surrogate",
]

N, QUERIES = 200, 5000
TARGETS = {"net": 0.1, "convnet": 0.1, "convnet_robust": 0.3}
OWN = slice(500, 1000)  # of the test images: what the attacker of the transfer study owns
ATTACKED = slice(0, 500)


def first_success(
    attack: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, queries: int, seed: int
) -> Tensor:
    """With which query each image was first changed, within eps in linf, to one answered wrongly.

    Args:
        attack: "NES", "SPSA", "Square" or "HopSkipJump". The first three see logits, the last
            one labels; of its points only those within eps count.
        model: what is attacked.
        x: (N, ...) images in [0, 1].
        y: (N,) their labels.
        eps: the radius in linf.
        queries: for each image.
        seed: for what is drawn.

    Returns:
        (N,) numbers of queries; infinite where there was no success, and 0 for an image that was
        wrong from the start.
    """
    generator, first = torch.Generator().manual_seed(seed), torch.full((len(x),), torch.inf)
    if attack == "HopSkipJump":

        def near(seen: Progress) -> None:
            now = (seen.distance <= eps) & first.isinf()
            first[now] = seen.queries[now].float()

        hopskipjump(
            labels_only(model), x, y, norm="linf", queries=queries, callback=near,
            generator=generator,
        )  # fmt: skip
    else:
        last = torch.zeros(len(x))

        def asked(seen: Iterate) -> None:
            last[seen.rows] = float(seen.step)

        functions: dict[str, Callable[..., Tensor]] = {"NES": nes, "SPSA": spsa, "Square": square}
        scores = scores_only(model, probabilities=False)
        adv = functions[attack](
            scores, x, y, eps=eps, queries=queries, callback=asked, generator=generator
        )
        fooled = scores(adv).argmax(1) != y
        first[fooled] = last[fooled]
    first[~evaluate(model, x, y).correct] = 0
    return first


@study(
    "black_box_queries",
    about="NES, SPSA, Square and HopSkipJump in linf on three networks: the query of each image's "
    "first error.",
    n=N,
    seeds=(0,),
)
def black_box_queries(seeds: tuple[int, ...]) -> dict[str, Any]:
    """For each network and attack, per image: the number of its first query with an error, or -1."""
    digits = data.mnist()
    x, y = digits.x_test[:N], digits.y_test[:N]
    found: dict[str, Any] = {"queries": QUERIES, "eps": TARGETS, "first": {}}
    for name, eps in TARGETS.items():
        model = load_model(name)
        run = partial(first_success, model=model, x=x, y=y, eps=eps, queries=QUERIES, seed=seeds[0])
        found["first"][name] = {
            attack: [-1 if q == torch.inf else int(q) for q in run(attack).tolist()]
            for attack in ("NES", "SPSA", "Square", "HopSkipJump")
        }
    return found


def surrogate(build: Callable[[], nn.Module], x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """A network of the attacker's own, trained for 40 epochs on what the attacker has.

    Args:
        build: makes the untrained network.
        x: (N, ...) images in [0, 1].
        y: (N,) their labels.
        seed: for the first weights and the order.

    Returns:
        The network, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    model = models.fresh(build, generator)
    fit(model, x, y, epochs=40, generator=generator, progress=False)
    return model.eval()


def noise(x: Tensor, eps: float, seed: int) -> Tensor:
    """The control: every pixel up or down by eps at random, clipped to [0, 1].

    Args:
        x: (N, ...) images in [0, 1].
        eps: size of the change.
        seed: for the signs.

    Returns:
        (N, ...).
    """
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return (x + eps * (drawn - 0.5).sign().to(x.device)).clamp(0, 1)


@study(
    "black_box_transfer",
    about="Images made on surrogates that were trained on 500 digits, shown to three networks: by "
    "architecture, data, momentum and ensemble, for five trainings each.",
    n=500,
    seeds=tuple(range(5)),
)
def black_box_transfer(seeds: tuple[int, ...]) -> dict[str, Any]:
    """How many of 500 test images each target gets right, per surrogate and seed.

    A key of "left" is "target/data/surrogate/momentum". Data: "own" are 500 images that the target
    never saw, "shared" are 500 that it was trained on; "zoo" is one of the zoo's networks, "none"
    needs none. Surrogates: "net", "convnet", "both", "four" (two of each), and "noise", random
    changes. Momentum: "0" or "1".
    """
    digits = data.mnist()
    x, y = digits.x_test[ATTACKED], digits.y_test[ATTACKED]
    pools = {
        "own": (digits.x_test[OWN], digits.y_test[OWN]),
        "shared": (digits.x_train[:500], digits.y_train[:500]),
    }
    builds: dict[str, Callable[[], nn.Module]] = {"net": models.Net, "convnet": models.ConvNet}
    targets = {name: load_model(name) for name in TARGETS}
    left: dict[str, list[int]] = {}

    def note(key: str, name: str, adv: Tensor) -> None:
        left.setdefault(f"{name}/{key}", []).append(evaluate(targets[name], adv, y).hits)

    def show(key: str, source: nn.Module, names: list[str]) -> None:
        for name in names:
            for decay in (0, 1):
                adv = transfer(source, x, y, eps=TARGETS[name], decay=float(decay))
                note(f"{key}/{decay}", name, adv)

    for seed in seeds:
        for pool, own in pools.items():
            made = {
                (kind, k): surrogate(build, *own, 100 * k + seed)
                for kind, build in builds.items()
                for k in (0, 1)
            }
            sources = {kind: made[kind, 0] for kind in builds} | {
                "both": ensemble([made["net", 0], made["convnet", 0]]),
                "four": ensemble(list(made.values())),
            }
            for kind, source in sources.items():
                show(f"{pool}/{kind}", source, list(TARGETS))
        for name, eps in TARGETS.items():
            note("none/noise/0", name, noise(x, eps, seed))
    for other, source in targets.items():
        show(f"zoo/{other}", source, [name for name in TARGETS if name != other])
    clean = {name: evaluate(target, x, y).hits for name, target in targets.items()}
    return {"eps": TARGETS, "clean": clean, "left": left}
