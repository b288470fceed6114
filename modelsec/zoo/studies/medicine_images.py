"""The chapter on medicine: a lesion painted over, a piece copied, and what a detector sees of it.

Two images of the retina that ship with scikit-image, both CC0: `retina`, a photograph of a normal
left eye, and `microaneurysms`, a detail with two lesions (green channel, from the HRF database).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelsec.zoo.results import study

__all__ = [
    "QUALITIES",
    "SIDE",
    "copied",
    "copies_found",
    "crops",
    "lesions",
    "painted_over",
    "recompressed",
    "retina",
    "spots",
]

Grey = NDArray[np.uint8]
SIDE = 192
"""Height and width of the crops that are tampered with, in pixels."""
QUALITIES = (None, 95, 85, 75, 60)
"""JPEG qualities after the tampering; None: not compressed again."""


def lesions() -> Grey:
    """A detail of a retina with two microaneurysms, (102, 102) uint8, green channel; CC0."""
    from skimage.data import microaneurysms  # slow to import

    return np.asarray(microaneurysms())  # type: ignore[no-untyped-call]


def retina() -> NDArray[np.uint8]:
    """A photograph of a normal retina, (1411, 1411, 3) uint8; CC0."""
    from skimage.data import retina as packaged  # slow to import

    return np.asarray(packaged())  # type: ignore[no-untyped-call]


def spots(image: Grey, contrast: float = 0.08) -> NDArray[np.float64]:
    """Small dark dots: local maxima of the Laplacian of a Gaussian over several widths.

    A stand-in for a screening program, and no medical device: vessels are longer than wide and so
    pass, but dust on a lens would be counted.

    Args:
        image: (H, W) uint8.
        contrast: the least response that counts.

    Returns:
        (K, 2) their rows and columns, the clearest first.
    """
    from skimage.feature import blob_log  # slow to import

    dark = 1 - image / 255
    found = blob_log(dark, min_sigma=1.5, max_sigma=5, num_sigma=8, threshold=contrast)  # type: ignore[no-untyped-call]
    return np.asarray(found, dtype=np.float64).reshape(-1, 3)[:, :2]


def painted_over(image: Grey, places: NDArray[np.float64], radius: float = 6) -> Grey:
    """Discs of an image filled smoothly from around them.

    Args:
        image: (H, W) uint8.
        places: (K, 2) rows and columns of the centres.
        radius: of the discs, in pixels.

    Returns:
        (H, W) uint8, unchanged outside the discs.
    """
    from skimage.restoration import inpaint_biharmonic  # slow to import

    rows, columns = np.indices(image.shape)
    mask = np.zeros(image.shape, dtype=bool)
    for row, column in places:
        mask |= (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    filled = inpaint_biharmonic(image / 255, mask)
    return np.where(mask, (255 * filled).round().clip(0, 255), image).astype(np.uint8)


def copied(image: Grey, source: tuple[int, int], target: tuple[int, int], radius: int) -> Grey:
    """A disc of an image copied to another place, its rim blended.

    Args:
        image: (H, W) uint8.
        source: row and column of the disc's centre.
        target: where the centre goes.
        radius: of the disc, in pixels; both discs lie inside the image.

    Returns:
        (H, W) uint8.
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    weight = np.clip((radius - np.hypot(y, x)) / 3, 0, 1)  # 1 inside, 0 at the rim
    result = image.astype(np.float64)
    (a, b), (c, d) = source, target
    piece = image[a - radius : a + radius + 1, b - radius : b + radius + 1]
    place = (slice(c - radius, c + radius + 1), slice(d - radius, d + radius + 1))
    result[place] = weight * piece + (1 - weight) * result[place]
    return result.round().astype(np.uint8)


def recompressed(image: Grey, quality: int | None) -> Grey:
    """The same image after JPEG.

    Args:
        image: (H, W) uint8.
        quality: of the compression, 1 to 95; None leaves the image alone.

    Returns:
        (H, W) uint8.
    """
    if quality is None:
        return image
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def copies_found(image: Grey, block: int = 8, step: float = 4.0, apart: int = 24) -> int:
    """How much of an image looks copied within it: the score of a pixel-level detector.

    Every block of pixels is told by a few rounded DCT coefficients, the blocks are sorted, and
    neighbours in the order that are equal vote for the shift between them. A copied piece gives
    many votes for one shift.

    Args:
        image: (H, W) uint8.
        block: side of a block, in pixels.
        step: the coefficients are rounded to multiples of this.
        apart: the least shift, in pixels, since near blocks are alike anyway.

    Returns:
        The votes of the strongest shift.

    References:
        Fridrich, Soukal & Lukas (2003), Detection of copy-move forgery in digital images.
    """
    from scipy.fft import dctn

    windows = np.lib.stride_tricks.sliding_window_view(image.astype(np.float32), (block, block))
    columns = windows.shape[1]
    frequencies = dctn(windows.reshape(-1, block, block), axes=(1, 2), norm="ortho")
    low = [(i, j) for i in range(4) for j in range(4) if 0 < i + j < 5]
    told = np.stack([frequencies[:, i, j] for i, j in low], 1)
    told = np.rint(np.concatenate([frequencies[:, :1, 0] / 4, told], 1) / step).astype(np.int16)
    flat = np.abs(told[:, 1:]).sum(1) < 4  # a block without structure is like many others
    order = np.lexsort(told.T[::-1])
    order = order[~flat[order]]
    first, second = order[:-1], order[1:]
    same = (told[first] == told[second]).all(1)
    shift = np.stack([first // columns - second // columns, first % columns - second % columns], 1)[
        same
    ]
    shift *= np.where((shift[:, :1] < 0) | ((shift[:, :1] == 0) & (shift[:, 1:] < 0)), -1, 1)
    shift = shift[np.hypot(shift[:, 0], shift[:, 1]) >= apart]
    if not len(shift):
        return 0
    return int(np.unique(shift @ np.array([10_000, 1]), return_counts=True)[1].max())


def crops(count: int, seed: int) -> list[tuple[Grey, Grey]]:
    """Crops of the retina's green channel, each as it is and with one piece copied.

    Args:
        count: how many.
        seed: of the places.

    Returns:
        Pairs (as it is, tampered), (SIDE, SIDE) uint8 each.
    """
    draw = np.random.default_rng(seed)
    green = retina()[:, :, 1]
    made: list[tuple[Grey, Grey]] = []
    while len(made) < count:
        row, column = draw.integers(0, len(green) - SIDE, 2)
        crop = green[row : row + SIDE, column : column + SIDE]
        if crop.min() < 30:  # beyond the rim of the eye
            continue
        radius = 16
        a, b, c, d = map(int, draw.integers(radius, SIDE - radius, 4))
        if np.hypot(a - c, b - d) < 2.5 * radius:
            continue
        made.append((crop, copied(crop, (a, b), (c, d), radius)))
    return made


@study(
    "medicine_copies",
    about="a detector of copied pieces on crops of a retina: as they are, tampered, and compressed again",
    n=100,
    seeds=(0,),
)
def copies(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Scores of the detector, crop by crop.

    Returns:
        A quality ("none" for no compression) -> {"clean": scores, "tampered": scores}.
    """
    pairs = [pair for seed in seeds for pair in crops(100, seed)]
    return {
        "none" if quality is None else str(quality): {
            name: [copies_found(recompressed(pair[k], quality)) for pair in pairs]
            for k, name in enumerate(("clean", "tampered"))
        }
        for quality in QUALITIES
    }
