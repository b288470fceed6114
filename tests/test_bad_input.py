"""Bad input to an attack gets one clear error: of this type, holding these words."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attack_cases import EVASION, accepts
from torch import Tensor, nn

from modelsec.losses import cross_entropy
from modelsec.training import evaluate, fit

N, K = 4, 3
X = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, K))


def answering(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A model whose logits are changed before they are returned."""
    inside = model()
    return lambda x: change(inside(x))


# what is wrong: (arguments that differ from a good call, type of the error, words of its message)
BAD: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "0..255 image": ({"x": X * 255}, ValueError, ["x", "[0, 1]", "divide by 255"]),
    "normalised image": ({"x": (X - 0.13) / 0.3}, ValueError, ["x", "[0, 1]", "normalisation"]),
    "slightly over 1": ({"x": X + 0.5}, ValueError, ["x", "[0, 1]", "normalisation"]),
    "NaN pixels": ({"x": X.where(X < 0.5, torch.nan)}, ValueError, ["x", "NaN"]),
    "infinite pixels": ({"x": X.where(X < 0.5, torch.inf)}, ValueError, ["x", "[0, 1]", "inf"]),
    "integer image": ({"x": (X * 255).byte()}, TypeError, ["x", "uint8", "float() / 255"]),
    "complex image": ({"x": X + 0j}, TypeError, ["x", "complex64", "floating point"]),
    "one image without a batch": ({"x": X[0, 0, 0]}, ValueError, ["x", "batch", "(4,)"]),
    "a NumPy image": ({"x": X.numpy()}, TypeError, ["x", "torch.Tensor", "ndarray"]),
    "a list of labels": ({"y": [0, 1, 2, 0]}, TypeError, ["y", "torch.Tensor", "list"]),
    "one-hot labels": ({"y": torch.eye(4)[:, :3]}, ValueError, ["y", "(4,)", "(4, 3)", "one-hot"]),
    "one-hot integers": ({"y": torch.eye(4).long()}, ValueError, ["y", "(4, 4)", "argmax"]),
    "float labels": ({"y": Y.float()}, TypeError, ["y", "integer", "float32", "long()"]),
    "bool labels": ({"y": Y == 0}, TypeError, ["y", "integer", "bool"]),
    "too few labels": ({"y": Y[:3]}, ValueError, ["y", "(4,)", "(3,)"]),
    "one label for all": ({"y": torch.tensor(1)}, ValueError, ["y", "batch dimension", "y[None]"]),
    "label K": ({"y": Y + 1}, ValueError, ["labels", "0 to 2", "got 3"]),
    "negative label": ({"y": Y - 1}, ValueError, ["labels", "0 or more", "got -1"]),
    "negative eps": ({"eps": -0.1}, ValueError, ["eps", "0 or more", "-0.1"]),
    "eps in grey levels": ({"eps": 8}, ValueError, ["eps", "[0, 1]", "got 8", "8 / 255"]),
    "NaN eps": ({"eps": float("nan")}, ValueError, ["eps", "finite", "nan"]),
    "infinite eps": ({"eps": float("inf")}, ValueError, ["eps", "finite", "inf"]),
    "one negative eps": ({"eps": torch.tensor([0.1, 0.1, -1, 0])}, ValueError, ["eps", "-1"]),
    "eps for three": ({"eps": torch.ones(3)}, ValueError, ["eps", "(4,)", "(3,)"]),
    "eps per pixel": ({"eps": torch.ones(4, 1, 4, 4)}, ValueError, ["eps", "(4,)", "(4, 1, 4, 4)"]),
    "no eps": ({"eps": None}, TypeError, ["eps", "NoneType"]),
    "eps in words": ({"eps": "8/255"}, TypeError, ["eps", "str"]),
    "unknown norm": ({"norm": "l7"}, ValueError, ["norm", "linf", "l2", "'l7'"]),
    "norm as a number": ({"norm": 2}, ValueError, ["norm", "linf", "l2", "got 2"]),
    "a list for the norm": ({"norm": ["l2"]}, ValueError, ["norm", "linf", "l2"]),
    "half a step": ({"steps": 2.5}, ValueError, ["steps", "whole", "2.5"]),
    "no steps": ({"steps": 0}, ValueError, ["steps", "1 or more", "0"]),
    "negative steps": ({"steps": -3}, ValueError, ["steps", "1 or more", "-3"]),
    "no restarts": ({"restarts": 0}, ValueError, ["restarts", "1 or more", "0"]),
    "negative step size": ({"step_size": -0.1}, ValueError, ["step_size", "0 or more", "-0.1"]),
    "NaN step size": ({"step_size": float("nan")}, ValueError, ["step_size", "finite", "nan"]),
    "step size for two": ({"step_size": torch.ones(2)}, ValueError, ["step_size", "(4,)", "(2,)"]),
    "step size in words": ({"step_size": "small"}, TypeError, ["step_size", "number", "str"]),
    "a function for the step size, which gives a negative one": (
        {"step_size": lambda progress: -0.1 - progress, "early_stop": False},
        ValueError,
        ["step_size", "0 or more", "-0.1"],
    ),
    "a function for the step size, which gives nothing": (
        {"step_size": lambda progress: None, "early_stop": False},
        TypeError,
        ["step_size", "NoneType"],
    ),
    "negative decay": ({"decay": -0.5}, ValueError, ["decay", "0 or more", "-0.5"]),
    "NaN decay": ({"decay": float("nan")}, ValueError, ["decay", "finite", "nan"]),
    "decay in words": ({"decay": "much"}, TypeError, ["decay", "number", "str"]),
    "start outside the ball": ({"start": 1 - X}, ValueError, ["start", "within eps"]),
    "start outside the box": ({"start": X - 0.09, "x": X * 0}, ValueError, ["start", "[0, 1]"]),
    "start with NaN": ({"start": X * torch.nan}, ValueError, ["start"]),
    "start of another shape": ({"start": X[:2]}, ValueError, ["start", "(4, 1, 4, 4)", "(2,"]),
    "start as a list": ({"start": [0.5]}, TypeError, ["start", "torch.Tensor", "list"]),
    "no model": ({"model": None}, TypeError, ["model", "callable", "NoneType"]),
    "a tuple": ({"model": answering(lambda z: (z, z))}, TypeError, ["model", "tensor", "tuple"]),
    "1-D logits": (
        {"model": answering(lambda z: z[:, 0])},
        ValueError,
        ["model", "(4, K)", "(4,)"],
    ),
    "3-D logits": (
        {"model": answering(lambda z: z[..., None])},
        ValueError,
        ["model", "(4, 3, 1)"],
    ),
    "a row too few": (
        {"model": answering(lambda z: z[1:])},
        ValueError,
        ["model", "(4, K)", "(3, 3)"],
    ),
    "one class": (
        {"model": answering(lambda z: z[:, :1])},
        ValueError,
        ["model", "K >= 2", "(4, 1)"],
    ),
    "NaN logits": ({"model": answering(lambda z: z * torch.nan)}, ValueError, ["model", "NaN"]),
    "integer logits": (
        {"model": answering(Tensor.long)},
        TypeError,
        ["model", "floating", "int64"],
    ),
    "detached logits": ({"model": answering(Tensor.detach)}, ValueError, ["model", "autograd"]),
    "detached input": (
        {"model": (lambda inside: lambda x: inside(x.detach()))(model())},
        ValueError,
        ["model", "autograd"],
    ),
    "averaging loss": ({"loss": nn.CrossEntropyLoss()}, ValueError, ["loss", "(4,)", "reduction"]),
    "loss of all logits": ({"loss": lambda z, y: z}, ValueError, ["loss", "(4,)", "(4, 3)"]),
    "loss as a number": ({"loss": lambda z, y: 1.0}, ValueError, ["loss", "(4,)", "()"]),
    "x elsewhere": ({"x": X.to("meta")}, ValueError, ["x is on meta", "y on cpu", "one device"]),
    "y elsewhere": ({"y": Y.to("meta")}, ValueError, ["x is on cpu", "y on meta", "one device"]),
    "model elsewhere": (
        {"model": model().to("meta")},
        ValueError,
        ["x is on cpu", "the model on meta", "one device"],
    ),
}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (name, fault)
        for name, entry in EVASION.items()
        for fault in BAD
        if accepts(name, *BAD[fault][0])
        # who asks for no gradient does not miss it
        if "autograd" not in BAD[fault][2] or entry.threat.knowledge == "white-box"
    ],
)
def test_bad_input_gets_one_clear_error(name: str, fault: str) -> None:
    different, error, words = BAD[fault]
    call = {"model": model(), "x": X, "y": Y, "eps": 0.1} | different
    with pytest.raises(error) as caught:
        EVASION[name].function(**call)
    assert type(caught.value) is error  # not one of its kinds that torch raises somewhere inside
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", EVASION)
def test_the_good_call_is_good(name: str) -> None:
    assert EVASION[name].function(model=model(), x=X, y=Y, eps=0.1).shape == X.shape


@pytest.mark.parametrize("name", EVASION)
def test_bad_numbers_are_noticed_for_an_empty_batch_too(name: str) -> None:
    with pytest.raises(ValueError, match="eps"):
        EVASION[name].function(model(), X[:0], Y[:0], eps=-1)


LABELS = {
    "none": (Y[:0], ValueError, "y must"),
    "too few": (Y[:3], ValueError, r"\(3,\)"),
    "one-hot": (torch.eye(4)[:, :3], ValueError, r"\(4, 3\)"),
    "a column": (Y[:, None], ValueError, r"\(4, 1\)"),  # would broadcast to 4x4 outcomes
    "float": (Y.float(), TypeError, "integer"),
    "bool": (Y == 0, TypeError, "integer"),
}


@pytest.mark.parametrize("fault", LABELS)
def test_training_and_evaluation_refuse_bad_labels(fault: str) -> None:
    y, error, words = LABELS[fault]
    for function in (fit, evaluate):
        with pytest.raises(error, match=words):
            function(model(), X, y)
    with pytest.raises(ValueError, match="y must"):
        evaluate(model(), X[:0], Y[:0])


def test_cross_entropy_does_not_take_one_hot_rows_of_integers() -> None:
    """Rows of probabilities (floats) are soft targets; integers are class indices."""
    with pytest.raises(RuntimeError, match="target"):
        cross_entropy(torch.zeros(4, 3), torch.eye(4)[:, :3].long())
