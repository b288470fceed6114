"""The claims ledger: every measured number in the book is printed by a call of :func:`claim`.

A claim is a sentence with one number in it. It shows the sentence with the number it was given,
and fails the notebook when the number leaves the interval in which the sentence stays true.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from modelsec.intervals import Proportion

__all__ = ["Claim", "ClaimError", "claim"]

_RECORD = "application/papermill.record/"  # the MIME prefix under which MyST-NB looks for glue


class ClaimError(AssertionError):
    """A measured value lies outside the interval that its claim states."""


@dataclass(frozen=True, repr=False)
class Claim:
    """A sentence that held when it was measured.

    Attributes:
        key: its name in the ledger, "chapter.model.what".
        sentence: with ``{}`` where the value stands.
        value: what was measured.
        within: the closed interval in which the sentence holds.
    """

    key: str
    sentence: str
    value: float | Proportion
    within: tuple[float, float]

    @property
    def number(self) -> str:
        """The value as the sentence shows it; a proportion comes with interval and n."""
        return " ".join(filter(None, self._parts()))

    def _parts(self) -> tuple[str, str]:
        if not isinstance(self.value, Proportion):
            return _shown(self.value), ""
        low, high = self.value.interval
        interval = f"(95% interval {low:.3f} to {high:.3f}, n = {self.value.n:,})"
        return f"{self.value.value:.3f}", interval

    def __str__(self) -> str:
        # not format(): a sentence may hold LaTeX, with braces of its own
        return self.sentence.replace("{}", self.number)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        before, after = (html.escape(part, quote=False) for part in self.sentence.split("{}"))
        value, interval = self._parts()
        return (
            '<div class="modelsec-claim" style="border-left: 3px solid #0072b2; padding: 0.2em 0.8em">'
            f"<strong>Measured:</strong> {before}<strong>{value}</strong>"
            f"{interval and f' <small>{interval}</small>'}{after}</div>"
        )


def _shown(value: float) -> str:
    """Three digits; whole numbers and numbers from 100 on without decimals."""
    whole = float(value).is_integer() or abs(value) >= 100
    return f"{value:,.0f}" if whole else f"{value:#.3g}".rstrip(".")


def claim(
    key: str,
    sentence: str,
    value: float | Proportion,
    *,
    within: tuple[float, float],
    n: int | None = None,
) -> None:
    """State a measured number; show it, check it, and store it for the book's other pages.

    In a notebook the sentence is displayed and the number is stored in the cell's output under
    ``key``, where MyST's ``glue`` role finds it. Outside a notebook it is printed.

    Args:
        key: a name used once in the book, "chapter.model.what".
        sentence: says what was measured, with one ``{}`` where the value stands.
        value: what was measured: a number, or a Proportion (``evaluate`` returns one), whose
            interval and n are shown with it.
        within: (low, high), the closed interval in which the sentence is true. Choose it from
            what the text concludes, not from the number you just saw.
        n: for a share given as a bare number, the number of samples behind it.

    Raises:
        ValueError: if the sentence has not exactly one ``{}``, the interval is empty, or a share
            with ``n`` is no multiple of 1/n.
        ClaimError: if the value lies outside the interval, or is NaN.
    """
    if sentence.count("{}") != 1:
        raise ValueError(f"the sentence needs exactly one {{}}: {sentence!r}")
    low, high = within
    if not low <= high:
        raise ValueError(f"within must be (low, high) with low <= high, got {within}")
    if n is not None and not isinstance(value, Proportion) and math.isfinite(value):
        hits = round(float(value) * n)
        if not math.isclose(hits / n, float(value), abs_tol=1e-6):
            raise ValueError(f"{value} is not a share of n={n} samples")
        value = Proportion(hits, n)
    stated = Claim(key, sentence, value, within)
    if not low <= float(value) <= high:
        raise ClaimError(f"{key}: {stated} -- outside [{low:g}, {high:g}], the claim does not hold")
    _publish(stated)


def _publish(stated: Claim) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(stated)
        return
    # an output that holds nothing but the record is not rendered; the sentence follows it
    # (as HTML too, or a page that quotes the number would set it like code)
    display(
        {f"{_RECORD}text/{kind}": stated.number for kind in ("plain", "html")},
        metadata={"scrapbook": {"name": stated.key, "mime_prefix": _RECORD}},
        raw=True,
    )
    display(stated)
