"""Membership inference: ROC against scikit-learn, shadows in twins, LiRA against its formula, the attacks' contract."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor, nn

from modelsec import attacks, losses
from modelsec.attacks.leak import Leak
from modelsec.attacks.membership import (
    Shadows,
    by_loss,
    confidence,
    lira,
    shadow_attack,
    shadows,
    trials,
)
from modelsec.models import fresh
from modelsec.threat import card
from modelsec.training import fit

N, K = 60, 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def records(n: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    x = torch.rand(n, 5, generator=generator)
    return x, torch.randint(K, (n,), generator=generator)


def by_heart(x: Tensor, y: Tensor, generator: torch.Generator) -> nn.Module:
    """A network that learns its few records, whose labels are noise, by heart."""
    model = fresh(lambda: nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, K)), generator)
    fit(model, x, y, epochs=60, batch_size=30, lr=0.02, generator=generator, progress=False)
    return model


X, Y = records()
SHADOWS = shadows(by_heart, X, Y, count=12, generator=seeded())
ATTACKS = {
    "by_loss": lambda model, known, x, y: by_loss(model, x, y),
    "shadow_attack": lambda model, known, x, y: shadow_attack(
        model, known, x, y, generator=seeded()
    ),
    "lira": lira,
    "lira online": lambda *given: lira(*given, online=True),
    "lira own variance": lambda *given: lira(*given, online=True, fixed_variance=False),
}
each = pytest.mark.parametrize("name", ATTACKS)


# --- the ROC ------------------------------------------------------------------------------------

outcomes = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({member for _, member in rows}) == 2
)


def leak(rows: Any) -> Leak:
    scores, member = zip(*rows, strict=True)
    return Leak(torch.tensor(scores).float(), torch.tensor(member))


@given(rows=outcomes)
def test_the_roc_is_scikit_learn_s_ties_and_all(rows: Any) -> None:
    found = leak(rows)
    false, true = found.roc()
    expected = roc_curve(found.member, found.scores, drop_intermediate=False)
    assert np.allclose(false, expected[0])
    assert np.allclose(true, expected[1])
    assert found.auc == pytest.approx(roc_auc_score(found.member, found.scores))
    assert found.advantage == pytest.approx(max(expected[1] - expected[0]))


@given(rows=outcomes, fpr=st.floats(0.01, 0.99))
def test_no_threshold_with_so_few_false_alarms_finds_more(rows: Any, fpr: float) -> None:
    found = leak(rows)
    members, others = found.scores[found.member], found.scores[~found.member]
    if fpr * len(others) < 1:
        with pytest.raises(ValueError, match="one non-member or more"):
            found.tpr_at(fpr)
        return
    thresholds = [*found.scores.tolist(), math.inf]
    allowed = [t for t in thresholds if int((others >= t).sum()) <= fpr * len(others) + 1e-9]
    best = max(int((members >= t).sum()) for t in allowed)
    assert (found.tpr_at(fpr).hits, found.tpr_at(fpr).n) == (best, len(members))


def test_a_member_s_tie_with_a_non_member_is_not_found() -> None:
    """All losses of a very sure model are 0: a threshold can't part them, and must not seem to."""
    found = Leak(torch.zeros(200), torch.arange(200) < 100)
    assert found.tpr_at(0.05).hits == 0
    assert found.auc == 0.5
    assert found.advantage == 0


@pytest.mark.parametrize(
    ("scores", "member", "words"),
    [
        (torch.rand(3), torch.tensor([True, False]), "shape"),
        (torch.rand(2, 1), torch.tensor([[True], [False]]), "shape"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([True, False]), "NaN"),
        (torch.rand(2), torch.tensor([True, True]), "non-member"),
        (torch.rand(0), torch.zeros(0, dtype=torch.bool), "non-member"),
    ],
)
def test_a_leak_that_says_nothing_is_refused(scores: Tensor, member: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Leak(scores, member)


# --- shadows ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(n=st.integers(2, 30), pairs=st.integers(1, 4), seed=st.integers(0, 99))
def test_shadows_come_in_twins_and_keep_no_secret_of_the_target(
    n: int, pairs: int, seed: int
) -> None:
    x, y = records(n, seed)
    seen = []

    def train(rows: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
        seen.append((rows, labels, generator.initial_seed()))
        return lambda batch: batch[:, :K] * len(seen)

    with global_generators_untouched():
        found = shadows(train, x, y, count=2 * pairs, generator=seeded(seed))
    assert found.logits.dtype == torch.float16
    assert found.logits.shape == (2 * pairs, n, K)
    for s, (rows, labels, _) in enumerate(seen):
        assert torch.equal(rows, x[found.inside[s]])
        assert torch.equal(labels, y[found.inside[s]])
        assert len(rows) in {n // 2, n - n // 2}
        assert torch.allclose(found.logits[s].float(), x[:, :K] * (s + 1), rtol=1e-3)
    assert len({number for _, _, number in seen}) == 2 * pairs
    assert bool((found.inside.sum(0) == pairs).all())
    for target in range(2 * pairs):
        rest = found.others(target)
        # how often a record is inside the rest must not tell whether it was in the target
        assert len(set(rest.inside.sum(0).tolist())) == 1
        assert not any(torch.equal(row, found.inside[target]) for row in rest.inside)


def test_shadows_are_drawn_from_the_generator() -> None:
    again = shadows(by_heart, X, Y, count=2, generator=seeded())
    assert torch.equal(again.logits, SHADOWS.logits[:2])
    assert torch.equal(again.inside, SHADOWS.inside[:2])
    assert not torch.equal(
        again.inside, shadows(by_heart, X, Y, count=2, generator=seeded(1)).inside
    )


def test_huge_logits_fit_into_float16() -> None:
    found = shadows(lambda x, y, g: lambda batch: batch[:, :K] * 1e9, X, Y, count=2)
    assert bool(found.logits.isfinite().all())


# --- LiRA against its formula --------------------------------------------------------------------


def test_the_confidence_is_the_logarithm_of_the_odds() -> None:
    z, y = torch.randn(50, K, generator=seeded(), dtype=torch.double), Y[:50]
    p = z.softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(confidence(z, y), (p / (1 - p)).log())
    sure = torch.tensor([[40.0, 0.0, 0.0], [60.0, 0.0, 0.0]])
    zero = torch.zeros(2, dtype=torch.long)
    assert losses.cross_entropy(sure, zero).tolist() == [0, 0]  # what a threshold on it can't part
    assert float(confidence(sure, zero).diff()) > 19


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("online", [True, False])
def test_lira_is_what_the_paper_says(online: bool, fixed: bool) -> None:
    rest, target = SHADOWS.others(0), SHADOWS.logits[0].float()
    phi, known = confidence(target, Y).numpy(), rest.confidence(Y).numpy()
    inside = rest.inside.numpy()
    groups = [[known[~inside[:, i], i] for i in range(N)]]
    groups += [[known[inside[:, i], i] for i in range(N)]] if online else []
    pooled = np.concatenate([g - g.mean() for group in groups for g in group])
    free = sum(len(g) - 1 for group in groups for g in group)
    common = np.sqrt((pooled**2).sum() / free)
    out, *within = (
        np.array([[g.mean(), common if fixed else g.std(ddof=1)] for g in group])
        for group in groups
    )
    expected = norm.isf(norm.sf(phi, *out.T)) if not online else 0  # the one-sided test, in sigmas
    if online:
        expected = norm.logpdf(phi, *within[0].T) - norm.logpdf(phi, *out.T)
    got = lira(target, rest, X, Y, online=online, fixed_variance=fixed).numpy()
    finite = np.isfinite(expected)
    assert finite.sum() > N / 2
    assert np.allclose(got[finite], expected[finite], rtol=1e-2, atol=1e-2)


def test_few_shadows_are_refused_where_they_are_too_few() -> None:
    two = Shadows(SHADOWS.logits[:2], SHADOWS.inside[:2])
    four = Shadows(SHADOWS.logits[:4], SHADOWS.inside[:4])
    target = SHADOWS.logits[5].float()
    with pytest.raises(ValueError, match="a variance needs two"):
        lira(target, two, X, Y, online=True)
    with pytest.raises(ValueError, match="2 or more must be trained without it, record 0 has 1"):
        lira(target, two, X, Y, fixed_variance=False)
    never = Shadows(SHADOWS.logits[:4], torch.zeros(4, N, dtype=torch.bool))
    with pytest.raises(ValueError, match="1 or more must be trained with it, record 0 has 0"):
        lira(target, never, X, Y, online=True)
    assert lira(target, never, X, Y).isfinite().all()
    assert lira(target, four, X, Y, online=True, fixed_variance=False).isfinite().all()


# --- every attack -------------------------------------------------------------------------------


def test_what_was_learned_by_heart_is_found() -> None:
    found = {
        name: np.mean([leak.auc for leak in trials(attack, SHADOWS, X, Y, targets=6)])
        for name, attack in ATTACKS.items()
    }
    assert min(found.values()) > 0.8, found
    x, y = records(400)  # enough of them that chance looks like chance
    untrained = shadows(
        lambda x, y, g: fresh(lambda: nn.Linear(5, K), g), x, y, count=12, generator=seeded()
    )
    for name, attack in ATTACKS.items():
        aucs = [leak.auc for leak in trials(attack, untrained, x, y, targets=6)]
        assert abs(np.mean(aucs) - 0.5) < 0.05, name


@each
def test_inputs_models_and_generators_stay_as_they_are(name: str) -> None:
    model = by_heart(X[:30], Y[:30], seeded())
    model.zero_grad()
    model[0].train()
    model[2].eval()
    model[2].weight.requires_grad_(False)
    state = [value.clone() for value in model.state_dict().values()]
    before = X.clone(), Y.clone(), SHADOWS.logits.clone(), SHADOWS.inside.clone()
    with global_generators_untouched():
        scores = ATTACKS[name](model, SHADOWS, X, Y)
    assert scores.shape == (N,)
    assert not scores.requires_grad
    assert all(map(torch.equal, before, (X, Y, SHADOWS.logits, SHADOWS.inside)))
    assert all(map(torch.equal, state, model.state_dict().values()))
    assert [module.training for module in model] == [True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True]
    assert all(p.grad is None for p in model.parameters())
    logits = model(X).detach()
    assert torch.allclose(scores, ATTACKS[name](logits, SHADOWS, X, Y), atol=1e-4)


def test_a_model_is_asked_in_eval_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5), by_heart(X[:30], Y[:30], seeded()))
    scores = by_loss(model.train(), X, Y)
    assert model[0].training
    assert torch.equal(scores, by_loss(model[1], X, Y))
    known = shadows(lambda x, y, g: model, X, Y, count=2, generator=seeded())
    assert torch.equal(known.logits[0], model[1](X).half())


@each
def test_the_order_of_the_records_does_not_matter_and_one_is_enough(name: str) -> None:
    target = SHADOWS.logits[0].float()
    scores = ATTACKS[name](target, SHADOWS, X, Y)
    if name != "shadow_attack":  # it draws rows
        turned = Shadows(SHADOWS.logits.flip(1), SHADOWS.inside.flip(1))
        flipped = ATTACKS[name](target.flip(0), turned, X.flip(0), Y.flip(0))
        assert torch.allclose(scores.flip(0), flipped, atol=1e-4)
    one = Shadows(SHADOWS.logits[:, :1], SHADOWS.inside[:, :1])
    assert ATTACKS[name](target[:1], one, X[:1], Y[:1]).shape == (1,)


@each
def test_double_precision_is_welcome(name: str) -> None:
    model = by_heart(X[:30], Y[:30], seeded())
    single = ATTACKS[name](model, SHADOWS, X, Y)
    double = ATTACKS[name](model.double(), SHADOWS, X.double(), Y)
    assert torch.allclose(single.double(), double.double(), atol=1e-3)


def test_no_record_has_no_score() -> None:
    none = Shadows(SHADOWS.logits[:, :0], SHADOWS.inside[:, :0])
    x, y, z = X[:0], Y[:0], torch.zeros(0, K)
    assert by_loss(z, x, y).shape == (0,)
    for name in ("lira", "shadow_attack"):
        with pytest.raises(ValueError, match="one record or more"):
            ATTACKS[name](z, none, x, y)


def test_the_attack_model_draws_from_its_generator_alone() -> None:
    target = SHADOWS.logits[0].float()
    a, b, c = (
        shadow_attack(target, SHADOWS, X, Y, rows=300, generator=seeded(s)) for s in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@each
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": X[:5]}, ValueError, "y must have shape"),
        ({"y": Y.float()}, TypeError, "integer class indices"),
        ({"y": Y[:, None]}, ValueError, "y must have shape"),
        ({"x": [1, 2]}, TypeError, "must be tensors"),
        ({"model": "net"}, TypeError, "callable or a tensor"),
        ({"model": torch.zeros(N)}, ValueError, "logits must have shape"),
        ({"model": torch.zeros(N, K) * torch.nan}, ValueError, "NaN"),
    ],
)
def test_bad_input_gets_a_sentence(
    name: str, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"model": torch.zeros(N, K), "x": X, "y": Y} | change
    with pytest.raises(error, match=words):
        ATTACKS[name](given["model"], SHADOWS, given["x"], given["y"])


def test_other_bad_input_too() -> None:
    with pytest.raises(ValueError, match="shadows answer"):
        lira(torch.zeros(N, K + 1), SHADOWS, X, Y)
    with pytest.raises(ValueError, match="count must be even"):
        shadows(by_heart, X, Y, count=3)
    with pytest.raises(ValueError, match="count must be a whole number"):
        shadows(by_heart, X, Y, count=0)
    with pytest.raises(ValueError, match="two or more"):
        shadows(by_heart, X[:1], Y[:1], count=2)
    with pytest.raises(TypeError, match="inside bool"):
        Shadows(SHADOWS.logits, SHADOWS.inside.float())
    with pytest.raises(ValueError, match=r"inside \(S, N\)"):
        Shadows(SHADOWS.logits, SHADOWS.inside[:3])
    with pytest.raises(ValueError, match="targets must be 1 to 12"):
        trials(lira, SHADOWS, X, Y, targets=13)
    with pytest.raises(ValueError, match="rows must be a whole number"):
        shadow_attack(torch.zeros(N, K), SHADOWS, X, Y, rows=0)


@pytest.mark.parametrize("name", ["by_loss", "shadow_attack", "lira"])
def test_each_has_its_threat_card(name: str) -> None:
    found = card(getattr(attacks, name))
    assert (found.goal, found.knowledge, found.stage) == ("privacy", "scores", "deployment")
    assert found.source.startswith("https://arxiv.org/abs/")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each
def test_scores_come_back_on_the_records_device(name: str) -> None:
    model = by_heart(X[:30], Y[:30], seeded()).cuda()
    scores = ATTACKS[name](model, SHADOWS, X.cuda(), Y.cuda())
    assert scores.is_cuda
    assert torch.allclose(
        scores.cpu(), ATTACKS[name](model.cpu(), SHADOWS, X, Y), atol=1e-3, rtol=1e-3
    )
