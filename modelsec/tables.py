"""Tables that a notebook shows and a program can read."""

from __future__ import annotations

import html
from typing import Any

__all__ = ["Table"]


class Table(list[dict[str, Any]]):
    """Rows with equal keys, drawn as a table in a notebook and as Markdown elsewhere.

    >>> Table([{"attack": "fgsm", "gradients": 1}])
    | attack | gradients |
    | --- | --- |
    | fgsm | 1 |
    """

    def __repr__(self) -> str:
        if not self:
            return "(empty table)"
        head = [str(key) for key in self[0]]
        rows = [[str(value) for value in row.values()] for row in self]
        return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])

    def _repr_html_(self) -> str:
        if not self:
            return "<p>(empty table)</p>"
        head = "".join(f'<th scope="col">{html.escape(str(key))}</th>' for key in self[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>"
            for row in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    text = html.escape(str(value))
    if not text.startswith("https://"):
        return text
    # a whole address would squeeze all other columns: show its end, such as 1412.6572
    *front, shown = text.rstrip("/").split("/")
    while len(shown) < 8 and len(front) > 2:
        shown = f"{front.pop()}/{shown}"
    return f'<a href="{text}"><span style="white-space: nowrap">{shown}</span></a>'
