"""Black-box attacks: what they may see, how often they ask, and what they find."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from attack_cases import Case, cases, size, state, two_class_linear
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks import ensemble, mi_fgsm, nes, spsa, square, transfer
from modelsec.attacks.queries import BudgetSpent, Queries, labels_only, scores_only
from modelsec.audit import Section, Subject
from modelsec.audit.black_box import black_box
from modelsec.data import Data, mnist
from modelsec.losses import margin
from modelsec.training import evaluate
from modelsec.zoo import load_model

ATTACKS: dict[str, Callable[..., Tensor]] = {"nes": nes, "spsa": spsa, "square": square}
PAIRS = [(name, norm) for name in ATTACKS for norm in ("linf", "l2")]
every = pytest.mark.parametrize(("name", "norm"), PAIRS)
estimating = pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name, norm in PAIRS if name != "square"]
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CASE = Case("mlp", (1, 8, 8), 3, 6, 0.3, torch.float64, False, 3)


# --- what is left to see ------------------------------------------------------------------------


def test_a_wrapped_model_has_no_gradient_and_no_parameters() -> None:
    model, (x, _) = CASE.module(), CASE.batch()
    before = state(model)
    for wrapped in (scores_only(model), labels_only(model)):
        assert not isinstance(wrapped, nn.Module)
        answer = wrapped(x.clone().requires_grad_())
        assert not answer.requires_grad
        with torch.enable_grad():
            assert not wrapped(x.clone().requires_grad_()).requires_grad
    after = state(model)
    assert before["modes"] == after["modes"]
    assert before["frozen"] == after["frozen"]
    assert all(map(torch.equal, before["values"], after["values"]))  # BatchNorm was in eval mode


def test_scores_and_labels_say_what_the_model_says() -> None:
    model, (x, _) = CASE.module().eval(), CASE.batch()
    with torch.no_grad():
        logits = model(x)
    assert torch.equal(scores_only(model, probabilities=False)(x), logits)
    probabilities = scores_only(model)(x)
    assert torch.allclose(probabilities, logits.softmax(1))
    assert torch.equal(labels_only(model)(x), logits.argmax(1))
    rounded = scores_only(model, decimals=2)(x)
    assert torch.allclose(rounded, (100 * probabilities).round() / 100)
    assert (rounded != probabilities).any()


@settings(max_examples=30)
@given(budget=st.integers(1, 40), sizes=st.lists(st.integers(0, 9), max_size=12))
def test_a_budget_holds_to_the_query(budget: int, sizes: list[int]) -> None:
    seen: list[int] = []

    def model(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    asked = Queries(model, budget)
    for n in sizes:
        allowed = sum(seen) + n <= budget
        if allowed:
            assert asked(torch.zeros(n, 2)).shape == (n, 2)
        else:
            with pytest.raises(
                BudgetSpent, match=f"{n} images were asked about, {budget - sum(seen)} of"
            ):
                asked(torch.zeros(n, 2))
        assert asked.count == sum(seen) <= budget


def test_a_question_that_failed_is_not_counted() -> None:
    def broken(x: Tensor) -> Tensor:
        raise MemoryError

    asked = Queries(broken)
    with pytest.raises(MemoryError):
        asked(torch.zeros(3, 2))
    assert asked.count == 0
    for bad in (0, 2.5, True, -1):
        with pytest.raises(ValueError, match=r"budget must be a whole number"):
            Queries(broken, bad)  # type: ignore[arg-type]


# --- budgets of the attacks ---------------------------------------------------------------------


@every
@settings(max_examples=25)
@given(case=cases(kinds=("mlp",), dtypes=(torch.float64,)), queries=st.integers(1, 70),
       pairs=st.integers(1, 30), early_stop=st.booleans())  # fmt: skip
def test_no_sample_is_shown_once_more_than_its_budget(
    name: str, norm: str, case: Case, queries: int, pairs: int, early_stop: bool
) -> None:
    """Alone, so that each sample has a bill of its own; and all together, for the sum."""
    (x, y), options = case.batch(), {"pairs": pairs} if name != "square" else {}
    attack = partial(
        ATTACKS[name], eps=0.1, norm=norm, queries=queries, early_stop=early_stop,
        targeted=case.targeted, **options,
    )  # fmt: skip
    alone = []
    for i in range(case.n):
        asked = Queries(case.module().eval(), budget=queries)
        attack(asked, x[i : i + 1], y[i : i + 1], generator=seeded())
        alone.append(asked.count)
        if not early_stop:  # what is paid for is used; a pair and a look may not fit in the rest
            assert queries - asked.count <= (0 if name == "square" else 2)
    asked = Queries(case.module().eval(), budget=queries * case.n)
    attack(asked, x, y, generator=seeded())
    assert asked.count == sum(alone)


@estimating
def test_the_callback_tells_how_often_was_asked(name: str, norm: str) -> None:
    x, y = CASE.batch()
    asked, steps = Queries(CASE.module().eval()), []

    def look(point: Any) -> None:
        steps.append(point.step)
        assert asked.count == len(x) * max(point.step, 1)

    ATTACKS[name](
        asked, x, y, eps=0.1, norm=norm, queries=50, pairs=7, early_stop=False, callback=look,
        generator=seeded(),
    )  # fmt: skip
    assert steps == [0, 16, 31, 46, 49]  # the last step makes do with one pair


@every
def test_every_image_shown_is_an_image(name: str, norm: str) -> None:
    x, y = CASE.batch()

    def model(images: Tensor) -> Tensor:
        assert images.min() >= 0
        assert images.max() <= 1
        assert images.shape[1:] == x.shape[1:]
        return inside(images)

    inside = CASE.module().eval()
    ATTACKS[name](model, x, y, eps=0.5, norm=norm, queries=60, early_stop=False, generator=seeded())


# --- what the estimates find --------------------------------------------------------------------


def middle(n: int = 4, d: int = 40) -> Tensor:
    return torch.full((n, d), 0.5, dtype=torch.float64)


@pytest.mark.parametrize("name", ["nes", "spsa"])
@pytest.mark.parametrize("targeted", [False, True])
def test_with_many_pairs_they_find_the_worst_case_of_a_linear_model(
    name: str, targeted: bool
) -> None:
    model, w = two_class_linear(40)
    x, y = middle(), torch.tensor([0, 1, 0, 1])
    climb = torch.where(y == 0, 1.0, -1.0)[:, None] * w * (-1 if targeted else 1)
    for norm, wanted in (("linf", climb.sign()), ("l2", climb / climb.norm(dim=1)[:, None])):
        adv = ATTACKS[name](
            model, x, y, eps=0.2, norm=norm, queries=12_000, pairs=500, targeted=targeted,
            early_stop=False, generator=seeded(1),
        )  # fmt: skip
        gained = ((adv - x) * climb).sum(1) / (0.2 * wanted * climb).sum(1)
        assert (gained > 0.95).all(), (norm, gained)


@pytest.mark.parametrize("name", ["nes", "spsa"])
def test_more_pairs_aim_better(name: str) -> None:
    """The first step in l2 goes along the estimate. Its cosine is about sqrt(k / (k + d))."""
    model, w = two_class_linear(200)
    x, y, cosines = middle(1, 200), torch.zeros(1, dtype=torch.long), []
    for pairs in (4, 40, 400):
        adv = ATTACKS[name](
            model, x, y, eps=0.01, norm="l2", queries=2 * pairs + 2, pairs=pairs,
            early_stop=False, generator=seeded(1),  # another seed than that of the model's weights
        )  # fmt: skip
        step = adv[0] - x[0]
        cosines.append(float(step @ w / step.norm() / w.norm()))
    for pairs, cosine in zip((4, 40, 400), cosines, strict=True):
        assert abs(cosine - (pairs / (pairs + 200)) ** 0.5) < 0.1


@estimating
def test_a_model_without_a_gradient_is_attacked_all_the_same(name: str, norm: str) -> None:
    linear, _ = two_class_linear(64, torch.float32)
    x = torch.rand(6, 1, 8, 8, generator=seeded())
    model = scores_only(linear)
    y = model(x).argmax(1)
    eps = {"linf": 0.5, "l2": 4.0}[norm]
    adv = ATTACKS[name](model, x, y, eps=eps, norm=norm, queries=1500, generator=seeded())
    assert (model(adv).argmax(1) != y).all()


@estimating
@settings(max_examples=10)
@given(case=cases(kinds=("mlp", "conv"), dtypes=(torch.float64,), eps=(0.1, 0.3)))
def test_the_best_point_after_any_step_is_returned(name: str, norm: str, case: Case) -> None:
    (x, y), model, path = case.batch(), case.module().eval(), []
    adv = ATTACKS[name](
        model, x, y, eps=case.radius, norm=norm, queries=80, pairs=6, targeted=case.targeted,
        early_stop=False, callback=path.append, generator=case.generator,
    )  # fmt: skip
    with torch.no_grad():
        value = margin(model(adv), y) * (-1 if case.targeted else 1)
    best = torch.stack([point.loss for point in path if point.step]).amax(0)
    assert torch.allclose(value, best, rtol=0, atol=1e-9)
    for point in path:
        assert (size(point.adv - x, norm) <= case.radius + 1e-9).all()


@estimating
def test_a_wrong_image_costs_one_query(name: str, norm: str) -> None:
    x, _ = CASE.batch()
    model = CASE.module().eval()
    y = (labels_only(model)(x) + 1) % 3
    asked = Queries(model)
    adv = ATTACKS[name](asked, x, y, eps=0.1, norm=norm, generator=seeded())
    assert asked.count == len(x)
    assert torch.equal(adv, x)


BAD = {
    "no queries": ({"queries": 0}, ["queries", "1 or more", "0"]),
    "half a pair": ({"pairs": 2.5}, ["pairs", "whole", "2.5"]),
    "no sigma": ({"sigma": 0.0}, ["sigma", "between 0 and 1", "0.0"]),
    "sigma in grey levels": ({"sigma": 2}, ["sigma", "between 0 and 1", "2"]),
    "l1": ({"norm": "l1"}, ["norm", "linf", "l2", "l1"]),
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("name", ["nes", "spsa"])
def test_bad_input_gets_one_clear_error(name: str, fault: str) -> None:
    different, words = BAD[fault]
    x, y = CASE.batch()
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (its words are looked at below)
        ATTACKS[name](CASE.module(), x, y, **{"eps": 0.1} | different)
    assert all(word in str(caught.value) for word in words)


# --- transfer -----------------------------------------------------------------------------------


def test_an_ensemble_averages_logits_and_guards_its_members() -> None:
    one, other = CASE.module(), Case("conv", (1, 8, 8), 3, 6, 0.3, torch.float64, False, 4).module()
    (x, y), before = CASE.batch(), [state(one), state(other)]
    plain = lambda images: images.flatten(1)[:, :3]  # noqa: E731
    both = ensemble([one, other, plain])
    transfer(both, x, y, eps=0.1)
    for model, was in zip((one, other), before, strict=True):
        now = state(model)
        assert now["modes"] == was["modes"]
        assert now["frozen"] == was["frozen"]
        assert all(map(torch.equal, now["values"], was["values"]))
    both.eval()
    mean = (one(x) + other(x) + plain(x)) / 3
    assert torch.allclose(both(x), mean)
    assert torch.allclose(ensemble([one])(x), one(x))


def test_transfer_is_mi_fgsm_that_goes_on() -> None:
    (x, y), model = CASE.batch(), CASE.module()
    wanted = mi_fgsm(model, x, y, eps=0.2, steps=7, decay=0.5, early_stop=False)
    assert torch.equal(transfer(model, x, y, eps=0.2, steps=7, decay=0.5), wanted)
    early = mi_fgsm(model, x, y, eps=0.2, steps=7, decay=0.5)
    assert not torch.equal(wanted, early)


@pytest.mark.parametrize(
    ("models", "error", "words"),
    [
        ([], ValueError, "at least one"),
        (nn.Linear(2, 2), TypeError, "a list of models, got Linear"),
        ([nn.Linear(2, 2), None], TypeError, "callables only, got NoneType"),
    ],
)
def test_what_is_no_ensemble(models: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ensemble(models)


# --- the audit's section ------------------------------------------------------------------------

DIGITS, NET = mnist(), load_model("net")


def look(model: nn.Module, data: Data = DIGITS, **different: object) -> Section:
    return black_box(Subject(model, data, n=20, **{"radii": (0.05, 0.1, 0.2)} | different))


def test_the_card_tells_what_each_attacker_leaves() -> None:
    with global_generators_untouched():
        found = look(NET)
    assert list(found.measures) == ["clean", "scores", "labels", "transfer"]
    assert all(value.n == 20 for value in found.measures.values())
    assert float(found.measures["scores"]) < float(found.measures["clean"])
    assert "eps 0.1" in found.summary
    assert len(found.table) == 3
    assert found == look(NET)


def test_without_training_images_nobody_has_a_surrogate() -> None:
    empty = Data(**vars(DIGITS) | {"x_train": DIGITS.x_train[:0], "y_train": DIGITS.y_train[:0]})
    assert "transfer" not in look(NET, empty).measures
    assert look(NET, norm="l1").verdict == "skipped"
    assert "in l2" in look(NET, norm="l2", radii=(1.0,)).summary


def test_images_of_a_surrogate_fool_the_network_more_than_noise_does() -> None:
    x, y = DIGITS.x_test[:200], DIGITS.y_test[:200]
    adv = transfer(load_model("convnet"), x, y, eps=0.1)
    noise = (x + 0.1 * (torch.rand(x.shape, generator=seeded()) - 0.5).sign()).clamp(0, 1)
    assert evaluate(NET, adv, y).interval[1] < evaluate(NET, noise, y).interval[0]
