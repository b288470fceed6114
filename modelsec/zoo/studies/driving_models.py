"""The networks of the chapter on driving: what they learn from, how they are trained and repaired."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from modelsec import driving, models
from modelsec.attacks.gradient import pgd
from modelsec.data import Data
from modelsec.losses import SampleLoss
from modelsec.repair.schedules import decay, ramp
from modelsec.training import fit

__all__ = [
    "EPS",
    "TEST",
    "TRAIN",
    "aggregate",
    "learn",
    "network",
    "plain_training",
    "pushed",
    "road_frames",
    "robust_training",
]

EPS = 8 / 255
"""The radius that the repaired network is trained for."""
TRAIN = range(20)
"""Seeds of the drives whose frames are learned from."""
TEST = range(1000, 1005)
"""Seeds of the drives that networks are tested on."""


def network() -> nn.Module:
    """The book's ConvNet on frames of 32 x 32: its classes are positions of the wheel."""
    return models.ConvNet(1, 32, len(driving.WHEEL), mean=(0.45,), std=(0.07,))


@functools.cache
def road_frames(shift: float = 1.0) -> Data:
    """Frames from the expert's drives, with the nearest position of the wheel to what it did.

    Args:
        shift: the frames to learn from are seen from up to so many metres aside, and answered for
            that place; those of the test never are.

    Returns:
        2,000 frames to learn from and 500 of other drives on the same track.
    """
    told = driving.drive(driving.by_state, TRAIN, keep=True, shift=shift)
    test = driving.drive(driving.by_state, TEST, keep=True)
    return Data(
        "frames of the race track",
        told.frames,
        driving.nearest_wheel(told.answer),
        test.frames,
        driving.nearest_wheel(test.answer),
        tuple(f"{position:+.1f}" for position in driving.WHEEL),
        "drawn from the race track of highway-env, https://github.com/Farama-Foundation/HighwayEnv",
        "MIT",
    )


def learn(
    net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, epochs: int = 10
) -> nn.Module:
    """Imitation: plain training on frames and the positions of the wheel.

    Args:
        net: is trained in place.
        x: (N, 1, 32, 32) frames.
        y: (N,) positions.
        generator: draws the order.
        epochs: passes over the frames.

    Returns:
        The network, in eval mode.
    """
    fit(net, x, y, epochs=epochs, lr=decay(2e-3), generator=generator)
    return net.eval()


def aggregate(
    net: nn.Module, x: Tensor, y: Tensor, seeds: range, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """A round of DAgger: the network drives, the expert says what it should have done.

    Args:
        net: who drives.
        x: (N, 1, 32, 32) the frames so far.
        y: (N,) their answers.
        seeds: where the drives start.
        steps: of each.

    Returns:
        Both, with the new frames at the end.

    References:
        Ross et al. (2011), https://arxiv.org/abs/1011.0686, algorithm 3.1.
    """
    told = driving.drive(driving.student(net), seeds, steps=steps, keep=True)
    return torch.cat([x, told.frames]), torch.cat([y, driving.nearest_wheel(told.answer)])


def pushed(side: Tensor, sharpness: float = 10.0) -> SampleLoss:
    """A loss that grows as the wheel goes to one side: ``log sum_k p_k exp(s w_k side) / s``.

    It is a mean of the wheel's positions w that counts those on that side more. For a sharpness s
    near 0 it is their plain mean, whose slope vanishes where the network is sure of another position.

    Args:
        side: (N,) 1 for right, -1 for left.
        sharpness: s.

    Returns:
        (logits (N, K), labels, which are not looked at) -> (N,).
    """

    def loss(logits: Tensor, _: Tensor) -> Tensor:
        wheel = torch.tensor(driving.WHEEL, dtype=logits.dtype, device=logits.device)
        lean = sharpness * side.to(logits)[:, None] * wheel
        return ((logits + lean).logsumexp(1) - logits.logsumexp(1)) / sharpness

    return loss


def plain_training(net: nn.Module, data: Data, generator: torch.Generator) -> nn.Module:
    """The student of the chapter: :func:`learn` on shifted frames.

    Args:
        net: is trained in place.
        data: as :func:`road_frames`.
        generator: draws the order.

    Returns:
        The network, in eval mode.
    """
    return learn(net, data.x_train, data.y_train, generator)


def robust_training(
    net: nn.Module, data: Data, generator: torch.Generator, eps: float = EPS, epochs: int = 25
) -> nn.Module:
    """Adversarial training: each frame is changed so that the wheel goes to one side, by a coin.

    Args:
        net: is trained in place.
        data: as :func:`road_frames`.
        generator: draws the order, the sides and the starts.
        eps: the radius in the end, in pixels of [0, 1].
        epochs: passes over the frames.

    Returns:
        The network, in eval mode.
    """
    radius: Callable[[float], float] = ramp(eps)

    def perturb(model: nn.Module, x: Tensor, y: Tensor, progress: float) -> Tensor:
        side = torch.randint(2, (len(x),), generator=generator, device=x.device) * 2 - 1
        return pgd(
            model, x, y, eps=radius(progress), steps=5, loss=pushed(side), early_stop=False,
            generator=generator,
        )  # fmt: skip

    fit(
        net, data.x_train, data.y_train, epochs=epochs, lr=decay(2e-3), generator=generator,
        perturb=perturb,
    )  # fmt: skip
    return net.eval()
