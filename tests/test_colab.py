"""The set-up cell installs the book's package where torch is and modelsec is not, and touches nothing else.

A fresh environment sees everything installed here except modelsec, as Colab does. Git is told that the address on
GitHub is a repository made of the files that stand here, so the cell runs word for word without the network.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import slug

pytestmark = pytest.mark.slow

# Which modelsec and torch are seen, and where they stand; nothing for what cannot be imported.
REPORT = """
import importlib.util, importlib.metadata
for name in ("modelsec", "torch"):
    spec = importlib.util.find_spec(name)
    print(name, importlib.metadata.version(name) if spec else None, spec.origin if spec else None)
"""


def run(*command, cwd, env=None):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def git(folder: Path, *arguments):
    return run("git", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def clone(root, tmp_path_factory):
    """A repository with one commit: what would be committed here."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    folder = tmp_path_factory.mktemp("clone")
    for name in filter(None, listed.split("\0")):
        if name.startswith(("modelsec/", "pyproject.toml", "README.md", "LICENSE")):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((root / name).read_bytes())
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    who = (
        "-c",
        "user.name=Test",
        "-c",
        "user.email=test@example.org",
        "-c",
        "commit.gpgsign=false",
    )
    git(folder, *who, "commit", "--quiet", "--message", "Files as they stand")
    return folder


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The Python of an environment that has all that is installed here, except modelsec."""
    folder = tmp_path_factory.mktemp("colab") / "venv"
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    # Python 3.11 brings a setuptools of its own, too old to build modelsec.
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools", cwd=folder)
    site = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).strip()
    # Python does not follow the .pth files of a folder that a .pth file names, and an editable modelsec is behind one.
    Path(site, "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def environment(clone, tmp_path_factory):
    """An environment in which GitHub's address is the clone, and nothing is fetched from anywhere."""
    # A place of its own for settings, so that neither a person's nor a machine's decide what happens.
    home = tmp_path_factory.mktemp("home")
    keep = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PIP_", "GIT_", "PYTHON"))
    }
    return keep | {
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{slug.current()}",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def test_setup_cell(clone, colab, environment, tmp_path):
    def report():
        lines = run(colab, "-c", REPORT, cwd=tmp_path, env=environment).splitlines()
        return {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}

    def files():
        return {
            p: p.stat().st_mtime_ns for p in colab.parent.parent.rglob("*") if p.suffix != ".pyc"
        }

    cell = tmp_path / "cell.ipy"
    cell.write_text(slug.setup_cell(slug.current()) + "\n")

    def run_cell():
        return run(colab, "-m", "IPython", "--no-banner", cell, cwd=tmp_path, env=environment)

    before = report()
    assert before["modelsec"] == ["None", "None"], (
        "modelsec is there already: this would test nothing"
    )
    assert before["torch"][0] != "None"

    said = run_cell()
    after = report()
    assert after["torch"] == before["torch"]
    assert after["modelsec"][1].startswith(str(colab.parent.parent)), said
    run(colab, "-c", "import modelsec.attacks", cwd=tmp_path, env=environment)
    shipped = {p.relative_to(clone) for p in (clone / "modelsec").rglob("*") if p.is_file()}
    installed = Path(after["modelsec"][1]).parent.parent
    missing = [str(path) for path in sorted(shipped) if not (installed / path).is_file()]
    assert not missing, f"pyproject.toml forgets to install {missing}"

    run(colab, "-c", "import modelsec", cwd=tmp_path, env=environment)
    stood = files()
    assert run_cell().strip() == ""
    assert files() == stood, "running the cell again changed something"


def test_nothing_but_lower_bounds():
    """A pin or an upper bound could replace Colab's own torch or numpy."""
    import tomllib

    project = tomllib.loads((Path(slug.ROOT) / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    for need in project["dependencies"]:
        assert ">=" in need, need
        assert not set(need.partition(">=")[2]) - set("0123456789."), need
    assert sys.version_info >= (3, 11)
