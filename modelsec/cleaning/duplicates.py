"""Samples that are there twice: in one set, or (worse) in the training and in the test set.

Exact copies have equal bytes. Near copies were shifted by a pixel, made lighter, saved again with
loss: their bytes differ everywhere, so they are found by similarity.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SAME", "Pairs", "exact_duplicates", "near_duplicates", "sample_hash"]

SAME = 0.985
"""Similarity from which two images count as copies; the chapter on cleaning measures why."""


class Pairs(NamedTuple):
    """Pairs of samples that are alike.

    Attributes:
        first: (P,) indices into x.
        second: (P,) indices into ``other``; into x itself, and larger than ``first``, if there
            was no other.
        similarity: (P,) float, 1 for equal images.
    """

    first: Tensor
    second: Tensor
    similarity: Tensor


def sample_hash(sample: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and bytes, as 64 hexadecimal digits."""
    array = sample.detach().cpu().contiguous().numpy()
    digest = hashlib.sha256(f"{array.dtype} {array.shape}\n".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def exact_duplicates(x: Tensor, other: Tensor | None = None) -> Pairs:
    """Pairs of samples with the same bytes.

    Args:
        x: (N, ...) samples.
        other: (M, ...) samples to compare with; None means x with itself.

    Returns:
        The :class:`Pairs`, all with similarity 1. Of k equal samples within x each but the first
        is paired with the first.
    """
    places: dict[str, list[int]] = {}
    for index, sample in enumerate(x if other is None else other):
        places.setdefault(sample_hash(sample), []).append(index)
    if other is None:
        found = [(group[0], later) for group in places.values() for later in group[1:]]
    else:
        found = [(i, j) for i, sample in enumerate(x) for j in places.get(sample_hash(sample), [])]
    pairs = torch.tensor(sorted(found), dtype=torch.long, device=x.device).view(-1, 2)
    return Pairs(pairs[:, 0], pairs[:, 1], torch.ones(len(pairs), device=x.device))


def near_duplicates(
    x: Tensor,
    other: Tensor | None = None,
    *,
    threshold: float = SAME,
    shift: int = 1,
    batch_size: int = 1000,
) -> Pairs:
    """Pairs of images that are nearly the same, one of them perhaps shifted or lighter.

    Two images are compared by the correlation of their pixels, which sees neither brightness nor
    contrast, at the best of all shifts by up to ``shift`` pixels; a border of that width is left
    out. Every image is compared with every other, so the cost grows with N * M.

    Args:
        x: (N, C, H, W) images.
        other: (M, C, H, W) images to compare with; None means x with itself.
        threshold: smallest similarity that counts, above 0, at most 1. What fits depends on the
            data: digits on black are alike from the start.
        shift: largest shift in pixels, down or across.
        batch_size: rows compared at a time.

    Returns:
        The :class:`Pairs`, most similar first.

    Raises:
        ValueError: for shapes that don't fit, or numbers out of range.
    """
    among = x if other is None else other
    if x.ndim != 4 or x.shape[1:] != among.shape[1:]:
        raise ValueError(
            f"need images (N, C, H, W) of one size, got {tuple(x.shape)} and {tuple(among.shape)}"
        )
    if not 0 < threshold <= 1 or not 0 <= shift < min(x.shape[2:]) / 2:
        raise ValueError(
            f"need 0 < threshold <= 1 and 0 <= shift < half an image, got {threshold} and {shift}"
        )
    moves = [(d, a) for d in range(-shift, shift + 1) for a in range(-shift, shift + 1)]
    if other is None:  # moving i up is moving j down, and each pair comes round twice
        moves = [move for move in moves if move >= (0, 0)]
    columns, found = _unit(_window(among, shift, 0, 0)), []
    for start in range(0, len(x), batch_size):
        rows = x[start : start + batch_size]
        best = columns.new_full((len(rows), len(among)), -1.0)
        for down, across in moves:
            best = torch.maximum(best, _unit(_window(rows, shift, down, across)) @ columns.T)
        first, second = (best >= threshold - 1e-6).nonzero(as_tuple=True)
        found.append((first + start, second, best[first, second].clamp_max(1)))
    first, second, similarity = (
        (torch.cat(parts) for parts in zip(*found, strict=True))
        if found
        else (x.new_zeros(0).long(), x.new_zeros(0).long(), x.new_zeros(0))
    )
    if other is None:
        first, second, similarity = _each_once(first, second, similarity, len(x))
    order = similarity.argsort(descending=True, stable=True)
    return Pairs(first[order], second[order], similarity[order])


def _window(x: Tensor, border: int, down: int, across: int) -> Tensor:
    """The images without their border, seen through a window moved by whole pixels."""
    high, wide = x.shape[2] - 2 * border, x.shape[3] - 2 * border
    top, left = border + down, border + across
    return x[:, :, top : top + high, left : left + wide]


def _unit(x: Tensor) -> Tensor:
    """Rows with mean 0 and length 1; an image of one grey stays 0 and is like nothing."""
    rows = x.flatten(1)
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def _each_once(
    first: Tensor, second: Tensor, similarity: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair once, the smaller index first, with the larger of its two similarities."""
    apart = first != second
    first, second, similarity = first[apart], second[apart], similarity[apart]
    codes = torch.minimum(first, second) * n + torch.maximum(first, second)
    codes, place = codes.unique(return_inverse=True)
    largest = similarity.new_zeros(len(codes)).scatter_reduce(0, place, similarity, "amax")
    return codes // n, codes % n, largest
