"""Trained models that ship with the package, each with the recipe that makes it again.

Weights are safetensors, checked against the SHA-256 in ``manifest.json`` before they are read:
nothing here is unpickled. A recipe run on another processor gives other bytes, but an accuracy
within the interval that the manifest records.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from modelsec import augmentation, data, models, signs
from modelsec.repair import (
    decay,
    distilled,
    fast,
    ibp_training,
    noise_training,
    pgd_training,
    ramp,
    thermometer,
    trades,
)
from modelsec.repair.schedules import Method, Radius
from modelsec.training import Evaluation, evaluate, fit
from modelsec.zoo import sign_training
from modelsec.zoo.results import load_result
from modelsec.zoo.studies import capstone_case, driving_models

__all__ = [
    "Recipe",
    "load_model",
    "load_result",
    "make",
    "manifest",
    "names",
    "recipes",
    "store",
    "write",
]

_HERE = files("modelsec.zoo")


Train = Callable[[nn.Module, data.Data, torch.Generator], object]


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Attributes:
        build: makes the untrained network.
        train: trains it in place on the data.
        dataset: loads the data.
        about: one sentence for the reader.
        stored: whether its weights ship with the package. Those of others have to be made first.
    """

    build: Callable[[], nn.Module]
    train: Train
    dataset: Callable[[], data.Data]
    about: str
    stored: bool = True


def _standard(model: nn.Module, digits: data.Data, generator: torch.Generator) -> object:
    return fit(model, digits.x_train, digits.y_train, epochs=10, lr=1e-3, generator=generator)


def _hardened(
    method: Callable[..., Method],
    eps: Radius,
    epochs: int,
    lr: float | Callable[[float], float] = 1e-3,
    turned: bool = True,
) -> Train:
    """Adversarial training; see :mod:`modelsec.repair.adversarial_training`.

    The digits are turned and shifted first, unless told otherwise: 4,000 images are few for it,
    and without that the network becomes robust on those that it saw and far less so on others.
    """

    def train(model: nn.Module, digits: data.Data, generator: torch.Generator) -> object:
        turn = augmentation.vary(augmentation.geometric(), group=8, generator=generator)
        options = method(eps=eps, augment=turn if turned else None, generator=generator)
        return fit(
            model, digits.x_train, digits.y_train, epochs=epochs, lr=lr, generator=generator,
            **options,
        )  # fmt: skip

    return train


def _noisy(sigma: float) -> Train:
    """Cohen et al. (2019), https://arxiv.org/abs/1902.02918: a base model to be smoothed."""

    def train(model: nn.Module, digits: data.Data, generator: torch.Generator) -> object:
        return fit(
            model, digits.x_train, digits.y_train, epochs=15, batch_size=100, lr=decay(2e-3),
            generator=generator, **noise_training(sigma, generator=generator),
        )  # fmt: skip

    return train


def _provable(eps: float, epochs: int) -> Train:
    """Gowal et al. (2018), https://arxiv.org/abs/1810.12715: a network that intervals can certify."""

    def train(model: nn.Module, digits: data.Data, generator: torch.Generator) -> object:
        return fit(
            model, digits.x_train, digits.y_train, epochs=epochs, batch_size=100, lr=decay(1e-3),
            generator=generator, **ibp_training(eps=eps),
        )  # fmt: skip

    return train


def _pupil(model: nn.Module, digits: data.Data, generator: torch.Generator) -> object:
    """Papernot et al. (2016), https://arxiv.org/abs/1511.04508, as :func:`distilled` has it."""
    made = distilled(models.ConvNet, digits.x_train, digits.y_train, generator=generator)
    return model.load_state_dict(made.state_dict())


def _thermometer_net(levels: int = 10) -> nn.Module:
    """The code needs no normalisation."""
    zeros, ones = [0.0] * levels, [1.0] * levels
    return nn.Sequential(thermometer(levels), models.ConvNet(levels, mean=zeros, std=ones))


recipes: dict[str, Recipe] = {
    "net": Recipe(
        models.Net, _standard, data.mnist, "784-128-64-10, cross-entropy, Adam 1e-3, 10 epochs"
    ),
    "convnet": Recipe(
        models.ConvNet, _standard, data.mnist, "two stride-2 convolutions, trained the same way"
    ),
    "convnet_robust": Recipe(
        models.ConvNet,
        _hardened(pgd_training, ramp(0.3), 40, decay(2e-3)),
        data.mnist,
        "the same, adversarially trained: PGD-7 in linf, eps up to 0.3, 40 epochs, digits turned and shifted",
    ),
    "net_robust": Recipe(
        models.Net,
        _hardened(pgd_training, ramp(0.1), 40, decay(2e-3)),
        data.mnist,
        "784-128-64-10, adversarially trained: PGD-7 in linf, eps up to 0.1, 40 epochs, digits turned and shifted",
    ),
    "convnet_trades": Recipe(
        models.ConvNet,
        _hardened(partial(trades, beta=6.0), ramp(0.3), 30, decay(2e-3)),
        data.mnist,
        "the ConvNet, trained with TRADES: beta 6, eps up to 0.3, 30 epochs, digits turned and shifted",
    ),
    "convnet_fast": Recipe(
        models.ConvNet,
        _hardened(fast, ramp(0.3, 0.8), 12, turned=False),
        data.mnist,
        "the ConvNet, trained with FGSM-RS, eps up to 0.3, 12 epochs: collapsed, to be looked at",
    ),
    "convnet_robust_full": Recipe(
        models.ConvNet,
        _hardened(pgd_training, ramp(0.3), 20, decay(2e-3), turned=False),
        partial(data.mnist, "full"),
        "convnet_robust, trained on all 60,000 images of MNIST for 20 epochs; its data must be fetched",
        stored=False,
    ),
    "convnet_sigma25": Recipe(
        models.ConvNet,
        _noisy(0.25),
        data.mnist,
        "the ConvNet, trained on Gaussian noise of sigma 0.25, 15 epochs: to be smoothed",
    ),
    "convnet_sigma50": Recipe(
        models.ConvNet,
        _noisy(0.5),
        data.mnist,
        "the ConvNet, trained on Gaussian noise of sigma 0.5, 15 epochs: to be smoothed",
    ),
    "convnet_sigma100": Recipe(
        models.ConvNet,
        _noisy(1.0),
        data.mnist,
        "the ConvNet, trained on Gaussian noise of sigma 1.0, 15 epochs: to be smoothed",
    ),
    "convnet_distilled": Recipe(
        models.ConvNet,
        _pupil,
        data.mnist,
        "the ConvNet, defensively distilled at temperature 100, 10 epochs: broken, to be looked at",
    ),
    "convnet_thermometer": Recipe(
        _thermometer_net,
        _standard,
        data.mnist,
        "the ConvNet on a thermometer code of 10 levels, 10 epochs: broken, to be looked at",
    ),
    "convnet_ibp": Recipe(
        models.ConvNet,
        _provable(0.2, 30),
        data.mnist,
        "the ConvNet, trained with interval bounds: eps up to 0.2, kappa down to 0.5, 30 epochs",
    ),
    "capstone": Recipe(
        models.ConvNet,
        capstone_case.train,
        capstone_case.delivered,
        "the network of the capstone's case, as delivered: its history is for you to find out",
    ),
    "driver": Recipe(
        driving_models.network,
        driving_models.plain_training,
        driving_models.road_frames,
        "the ConvNet as a driver: frames of a race track, 15 positions of the wheel, 10 epochs",
    ),
    "driver_robust": Recipe(
        driving_models.network,
        driving_models.robust_training,
        driving_models.road_frames,
        "driver, trained on frames that push the wheel aside: PGD-5 in linf, eps up to 8/255, 25 epochs",
    ),
    "signs": Recipe(
        sign_training.sign_net,
        sign_training.plain,
        signs.signs_data,
        "the ConvNet for 16 rendered traffic signs in colour, cross-entropy, 25 epochs",
    ),
    "signs_robust": Recipe(
        sign_training.sign_net,
        sign_training.hardened,
        signs.signs_data,
        "signs, adversarially trained: PGD-5 in linf, eps up to 8/255, 20 epochs",
    ),
    "signs_covered": Recipe(
        sign_training.sign_net,
        sign_training.covered,
        signs.signs_data,
        "signs, trained with adversarial rectangles on 6 in 10 pictures, 25 epochs",
    ),
    "signs_sigma25": Recipe(
        sign_training.sign_net,
        sign_training.noisy,
        signs.signs_data,
        "signs, trained on Gaussian noise of sigma 0.25, 25 epochs: to be smoothed",
    ),
}


def names() -> list[str]:
    """The models that can be loaded."""
    return sorted(name for name, recipe in recipes.items() if recipe.stored)


def manifest() -> dict[str, dict[str, Any]]:
    """For every stored model: its file, SHA-256, seed, n, clean accuracy and torch version."""
    stored: dict[str, dict[str, Any]] = json.loads(
        (_HERE / "manifest.json").read_text(encoding="utf-8")
    )
    return stored


def load_model(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """A trained model, in eval mode, its file checked against the recorded hash.

    Args:
        name: one of :func:`names`.
        device: where to put it.

    Returns:
        The model.

    Raises:
        ValueError: for an unknown name, one that is not stored, or a file that is not the recorded
            one.
    """
    recipe = _recipe(name)
    if not recipe.stored:
        raise ValueError(
            f"the weights of {name} do not ship with the package: make them with "
            f"`python -m modelsec zoo make {name} --out DIR`"
        )
    entry = manifest()[name]
    content = (_HERE / "weights" / entry["file"]).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise ValueError(
            f"{entry['file']} has SHA-256 {found}, the manifest says {entry['sha256']}: the file "
            "was changed or damaged; reinstall modelsec"
        )
    with torch.random.fork_rng(devices=[]):  # the first weights drawn here are replaced at once
        model = recipe.build()
    model.load_state_dict(load(content))
    return model.to(device).eval()


def make(name: str, seed: int = 0) -> tuple[nn.Module, Evaluation]:
    """Train a model of the zoo again, from its recipe.

    Torch's global generator is seeded for the layers' first weights and put back afterwards.

    Args:
        name: one of :func:`names`.
        seed: for the first weights and the order of the data.

    Returns:
        The model in eval mode, and its accuracy on the data's test set.

    Raises:
        ValueError: for an unknown name.
        FileNotFoundError: if its data have to be fetched first; the message says how.
    """
    recipe = _recipe(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = recipe.build()
        digits = recipe.dataset()
        recipe.train(model, digits, torch.Generator().manual_seed(seed))
    return model.eval(), evaluate(model, digits.x_test, digits.y_test)


def write(model: nn.Module, path: str | Path) -> Path:
    """Write a model's weights as safetensors, in one step.

    Args:
        model: whose ``state_dict`` is written.
        path: the file. Its folder must exist.

    Returns:
        The path.
    """
    content = {key: value.contiguous() for key, value in model.state_dict().items()}
    return _replace(Path(path), save(content))


def store(name: str, model: nn.Module, accuracy: Evaluation, seed: int = 0) -> Path:
    """Put a model that :func:`make` returned into the package: for its authors.

    Args:
        name: one of :func:`names`.
        model: as made.
        accuracy: as made; it goes into the manifest.
        seed: that it was made with.

    Returns:
        The path of its weights.

    Raises:
        ValueError: for a recipe whose weights are not stored.
    """
    if not _recipe(name).stored:
        raise ValueError(f"{name} is not stored in the package: write it into a folder of your own")
    folder = Path(str(_HERE))
    path = write(model, folder / "weights" / f"{name}.safetensors")
    low, high = accuracy.interval
    entry = {
        "about": recipes[name].about,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "seed": seed,
        "n": accuracy.n,
        "clean_accuracy": accuracy.value,
        "interval": [round(low, 4), round(high, 4)],
        "torch": torch.__version__.split("+")[0],
    }
    text = json.dumps(manifest() | {name: entry}, indent=2, sort_keys=True) + "\n"
    _replace(folder / "manifest.json", text.encode())
    return path


def _replace(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f"{path.name}.new")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _recipe(name: str) -> Recipe:
    if name not in recipes:
        raise ValueError(f"no model {name!r} in the zoo; there are {names()}")
    return recipes[name]
