"""Point the whole project at another repository: `make slug REPO=owner/name`.

The address stands in pyproject.toml; links, badges, citations and the notebooks' set-up cells repeat it.
All of them are rewritten together or, if anything goes wrong, none.
"""

import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# GitHub's rules: an owner is letters, digits and single hyphens; a name may hold dots and underscores too.
OWNER = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}"
NAME = r"[A-Za-z0-9._-]{1,100}"
# Files that must name the repository. Any other .md file, notebook or workflow may.
REQUIRED = ["pyproject.toml", "_config.yml", "README.md", "CITATION.cff"]
PATTERNS = [
    *REQUIRED,
    "*.md",
    "*.cff",
    "chapters/**/*.md",
    "chapters/**/*.ipynb",
    ".github/**/*.yml",
]


def current(root: Path = ROOT) -> str:
    """Return the slug, `owner/name`, that pyproject.toml states."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def setup_cell(slug: str) -> str:
    """Return the text of every notebook's first code cell."""
    template = Path(__file__).with_name("setup_cell.txt").read_text(encoding="utf-8")
    return template.format(slug=slug).strip()


def check(slug: str) -> str:
    """Return `slug` if GitHub could have such a repository; raise ValueError otherwise."""
    owner, _, name = slug.partition("/")
    allowed = re.fullmatch(OWNER, owner) and re.fullmatch(NAME, name)
    if allowed and name not in {".", ".."} and not name.endswith(".git"):
        return slug
    raise ValueError(
        f"REPO must be a GitHub repository such as REPO=owner/name, without https:// or .git; got {slug!r}."
    )


def files(root: Path = ROOT) -> list[Path]:
    """Every file that names the repository or may come to."""
    found = {path for pattern in PATTERNS for path in root.glob(pattern)}
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def rewritten(text: str, old: str, new: str) -> str:
    """Replace the slug, and the address of its GitHub Pages, wherever they stand as whole words."""

    def pages(slug: str) -> str:
        owner, name = slug.split("/")
        return f"{owner.lower()}.github.io/{name}"

    for before, after in [(old, new), (pages(old), pages(new))]:
        whole = rf"(?<![A-Za-z0-9_.-]){re.escape(before)}(?![A-Za-z0-9_-])"
        text = re.sub(whole, lambda _, after=after: after, text)
    return text


def rename(new: str, root: Path = ROOT) -> list[Path]:
    """Rewrite every file under `root` to name `new`; return the files that changed.

    Raises ValueError for a bad slug or a required file that does not name the old one; OSError leaves all as it was.
    """
    check(new)
    old = current(root)
    before = {path: path.read_bytes() for path in files(root)}
    after = {
        path: rewritten(data.decode("utf-8"), old, new).encode("utf-8")
        for path, data in before.items()
    }
    silent = [name for name in REQUIRED if old.encode() not in before.get(root / name, b"")]
    if silent:
        raise ValueError(f"These files should name {old} and do not: {', '.join(silent)}.")
    changed = [path for path in before if after[path] != before[path]]
    done: list[Path] = []
    try:
        for path in changed:
            replace(path, after[path])
            done.append(path)
    except BaseException:
        for path in done:
            replace(path, before[path])
        raise
    return changed


def replace(path: Path, data: bytes) -> None:
    """Write `path` in one step: a reader sees the old file or the new one, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, path.stat().st_mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main(argument: str) -> int:
    """Rename and tell what was done, or say in one line why not; `--setup-cell` prints the set-up cell instead."""
    if argument == "--setup-cell":
        print(setup_cell(current()))
        return 0
    try:
        changed = rename(argument.strip())
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for path in changed:
        print(f"  {path.relative_to(ROOT)}")
    print(f"{len(changed)} files now point at https://github.com/{current()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
