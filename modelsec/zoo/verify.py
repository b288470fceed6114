"""Is the zoo what it says it is? Every stored file against its hash, every model measured again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelsec import zoo
from modelsec.intervals import Proportion, wilson
from modelsec.training import evaluate
from modelsec.zoo import results
from modelsec.zoo.results import load_record, recorded, studies

__all__ = [
    "Checked",
    "compare",
    "recorded_accuracy",
    "size",
    "verify",
    "verify_model",
    "verify_record",
]

_SLACK = 0.002  # another processor may decide an image on the border otherwise


@dataclass(frozen=True)
class Checked:
    """What came of one check.

    Attributes:
        name: of the model or the long result.
        ok: whether it is as recorded.
        found: what was seen, for the reader.
    """

    name: str
    ok: bool
    found: str


def verify() -> Iterator[Checked]:
    """Check every model and every long result, one after the other."""
    for name in sorted({*zoo.names(), *zoo.manifest()}):
        yield verify_model(name)
    for name in sorted({*recorded(), *studies()}):
        yield verify_record(name)


def verify_model(name: str, *, measure: bool = True) -> Checked:
    """Check a model's file, and measure its accuracy again.

    Args:
        name: of the model.
        measure: False checks the file alone, which takes no time.

    Returns:
        What was seen.
    """
    if name not in zoo.recipes:
        return Checked(name, False, "is stored, but has no recipe")
    if name not in zoo.manifest():
        return Checked(name, False, "has a recipe, but is not stored")
    try:
        model = zoo.load_model(name)
    except (ValueError, OSError) as error:
        return Checked(name, False, str(error))
    if not measure:
        return Checked(name, True, "its file is as recorded")
    images, entry = zoo.recipes[name].dataset(), zoo.manifest()[name]
    accuracy = evaluate(model, images.x_test, images.y_test)
    gap = abs(accuracy.value - entry["clean_accuracy"])
    ok = accuracy.n == entry["n"] and gap <= _SLACK
    return Checked(name, ok, f"accuracy {accuracy}; recorded {recorded_accuracy(entry)}")


def recorded_accuracy(entry: dict[str, Any]) -> Proportion:
    """The accuracy that an entry of the manifest states."""
    return Proportion(round(entry["clean_accuracy"] * entry["n"]), entry["n"])


def size(name: str) -> int:
    """Bytes of the stored file of a model or a long result."""
    if name in zoo.manifest():
        path = Path(str(zoo._HERE)) / "weights" / str(zoo.manifest()[name]["file"])
    else:
        path = Path(str(results._RECORDED)) / f"{name}.json"
    return path.stat().st_size


def verify_record(name: str) -> Checked:
    """Check a long result's file, and that its study is still the one that made it.

    Args:
        name: of the study.

    Returns:
        What was seen.
    """
    if name not in studies():
        return Checked(name, False, "is recorded, but there is no such study")
    if name not in recorded():
        return Checked(name, False, "is a study, but no result of it is recorded")
    try:
        record = load_record(name)
    except (ValueError, OSError) as error:
        return Checked(name, False, str(error))
    study = studies()[name]
    if (record["n"], tuple(record["seeds"])) != (study.n, study.seeds):
        stated = f"n = {record['n']}, seeds {record['seeds']}"
        return Checked(
            name, False, f"was made with {stated}; the study has n = {study.n}, {study.seeds}"
        )
    return Checked(name, True, f"its file is as recorded, {len(study.seeds)} seeds")


def compare(old: Any, new: Any, n: int, where: str = "") -> Iterator[tuple[str, Any, Any, bool]]:
    """Two results of a study, number by number.

    Two shares, between 0 and 1, agree if their 95% intervals for n samples overlap; two other
    numbers if they are within a tenth of each other; everything else if it is equal.

    Args:
        old: a result, as JSON has it.
        new: another, from the same study.
        n: samples behind each share.
        where: what comes before each name.

    Yields:
        (where, old, new, whether they agree) for each number or text.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from compare(old.get(key), new.get(key), n, f"{where}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from compare(a, b, n, f"{where}[{index}]")
    else:
        yield where, old, new, _agree(old, new, n)


def _agree(old: Any, new: Any, n: int) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new))
    if old == new or not numbers:
        return bool(old == new)
    if 0 <= old <= 1 and 0 <= new <= 1:
        (low, high), (low2, high2) = (wilson(round(share * n), n) for share in (old, new))
        return bool(low <= high2 and low2 <= high)
    return bool(abs(new - old) <= 0.1 * max(abs(old), abs(new)))
