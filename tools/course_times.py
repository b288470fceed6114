"""Fill in the minutes in instructors.md from the notebooks: `python tools/course_times.py [JUNIT.xml]`.

In every table that has a column "Read", "Exercises" or "Run", the entries are made from the chapters that the row
links to: minutes to read (from the chapter's first table), minutes of its exercises (from their headings), seconds of
its cells. The seconds come from the report of a run of all notebooks (`pytest --nbval ... --junitxml=JUNIT.xml`), and
stay as they are without one.
"""

import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "instructors.md"
COLUMNS = ("Read", "Exercises", "Run")


def minutes(chapter: str) -> tuple[int, int]:
    """Minutes to read a chapter, and minutes of its exercises together."""
    cells = json.loads((ROOT / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    read = re.search(r"\*\*Minutes\*\* \| (\d+) to read", text)
    if read is None:
        raise ValueError(f"{chapter} does not say how many minutes it takes to read")
    exercises = re.findall(r"^#+ Exercise .*?(\d+) minutes", text, re.MULTILINE)
    return int(read[1]), sum(map(int, exercises))


def seconds(report: Path) -> dict[str, float]:
    """Seconds of each notebook's cells, by its name without the suffix."""
    found: dict[str, float] = defaultdict(float)
    for case in ET.parse(report).getroot().iter("testcase"):
        if named := re.fullmatch(r"(chapters\..+)\.ipynb", case.get("classname", "")):
            found[named[1].replace(".", "/")] += float(case.get("time", 0))
    return found


def filled(text: str, run: dict[str, float]) -> str:
    """The page with its columns made anew.

    Args:
        text: the page.
        run: seconds by chapter; where a chapter is missing, the entry stays.

    Returns:
        The new text.
    """
    lines, names = [], []
    for line in text.split("\n"):
        parts = [part.strip() for part in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            names = []
        elif not names:
            names = parts
        elif chapters := re.findall(r"\]\((chapters/[\w/]+)(?:\.ipynb)?\)", line):
            read, exercises = (sum(row) for row in zip(*map(minutes, chapters), strict=True))
            new = {"Read": str(read), "Exercises": str(exercises)}
            if all(chapter in run for chapter in chapters):
                new["Run"] = f"{sum(run[chapter] for chapter in chapters):.0f} s"
            parts = [
                new.get(name, part) if name in COLUMNS else part
                for name, part in zip(names, parts, strict=True)
            ]
            line = f"| {' | '.join(parts)} |"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Write the page."""
    run = seconds(Path(arguments[0])) if arguments else {}
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), run), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
