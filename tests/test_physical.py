"""Universal perturbation and patch: what they may change, whom they leave alone, and that they find what is there."""

from typing import Any

import pytest
import torch
from attack_cases import Case, assert_same_state, state, two_class_linear
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.attacks import Placement, Places, apply_patch, patch, universal
from modelsec.losses import cross_entropy, log_odds, margin
from modelsec.training import evaluate
from modelsec.zoo import load_model

few = settings(max_examples=25)
norms = pytest.mark.parametrize("norm", ["linf", "l2"])
QUICK: dict[Any, dict[str, Any]] = {
    universal: {"eps": 0.2, "epochs": 2, "batch_size": 4},
    patch: {"size": 3, "steps": 3, "batch_size": 4, "placement": Placement((0.4, 0.8))},
}
both = pytest.mark.parametrize("attack", QUICK, ids=lambda f: f.__name__)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(kind: str = "conv", dtype: torch.dtype = torch.float64, n: int = 10) -> Case:
    return Case(kind, (3, 8, 8), 4, n, 0.2, dtype, False, 5)


def at(
    n: int, scale: float, angle: float = 0.0, centre: tuple[float, float] = (0.5, 0.5)
) -> Places:
    return Places(torch.full((n,), scale), torch.full((n,), angle), torch.tensor([centre] * n))


# --- sticking a patch on --------------------------------------------------------------------------


@few
@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(1, 8, 8), (3, 9, 14), (2, 20, 7)]),
    scale=st.floats(0.05, 1),
    angle=st.floats(-180, 180),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_what_is_not_under_the_patch_stays_exactly_as_it_is(
    seed: int, shape: tuple[int, int, int], scale: float, angle: float, dtype: torch.dtype
) -> None:
    x = torch.rand(4, *shape, generator=seeded(seed)).to(dtype)
    sticker = torch.rand(shape[0], 5, 5, generator=seeded(seed + 1)).to(dtype)
    places = Placement((scale, scale), (angle, angle)).draw(x, seeded(seed + 2))
    before = x.clone()
    patched = apply_patch(x, sticker, places)
    assert torch.equal(x, before)
    assert (patched.shape, patched.dtype) == (x.shape, dtype)
    assert 0 <= patched.min() <= patched.max() <= 1
    side = scale * min(shape[1:])
    # a pixel's middle lies under the square if both of its turned coordinates do: counted by hand
    turn = torch.tensor(angle, dtype=torch.float64).deg2rad()
    for image, there, (top, left) in zip(x, patched, places.centre.tolist(), strict=True):
        for i in range(shape[1]):
            for j in range(shape[2]):
                down, right = i + 0.5 - top * shape[1], j + 0.5 - left * shape[2]
                across = float(right * turn.cos() - down * turn.sin())
                along = float(right * turn.sin() + down * turn.cos())
                if max(abs(across), abs(along)) > side / 2 + 1e-3:
                    assert torch.equal(there[:, i, j], image[:, i, j])
        inside = (there != image).any(0).sum()
        assert inside <= (side + 1.5) ** 2


def test_unturned_and_at_its_own_size_the_patch_is_seen_pixel_by_pixel() -> None:
    x = torch.rand(2, 3, 12, 12, generator=seeded())
    sticker = torch.rand(3, 6, 6, generator=seeded(1))
    patched = apply_patch(x, sticker, at(2, 0.5, centre=(0.25, 0.75)))
    assert torch.allclose(patched[:, :, :6, 6:], sticker.expand(2, -1, -1, -1), atol=1e-6)
    assert torch.equal(patched[:, :, 6:], x[:, :, 6:])
    assert torch.equal(patched[:, :, :, :6], x[:, :, :, :6])


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_counter_clockwise(quarters: int) -> None:
    x, sticker = torch.zeros(1, 1, 6, 6), torch.rand(1, 6, 6, generator=seeded())
    turned = apply_patch(x, sticker, at(1, 1.0, 90.0 * quarters))
    assert torch.allclose(turned[0], sticker.rot90(quarters, (1, 2)), atol=1e-5)


def test_gradients_reach_patch_and_images() -> None:
    x = torch.rand(3, 2, 7, 7, generator=seeded(), dtype=torch.float64).requires_grad_()
    sticker = torch.rand(2, 4, 4, generator=seeded(1), dtype=torch.float64).requires_grad_()
    places = Placement((0.5, 0.7), (-40, 40)).draw(x, seeded(2))
    assert torch.autograd.gradcheck(lambda a, b: apply_patch(a, b, places), (x, sticker))


@few
@given(
    seed=st.integers(0, 1000),
    low=st.floats(0.05, 0.7),
    wide=st.floats(0, 0.3),
    most=st.floats(0, 180),
    shape=st.sampled_from([(3, 8, 8), (1, 9, 20)]),
)
def test_places_keep_to_their_ranges_and_the_whole_patch_is_seen(
    seed: int, low: float, wide: float, most: float, shape: tuple[int, int, int]
) -> None:
    x = torch.zeros(50, *shape)
    with global_generators_untouched():
        places = Placement((low, low + wide), (-most, most)).draw(x, seeded(seed))
        again = Placement((low, low + wide), (-most, most)).draw(x, seeded(seed))
    assert all(map(torch.equal, places, again))
    assert (places.scale >= low - 1e-6).all()
    assert (places.scale <= low + wide + 1e-6).all()
    assert (places.angle.abs() <= most + 1e-4).all()
    turn = places.angle.double().deg2rad()
    reach = places.scale / 2 * (turn.cos().abs() + turn.sin().abs()) * min(shape[1:])
    for side, centre in zip(shape[1:], places.centre.double().T, strict=True):
        fits = reach <= side / 2
        assert (centre * side - reach >= -1e-4)[fits].all()
        assert (centre * side + reach <= side + 1e-4)[fits].all()
        assert (centre[~fits] == 0.5).all()


def test_places_differ_between_images_and_use_the_room() -> None:
    places = Placement((0.2, 0.4), (-90, 90)).draw(torch.zeros(400, 1, 10, 10), seeded())
    assert places.scale.std() > 0.05
    assert places.angle.std() > 40
    assert (places.centre.amin(0) < 0.2).all()
    assert (places.centre.amax(0) > 0.8).all()


# --- universal ------------------------------------------------------------------------------------


@norms
@few
@given(
    seed=st.integers(0, 1000),
    eps=st.sampled_from([0.0, 0.05, 0.7]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    step=st.sampled_from([None, 0.3]),
)
def test_the_change_is_no_larger_than_eps(
    norm: str, seed: int, eps: float, dtype: torch.dtype, step: float | None
) -> None:
    scene = Case("conv", (3, 8, 8), 4, 9, eps, dtype, False, seed)
    (x, y), before = scene.batch(), scene.batch()[0]
    change = universal(
        scene.module(), x, y, eps=eps, norm=norm, epochs=3, batch_size=4, step_size=step,
        generator=scene.generator,
    )  # fmt: skip
    assert (change.shape, change.dtype) == ((3, 8, 8), dtype)
    size = change.abs().amax() if norm == "linf" else change.norm()
    assert size <= eps + 1e-6
    assert change.isfinite().all()
    assert torch.equal(x, before)


@norms
@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_model_the_best_change_is_found(norm: str, targeted: bool) -> None:
    """All images agree on it: along the weights."""
    model, w = two_class_linear(20)
    x = torch.rand(12, 20, dtype=torch.float64, generator=seeded()) * 0.2 + 0.4
    y = torch.ones(12).long() if targeted else torch.zeros(12).long()
    best = 0.1 * (w.sign() if norm == "linf" else w / w.norm())
    change = universal(
        model, x, y, eps=0.1, norm=norm, targeted=targeted, epochs=30, batch_size=12, cap=100.0,
        generator=seeded(),
    )  # fmt: skip
    assert torch.allclose(change, best, atol=1e-6)


def test_images_that_are_lost_do_not_count() -> None:
    """One image pulls the other way a hundred times as hard, but it is fooled already."""

    def model(x: Tensor) -> Tensor:
        lead = torch.where(x[:, :1] < 0.1, 20 - 100 * x[:, 1:], x[:, 1:] - 0.5)
        return torch.cat([torch.zeros_like(lead), lead], 1)

    x, y = torch.tensor([[0.0, 0.0], [0.5, 0.4]]), torch.zeros(2).long()
    options = {"eps": 0.05, "norm": "l2", "epochs": 5, "batch_size": 2, "loss": margin}
    assert universal(model, x, y, **options, cap=9.0)[1] > 0.04
    assert universal(model, x, y, **options, cap=1e6)[1] < 0.01


def test_a_clipped_pixel_may_come_back() -> None:
    """Half of the images are black: there a darker pixel has no slope of its own, yet it counts."""
    model, w = two_class_linear(6, torch.float32)
    x = torch.cat([torch.zeros(8, 6), torch.full((8, 6), 0.5)])
    y = torch.zeros(16).long()
    change = universal(model, x, y, eps=0.1, epochs=20, batch_size=16, cap=100.0)
    assert torch.allclose(change, 0.1 * w.sign(), atol=1e-5)


def test_one_change_fools_many_digits_that_it_never_saw() -> None:
    from modelsec.data import mnist

    digits, net = mnist(), load_model("net")
    x, y = digits.x_test[:300], digits.y_test[:300]
    train = digits.x_train[:500], digits.y_train[:500]
    change = universal(net, *train, eps=0.2, epochs=4, generator=seeded())
    signs = 0.2 * (torch.rand(change.shape, generator=seeded()) - 0.5).sign()
    left, by_chance = (evaluate(net, (x + delta).clamp(0, 1), y).value for delta in (change, signs))
    assert left < by_chance - 0.3


# --- patch ----------------------------------------------------------------------------------------


@few
@given(seed=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_patch_is_made_of_pixels(seed: int, dtype: torch.dtype) -> None:
    scene = Case("conv", (3, 8, 8), 4, 9, 0.0, dtype, False, seed)
    x, y = scene.batch()
    before = x.clone()
    made = patch(scene.module(), x, y, step_size=0.4, **QUICK[patch], generator=scene.generator)
    assert (made.shape, made.dtype) == ((3, 3, 3), dtype)
    assert 0 <= made.min() <= made.max() <= 1
    assert not made.requires_grad
    assert torch.equal(x, before)


@pytest.mark.parametrize("targeted", [True, False])
def test_on_a_linear_model_the_patch_becomes_all_black_or_all_white(targeted: bool) -> None:
    """The model sums up all pixels, so wherever the patch lies, brighter is better."""

    def model(x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([0 * total, total - 30], 1)

    x = torch.rand(6, 1, 10, 10, generator=seeded())
    y = torch.ones(6).long() if targeted else torch.zeros(6).long()
    made = patch(
        model, x, y, size=4, steps=30, step_size=0.2, targeted=targeted, loss=margin,
        generator=seeded(),
    )  # fmt: skip
    assert torch.allclose(made, torch.ones_like(made), atol=1e-6)


def test_a_patch_steers_images_that_it_never_saw_wherever_it_lies() -> None:
    from modelsec.data import mnist

    digits, net = mnist(), load_model("convnet")
    train, test = digits.x_train[:200], digits.x_test[:200]
    placement = Placement((0.55, 0.6), (-30, 30))
    target = torch.full((200,), 2)
    made = patch(
        net, train, target, size=12, steps=60, batch_size=32, placement=placement,
        step_size=0.1, generator=seeded(),
    )  # fmt: skip
    grey = torch.full_like(made, 0.5)
    places = placement.draw(test, seeded(1))
    hit, by_grey = (
        evaluate(net, apply_patch(test, sticker, places), target).value for sticker in (made, grey)
    )
    assert hit > 0.5
    assert hit > by_grey + 0.3


def test_a_view_is_part_of_what_the_patch_is_trained_for() -> None:
    """Seen through a negative, bright is dark."""

    def model(x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([0 * total, total - 30], 1)

    asked: list[Any] = []

    def negative(images: Tensor, generator: Any) -> Tensor:
        asked.append(generator)
        return 1 - images

    x, g = torch.rand(6, 1, 10, 10, generator=seeded()), seeded()
    options = {"size": 4, "steps": 30, "step_size": 0.2, "loss": margin, "generator": g}
    made = patch(model, x, torch.ones(6).long(), view=negative, **options)
    assert torch.allclose(made, torch.zeros_like(made), atol=1e-6)
    assert len(asked) == 30
    assert all(generator is g for generator in asked)


def test_it_begins_where_it_is_told() -> None:
    x, y = case().batch()
    start = torch.rand(3, 3, 3, generator=seeded(), dtype=torch.float64)
    options = QUICK[patch] | {"steps": 1, "step_size": 1e-9}
    made = patch(case().module(), x, y, start=start, **options)
    assert torch.allclose(made, start, atol=1e-8)
    grey = patch(case().module(), x, y, **options)
    assert torch.allclose(grey, torch.full_like(grey, 0.5), atol=1e-8)


# --- both -----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kind", ["mlp", "conv", "nan gradient"])
def test_the_model_comes_back_as_it_was(attack: Any, kind: str) -> None:
    scene = case(kind)
    model = scene.module()
    before = state(model)
    made = attack(model, *scene.batch(), **QUICK[attack], generator=seeded())
    assert_same_state(before, state(model))
    assert made.isfinite().all()


@both
def test_a_generator_gives_the_same_bytes_again_and_another_one_others(attack: Any) -> None:
    scene = case()
    with global_generators_untouched():
        first, again, other = (
            attack(scene.module(), *scene.batch(), **QUICK[attack], generator=seeded(seed))
            for seed in (0, 0, 1)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(first, attack(scene.module(), *scene.batch(), **QUICK[attack]))


@both
def test_the_gradient_is_summed_over_the_batch_not_averaged(attack: Any) -> None:
    seen: list[Tensor] = []

    def watched(logits: Tensor, y: Tensor) -> Tensor:
        value = log_odds(logits, y)
        value.register_hook(seen.append)
        return value

    attack(case().module(), *case(n=4).batch(), **QUICK[attack], loss=watched, generator=seeded())
    assert seen
    for weight in seen:
        assert weight.abs().tolist() == [1.0] * 4


@both
def test_the_model_is_shown_images_only(attack: Any) -> None:
    seen: list[Tensor] = []
    scene = case("mlp")
    inside = scene.module().eval()

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return inside(x)

    attack(watched, *scene.batch(), **QUICK[attack] | {"step_size": 0.4}, generator=seeded())
    assert all(0 <= x.min() <= x.max() <= 1 for x in seen)
    assert (torch.stack([x.max() for x in seen]) == 1).any()


@both
def test_every_image_is_used_before_one_is_used_again(attack: Any) -> None:
    rows: list[int] = []
    options = QUICK[attack] | ({"steps": 6} if attack is patch else {})
    attack(
        case().module(), *case().batch(), **options, generator=seeded(),
        callback=lambda point: rows.extend(point.rows.tolist()),
    )  # fmt: skip
    assert sorted(rows[:10]) == sorted(rows[10:20]) == list(range(10))
    assert rows[:10] != rows[10:20]


@both
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_in_every_gradient_mode(attack: Any, mode: Any) -> None:
    model = case().module()
    usual = attack(model, *case().batch(), **QUICK[attack], generator=seeded())
    with mode():
        x, y = case().batch()
        assert torch.equal(usual, attack(model, x, y, **QUICK[attack], generator=seeded()))


@both
def test_plain_functions_and_bfloat16_models_are_attacked(attack: Any) -> None:
    inside = case(dtype=torch.float32).module().eval().bfloat16()
    for dtype in (torch.float32, torch.bfloat16):
        x, y = case(dtype=torch.float32).batch()
        made = attack(
            lambda z: inside(z.bfloat16()), x.to(dtype), y, **QUICK[attack], generator=seeded()
        )
        assert made.dtype == dtype
        assert made.isfinite().all()


@both
def test_a_batch_of_none_gives_the_start_and_one_image_is_enough(attack: Any) -> None:
    x, y = case().batch()
    none = attack(case().module(), x[:0], y[:0], **QUICK[attack])
    assert (none == (0.5 if attack is patch else 0)).all()
    one = attack(case().module(), x[:1], y[:1], **QUICK[attack])
    assert not torch.equal(one, none)


@both
def test_two_classes_are_enough(attack: Any) -> None:
    scene = Case("mlp", (3, 8, 8), 2, 6, 0.1, torch.float32, False, 3)
    for loss in (log_odds, cross_entropy, margin):
        assert attack(scene.module(), *scene.batch(), **QUICK[attack], loss=loss).isfinite().all()


@both
def test_it_runs_on_the_meta_device(attack: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).to("meta")
    x, y = torch.rand(5, 3, 8, 8, device="meta"), torch.zeros(5, dtype=torch.long, device="meta")
    assert attack(model, x, y, **QUICK[attack]).device.type == "meta"


X, Y = torch.rand(4, 3, 8, 8, generator=seeded()), torch.zeros(4, dtype=torch.long)


@both
@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (X * 255, Y, ["[0, 1]", "255"]),
        (X, Y + 9, ["labels"]),
        (X, Y.float(), ["integer"]),
        (X.where(X > 0.1, torch.nan), Y, ["NaN"]),
        (X, Y[:2], ["shape"]),
    ],
)
def test_bad_images_and_labels_get_one_clear_error(
    attack: Any, x: Tensor, y: Tensor, words: list[str]
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        attack(case(dtype=torch.float32).module(), x, y, **QUICK[attack])
    assert all(word in str(caught.value) for word in words)


@both
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: (x.flatten(1),), "tuple"),
        (lambda x: x.flatten(1) * torch.nan, "NaN logits"),
        (lambda x: x.detach().flatten(1), "BPDA"),
    ],
)
def test_models_that_can_not_be_attacked_are_named(attack: Any, model: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        attack(model, X, Y, **QUICK[attack])


BAD = [
    (universal, {"eps": -1}, "eps"),
    (universal, {"eps": 8}, "8 / 255"),
    (universal, {"eps": torch.tensor([0.1, 0.2, 0.1, 0.1])}, "eps"),
    (universal, {"epochs": 0}, "epochs"),
    (universal, {"norm": "l1"}, "norm"),
    (universal, {"step_size": 0}, "step_size"),
    (patch, {"size": 0}, "size"),
    (patch, {"steps": 1.5}, "steps"),
    (patch, {"step_size": -0.1}, "step_size"),
    (patch, {"start": torch.zeros(3, 9, 9)}, "start"),
]


@pytest.mark.parametrize(
    ("attack", "different", "word"),
    BAD,
    ids=[f"{attack.__name__}-{next(iter(different))}-{word}" for attack, different, word in BAD],
)
def test_bad_options_get_one_clear_error(attack: Any, different: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        attack(case(dtype=torch.float32).module(), X, Y, **QUICK[attack] | different)


@pytest.mark.parametrize(
    "ranges",
    [
        {"scale": (0.0, 0.5)},
        {"scale": (0.5, 0.4)},
        {"scale": (0.5, 1.1)},
        {"angle": (10, -10)},
        {"angle": (-400, 0)},
    ],
)
def test_impossible_placements_are_refused(ranges: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(ranges))):
        Placement(**ranges)


def test_what_does_not_fit_can_not_be_stuck_on() -> None:
    for sticker in (torch.rand(1, 4, 4), torch.rand(3, 4, 5), torch.rand(4, 4)):
        with pytest.raises(ValueError, match="patch must have shape"):
            apply_patch(X, sticker, at(4, 0.5))
    with pytest.raises(ValueError, match="places must be of 4 images"):
        apply_patch(X, torch.rand(3, 4, 4), at(3, 0.5))
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        apply_patch(X[0], torch.rand(3, 4, 4), at(3, 0.5))
    with pytest.raises(TypeError, match="floating-point"):
        apply_patch(X, torch.zeros(3, 4, 4, dtype=torch.uint8), at(4, 0.5))
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        patch(lambda x: x, torch.rand(2, 5), Y[:2])
