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
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from modelsec import augmentation, data, models
from modelsec.attacks import pgd
from modelsec.training import Evaluation, evaluate, fit
from modelsec.zoo.results import load_result

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


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Attributes:
        build: makes the untrained network.
        train: trains it in place on the data.
        dataset: loads the data.
        about: one sentence for the reader.
    """

    build: Callable[[], nn.Module]
    train: Callable[[nn.Module, data.Data, torch.Generator], object]
    dataset: Callable[[], data.Data]
    about: str


def _standard(model: nn.Module, digits: data.Data, generator: torch.Generator) -> object:
    return fit(model, digits.x_train, digits.y_train, epochs=10, lr=1e-3, generator=generator)


def _adversarial(model: nn.Module, digits: data.Data, generator: torch.Generator) -> object:
    """Madry et al. (2018), https://arxiv.org/abs/1706.06083: train on what PGD makes of a batch.

    The digits are turned and shifted first: 4,000 images are few for it, and without that the
    network becomes robust on those that it saw and far less so on others.
    """
    vary = augmentation.vary(augmentation.geometric(), group=8, generator=generator)

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        varied = vary(model, x, y, progress)
        assert isinstance(varied, Tensor)
        # the radius grows for the first part of training, then stays
        eps = 0.3 * min(progress / 0.6, 1)
        return pgd(model, varied, y, eps=eps, steps=7, early_stop=False, generator=generator)

    def rate(progress: float) -> float:
        return 2e-3 * min(1, 2.5 * (1 - progress) + 0.02)

    return fit(
        model, digits.x_train, digits.y_train, epochs=40, lr=rate, perturb=perturb,
        generator=generator,
    )  # fmt: skip


recipes: dict[str, Recipe] = {
    "net": Recipe(
        models.Net, _standard, data.mnist, "784-128-64-10, cross-entropy, Adam 1e-3, 10 epochs"
    ),
    "convnet": Recipe(
        models.ConvNet, _standard, data.mnist, "two stride-2 convolutions, trained the same way"
    ),
    "convnet_robust": Recipe(
        models.ConvNet,
        _adversarial,
        data.mnist,
        "the same, adversarially trained: PGD-7 in linf, eps up to 0.3, 40 epochs, digits turned and shifted",
    ),
}


def names() -> list[str]:
    """The models that can be loaded."""
    return sorted(recipes)


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
        ValueError: for an unknown name, or a file that is not the recorded one.
    """
    recipe = _recipe(name)
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
    """
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
