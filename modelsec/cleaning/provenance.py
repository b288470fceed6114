"""A manifest: what the data were when somebody last looked, so that any later change is seen.

For each sample the manifest keeps the SHA-256 of its image and its label, for each file of a
folder the SHA-256 of its bytes. It tells *that* data changed, and where; not who, and not whether
they were good before. Whoever can change the data can change a manifest beside them: keep its
``fingerprint`` somewhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelsec.cleaning.duplicates import sample_hash
from modelsec.data import Data

__all__ = ["Changes", "Manifest", "manifest", "read_manifest", "verify", "write_manifest"]

_FORMAT = "modelsec data manifest 1"


@dataclass(frozen=True)
class Manifest:
    """Names and what stood under them.

    Attributes:
        entries: name -> content. For data in memory "train/17" -> "<sha256 of the image> <label>";
            for a folder the path of a file -> its SHA-256.
    """

    entries: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole manifest: 64 digits to write down elsewhere."""
        lines = (json.dumps(pair) + "\n" for pair in sorted(self.entries.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Changes:
    """How data differ from their manifest; each name as :class:`Manifest` has it.

    Attributes:
        added: new content, under a new name.
        removed: content that is gone, with its name.
        altered: the name is there, but its image (or file) is another one.
        relabelled: the same image under the same name, with another label.
        moved: content that is still there, under another name: the order has changed.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    relabelled: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True if anything changed."""
        return any((self.added, self.removed, self.altered, self.relabelled, self.moved))

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for kind, names in vars(self).items()
            if names
        ]
        return "; ".join(parts) or "nothing changed"


def manifest(subject: Data | str | Path, *, leave_out: Path | None = None) -> Manifest:
    """Take down what there is.

    Args:
        subject: data in memory, or a folder, whose files are taken down at any depth.
        leave_out: a file of the folder that is not part of the data, such as the manifest.

    Returns:
        The :class:`Manifest`.

    Raises:
        ValueError: if the folder holds a link, whose target could change unseen.
        NotADirectoryError: if there is no such folder.
    """
    if isinstance(subject, Data):
        names = json.dumps(subject.classes).encode()
        entries = {"classes": hashlib.sha256(names).hexdigest()}
        for half, x, y in (
            ("train", subject.x_train, subject.y_train),
            ("test", subject.x_test, subject.y_test),
        ):
            for index, (image, label) in enumerate(zip(x, y.tolist(), strict=True)):
                entries[f"{half}/{index}"] = f"{sample_hash(image)} {label}"
        return Manifest(entries)
    folder = Path(subject)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    entries = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path} is a link: what it points to could change unseen")
        if path.is_file() and not (leave_out and path.samefile(leave_out)):
            entries[path.relative_to(folder).as_posix()] = _file_hash(path)
    return Manifest(entries)


def verify(
    subject: Data | str | Path, known: Manifest, *, leave_out: Path | None = None
) -> Changes:
    """Compare data with their manifest.

    Args:
        subject: the data in memory, or the folder.
        known: the manifest that was taken before.
        leave_out: as in :func:`manifest`.

    Returns:
        The :class:`Changes`; false if there are none.

    Raises:
        ValueError, NotADirectoryError: as :func:`manifest`.
    """
    old, new = known.entries, manifest(subject, leave_out=leave_out).entries
    gone = {name: content for name, content in old.items() if new.get(name) != content}
    came = {name: content for name, content in new.items() if old.get(name) != content}
    # content that left one name and turned up under another has only moved
    moved = _take(gone, Counter(came.values()))
    _take(came, Counter(old[name] for name in moved))
    found: dict[str, list[str]] = {"altered": [], "relabelled": []}
    for name in [name for name in gone if name in came]:
        same_image = _image(gone.pop(name)) == _image(came.pop(name))
        found["relabelled" if same_image else "altered"].append(name)
    for name in list(came):  # what is left has changed its place; perhaps only its label as well
        twin = next((n for n, c in gone.items() if _image(c) == _image(came[name])), None)
        if twin is not None:
            del gone[twin], came[name]
            found["relabelled"].append(name)
    return Changes(
        added=tuple(came),
        removed=tuple(gone),
        altered=tuple(found["altered"]),
        relabelled=tuple(found["relabelled"]),
        moved=tuple(moved),
    )


def write_manifest(known: Manifest, path: str | Path) -> str:
    """Write a manifest as JSON, in one step.

    Args:
        known: the manifest.
        path: of the file.

    Returns:
        The manifest's fingerprint, to be kept elsewhere.
    """
    content = {"format": _FORMAT, "fingerprint": known.fingerprint, "entries": known.entries}
    target = Path(path)
    temporary = target.with_name(target.name + ".new")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return known.fingerprint


def read_manifest(path: str | Path, fingerprint: str | None = None) -> Manifest:
    """Read a manifest and check that it is whole.

    Args:
        path: of the file.
        fingerprint: that of the manifest as you know it from elsewhere. Without it a file that
            was damaged is noticed, one that was rewritten on purpose is not.

    Returns:
        The manifest.

    Raises:
        ValueError: if the file is no manifest, or its fingerprint is another one.
    """
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        entries, stated = content["entries"], content["fingerprint"]
        right = content["format"] == _FORMAT and all(isinstance(v, str) for v in entries.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        right = False
    if not right:
        raise ValueError(f"{path} is no manifest, or not a whole one")
    found = Manifest(entries)
    if found.fingerprint != (stated if fingerprint is None else fingerprint):
        raise ValueError(
            f"{path} has the fingerprint {found.fingerprint}, not the one it should have: the "
            "manifest itself was changed or damaged"
        )
    return found


def _take(contents: dict[str, str], available: Counter[str]) -> list[str]:
    """Take out of ``contents`` what is ``available``, and say under which names it stood."""
    taken = []
    for name in list(contents):
        if available[contents[name]] > 0:
            available[contents[name]] -= 1
            del contents[name]
            taken.append(name)
    return taken


def _image(content: str) -> str:
    return content.partition(" ")[0]


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
