"""The claims ledger: what it shows, what it stores for other pages, and when it refuses."""

import re
from typing import Any

import pytest
import torch
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from modelsec.claims import ClaimError, claim
from modelsec.intervals import Proportion

SENTENCE = "PGD leaves {} of the predictions right"


@pytest.fixture
def shell() -> Any:
    """A real IPython shell that keeps what is displayed."""
    shell = InteractiveShell.instance()
    shell.display_pub, shell.display_trap.hook = CapturingDisplayPublisher(shell=shell), None
    yield shell
    InteractiveShell.clear_instance()


def test_shows_the_sentence_and_stores_the_number(shell: Any) -> None:
    claim("loss.net.robust", SENTENCE, Proportion(87, 1000), within=(0.0, 0.1))
    number = "0.087 (95% interval 0.071 to 0.106, n = 1,000)"
    record, shown = shell.display_pub.outputs
    mime = "application/papermill.record/text/"
    assert record["data"] == {f"{mime}plain": number, f"{mime}html": number}
    assert record["metadata"] == {
        "scrapbook": {"name": "loss.net.robust", "mime_prefix": "application/papermill.record/"}
    }
    assert shown["data"]["text/plain"] == f"PGD leaves {number} of the predictions right"
    page = shown["data"]["text/html"]
    assert re.sub("<[^>]*>", "", page) == f"Measured: PGD leaves {number} of the predictions right"
    assert "<strong>0.087</strong>" in page


def test_outside_a_notebook_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    claim("a.b", "The largest difference is {}.", 1.23456e-7, within=(0, 1e-6))
    assert capsys.readouterr().out == "The largest difference is 1.23e-07.\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(109_386, "109,386"), (123.4, "123"), (999.7, "1,000"), (99.96, "100"), (1.0, "1"),
     (0.5, "0.500"), (12.34, "12.3"), (1e-7, "1.00e-07"), (-0.25, "-0.250")],
)  # fmt: skip
def test_numbers_are_shown_with_three_digits(value: float, shown: str, capsys: Any) -> None:
    claim("a.b", "It is {}", value, within=(-1e9, 1e9))
    assert capsys.readouterr().out == f"It is {shown}\n"


def test_html_and_braces_in_the_sentence_are_text(shell: Any) -> None:
    claim("a.b", r"With $\ell_{\infty}$ <b>{}</b> & {x}", 0.512, within=(0, 1))
    shown = shell.display_pub.outputs[1]["data"]
    assert shown["text/plain"] == r"With $\ell_{\infty}$ <b>0.512</b> & {x}"
    assert "&lt;b&gt;<strong>0.512</strong>&lt;/b&gt; &amp; {x}" in shown["text/html"]


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
def test_a_bare_share_with_n_gets_its_interval(capsys: Any, value: Any) -> None:
    claim("a.b", SENTENCE, value, within=(0.4, 0.6), n=200)
    assert "0.500 (95% interval 0.431 to 0.569, n = 200)" in capsys.readouterr().out


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_the_interval_is_closed(value: float) -> None:
    claim("a.b", SENTENCE, value, within=(0.0, 0.1))


@pytest.mark.parametrize(
    "value", [0.1001, -0.001, float("nan"), float("inf"), torch.tensor(0.5), Proportion(2, 10)]
)
def test_a_value_outside_does_not_hold(value: Any, capsys: Any, shell: Any) -> None:
    with pytest.raises(ClaimError, match=r"loss\.x: PGD leaves .* outside \[0, 0\.1\]"):
        claim("loss.x", SENTENCE, value, within=(0.0, 0.1))
    assert shell.display_pub.outputs == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_with_n_does_not_hold_either(value: float) -> None:
    with pytest.raises(ClaimError, match="outside"):
        claim("a.b", SENTENCE, value, within=(0, 1), n=100)


@pytest.mark.parametrize("sentence", ["no place for it", "two {} of {}", "{:.2f}", ""])
def test_the_sentence_needs_one_place(sentence: str) -> None:
    with pytest.raises(ValueError, match=r"exactly one \{\}"):
        claim("a.b", sentence, 0.5, within=(0, 1))


@pytest.mark.parametrize("within", [(1, 0), (float("nan"), 1), (0, float("nan"))])
def test_an_empty_interval_is_refused(within: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="low <= high"):
        claim("a.b", SENTENCE, 0.5, within=within)


def test_what_is_no_share_of_n_is_refused() -> None:
    with pytest.raises(ValueError, match="not a share of n=10"):
        claim("a.b", SENTENCE, 0.123, within=(0, 1), n=10)
