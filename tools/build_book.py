"""Build the site with Jupyter Book, unless it stands already for exactly these sources.

`python tools/build_book.py [--clean]`; a warning is an error. What the site was built from is remembered as one hash of
contents, not of times, so that switching branches to and fro, or copying the folder, builds nothing twice.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
MEMORY = BUILD / "built-from"
LOG = BUILD / "warnings.log"
SHOWN = 60
FIRST_PAGE = BUILD / "html" / "index.html"
# Everything else at the top of the project is a source: pages, their looks, docstrings, the versions that build them.
NOT_SOURCES = {"Makefile", "_build", "benchmarks", "build", "data", "dist", "tests", "tools"}
PASSED_OVER = {"__pycache__", ".ipynb_checkpoints", ".DS_Store"}


def sources(root: Path = ROOT) -> Iterator[Path]:
    """Every file that the site may depend on, in one order everywhere."""
    for top in sorted(root.iterdir()):
        if top.name.startswith(".") or top.name in NOT_SOURCES or top.suffix == ".egg-info":
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and not PASSED_OVER.intersection(path.relative_to(root).parts):
                yield path


def fingerprint(root: Path = ROOT) -> str:
    """One hash over the names and contents of all sources, and over the Python that builds them."""
    total = hashlib.sha256(f"{sys.version_info[:2]}{root}".encode())
    for path in sources(root):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def main(arguments: list[str]) -> int:
    """Build what needs building, then say which file to open."""
    if "--clean" in arguments:
        shutil.rmtree(BUILD, ignore_errors=True)
    wanted = fingerprint()
    if FIRST_PAGE.exists() and MEMORY.exists() and MEMORY.read_text() == wanted:
        print("The book is up to date.")
    elif not build():
        print(
            "The book has warnings or errors, and each one counts: they stand above.",
            file=sys.stderr,
        )
        return 1
    else:
        MEMORY.write_text(wanted)
    print(f"Open {FIRST_PAGE}")
    return 0


def build() -> bool:
    """Run Jupyter Book with every warning an error; only warnings and errors are shown."""
    print("Building the book ...", flush=True)
    MEMORY.unlink(missing_ok=True)
    start = time.monotonic()
    # Not the `jupyter-book` script: its first line breaks when the folder is moved.
    run = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    command = ["-c", run, "build", "-W", "-n", "--keep-going", "--quiet", str(ROOT)]
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if result.returncode or not FIRST_PAGE.exists():
        BUILD.mkdir(exist_ok=True)
        LOG.write_text(result.stdout, encoding="utf-8")
        lines = result.stdout.splitlines()
        print("\n".join(lines[:SHOWN]), file=sys.stderr)
        if len(lines) > SHOWN:
            print(f"... and {len(lines) - SHOWN} lines more in {LOG}", file=sys.stderr)
        return False
    print(f"Built it in {time.monotonic() - start:.0f} s.")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
