"""What the Makefile promises: it tells what is missing in one sentence, repeats no work, and hides no failure."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import build_book
import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COPIED = [
    "Makefile",
    "tools",
    "requirements.txt",
    "requirements-book.txt",
    "pyproject.toml",
    "tests/peers.txt",
]


@pytest.fixture
def project(tmp_path):
    """A copy of what the Makefile needs, with no environment yet."""
    folder = tmp_path / "a project"  # with a space, as people have
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
    return folder


def make(folder, *arguments, **environment):
    """Run make as a newcomer would, not as a part of the make that runs these tests."""
    keep = {
        key: value
        for key, value in os.environ.items()
        if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CI"}
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=keep | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def tools_only(folder, *names):
    """A PATH on which nothing but these programs is found."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


def pretend_environment(project, name, text="exit 0"):
    """An environment that says it is complete, with a script in Python's place."""
    script(project / name / "bin" / "python", text)
    place = subprocess.check_output(
        "pwd -P | cksum | cut -d' ' -f1", shell=True, cwd=project, text=True
    )
    (project / name / f"complete-{place.strip()}").touch()


def test_help_lists_every_target():
    listed = make(ROOT).stdout
    targets = re.findall(r"^\.PHONY: ([a-z-]+)$", MAKEFILE, re.MULTILINE)
    assert len(targets) > 15
    for target in targets:
        assert re.search(rf"^  {target} +\S", listed, re.MULTILINE), target
    assert make(ROOT, "help").stdout == listed


def test_nothing_newer_than_make_3_81():
    """The make that macOS ships is from 2006."""
    for newer in (
        r"^\.ONESHELL",
        r"^\w+ *!=",
        r"\$\(file ",
        r"^define \w+ *[:?+]?=",
        r"^undefine ",
        r"^\w+ *::=",
    ):
        assert not re.search(newer, MAKEFILE, re.MULTILINE), newer


def test_too_old_a_python_is_one_sentence(project, tmp_path):
    old = script(tmp_path / "python", "echo 3.9")
    result = make(project, "book", PYTHON=str(old))
    assert result.returncode != 0
    sentence, *rest = result.stderr.splitlines()
    assert sentence == (
        "This book needs Python 3.11, 3.12 or 3.13 on the path, or named by PYTHON=/path/to/python; "
        f"found: {old} is 3.9."
    )
    assert len(rest) == 1, "make adds its own line, and nothing else stands there"
    assert not list(project.glob(".venv*/complete-*"))


def find_python(path, **environment):
    return subprocess.run(
        ["/bin/sh", str(ROOT / "tools" / "find_python.sh")],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
    )


def test_a_launcher_that_does_not_start_is_passed_over(tmp_path):
    script(tmp_path / "python3", "echo 'version not installed' >&2; exit 127")
    script(tmp_path / "python3.13", "echo 3.13")
    assert find_python(str(tmp_path)).stdout == "python3.13\n"


def test_plain_python3_is_preferred_when_it_will_do(tmp_path):
    for name, version in [("python3", "3.12"), ("python3.13", "3.13")]:
        script(tmp_path / name, f"echo {version}")
    assert find_python(str(tmp_path)).stdout == "python3\n"


def test_a_python_that_is_too_new_or_lacks_venv_is_named(tmp_path):
    script(tmp_path / "python3", "echo 3.14")
    script(tmp_path / "python3.12", "case $2 in *venv*) exit 1 ;; esac; echo 3.12")
    result = find_python(str(tmp_path))
    assert result.returncode == 1
    assert "found: python3 is 3.14, python3.12 is 3.12 but has no venv module" in result.stderr
    assert "apt install python3.12-venv" in result.stderr


def test_no_python_at_all(tmp_path):
    result = find_python(str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.strip().endswith("found: none.")


def test_a_failed_installation_is_not_taken_for_a_complete_one(project):
    result = make(
        project,
        "book",
        PYTHON=sys.executable,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS="",
        PIP_CONFIG_FILE=os.devnull,
    )
    assert result.returncode != 0
    assert "failed; pip's last lines stand above" in result.stderr
    assert (project / ".venv-book" / "bin" / "python").exists()
    assert not list((project / ".venv-book").glob("complete-*"))


def test_a_complete_environment_is_left_alone(project, tmp_path):
    pretend_environment(project, ".venv-book")
    assert "install" not in make(project, "-n", "book").stdout
    os.utime(project / "requirements.txt", (4e9, 4e9))
    assert "tools/install.py" in make(project, "-n", "book").stdout
    os.utime(project / "requirements.txt", (1e9, 1e9))
    moved = project.rename(tmp_path / "elsewhere")
    assert "tools/install.py" in make(moved, "-n", "book").stdout


def test_all_stages_run_and_the_failed_ones_are_named(project):
    pretend_environment(project, ".venv-book")
    # Types fail, and so does pytest as it does when it collects nothing.
    pretend_environment(
        project, ".venv", 'echo "ran $*"; case "$*" in *mypy*) exit 1 ;; *nbval*) exit 5 ;; esac'
    )
    result = make(project, "test", CHROME="/bin/sh")
    assert result.returncode != 0
    stages = " ".join(re.findall(r"^===== (\S+) =====$", result.stdout, re.MULTILINE))
    assert stages == "lint types test-book test-package test-notebooks test-site summary"
    assert "\nFailed: types test-notebooks\n" in result.stdout
    for part in (
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "pytest tests -m not site -n 2",
        "pytest tests -m site",
    ):
        assert f"ran -m {part}" in result.stdout
    pretend_environment(project, ".venv")
    result = make(project, "test", CHROME="/bin/sh")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1].startswith("Passed: lint types test-book")


def test_missing_git_is_one_sentence(project, tmp_path):
    for name in (".venv", ".venv-book"):
        pretend_environment(project, name)
    path = tools_only(tmp_path / "bin", "make", "sh", "cksum", "cut", "date", "rm", "awk")
    result = make(project, "test", PATH=path)
    assert result.returncode != 0
    assert result.stderr.splitlines()[0] == "make test needs git, which is not on the path."


def find_browser(path, **environment):
    return subprocess.run(
        ["/bin/sh", str(ROOT / "tools" / "find_browser.sh")],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(
    sys.platform == "darwin", reason="a Chrome in /Applications is found without PATH"
)
def test_without_a_browser_one_sentence_says_how_to_get_it(tmp_path):
    path = tools_only(tmp_path / "bin", "id")
    result = find_browser(path)
    assert (result.returncode, result.stdout) == (0, "")
    assert re.fullmatch(
        r"The tests of the pages need Chromium .*apt install chromium.* They are skipped\.\n",
        result.stderr,
    )
    result = find_browser(path, CI="true")
    assert (result.returncode, result.stdout) == (1, "")
    assert "With CI=true they are not skipped." in result.stderr


def test_a_browser_is_found_or_named(tmp_path):
    browser = script(tmp_path / "google-chrome", "exit 0")
    assert find_browser(str(tmp_path)).stdout == f"{browser}\n"
    other = script(tmp_path / "other", "exit 0")
    assert find_browser(str(tmp_path), CHROME=str(other)).stdout == f"{other}\n"
    result = find_browser(str(tmp_path), CHROME="/no/such/browser")
    assert result.returncode == 1
    assert result.stderr == "CHROME=/no/such/browser is not a program that can be run.\n"


def test_the_book_is_built_again_only_for_its_own_sources(tmp_path):
    for name in (
        "intro.md",
        "chapters/loss.ipynb",
        "modelsec/losses.py",
        "tests/test_x.py",
        "_build/html/a.html",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    first = build_book.fingerprint(tmp_path)
    for name in (
        "tests/test_x.py",
        "_build/html/a.html",
        ".venv/x.py",
        "modelsec/__pycache__/losses.pyc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("two")
    assert build_book.fingerprint(tmp_path) == first
    seen = {first}
    for name in ("intro.md", "chapters/loss.ipynb", "modelsec/losses.py", "chapters/new.md"):
        (tmp_path / name).write_text("two")
        seen.add(build_book.fingerprint(tmp_path))
    (tmp_path / "chapters/new.md").rename(tmp_path / "chapters/newer.md")
    seen.add(build_book.fingerprint(tmp_path))
    assert len(seen) == 6, "a change went unnoticed"


# The versions


def pins(name):
    """Return package -> version (None where there is none) of a requirements file."""
    found = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        need = line.partition("#")[0].partition(";")[0].strip()
        if need:
            package, _, version = need.partition("==")
            found[re.sub(r"[-_.]+", "-", package).lower()] = version or None
    return found


def test_everything_is_pinned_once():
    locked = pins("requirements.txt")
    assert len(locked) > 150
    assert all(re.fullmatch(r"[\w.+]+", version or "") for version in locked.values())
    for package, version in pins("requirements.in").items():
        assert locked[package] == version, f"{package}: run `make lock`"


def test_the_light_environment_names_pinned_packages_and_no_torch():
    names = pins("requirements-book.txt")
    assert set(names.values()) == {None}
    assert set(names) <= set(pins("requirements.in"))
    assert "torch" not in names


@pytest.mark.parametrize(
    "name", ["requirements.in", "requirements.txt", "requirements-book.txt", "tests/peers.txt"]
)
def test_no_place_of_one_machine_in_the_versions(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|^\s*(-i|-f|--index|--extra|--find)|^/", text, re.MULTILINE)
