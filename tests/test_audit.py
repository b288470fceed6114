"""The audit card: what it measures, that its sanity checks bite, and that it loses nothing."""

import json
import re
from pathlib import Path
from types import FunctionType

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor, nn

from modelsec.audit import Report, Section, Subject, audit, parts, report, run, section, sections
from modelsec.audit.sanity import CHECKS
from modelsec.data import Data, mnist
from modelsec.intervals import Proportion, wilson
from modelsec.training import Evaluation, evaluate
from modelsec.zoo import load_model

DIGITS = mnist()
NET = load_model("net")
GRADIENT = ("clean", "evasion", "sanity")


@pytest.fixture(scope="module")
def card() -> Report:
    return audit(NET, DIGITS, name="zoo:net", n=300, sections=GRADIENT)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A registry of the test's own."""
    empty: dict[str, object] = {}
    monkeypatch.setattr(parts, "registry", empty)
    monkeypatch.setattr(run, "registry", empty)
    return empty


def test_it_measures_what_evaluate_measures(card: Report) -> None:
    clean = evaluate(NET, DIGITS.x_test[:300], DIGITS.y_test[:300])
    assert (float(card.measures["clean.accuracy"]), clean.n) == (clean.value, 300)
    assert isinstance(card.measures["evasion.pgd-40@0.1"], Proportion)
    left = [float(card.measures[f"evasion.pgd-40@{eps:g}"]) for eps in card.subject.radii]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert card.measures["sanity.failed"] == 0


def test_the_same_seed_gives_the_same_card_whatever_else_is_measured(card: Report) -> None:
    again = audit(NET, DIGITS, name="zoo:net", n=300, sections=GRADIENT)
    assert again.to_json() == card.to_json()
    assert again.to_html() == card.to_html()
    alone = audit(NET, DIGITS, name="zoo:net", n=300, sections=["evasion"])
    assert alone["evasion"].measures == card["evasion"].measures


class Wrapped(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.inner, self.function = NET, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner, x)


def reversed_gradient(model: nn.Module, x: Tensor) -> Tensor:
    return model(2 * x.detach() - x)


FAULTY = {
    "random": (
        lambda model, x: model(x + 0.2 * torch.randn_like(x)),
        "the same input gives the same logits twice",
    ),
    "batch": (
        lambda model, x: model(x) - model(x).mean(0),
        "an image's logits do not depend on the rest of its batch",
    ),
    "saturated": (
        lambda model, x: (1000 * model(x)).softmax(1),
        "the gradient by the input is finite and not zero",
    ),
    "loud": (lambda model, x: 100 * model(x), "it matters little which loss is climbed"),
    "reversed": (reversed_gradient, "the attack clearly beats noise of the same size"),
    "leaky": (
        lambda model, x: model(x.detach()) + 1e-6 * model(1 - x),
        "an attack without a limit fools nearly every image",
    ),
    "no gradient": (lambda model, x: model(x.detach()), "many steps are as strong as one"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_each_fault_is_noticed(fault: str) -> None:
    function, check = FAULTY[fault]
    found = audit(Wrapped(function), DIGITS, n=100, sections=["sanity"])["sanity"]
    assert found.verdict == "warning"
    held = {row["what should hold"]: row["holds"] for row in found.table or []}
    assert held[check] == "no"
    assert check in found.summary


@pytest.mark.parametrize(
    ("fgsm", "pgd", "check"),
    [
        ((50, 40, 30), (50, 48, 47), "many steps are as strong as one"),
        ((90, 80, 70), (10, 40, 60), "a larger eps leaves less"),
    ],
)
def test_curves_that_make_no_sense_are_noticed(fgsm, pgd, check: str) -> None:
    subject = Subject(NET, DIGITS, n=100, radii=(0.1, 0.2, 0.3))
    right = torch.zeros(100, dtype=torch.bool)
    subject.cache["curves"] = {
        name: {
            eps: Evaluation(hits, 100, right)
            for eps, hits in zip(subject.radii, counts, strict=True)
        }
        for name, counts in {"FGSM": fgsm, "PGD-40": pgd}.items()
    }
    for name in ("many steps are as strong as one", "a larger eps leaves less"):
        assert CHECKS[name](subject)[0] == (name != check)


def test_html_shows_every_section_and_asks_nobody(card: Report) -> None:
    page = card.to_html()
    assert page.startswith("<!DOCTYPE html>")
    for found in card.sections:
        assert found.title in page
        assert found.verdict in page
    assert re.search(
        r'<img src="data:image/png;base64,[^"]{1000,}" alt="Accuracy against eps', page
    )
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    assert not re.search("<script", page)
    fragment = card._repr_html_()
    assert "<html" not in fragment
    assert fragment.count("<details>") == page.count("<details open>") == 3


def test_a_name_cannot_break_the_page() -> None:
    page = audit(NET, DIGITS, name="<b>x</b>", n=20, sections=["clean"]).to_html()
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x" in page


def test_json_holds_every_number_with_its_interval(card: Report) -> None:
    content = json.loads(card.to_json())
    assert (content["model"], content["n"], content["norm"]) == ("zoo:net", 300, "linf")
    found = {
        f"{s['name']}.{key}": value
        for s in content["sections"]
        for key, value in s["measures"].items()
    }
    assert set(found) == set(card.measures)
    accuracy = found["clean.accuracy"]
    assert accuracy["interval"] == list(wilson(accuracy["hits"], accuracy["n"]))


def test_text_names_every_section_and_number(card: Report) -> None:
    text = str(card)
    for key in card.measures:
        assert key.split(".", 1)[1] in text
    assert "[ok] Clean accuracy" in text
    assert len(card.table) == len(card.sections)


@pytest.mark.parametrize("ending", [".html", ".json"])
def test_saving_writes_the_whole_file_or_none(
    card: Report, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = card.save(tmp_path / f"card{ending}")
    before = path.read_text()
    assert before == (card.to_html() if ending == ".html" else card.to_json())

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(report.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        card.save(path)
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_saving_elsewhere_says_what_is_wrong(card: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"saved as .html or .json, got 'card.pdf'"):
        card.save("card.pdf")
    with pytest.raises(FileNotFoundError, match="make it first"):
        card.save(tmp_path / "none" / "card.html")


def test_the_model_and_the_figures_are_left_as_they_were() -> None:
    model = nn.Sequential(NET, nn.Dropout(0.5), nn.BatchNorm1d(10))
    model[2].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    plt.close("all")
    torch_state = torch.get_rng_state()
    audit(model, DIGITS, n=50, sections=GRADIENT)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not plt.get_fignums()
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_what_cannot_be_measured_is_skipped_with_its_reason() -> None:
    card = audit(lambda x: NET(x).detach(), DIGITS, n=50, sections=GRADIENT)
    assert card["clean"].verdict == "ok"
    assert card["evasion"].verdict == "skipped"
    assert "black-box attack" in card["evasion"].summary
    assert card["sanity"].verdict == "warning"


def test_an_interrupted_audit_keeps_what_is_finished(registry: dict[str, object]) -> None:
    @section(title="First", order=1)
    def first(subject: Subject) -> Section:
        return Section("done", "ok", {"one": 1.0})

    @section(title="Second", order=2)
    def second(subject: Subject) -> Section:
        raise KeyboardInterrupt

    card = audit(NET, DIGITS, n=10)
    assert card.interrupted
    assert card.measures == {"first.one": 1.0}
    assert "stopped before its end" in str(card)
    assert json.loads(card.to_json())["interrupted"]


def test_a_fault_in_a_section_is_not_hidden(registry: dict[str, object]) -> None:
    @section(title="Broken", order=1)
    def broken(subject: Subject) -> Section:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        audit(NET, DIGITS, n=10)


def test_sections_come_in_order_and_names_are_unique(registry: dict[str, object]) -> None:
    def late(subject: Subject) -> Section:
        return Section("late")

    def early(subject: Subject) -> Section:
        return Section("early")

    section(title="Late", order=2)(late)
    section(title="Early", order=1)(early)
    assert list(sections()) == ["early", "late"]
    assert [found.name for found in audit(NET, DIGITS, n=10).sections] == ["early", "late"]
    section(title="Again", order=1)(early)  # a module that is loaded anew
    other = FunctionType(early.__code__, {}, "early")
    other.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="'early' is a section already"):
        section(title="Other", order=3)(other)


def test_a_pair_of_images_and_labels_is_enough() -> None:
    x, y = DIGITS.x_test[:50], DIGITS.y_test[:50]
    card = audit(NET, (x, y), sections=["clean"])
    assert float(card.measures["clean.accuracy"]) == evaluate(NET, x, y).value


def bad_calls() -> list[object]:
    x, y = DIGITS.x_test[:20], DIGITS.y_test[:20]
    given = {"model": NET, "data": (x, y)}
    cases = {
        "no data": ({"data": x}, TypeError, r"modelsec.data.Data or a pair \(x, y\), got Tensor"),
        "no images": ({"data": (x[:0], y[:0])}, ValueError, "no test images"),
        "grey levels": ({"data": (x * 255, y)}, ValueError, "divide by 255"),
        "one-hot": ({"data": (x, nn.functional.one_hot(y, 10))}, ValueError, "not one-hot"),
        "labels": ({"data": (x, y + 90)}, ValueError, "labels must be 0 to 9"),
        "shape": (
            {"data": (x[:, :, :20], y)},
            ValueError,
            r"can't take images of shape \(1, 20, 28",
        ),
        "no model": ({"model": 3}, TypeError, "model must be callable"),
        "tuple": ({"model": lambda x: (NET(x), 1)}, TypeError, "must return a tensor of logits"),
        "nan": ({"model": lambda x: NET(x) * torch.nan}, ValueError, "NaN logits"),
        "n": ({"n": 0}, ValueError, "n must be a whole number, 1 or more, got 0"),
        "norm": ({"norm": "l7"}, ValueError, "norm must be one of"),
        "radius 0": ({"radii": [0, 0.1]}, ValueError, "radii must be positive"),
        "no radius": ({"radii": []}, ValueError, "at least one"),
        "8 for 8/255": ({"radii": [8]}, ValueError, r"write 8 / 255"),
        "section": (
            {"sections": ["cleen"]},
            ValueError,
            r"no section 'cleen'; there are \[.*'clean'",
        ),
        "text": ({"sections": "clean"}, TypeError, "must be a list of names"),
        "none": ({"sections": []}, ValueError, "at least one of"),
    }
    return [
        pytest.param(given | change, error, message, id=name)
        for name, (change, error, message) in cases.items()
    ]


@pytest.mark.parametrize(("call", "error", "message"), bad_calls())
def test_bad_input_is_told_before_anything_runs(call, error, message) -> None:
    with pytest.raises(error, match=message):
        audit(**call)


def test_all_sections_together_know_what_a_bare_pair_lacks() -> None:
    card = audit(NET, (DIGITS.x_test[:200], DIGITS.y_test[:200]), radii=(0.1,))
    verdicts = {found.name: found.verdict for found in card.sections}
    assert verdicts["data"] == "skipped"
    assert set(verdicts) == set(sections())
    assert "skipped" not in {verdicts[name] for name in GRADIENT}


def test_an_unknown_section_of_a_report_is_answered_with_the_known_ones(card: Report) -> None:
    with pytest.raises(KeyError, match=r"no section 'clen' in this report; it has \['clean"):
        card["clen"]


def test_data_without_class_names_have_a_card_of_their_own() -> None:
    data = Data("mine", DIGITS.x_test[:0], DIGITS.y_test[:0], *(DIGITS.x_test[:9], DIGITS.y_test[:9]),
                (), "a source", "a licence")  # fmt: skip
    assert json.loads(audit(NET, data, sections=["clean"]).to_json())["source"] == "a source"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_data_follow_the_model_to_its_device() -> None:
    card = audit(load_model("net", "cuda"), DIGITS, n=50, sections=GRADIENT)
    assert all(found.verdict != "skipped" for found in card.sections)
