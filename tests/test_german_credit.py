"""The credit data: the rows that were published, with the meanings that were corrected."""

from pathlib import Path

import pytest
import torch

from modelsec import credit
from modelsec.credit import Applicants, german_credit
from modelsec.data import Data

# Rows of the corrected set, as its authors code them (10.24432/C5QG88): status, duration, history, purpose, amount,
# savings, employment, rate, personal status, debtors, residence, property, age, plans, housing, credits, job,
# dependants, telephone, foreign worker, risk. It has the same people, in another order.
CORRECTED = """
1 24 3 0 4870 1 3 3 3 1 4 4 53 3 3 2 3 1 1 2 0
2 24 4 9 1935 1 5 4 1 1 4 1 31 3 2 2 3 2 2 2 0
3 24 4 0 1344 5 4 4 3 1 2 1 37 1 2 2 2 1 1 2 0
1 24 1 10 1358 5 5 4 3 1 3 3 40 2 2 1 4 2 2 2 0
1 20 4 0 2235 1 3 4 4 3 2 2 33 1 1 2 3 2 1 1 0
1 12 2 8 902 1 4 4 4 1 4 2 21 3 1 1 3 2 1 2 0
2 60 2 0 14027 1 4 4 3 1 2 4 27 3 2 1 4 2 2 2 0
4 30 1 1 7485 5 1 4 2 1 1 1 53 1 2 1 4 2 2 2 0
1 18 4 5 1190 1 1 2 2 1 4 4 55 3 3 3 1 1 1 2 0
4 12 2 6 719 1 5 4 3 1 4 3 41 1 2 1 2 1 1 2 0
3 12 4 0 939 3 4 4 4 1 2 1 28 3 2 3 3 2 2 2 0
2 48 0 10 18424 1 3 1 2 1 2 2 32 1 2 1 4 2 2 1 0
"""
SHIFTED = {0, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 18}  # those that count from 1, in our order
PURPOSE = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 8: 7, 9: 8, 10: 9}  # nobody was in class 7


@pytest.fixture(scope="module")
def applicants() -> Applicants:
    return german_credit()


def test_counts_are_those_that_were_published(applicants: Applicants) -> None:
    assert applicants.raw.shape == (1000, 20)
    assert applicants.y.bincount().tolist() == [300, 700]
    assert applicants.classes == ("bad", "good")
    counts = {
        name: applicants.raw[:, j].long().bincount().tolist()
        for j, name in enumerate(applicants.columns)
        if applicants.categories[j]
    }
    assert counts["status"] == [274, 269, 63, 394]
    assert counts["credit_history"] == [40, 49, 530, 88, 293]
    assert counts["personal_status"] == [50, 310, 548, 92]
    assert counts["foreign_worker"] == [963, 37]
    assert counts["purpose"] == [234, 103, 181, 280, 12, 22, 50, 9, 97, 12]
    numbers = {
        name: applicants.raw[:, applicants.columns.index(name)]
        for name in ("duration", "amount", "age")
    }
    assert {name: (v.min().item(), v.max().item()) for name, v in numbers.items()} == {
        "duration": (4, 72), "amount": (250, 18424), "age": (19, 75),
    }  # fmt: skip


def test_every_category_occurs_and_every_value_is_one(applicants: Applicants) -> None:
    for column, count in zip(applicants.raw.T, applicants.choices, strict=True):
        if count:
            assert column.unique().tolist() == list(range(count))
        assert torch.equal(column, column.round())


def recoded(line: str) -> list[float]:
    *codes, risk = map(int, line.split())
    assert risk == 0
    row = []
    for j, code in enumerate(codes):
        if j == 3:
            row.append(PURPOSE[code])
        elif j == 17:
            row.append({1: 1, 2: 0}[code])  # 1: 3 or more, 2: 0 to 2
        elif j == 19:
            row.append({1: 1, 2: 0}[code])  # 1: yes, 2: no
        elif j not in SHIFTED:
            row.append(code)
        else:
            row.append(code - 1)
    return [float(value) for value in row]


@pytest.mark.parametrize("line", CORRECTED.strip().splitlines())
def test_rows_agree_with_the_corrected_set(applicants: Applicants, line: str) -> None:
    same = (applicants.raw == torch.tensor(recoded(line))).all(1)
    assert same.sum() == 1
    assert applicants.y[same].item() == 0


def test_it_says_where_it_comes_from_and_on_what_terms(applicants: Applicants) -> None:
    assert "10.24432/C5NC77" in applicants.source
    assert "Grömping" in applicants.source
    assert applicants.licence.startswith("CC BY 4.0")
    told = (Path(credit.__file__).parent / "german_credit.txt").read_text(encoding="utf-8")
    assert "10.24432/C5NC77" in told
    assert "creativecommons.org/licenses/by/4.0" in told
    assert repr(applicants) == "Applicants(German credit: 1000 people, 20 columns, ('bad', 'good'))"


def test_groups_are_those_of_their_name(applicants: Applicants) -> None:
    age = applicants.raw[:, applicants.columns.index("age")]
    assert int(applicants.groups["25 or younger"].sum()) == int((age <= 25).sum()) == 190
    assert bool((applicants.groups["older than 25"] ^ applicants.groups["25 or younger"]).all())


def test_a_row_in_words_and_one_that_is_none(applicants: Applicants) -> None:
    told = applicants.read(applicants.raw[0])
    assert told["duration"] == "6"
    assert told["purpose"] == "furniture"
    assert told["age"] == "67"
    for wrong in (0.5, 4, -1):
        row = applicants.raw[0].clone()
        row[0] = wrong
        with pytest.raises(ValueError, match="status is"):
            applicants.read(row)


def test_halves_are_stratified_disjoint_and_drawn_from_the_generator(
    applicants: Applicants,
) -> None:
    def half(seed: int) -> Data:
        return applicants.split(torch.Generator().manual_seed(seed))

    data = half(0)
    assert data.y_train.bincount().tolist() == [210, 490]
    assert data.y_test.bincount().tolist() == [90, 210]
    both = torch.cat([torch.cat([data.x_train, data.y_train[:, None]], 1),
                      torch.cat([data.x_test, data.y_test[:, None]], 1)])  # fmt: skip
    whole = torch.cat([applicants.raw, applicants.y[:, None]], 1)
    assert sorted(both.tolist()) == sorted(whole.tolist())
    assert torch.equal(half(0).x_test, data.x_test)
    assert not torch.equal(half(1).x_test, data.x_test)


@pytest.mark.parametrize("share", [0, 1, -0.2, float("nan")])
def test_a_share_out_of_range_is_told(applicants: Applicants, share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        applicants.split(test=share)


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = (Path(credit.__file__).parent / "german_credit.csv").read_text(encoding="utf-8")
    (tmp_path / "german_credit.csv").write_text(content.replace("good", "bad", 1))
    monkeypatch.setattr(credit, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match="not the file it should be"):
        german_credit()
