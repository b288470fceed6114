"""Threat cards and the table that is made of them."""

import pytest

from modelsec import threat as module
from modelsec.attacks import bim, fgsm, mi_fgsm, pgd
from modelsec.threat import Registered, ThreatModel, card, registry, table, threat


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> dict[str, Registered]:
    """A registry of the test's own."""
    monkeypatch.setattr(module, "registry", {})
    return module.registry


def test_the_attacks_carry_their_cards() -> None:
    assert card(fgsm).cost == "one gradient"
    assert card(pgd).source == "https://arxiv.org/abs/1706.06083"
    for function in (fgsm, bim, pgd, mi_fgsm):
        assert card(function).goal == "evasion"
        assert card(function).knowledge == "white-box"
        assert card(function).norms == ("linf", "l2", "l1")
        assert registry[function.__name__].function is function


def test_the_decorator_registers_and_changes_nothing_else(empty: dict[str, Registered]) -> None:
    model = ThreatModel("poisoning", "data", stage="training")

    def attack(x: int) -> int:
        return x + 1

    assert threat(model)(attack) is attack
    assert empty["attack"] == Registered("attack", attack, model)
    assert card(attack) is model


def test_one_name_one_function(empty: dict[str, Registered]) -> None:
    def attack() -> None: ...

    threat(ThreatModel("evasion", "labels"))(attack)
    threat(ThreatModel("evasion", "scores"))(attack)  # a module that is loaded again
    assert empty["attack"].threat.knowledge == "scores"

    def impostor() -> None: ...

    impostor.__name__, impostor.__module__ = "attack", "elsewhere"
    with pytest.raises(ValueError, match="'attack' is registered already, by"):
        threat(ThreatModel("evasion", "labels"))(impostor)
    with pytest.raises(KeyError, match="no threat card"):
        card(impostor)


def test_a_function_without_a_card_is_named() -> None:
    with pytest.raises(KeyError, match="has no threat card"):
        card(print)


@pytest.mark.parametrize("bad", [("theft", "labels"), ("evasion", "everything"), ("", "")])
def test_unknown_words_are_refused(bad: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        ThreatModel(*bad)  # type: ignore[arg-type]


def test_the_table_has_a_row_for_each() -> None:
    rows = table()
    assert [row["name"] for row in rows] == sorted(registry)
    row = next(row for row in rows if row["name"] == "pgd")
    assert row["norms"] == "linf, l2, l1"
    assert "| pgd | evasion | white-box | linf, l2, l1 |" in repr(rows)
    assert 'href="https://arxiv.org/abs/1706.06083"' in rows._repr_html_()


def test_the_table_shows_the_cards_it_is_given_in_their_order() -> None:
    cards = {
        "second": ThreatModel("poisoning", "data", stage="training", cost="many messages"),
        "first": ThreatModel("evasion", "scores", norms=("linf", "l1")),
    }
    rows = table(cards)
    assert [row["name"] for row in rows] == ["second", "first"]
    assert [row["stage"] for row in rows] == ["training", "deployment"]
    assert rows[0]["cost"] == "many messages"
    assert [row["norms"] for row in rows] == ["", "linf, l1"]
    assert "source" not in rows[0]  # no card names one
    assert table({}) == []
