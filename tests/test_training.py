"""fit, evaluate and inference: what they do, what they leave as it was, what stops them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from modelsec import training
from modelsec.attacks import pgd
from modelsec.losses import cross_entropy, margin
from modelsec.training import History, evaluate, fit, inference


def data(n: int = 120) -> tuple[Tensor, Tensor]:
    """Two clouds that a line can part."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    return (0.25 + 0.5 * y[:, None] + 0.1 * torch.randn(n, 3, generator=generator)).clamp(0, 1), y


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2)]
        return nn.Sequential(*layers)


def quiet(*args: Any, **options: Any) -> History:
    try:
        return fit(*args, **{"epochs": 3, "batch_size": 20, "progress": False} | options)
    except KeyboardInterrupt:  # which would end the tests themselves
        pytest.fail("the interruption got out of fit")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


# --- fit ----------------------------------------------------------------------------------------


def test_learns() -> None:
    x, y = data()
    model = network()
    before = evaluate(model, x, y)
    history = quiet(model, x, y, epochs=15, lr=0.02, validation=(x, y), generator=seeded())
    assert before.value < 0.9
    assert evaluate(model, x, y).value > 0.97
    assert len(history.loss) == len(history.accuracy) == len(history.validation) == 15
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert history.validation[-1].hits == evaluate(model, x, y).hits
    assert not history.interrupted


def without_dropout() -> nn.Module:
    model = network()
    model[3] = nn.Identity()
    return model


def test_the_same_generator_gives_the_same_weights() -> None:
    x, y = data()
    runs = []
    for seed in (1, 1, 2):
        model, state = without_dropout(), torch.get_rng_state()
        quiet(model, x, y, generator=seeded(seed))
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(weights(model))
    assert all(map(torch.equal, runs[0], runs[1]))
    assert not all(map(torch.equal, runs[0], runs[2]))


def test_every_sample_is_seen_once_an_epoch() -> None:
    x, y = data(50)
    seen: list[Tensor] = []

    def look(model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        seen.append(images)
        return images

    quiet(network(), x, y, perturb=look, epochs=2, batch_size=20)
    assert [len(batch) for batch in seen] == [20, 20, 10] * 2
    for epoch in (seen[:3], seen[3:]):
        assert torch.equal(torch.cat(epoch).sort(0).values, x.sort(0).values)
    assert not torch.equal(seen[0], seen[3])  # in another order


def test_perturb_is_told_the_progress_and_its_result_is_trained_on() -> None:
    x, y = data()
    told: list[float] = []
    inputs: list[Tensor] = []

    def perturb(model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        told.append(progress)
        assert model.training
        assert len(images) == len(labels)
        return torch.full_like(images, 0.125)

    model = network()
    model.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    quiet(model, x, y, perturb=perturb)
    assert told == pytest.approx([step / 18 for step in range(18)])
    assert len(inputs) == 18
    assert all((batch == 0.125).all() for batch in inputs)


def test_soft_targets_from_perturb_are_trained_on() -> None:
    x, y = data()
    model, seen = without_dropout(), []

    def turned_round(model: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Any:
        return images, nn.functional.one_hot(1 - labels, 2).float()

    def spy(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return cross_entropy(logits, targets)

    history = quiet(
        model, x, y, perturb=turned_round, loss=spy, epochs=15, lr=0.02, generator=seeded()
    )
    assert evaluate(model, x, y).value < 0.03  # it learned what it was told, not y
    assert history.accuracy[-1] > 0.97  # counted against what it was told
    assert all(targets.shape == (20, 2) for targets in seen)


def test_hard_targets_as_soft_ones_change_nothing() -> None:
    x, y = data()
    runs = []
    for perturb in (None, lambda m, x, y, _: (x, nn.functional.one_hot(y, 2).float())):
        model = without_dropout()
        history = quiet(model, x, y, perturb=perturb, generator=seeded())
        runs.append((history.loss, history.accuracy, weights(model)))
    assert runs[0][0] == pytest.approx(runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(runs[0][2], runs[1][2], strict=True))


@pytest.mark.parametrize(
    "targets",
    [torch.ones(20), torch.ones(20, 3), torch.ones(10, 2), torch.ones(20, 2, dtype=torch.long)],
)
def test_targets_that_are_no_probability_per_class_are_refused(targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"perturb must return .* shape \(20, 2\)"):
        quiet(network(), *data(), perturb=lambda m, x, y, _: (x, targets))


def test_adversarial_training_makes_the_model_harder_to_attack() -> None:
    x, y = data(400)
    attack = partial(pgd, eps=0.15, steps=5, generator=seeded())
    robust = []
    for perturb in (None, lambda m, x, y, progress: attack(m, x, y, early_stop=False)):
        model = without_dropout()
        quiet(model, x, y, epochs=20, lr=0.02, perturb=perturb, generator=seeded())
        robust.append(evaluate(model, x, y, attack=attack).value)
    assert robust[1] >= robust[0]
    assert robust[1] > 0.9


def test_the_learning_rate_may_follow_a_schedule() -> None:
    x, y = data()
    asked: list[float] = []
    optimizer = torch.optim.SGD((model := network()).parameters(), lr=5.0)

    def lr(progress: float) -> float:
        asked.append(progress)
        return 0.0

    before = [p.clone() for p in model.parameters()]
    quiet(model, x, y, lr=lr, optimizer=optimizer)
    assert asked == pytest.approx([step / 18 for step in range(18)])
    assert all(map(torch.equal, before, model.parameters()))


def test_a_given_optimizer_keeps_its_own_learning_rate() -> None:
    x, y = data()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    quiet(model, x, y, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_the_loss_is_the_mean_of_the_given_one() -> None:
    x, y = data(40)
    model = network().eval()
    model[1] = model[3] = nn.Identity()
    with torch.no_grad():
        expected = float(margin(model(x), y).mean())
    history = fit(model, x, y, epochs=1, batch_size=15, lr=0.0, loss=margin, progress=False)
    assert history.loss == pytest.approx([expected])


def stop_after(calls: int, error: type[BaseException]) -> Callable[..., Tensor]:
    count = iter(range(calls))

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        if next(count, None) is None:
            raise error
        return x

    return perturb


def test_an_interruption_keeps_what_is_finished() -> None:
    x, y = data()
    model = network().eval()
    before = weights(model)
    perturb = stop_after(15, KeyboardInterrupt)
    history = quiet(model, x, y, perturb=perturb, validation=(x, y))
    assert history.interrupted
    assert len(history.loss) == len(history.accuracy) == len(history.validation) == 2
    assert not all(map(torch.equal, before, weights(model)))
    assert not any(module.training for module in model.modules())


def test_an_interruption_in_the_validation_keeps_lists_of_one_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    x, y = data()
    monkeypatch.setattr(training, "evaluate", interrupt)
    history = quiet(network(), x, y, validation=(x, y))
    assert history.interrupted
    assert len(history.loss) == len(history.accuracy) == len(history.validation) == 0


@pytest.mark.parametrize("stop", [None, RuntimeError, FloatingPointError, KeyboardInterrupt])
def test_every_submodule_gets_its_mode_back(stop: type[BaseException] | None) -> None:
    x, y = data()
    model = network().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    perturb = stop_after(4, stop) if stop else None
    try:
        quiet(model, x, y, perturb=perturb)
    except (RuntimeError, FloatingPointError):
        assert stop is not None
    assert [module.training for module in model.modules()] == modes


def test_trains_in_training_mode() -> None:
    x, y = data()
    model = network().eval()
    quiet(model, x, y)
    assert not torch.equal(model[1].running_mean, torch.zeros(8))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_stops_the_training(value: float) -> None:
    x, y = data()
    model = network()
    model[1] = model[3] = nn.Identity()
    before = weights(model)
    with pytest.raises(FloatingPointError, match="epoch 1"):
        quiet(model, x, y, loss=lambda logits, labels: cross_entropy(logits, labels) * value)
    assert all(map(torch.equal, before, weights(model)))


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 0}, {"epochs": -1}])
def test_impossible_counts_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        fit(network(), *data(), **bad)


def test_the_bar_can_be_turned_off(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSEC_PROGRESS", "0")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    fit(network(), *data(), epochs=1)
    fit(network(), *data(), epochs=1, progress=False)
    assert capfd.readouterr() == ("", "")
    monkeypatch.delenv("MODELSEC_PROGRESS")
    fit(network(), *data(), epochs=1)
    assert "training" in capfd.readouterr().err


# --- evaluate -----------------------------------------------------------------------------------


def test_counts_what_is_right_with_its_interval() -> None:
    x, y = data(100)
    flipped = y.clone()
    flipped[::10] = 1 - flipped[::10]
    outcome = evaluate(lambda images: images[:, :1] * torch.tensor([-1.0, 1.0]) + torch.tensor(
        [1.0, 0.0]), x, flipped, batch_size=33)  # fmt: skip
    expected = (x[:, 0] > 0.5).long() == flipped
    assert torch.equal(outcome.correct, expected)
    assert outcome.correct.dtype == torch.bool
    assert (outcome.hits, outcome.n) == (int(expected.sum()), 100)
    interval = binomtest(outcome.hits, 100).proportion_ci(0.95, method="wilson")
    assert outcome.interval == pytest.approx(tuple(interval))


def test_evaluates_in_eval_mode_and_batch_by_batch() -> None:
    x, y = data(100)
    model = network().train()
    before = weights(model)
    outcomes = [evaluate(model, x, y, batch_size=size).correct for size in (1, 7, 100, 500)]
    assert all(torch.equal(outcomes[0], other) for other in outcomes[1:])
    assert model.training
    assert all(map(torch.equal, before, weights(model)))


def test_an_attack_is_given_the_model_the_labels_and_eval_mode() -> None:
    x, y = data(50)
    model, seen = network().train(), []

    def attack(given: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        seen.append((given is model, given.training, len(images), torch.is_grad_enabled()))
        assert torch.equal(labels, y[: len(labels)])
        return 1 - images

    attacked = evaluate(model, x, y, attack=attack)
    assert seen == [(True, False, 50, True)]
    assert torch.equal(attacked.correct, evaluate(model, 1 - x, y).correct)
    assert model.training


def test_accuracy_under_attack_is_never_higher() -> None:
    x, y = data(100)
    model = without_dropout()
    quiet(model, x, y, epochs=10, lr=0.02)
    clean = evaluate(model, x, y)
    attacked = evaluate(model, x, y, attack=partial(pgd, eps=0.5))
    assert attacked.hits < clean.hits
    assert (clean.correct | ~attacked.correct).all()


# --- inference ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_inference_undoes_what_it_did(error: type[BaseException] | None) -> None:
    model = network().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]

    def inside() -> None:
        with inference(model):
            assert not any(m.training for m in model.modules())
            assert not any(p.requires_grad for p in model.parameters())
            if error:
                raise error

    if error:
        with pytest.raises(error):
            inside()
    else:
        inside()
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes


def test_inference_leaves_plain_functions_alone() -> None:
    with inference(lambda x: x):
        pass
