"""Networks small enough for a laptop. Each takes images in [0, 1] and returns logits.

Whatever normalisation a model wants is its own first layer, :class:`Normalize`, so that a
perturbation of size eps always means eps in pixel values, for every model. A network for tables
takes the rows as they are: how they become inputs is its first layer, :class:`Encode`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["ConvNet", "Encode", "Net", "Normalize", "TabularNet", "drawing_from", "fresh"]


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


class Encode(nn.Module):
    """Rows of a table as inputs in [0, 1]: numbers by their range, categories one-hot, as a layer.

    Args:
        choices: for each of the D columns how many categories it has; 0 for a number.
        low, high: (D,) each column's smallest and largest value among the training rows. (Ranges
            that are taken from the test rows too tell the model about them.)

    Raises:
        ValueError: if lengths differ, a number of categories is 1 or below 0, or ``low`` lies above
            ``high``.
    """

    column: Tensor
    value: Tensor
    low: Tensor
    width: Tensor

    def __init__(self, choices: Sequence[int], low: Tensor, high: Tensor) -> None:
        super().__init__()
        if not low.shape == high.shape == (len(choices),) or bool((low > high).any()):
            raise ValueError(
                f"need a lowest and a highest value for each of {len(choices)} columns, got shapes "
                f"{tuple(low.shape)} and {tuple(high.shape)}, low at most high"
            )
        if any(count < 0 or count == 1 for count in choices):
            raise ValueError(f"a column has 2 or more categories, or 0 for a number: {choices}")
        pairs = [(j, k) for j, count in enumerate(choices) for k in range(count or 1)]
        self.choices = tuple(choices)
        self.register_buffer("column", torch.tensor([j for j, _ in pairs]))
        self.register_buffer("value", torch.tensor([float(k) for _, k in pairs]))
        self.register_buffer("low", low.detach().clone())
        self.register_buffer("width", (high - low).detach().clamp_min(1e-12))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (N, D) rows. Returns (N, W), W = numbers + all categories."""
        each = x[:, self.column]
        number = (each - self.low[self.column]) / self.width[self.column]
        return torch.where(self.is_number, number, (each == self.value).to(number.dtype))

    @property
    def is_number(self) -> Tensor:
        """(W,) bool: which inputs are numbers, not one category's 0 or 1."""
        return torch.tensor([n == 0 for n in self.choices], device=self.column.device)[self.column]

    def decode(self, encoded: Tensor) -> Tensor:
        """The row nearest to an input that may belong to none.

        Args:
            encoded: (N, W).

        Returns:
            (N, D): the largest of a category's inputs wins, and numbers are rounded.
        """
        parts = []
        for j, count in enumerate(self.choices):
            own = encoded[:, self.column == j]
            number = (own[:, 0] * self.width[j] + self.low[j]).round()
            parts.append(own.argmax(1).to(number.dtype) if count else number)
        return torch.stack(parts, 1)


class TabularNet(nn.Sequential):
    """One hidden layer for the rows of a table, as they are: :class:`Encode` is its first layer.

    Input: (N, D) rows, a category as the index of its name. Output: logits (N, classes).

    Args:
        choices, low, high: as for :class:`Encode`.
        hidden: units of the hidden layer.
        classes: number of classes.
    """

    def __init__(
        self,
        choices: Sequence[int],
        low: Tensor,
        high: Tensor,
        hidden: int = 32,
        classes: int = 2,
    ) -> None:
        encode = Encode(choices, low, high)
        wide = len(encode.column)
        super().__init__(encode, nn.Linear(wide, hidden), nn.ReLU(), nn.Linear(hidden, classes))


@contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let code that knows only torch's global generators draw from ``generator`` meanwhile.

    They are seeded from it, those of the CPU, of CUDA devices and of MPS. The first two are put
    back afterwards. With None nothing is done: such code draws from the global generators as ever.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        # torch.manual_seed would do, but keeps a call stack for each device that is not there
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
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
