"""Bounds on networks: nothing leaves them, the exact worst case lies between bound and attack."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from modelsec import data, losses, models, repair, training
from modelsec.attacks import autoattack, pgd
from modelsec.repair import certified, certified_radius, crown, exact_margins, ibp, margin_bounds
from modelsec.repair.layers import Bounds, linear_layers, spread
from modelsec.zoo import load_model

FEW = settings(max_examples=25, suppress_health_check=list(HealthCheck))
METHODS = ["ibp", "crown", "both"]


def random_net(seed: int, *, conv: bool, scale: float = 1.0, classes: int = 3) -> nn.Sequential:
    """A small untrained network on images (N, 2, 6, 6); weights as torch draws them, times scale."""
    layers: list[nn.Module] = [models.Normalize((0.4, 0.5), (0.3, 0.2))]
    if conv:
        layers += [
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 2, padding=1, groups=2, bias=False, dilation=2),
            nn.ReLU(),
        ]
    layers += [nn.Flatten()]
    wide = 2 * 6 * 6 if not conv else 4 * 3 * 3
    layers += [nn.Linear(wide, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 7), nn.ReLU()]
    build = nn.Sequential(nn.Sequential(*layers), nn.Identity(), nn.Linear(7, classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in build.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale / fan**0.5)
    return build.eval()


def images(seed: int, n: int = 3) -> Tensor:
    x = torch.rand(n, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.where(x < 0.2, 0.0, torch.where(x > 0.8, 1.0, x))  # some at the walls


def ball(x: Tensor, eps: float, n: int, seed: int) -> Tensor:
    """Points of the ball and box around each image: (n, N, ...), inner ones and corners."""
    generator = torch.Generator().manual_seed(seed)
    move = 2 * torch.rand(n, *x.shape, generator=generator) - 1
    move[::2] = move[::2].sign()
    return (x + eps * move).clamp(x - eps, x + eps).clamp(0, 1)


def margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """z_y minus the largest other logit, in float64."""
    return -losses.margin(wide(model)(x.double()), y)


def wide(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


@FEW
@given(
    seed=st.integers(0, 10_000),
    conv=st.booleans(),
    eps=st.sampled_from([0.0, 0.003, 0.05, 0.3, 1.0]),
    scale=st.sampled_from([0.3, 1.0, 3.0]),
)
def test_no_sampled_point_leaves_the_bounds(
    seed: int, conv: bool, eps: float, scale: float
) -> None:
    """2,000 points for each network, evaluated in float32, as an attacker would."""
    model, x = random_net(seed, conv=conv, scale=scale), images(seed)
    points = ball(x, eps, 2000, seed)
    with torch.no_grad():
        z = model(points.flatten(0, 1)).unflatten(0, (2000, 3)).double()
    y = z[0].argmax(1)
    for bounds in (ibp(model, x, eps=eps), crown(model, x, eps=eps)):
        assert bool((bounds.lower <= z).all() and (z <= bounds.upper).all())
    gaps = z.gather(2, y.expand(2000, 3)[..., None]) - z
    for method in METHODS:
        low = margin_bounds(model, x, y, eps=eps, method=method)
        assert bool((low.scatter(1, y[:, None], 0.0) <= gaps).all())


@FEW
@given(seed=st.integers(0, 10_000), eps=st.sampled_from([0.01, 0.1, 0.4]))
def test_no_inner_neuron_leaves_its_bounds(seed: int, eps: float) -> None:
    from modelsec.repair.bounds import relu_bounds

    model, x = random_net(seed, conv=True).double(), images(seed, 2).double()
    layers = linear_layers(model)
    inner = relu_bounds(layers, Bounds((x - eps).clamp(0, 1), (x + eps).clamp(0, 1)))
    z = ball(x, eps, 300, seed).flatten(0, 1)
    for layer, bounds in zip([*layers, None], inner, strict=True):
        seen = z.unflatten(0, (300, 2))
        assert bool((bounds.lower <= seen + 1e-9).all() and (seen - 1e-9 <= bounds.upper).all())
        z = z.relu() if layer is None else layer.times(z) + layer.bias


@settings(FEW, max_examples=8)
@given(seed=st.integers(0, 10_000), eps=st.sampled_from([0.05, 0.2, 0.5]))
def test_the_exact_worst_case_lies_between_every_bound_and_every_attack(
    seed: int, eps: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    x = torch.rand(2, 1, 2, 2, generator=generator)
    y = model(x).argmax(1)
    exact = exact_margins(model, x, y, eps=eps)
    for method in METHODS:
        below = margin_bounds(model, x, y, eps=eps, method=method).amin(1)
        assert bool((below <= exact.margin + 1e-9).all())
    assert torch.allclose(margins(model, exact.point, y), exact.margin, atol=1e-6)
    assert bool(((exact.point - x).abs() <= eps + 1e-6).all())
    assert float(exact.point.min()) >= 0
    assert float(exact.point.max()) <= 1
    attacked = pgd(model, x, y, eps=eps, restarts=3, early_stop=False, generator=generator)
    sampled = margins(model, ball(x, eps, 500, seed).flatten(0, 1), y.repeat(500))
    found = torch.minimum(margins(model, attacked, y), sampled.view(500, 2).amin(0))
    assert bool((exact.margin <= found + 1e-6).all())
    proven = certified(model, x, y, eps=eps)
    assert bool((exact.margin[proven] > 0).all())


@settings(max_examples=100)
@given(seed=st.integers(0, 100_000), units=st.integers(1, 8))
def test_on_one_pixel_the_extremes_are_at_kinks_and_ends_and_within_the_bounds(
    seed: int, units: int
) -> None:
    """A sum of ReLUs of one pixel is made of straight pieces: its extremes are known."""
    generator = torch.Generator().manual_seed(seed)
    kinks, slopes = (torch.rand(units, generator=generator).double() for _ in range(2))
    slopes = (4 * slopes - 2).where(slopes.abs() > 0.1, 1.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, units), nn.ReLU(), nn.Linear(units, 2))
    model = model.double()
    with torch.no_grad():
        model[1].weight[:, 0], model[1].bias[:] = slopes, -slopes * kinks
        model[3].weight.copy_(torch.randn(2, units, generator=generator))
        model[3].bias.zero_()
    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    eps = float(torch.rand(1, generator=generator)) / 2
    ends = torch.tensor([0.5 - eps, 0.5 + eps], dtype=torch.float64)
    where = torch.cat([ends, kinks[(kinks - 0.5).abs() <= eps]])
    z = model(where.view(-1, 1, 1, 1)).detach()
    for bounds in (ibp(model, x, eps=eps), crown(model, x, eps=eps)):
        assert bool((bounds.lower[0] <= z.amin(0) + 1e-12).all())
        assert bool((bounds.upper[0] >= z.amax(0) - 1e-12).all())
    if units == 1:  # nothing is lost on one ReLU by a box, nor by its upper line
        assert torch.allclose(ibp(model, x, eps=eps).lower[0], z.amin(0), atol=1e-9)


def test_exact_enumeration_finds_what_a_grid_finds() -> None:
    """In two dimensions the worst case can be seen: it is a hair below the best of a fine grid."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double())
    x, y = torch.tensor([[[[0.5, 0.4]]]]).double(), torch.tensor([1])
    steps = torch.linspace(-0.3, 0.3, 401).double()
    grid = torch.cartesian_prod(steps, steps).view(-1, 1, 1, 2) + x
    best = margins(model, grid, y.expand(len(grid))).min()
    exact = exact_margins(model, x, y, eps=0.3)
    assert exact.patterns.item() >= 8
    assert 0 <= best - exact.margin.item() < 0.02


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_model_has_the_closed_form(method: str) -> None:
    """The margin falls by eps times the l1 norm of the difference of two rows."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    x = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    y, eps = model(x).argmax(1), 0.07
    found = margin_bounds(model, x, y, eps=eps, method=method, box=False)
    w = model[1].weight
    cost = eps * (w[y][:, None] - w).abs().sum(2)
    z = model(x)
    wanted = (z.gather(1, y[:, None]) - z - cost).scatter(1, y[:, None], torch.inf)
    assert torch.allclose(found, wanted, atol=1e-9)
    low, high = ibp(model, x, eps=eps, box=False)
    assert torch.allclose(high - low, (2 * eps * w.abs().sum(1)).expand(5, -1), atol=1e-9)
    assert torch.allclose(crown(model, x, eps=eps, box=False).lower, low, atol=1e-9)


def test_the_box_makes_bounds_tighter_and_no_attack_needs_more() -> None:
    model, x = random_net(3, conv=True), images(3)
    inside, whole = ibp(model, x, eps=0.4), ibp(model, x, eps=0.4, box=False)
    assert bool((inside.lower >= whole.lower).all() and (inside.upper <= whole.upper).all())
    assert not torch.allclose(inside.lower, whole.lower)


def test_crown_is_mostly_but_not_always_tighter_than_ibp() -> None:
    """Both happen, so the meet of both is what one takes."""
    tighter, looser = 0, 0
    for seed in range(30):
        model, x = random_net(seed, conv=False), images(seed)
        a, b = ibp(model, x, eps=0.1), crown(model, x, eps=0.1)
        tighter += int((b.lower > a.lower + 1e-6).sum())
        looser += int((b.lower < a.lower - 1e-6).sum())
        both = a.meet(b)
        assert bool((both.lower >= a.lower).all() and (both.upper <= b.upper).all())
    assert tighter > 3 * looser > 0


def test_margins_are_tighter_than_bounds_of_single_logits() -> None:
    model, x = random_net(5, conv=False), images(5)
    y = model(x).argmax(1)
    low, high = ibp(model, x, eps=0.05)
    apart = low.gather(1, y[:, None]) - high
    together = margin_bounds(model, x, y, eps=0.05, method="ibp")
    others = torch.ones_like(apart, dtype=torch.bool).scatter(1, y[:, None], False)
    assert bool((together[others] > apart[others]).all())


@pytest.mark.parametrize("name", ["net", "convnet"])
def test_certificates_and_attacks_never_cross(name: str) -> None:
    """Sample by sample, and the two share what is between them."""
    digits, model = data.mnist(), load_model(name)
    n = 40 if name == "net" else 4
    x, y = digits.x_test[:n], digits.y_test[:n]
    for eps in (0.0, 0.01, 0.04) if name == "net" else (0.0, 0.02):
        proven = certified(model, x, y, eps=eps)
        generator = torch.Generator().manual_seed(0)
        stands = training.evaluate(
            model, pgd(model, x, y, eps=eps, restarts=2, generator=generator), y
        ).correct
        assert not bool((proven & ~stands).any())
        if not eps:
            assert torch.equal(proven, stands)
    if name == "net":
        one = certified_radius(model, x[:4], y[:4], most=0.25, halvings=6)
        assert bool((one > 0).any())
        report = autoattack(
            model, x[:4], y[:4], eps=one, queries=200, progress=False,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert bool(report.stands[one > 0].all())


def test_the_certified_radius_is_certified_and_a_little_more_is_not() -> None:
    digits, model = data.mnist(), load_model("net")
    x, y = digits.x_test[:12], digits.y_test[:12]
    for method in ("ibp", "both"):
        radius = certified_radius(model, x, y, most=0.5, halvings=8, method=method)
        right = model(x).argmax(1) == y
        assert bool((radius[~right] == 0).all())
        assert bool(certified(model, x, y, eps=radius, method=method)[radius > 0].all())
        more = certified(model, x, y, eps=radius + 0.5 / 2**8, method=method)
        assert not bool(more.any())


def test_a_radius_per_image_is_as_one_image_at_a_time() -> None:
    model, x = random_net(7, conv=True), images(7)
    y = model(x).argmax(1)
    eps = torch.tensor([0.0, 0.05, 0.2])
    together = crown(model, x, eps=eps)
    proven = certified(model, x, y, eps=eps)
    for k in range(3):
        alone = crown(model, x[k : k + 1], eps=float(eps[k]))
        assert torch.allclose(together.lower[k : k + 1], alone.lower, atol=1e-9)
        same = certified(model, x[k : k + 1], y[k : k + 1], eps=float(eps[k]))
        assert bool(same) == bool(proven[k])


def test_a_model_of_any_precision_and_layout_and_no_image_at_all() -> None:
    model, x = random_net(8, conv=True), images(8)
    y = model(x).argmax(1)
    plain = crown(model, x, eps=0.05)
    last = crown(model, x.to(memory_format=torch.channels_last), eps=0.05)
    assert torch.allclose(plain.lower, last.lower)
    narrow = ibp(random_net(8, conv=True).bfloat16(), x.bfloat16(), eps=0.05)
    z = random_net(8, conv=True).bfloat16()(x.bfloat16()).double()
    assert bool((narrow.lower <= z).all() and (z <= narrow.upper).all())
    for method in METHODS:
        assert margin_bounds(model, x[:0], y[:0], eps=0.1, method=method).shape == (0, 3)
        assert certified(model, x[:0], y[:0], eps=0.1, method=method).shape == (0,)
    assert exact_margins(model, x[:0], y[:0], eps=0.1).margin.shape == (0,)
    assert crown(random_net(8, conv=False, classes=2), x[:1], eps=0.1).lower.shape == (1, 2)


def test_the_model_is_left_alone_and_nothing_is_drawn() -> None:
    model, x = random_net(9, conv=True).train(), images(9)
    y = torch.zeros(3, dtype=torch.long)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    certified(model, x, y, eps=0.1)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("device", ["meta", "fake cuda"])
def test_every_tensor_is_made_on_the_images_device(device: str) -> None:
    def run(where: str) -> None:
        with torch.device(where):
            model = models.ConvNet(channels=2, size=8, mean=(0.0, 0.0), std=(1.0, 1.0))
        x = torch.rand(2, 2, 8, 8, device=where)
        y = torch.zeros(2, dtype=torch.long, device=where)
        assert crown(model, x, eps=0.1).lower.device.type == where
        assert certified(model, x, y, eps=0.1).device.type == where
        assert certified_radius(model, x, y, halvings=1).device.type == where

    if device == "meta":
        run("meta")
    else:
        with FakeTensorMode():
            run("cuda")


class Squared(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


class Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Sigmoid()), "Sigmoid"),
        (nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)), "BatchNorm2d"),
        (nn.Sequential(nn.Flatten(), Squared(72, 3)), "Squared"),
        (nn.Sequential(Skip(nn.ReLU()), nn.Flatten(), nn.Linear(72, 3)), "Skip"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding="same"), nn.Flatten()), "Conv2d"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), "circular"),
        (lambda x: x.flatten(1), "function"),
    ],
)
def test_other_layers_are_named_and_refused(model: nn.Module, named: str) -> None:
    x, y = images(0), torch.zeros(3, dtype=torch.long)
    for ask in (
        lambda: ibp(model, x, eps=0.1),
        lambda: crown(model, x, eps=0.1),
        lambda: certified(model, x, y, eps=0.1),
        lambda: exact_margins(model, x, y, eps=0.1),
    ):
        with pytest.raises(TypeError, match=f"bounds are for an nn.Sequential.*got .*{named}"):
            ask()


def change(**options: object) -> Callable[[], object]:
    given = {"model": random_net(0, conv=False), "x": images(0), "y": torch.tensor([0, 1, 2])}
    return lambda: certified(**(given | {"eps": 0.1} | options))


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (change(eps=-0.1), ValueError, "eps must be finite and 0 or more"),
        (change(eps=8), ValueError, "write 8 / 255"),
        (change(eps=torch.ones(2)), ValueError, r"of shape \(3,\)"),
        (change(x=images(0) * 255), ValueError, "divide by 255"),
        (change(x=images(0) * torch.nan), ValueError, "NaN"),
        (change(y=torch.tensor([0, 1, 3])), ValueError, "labels must be 0 to 2"),
        (change(y=torch.eye(3).long()), ValueError, "not one-hot"),
        (change(method="lp"), ValueError, "method must be one of"),
        (change(x="x"), TypeError, "x must be a torch.Tensor"),
    ],
)
def test_bad_input_is_named(
    ask: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask()


def test_weights_that_are_nan_and_networks_too_large_to_enumerate() -> None:
    model, x, y = random_net(0, conv=False), images(0), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="at most 3 can be enumerated"):
        exact_margins(model, x, y, eps=0.5, most=3)
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    with pytest.raises(ValueError, match="NaN bounds"):
        certified(model, x, y, eps=0.1)


def test_spread_is_differentiable_and_keeps_the_dtype() -> None:
    model, x = random_net(0, conv=True), images(0)
    region = Bounds(x - 0.1, x + 0.1)
    for layer in linear_layers(model):
        region = spread(layer, region)
    assert region.lower.dtype == torch.float32
    region.lower.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_ibp_training_certifies_what_standard_training_does_not() -> None:
    digits = data.mnist()
    half = digits.x_train[:600], digits.y_train[:600]
    x, y = digits.x_test[:150], digits.y_test[:150]
    found = {}
    for name, options in (("standard", {}), ("ibp", repair.ibp_training(eps=0.06))):
        model = models.fresh(lambda: models.Net((784, 32, 10)), torch.Generator().manual_seed(0))
        training.fit(
            model, *half, epochs=30, lr=3e-3, progress=False,
            generator=torch.Generator().manual_seed(0), **options,
        )  # fmt: skip
        found[name] = (
            training.evaluate(model, x, y).value,
            certified(model, x, y, eps=0.06, method="ibp").float().mean().item(),
        )
    assert found["standard"][1] < 0.1
    assert found["ibp"][1] > 0.4
    assert found["ibp"][0] > 0.7


def test_ibp_training_follows_its_schedule() -> None:
    model, x = random_net(0, conv=False), images(0)
    y = torch.tensor([0, 1, 2])
    method = repair.ibp_training(eps=0.2, kappa=0.25, warm_up=0.5, ramp=0.75)
    clean = losses.cross_entropy(model(x), y)

    def at(progress: float) -> Tensor:
        assert method["perturb"](model, x, y, progress) is x
        return method["loss"](model(x), y)

    assert torch.allclose(at(0.3), clean)
    assert torch.allclose(at(0.5), clean)
    halfway = -margin_bounds(model, x, y, eps=0.1, method="ibp").scatter(1, y[:, None], 0.0)
    wanted = 0.625 * clean + 0.375 * losses.cross_entropy(halfway.float(), y)
    assert torch.allclose(at(0.625), wanted, atol=1e-4)
    worst = -margin_bounds(model, x, y, eps=0.2, method="ibp").scatter(1, y[:, None], 0.0)
    wanted = 0.25 * clean + 0.75 * losses.cross_entropy(worst.float(), y)
    assert torch.allclose(at(0.75), wanted, atol=1e-4)
    assert torch.allclose(at(1.0), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "eps must be finite"),
        ({"eps": 0.1, "kappa": 1.5}, "kappa=1.5"),
        ({"eps": 0.1, "warm_up": 0.6}, "warm_up=0.6"),
        ({"eps": 0.1, "ramp": 1.1}, "ramp=1.1"),
    ],
)
def test_ibp_training_refuses_impossible_schedules(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        repair.ibp_training(**options)


def test_ibp_training_takes_an_augmentation_but_no_soft_targets() -> None:
    model, x, y = random_net(0, conv=False), images(0), torch.tensor([0, 1, 2])
    darker = repair.ibp_training(eps=0.1, augment=lambda model, x, y, progress: x / 2)
    assert torch.equal(darker["perturb"](model, x, y, 1.0), x / 2)
    soft = repair.ibp_training(eps=0.1, augment=lambda model, x, y, progress: (x, x))
    with pytest.raises(TypeError, match="soft targets"):
        soft["perturb"](model, x, y, 1.0)
