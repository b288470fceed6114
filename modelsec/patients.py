"""Tables of real patients that ship with scikit-learn: one row a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Patients", "breast_cancer", "diabetes"]


@dataclass(frozen=True, repr=False, eq=False)
class Patients:
    """A table of patients in memory.

    Attributes:
        name: such as "diabetes".
        raw: (N, D) float32, the values as they were recorded.
        y: (N,) int64 class indices.
        columns: the name of each of the D columns.
        classes: the name of each class.
        groups: a name -> (N,) bool, who belongs to it; empty if the table does not tell.
        source: where the data come from.
        licence: on what terms.
    """

    name: str
    raw: Tensor
    y: Tensor
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    groups: Mapping[str, Tensor]
    source: str
    licence: str

    @property
    def x(self) -> Tensor:
        """(N, D) float32 in [0, 1]: in each column 0 is the table's lowest value, 1 its highest."""
        low, high = self.raw.aminmax(dim=0)
        return (self.raw - low) / (high - low)

    @property
    def z(self) -> Tensor:
        """(N, D) float32, each column with mean 0 and standard deviation 1."""
        return (self.raw - self.raw.mean(0)) / self.raw.std(0)

    def __repr__(self) -> str:
        rows, columns = self.raw.shape
        return (
            f"Patients({self.name}: {rows} people, {columns} columns, {len(self.classes)} classes)"
        )


def breast_cancer() -> Patients:
    """569 tumours of the breast: 30 measures of cell nuclei on an image, benign or malignant.

    Returns:
        The :class:`Patients`. The table names no group.
    """
    from sklearn.datasets import load_breast_cancer  # slow to import

    bunch = load_breast_cancer()
    return Patients(
        "breast cancer",
        torch.tensor(bunch.data).float(),
        torch.tensor(bunch.target).long(),
        tuple(map(str, bunch.feature_names)),
        tuple(map(str, bunch.target_names)),
        {},
        "Breast Cancer Wisconsin (Diagnostic) (Wolberg, Mangasarian, Street & Street, UCI), packaged "
        "with scikit-learn",
        "as packaged with scikit-learn (BSD 3-Clause), which names no other terms",
    )


def diabetes() -> Patients:
    """442 people with diabetes: age, sex, body mass index, blood pressure, six blood values.

    The table holds a measure of how far the disease went in the year after. Here it is cut at its
    median into two classes.

    Returns:
        The :class:`Patients`. Sex is coded 1 and 2, and the source does not say which is which; so
        the groups are "sex 1" and "sex 2", besides "under 50" and "50 and older".
    """
    from sklearn.datasets import load_diabetes  # slow to import

    bunch = load_diabetes(scaled=False)
    raw, later = torch.tensor(bunch.data).float(), torch.tensor(bunch.target)
    age, sex = raw[:, 0], raw[:, 1]
    return Patients(
        "diabetes",
        raw,
        (later > later.quantile(0.5)).long(),
        tuple(map(str, bunch.feature_names)),
        ("slow", "fast"),
        {"sex 1": sex == 1, "sex 2": sex == 2, "under 50": age < 50, "50 and older": age >= 50},
        "the diabetes data of Efron, Hastie, Johnstone & Tibshirani (2004), Least angle regression, "
        "packaged with scikit-learn",
        "as packaged with scikit-learn (BSD 3-Clause), which names no other terms",
    )
