"""Long results: what takes too long for a notebook is run once, recorded, and can be run again.

A study is a function from seeds to numbers. Its record is a JSON file that says what was run, on
how many samples, with which seeds and versions, and carries a hash over all of that. A notebook
loads the record, measures a part of it again, and claims that the two agree.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = [
    "Study",
    "load_record",
    "load_result",
    "make_result",
    "recorded",
    "store_result",
    "studies",
    "study",
]

_RECORDED = files("modelsec.zoo") / "recorded"
_VERSIONS = ("modelsec", "numpy", "scikit-learn", "torch", "torchvision")
_registry: dict[str, Study] = {}
Run = Callable[[tuple[int, ...]], dict[str, Any]]


@dataclass(frozen=True)
class Study:
    """A long experiment.

    Attributes:
        name: its name, which is that of its record: ``NAME.json``.
        run: takes the seeds, returns what was measured, as JSON can hold it.
        about: one sentence for the reader.
        n: samples behind each number.
        seeds: those that the record was made with.
    """

    name: str
    run: Run
    about: str
    n: int
    seeds: tuple[int, ...]


def study(name: str, *, about: str, n: int, seeds: Sequence[int]) -> Callable[[Run], Run]:
    """Decorator that makes a function from seeds to numbers a :class:`Study`.

    Args:
        name: letters, digits and underscores, "chapter_what".
        about: one sentence for the reader.
        n: samples behind each number.
        seeds: the seeds of the record.

    Returns:
        The decorator.

    Raises:
        ValueError: for a name that is no identifier, or that another study has, or no seeds.
    """
    if not name.isidentifier() or not seeds:
        raise ValueError(f"a study needs a name like 'chapter_what' and seeds: {name!r}, {seeds!r}")

    def register(run: Run) -> Run:
        known = _registry.get(name)
        if known is not None and known.run.__module__ != run.__module__:
            raise ValueError(f"{name!r} is a study already, in {known.run.__module__}")
        _registry[name] = Study(name, run, about, n, tuple(seeds))
        return run

    return register


def studies() -> dict[str, Study]:
    """Every study by its name, those of all modules in ``modelsec.zoo.studies``."""
    package = importlib.import_module("modelsec.zoo.studies")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"modelsec.zoo.studies.{module.name}")
    return dict(sorted(_registry.items()))


def recorded() -> list[str]:
    """The names of the records that ship with the package."""
    return sorted(f.name[:-5] for f in _RECORDED.iterdir() if f.name.endswith(".json"))


def load_record(name: str) -> dict[str, Any]:
    """A record whole: about, n, seeds, versions, result, sha256.

    Args:
        name: of the study.

    Returns:
        The record.

    Raises:
        ValueError: if there is none of that name, or its content is not what its hash says.
    """
    file = _RECORDED / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"there is no recorded result {name!r}; there are {recorded()}")
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        stated, found = record["sha256"], _digest(record)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{name}.json is no complete record ({error}): reinstall modelsec"
        ) from None
    if stated != found:
        raise ValueError(
            f"{name}.json has SHA-256 {found}, it says {stated}: the file was changed or damaged; "
            "reinstall modelsec"
        )
    return record


def load_result(name: str) -> dict[str, Any]:
    """What a study measured, from its record, whose hash is checked.

    Raises:
        ValueError: if there is no such record, or it was changed.
    """
    result: dict[str, Any] = load_record(name)["result"]
    return result


def make_result(name: str, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """Run a study again.

    Args:
        name: one of :func:`studies`.
        seeds: those of the record if None; fewer take less time.

    Returns:
        A record like that of :func:`load_record`.

    Raises:
        ValueError: for an unknown name, no seeds, or a result that JSON can't hold (NaN).
    """
    known = studies()
    if name not in known:
        raise ValueError(f"no study {name!r}; there are {sorted(known)}")
    found = known[name]
    used = found.seeds if seeds is None else tuple(seeds)
    if not used:
        raise ValueError("seeds must not be empty")
    record = {
        "study": name,
        "about": found.about,
        "n": found.n,
        "seeds": list(used),
        "versions": {"python": platform.python_version()}
        | {package: version(package).split("+")[0] for package in _VERSIONS},
        "result": found.run(used),
    }
    # tuples and keys as they come back from a file
    record = dict(json.loads(json.dumps(record, allow_nan=False)))
    return record | {"sha256": _digest(record)}


def store_result(name: str, folder: str | Path | None = None) -> dict[str, Any]:
    """Run a study and write its record in one step: for the package's authors.

    Args:
        name: one of :func:`studies`.
        folder: where to put ``NAME.json``; the package's own records if None.

    Returns:
        The record.

    Raises:
        ValueError: as :func:`make_result`.
    """
    record = make_result(name)
    path = Path(str(_RECORDED) if folder is None else folder) / f"{name}.json"
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _digest(record: dict[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
