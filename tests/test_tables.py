"""Tables: Markdown for a terminal, HTML for a notebook."""

import pytest

from modelsec.tables import Table

ROWS = Table([{"attack": "fgsm", "gradients": 1}, {"attack": "<b>", "gradients": 40}])


def test_markdown() -> None:
    assert repr(ROWS) == "| attack | gradients |\n| --- | --- |\n| fgsm | 1 |\n| <b> | 40 |"


def test_html_has_a_header_and_escapes() -> None:
    shown = ROWS._repr_html_()
    assert shown.count("<th") == 2 + 1  # thead begins like th
    assert '<th scope="col">attack</th>' in shown
    assert "<td>&lt;b&gt;</td><td>40</td>" in shown
    assert shown.count("<tr>") == 3


def test_links_can_be_clicked() -> None:
    shown = Table([{"source": "https://arxiv.org/abs/1412.6572?a&b"}])._repr_html_()
    assert '<a href="https://arxiv.org/abs/1412.6572?a&amp;b">' in shown
    assert "<a" not in Table([{"source": "javascript:alert(1)"}])._repr_html_()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://arxiv.org/abs/1412.6572", "1412.6572"),
        ("https://eur-lex.europa.eu/eli/reg/2024/1689/oj", "2024/1689/oj"),
        ("https://a.org/", "a.org"),
    ],
)
def test_a_link_shows_the_end_of_its_address(address: str, shown: str) -> None:
    html = Table([{"source": address}])._repr_html_()
    assert f'<a href="{address}"><span style="white-space: nowrap">{shown}</span></a>' in html
    assert address in repr(Table([{"source": address}]))


def test_empty() -> None:
    assert "empty" in repr(Table())
    assert "empty" in Table()._repr_html_()


def test_is_a_list_for_programs() -> None:
    assert [row["gradients"] for row in ROWS] == [1, 40]
    assert len(ROWS) == 2
