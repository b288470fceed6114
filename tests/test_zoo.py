"""The zoo: its models load unchanged or not at all, and each can be made again."""

import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from modelsec import zoo
from modelsec.attacks import pgd
from modelsec.data import Data, mnist
from modelsec.training import evaluate
from modelsec.zoo import load_model, make, manifest, names

HERE = Path(str(files("modelsec.zoo")))
every = pytest.mark.parametrize("name", names())


@cache
def made(load: Callable[[], Data]) -> Data:
    """A data set, loaded once for all tests."""
    return load()


def data_of(name: str) -> Data:
    """The data of a stored model; MNIST's digits for the others, whose data may not be there."""
    return made(zoo.recipes[name].dataset if name in names() else mnist)


def test_recipes_manifest_and_files_belong_together() -> None:
    assert names() == sorted(manifest())
    assert {entry["file"] for entry in manifest().values()} == {
        path.name for path in (HERE / "weights").iterdir()
    }
    assert sum(path.stat().st_size for path in (HERE / "weights").iterdir()) < 30_000_000


# All of them are measured by `zoo verify`, among the README's commands.
@pytest.mark.parametrize("name", ["net", "convnet"])
def test_the_stored_model_is_as_accurate_as_recorded(name: str) -> None:
    model, entry, images = load_model(name), manifest()[name], data_of(name)
    outcome = evaluate(model, images.x_test, images.y_test)
    assert not any(module.training for module in model.modules())
    assert outcome.n == entry["n"]
    assert outcome.value == pytest.approx(entry["clean_accuracy"], abs=0.002)
    assert list(outcome.interval) == pytest.approx(entry["interval"], abs=0.003)


@every
def test_weights_are_safetensors_whose_hash_is_recorded(name: str) -> None:
    entry = manifest()[name]
    content = (HERE / "weights" / entry["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])  # a JSON header, then plain numbers
    assert set(load_model(name).state_dict()) == set(header) - {"__metadata__"}


@every
def test_loading_unpickles_nothing_and_draws_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    state = torch.get_rng_state()
    load_model(name)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The zoo reads from this copy of its files."""
    (tmp_path / "weights").mkdir()
    for path in [HERE / "manifest.json", *(HERE / "weights").iterdir()]:
        (tmp_path / path.relative_to(HERE)).write_bytes(path.read_bytes())
    monkeypatch.setattr(zoo, "_HERE", tmp_path)
    return tmp_path


@every
@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_changed_byte_is_refused(name: str, position: int, copy: Path) -> None:
    load_model(name)
    path = copy / "weights" / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"SHA-256 .* reinstall modelsec"):
        load_model(name)


def test_half_a_file_is_refused(copy: Path) -> None:
    path = copy / "weights" / "net.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="SHA-256"):
        load_model("net")


@pytest.mark.parametrize("function", [load_model, make])
def test_an_unknown_name_is_answered_with_the_known_ones(function) -> None:
    with pytest.raises(
        ValueError,
        match=r"no model 'gpt' in the zoo; there are \['capstone', 'convnet', ",
    ):
        function("gpt")


def test_loads_on_the_device_asked_for() -> None:
    assert {p.device.type for p in load_model("net", "meta").parameters()} == {"meta"}


# Minutes of training: `python -m modelsec zoo make NAME` makes it again, the tests only begin to.
QUICK = {"convnet", "driver", "net"}
LONG = set(names()) - QUICK
UNSTORED = sorted(set(zoo.recipes) - set(names()))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(QUICK))
def test_the_recipe_makes_it_again_within_its_interval(name: str) -> None:
    entry = manifest()[name]
    state = torch.get_rng_state()
    model, accuracy = make(name, entry["seed"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    low, high = entry["interval"]
    assert low <= accuracy.value <= high


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(LONG), *UNSTORED])
def test_a_long_recipe_runs_on_a_few_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(name)
    n = 64 if len(data.classes) == 10 else 160
    few = replace(data, x_train=data.x_train[:n], y_train=data.y_train[:n])
    monkeypatch.setitem(zoo.recipes, name, replace(zoo.recipes[name], dataset=lambda: few))
    model, accuracy = make(name)
    assert not model.training
    # even from these it learns something: more than guessing explains
    assert accuracy.interval[0] > 1 / len(data.classes)


@pytest.mark.parametrize("name", UNSTORED)
def test_a_model_that_does_not_ship_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSEC_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"python -m modelsec zoo make {name} --out DIR"):
        load_model(name)
    with pytest.raises(FileNotFoundError, match="python -m modelsec fetch mnist"):
        make(name)
    with pytest.raises(ValueError, match="not stored in the package"):
        zoo.store(name, zoo.models.ConvNet(), evaluate(load_model("net"), *_few()))


def _few() -> tuple[torch.Tensor, torch.Tensor]:
    digits = mnist()
    return digits.x_test[:10], digits.y_test[:10]


def test_the_robust_model_withstands_what_fools_the_other() -> None:
    digits = mnist()
    left = {
        name: evaluate(
            load_model(name), digits.x_test[:200], digits.y_test[:200],
            attack=partial(pgd, eps=0.3, steps=20, generator=torch.Generator().manual_seed(0)),
        ).value
        for name in ("convnet", "convnet_robust")
    }  # fmt: skip
    assert left["convnet"] < 0.05
    assert left["convnet_robust"] > 0.75


def test_a_recipe_gives_the_same_bytes_on_the_same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    short = zoo.Recipe(
        zoo.models.Net,
        lambda model, digits, generator: zoo.fit(
            model, digits.x_train[:200], digits.y_train[:200], epochs=1, generator=generator
        ),
        mnist,
        "a short one",
    )
    monkeypatch.setitem(zoo.recipes, "short", short)
    made = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 0, 1):
            torch.rand(1)  # what was drawn before makes no difference
            made.append(make("short", seed)[0].state_dict())
    first, again, other = made
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
