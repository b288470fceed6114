"""The workflows are valid, call only what exists, and may do no more than they need."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EVERY = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)


def schema_check(*paths):
    """Compare with the schema of GitHub's workflows that check-jsonschema carries; no network is used."""
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
    ]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, timeout=120)


def commands(workflow):
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            yield step.get("run", "")


def makefile_targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_all_four_are_there():
    assert {path.stem for path in WORKFLOWS} == {"ci", "colab", "gpu", "pages"}


def test_they_keep_to_the_schema():
    result = schema_check(*WORKFLOWS)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("runs-on: ${{ matrix.os }}", "run-on: ubuntu-latest"),
        ("timeout-minutes: 75", "timeout-minutes: soon"),
        ("- run: make test", "- runs: make test"),
    ],
)
def test_the_schema_refuses_faults(tmp_path, old, new):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert old in text
    spoilt = tmp_path / "ci.yml"
    spoilt.write_text(text.replace(old, new))
    assert schema_check(spoilt).returncode != 0


@EVERY
def test_what_they_call_exists(path):
    text = "\n".join(commands(yaml.safe_load(path.read_text())))
    called = re.findall(r"\bmake ([a-z-]+)", text)
    scripts = re.findall(r"\b(tools/[\w.]+)", text)
    assert called or scripts, "it calls neither make nor a tool"
    assert set(called) <= makefile_targets()
    assert all((ROOT / script).is_file() for script in scripts)


@EVERY
def test_they_may_only_read(path):
    """Write permissions belong to the one job that publishes."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        wanted = {"pages": "write", "id-token": "write"} if name == "deploy" else None
        assert job.get("permissions") == wanted
    for step in (step for job in workflow["jobs"].values() for step in job["steps"]):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@EVERY
def test_they_end_and_do_not_pile_up(path):
    workflow = yaml.safe_load(path.read_text())
    assert "concurrency" in workflow
    assert all(0 < job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())


@EVERY
def test_actions_are_githubs_own_and_pinned(path):
    for used in re.findall(r"uses: *(\S+)", path.read_text()):
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", used), used


def test_every_python_is_tested():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"][
        "strategy"
    ]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert [job["os"] for job in matrix["include"]] == ["macos-latest"]


def test_a_person_starts_the_gpu_run():
    """A runner of one's own must not run what a stranger's pull request holds."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/gpu.yml").read_text())
    # YAML reads the key `on` as the truth value.
    assert set(workflow[True]) == {"workflow_dispatch"}


def test_ci_run_is_make_test():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "exec make test"
