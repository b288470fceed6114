"""Auto-PGD's own rules, the targeted DLR loss, and the protocol with its report."""

import html
import warnings
from typing import Any

import pytest
import torch
from attack_cases import (
    Case,
    Fuse,
    assert_same_state,
    cases,
    size,
    state,
    two_class_linear,
)
from generators import global_generators_untouched
from hypothesis import given, settings
from torch import Tensor, nn

from modelsec.attacks import apgd, apgd_targeted, autoattack
from modelsec.attacks.apgd import _Best, _Halving, likeliest_others
from modelsec.attacks.common import Active
from modelsec.attacks.norms import NORMS
from modelsec.attacks.report import Report
from modelsec.losses import dlr, margin, targeted_dlr

norms = pytest.mark.parametrize("norm", ["linf", "l2"])
QUICK = {"steps": 4, "queries": 12, "targets": 2, "progress": False}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Auto-PGD -----------------------------------------------------------------------------------


class Scripted:
    """A model of one pixel whose margin follows a script, and whose gradient points up."""

    def __init__(self, script: list[float]) -> None:
        self.script, self.calls = script, 0

    def __call__(self, x: Tensor) -> Tensor:
        value = self.script[self.calls]
        self.calls += 1
        lead = x.flatten(1).sum(1)
        lead = lead - lead.detach() + value
        return torch.stack([0 * lead, lead], 1)


def path(script: list[float]) -> list[float]:
    """Where the pixel is after each of 100 steps from 0.5, with eps 0.4: at the wall, 0.9, from the
    first step on, but for the way back to a better point."""
    seen: list[Any] = []
    x, script = torch.full((1, 1), 0.5, dtype=torch.float64), script + script[-1:] * 101
    apgd(
        Scripted(script[:101]), x, torch.zeros(1).long(), eps=0.4, steps=100, loss=margin,
        random_start=False, early_stop=False, callback=seen.append,
    )  # fmt: skip
    return [float(point.adv) for point in seen]


def turns(script: list[float]) -> list[int]:
    """After which steps it is sent back, where the start is the best point."""
    where = path(script)
    return [step for step in range(100) if where[step + 1] < where[step] - 1e-9]


def test_checkpoints_come_where_the_paper_puts_them() -> None:
    assert turns([-float(step) for step in range(101)]) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_a_step_is_halved_and_begins_at_the_best_point_with_momentum() -> None:
    where = path([-float(step) for step in range(101)])
    assert where[:23] == pytest.approx([0.5] + [0.9] * 22)
    # 0.5 is the best point, 0.9 is where the step before came from
    assert where[23] == pytest.approx(0.5 + 0.75 * 0.4 - 0.25 * 0.4)
    assert where[42] == pytest.approx(0.5 + 0.75 * 0.2 - 0.25 * 0.4)


@pytest.mark.parametrize(("rises", "halved"), [(16, True), (17, False)])
def test_condition_1_wants_the_loss_to_rise_in_three_quarters_of_the_steps(
    rises: int, halved: bool
) -> None:
    script = [0.0, -100.0]
    for step in range(99):
        script.append(script[-1] + (1 if step < rises else -0.01))
    assert (22 in turns(script)) is halved  # 22 * 0.75 is 16.5


def test_condition_2_wants_the_best_loss_to_rise() -> None:
    """It rises all the time and never gets above its start. A step just halved is given time."""
    script = [0.0, -100.0]
    for _ in range(99):
        script.append(script[-1] + 0.1)
    assert turns(script) == [41, 70, 87, 99]


def test_condition_2_compares_with_the_last_checkpoint_not_with_the_start() -> None:
    """The best loss rises before the first checkpoint, and not between it and the second."""
    x, ball = torch.zeros(1, 1), NORMS["linf"]
    y, radius = torch.zeros(1).long(), torch.full((1, 1), 0.4)
    rule = _Halving(ball, Active(y, x, y, radius, ball.region(x, radius)), 100)
    rising = torch.arange(23.0)
    below = torch.arange(19.0) - 100
    turned = []
    for step, value in enumerate(torch.cat([rising, below])):
        best = _Best(x, x, value.clamp_min(22.0 if step > 22 else value)[None])
        back = rule.judge(step, value[None], best)
        if back is not None:
            turned.append((step, bool(back)))
    assert turned == [(22, False), (41, True)]


@norms
def test_it_needs_no_step_size_on_a_linear_model(norm: str) -> None:
    model, w = two_class_linear(20)
    x = torch.rand(8, 20, generator=seeded(), dtype=torch.float64) * 0.2 + 0.4
    y = torch.arange(8) % 2
    adv = apgd(model, x, y, eps=0.3, norm=norm, steps=30, early_stop=False, generator=seeded())
    climb = torch.where(y == 0, 1.0, -1.0)[:, None] * w
    step = {"linf": climb.sign(), "l2": climb / w.norm()}[norm]
    assert torch.allclose(adv, x + 0.3 * step, rtol=0, atol=1e-5)


@norms
@settings(max_examples=20)
@given(case=cases(kinds=("mlp", "conv"), dtypes=(torch.float64,), eps=(0.1, 0.3)))
def test_one_gradient_a_step_and_one_look_at_the_end(norm: str, case: Case) -> None:
    model, (x, y), calls = case.module().eval(), case.batch(), []

    def watched(images: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled() and images.requires_grad)
        return model(images)

    apgd(watched, x, y, eps=case.eps, norm=norm, steps=9, early_stop=False, generator=seeded())
    assert calls == [True] * 9 + [False]


# --- aimed at classes ---------------------------------------------------------------------------


def test_targeted_dlr_is_the_paper_s() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0], [0.0, 5.0, 1.0, 2.0, 3.0]])
    y, target = torch.tensor([0, 1]), torch.tensor([2, 0])
    # (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)
    expected = torch.tensor([-1 / (4 - 1.5), -5 / (5 - 1.5)])
    assert torch.allclose(targeted_dlr(logits, y, target), expected)
    assert torch.allclose(targeted_dlr(6 * logits + 3, y, target), expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_targeted_dlr_falls_back_to_the_margin(classes: int) -> None:
    logits = torch.randn(5, classes, generator=seeded())
    y, target = torch.zeros(5).long(), torch.ones(5).long()
    with pytest.warns(UserWarning, match="four classes"):
        value = targeted_dlr(logits, y, target)
    assert torch.equal(value, logits[:, 1] - logits[:, 0])


def test_targeted_dlr_of_four_equal_leaders_is_finite() -> None:
    logits = torch.zeros(2, 5, requires_grad=True)
    value = targeted_dlr(logits, torch.tensor([0, 1]), torch.tensor([1, 2]))
    value.sum().backward()
    assert value.isfinite().all()
    assert logits.grad.isfinite().all()


def test_the_likeliest_other_classes_never_hold_the_label() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.0, 2.0]] * 3)
    y = torch.tensor([1, 0, 2])
    others = likeliest_others(lambda x: logits, torch.rand(3, 2), y, 9)
    assert others.tolist() == [[2, 3, 0], [1, 2, 3], [1, 3, 0]]
    assert likeliest_others(lambda x: logits, torch.rand(3, 2), y, 1).tolist() == [[2], [1], [1]]


def blocked(x: Tensor) -> Tensor:
    """Three rivals of class 0; the likeliest's gradient leads nowhere, and so does the next one's."""
    up = x.flatten(1)[:, 0]
    bait = 0.9 - 0.5 * (x.flatten(1)[:, 1] - 0.5).square()
    return torch.stack([torch.ones_like(up), bait, bait - 0.05, 0.2 + up, 0 * up], 1)


def test_one_of_many_targets_is_open() -> None:
    """No way leads to the two likeliest classes; aimed at the third it takes one step."""
    x = torch.full((2, 1, 2, 2), 0.5)
    y = torch.zeros(2).long()
    options = {"eps": 0.4, "steps": 10, "random_start": False}
    two, three = (apgd_targeted(blocked, x, y, targets=count, **options) for count in (2, 3))
    assert (blocked(two).argmax(1) == y).all()
    assert (blocked(three).argmax(1) == 3).all()
    itself = apgd_targeted(blocked, x, y, targets=torch.tensor([[3], [3]]), **options)
    assert (blocked(itself).argmax(1) == 3).all()


@pytest.mark.parametrize(
    "targets", [0, 1.5, torch.zeros(2).long(), torch.zeros(3, 1).long(), torch.zeros(2, 1)], ids=str
)
def test_bad_targets_get_one_clear_error(targets: Any) -> None:
    with pytest.raises(ValueError, match="targets must be"):
        apgd_targeted(
            blocked, torch.rand(2, 1, 2, 2), torch.zeros(2).long(), eps=0.1, targets=targets
        )


# --- the protocol -------------------------------------------------------------------------------


def protocol(case: Case, norm: str = "linf", model: Any = None, **options: Any) -> Report:
    x, y = case.batch()
    options = QUICK | {"eps": case.radius, "norm": norm, "generator": case.generator} | options
    return autoattack(model or case.model(), x, y, **options)


CASE = Case("conv", (1, 8, 8), 5, 24, 0.05, torch.float64, False, 12)


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x).argmax(1)


def easy(case: Case = CASE) -> tuple[nn.Module, Tensor, Tensor]:
    """A model that is right about most of the samples, some of which are hard to break."""
    model, (x, _) = case.module().eval(), case.batch()
    said = answers(model, x)
    return model, x, torch.where(torch.arange(case.n) < case.n - 3, said, (said + 1) % case.classes)


@norms
@settings(max_examples=12)
@given(case=cases(classes=(2, 3, 5)))
def test_the_report_adds_up(norm: str, case: Case) -> None:
    x, y = case.batch()
    model = case.model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = protocol(case, norm, model)
    radius = torch.as_tensor(case.radius, dtype=torch.float64).expand(case.n)
    assert report.adv.shape == x.shape
    assert report.adv.dtype == x.dtype
    assert (size(report.adv - x, norm) <= radius + 1e-6).all()
    assert report.adv.min() >= 0
    assert report.adv.max() <= 1
    inside = case.module().eval()
    broken = answers(inside, report.adv) != y
    assert torch.equal(broken, ~report.stands)
    assert torch.equal(report.broken_by == -1, answers(inside, x) != y)
    assert torch.equal(report.broken_by == -2, report.stands)
    untouched = report.broken_by < 0
    assert torch.equal(report.adv[untouched], x[untouched])
    standing = report.clean.hits
    for number, attempt in enumerate(report.attempts):
        assert attempt.tried == standing
        assert attempt.fooled == int((report.broken_by == number).sum())
        standing -= attempt.fooled
        assert attempt.standing == attempt.left.hits == standing
    assert report.accuracy.hits == standing
    assert not report.interrupted


@norms
def test_the_four_attacks_take_turns_and_count_what_they_cost(norm: str) -> None:
    model, x, y = easy()
    report = autoattack(model, x, y, eps=0.004, norm=norm, generator=seeded(), **QUICK)
    names = [attempt.name for attempt in report.attempts]
    assert names == ["APGD-CE", "APGD-T", "FMN (in place of FAB-T)", "Square"]
    climbed, aimed, nearest, square = report.attempts
    n, left = climbed.tried, square.standing
    assert n == 21
    assert left > 5
    assert left * 4 <= climbed.gradients <= n * 4
    assert 2 * left * 4 <= aimed.gradients <= 2 * n * 4
    assert nearest.gradients == nearest.tried * 4
    assert square.gradients == 0
    assert left * 12 <= square.queries <= square.tried * (12 + 1)  # and a look at what it found


def test_worst_case_over_the_attacks() -> None:
    """On this model only Square gets through, on the other one only the gradient does."""
    x = torch.full((4, 1, 6, 6), 0.5)
    y = torch.zeros(4).long()

    def flat(images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(1)
        lead = (mean * 50).round() / 50 + 0 * mean - 0.51
        return torch.stack([0 * lead, lead, lead - 1, lead - 2], 1)

    report = autoattack(flat, x, y, eps=0.1, generator=seeded(), **QUICK | {"queries": 200})
    assert (report.broken_by == 3).all()
    assert report.accuracy.hits == 0
    assert any("Square" in doubt for doubt in report.warnings)
    assert any("gradient is zero" in doubt for doubt in report.warnings)

    linear, _ = two_class_linear(36, torch.float32)
    said = answers(linear, x)
    report = autoattack(linear, x, said, eps=0.5, generator=seeded(), **QUICK)
    assert (report.broken_by == 0).all()
    assert [attempt.tried for attempt in report.attempts] == [4, 0, 0, 0]
    assert [attempt.queries for attempt in report.attempts[1:]] == [0, 0, 0]


@norms
@pytest.mark.parametrize("batch_size", [1, 5, 7, 100])
def test_the_batch_size_does_not_matter(norm: str, batch_size: int) -> None:
    model, x, y = easy()
    eps = {"linf": 0.01, "l2": 0.05}[norm]
    options = QUICK | {"eps": eps, "norm": norm}
    whole, parts = (
        autoattack(model, x, y, **options, generator=seeded(), batch_size=size)
        for size in (24, batch_size)
    )
    assert 0 < whole.accuracy.hits < whole.clean.hits
    assert torch.equal(whole.broken_by, parts.broken_by)
    assert torch.allclose(whole.adv, parts.adv, rtol=0, atol=1e-9)


def test_square_s_draws_do_not_depend_on_the_batch_size() -> None:
    """A model in steps, which only Square breaks."""

    def stairs(images: Tensor) -> Tensor:
        lead = (images.flatten(1).mean(1) * 50).round() / 50 + 0 * images.flatten(1)[:, 0] - 0.51
        return torch.stack([0 * lead, lead, lead - 1, lead - 2], 1)

    x = 0.4 + 0.1 * torch.rand(6, 1, 6, 6, generator=seeded())
    options = QUICK | {"eps": 0.1, "queries": 100}
    whole, parts = (
        autoattack(stairs, x, torch.zeros(6).long(), **options, batch_size=size, generator=seeded())
        for size in (6, 2)
    )
    assert (whole.broken_by == 3).any()
    assert torch.equal(whole.adv, parts.adv)


@norms
@settings(max_examples=8)
@given(case=cases(kinds=("mlp", "conv")))
def test_the_model_comes_back_as_it_was(norm: str, case: Case) -> None:
    model = case.module()
    before = state(model)
    protocol(case, norm, model)
    assert_same_state(before, state(model))


@pytest.mark.parametrize("at", [1, 8, 15, 30])
def test_the_model_comes_back_when_it_fails(at: int) -> None:
    model = Fuse(CASE.module(), at)
    before = state(model)
    with pytest.raises(MemoryError, match="fuse"):
        protocol(CASE, model=model)
    assert_same_state(before, state(model))


def test_an_interruption_keeps_what_is_finished() -> None:
    model, x, y = easy()
    whole = autoattack(model, x, y, eps=0.01, generator=seeded(), **QUICK)
    seen = set()
    for at in range(12, 60, 4):
        broken = Fuse(model, at, KeyboardInterrupt)
        report = autoattack(broken, x, y, eps=0.01, generator=seeded(), **QUICK, batch_size=12)
        assert report.interrupted
        if not report.attempts:  # it was still looking whether the model can be judged
            continue
        *before, last = report.attempts
        assert not last.finished
        assert all(attempt.finished for attempt in before)
        assert "interrupted" in repr(report)
        assert report.accuracy.hits >= whole.accuracy.hits
        kept = report.broken_by >= 0
        assert torch.equal(report.broken_by[kept], whole.broken_by[kept])
        for mine, theirs in zip(before, whole.attempts, strict=False):
            assert (mine.tried, mine.fooled) == (theirs.tried, theirs.fooled)
        seen.add(last.name)
    assert len(seen) >= 3


@pytest.mark.parametrize("given", ["a generator", "none"])
def test_nothing_is_seeded(given: str) -> None:
    if given == "a generator":
        with global_generators_untouched():
            first, again = (protocol(CASE, eps=0.01) for _ in range(2))
        assert torch.equal(first.adv, again.adv)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first = protocol(CASE, eps=0.2, generator=None)
        after = torch.rand(1)
        torch.manual_seed(5)
        again = protocol(CASE, eps=0.2, generator=None)
        assert torch.equal(first.adv, again.adv)
        assert torch.equal(after, torch.rand(1))  # the global one has moved on, both times alike
        third = protocol(CASE, eps=0.2, generator=None)
        assert not torch.equal(first.adv, third.adv)


def test_an_empty_batch() -> None:
    x, y = CASE.batch()
    report = autoattack(CASE.module(), x[:0], y[:0], eps=0.1)
    assert report.adv.shape == (0, 1, 8, 8)
    assert report.attempts == ()
    assert "No samples" in repr(report)
    assert "No samples" in report._repr_html_()
    with pytest.raises(ValueError, match="n >= 1"):
        _ = report.accuracy


def test_it_works_without_gradient_mode_and_on_a_view_of_a_graph() -> None:
    model, x, y = easy()
    expected = autoattack(model, x, y, eps=0.01, generator=seeded(), **QUICK)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            report = autoattack(model, x, y, eps=0.01, generator=seeded(), **QUICK)
            assert torch.equal(report.adv, expected.adv)
    leaf = x.clone().requires_grad_()
    report = autoattack(model, leaf, y, eps=0.01, generator=seeded(), **QUICK)
    assert torch.equal(report.adv, expected.adv)
    assert not report.adv.requires_grad


BAD = {
    "l1": ({"norm": "l1"}, ["norm", "linf", "l2", "l1"]),
    "unknown norm": ({"norm": "l7"}, ["norm", "'l7'"]),
    "eps in grey levels": ({"eps": 8}, ["eps", "8 / 255"]),
    "no steps": ({"steps": 0}, ["steps", "1 or more", "0"]),
    "half a target": ({"targets": 1.5}, ["targets", "whole", "1.5"]),
    "no queries": ({"queries": 0}, ["queries", "0"]),
    "no batch": ({"batch_size": 0}, ["batch_size", "0"]),
    "0..255 images": ({"x": CASE.batch()[0] * 255}, ["x", "divide by 255"]),
    "one-hot labels": ({"y": torch.eye(24)}, ["y", "one-hot"]),
    "labels out of range": ({"y": CASE.batch()[1] + 5}, ["labels", "0 to 4"]),
    "NaN logits": ({"model": lambda x: x.flatten(1)[:, :5] * torch.nan}, ["model", "NaN"]),
    "no gradient": ({"model": lambda x: x.detach().flatten(1)[:, :5]}, ["autograd", "black-box"]),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_gets_one_clear_error(fault: str) -> None:
    different, words = BAD[fault]
    x, y = CASE.batch()
    call = {"model": CASE.module(), "x": x, "y": y, "eps": 0.1} | QUICK | different
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (its words are looked at below)
        autoattack(**call)
    assert all(word in str(caught.value) for word in words)


def test_a_tuple_gets_one_clear_error() -> None:
    x, y = CASE.batch()
    with pytest.raises(TypeError, match="tensor of logits, got tuple"):
        autoattack(lambda images: (images, images), x, y, eps=0.1, **QUICK)


# --- what it warns of ---------------------------------------------------------------------------


def doubts(model: Any, **options: Any) -> list[str]:
    _, x, y = easy()
    return list(autoattack(model, x, y, eps=0.004, generator=seeded(), **QUICK | options).warnings)


def test_an_honest_model_raises_no_warning() -> None:
    assert doubts(easy()[0]) == []


def test_it_warns_of_a_random_model() -> None:
    model, draws = easy()[0], seeded(1)
    noisy = lambda x: model(x) + 0.1 * torch.randn(1, generator=draws)  # noqa: E731
    assert any("random" in doubt for doubt in doubts(noisy))


def test_rounding_is_not_taken_for_randomness() -> None:
    model, calls = easy()[0], []

    def unsteady(x: Tensor) -> Tensor:
        calls.append(1)
        return model(x) * (1 + 1e-7 * (len(calls) % 2))

    assert doubts(unsteady) == []


def test_it_warns_of_probabilities() -> None:
    model = easy()[0]
    assert any("probabilities" in doubt for doubt in doubts(lambda x: model(x).softmax(1)))


def test_it_warns_of_zero_gradients() -> None:
    model = easy()[0]
    (found,) = doubts(lambda x: model((x * 16).round() / 16 + 0 * x))
    assert "gradient is zero" in found
    assert " 24 of 24" not in found  # three are wrong anyway


def test_it_warns_of_a_model_that_computes_gradients() -> None:
    model = easy()[0]

    def purifying(x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().clone().requires_grad_()
            model(inner).logsumexp(1).sum().backward()
        for parameter in model.parameters():
            parameter.grad = None
        return model(x)

    assert any("computes gradients" in doubt for doubt in doubts(purifying))


@pytest.mark.parametrize("classes", [2, 3])
def test_it_says_where_there_is_no_targeted_dlr(classes: int) -> None:
    case = Case("conv", (1, 8, 8), classes, 12, 0.05, torch.float64, False, 12)
    report = protocol(case, targets=9)
    assert any(f"with {classes} classes" in doubt for doubt in report.warnings)
    assert report.attempts[1].tried <= report.clean.hits


# --- the report ---------------------------------------------------------------------------------


def test_the_report_reads_well() -> None:
    model, x, y = easy()
    report = autoattack(model, x, y, eps=0.01, generator=seeded(), **QUICK)
    text, page = repr(report), report._repr_html_()
    for part in (str(report.clean), str(report.accuracy), "linf", "eps 0.01", "APGD-T", "FAB-T"):
        assert part in text
        assert html.escape(part) in page
    assert len(report.table) == 4
    assert set(report.table[0]) == {
        "attack", "tried on", "broke", "accuracy left", "gradients", "queries",
    }  # fmt: skip
    radius = torch.full((24,), 0.01, dtype=torch.float64)
    same = autoattack(model, x, y, eps=radius, generator=seeded(), **QUICK)
    assert torch.equal(same.adv, report.adv)
    assert "one per sample" in repr(same)


def test_warnings_are_shown_as_text() -> None:
    report = Report(
        torch.zeros(1, 2), torch.tensor([True]), torch.tensor([-2]), (), ("a <b> & c",), "l2", 0.5
    )
    assert "Warning: a <b> & c" in repr(report)
    assert "<li>a &lt;b&gt; &amp; c</li>" in report._repr_html_()


def test_the_losses_that_aim_agree_with_dlr() -> None:
    """Aimed at the strongest rival, both losses are positive, zero or negative together."""
    logits = torch.randn(50, 6, generator=seeded())
    y = torch.randint(6, (50,), generator=seeded(1))
    rival = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    assert torch.equal(targeted_dlr(logits, y, rival).sign(), dlr(logits, y).sign())
