"""A thousand real applicants for credit: the German credit data, with their meanings corrected."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

from modelsec.data import Data
from modelsec.patients import Patients

__all__ = ["Applicants", "german_credit"]

_SHA256 = "8a731476027cc84cad64cd090785ebf078a116ec6135d11c4249407463335298"

# column -> its categories, in an order that has a meaning where there is one; () for a number
_COLUMNS: dict[str, tuple[str, ...]] = {
    "status": ("no account", "below 0", "0 to 200", "200 or more"),
    "duration": (),
    "credit_history": (
        "delay in the past", "critical", "none or paid back", "paid back till now",
        "all paid back here",
    ),
    "purpose": (
        "other", "new car", "used car", "furniture", "radio or television", "appliances",
        "repairs", "vacation", "retraining", "business",
    ),
    "amount": (),
    "savings": ("none or unknown", "below 100", "100 to 500", "500 to 1000", "1000 or more"),
    "employment": (
        "unemployed", "below 1 year", "1 to 4 years", "4 to 7 years", "7 years or more",
    ),
    "installment_rate": ("35% or more", "25% to 35%", "20% to 25%", "below 20%"),
    "personal_status": (
        "man divorced", "woman not single or man single", "man married or widowed", "woman single",
    ),
    "other_debtors": ("none", "co-applicant", "guarantor"),
    "residence": ("below 1 year", "1 to 4 years", "4 to 7 years", "7 years or more"),
    "property": ("none or unknown", "car or other", "life insurance", "real estate"),
    "age": (),
    "other_plans": ("bank", "stores", "none"),
    "housing": ("free", "rent", "own"),
    "number_credits": ("1", "2 to 3", "4 to 5", "6 or more"),
    "job": ("unskilled non-resident", "unskilled", "skilled", "manager or self-employed"),
    "dependants": ("0 to 2", "3 or more"),
    "telephone": ("no", "yes"),
    "foreign_worker": ("no", "yes"),
}  # fmt: skip


@dataclass(frozen=True, repr=False, eq=False)
class Applicants(Patients):
    """A table of people who asked for credit.

    It is a table like :class:`~modelsec.patients.Patients`, and says which columns hold a category:
    in ``raw`` such a value is the index of its name.

    Attributes:
        categories: for each of the D columns the names of its categories; () for a number.
    """

    categories: tuple[tuple[str, ...], ...]

    @property
    def choices(self) -> tuple[int, ...]:
        """How many categories each column has; 0 for a number."""
        return tuple(map(len, self.categories))

    def __repr__(self) -> str:
        rows, columns = self.raw.shape
        return f"Applicants({self.name}: {rows} people, {columns} columns, {self.classes})"

    def read(self, row: Tensor) -> dict[str, str]:
        """A row in words: column -> value.

        Args:
            row: (D,), as in ``raw``.

        Returns:
            The names of its categories, and its numbers.

        Raises:
            ValueError: if a value names no category: such a row is no applicant.
        """
        told = {}
        for column, names, value in zip(self.columns, self.categories, row.tolist(), strict=True):
            if names and (value != int(value) or not 0 <= value < len(names)):
                raise ValueError(
                    f"{column} is {value}: it has the categories 0 to {len(names) - 1}"
                )
            told[column] = names[int(value)] if names else f"{value:g}"
        return told

    def split(self, generator: torch.Generator | None = None, test: float = 0.3) -> Data:
        """Training and test rows at random, with the same share of each class in both.

        Args:
            generator: draws who is tested; torch's global one if None.
            test: the share of each class that is tested, between 0 and 1.

        Returns:
            The rows as they are in ``raw``, (N, D).

        Raises:
            ValueError: for a share out of range.
        """
        if not 0 < test < 1:
            raise ValueError(f"test must lie between 0 and 1, got {test}")
        order = torch.randperm(len(self.y), generator=generator)
        held = torch.zeros(len(self.y), dtype=torch.bool)
        for k in range(len(self.classes)):
            members = order[self.y[order] == k]
            held[members[: round(test * len(members))]] = True
        train, rest = order[~held[order]], order[held[order]]
        return Data(
            self.name, self.raw[train], self.y[train], self.raw[rest], self.y[rest], self.classes,
            self.source, self.licence,
        )  # fmt: skip


def german_credit() -> Applicants:
    """1,000 applicants of a bank in southern Germany, 1973 to 1975: 700 paid back, 300 did not.

    The rows are those of UCI's Statlog set. Its published meanings of the codes were wrong in
    places; here they are those that Grömping corrected. Bad risks were drawn more often than they
    came, amounts went through an unknown monotonic transformation, and ``personal_status`` does not
    tell women from men. Accepting a bad risk counts as 5, refusing a good one as 1.

    Returns:
        The :class:`Applicants`: classes "bad" and "good"; groups by age.

    Raises:
        ValueError: if the file that ships with the package was changed.

    References:
        Hofmann (1994), Statlog (German Credit Data), https://doi.org/10.24432/C5NC77; Grömping
        (2019), South German credit data: Correcting a widely used data set, report 4/2019, Beuth
        University of Applied Sciences Berlin.
    """
    content = (files("modelsec") / "german_credit.csv").read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != _SHA256:
        raise ValueError(
            f"german_credit.csv is not the file it should be (sha256 {found}): reinstall modelsec"
        )
    rows = list(csv.DictReader(content.decode().splitlines()))
    raw = torch.tensor(
        [
            [names.index(row[key]) if names else int(row[key]) for key, names in _COLUMNS.items()]
            for row in rows
        ],
        dtype=torch.float32,
    )
    columns = tuple(_COLUMNS)
    young = raw[:, columns.index("age")] <= 25
    return Applicants(
        "German credit",
        raw,
        torch.tensor([int(row["risk"] == "good") for row in rows]),
        columns,
        ("bad", "good"),
        {"25 or younger": young, "older than 25": ~young},
        "Hofmann (1994), Statlog (German Credit Data), UCI Machine Learning Repository, "
        "https://doi.org/10.24432/C5NC77; meanings of the codes corrected after Grömping (2019)",
        "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)",
        tuple(_COLUMNS.values()),
    )
