"""Device discipline, tested without a GPU; and with one, where there is one.

On torch's ``meta`` device tensors have shapes and no values, and mixing them with a CPU tensor raises.
Under FakeTensorMode a device named "cuda" is imitated, and a layer whose weights lie elsewhere raises as well.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from attack_cases import PAIRS, attack, pairs
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from modelsec import driving, losses
from modelsec.attacks.common import Iterate
from modelsec.attacks.norms import NORMS, per_sample
from modelsec.models import ConvNet, Net, Normalize
from modelsec.training import evaluate
from modelsec.zoo import load_model

LOSSES = [losses.cross_entropy, losses.log_odds, losses.margin, losses.dlr]
MODELS = [
    (Net, (1, 28)),
    (ConvNet, (1, 28)),
    (lambda: ConvNet(3, 32, 7, (0.5,) * 3, (0.2,) * 3), (3, 32)),
]
IDS = ["Net", "ConvNet", "ConvNet in colour"]


@pytest.fixture(params=["meta", "fake cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device on which the test runs, in the mode that it needs."""
    if request.param == "meta":
        yield "meta"
        return
    # torch's backward pass asks for a real CUDA context: gradients of the right kind stand in
    monkeypatch.setattr(torch.autograd, "grad", lambda y, x, **_: (torch.zeros_like(x),))
    with FakeTensorMode():
        yield "cuda"


def build(make: Callable[[], nn.Module], device: str) -> nn.Module:
    with torch.device(device):
        return make()


def images(device: str, channels: int = 1, size: int = 28) -> Tensor:
    return torch.rand(4, channels, size, size, device=device)


def labels(device: str) -> Tensor:
    return torch.zeros(4, dtype=torch.long, device=device)


@pytest.mark.parametrize(("make", "image"), MODELS, ids=IDS)
def test_models(device: str, make: Callable[[], nn.Module], image: tuple[int, int]) -> None:
    logits = build(make, device)(images(device, *image))
    assert logits.device.type == device
    assert len(logits) == 4


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(device: str, loss: losses.SampleLoss) -> None:
    logits = torch.rand(4, 10, device=device, requires_grad=True)
    value = loss(logits, labels(device))
    assert value.shape == (4,)
    assert value.device.type == device
    assert torch.autograd.grad(value.sum(), logits)[0].device.type == device
    assert losses.risk(lambda x: x, logits, labels(device), loss).device.type == device


@pytest.mark.parametrize("name", NORMS)
def test_norms(device: str, name: str) -> None:
    norm, x = NORMS[name], images(device)
    eps = per_sample(torch.full((4,), 0.1, device=device), x)
    for made in (
        norm.project(x + 1, x, eps),
        norm.steepest(x),
        norm.step(x, eps, x - 0.5),
        norm.sample(x, eps, None),
        norm.size(x),
    ):
        assert made.device.type == device


@pytest.mark.parametrize(("name", "norm"), PAIRS)
@pytest.mark.parametrize("eps", ["a number", "a tensor on the CPU", "a tensor there"])
def test_attacks(device: str, name: str, norm: str, eps: str) -> None:
    model, x, y = build(ConvNet, device), images(device), labels(device)
    radius = {
        "a number": 0.1,
        "a tensor on the CPU": torch.full((4,), 0.1),
        "a tensor there": torch.full((4,), 0.1, device=device),
    }[eps]
    variants: list[dict[str, Any]] = [{}]
    if eps == "a number":  # wherever it was, the radius is brought to x once, at the start
        variants += [
            {"targeted": True, "step_size": 0.01, "restarts": 2},
            {"start": x},
            {"step_size": lambda progress: 0.1 * (1 - progress)},
        ]
    for options in variants:
        adv = attack(name, model, x, y, eps=radius, norm=norm, early_stop=False, **options)
        assert adv.device.type == device
        assert adv.shape == x.shape


@pytest.mark.parametrize(("name", "norm"), pairs("callback"))
def test_what_a_callback_is_shown(device: str, name: str, norm: str) -> None:
    def look(point: Iterate) -> None:
        assert {part.device.type for part in (point.rows, point.adv, point.loss)} == {device}

    options = {"eps": 0.1, "norm": norm, "early_stop": False, "callback": look}
    attack(name, build(ConvNet, device), images(device), labels(device), **options)


def test_a_generator_on_the_cpu_serves_every_device() -> None:
    generator = torch.Generator().manual_seed(0)
    with FakeTensorMode():
        x = images("cuda")
        eps = per_sample(torch.full((4,), 0.1, device="cuda"), x)
        for norm in NORMS.values():
            assert norm.sample(x, eps, generator).device.type == "cuda"


# The guard itself: what it must catch, and what each of the two ways does catch.


def forgets_the_device(x: Tensor) -> Tensor:
    return x + torch.zeros(x.shape[1:])


def test_meta_catches_a_tensor_made_without_a_device() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        forgets_the_device(images("meta"))


def test_fake_cuda_catches_it_and_weights_elsewhere() -> None:
    with FakeTensorMode():
        with pytest.raises(RuntimeError, match="device"):
            forgets_the_device(images("cuda"))
        with pytest.raises(RuntimeError, match="device"):
            nn.Conv2d(1, 2, 3)(images("cuda"))  # on meta this passes
        with pytest.raises(RuntimeError, match="device"):
            Normalize((0.1,), (0.3,))(images("cuda"))


# With a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_cuda_gives_what_the_cpu_gives(name: str, norm: str) -> None:
    from modelsec.data import mnist

    digits = mnist()
    x, y = digits.x_test[:64].double(), digits.y_test[:64]
    results = []
    for device in ("cpu", "cuda"):
        model = load_model("convnet", device).double()
        generator = torch.Generator().manual_seed(0)  # on the CPU: the same start for both
        adv = attack(
            name, model, x.to(device), y.to(device), eps=0.1, norm=norm, generator=generator
        )
        assert adv.device.type == device
        results.append(adv.cpu())
    assert torch.allclose(*results, rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_evaluation_on_cuda_reports_on_the_cpu() -> None:
    from modelsec.data import mnist

    digits = mnist().to("cuda")
    outcome = evaluate(load_model("net", "cuda"), digits.x_test, digits.y_test)
    assert outcome.correct.device.type == "cpu"
    assert abs(outcome.value - 0.932) < 0.01


def test_frames_are_brought_to_the_driver_s_network(device: str) -> None:
    """The camera draws on the CPU, wherever the network lies."""
    net = build(lambda: ConvNet(1, 32, 15), device).eval()
    seen = torch.rand(3, 1, 32, 32)
    steering = driving.student(net)(seen, [])
    assert steering.device.type == device
    monitor = driving.pixel_monitor(net)
    assert monitor.score(seen, torch.zeros(3), []).device.type == device
