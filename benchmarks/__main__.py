"""``python -m benchmarks``: measure, store the results, write the page."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy and torch are loaded
    os.environ[name] = "1"

from benchmarks import page, tasks  # noqa: E402


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="try it in seconds: the times mean nothing"
    )
    parser.add_argument(
        "--page-only", action="store_true", help="write the page again from the stored results"
    )
    parser.add_argument(
        "--into", type=Path, help="a folder for results and page (otherwise the book's own)"
    )
    options = parser.parse_args()
    if options.quick and not options.into:
        parser.error("--quick needs --into FOLDER: its times are not for the book")
    results, target = page.RESULTS, page.PAGE
    if options.into:
        options.into.mkdir(parents=True, exist_ok=True)
        results, target = options.into / "results.json", options.into / "benchmarks.md"
    if not options.page_only:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers' own
            measured = tasks.measure(options.quick)
        results.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    page.write(json.loads(results.read_text(encoding="utf-8")), target)
    print(f"The results are in {results}, the page is {target}")


if __name__ == "__main__":
    main()
