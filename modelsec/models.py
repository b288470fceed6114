"""Networks small enough for a laptop. Each takes images in [0, 1] and returns logits.

Whatever normalisation a model wants is its own first layer, :class:`Normalize`, so that a
perturbation of size eps always means eps in pixel values, for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["ConvNet", "Net", "Normalize", "drawing_from", "fresh"]


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel, as a layer.

    Args:
        mean: one number per channel.
        std: one positive number per channel.

    Raises:
        ValueError: if the two differ in length or a ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(f"need as many means as positive stds, got {mean=} and {std=}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (N, C, H, W). Returns the same shape."""
        return (x - self.mean) / self.std


class Net(nn.Sequential):
    """The book's fully connected network: 784-128-64-10 with ReLU, 109,386 parameters.

    Input: (N, 1, 28, 28), float in [0, 1]. Output: logits (N, 10).

    Args:
        sizes: the width of every layer, input and output included.
        mean, std: per channel, for the :class:`Normalize` layer inside; MNIST's by default.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (784, 128, 64, 10),
        mean: Sequence[float] = (0.1307,),
        std: Sequence[float] = (0.3081,),
    ) -> None:
        layers: list[nn.Module] = [Normalize(mean, std), nn.Flatten()]
        for wide, narrow in pairwise(sizes):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        super().__init__(*layers[:-1])  # no ReLU on the logits


class ConvNet(nn.Sequential):
    """Two stride-2 convolutions (16 and 32 channels) and a layer of 100 units.

    The small MNIST network of Wong & Kolter (2018), a usual yardstick for repairs.
    Input: (N, channels, size, size), float in [0, 1]. Output: logits (N, classes).

    Args:
        channels: 1 for grey, 3 for colour.
        size: height and width of the images in pixels, a multiple of 4.
        classes: number of classes.
        mean, std: per channel, for the :class:`Normalize` layer inside; MNIST's by default.

    Raises:
        ValueError: if ``size`` is not a multiple of 4.

    References:
        Wong & Kolter (2018), https://arxiv.org/abs/1711.00851.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        classes: int = 10,
        mean: Sequence[float] = (0.1307,),
        std: Sequence[float] = (0.3081,),
    ) -> None:
        if size < 4 or size % 4:
            raise ValueError(f"size must be a multiple of 4 (two stride-2 layers), got {size}")
        super().__init__(
            Normalize(mean, std),
            nn.Conv2d(channels, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (size // 4) ** 2, 100),
            nn.ReLU(),
            nn.Linear(100, classes),
        )


@contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let code that knows only torch's global generators draw from ``generator`` meanwhile.

    They are seeded from it and put back afterwards, those of the CPU and of CUDA devices. With
    None nothing is done: such code draws from the global generators as ever.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**31, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(seed))
        yield


def fresh(build: Callable[[], nn.Module], generator: torch.Generator | None = None) -> nn.Module:
    """A network whose first weights are drawn from ``generator``.

    torch's layers draw theirs from the global generator. It is seeded from ``generator`` while
    the network is built, and is put back afterwards.

    Args:
        build: makes the network, such as ``ConvNet``.
        generator: draws one seed; None leaves all to torch's global generator.

    Returns:
        The untrained network, on the CPU.
    """
    with drawing_from(generator):
        return build()
