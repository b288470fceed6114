"""Long results: a record is whole or refused, and its study can be run again."""

import json
from pathlib import Path
from typing import Any

import pytest

from modelsec.zoo import results
from modelsec.zoo.results import load_record, load_result, make_result, recorded, studies, study


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry and a folder of records of the test's own."""
    studies()  # a module registers its studies once, when it is imported: not into the sandbox
    monkeypatch.setattr(results, "_registry", {})
    monkeypatch.setattr(results, "_RECORDED", tmp_path)

    @study("test_sum", about="adds", n=3, seeds=(1, 2))
    def run(seeds: tuple[int, ...]) -> dict[str, Any]:
        return {"total": sum(seeds), "by seed": {seed: (seed, 0.5) for seed in seeds}}

    return tmp_path


def test_a_stored_record_comes_back(sandbox: Path) -> None:
    stored = results.store_result("test_sum")
    assert load_record("test_sum") == stored
    assert load_result("test_sum") == {"total": 3, "by seed": {"1": [1, 0.5], "2": [2, 0.5]}}
    assert (stored["n"], stored["seeds"], stored["about"]) == (3, [1, 2], "adds")
    assert {"python", "torch", "modelsec"} <= set(stored["versions"])
    assert [path.name for path in sandbox.iterdir()] == ["test_sum.json"]


def test_it_is_made_the_same_again_and_with_fewer_seeds(sandbox: Path) -> None:
    assert make_result("test_sum") == results.store_result("test_sum")
    assert make_result("test_sum", seeds=[2])["result"]["total"] == 2
    with pytest.raises(ValueError, match="seeds must not be empty"):
        make_result("test_sum", seeds=[])


@pytest.mark.parametrize(
    ("old", "new"),
    [('"total": 3', '"total": 4'), ('"n": 3', '"n": 9'), ('"adds"', '"subtracts"')],
)
def test_one_changed_number_is_refused(sandbox: Path, old: str, new: str) -> None:
    results.store_result("test_sum")
    path = sandbox / "test_sum.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=r"SHA-256 .* reinstall modelsec"):
        load_result("test_sum")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sha256": "0"'])
def test_what_is_no_record_is_refused(sandbox: Path, content: str) -> None:
    (sandbox / "test_sum.json").write_text(content)
    with pytest.raises(ValueError, match="no complete record"):
        load_result("test_sum")


def test_a_failed_run_leaves_the_old_record(sandbox: Path) -> None:
    stored = results.store_result("test_sum")

    @study("test_sum", about="divides", n=3, seeds=(1,))
    def run(seeds: tuple[int, ...]) -> dict[str, Any]:
        return {"quotient": float("nan")}

    with pytest.raises(ValueError, match="not JSON compliant"):
        results.store_result("test_sum")
    assert load_record("test_sum") == stored
    assert len(list(sandbox.iterdir())) == 1


def test_unknown_names_are_answered_with_the_known_ones(sandbox: Path) -> None:
    with pytest.raises(ValueError, match=r"no recorded result 'x'; there are \[\]"):
        load_result("x")
    with pytest.raises(ValueError, match=r"no study 'x'; there are \['test_sum'"):
        make_result("x")


@pytest.mark.parametrize(("name", "seeds"), [("no name", (0,)), ("", (0,)), ("fine", ())])
def test_a_study_needs_a_name_and_seeds(name: str, seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a study needs a name"):
        study(name, about="", n=1, seeds=seeds)


def test_two_studies_of_one_name_are_refused(sandbox: Path) -> None:
    def elsewhere(seeds: tuple[int, ...]) -> dict[str, Any]:
        return {}

    elsewhere.__module__ = "other"
    with pytest.raises(ValueError, match="is a study already"):
        study("test_sum", about="", n=1, seeds=(0,))(elsewhere)


def test_every_record_that_ships_is_whole_and_belongs_to_a_study() -> None:
    known = studies()
    assert set(recorded()) == set(known)
    for name in recorded():
        record = load_record(name)
        assert (record["study"], record["about"]) == (name, known[name].about)
        assert (record["n"], tuple(record["seeds"])) == (known[name].n, known[name].seeds)
        assert len(json.dumps(record)) < 300_000
