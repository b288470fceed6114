"""The networks: their shapes and sizes, and the normalisation inside them."""

import pytest
import torch
from generators import global_generators_untouched
from torch import nn

from modelsec.models import ConvNet, Net, Normalize, drawing_from, fresh


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_net_is_784_128_64_10() -> None:
    model = Net()
    widths = [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)]
    assert widths == [(784, 128), (128, 64), (64, 10)]
    assert parameters(model) == 109_386
    assert sum(isinstance(m, nn.ReLU) for m in model) == 2
    assert isinstance(model[-1], nn.Linear)  # logits, so some of them are negative
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)


def test_net_takes_other_widths() -> None:
    assert Net((12, 5, 3), (0.5,) * 3, (0.2,) * 3)(torch.rand(2, 3, 2, 2)).shape == (2, 3)


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 32, 7), (3, 4, 2)])
def test_convnet_takes_images_of_any_size_that_four_divides(
    channels: int, size: int, classes: int
) -> None:
    model = ConvNet(channels, size, classes, (0.5,) * channels, (0.25,) * channels)
    assert model(torch.rand(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize("size", [0, 2, 30, 31])
def test_convnet_refuses_other_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        ConvNet(size=size)


def test_normalize_subtracts_and_divides_per_channel() -> None:
    x = torch.rand(2, 3, 4, 4)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = Normalize(mean, std)(x)
    for channel in range(3):
        assert torch.allclose(out[:, channel], (x[:, channel] - mean[channel]) / std[channel])


def test_normalize_moves_and_converts_with_its_model() -> None:
    model = Net().double()
    assert model(torch.rand(1, 1, 28, 28, dtype=torch.float64)).dtype == torch.float64
    assert {"0.mean", "0.std"} <= set(model.state_dict())
    assert "0.mean" not in dict(model.named_parameters())  # fixed, not learned


@pytest.mark.parametrize(("mean", "std"), [((0.1,), (0.0,)), ((0.1,), (-1.0,)), ((0.1, 0.2), (1,))])
def test_normalize_refuses_what_it_cannot_divide_by(mean, std) -> None:
    with pytest.raises(ValueError, match="positive std"):
        Normalize(mean, std)


@pytest.mark.parametrize("build", [Net, ConvNet])
def test_the_first_layer_normalises_so_eps_means_pixels(build) -> None:
    assert isinstance(build()[0], Normalize)
    assert build()[0].mean.item() == pytest.approx(0.1307)
    assert build()[0].std.item() == pytest.approx(0.3081)


def test_fresh_draws_the_first_weights_from_its_generator_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        return fresh(Net, torch.Generator().manual_seed(seed))[2].weight

    with global_generators_untouched():
        first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        mine = fresh(Net)[2].weight
        torch.manual_seed(3)
        assert torch.equal(mine, Net()[2].weight)


@pytest.mark.parametrize("there", [{"cuda"}, {"mps"}, set()])
def test_every_device_that_is_there_is_seeded_alike(
    there: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded: dict[str, list[int]] = {"cuda": [], "mps": []}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded["cuda"].append)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    monkeypatch.setattr(torch.mps, "manual_seed", seeded["mps"].append)
    with drawing_from(torch.Generator().manual_seed(0)):
        cpu = torch.initial_seed()
    assert seeded == {name: [cpu] if name in there else [] for name in seeded}
