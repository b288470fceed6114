"""Input steps that were published as defences, each with what an adaptive attacker puts in its place.

A step is a layer on images in [0, 1]. Put it in front of a model, ``nn.Sequential(jpeg(50), model)``,
and attacks that wait for a gradient, or that believe a single random draw, get stuck.
:func:`adapted` makes of such a model one that every attack of the package can follow. Whether the
attack has won is asked of the defended model, never of the adapted one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelsec.attacks.adaptive import bpda, eot
from modelsec.attacks.common import check_counts
from modelsec.attacks.norms import readable
from modelsec.threat import ThreatModel, threat
from modelsec.validation.corruptions import as_jpeg

__all__ = [
    "Step",
    "adapted",
    "bit_depth",
    "is_random",
    "jpeg",
    "median",
    "noise",
    "random_resize",
    "thermometer",
]

Transform = Callable[[Tensor], Tensor]
_READS = "https://arxiv.org/abs/1704.01155"


class Step(nn.Module):
    """One step of a defence, and what its attacker knows about it.

    Args:
        transform: the step, (N, ...) to (N, ...).
        stand_in: what an attacker goes back through in its place, with results of the same shape;
            None where the step's own gradient leads somewhere.
        random: whether it draws anew in every call, from torch's global generators.
        name: how it is shown.
    """

    def __init__(
        self,
        transform: Transform,
        stand_in: Transform | None = None,
        *,
        random: bool = False,
        name: str = "step",
    ) -> None:
        super().__init__()
        self.transform, self.stand_in = transform, stand_in
        self.random, self.name = random, name

    def forward(self, x: Tensor) -> Tensor:
        """The step. ValueError or TypeError for an input that is no batch of images in [0, 1]."""
        return self.transform(_checked(x))

    def extra_repr(self) -> str:
        """What is shown of it: its name."""
        return self.name


def adapted(
    model: nn.Module, draws: int = 10, *, generator: torch.Generator | None = None
) -> nn.Module:
    """A defended model as its attacker sees it: BPDA for each step without a gradient, EOT if random.

    It shares the defended model's layers and gives the same logits (for a random one, their mean
    over some draws). Attack this one, judge with the defended one. With a random model use
    ``early_stop=False``: one lucky draw must not end the attack.

    Args:
        model: a :class:`Step`, or ``nn.Sequential`` with steps in it, at any depth.
        draws: how many draws are averaged, if a step is random.
        generator: seeds the draws; torch's global one if None.

    Returns:
        The model to attack.

    Raises:
        ValueError: if there is no step in it, or draws is below 1.

    References:
        Athalye, Carlini & Wagner (2018), https://arxiv.org/abs/1802.00420, section 4.
    """
    check_counts(draws=draws)
    if not any(isinstance(part, Step) for part in model.modules()):
        raise ValueError(f"adapted needs a model with a Step in it, got {type(model).__name__}")
    through = _through(model)
    return eot(through, draws, generator=generator) if is_random(model) else through


def is_random(model: nn.Module) -> bool:
    """Whether one of the model's steps draws anew in every call."""
    return any(isinstance(part, Step) and part.random for part in model.modules())


@threat(
    ThreatModel(
        goal="repair", knowledge="transfer", norms=("linf", "l2"), cost="a rounding",
        source=_READS,
    )
)  # fmt: skip
def bit_depth(bits: int) -> Step:
    """Round every pixel to ``2 ** bits`` grey levels; the attacker goes back through the identity.

    Args:
        bits: 1 (black and white) to 8.

    Returns:
        The step.

    Raises:
        ValueError: for another number of bits.

    References:
        Xu, Evans & Qi (2018), https://arxiv.org/abs/1704.01155, section III-A.
    """
    _whole("bits", bits, 1, 8)
    top = 2**bits - 1
    return Step(lambda x: (x * top).round() / top, _same, name=f"{bits} bits")


@threat(
    ThreatModel(
        goal="repair", knowledge="transfer", norms=("linf", "l2"), cost="a compression",
        source="https://arxiv.org/abs/1711.00117",
    )
)  # fmt: skip
def jpeg(quality: int = 50) -> Step:
    """Store every image as a JPEG file and read it again; back through the identity.

    Args:
        quality: 1 to 95.

    Returns:
        The step, for grey or colour images (N, 1 or 3, H, W).

    Raises:
        ValueError: for another quality.

    References:
        Dziugaite, Ghahramani & Roy (2016), https://arxiv.org/abs/1608.00853; Guo et al. (2018),
        https://arxiv.org/abs/1711.00117, section 3.
    """
    _whole("quality", quality, 1, 95)
    return Step(
        lambda x: as_jpeg(x, quality) if readable(x) else torch.empty_like(x), _same,
        name=f"JPEG, quality {quality}",
    )  # fmt: skip


@threat(
    ThreatModel(
        goal="repair", knowledge="transfer", norms=("l2",), cost="a sorting",
        source=_READS,
    )
)  # fmt: skip
def median(size: int = 2) -> Step:
    """Replace every pixel by the median of a square around it. It has a useful gradient of its own.

    Args:
        size: the square's side, 2 or 3. With 2 the pixel is its lower right corner, and the upper
            of two middle values counts. At the border the image's edge is repeated.

    Returns:
        The step.

    Raises:
        ValueError: for another size.

    References:
        Xu, Evans & Qi (2018), https://arxiv.org/abs/1704.01155, section III-B.
    """
    _whole("size", size, 2, 3)

    def smooth(x: Tensor) -> Tensor:
        wide = F.pad(x, (1, size - 2, 1, size - 2), mode="replicate")
        squares = wide.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
        return squares.sort(4).values[..., size * size // 2]

    return Step(smooth, name=f"median of {size} x {size}")


@threat(
    ThreatModel(
        goal="repair", knowledge="white-box", norms=("linf",), cost="a training",
        source="https://openreview.net/forum?id=S18Su--CW",
    )
)  # fmt: skip
def thermometer(levels: int = 10) -> Step:
    """Code each pixel as ``levels`` zeros and ones: channel k is 1 if the pixel is above k / levels.

    Channel 0 is always 1. The model behind it has ``levels`` times as many channels and must be
    trained on the code. The attacker goes back through a soft code, with ramps in place of steps.

    Args:
        levels: 2 or more.

    Returns:
        The step, (N, C, H, W) to (N, C * levels, H, W).

    Raises:
        ValueError: for fewer levels.

    References:
        Buckman et al. (2018), https://openreview.net/forum?id=S18Su--CW; the way back as in Athalye,
        Carlini & Wagner (2018), https://arxiv.org/abs/1802.00420, section 5.1.2, but with ramps
        that are centred on the steps.
    """
    _whole("levels", levels, 2, 256)

    def above(x: Tensor) -> Tensor:
        steps = torch.arange(levels, dtype=x.dtype, device=x.device).view(-1, 1, 1) / levels
        return x[:, :, None] - steps

    def code(x: Tensor) -> Tensor:
        ones = (above(x) > 0).to(x.dtype)
        ones[:, :, 0] = 1
        return ones.flatten(1, 2)

    def ramps(x: Tensor) -> Tensor:
        soft = (above(x) + 0.5).clamp(0, 1)
        return torch.cat([torch.ones_like(soft[:, :, :1]), soft[:, :, 1:]], 2).flatten(1, 2)

    return Step(code, ramps, name=f"thermometer of {levels}")


@threat(
    ThreatModel(
        goal="repair", knowledge="transfer", norms=("linf", "l2"), cost="a resizing",
        source="https://openreview.net/forum?id=Sk9yuql0Z",
    )
)  # fmt: skip
def random_resize(smallest: float = 0.85) -> Step:
    """Shrink each image by a random factor, and put it at a random place on black.

    The paper's networks take larger images too, so there the image grows. Ours take one size.

    Args:
        smallest: the factor is drawn from here to 1; above 0, at most 1.

    Returns:
        The step. It draws from torch's global generators in every call.

    Raises:
        ValueError: for another factor.

    References:
        Xie et al. (2018), https://openreview.net/forum?id=Sk9yuql0Z, section 3.
    """
    _within("smallest", smallest, 0, 1)

    def resize(x: Tensor) -> Tensor:
        if not len(x):
            return x.clone()
        drawn = torch.rand(3, len(x), dtype=x.dtype, device=x.device)
        factor = smallest + (1 - smallest) * drawn[0]
        # an output pixel p shows the image at (p - shift) / factor; coordinates run from -1 to 1
        shift = (1 - factor) * (2 * drawn[1:] - 1)
        zero = torch.zeros_like(factor)
        rows = [torch.stack(row, 1) for row in ((1 / factor, zero, -shift[0] / factor),
                                                (zero, 1 / factor, -shift[1] / factor))]  # fmt: skip
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    return Step(resize, random=True, name=f"random size, {smallest:g} to 1")


@threat(
    ThreatModel(
        goal="repair", knowledge="white-box", norms=("linf", "l2"), cost="a draw",
        source="https://arxiv.org/abs/1712.00673",
    )
)  # fmt: skip
def noise(std: float = 0.2) -> Step:
    """Add Gaussian noise to every pixel in every call, and clip.

    Randomized smoothing uses the same noise, but counts the answers over many draws and proves
    something about the count.

    Args:
        std: of the noise, in pixels of [0, 1]; above 0, at most 1.

    Returns:
        The step. It draws from torch's global generators.

    Raises:
        ValueError: for another std.

    References:
        Liu et al. (2018), https://arxiv.org/abs/1712.00673.
    """
    _within("std", std, 0, 1)
    return Step(
        lambda x: (x + std * torch.randn_like(x)).clamp(0, 1), random=True, name=f"noise of {std:g}"
    )


def _same(x: Tensor) -> Tensor:
    return x


def _through(model: nn.Module) -> nn.Module:
    """The same layers, each step without a gradient behind BPDA."""
    if isinstance(model, Step):
        return model if model.stand_in is None else bpda(model, model.stand_in)
    if isinstance(model, nn.Sequential):
        return nn.Sequential(*(_through(part) for part in model))
    return model


def _checked(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be floating-point images in [0, 1], got {kind}")
    if x.dim() != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {tuple(x.shape)}")
    if readable(x) and x.numel():
        low, high = (float(v) for v in x.detach().aminmax())
        if not (low >= 0 and high <= 1):  # NaN too
            raise ValueError(f"x must lie in [0, 1], got [{low:.4g}, {high:.4g}]")
    return x


def _whole(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
        raise ValueError(f"{name} must be above {low} and at most {high}, got {value!r}")
