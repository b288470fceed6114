"""Graders of the chapter on cleaning, planted backdoors: right answers pass, wrong ones are told why."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelsec.cleaning import spectral_signatures, whiten

# --- spectral_score


def by_svd(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return (centred @ torch.linalg.svd(centred, full_matrices=False).Vh[0]) ** 2


def by_u(features: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    return (u[:, 0] * s[0]) ** 2


def by_covariance(features: Tensor) -> Tensor:
    centred = features.double() - features.double().mean(0)
    return (centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]).square()


def by_numpy(features: Tensor) -> Tensor:
    table = features.numpy()
    v = np.linalg.svd(table - table.mean(0))[2][0]
    return torch.from_numpy(((table - table.mean(0)) @ v) ** 2)


def by_package(features: Tensor) -> Tensor:
    return spectral_signatures(features, torch.zeros(len(features), dtype=torch.long))


def first(features: Tensor) -> tuple[Tensor, Tensor]:
    centred = features - features.mean(0)
    return centred, torch.linalg.svd(centred, full_matrices=False).Vh


def uncentred(features: Tensor) -> Tensor:
    return (features @ torch.linalg.svd(features, full_matrices=False).Vh[0]) ** 2


def half_centred(features: Tensor) -> Tensor:
    return (features @ first(features)[1][0]) ** 2


def in_place(features: Tensor) -> Tensor:
    features -= features.mean(0)
    return (features @ torch.linalg.svd(features, full_matrices=False).Vh[0]) ** 2


def by_columns(features: Tensor) -> Tensor:
    """V's first row in place of its first column: what `U, S, V = torch.svd` users expect."""
    centred, rows = first(features)
    return (centred @ torch.nn.functional.pad(rows[:, 0], (0, centred.shape[1] - len(rows)))) ** 2


# --- quiet_poison


def whitened(features: Tensor, clean: Tensor) -> Tensor:
    mean, cov = clean.mean(0), torch.cov(clean.T)
    variance, axes = torch.linalg.eigh(cov)
    return by_svd((features - mean) @ (axes / variance.sqrt()))


def by_cholesky(features: Tensor, clean: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(torch.cov(clean.T).double())
    return by_svd(torch.linalg.solve_triangular(factor, features.double().T, upper=False).T)


def loud_removed(features: Tensor, clean: Tensor) -> Tensor:
    loud = torch.linalg.svd(clean - clean.mean(0), full_matrices=False).Vh[:9]
    quiet = features - features @ loud.T @ loud
    return by_svd(quiet)


def by_whiten(features: Tensor, clean: Tensor) -> Tensor:
    y, y_clean = torch.zeros(len(features)).long(), torch.zeros(len(clean)).long()
    return spectral_signatures(whiten(features, y, clean, y_clean, ridge=1e-3), y)


def each_feature(features: Tensor, clean: Tensor) -> Tensor:
    return by_svd((features - clean.mean(0)) / clean.std(0))


def by_place(features: Tensor, clean: Tensor) -> Tensor:
    return torch.arange(len(features), 0, -1.0)


RIGHT: dict[str, list[Any]] = {
    "planted_share": [1 / 3, 200 / 600, 0.333, torch.tensor(1 / 3), np.float32(0.3333)],
    "spectral_score": [by_svd, by_u, by_covariance, by_numpy, by_package],
    "quiet_poison": [whitened, by_cholesky, loud_removed, by_whiten],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "planted_share": [
        (0.05, "share of the whole training set"),
        (0.5, "it has grown"),
        (2 / 3, "share of the clean images"),
        (33.3, "not a percentage"),
        (0.1, "How many images carry the target's label"),
        (math.nan, "nan is not it"),
    ],
    "spectral_score": [
        (lambda f: by_svd(f).sqrt(), "not its square"),
        (lambda f: first(f)[0] @ first(f)[1][0], "both ends are suspicious"),
        (lambda f: -first(f)[0] @ first(f)[1][0], "both ends are suspicious"),
        (half_centred, "project the *centred* features"),
        (uncentred, "Centre first"),
        (lambda f: torch.linalg.svd(f - f.mean(0)).U[:, 0] ** 2, "That is u squared"),
        (lambda f: (first(f)[0] @ first(f)[1][-1]) ** 2, "least variance"),
        (lambda f: (f - f.mean(0)).norm(dim=1) ** 2, "the whole length"),
        (by_columns, "of length 1"),
        (in_place, "changed the features"),
        (lambda f: 5 * by_svd(f), "the first sample's score".capitalize()),
        (lambda f: by_svd(f)[:, None], "yours has shape (60, 1)"),
        (lambda f: by_svd(f) * torch.nan, "NaN"),
        (lambda f: by_svd(f).numpy(), "not ndarray"),
    ],
    "quiet_poison": [
        (lambda f, clean: by_svd(f), "In which directions does the clean sample vary"),
        (each_feature, "In which directions does the clean sample vary"),
        (lambda f, clean: (f - clean.mean(0)).norm(dim=1), "In which directions"),
        (lambda f, clean: -whitened(f, clean), "the sign is wrong"),
        (by_place, "order of the samples"),
        (lambda f, clean: whitened(f, clean).sum(), "yours has shape ()"),
    ],
}

VALUES = {"planted_share"}  # its answer is a number, no function
