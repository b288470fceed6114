"""The command line: every way to use it, and every way to use it wrongly, in one sentence each."""

import argparse
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import modelsec
from modelsec import data, fetch, zoo
from modelsec.__main__ import main, parser
from modelsec.data import mnist
from modelsec.loading import find_data
from modelsec.models import Net
from modelsec.zoo import results
from modelsec.zoo.results import study
from modelsec.zoo.verify import compare

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--n", "20", "--sections", "clean", "--device", "cpu"]

MINE = """
import torch
from torch import nn
from modelsec.data import Data, mnist

sizes = [1, 2]
ready = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

class Small(nn.Sequential):
    def __init__(self, width=3):
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))

class Holder:
    small = Small

class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()

def fails():
    return {}["no such key"]

def leaves():
    raise SystemExit("bye")

def number():
    return 7

def logits(x):
    return x.flatten(1)[:, :10]

def faulty():
    return broken

def broken(x):
    return x.no_such_method()

def images_out():
    return nn.Identity()

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

def tied():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    model[3].weight = model[2].weight
    return model

def data():
    return mnist()

def pair():
    digits = mnist()
    return digits.x_test[:50], digits.y_test[:50]

def colour():
    return torch.rand(9, 3, 32, 32), torch.arange(9)

def bytes_of_255():
    return 255 * torch.rand(9, 1, 28, 28), torch.arange(9)

def needs(what):
    return what
"""


digits = functools.cache(mnist)  # reading them takes half a second


def line(text: str) -> int:
    """Where a text stands in the reader's module."""
    return MINE[: MINE.index(text)].count("\n") + 1


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's folder, with a module ``mine`` in it; it is the current one."""
    monkeypatch.setattr(data, "mnist", digits)
    monkeypatch.setitem(data.named, "mnist", digits)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken_import.py").write_text("import json\njson.loads('{')\n")
    (tmp_path / "broken_syntax.py").write_text("def f(:\n")
    (tmp_path / "lacks.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("mine", "broken_import", "broken_syntax", "lacks"):
        sys.modules.pop(name, None)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must end with 2 and one sentence; return the sentence."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    err = re.sub(r"^.*\r", "", err)  # a bar that has vanished
    assert err.startswith(f"modelsec {words[0]}: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


# --- as a command -------------------------------------------------------------------------------


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelsec", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_help_comes_at_once_and_loads_no_torch() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = run("--help")
        times.append(time.perf_counter() - start)
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("audit", "zoo", "fetch", "doctor"))
    assert min(times) < 1
    code = (
        "import sys; from modelsec.__main__ import parser; parser(); print('torch' in sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout == "False\n"


@pytest.mark.slow
def test_audit_as_a_command(here: Path) -> None:
    """From a folder that is not on the path, with a model and data of the reader's own."""
    result = run(
        "audit", "--model", "mine:Small", "--data", "mine:pair", *QUICK, "--html", "c.html"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Audit card: mine:Small, on 20 test images of mine:pair")
    assert (here / "c.html").read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.suffix for path in here.glob("c*")) == [".html"]


def test_a_wrong_word_as_a_command(here: Path) -> None:
    result = run("audit", "--model", "zoo:net", "--html", "card.pdf")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "modelsec audit: --html wants a file name that ends in .html, got card.pdf\n"
    )


def test_the_script_of_the_package_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["modelsec"].split(":")
    assert getattr(importlib.import_module(module), name) is main


def test_a_script_finds_modules_of_the_current_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script's path holds the script's folder, not the current one."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(here))])
    assert main(["audit", "--model", "mine:Small", "--data", "mine:pair", *QUICK]) == 0
    assert "mine:Small" in capsys.readouterr().out


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["zoo"]])
def test_without_a_command_it_says_which_there_are(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["usage: python -m modelsec", *words]))
    assert ("doctor" if not words else "verify") in out
    assert err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"modelsec {modelsec.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["atack"],
        ["audit"],
        ["audit", "--model", "zoo:net", "--radii", "much"],
        ["audit", "--model", "zoo:net", "--radii", "1/0"],
        ["audit", "--model", "zoo:net", "--n", "many"],
        ["zoo", "make"],
        ["zoo", "make", "net", "--store", "--out", "."],
    ],
    ids=" ".join,
)
def test_what_is_no_command_gets_its_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("usage: python -m modelsec")
    assert "error: " in err.splitlines()[-1]


def subparsers(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command with its actions: "" is the top, "zoo make" an action."""
    found = {of.prog.removeprefix("python -m modelsec").strip(): of}
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= subparsers(inner)
    return found


def test_the_page_shows_the_help_as_it_is() -> None:
    """Space by space it differs between versions of Python, so words are compared."""
    page = (ROOT / "reference" / "command_line.md").read_text(encoding="utf-8")
    shown = [text.split() for text in re.findall(r"```text\n(usage:.*?)```", page, re.DOTALL)]
    for name, command in subparsers(parser()).items():
        if name not in {"zoo list", "zoo verify"}:  # they take no options
            assert command.format_help().split() in shown, name
    assert len(shown) == len(subparsers(parser())) - 2


# --- audit: the model -----------------------------------------------------------------------------


def card(capsys: pytest.CaptureFixture[str], here: Path, *words: str) -> dict[str, Any]:
    """Run an audit that must succeed; return what it wrote as JSON."""
    assert main(["audit", *QUICK, "--json", "card.json", *words]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("Audit card: ")
    assert out.endswith("written: card.json\n")
    return json.loads((here / "card.json").read_text())


def accuracy(found: dict[str, Any]) -> float:
    return float(found["sections"][0]["measures"]["accuracy"]["value"])


def test_a_model_of_the_zoo(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = card(capsys, here, "--model", "zoo:net")
    x, y = digits().x_test[:20], digits().y_test[:20]
    right = zoo.load_model("net")(x).argmax(1) == y
    assert accuracy(found) == pytest.approx(right.double().mean().item())
    assert (found["model"], found["data"], found["n"]) == ("net", "mnist-5k", 20)


@pytest.mark.parametrize("name", ["Small", "Holder.small", "ready", "logits", "images_out"])
def test_the_forms_of_a_model(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class, one inside another, a module, a function of images, a factory; one that is no model."""
    if name == "images_out":
        assert "logits (2, K), got (2, 1, 28, 28)" in refused(
            capsys, "audit", "--model", f"mine:{name}"
        )
    else:
        assert card(capsys, here, "--model", f"mine:{name}")["model"] == f"mine:{name}"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("net", "model must be zoo:NAME or package.module:name"),
        ("zoo:", "model must be zoo:NAME or package.module:name"),
        ("zoo:gpt", r"no model 'gpt' in the zoo; there are \["),
        ("folder/mine.py:Small", r"without slashes or \.py, got 'folder/mine.py:Small'"),
        ("mine.py:Small", r"without slashes or \.py, got 'mine.py:Small'"),
        ("yours:Small", "no module 'yours' in this folder or among what is installed"),
        ("mine.more:Small", "mine.more"),
        ("lacks:net", r"lacks can't be imported: .*nowhere_to_be_found.*lacks.py, line 1\)"),
        ("broken_import:f", r"can't be imported: JSONDecodeError: .*broken_import.py, line 2\)"),
        ("broken_syntax:f", r"can't be imported: SyntaxError: .*broken_syntax.py, line 1\)"),
        ("mine:Smal", "mine has no 'Smal'; it has .*Small"),
        ("mine:Wide", "mine:Wide can't be called without arguments"),
        (
            "mine:fails",
            rf"mine:fails failed: KeyError: 'no such key' \(.*mine.py, line {line('no such key')}\)",
        ),
        ("mine:leaves", "mine:leaves failed: SystemExit: bye"),
        ("mine:number", "mine:number gave a int; wanted is a torch.nn.Module, or a function"),
        ("mine:sizes", "mine:sizes gave a list"),
        (
            "mine:faulty",
            rf"fails on images of shape \(1, 28, 28\).* {line('no_such_method')}\)",
        ),
    ],
)
def test_a_model_that_is_none(
    spec: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refused(capsys, "audit", "--model", spec))


# --- audit: weights ------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3), nn.ReLU(), nn.Linear(3, 10))


def test_weights_are_loaded(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {key: torch.zeros_like(value) for key, value in small().state_dict().items()}
    state["3.bias"][4] = 1.0  # it says "four" whatever it sees
    save_file(state, here / "w.safetensors")
    found = card(capsys, here, "--model", "mine:Small", "--weights", "w.safetensors")
    assert accuracy(found) == 0.1


def test_weights_into_a_model_of_the_zoo(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {key: torch.zeros_like(value) for key, value in Net().state_dict().items()}
    save_file(state | {"0.std": torch.ones(1, 1, 1)}, here / "w.safetensors")
    found = card(capsys, here, "--model", "zoo:net", "--weights", "w.safetensors")
    assert accuracy(found) == 0.1


@pytest.mark.parametrize("name", ["lazy", "tied"])
def test_weights_of_unusual_models(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers that take their shape from the file; a tensor under two names, stored once."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if name == "tied":
        model.extend([nn.Linear(10, 10), nn.Linear(10, 10)])
    state = model.state_dict()
    state.pop("3.weight", None)
    save_file(state, here / "w.safetensors")
    card(capsys, here, "--model", f"mine:{name}", "--weights", "w.safetensors")


def test_weights_that_do_not_fit_are_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = small().state_dict()
    del state["3.bias"]
    state["extra"] = torch.zeros(2)
    state["1.weight"] = torch.zeros(4, 784)
    save_file(state, here / "w.safetensors")
    message = refused(capsys, "audit", "--model", "mine:Small", "--weights", "w.safetensors")
    assert "w.safetensors does not fit Small" in message
    for told in ("missing: 3.bias", "extra", r"1.weight is (4, 784), the model's (3, 784)"):
        assert told in message


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_refused_and_the_way_out_works(
    legacy: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(small().state_dict(), here / "w.pth", _use_new_zipfile_serialization=not legacy)
    message = refused(capsys, "audit", "--model", "mine:Small", "--weights", "w.pth")
    assert "w.pth is a pickle, which can run any code when it is loaded" in message
    code = re.search(r'python -c "(.*)"', message)[1]
    exec(code, {})
    card(capsys, here, "--model", "mine:Small", "--weights", "w.safetensors")


def test_a_pickle_with_the_right_name_is_not_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(here / "it ran"),)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (here / "w.safetensors").write_bytes(pickle.dumps(Bomb(), protocol=protocol))
        refused(capsys, "audit", "--model", "mine:Small", "--weights", "w.safetensors")
    assert not (here / "it ran").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_of_weights(
    damage: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = here / "w.safetensors"
    save_file(small().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-10], "empty": b"", "text": b"weights: none"}[damage])
    message = refused(capsys, "audit", "--model", "mine:Small", "--weights", str(path))
    assert "w.safetensors is no" in message


def test_weights_that_are_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("zoo:net", "mine:Small"):
        message = refused(capsys, "audit", "--model", model, "--weights", "w.safetensors")
        assert "there is no file w.safetensors" in message


def test_weights_want_a_module(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.zeros(1)}, here / "w.safetensors")
    message = refused(capsys, "audit", "--model", "mine:logits", "--weights", "w.safetensors")
    assert "into a torch.nn.Module, not into a function" in message


# --- audit: data ---------------------------------------------------------------------------------


def arrays(n: int = 30) -> dict[str, np.ndarray]:
    return {"x_test": digits().x_test[:n].numpy(), "y_test": digits().y_test[:n].numpy()}


def test_data_from_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = arrays()
    expected = accuracy(card(capsys, here, "--model", "zoo:net"))
    for name, content in {
        "long": held,
        "short": {"x": held["x_test"].astype(np.float64), "y": held["y_test"].astype(np.uint8)},
        "train": held | {"x_train": held["x_test"][:5], "y_train": held["y_test"][:5]},
    }.items():
        np.savez_compressed(here / f"{name}.npz", **content)
        found = card(capsys, here, "--model", "zoo:net", "--data", f"{name}.npz")
        assert found["data"] == name
        assert accuracy(found) == expected


@pytest.mark.parametrize("name", ["data", "pair"])
def test_data_from_a_function(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = card(capsys, here, "--model", "zoo:net", "--data", f"mine:{name}")
    assert find_data(f"mine:{name}").classes == tuple("0123456789")
    assert accuracy(found) == accuracy(card(capsys, here, "--model", "zoo:net"))


def spoilt(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (arrays() | changes).items() if value is not None}


def nan_images() -> np.ndarray:
    x = arrays()["x_test"].copy()
    x[0, 0, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: spoilt(y_test=None),
            r"must hold x_test and y_test \(or x and y\), got \['x_test'",
        ),
        (lambda: spoilt(x_train=np.zeros((1, 1, 28, 28))), "x_train and y_train both, or neither"),
        (lambda: spoilt(x_test=arrays()["x_test"][:, 0]), r"must be \(N, C, H, W\)"),
        (lambda: spoilt(x_test=(arrays()["x_test"] * 255).astype(np.uint8)), "uint8"),
        (lambda: spoilt(x_test=arrays()["x_test"] * 255), r"in \[0, 1\].* from 0 to 255"),
        (lambda: spoilt(x_test=arrays()["x_test"] - 0.5), r"from -0\.5 to 0\.5"),
        (lambda: spoilt(x_test=nan_images()), "nan"),
        (lambda: spoilt(x_test=arrays()["x_test"][:0], y_test=np.arange(0)), r"it is \(0, 1, 28"),
        (lambda: spoilt(y_test=arrays()["y_test"][:3]), r"y_test must be \(30,\)"),
        (lambda: spoilt(y_test=np.eye(10)[arrays()["y_test"]]), r"it is \(30, 10\)"),
        (lambda: spoilt(y_test=arrays()["y_test"] / 2), "float64"),
        (lambda: spoilt(y_test=arrays()["y_test"] - 1), "a whole number from 0"),
        (lambda: spoilt(y_test=arrays()["y_test"].astype(object)), "plain arrays"),
        (lambda: spoilt(y_test=arrays()["y_test"] + 10), "label"),
    ],
)
def test_a_file_of_data_that_is_refused(
    content: Any, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(here / "d.npz", **content())
    assert re.search(message, refused(capsys, "audit", "--model", "zoo:net", "--data", "d.npz"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnst", r"data must be one of \['fashion', 'mnist', 'mnist-full'\], FILE.npz or"),
        ("nothing.npz", "there is no file nothing.npz"),
        ("torn.npz", "torn.npz is no file of plain arrays"),
        ("fashion", "python -m modelsec fetch fashion"),
        ("mnist-full", "python -m modelsec fetch mnist"),
        ("mine.py:pair", "data must be FILE.npz or package.module:name"),
        ("mine:pairs", "mine has no 'pairs'"),
        ("mine:needs", "can't be called without arguments"),
        ("mine:fails", "mine:fails failed: KeyError"),
        ("mine:number", "mine:number gave a int; wanted is a modelsec.data.Data, or a pair"),
        ("mine:colour", r"fails on images of shape \(3, 32, 32\) \(mine:colour\): RuntimeError"),
        ("mine:bytes_of_255", "divide by 255"),
    ],
)
def test_data_that_are_none(
    spec: str,
    message: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODELSEC_DATA", str(here / "data"))
    np.savez(here / "torn.npz", **arrays())
    (here / "torn.npz").write_bytes((here / "torn.npz").read_bytes()[:5000])
    assert re.search(message, refused(capsys, "audit", "--model", "zoo:net", "--data", spec))


# --- audit: the rest -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sections", "clean", "magic"], r"no section 'magic'; there are \["),
        (["--n", "0"], "n must be a whole number, 1 or more, got 0"),
        (["--norm", "l7"], r"norm must be one of \['l1', 'l2', 'linf'\], got 'l7'"),
        (["--radii", "0"], "radii must be positive"),
        (["--device", "quantum"], "device 'quantum' can't be used here"),
        (["--html", "card.pdf"], "--html wants a file name that ends in .html, got card.pdf"),
        (["--json", "card.html"], "--json wants a file name that ends in .json"),
        (["--html", "no such folder/card.html"], "there is no folder no such folder"),
    ],
)
def test_a_wrong_option(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refused(capsys, "audit", "--model", "zoo:net", *words))
    assert not list(here.glob("card*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "audit", "--model", "zoo:net", "--device", "cuda")
    assert "device 'cuda' can't be used here" in message


def test_options_reach_the_audit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = card(
        capsys, here, "--model", "zoo:net", "--radii", "0.5", "8/255", "--norm", "l2", "--seed", "3"
    )
    assert found["radii"] == [8 / 255, 0.5]
    assert (found["norm"], found["seed"]) == ("l2", 3)


def test_the_same_words_give_the_same_card(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "zoo:net", "--sections", "evasion", "--radii", "0.1", "--html", "card.html"]
    cards = []
    for seed in ("0", "0", "1"):
        assert main(["audit", "--n", "20", "--device", "cpu", *words, "--seed", seed]) == 0
        cards.append((here / "card.html").read_bytes())
    assert cards[0] == cards[1] != cards[2]
    capsys.readouterr()


def test_a_failed_write_leaves_the_old_card(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "card.html").write_text("the old one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main(["audit", "--model", "zoo:net", *QUICK, "--html", "card.html"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (here / "card.html").read_text() == "the old one"
    assert len(list(here.glob("*card*"))) == 1


def test_control_c_ends_it_without_a_traceback(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "fetch", stop)
    assert main(["fetch", "mnist"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "modelsec fetch: stopped\n"


# --- zoo ------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one quick model and one study, in a folder of the test's own."""
    here = Path(str(files("modelsec.zoo")))
    (tmp_path / "weights").mkdir()
    (tmp_path / "recorded").mkdir()
    entry = zoo.manifest()["net"]
    (tmp_path / "weights" / entry["file"]).write_bytes(
        (here / "weights" / entry["file"]).read_bytes()
    )
    (tmp_path / "manifest.json").write_text(json.dumps({"net": entry}))
    monkeypatch.setattr(zoo, "_HERE", tmp_path)
    recipe = dataclasses.replace(zoo.recipes["net"], dataset=digits)
    monkeypatch.setattr(zoo, "recipes", {"net": recipe})
    monkeypatch.setitem(data.named, "mnist", digits)
    monkeypatch.setattr(results, "_RECORDED", tmp_path / "recorded")
    monkeypatch.setattr(results, "_registry", {})
    monkeypatch.setattr(results.pkgutil, "iter_modules", lambda _: [])

    @study("test_sum", about="adds seeds", n=100, seeds=(1, 2))
    def run(seeds: tuple[int, ...]) -> dict[str, Any]:
        return {"share": sum(seeds) / 10, "text": "same"}

    results.store_result("test_sum")
    return tmp_path


def test_list(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list"]) == 0
    head, net, result = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "WHAT", "kB", "RECORDED", "ABOUT"]
    assert re.match(r"net +model +438 +accuracy 0\.\d+ \[0\.\d+, 0\.\d+\], n=1000 +784-", net)
    assert re.match(r"test_sum +result +\d+ +n=100, 2 seeds +adds seeds$", result)


def test_list_of_the_real_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list"]) == 0
    named = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}
    assert named == {*zoo.names(), *results.recorded()}


def test_verify(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "verify"]) == 0
    net, result, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"ok     net: accuracy 0\.\d+ .*; recorded 0\.\d+ .*, n=1000", net)
    assert result == "ok     test_sum: its file is as recorded, 2 seeds"
    assert last == "all as recorded"


def change_manifest(copy: Path, **changes: Any) -> None:
    entry = zoo.manifest()["net"] | changes
    (copy / "manifest.json").write_text(json.dumps({"net": entry}))


def another_network(copy: Path) -> None:
    """Weights with a hash that is right, and an accuracy that is not."""
    path = zoo.write(Net(), copy / "weights" / "net.safetensors")
    change_manifest(copy, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def other_seeds(copy: Path) -> None:
    @study("test_sum", about="adds seeds", n=100, seeds=(1, 2, 3))
    def run(seeds: tuple[int, ...]) -> dict[str, Any]:
        return {}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda copy: flip(copy / "weights" / "net.safetensors"), "WRONG  net: .* SHA-256"),
        (
            lambda copy: (copy / "weights" / "net.safetensors").unlink(),
            "WRONG  net: .*No such file",
        ),
        (lambda copy: (copy / "manifest.json").write_text("{}"), "net: has a recipe, but is not"),
        (lambda copy: zoo.recipes.clear(), "WRONG  net: is stored, but has no recipe"),
        (lambda copy: change_manifest(copy, clean_accuracy=0.929), "net: .*; recorded 0.929"),
        (lambda copy: change_manifest(copy, n=999), "net: .*n=1000; recorded .*n=999"),
        (another_network, r"WRONG  net: accuracy 0\.[012]"),
        (
            lambda copy: flip(copy / "recorded" / "test_sum.json"),
            "WRONG  test_sum: .*test_sum.json",
        ),
        (lambda copy: results._registry.clear(), "test_sum: is recorded, but there is no such"),
        (other_seeds, r"test_sum: was made with n = 100, seeds \[1, 2\]; the study has n = 100"),
        (
            lambda copy: (copy / "recorded" / "test_sum.json").unlink(),
            "test_sum: is a study, but no",
        ),
    ],
)
def test_verify_says_what_is_wrong(
    spoil: Any, message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copy)
    assert main(["zoo", "verify"]) == 1
    out = capsys.readouterr().out
    assert re.search(message, out), out
    assert out.endswith("1 not as recorded\n")


def short(copy: Path, monkeypatch: pytest.MonkeyPatch, epochs: int = 1) -> None:
    """Train ``net`` for a moment, on a part of the data."""

    def train(model: nn.Module, images: Any, generator: torch.Generator) -> None:
        x, y = images.x_train[:500], images.y_train[:500]
        zoo.fit(model, x, y, epochs=epochs, generator=generator)

    recipe = zoo.Recipe(Net, train, digits, "trained for a moment")
    monkeypatch.setitem(zoo.recipes, "net", recipe)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_make_reports_and_changes_nothing(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short(copy, monkeypatch)
    before = contents(copy)
    assert main(["zoo", "make", "net"]) == 1
    made, stated = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"net: accuracy 0\.\d+ \[.*\], n=1000", made)
    assert stated.endswith("the new one is OUTSIDE that interval")
    assert contents(copy) == before


def test_make_stores_only_when_told(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short(copy, monkeypatch)
    assert main(["zoo", "make", "net", "--store"]) == 1  # it differs from the one before
    assert "stored: " in capsys.readouterr().out
    assert zoo.manifest()["net"]["about"] == "trained for a moment"
    assert main(["zoo", "verify"]) == 0  # what is stored now fits together
    assert main(["zoo", "make", "net"]) == 0  # and can be made again
    assert capsys.readouterr().out.endswith("the new one is inside that interval\n")


def test_make_writes_where_it_is_told(
    copy: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short(copy, monkeypatch)
    out, before = tmp_path_factory.mktemp("out"), contents(copy)
    main(["zoo", "make", "net", "--out", str(out)])
    main(["zoo", "make", "test_sum", "--out", str(out)])
    assert {path.name for path in out.iterdir()} == {"net.safetensors", "test_sum.json"}
    assert contents(copy) == before
    capsys.readouterr()
    words = ["audit", "--model", "zoo:net", "--weights", str(out / "net.safetensors"), *QUICK]
    assert main(words) == 0


def test_make_a_result_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copy)
    assert main(["zoo", "make", "test_sum"]) == 0
    told = "of 2 values 2 are the same, 0 differ by no more than chance explains, 0 by more"
    assert capsys.readouterr().out == f"test_sum: {told}\n"
    assert contents(copy) == before


@pytest.mark.parametrize(("share", "code", "counts"), [(0.35, 0, "1, 1, 0"), (0.6, 1, "1, 0, 1")])
def test_make_says_where_a_result_differs(
    share: float, code: int, counts: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @study("test_sum", about="adds seeds", n=100, seeds=(1, 2))
    def run(seeds: tuple[int, ...]) -> dict[str, Any]:
        return {"share": share, "text": "same"}

    assert main(["zoo", "make", "test_sum"]) == code
    *differs, last = capsys.readouterr().out.splitlines()
    assert differs == ["DIFFERS  share: recorded 0.3, now 0.6"] * code
    assert ", ".join(re.findall(r" (\d+) (?:are|differ|by)", last)) == counts


def test_make_several_and_one_that_differs_is_told(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short(copy, monkeypatch)
    assert main(["zoo", "make", "test_sum", "net"]) == 1
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["test_sum", "net", "recorded"]
    assert main(["zoo", "make", "net", "test_sum"]) == 1


def test_make_the_first_of_its_kind(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "recorded" / "test_sum.json").unlink()
    assert main(["zoo", "make", "test_sum", "--store"]) == 0
    assert "nothing was recorded to compare it with" in capsys.readouterr().out
    assert results.load_result("test_sum") == {"share": 0.3, "text": "same"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpt"], r"nothing in the zoo is called 'gpt'; there are \['net', 'test_sum'\]"),
        (["test_sum", "gpt", "--store"], "nothing in the zoo is called 'gpt'"),
        (["net", "--out", "no such folder"], "there is no folder no such folder"),
    ],
)
def test_make_refuses(
    words: list[str], message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copy)
    assert re.search(message, refused(capsys, "zoo", "make", *words))
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("old", "new", "agree"),
    [
        (0.5, 0.59, True),  # n = 100: 0.404 to 0.596, and 0.492 to 0.681
        (0.5, 0.8, False),
        (0.0, 0.03, True),
        (12.0, 13.0, True),
        (12.0, 14.0, False),
        ("a", "a", True),
        ("a", "b", False),
        (True, False, False),
        (0.5, None, False),
        (0.5, "0.5", False),
        ([1, 2], [1], False),
        ({"a": 1}, {}, False),
    ],
)
def test_when_results_agree(old: Any, new: Any, agree: bool) -> None:
    assert all(row[3] for row in compare({"k": [old]}, {"k": [new]}, 100)) is agree


def test_results_are_compared_value_by_value() -> None:
    old = {"a": {"b": [1, 2], "c": "x"}, "d": 0.5}
    rows = list(compare(old, old | {"e": 1}, 10))
    assert [row[0] for row in rows] == ["a.b[0]", "a.b[1]", "a.c", "d", "e"]
    assert [row[3] for row in rows] == [True, True, True, True, False]


# --- fetch ----------------------------------------------------------------------------------------


def test_fetch_lists_what_can_be_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "--to", str(tmp_path)]) == 0
    mnist_line, fashion_line = capsys.readouterr().out.splitlines()
    assert mnist_line.startswith("mnist     MNIST, 60,000")
    assert fashion_line.endswith("(31 MB to fetch)")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fetch.File:
    """A data set of one file, which lies where a broken transfer may have left it."""
    content = b"all of it"
    digest = hashlib.sha256(content).hexdigest()
    file = fetch.File("some/file", ("http://127.0.0.1:1/file",), "sha256", digest)
    monkeypatch.setitem(fetch.sets, "some", fetch.DataSet("one file", 1, lambda: [file]))
    monkeypatch.setenv("MODELSEC_DATA", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file.part").write_bytes(content)
    return file


def test_fetch_puts_files_in_place_once(
    one_file: fetch.File, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (1, 0):
        assert main(["fetch", "some"]) == 0
        told = f"some: {count} files fetched, all are whole, in {tmp_path}\n"
        assert capsys.readouterr().out == told
    main(["fetch"])
    assert f"some      one file (in {tmp_path})" in capsys.readouterr().out


def test_fetch_without_a_network(
    one_file: fetch.File, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some" / "file.part").unlink()
    assert main(["fetch", "some"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("modelsec fetch: file could not be fetched:\n  http://127.0.0.1:1/file: ")
    assert "Is there a network?" in err
    assert "Traceback" not in err


def test_fetch_an_unknown_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no data set 'cifar' can be fetched" in refused(capsys, "fetch", "cifar")


# --- the pages ------------------------------------------------------------------------------------


def blocks(page: str, kinds: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page, (kind, text), in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```({kinds})\n(.*?)```", text, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words of every command in a page's blocks for a shell."""
    lines = [line for _, text in blocks(page, "bash") for line in text.splitlines()]
    assert all(line.startswith("python -m modelsec ") for line in lines)
    return [line.split()[3:] for line in lines]


def test_the_page_can_be_followed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its module, its way to write weights and data, and its commands, one after the other."""
    names: dict[str, Any] = {"x": arrays()["x_test"], "y": arrays()["y_test"]}
    for kind, text in blocks("reference/command_line.md", "python|bash"):
        if kind == "bash":
            assert main([*text.replace("\\", "").split()[3:], *QUICK]) == 0
        else:
            if "def build" in text:
                (here / "mymodel.py").write_text(text)
            exec(text, names)
            names["model"] = names["build"]()
    assert (here / "card.html").exists()
    out = capsys.readouterr().out
    assert "Audit card: net, on 20 test images of mnist-5k" in out
    assert "Audit card: mymodel:build, on 20 test images of mydata" in out
    sys.modules.pop("mymodel")


@pytest.mark.slow
@pytest.mark.parametrize("words", commands("README.md"), ids=" ".join)
def test_the_commands_of_the_readme_run(
    words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *(QUICK if words[0] == "audit" else [])]) == 0
    assert capsys.readouterr().out
