"""Marks: what the graders said in executed notebooks, for a teacher who gets many of them.

A notebook's outputs are text, and text can be edited: run a notebook again before you believe it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

__all__ = ["ORDER", "Status", "marks"]

Status = Literal["passed", "not yet", "todo", "not run"]
ORDER: tuple[Status, ...] = ("passed", "not yet", "todo", "not run")  # from the best to the worst
_SIGN: dict[str, Status] = {
    "\N{CHECK MARK}": "passed", "\N{BALLOT X}": "not yet", "\N{WHITE CIRCLE}": "todo"
}  # fmt: skip


def marks(path: str | Path) -> dict[str, Status]:
    """Read what each grader said last.

    Cells tagged "solution" are the book's own and don't count. Where an exercise calls its grader
    more than once, the best counts: some exercises show a faulty function first.

    Args:
        path: of an executed notebook.

    Returns:
        The grader's name -> its status, in the order of the exercises. Quizzes are not in it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no notebook, or calls no grader.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        cells = json.loads(text)["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no notebook in the format of Jupyter (version 4)") from None
    found: dict[str, Status] = {}
    for cell in code:
        if "solution" in cell.get("metadata", {}).get("tags", []):
            continue
        source = "".join(cell["source"])
        for name in re.findall(r"^\s*check\.(?!quiz\b)(\w+)\(", source, re.MULTILINE):
            found[name] = min(found.get(name, "not run"), _said(cell), key=ORDER.index)
    if not found:
        raise ValueError(f"{path} calls no grader: it is no chapter with exercises")
    return found


def _said(cell: dict[str, Any]) -> Status:
    for output in reversed(cell.get("outputs", [])):
        shown = "".join(output.get("data", {}).get("text/plain", ""))
        if shown[:1] in _SIGN:
            return _SIGN[shown[0]]
    return "not run"
