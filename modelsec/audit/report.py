"""The report of an audit: one card, as text, HTML and JSON."""

from __future__ import annotations

import html
import io
import json
import os
import platform
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from modelsec import __version__
from modelsec.audit.parts import Section, Subject
from modelsec.intervals import Proportion
from modelsec.tables import Table

__all__ = ["Report"]

_SIGN = {"ok": "\N{CHECK MARK}", "warning": "!", "info": "i", "skipped": "\N{EN DASH}"}
_COLOR = {"ok": "#009e73", "warning": "#d55e00", "info": "#0072b2", "skipped": "#777777"}


@dataclass(frozen=True, repr=False)
class Report:
    """An audit card: it shows itself in a notebook, as text, as HTML and as JSON.

    Attributes:
        subject: what was audited.
        sections: what was found, in order.
        interrupted: True if the audit was stopped before its last section.
    """

    subject: Subject
    sections: tuple[Section, ...]
    interrupted: bool = False

    @property
    def measures(self) -> dict[str, float | Proportion]:
        """Every number under "section.measure", such as "clean.accuracy"."""
        return {
            f"{s.name}.{key}": value for s in self.sections for key, value in s.measures.items()
        }

    def __getitem__(self, name: str) -> Section:
        """The section of that name; KeyError names those that there are."""
        for found in self.sections:
            if found.name == name:
                return found
        raise KeyError(
            f"no section {name!r} in this report; it has {[s.name for s in self.sections]}"
        )

    @property
    def table(self) -> Table:
        """The card as rows: verdict, section, what was found."""
        return Table(
            {"": s.verdict, "section": s.title, "what was found": s.summary} for s in self.sections
        )

    @property
    def told(self) -> list[dict[str, str]]:
        """Title, state and text of each section, as a record keeps them."""
        return [{"title": s.title, "state": s.verdict, "text": s.summary} for s in self.sections]

    @property
    def heading(self) -> str:
        """What was audited, on what, how: one line."""
        subject = self.subject
        stopped = "; stopped before its end" if self.interrupted else ""
        kind = "rows" if subject.x.dim() == 2 else "images"
        return (
            f"{subject.name}, on {len(subject.y):,} test {kind} of {subject.data.name}; attacks in "
            f"{subject.norm}, seed {subject.seed}{stopped}"
        )

    def __str__(self) -> str:
        rows = [f"Audit card: {self.heading}"]
        for found in self.sections:
            rows += ["", f"[{found.verdict}] {found.title}: {found.summary}"]
            rows += [f"    {key}: {_number(value)}" for key, value in found.measures.items()]
        return "\n".join(rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.to_html(whole_page=False)

    def to_html(self, *, whole_page: bool = True) -> str:
        """The card as HTML, figures included; it asks no other host for anything.

        Args:
            whole_page: a complete document with all details open; False gives a fragment with
                the details folded, as a notebook shows it.

        Returns:
            The HTML.
        """
        body = "".join(_html(found, unfolded=whole_page) for found in self.sections)
        card = (
            '<div class="modelsec-audit" style="border: 1px solid #888888; border-radius: 6px; '
            'padding: 0.6em 1em; max-width: 60em">'
            f"<p><strong>Audit card</strong><br><small>{_text(self.heading)}</small></p>{body}</div>"
        )
        if not whole_page:
            return card
        title = _text(f"Audit card: {self.subject.name}")
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            "<style>body{font:16px/1.5 sans-serif;margin:2em auto;max-width:60em;padding:0 1em;"
            "color:#222;background:#fff}table{border-collapse:collapse}td,th{padding:.2em .7em;"
            "text-align:left;border-bottom:1px solid #ccc}</style></head>"
            f"<body><h1>{title}</h1>{card}<p><small>modelsec {__version__}, "
            f"torch {_text(torch.__version__)}. An accuracy under attack is an upper bound: a "
            "better attack may leave less.</small></p></body></html>\n"
        )

    def to_json(self) -> str:
        """The card as JSON: what was audited, and each section with its numbers and intervals."""
        subject = self.subject
        content = {
            "schema": 1,
            "model": subject.name,
            "data": subject.data.name,
            "source": subject.data.source,
            "n": len(subject.y),
            "norm": subject.norm,
            "radii": list(subject.radii),
            "seed": subject.seed,
            "interrupted": self.interrupted,
            "versions": {
                "modelsec": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "sections": [
                {
                    "name": found.name,
                    "title": found.title,
                    "verdict": found.verdict,
                    "summary": found.summary,
                    "measures": {key: _json(value) for key, value in found.measures.items()},
                    "table": [
                        {str(k): _plain(v) for k, v in row.items()} for row in found.table or []
                    ],
                }
                for found in self.sections
            ],
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write the card to ``NAME.html`` or ``NAME.json``, in one step.

        Args:
            path: its ending says which.

        Returns:
            The path.

        Raises:
            ValueError: for another ending.
            FileNotFoundError: if the folder does not exist.
        """
        path = Path(path)
        writers = {".html": self.to_html, ".json": self.to_json}
        if path.suffix not in writers:
            raise ValueError(f"an audit card is saved as .html or .json, got {str(path)!r}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent}: make it first")
        temporary = path.with_name(f".{path.name}.new")
        try:
            temporary.write_text(writers[path.suffix](), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path


def _number(value: float | Proportion) -> str:
    return str(value) if isinstance(value, Proportion) else f"{value:.4g}"


def _json(value: float | Proportion) -> Any:
    if not isinstance(value, Proportion):
        return {"value": float(value)}
    low, high = value.interval
    return {"value": value.value, "interval": [low, high], "hits": value.hits, "n": value.n}


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _text(value: object) -> str:
    return html.escape(str(value), quote=False)


def _html(found: Section, unfolded: bool) -> str:
    # colour stands beside the words, never in them: it has to be read on white and on black
    bar = f"border-left: 4px solid {_COLOR[found.verdict]}; padding-left: 0.6em"
    badge = f"<strong>{_SIGN[found.verdict]} {found.verdict}</strong>"
    details = ""
    if found.measures and not found.table:  # a table tells the same numbers better
        rows = Table({"measure": k, "value": _number(v)} for k, v in found.measures.items())
        details += rows._repr_html_()
    if found.table:
        details += found.table._repr_html_()
    if found.figure is not None:
        details += _picture(found.figure, found.alt)
    if details:
        is_open = " open" if unfolded else ""
        details = (
            f"<details{is_open}><summary>{_text(found.title)}: details</summary>{details}</details>"
        )
    title, summary = _text(found.title), _text(found.summary)
    return f'<p style="{bar}">{badge} &middot; <strong>{title}.</strong> {summary}</p>{details}'


def _picture(figure: Figure, alt: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    code = b64encode(stream.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{code}" alt="{html.escape(alt)}" style="max-width: 100%">'
    )
