"""The gauntlet: every probe can hold and can fail, modelsec holds on all, and the page says what was seen.

Faults are planted into attacks that are sound otherwise. What peers' attacks do is not asserted: it may be mended.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import gauntlet
from benchmarks.calls import OURS, PEERS, Answer, Ask, Attack, Library
from benchmarks.gauntlet import PROBES, Reading, read
from modelsec import attacks
from modelsec.attacks.norms import NORMS
from modelsec.check import clinic_faults as faults
from modelsec.training import inference

OURS_BY_KIND = {attack.kind: attack for attack in OURS.load()}
PROBE = {one.name: one for one in PROBES}


# --- planted faults -------------------------------------------------------------------------------


def after(kind: str, change: Callable[..., Any]) -> Attack:
    """Our attack of that kind, and something done to its result: change(adv, model, x, y, ask)."""

    def run(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Any:
        return change(OURS_BY_KIND[kind](model, x, y, ask).adv, model, x, y, ask)

    return Attack(kind, "planted", run)


def instead(kind: str, run: Any) -> Attack:
    """Another attack altogether."""
    return Attack(kind, "planted", run)


def further(kind: str, factor: float) -> Attack:
    return after(kind, lambda adv, model, x, y, ask: (x + factor * (adv - x)).clamp(0, 1))


def ascent(step: Callable[[Tensor, float], Tensor], norm: str) -> Any:
    """PGD by cross-entropy with a step of its own."""

    def run(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
        adv, ball = x.clone(), NORMS[norm]
        radius = torch.full((len(x), 1, 1, 1), ask.eps)
        with inference(model):
            for _ in range(ask.steps):
                leaf = adv.clone().requires_grad_()
                total = F.cross_entropy(model(leaf), y, reduction="sum")
                (gradient,) = torch.autograd.grad(total, leaf)
                adv = ball.project(adv + step(gradient, ask.step_size), x, radius)
        return adv

    return run


def whole_batch(gradient: Tensor, length: float) -> Tensor:
    """One length for all: who stands beside a large gradient hardly moves."""
    return length * gradient / gradient.norm().clamp_min(1e-30)


def masked_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The true class is struck out with a zero, which is larger than a negative logit."""
    true = F.one_hot(y, logits.shape[1])
    return ((1 - true) * logits).amax(1) - (true * logits).amax(1)


def by_masked_margin(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    return attacks.pgd(
        model, x, y, eps=ask.eps, steps=ask.steps, loss=masked_margin, random_start=False
    )


def by_predictions(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    return attacks.pgd(model, x, model(x).argmax(1), eps=ask.eps, random_start=False)


def one_target(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Answer:
    return OURS_BY_KIND["pgd linf"](model, x, y[:1].expand(len(y)), ask)


def starts_outside(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    start = x + 2 * ask.eps * (2 * torch.rand(x.shape, generator=ask.generator) - 1)
    with torch.no_grad():
        model(start)
    return attacks.pgd(model, x, y, eps=ask.eps, steps=ask.steps, random_start=False)


def always_the_same_start(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Answer:
    fixed = replace(ask, generator=torch.Generator().manual_seed(0))
    return OURS_BY_KIND["pgd linf"](model, x, y, fixed)


def clean_where_it_failed(adv: Tensor, model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    right = model(adv).argmax(1) == y
    return torch.where(right[:, None, None, None], x, adv)


def black_where_it_failed(adv: Tensor, model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    right = model(adv).argmax(1) == y
    return torch.where(right[:, None, None, None], 0, adv)


def in_single_precision(adv: Tensor, *_: Any) -> Tensor:
    return adv.float().to(adv.dtype)


def cuts_off(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    """No look at the range of the pixels; the result is clipped as if it were [0, 1]."""
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    return (x + ask.eps * gradient.sign()).clamp(0, 1)


def in_whatever_mode(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    return x


def not_after_an_error(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    for _ in range(2):
        model(x)
    for part, mode in modes:
        part.training = mode
    return x


def to_train_mode(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    """The mode of the outermost module is put back, of all of them."""
    training = model.training
    model.eval()
    model(x)
    model.train(training)
    return x


def frozen_and_not_thawed(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return x


def backward(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    with torch.no_grad():
        modes = [(part, part.training) for part in model.modules()]
    model.eval()
    F.cross_entropy(model(x), y).backward()
    for part, mode in modes:
        part.training = mode
    return x


def in_place(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
    return x.add_(0.01).clamp_(0, 1)


def draws(generator: Callable[[], object]) -> Any:
    def run(model: Any, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
        generator()
        return x

    return run


FAULTY: dict[str, list[Attack]] = {
    "exact_distance": [further("deepfool l2", 1.4), further("cw l2", 0.9)],
    "exact_to_1_percent": [further("fmn l2", 1.05), further("fmn linf", 0.9)],
    "confident_l2": [instead("pgd l2", ascent(faults.l2_step, "l2"))],
    "strong_l1": [instead("pgd l1", ascent(faults.l1_step, "l1"))],
    "deepfool_crosses": [further("deepfool l2", 0.98)],
    "finds_an_error": [further("fmn l2", 0.0)],
    "shifted_logits": [instead("pgd linf", by_masked_margin)],
    "labels": [
        instead("pgd linf", by_predictions),
        instead("pgd linf", lambda model, x, y, ask: faults.fgsm(model, x, y, ask.eps)),
    ],
    "targets": [instead("pgd linf", one_target), further("pgd linf", 0.0)],
    "batch_size": [instead("pgd l2", ascent(whole_batch, "l2"))],
    "budget": [
        further("pgd linf", 1.001),
        instead(
            "pgd linf",
            lambda model, x, y, ask: faults.bim(model, x, y, ask.eps, ask.step_size, ask.steps),
        ),
        after("pgd l2", lambda adv, model, x, y, ask: adv - 1e-4),
    ],
    "random_start": [
        instead("pgd linf", starts_outside),
        instead("pgd linf", always_the_same_start),
        after("pgd linf", lambda adv, model, x, y, ask: x + 1.1 * (adv - x)),
    ],
    "failed_output": [
        after("pgd linf", clean_where_it_failed),
        after("pgd l2", black_where_it_failed),
        after("pgd l2", lambda adv, *_: adv * np.nan),
        further("pgd linf", 0.1),
    ],
    "misses": [
        after("cw l2", black_where_it_failed),
        after("cw l2", lambda adv, *_: Answer(adv, torch.ones(len(adv), dtype=torch.bool))),
        after("deepfool l2", lambda adv, *_: adv * np.nan),
    ],
    "wrong_already": [
        after("cw l2", lambda adv, *_: (adv + 0.1).clamp(0, 1)),
        instead("deepfool l2", lambda m, x, y, ask: attacks.pgd(m, x, y, eps=0.3, targeted=True)),
    ],
    "float64": [
        after("pgd linf", in_single_precision),
        after("pgd linf", lambda adv, *_: adv.float()),
    ],
    "normalised_input": [instead("pgd linf", cuts_off)],
    "statistics": [instead("pgd linf", in_whatever_mode)],
    "modes": [
        instead("pgd linf", to_train_mode),
        instead("pgd linf", lambda model, x, y, ask: faults.make_fgsm(model, 0.1)(x, y)),
    ],
    "after_an_error": [instead("pgd linf", not_after_an_error)],
    "gradients": [
        instead("pgd linf", backward),
        instead("pgd linf", frozen_and_not_thawed),
        instead("pgd linf", in_place),
    ],
    "global_generator": [
        instead("pgd linf", draws(lambda: torch.rand(1))),
        instead("pgd linf", draws(lambda: np.random.rand())),  # noqa: NPY002
    ],
    "not_reseeded": [
        instead("pgd linf", draws(lambda: torch.manual_seed(0))),
        instead("pgd linf", draws(lambda: np.random.seed(0))),  # noqa: NPY002
    ],
}


def test_every_probe_has_a_planted_fault_of_a_kind_that_it_tries() -> None:
    assert list(FAULTY) == [one.name for one in PROBES]
    assert all(PROBE[name].tries(attack) for name, several in FAULTY.items() for attack in several)


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        pytest.param(name, attack, id=f"{name}-{i}")
        for name, several in FAULTY.items()
        for i, attack in enumerate(several)
    ],
)
def test_a_planted_fault_fails(name: str, attack: Attack) -> None:
    verdict, figure = read(PROBE[name].run, attack)
    assert verdict == "fails", figure
    assert "raised" not in figure


@pytest.mark.parametrize("name", PROBE)
def test_modelsec_holds(name: str) -> None:
    ours = replace(OURS, load=lambda: list(OURS_BY_KIND.values()))
    results = gauntlet.run([PROBE[name]], [ours], say=lambda _: None)
    assert results["rows"]
    for row in results["rows"]:
        assert row["verdict"] == "holds", row


def test_all_our_attacks_run_through_some_probe() -> None:
    for attack in OURS_BY_KIND.values():
        assert any(one.tries(attack) for one in PROBES), attack.kind


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_the_clinic_s_faults_are_looked_for(fault: faults.Fault) -> None:
    assert not fault.probe or fault.probe in PROBE


def test_probes_say_what_they_do_and_where_it_was_reported() -> None:
    for one in PROBES:
        title, _, text = one.text.partition(". ")
        assert 20 < len(title) <= 90, one.name
        assert len(text) > 40, one.name
        for issue in one.issues:
            assert re.fullmatch(
                r"\[.+\]\(https://github\.com/[\w.-]+/[\w.-]+/issues/\d+\)", gauntlet.link(issue)
            )


# --- a run ----------------------------------------------------------------------------------------


def library(
    name: str, *found: Attack, says: dict[str, str] | None = None, **changes: Any
) -> Library:
    return Library(
        name, **{"package": "torch", "load": lambda: list(found), "says": says or {}} | changes
    )


def not_importable() -> list[Attack]:
    raise ModuleNotFoundError(name="eagerpy")


def raising(error: Exception) -> Attack:
    def run(*_: Any) -> Tensor:
        raise error

    return Attack("pgd linf", "call", run)


def test_who_is_missing_has_none_or_raises() -> None:
    libraries = [
        library("absent", package="no-such-distribution"),
        library("broken", load=not_importable),
        library("empty"),
        library("declines", raising(NotImplementedError("l1 is not implemented. Sorry"))),
        library("raises", raising(RuntimeError("it broke\nhere"))),
        library("announced", *FAULTY["modes"][:1], says={"modes": "It says so."}),
        library("mixed", OURS_BY_KIND["pgd linf"], *FAULTY["modes"][:1]),
    ]
    results = gauntlet.run([PROBE["modes"]], libraries, say=lambda _: None)
    (row,) = gauntlet.table(results)
    assert row == {
        "probe": "modes",
        "absent": "not installed",
        "broken": "does not import (eagerpy)",
        "empty": "has none",
        "declines": "has none",
        "raises": "fails",
        "announced": "says so",
        "mixed": "fails 1 of 2",
    }
    figures = {one["library"]: one.get("figure") for one in results["rows"]}
    assert figures["raises"] == "raised RuntimeError: it broke"
    assert figures["declines"] == "l1 is not implemented"


def test_a_probe_disturbs_nobody_s_generator() -> None:
    before = gauntlet.generator_states()

    def noisy(attack: Attack) -> Reading:
        torch.rand(3)
        np.random.seed(3)  # noqa: NPY002
        raise RuntimeError

    assert read(noisy, OURS_BY_KIND["pgd linf"])[0] == "fails"
    assert gauntlet.generator_states() == before


def run_main(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gauntlet", *options])
    gauntlet.main()


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    run_main(
        monkeypatch, "--probe", "modes", "--probe", "gradients", "--library", "modelsec",
        "--json", str(path),
    )  # fmt: skip
    told = capsys.readouterr().out
    assert f"modes: modelsec {OURS.version}, pgd linf: holds (0 of 9 parts changed)" in told
    assert 'attacks.pgd(model, x, y, eps=eps, norm="linf", steps=steps)' in told
    assert "| gradients | holds |" in told
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert {row["probe"] for row in stored["rows"]} == {"modes", "gradients"}
    assert stored["versions"]["modelsec"] == OURS.version


def test_the_book_s_page_is_made_of_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "--book", "--probe", "modes")
    assert "a run of everything" in capsys.readouterr().err


@pytest.mark.peers
@pytest.mark.parametrize("peer", PEERS[:4], ids=lambda peer: peer.name)
def test_peers_run(peer: Library) -> None:
    """Their verdicts are not asserted, except that the calls are ones that they take."""
    probes = [
        PROBE[name] for name in ("budget", "modes", "normalised_input", "strong_l1", "labels")
    ]
    results = gauntlet.run(probes, [peer], say=lambda _: None)
    assert results["versions"][peer.name]
    for row in results["rows"]:
        assert row["verdict"] in {"holds", "fails", "says so", "has none"}
        assert "TypeError" not in row.get("figure", ""), row


# --- the page -------------------------------------------------------------------------------------


def stored() -> dict[str, Any]:
    return json.loads(gauntlet.RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_stored_results() -> None:
    assert gauntlet.PAGE.read_text(encoding="utf-8") == gauntlet.render(stored())


def test_the_stored_results_are_of_all_probes_and_libraries() -> None:
    results = stored()
    assert list(dict.fromkeys(row["probe"] for row in results["rows"])) == list(PROBE)
    assert list(results["versions"])[2:] == [one.name for one in [OURS, *PEERS]]
    assert all(results["versions"][peer.name] != "not installed" for peer in PEERS[:4])
    mine = [row for row in results["rows"] if row["library"] == OURS.name]
    assert {row["verdict"] for row in mine} == {"holds"}


def test_another_reading_would_be_noticed() -> None:
    results = stored()
    page = gauntlet.render(results)
    results["rows"][0]["figure"] = "another one"
    assert gauntlet.render(results) != page
