"""``python -m benchmarks.agreement``: run the tests of agreement, and write the page that shows them."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from string import Template
from typing import Any

from modelsec.tables import Table

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "agreement.json"
PAGE = ROOT / "reference" / "agreement.md"
NAMES = {
    "foolbox": "Foolbox",
    "adversarial-robustness-toolbox": "ART",
}
NORMS = {"linf": 0, "l2": 1, "l1": 2}


def measure() -> dict[str, Any]:
    """Run the tests; they store what they saw.

    Raises:
        SystemExit: if a test fails: a page must not show what does not hold.
    """
    with tempfile.TemporaryDirectory() as folder:
        tests = sorted(str(path) for path in (ROOT / "tests").glob("test_agreement*.py"))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "0", *tests],
            cwd=ROOT,
            env=os.environ | {"MODELSEC_AGREEMENT": folder},
            check=False,
        )
        if done.returncode:
            raise SystemExit("the tests of agreement failed: nothing was stored")
        rows = [
            row
            for path in sorted(Path(folder).glob("*.json"))
            for row in json.loads(path.read_text(encoding="utf-8"))
        ]
    return {"date": datetime.date.today().isoformat(), "rows": rows}


def render(results: dict[str, Any]) -> str:
    """The page's text."""
    rows = sorted(
        results["rows"],
        key=lambda row: (row["attack"], NORMS.get(row["norm"], -1), row["library"]),
    )
    table = Table(
        {
            "attack or repair": f"`{row['attack']}`",
            "norm": row["norm"],
            "library": f"{NAMES.get(row['library'], row['library'])} {row['version']}",
            "what is compared": row["compared"],
            "n": f"{row['n']:,}",
            "what was seen": row["result"].replace("0e+00", "0"),
        }
        for row in rows
    )
    text = (HERE / "agreement.md").read_text(encoding="utf-8")
    return Template(text).substitute(table=repr(table), date=results["date"])


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument(
        "--page-only", action="store_true", help="write the page again from the stored results"
    )
    if not parser.parse_args().page_only:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"The results are in {RESULTS}, the page is {PAGE}")


if __name__ == "__main__":
    main()
