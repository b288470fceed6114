"""Model files: is it the file that was released, and what may happen when it is loaded?

A pickle, the format behind ``torch.save``, is a small program, and whoever loads it runs it. A
safetensors file holds a header and numbers, nothing that runs. A hash tells whether a file is the
one that somebody vouched for; it can't tell whether that one was any good.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["PickleReport", "file_sha256", "load_weights", "scan_pickle", "verify_file"]

# What the pickle of an ordinary state dict asks for. A list of what is allowed: a list of what is
# forbidden always forgets something.
_EXPECTED = re.compile(
    r"collections\.OrderedDict"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.(\w+Storage|storage\.(Untyped|Typed)Storage|Size|device)"
    r"|torch\.(bool|(float|int|uint|bfloat|complex)\d+)"
)
_UNKNOWN = "?"


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits; it may be larger than memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_file(path: str | Path, sha256: str) -> str:
    """Check that a file is the one whose hash is known.

    Args:
        path: the file.
        sha256: 64 hexadecimal digits, from a source that you trust more than the file's.

    Returns:
        The file's hash, which is then ``sha256``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ``sha256`` is no SHA-256, or the file has another one.
    """
    wanted, found = _checked_hash(sha256), file_sha256(_existing(path))
    if found != wanted:
        raise ValueError(_other_hash(path, found, wanted))
    return found


def load_weights(model: nn.Module, path: str | Path, sha256: str | None = None) -> nn.Module:
    """Load weights from a safetensors file, and from nothing else, into a model.

    The file is read once, and the bytes that were checked are the bytes that are loaded: between
    two readings somebody could exchange it. The model changes only if everything fits.

    Args:
        model: the network that the weights belong to; its parameters and buffers are replaced.
        path: a safetensors file.
        sha256: the file's hash, if you know it.

    Returns:
        ``model``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the hash is another one; if the file is a pickle or broken; if its names or
            shapes are not the model's.
    """
    content = _existing(path).read_bytes()
    name = Path(path).name
    if sha256 is not None:
        wanted, found = _checked_hash(sha256), hashlib.sha256(content).hexdigest()
        if found != wanted:
            raise ValueError(_other_hash(path, found, wanted))
    try:
        weights = load(content)
    except SafetensorError as error:
        if _looks_like_pickle(content):
            raise ValueError(
                f"{name} is a pickle (what torch.save writes), which can run code when it is "
                "loaded: ask its author for safetensors; scan_pickle shows what it would import"
            ) from None
        raise ValueError(f"{name} is no whole safetensors file: {error}") from None
    if problems := _misfits(model.state_dict(), weights):
        raise ValueError(f"{name} does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(weights, strict=False)  # a tensor with two names stands there once
    return model


@dataclass(frozen=True)
class PickleReport:
    """What a pickle would do, read from its opcodes without running them.

    Attributes:
        globals: what it would import, "module.name", in order, each once; "?" for a name that the
            file only works out when it runs.
        calls: how many times it would call something.
        complete: whether its instructions run to their end. One that breaks off has run by then:
            pickle starts before it has read the whole.
    """

    globals: tuple[str, ...]
    calls: int
    complete: bool

    @property
    def unexpected(self) -> tuple[str, ...]:
        """The globals that weights have no use for."""
        return tuple(name for name in self.globals if not _EXPECTED.fullmatch(name))

    @property
    def suspicious(self) -> bool:
        """True if something unexpected is imported, or the scan did not reach an end."""
        return bool(self.unexpected) or not self.complete


def scan_pickle(path: str | Path) -> PickleReport:
    """List what a pickle would import, without loading it.

    Reads plain pickles and both of torch's formats (the older one is several pickles in a row,
    then raw numbers; what follows the first and is no pickle is taken for numbers). A scan can
    convict a file; it can't acquit one.

    Args:
        path: a file written by ``pickle.dump`` or ``torch.save``.

    Returns:
        The :class:`PickleReport`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is an archive that is damaged, or has no pickle inside.
    """
    content = _existing(path).read_bytes()
    if content.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = [name for name in archive.namelist() if name.endswith(".pkl")]
                inside = [archive.read(name) for name in names]
        except zipfile.BadZipFile as error:
            raise ValueError(f"{Path(path).name} is no whole archive: {error}") from None
        if not inside:
            raise ValueError(f"{Path(path).name} is an archive without a pickle in it")
        streams = [_follow(io.BytesIO(one)) for one in inside]
    else:
        file = io.BytesIO(content)
        streams = [_follow(file)]
        while streams[-1].complete and file.tell() < len(content):
            streams.append(_follow(file))
        if len(streams) > 1 and not streams[-1].complete and not streams[-1].globals:
            streams.pop()  # the raw numbers
    return PickleReport(
        tuple(dict.fromkeys(name for stream in streams for name in stream.globals)),
        sum(stream.calls for stream in streams),
        all(stream.complete for stream in streams),
    )


_MARK = object()
_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD"}


def _follow(file: io.BytesIO) -> PickleReport:
    """Follow one pickle up to its end with a stack that knows strings and nothing else.

    The newer opcode for a global takes module and name from the stack, where they may come from
    a string just read or from the memo: hence the stack.
    """
    found: list[str] = []
    calls = 0
    stack: list[object] = []
    memo: dict[object, object] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            calls += name in _CALLS
            if name in {"GLOBAL", "INST"}:
                found.append(str(argument).replace(" ", ".", 1))
            elif name == "STACK_GLOBAL":
                parts = [part if isinstance(part, str) else _UNKNOWN for part in stack[-2:]]
                found.append(_UNKNOWN if _UNKNOWN in parts else ".".join(parts))
            elif name in {"EXT1", "EXT2", "EXT4"}:  # a number that stands for a global
                found.append(_UNKNOWN)
            if name in {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}:
                memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            elif name in {"GET", "BINGET", "LONG_BINGET"}:
                stack.append(memo[argument])
            elif name == "DUP":
                stack.append(stack[-1])
            else:
                _pop(stack, opcode)
                value = argument if isinstance(argument, str) else None
                stack.extend(
                    _MARK if kind is pickletools.markobject else value
                    for kind in opcode.stack_after
                )
            if name == "STOP":
                return PickleReport(tuple(found), calls, complete=True)
    except (ValueError, IndexError, KeyError, UnicodeError):
        pass  # what it would have done before it breaks off is what counts
    return PickleReport(tuple(found), calls, complete=False)


def _pop(stack: list[object], opcode: pickletools.OpcodeInfo) -> None:
    takes = opcode.stack_before
    if pickletools.markobject in takes:  # everything down to the last mark, and what lies below
        while stack.pop() is not _MARK:
            pass
        takes = takes[: takes.index(pickletools.markobject)]
    for _ in takes:
        stack.pop()


def _looks_like_pickle(content: bytes) -> bool:
    # torch's archive; protocol 2 and later; protocols 0 and 1, which have no sign of their own
    return content.startswith((b"PK\x03\x04", b"\x80")) or content.endswith(b".")


def _misfits(own: dict[str, Tensor], stored: dict[str, Tensor]) -> list[str]:
    """What does not fit, in words; nothing if all does."""
    there = {own[key].data_ptr() for key in own.keys() & stored.keys() if not is_lazy(own[key])}
    missing = [
        key
        for key, value in own.items()
        if key not in stored
        and (is_lazy(value) or value.data_ptr() not in there or not value.numel())
    ]
    shapes = [
        f"{key} is {tuple(stored[key].shape)}, the model's {tuple(value.shape)}"
        for key, value in own.items()
        if key in stored and not is_lazy(value) and stored[key].shape != value.shape
    ]
    faults = {"missing": missing, "unknown": sorted(stored.keys() - own.keys()), "shapes": shapes}
    return [f"{fault}: {_some(names)}" for fault, names in faults.items() if names]


def _some(names: list[str], most: int = 6) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _existing(path: str | Path) -> Path:
    found = Path(path)
    if not found.is_file():
        raise FileNotFoundError(f"there is no file {found}")
    return found


def _checked_hash(sha256: str) -> str:
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    return sha256.lower()


def _other_hash(path: str | Path, found: str, wanted: str) -> str:
    return (
        f"{Path(path).name} has SHA-256 {found}, expected was {wanted}: it is another file, "
        "changed or damaged"
    )
