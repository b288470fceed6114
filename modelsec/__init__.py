"""modelsec: the package behind the book *Model Security in Practice*.

Every module is named after the chapter that teaches it, and is small enough to be read after it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import: only those who use it wait for it
    import torch

__version__ = "0.1.0"
__all__ = ["device", "seed_everything"]


def device() -> torch.device:
    """The best device at hand: CUDA, then MPS (Apple silicon), then the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (torch's on every device).

    Layers draw their first weights from torch's global generator, so a notebook calls this once
    at its top. Functions of this package never call it: they take a ``generator`` instead.

    Args:
        seed: a whole number, 0 to 2**32 - 1.

    Raises:
        ValueError: if ``seed`` is outside that range (NumPy takes no other).
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the global one is meant)
    torch.manual_seed(seed)
