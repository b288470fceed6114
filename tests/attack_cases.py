"""What the contract tests of attacks share: the registered attacks, and random cases to run them on."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import modelsec.attacks
from modelsec.threat import registry

for found in pkgutil.walk_packages(modelsec.attacks.__path__, "modelsec.attacks."):
    importlib.import_module(found.name)

# Those that are given a radius. Minimum-norm attacks look for one, and have a contract of their own.
# A universal perturbation is one for all images, so it does depend on the batch: see test_physical.py.
EVASION = {
    name: entry
    for name, entry in sorted(registry.items())
    if entry.threat.goal == "evasion"
    and "eps" in inspect.signature(entry.function).parameters
    and name != "universal"
}
PAIRS = [(name, norm) for name, entry in EVASION.items() for norm in entry.threat.norms]
# Those that see the weights: they follow gradients, while the others search at random.
CLIMBERS = [pair for pair in PAIRS if EVASION[pair[0]].threat.knowledge == "white-box"]

# What an attack is told so that it is quick; one that is not named here runs with its defaults.
QUICK: dict[str, dict[str, Any]] = {
    "apgd": {"steps": 5},
    "apgd_targeted": {"steps": 5, "targets": 2},
    "bim": {"steps": 3},
    "mi_fgsm": {"steps": 3},
    "nes": {"queries": 150, "pairs": 24},
    "pgd": {"steps": 3},
    "spsa": {"queries": 150, "pairs": 24},
    "square": {"queries": 20},
    "transfer": {"steps": 3},
}


def accepts(name: str, *keywords: str) -> bool:
    """Whether an attack takes these keywords: a single step has no restarts to test."""
    return set(keywords) <= set(inspect.signature(EVASION[name].function).parameters)


def pairs(*keywords: str) -> list[tuple[str, str]]:
    """The (attack, norm) pairs of all attacks that take these keywords."""
    return [(name, norm) for name, norm in PAIRS if accepts(name, *keywords)]


def attack(name: str, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, **options: Any):
    """Call an attack by its name with those of the options that it takes."""
    options = QUICK.get(name, {}) | options
    taken = {key: value for key, value in options.items() if accepts(name, key)}
    return EVASION[name].function(model, x, y, **taken)


def size(delta: Tensor, norm: str) -> Tensor:
    """The norm of each sample's change, in double precision and without the package's help."""
    order = {"linf": torch.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    return torch.linalg.vector_norm(delta.double().flatten(1), order, dim=1)


class NanGradient(nn.Module):
    """Adds sqrt(0 * x) of the first pixel: 0 in the forward pass, NaN in the gradient there."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        trap = (0 * x.flatten(1)[:, :1]).sqrt()
        return self.inside(x) + trap * torch.arange(2, device=x.device)[:1]


@dataclass(frozen=True)
class Case:
    """A model, a batch and a budget, all made from a seed."""

    kind: str
    shape: tuple[int, ...]
    classes: int
    n: int
    eps: float | str
    dtype: torch.dtype
    targeted: bool
    seed: int

    def module(self) -> nn.Module:
        """A fresh network in training mode, with parts frozen by hand and gradients lying about."""
        channels, width = self.shape[0], prod(self.shape)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # far cheaper than torch.manual_seed
            if self.kind == "conv" and len(self.shape) == 3:
                layers = [nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
                layers += [nn.Dropout2d(0.4), nn.Flatten(), nn.Linear(4 * width // channels, 8)]
            else:
                layers = [nn.Flatten(), nn.Linear(width, 8)]
            layers += [nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, self.classes)]
            for layer in layers:
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    layer.running_mean.normal_(0, 0.1)
                    layer.running_var.uniform_(0.5, 2)
        model = nn.Sequential(*layers).to(self.dtype).train()
        for position, layer in enumerate(layers):
            layer.train((self.seed >> position) % 2 == 0)
        parameters = list(model.parameters())
        parameters[self.seed % len(parameters)].requires_grad_(False)
        parameters[-1].grad = torch.ones_like(parameters[-1])
        return NanGradient(model) if self.kind == "nan gradient" else model

    def model(self) -> Callable[[Tensor], Tensor]:
        """The network, or a plain function around it."""
        module = self.module()
        if self.kind != "callable":
            return module
        module.eval()
        return lambda x: module(x)

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images, some of whose pixels are exactly 0 or 1, and labels of which some are wrong."""
        x = torch.rand(self.n, *self.shape, generator=self.generator, dtype=self.dtype)
        y = torch.randint(self.classes, (self.n,), generator=self.generator)
        return (1.4 * x - 0.2).clamp(0, 1), y

    @property
    def radius(self) -> float | Tensor:
        """One radius, or one for each sample, the first of them 0."""
        if self.eps != "per sample":
            return self.eps
        return torch.linspace(0, 0.4, self.n, dtype=self.dtype)


def cases(
    kinds: tuple[str, ...] = ("mlp", "conv", "callable"),
    classes: tuple[int, ...] = (2, 3, 5),
    eps: tuple[float | str, ...] = (0.0, 0.02, 0.3, 1.0, "per sample"),
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
) -> st.SearchStrategy[Case]:
    """Random cases; the arguments narrow them down."""
    return st.builds(
        Case,
        kind=st.sampled_from(kinds),
        shape=st.sampled_from([(1, 4, 4), (3, 5, 4), (7,), (1, 8, 8)]),
        classes=st.sampled_from(classes),
        n=st.integers(1, 6),
        eps=st.sampled_from(eps),
        dtype=st.sampled_from(dtypes),
        targeted=st.booleans(),
        seed=st.integers(0, 10_000),
    )


def two_class_linear(
    d: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[nn.Module, Tensor]:
    """A linear model of two classes, and the direction w along which class 1 gains on class 0."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(d, 2, dtype=dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    w = (linear.weight[1] - linear.weight[0]).detach()
    return nn.Sequential(nn.Flatten(), linear), w


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that an attack has to leave alone."""
    return {
        "modes": [module.training for module in model.modules()],
        "frozen": [parameter.requires_grad for parameter in model.parameters()],
        "values": [value.clone() for value in model.state_dict().values()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    }


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["modes"] == after["modes"]
    assert before["frozen"] == after["frozen"]
    assert all(map(torch.equal, before["values"], after["values"]))
    for old, new in zip(before["grads"], after["grads"], strict=True):
        assert (old is None and new is None) or torch.equal(old, new)


class Fuse(nn.Module):
    """Fails in its n-th forward pass; at 0, never."""

    def __init__(
        self, inside: nn.Module, at: int, error: type[BaseException] = MemoryError
    ) -> None:
        super().__init__()
        self.inside, self.left, self.error = inside, at, error

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if not self.left:
            raise self.error("the fuse has blown")
        return self.inside(x)


def noncontiguous(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
