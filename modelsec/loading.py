"""A reader's own model, weights and data, found by the words of the command line.

Nothing is unpickled. Code of the reader's own is imported, since it is what is asked for; what
goes wrong in it is told in one sentence that says where.
"""

from __future__ import annotations

import importlib
import inspect
import sysconfig
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import modelsec
from modelsec import data, zoo
from modelsec.data import Data
from modelsec.training import Model, inference
from modelsec.validation.integrity import load_weights

__all__ = ["check_fit", "find_data", "find_device", "find_model", "load_npz"]

_PICKLES = (b"PK\x03\x04", b"\x80")  # how the files of torch.save begin
_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    'save_file(torch.load({old!r}, weights_only=True), {new!r})"'
)


def find_model(spec: str, weights: str | Path | None = None) -> Model:
    """The model that is meant by ``zoo:NAME`` or ``package.module:factory``.

    The second form names a function or class that is called without arguments and returns the
    model; or the model itself: a module, or a function that takes images.

    Args:
        spec: one of the two forms.
        weights: a safetensors file, loaded into the model; None leaves it as it is made.

    Returns:
        The model.

    Raises:
        ValueError: if there is no such model, it can't be made, or the weights don't fit.
        FileNotFoundError: if there is no file of weights.
    """
    where, _, name = spec.partition(":")
    model: Model = zoo.load_model(name) if where == "zoo" and name else _made(spec, "model")
    if not callable(model) or isinstance(model, type):
        raise ValueError(
            f"{spec} gave {_kind(model)}; wanted is a torch.nn.Module, or a function from images "
            "to logits"
        )
    if weights is not None:
        _load_weights(model, Path(weights))
    return model


def _load_weights(model: Model, path: Path) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"weights can be loaded into a torch.nn.Module, not into {_kind(model)}")
    if path.is_file() and _head(path).startswith(_PICKLES):
        convert = _CONVERT.format(old=str(path), new=str(path.with_suffix(".safetensors")))
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is loaded, so it is not loaded "
            f"here. If it holds a state dict, this makes a safetensors file of it: {convert}"
        )
    load_weights(model, path)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def find_device(name: str | None = None) -> torch.device:
    """A device that works.

    Args:
        name: as torch knows it, "cpu" or "cuda:1"; the best at hand if None.

    Returns:
        The device.

    Raises:
        ValueError: if torch doesn't know it, or it isn't there.
    """
    if name is None:
        return modelsec.device()
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} can't be used here: {reason}") from None


def find_data(spec: str) -> Data:
    """The data that are meant by a name, ``FILE.npz`` or ``package.module:function``.

    Args:
        spec: one of :data:`modelsec.data.named`; a file, see :func:`load_npz`; or a function that
            is called without arguments and returns a :class:`~modelsec.data.Data`, or a pair
            (x, y) of test images and labels.

    Returns:
        The data.

    Raises:
        ValueError: if there are none, or they are of another form.
        FileNotFoundError: if they have to be fetched first.
    """
    if spec in data.named:
        return data.named[spec]()
    if spec.endswith(".npz"):
        return load_npz(spec)
    if ":" not in spec:
        raise ValueError(
            f"data must be one of {sorted(data.named)}, FILE.npz or package.module:function, "
            f"got {spec!r}"
        )
    found = _made(spec, "data")
    match found:
        case Data():
            return found
        case (Tensor() as x, Tensor() as y):
            return Data(spec, x[:0], y[:0], x, y, _names(y), spec, "not stated")
    raise ValueError(
        f"{spec} gave {_kind(found)}; wanted is a modelsec.data.Data, or a pair (x, y) of tensors"
    )


def load_npz(path: str | Path) -> Data:
    """Images and labels from a file that ``numpy.savez`` wrote; objects in it are refused.

    Args:
        path: of a file with ``x_test`` and ``y_test``, or ``x`` and ``y`` for short, and with
            ``x_train`` and ``y_train`` if there are training data. Images are (N, C, H, W), float
            in [0, 1]; labels are (N,), whole numbers from 0.

    Returns:
        The data.

    Raises:
        ValueError: if there is no such file, or what it holds has another form.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(
                        file, allow_pickle=False
                    )
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no file of plain arrays from numpy.savez ({error})") from None
    short = {"x": "x_test", "y": "y_test"}
    arrays = {short.get(name, name): array for name, array in arrays.items()}
    if not {"x_test", "y_test"} <= arrays.keys():
        raise ValueError(f"{path} must hold x_test and y_test (or x and y), got {sorted(arrays)}")
    if ("x_train" in arrays) != ("y_train" in arrays):
        raise ValueError(f"{path} must hold x_train and y_train both, or neither")
    x_test, y_test = _images(arrays, "test", path)
    empty = x_test[:0], y_test[:0]
    x_train, y_train = _images(arrays, "train", path) if "x_train" in arrays else empty
    names = _names(torch.cat([y_train, y_test]))
    return Data(path.stem, x_train, y_train, x_test, y_test, names, str(path), "not stated")


def _names(labels: Tensor) -> tuple[str, ...]:
    """Names of the classes, from 0 to the largest label."""
    return tuple(str(label) for label in range(int(labels.max()) + 1 if labels.numel() else 0))


def _images(arrays: dict[str, Any], half: str, path: Path) -> tuple[Tensor, Tensor]:
    x, y = arrays[f"x_{half}"], arrays[f"y_{half}"]
    given = f"{path}: x_{half} must be (N, C, H, W), float in [0, 1]; it is {x.shape}, {x.dtype}"
    if x.ndim != 4 or not np.issubdtype(x.dtype, np.floating) or not len(x):
        raise ValueError(given)
    if not (x.min() >= 0 and x.max() <= 1):  # so that NaN is refused too
        raise ValueError(f"{given}, from {x.min():g} to {x.max():g}")
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError(
            f"{path}: y_{half} must be ({len(x)},), a whole number from 0 for each image; it is "
            f"{y.shape}, {y.dtype}"
        )
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))


def check_fit(model: Model, found: Data) -> None:
    """Try the model on two images, before anything takes its time.

    Args:
        model: maps images to logits.
        found: data on the model's device.

    Raises:
        ValueError: if it fails, with what it said and where.
    """
    x = found.x_test[:2]
    try:
        with inference(model), torch.no_grad():
            logits = model(x)
    except Exception as error:
        shape = tuple(x.shape[1:])
        raise ValueError(
            f"the model fails on images of shape {shape} ({found.name}): {_told(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        answer = tuple(logits.shape) if isinstance(logits, Tensor) else _kind(logits)
        raise ValueError(f"the model must answer 2 images with logits (2, K), got {answer}")


def _made(spec: str, what: str) -> Any:
    """What ``package.module:name`` stands for; called, if it can be called without arguments."""
    module, _, name = spec.partition(":")
    names = [*module.split("."), *name.split(".")]
    if not all(part.isidentifier() for part in names) or module.endswith(".py"):
        other = "zoo:NAME" if what == "model" else "FILE.npz"
        raise ValueError(
            f"{what} must be {other} or package.module:name, as in an import, without slashes or "
            f".py, got {spec!r}"
        )
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"there is no module {error.name!r} in this folder or among what is installed"
            ) from None
        raise ValueError(f"{module} can't be imported: {_told(error)}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{module} can't be imported: {_told(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module} has no {name!r}; it has {_some(_public(found))}")
        found = getattr(found, part)
    if isinstance(found, nn.Module) or not callable(found):
        return found
    if not _takes_nothing(found):
        if isinstance(found, type) or what != "model":
            raise ValueError(f"{spec} can't be called without arguments: name a function that can")
        return found  # the model itself: a function from images to logits
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{spec} failed: {_told(error)}") from error


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # a built-in function that does not tell
        return True
    return True


def _public(owner: Any) -> list[str]:
    return [key for key, value in vars(owner).items() if key[0] != "_" and callable(value)]


def _told(error: BaseException) -> str:
    """An error in one line, with the last place of the reader's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    others = (*sysconfig.get_paths().values(), "<", str(Path(__file__).parent))
    inside = [frame for frame in frames if not frame.filename.startswith(others)]
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    else:
        place = f" ({inside[-1].filename}, line {inside[-1].lineno})" if inside else ""
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return f"{type(error).__name__}: {message}{place}" if message else type(error).__name__ + place


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def _some(names: list[str], most: int = 6) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "") or "nothing"
