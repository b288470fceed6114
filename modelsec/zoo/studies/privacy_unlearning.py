"""The studies behind the second half of the chapter on repairing privacy: has it forgotten?

Half of 100 candidates are trained on beside 500 images that are kept, and have to be forgotten. The
others were never seen. An attacker who knows the kept images has to tell the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from modelsec.attacks.membership import Shadows, by_loss, lira, shadows, trials
from modelsec.repair import Sharded, ascend, fit_head, newton_forget
from modelsec.training import evaluate
from modelsec.zoo.results import study
from modelsec.zoo.studies.privacy_repair import Train, digits, standard, told

__all__ = ["FORGETTING", "HEADS", "KEPT", "forgotten", "public_features"]

KEPT, CANDIDATES, COUNT, L2 = 500, 100, 16, 1.0
GAMES, NOISES = 8, (0.01, 0.03, 0.1)
Pair = tuple[Tensor, Tensor]
Forget = Callable[[nn.Module, Pair, Pair, torch.Generator], nn.Module]


@cache
def public_features() -> nn.Module:
    """A network trained on 3,000 other images, whose features nobody asks to be forgotten."""
    x, y = digits().x_train[1000:], digits().y_train[1000:]
    return standard(x, y, torch.Generator().manual_seed(0), epochs=10)


def _head(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Module:
    return fit_head(public_features(), x, y, l2=L2)


def _climb(
    model: nn.Module, forget: Pair, keep: Pair, generator: torch.Generator, lr: float
) -> nn.Module:
    """Ascent, stopped where the forgotten are answered no better than the test images."""
    goal = evaluate(model, digits().x_test, digits().y_test).value
    return ascend(
        model, forget, keep, steps=300, lr=lr, until=goal, batch_size=128, generator=generator
    )


FORGETTING: dict[str, Forget] = {
    "nothing": lambda model, forget, keep, g: model,
    "fine-tuning": lambda model, forget, keep, g: ascend(
        model, forget, keep, weight=0, steps=100, batch_size=128, generator=g
    ),
    "ascent, small steps": partial(_climb, lr=1e-4),
    "ascent, large steps": partial(_climb, lr=1e-3),
    "sharding, 5": lambda model, forget, keep, g: _shards(keep, g),
    "retraining": lambda model, forget, keep, g: standard(*keep, g),
}


def _shards(keep: Pair, generator: torch.Generator) -> Any:
    """What a sharded model is after forgetting: the one that never saw them."""
    return Sharded(standard, shards=5, generator=generator).fit(*keep)


def _step(
    model: nn.Module, forget: Pair, keep: Pair, generator: torch.Generator, noise: float
) -> nn.Module:
    return newton_forget(model, *keep, l2=L2, noise=noise, generator=generator)


HEADS: dict[str, Forget] = {
    "nothing": lambda model, forget, keep, g: model,
    f"nothing, noise {NOISES[-1]}": lambda model, forget, keep, g: newton_forget(
        model, torch.cat([keep[0], forget[0]]), torch.cat([keep[1], forget[1]]), l2=L2,
        noise=NOISES[-1], generator=g,
    ),
    "Newton step": partial(_step, noise=0),
    **{f"Newton step, noise {noise}": partial(_step, noise=noise) for noise in NOISES},
    f"retraining, noise {NOISES[-1]}": lambda model, forget, keep, g: fit_head(
        model, *keep, l2=L2, noise=NOISES[-1], generator=g
    ),
}  # fmt: skip


def forgotten(
    train: Train, methods: dict[str, Forget], generator: torch.Generator, count: int = COUNT
) -> dict[str, Any]:
    """Train on kept images and half of the candidates, forget these, and attack what comes out.

    Args:
        train: makes the model that has to forget.
        methods: ways to do so, each called with (model, forgotten, kept, generator).
        generator: draws halves and seeds.
        count: how many models, an even number.

    Returns:
        For each method: "test", its accuracies; "forgotten" and "never", the mean accuracy on those
        candidates; and what LiRA ("lira") and the loss threshold ("loss") make of the question which
        of the candidates were in training. The attacker knows the kept images and the method.
    """
    x, y = digits().x_train[: KEPT + CANDIDATES], digits().y_train[: KEPT + CANDIDATES]
    keep, asked = (x[:KEPT], y[:KEPT]), (x[KEPT:], y[KEPT:])
    right: list[list[float]] = []

    def train_and_forget(
        x: Tensor, y: Tensor, drawn: torch.Generator
    ) -> Callable[[Tensor], Tensor]:
        full = train(torch.cat([keep[0], x]), torch.cat([keep[1], y]), drawn)
        made = [method(full, (x, y), keep, drawn) for method in methods.values()]
        test = digits().x_test, digits().y_test
        right.append([evaluate(model, *test).value for model in made])
        return lambda images: torch.cat([model(images) for model in made], 1)

    several = shadows(train_and_forget, *asked, count=count, generator=generator)
    found = {}
    for k, name in enumerate(methods):
        answers = Shadows(several.logits[..., 10 * k : 10 * k + 10], several.inside)
        hit = answers.logits.argmax(-1) == asked[1]
        found[name] = {
            "test": [each[k] for each in right],
            "forgotten": round(float(hit[answers.inside].double().mean()), 4),
            "never": round(float(hit[~answers.inside].double().mean()), 4),
            "lira": told(trials(partial(lira, online=True), answers, *asked)),
            "loss": told(trials(lambda logits, _, x, y: by_loss(logits, x, y), answers, *asked)),
        }
    return found


def replayed(games: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several games as one, for an interval that chance in a single game can't make too narrow.

    Within a game all targets meet the same shadows; the games share nothing but the images.

    Args:
        games: each from :func:`forgotten`, all of the same methods.

    Returns:
        For each method: "test", one mean accuracy a game; "forgotten" and "never", means over the
        games; and "games": an attack -> one mean AUC a game.
    """

    def mean(values: Sequence[float]) -> float:
        return round(sum(values) / len(values), 4)

    return {
        name: {
            "test": [mean(game[name]["test"]) for game in games],
            "forgotten": mean([game[name]["forgotten"] for game in games]),
            "never": mean([game[name]["never"] for game in games]),
            "games": {
                attack: [mean(game[name][attack]["auc"]) for game in games]
                for attack in ("lira", "loss")
            },
        }
        for name in games[0]
    }


@study(
    "privacy_unlearning",
    about="which of 100 candidates were trained on and forgotten? LiRA after several ways to forget",
    n=CANDIDATES,
    seeds=(0,),
)
def unlearning(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Whole networks; a last layer on public features; the price of shards.

    Returns:
        "network": what :func:`forgotten` says; "head": what :func:`replayed` says of eight games;
        "shards": number -> accuracies of 3 seeds on 1,000 training images, and the samples trained
        on again for each of two single requests.
    """

    def drawn(k: int) -> torch.Generator:
        return torch.Generator().manual_seed(seeds[0] + k)

    return {
        "network": forgotten(standard, FORGETTING, drawn(0)),
        "head": replayed(
            [forgotten(_head, HEADS, drawn(1 + game), 2 * COUNT) for game in range(GAMES)]
        ),
        "shards": {str(number): _price(number) for number in (1, 2, 5, 10, 20)},
    }


def _price(number: int) -> dict[str, list[Any]]:
    x, y = digits().x_train[:1000], digits().y_train[:1000]
    made = [
        Sharded(standard, shards=number, generator=torch.Generator().manual_seed(seed)).fit(x, y)
        for seed in range(3)
    ]
    right = [evaluate(model, digits().x_test, digits().y_test).value for model in made]
    return {"accuracy": right, "again": [made[0].forget(torch.tensor([i])) for i in range(2)]}
