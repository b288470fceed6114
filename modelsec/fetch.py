"""Downloads that can be taken up again and are trusted only when their hash is right.

A file arrives under the name ``FILE.part``. It gets its own name when all of it is there and its
hash is the published one, so that a file with its own name is never half of one. What a broken
transfer leaves behind is where the next one goes on, if the server can send the rest alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

__all__ = ["DataSet", "FetchError", "File", "fetch", "fetch_files", "intact", "sets"]

_TIMEOUT = 30  # seconds without a byte
_BLOCK = 1 << 16
# What goes wrong on the way. A full disk is an OSError too, but no other mirror would mend it.
_NETWORK = (URLError, HTTPException, TimeoutError, ConnectionError)


class FetchError(RuntimeError):
    """No mirror sent the file; the message says what each of them answered."""


@dataclass(frozen=True)
class File:
    """A file to fetch.

    Attributes:
        path: where it belongs below the folder of all data, "MNIST/raw/NAME.gz".
        urls: where it can be had; the first that works is taken.
        algorithm: of the hash, as hashlib names it.
        digest: the published hash, in hexadecimal digits.
    """

    path: str
    urls: tuple[str, ...]
    algorithm: str
    digest: str


@dataclass(frozen=True)
class DataSet:
    """A data set that can be fetched.

    Attributes:
        about: one line for the reader.
        megabytes: how much there is to fetch, about.
        files: tells the files; called late, since importing torchvision takes seconds.
    """

    about: str
    megabytes: int
    files: Callable[[], list[File]]


def _of_torchvision(kind: str) -> list[File]:
    """The files of an MNIST-like data set, where torchvision would keep them.

    torchvision publishes MD5. Nobody is known to be able to make another file with a given MD5;
    what MD5 no longer withstands is somebody who writes both files.
    """
    from torchvision import datasets

    dataset = getattr(datasets, kind)
    return [
        File(f"{kind}/raw/{name}", tuple(mirror + name for mirror in dataset.mirrors), "md5", md5)
        for name, md5 in dataset.resources
    ]


sets: dict[str, DataSet] = {
    "mnist": DataSet(
        "MNIST, 60,000 + 10,000 handwritten digits", 12, partial(_of_torchvision, "MNIST")
    ),
    "fashion": DataSet(
        "Fashion-MNIST, 60,000 + 10,000 images of clothing",
        31,
        partial(_of_torchvision, "FashionMNIST"),
    ),
}


def fetch(name: str, folder: str | Path, *, progress: bool | None = None) -> list[Path]:
    """Fetch a data set, as far as it isn't there already.

    Args:
        name: one of :data:`sets`.
        folder: of all data, :func:`modelsec.data.data_dir` for instance.
        progress: show a bar; None means yes, unless MODELSEC_PROGRESS=0 is set.

    Returns:
        The files that had to be fetched.

    Raises:
        ValueError: for an unknown name.
        FetchError: if a file can't be had from any of its mirrors.
    """
    if name not in sets:
        raise ValueError(f"no data set {name!r} can be fetched; there are {sorted(sets)}")
    return fetch_files(sets[name].files(), folder, progress=progress)


def fetch_files(
    files: Iterable[File], folder: str | Path, *, progress: bool | None = None
) -> list[Path]:
    """Fetch those of the files that aren't there whole; a damaged one is replaced.

    Args:
        files: what to fetch.
        folder: their paths are below it. It is made if need be.
        progress: show a bar; None means yes, unless MODELSEC_PROGRESS=0 is set.

    Returns:
        The files that had to be fetched.

    Raises:
        FetchError: if a file can't be had from any of its mirrors. What has arrived is kept.
    """
    missing = [file for file in files if not intact(file, folder)]
    for file in missing:
        _fetch_one(file, Path(folder) / file.path, progress)
    return [Path(folder) / file.path for file in missing]


def intact(file: File, folder: str | Path) -> bool:
    """Whether the file is there, whole and unchanged.

    Args:
        file: which.
        folder: its path is below it.

    Returns:
        True if its hash is the published one.
    """
    return _has_hash(Path(folder) / file.path, file)


def _has_hash(path: Path, file: File) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as content:  # MD5 tells files apart here, it keeps no secret
        new = partial(hashlib.new, file.algorithm, usedforsecurity=False)
        return hashlib.file_digest(content, new).hexdigest() == file.digest


def _fetch_one(file: File, target: Path, progress: bool | None) -> None:
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    for url in file.urls:
        leftover = _size(part) > 0
        while not _has_hash(part, file):
            before = _size(part)
            try:
                _receive(url, part, progress)
            except _NETWORK as error:
                if _size(part) > before:
                    continue  # it was cut off, but got further: go on from there
                problems.append(f"{url}: {_reason(error)}")
                break
            if not _has_hash(part, file):
                part.unlink(missing_ok=True)
                if leftover:
                    leftover = False
                    continue  # what lay there was not this file's beginning: once more, all of it
                problems.append(f"{url}: sent another file ({file.algorithm} is wrong)")
                break
        else:
            os.replace(part, target)
            return
    raise FetchError(
        "\n  ".join([f"{target.name} could not be fetched:", *problems])
        + "\nIs there a network? The same call goes on with what has arrived. "
        f"Or put the file here yourself: {target}"
    )


def _receive(url: str, part: Path, progress: bool | None) -> None:
    """Write what ``part`` lacks of ``url`` into it; all of it, if the server can't send a rest."""
    have = _size(part)
    headers = {"User-Agent": "modelsec"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if have and error.code == 416:  # no bytes from there on: too much lies there already
            return
        raise
    with answer:
        rest = (answer.headers["Content-Range"] or "").startswith(f"bytes {have}-")
        if not (answer.status == 206 and rest):
            have = 0
        length = answer.headers["Content-Length"]
        wanted = None if length is None else have + int(length)
        with (
            part.open("ab" if have else "wb") as file,
            _bar(part.stem, have, wanted, progress) as bar,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if wanted is not None and _size(part) < wanted:
        raise IncompleteRead(b"", wanted - _size(part))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _bar(name: str, have: int, wanted: int | None, progress: bool | None) -> Any:
    from tqdm.auto import tqdm

    hidden = os.environ.get("MODELSEC_PROGRESS") == "0" if progress is None else not progress
    return tqdm(
        desc=name,
        initial=have,
        total=wanted,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=hidden,
    )


def _reason(error: Exception) -> str:
    match error:
        case HTTPError():
            return f"HTTP {error.code} {error.reason}"
        case IncompleteRead():
            return f"the transfer broke off, {error.expected:,} bytes are missing"
        case TimeoutError() | URLError(reason=TimeoutError()):
            return f"no answer within {_TIMEOUT} s"
        case URLError():
            return str(error.reason)
    return str(error) or type(error).__name__
