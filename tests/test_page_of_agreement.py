"""The page of agreement: made of what the tests stored, and of nothing else."""

import json
from pathlib import Path

import pytest
from agreement_table import FOLDER, Agreement, record

from benchmarks import agreement


def test_the_book_s_page_is_made_of_the_stored_rows() -> None:
    results = json.loads(agreement.RESULTS.read_text(encoding="utf-8"))
    assert agreement.PAGE.read_text(encoding="utf-8") == agreement.render(results)
    libraries = {(row["attack"], row["library"]) for row in results["rows"]}
    for attack in ("fgsm", "pgd", "apgd", "square", "deepfool", "fmn", "carlini_wagner"):
        assert len([pair for pair in libraries if pair[0] == attack]) >= 2, attack


def test_rows_are_stored_where_the_page_s_maker_asked_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Agreement("torch", "pgd", "linf", "iterates", 8, "largest difference 0")
    monkeypatch.delenv(FOLDER, raising=False)
    record("one", [row])
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(FOLDER, str(tmp_path))
    record("one", [row])
    (stored,) = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    text = agreement.render({"date": "2026-01-01", "rows": [stored]})
    assert (
        f"| `pgd` | linf | torch {stored['version']} | iterates | 8 | largest difference 0 |"
        in text
    )


def test_nothing_is_stored_when_a_test_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_agreement_none.py").write_text("def test_it():\n    assert False\n")
    monkeypatch.setattr(agreement, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="failed"):
        agreement.measure()
