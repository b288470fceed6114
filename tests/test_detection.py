"""The squeezing detector: its threshold, its refusals, and the attack on model and detector together."""

import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks import pgd
from modelsec.data import mnist
from modelsec.repair import bit_depth, evade, feature_squeezing, jpeg, median, stands
from modelsec.repair.detection import Squeezing
from modelsec.training import evaluate
from modelsec.zoo import load_model

DIGITS, NET = mnist(), load_model("convnet")
X, Y = DIGITS.x_test[:100], DIGITS.y_test[:100]


@pytest.fixture(scope="module")
def guarded() -> Squeezing:
    with global_generators_untouched():
        return feature_squeezing(NET, DIGITS.x_train[:500], squeezers=[bit_depth(3), median(2)])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- the score and the threshold


def test_the_score_is_the_largest_distance_of_the_answers(guarded: Squeezing) -> None:
    x = X[:20]
    with torch.no_grad():
        p = NET(x).softmax(1)
        distances = [
            (p - NET(squeeze(x)).softmax(1)).abs().sum(1) for squeeze in (bit_depth(3), median(2))
        ]
        score = guarded.score(x)
    assert torch.allclose(score, torch.maximum(*distances), atol=1e-6)
    assert ((score >= 0) & (score <= 2)).all()


@pytest.mark.parametrize("alarms", [0.01, 0.05, 0.3])
def test_the_threshold_refuses_the_share_that_was_asked_for(alarms: float) -> None:
    x = DIGITS.x_train[:300]
    made = feature_squeezing(NET, x, alarms=alarms, batch_size=128)
    assert [step.name for step in made.squeezers] == ["1 bits", "median of 2 x 2"]
    with torch.no_grad():
        refused = (made.score(x) > made.threshold).float().mean().item()
    assert refused == pytest.approx(alarms, abs=1 / 300)


def test_the_last_logit_leads_where_the_score_is_above_the_threshold(guarded: Squeezing) -> None:
    adv = pgd(NET, X, Y, eps=0.2, generator=seeded())
    with torch.no_grad():
        logits, score = guarded(adv), guarded.score(adv)
        assert torch.equal(logits[:, :10], NET(adv))
    assert logits.shape == (100, 11)
    flagged = score > guarded.threshold
    assert 10 < flagged.sum() < 90
    assert torch.equal(logits.argmax(1) == 10, flagged)


@pytest.mark.parametrize(
    "options", [{"squeezers": []}, {"alarms": 0}, {"alarms": 1.0}, {"alarms": 5}]
)
def test_bad_input_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="need images, squeezers and alarms between 0 and 1"):
        feature_squeezing(NET, X, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 0 images"):
        feature_squeezing(NET, X[:0])


def test_it_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), NET).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    feature_squeezing(model, X)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert next(NET.parameters()).requires_grad
    NET.eval()


def test_any_callable_and_other_dtypes_do() -> None:
    double = load_model("convnet").double()
    made = feature_squeezing(lambda x: double(x), X.double(), squeezers=[jpeg(50)])
    logits = made(X[:3].double())
    assert logits.dtype == torch.float64
    assert logits.shape == (3, 11)


# --- the joint loss


@settings(max_examples=50)
@given(k=st.integers(2, 6), seed=st.integers(0, 999))
def test_evade_is_positive_exactly_where_a_wrong_class_wins(k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, k + 1, generator=generator, dtype=torch.float64)
    y = torch.randint(k, (8,), generator=generator)
    answer = logits.argmax(1)
    wins = (answer != y) & (answer != k)
    assert torch.equal(evade(logits, y) > 0, wins)


def test_evade_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 2.0, 5.0], [3.0, 2.0, 1.0]])
    assert evade(logits, torch.tensor([0, 0, 0])).tolist() == [2.0, -3.0, -1.0]


def test_evade_pushes_the_refusal_down() -> None:
    logits = torch.tensor([[0.0, 3.0, 5.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(evade(logits, torch.tensor([0])).sum(), logits)
    assert slope.tolist() == [[0, 1, -1]]


# --- what stands


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[x.flatten(1)[:, 0].long()]


def test_a_right_answer_and_a_refusal_do_no_harm() -> None:
    logits = torch.eye(4)  # answers 0, 1, 2 and "refused"
    x, y = torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([0, 0, 2, 1])
    found = stands(Fixed(logits), x, y, batch_size=3)
    assert found.correct.tolist() == [True, False, True, True]
    assert (found.hits, found.n) == (3, 4)
    assert evaluate(Fixed(logits), x, y).hits == 2  # on clean images a refusal is a mistake


def test_whoever_knows_the_detector_fools_both(guarded: Squeezing) -> None:
    unaware = pgd(NET, X, Y, eps=0.2, generator=seeded())
    aware = pgd(guarded.attacked(), X, Y, eps=0.2, early_stop=False, generator=seeded())
    assert float(stands(guarded, unaware, Y)) > 0.3
    assert float(stands(guarded, aware, Y)) < 0.15
    # what was attacked is a differentiable view: values as the detector's own
    with torch.no_grad():
        assert torch.allclose(guarded.attacked()(X[:5]), guarded.views(X[:5]).mean(0))
