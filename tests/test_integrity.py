"""Model files: hashes, weights that load or are refused, and pickles read without being run."""

import hashlib
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file, save_model
from torch import Tensor, nn

from modelsec.models import ConvNet, Net
from modelsec.validation.integrity import (
    file_sha256,
    load_weights,
    scan_pickle,
    verify_file,
)
from modelsec.zoo import load_model

NOTHING = hashlib.sha256(b"").hexdigest()


class Command:
    """Asks for a command when it is unpickled; ``RAN`` would tell."""

    def __init__(self, function=os.system, *arguments: object) -> None:
        self.wanted = function, arguments or ("echo this must never run",)

    def __reduce__(self):
        return self.wanted


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan or a refused load must not call anything, nor unpickle."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it ran")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)


@pytest.fixture
def net() -> nn.Module:
    return load_model("net")


def stored(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- hashes -------------------------------------------------------------------------------------


def test_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    path = stored(tmp_path / "large", content)
    assert file_sha256(path) == hashlib.sha256(content).hexdigest()
    assert verify_file(str(path), file_sha256(path).upper()) == file_sha256(path)
    assert file_sha256(stored(tmp_path / "empty", b"")) == NOTHING


@settings(max_examples=30)
@given(content=st.binary(min_size=1, max_size=200), data=st.data())
def test_every_changed_bit_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    path = stored(tmp_path_factory.mktemp("bits") / "file", content)
    known = file_sha256(path)
    changed = bytearray(content)
    changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    with pytest.raises(
        ValueError, match=f"file has SHA-256 {file_sha256(path)}, expected was {known}"
    ):
        verify_file(path, known)


@pytest.mark.parametrize("bad", ["", "abc", "g" * 64, NOTHING + "0", f" {NOTHING}", 7, None])
def test_a_hash_that_is_none_is_refused_and_not_just_unequal(tmp_path: Path, bad: object) -> None:
    path = stored(tmp_path / "empty", b"")
    with pytest.raises(ValueError, match="sha256 must be 64 hexadecimal digits, got"):
        verify_file(path, bad)
    if bad is not None:
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            load_weights(Net(), path, bad)


@pytest.mark.parametrize(
    "use", [lambda p: verify_file(p, NOTHING), lambda p: load_weights(Net(), p), scan_pickle]
)
def test_a_file_that_is_not_there(tmp_path: Path, use) -> None:
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            use(path)


# --- weights ------------------------------------------------------------------------------------


def test_weights_come_back(tmp_path: Path, net: nn.Module) -> None:
    path = tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    other = Net()
    assert load_weights(other, path, file_sha256(path)) is other
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert all(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize("size", range(1, 33))
def test_no_header_length_is_taken_for_a_pickle(tmp_path: Path, size: int) -> None:
    """One in 32 safetensors files begins with 0x80, as a pickle does."""
    model = nn.ParameterDict({"n" * 8 * size: torch.arange(3.0)})
    path = stored(tmp_path / "x", save(model.state_dict()))
    load_weights(model, path)


def test_the_header_lengths_above_do_hit_it() -> None:
    lengths = [
        struct.unpack("<Q", save({"n" * 8 * size: torch.arange(3.0)})[:8])[0]
        for size in range(1, 33)
    ]
    assert any(length % 256 == 0x80 for length in lengths)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_a_tensor_with_two_names_and_a_lazy_layer_can_be_loaded(tmp_path: Path) -> None:
    tied = Tied()
    save_model(tied, str(tmp_path / "tied"))
    other = load_weights(Tied(), tmp_path / "tied")
    assert torch.equal(other.second.weight, tied.first.weight)
    assert other.second.weight is other.first.weight
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "linear")
    assert load_weights(nn.LazyLinear(2), tmp_path / "linear").weight.shape == (2, 3)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


MISFITS = [
    (lambda s: without(s, "6.bias"), r"does not fit Net: missing: 6\.bias$"),
    (lambda s: s | {"extra": torch.zeros(1)}, r"does not fit Net: unknown: extra$"),
    (
        lambda s: s | {"6.bias": torch.zeros(11)},
        r"shapes: 6\.bias is \(11,\), the model's \(10,\)$",
    ),
    (lambda s: {}, r"missing: 0\.mean, .* and 2 more$"),
    (
        lambda s: {f"module.{key}": v for key, v in s.items()},
        r"missing: .*; unknown: module\.0\.mean",
    ),
]


@pytest.mark.parametrize(("change", "words"), MISFITS)
def test_what_does_not_fit_is_named_and_changes_nothing(
    tmp_path: Path, net: nn.Module, change, words: str
) -> None:
    before = {key: value.clone() for key, value in net.state_dict().items()}
    save_file(change({key: 2 * value for key, value in before.items()}), tmp_path / "x")
    with pytest.raises(ValueError, match=words):
        load_weights(net, tmp_path / "x")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(ConvNet().state_dict(), tmp_path / "convnet")
    with pytest.raises(ValueError, match=r"does not fit Net: missing: 2\.weight"):
        load_weights(Net(), tmp_path / "convnet")


def test_a_wrong_hash_comes_before_everything_else(tmp_path: Path, net: nn.Module) -> None:
    path = tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    with pytest.raises(ValueError, match=r"net.safetensors has SHA-256 .* another file"):
        load_weights(Net(), path, NOTHING)


def test_broken_files_are_refused(tmp_path: Path, net: nn.Module) -> None:
    content = save(net.state_dict())
    for part in (
        content[:-1],
        content[:100],
        content[:4],
        b"",
        b"<html>404</html>",
        content + b"x",
    ):
        with pytest.raises(ValueError, match="is no whole safetensors file"):
            load_weights(Net(), stored(tmp_path / "x", part))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_without_being_opened(tmp_path: Path, protocol: int) -> None:
    path = stored(tmp_path / "net.pkl", pickle.dumps({"w": 1, "c": Command()}, protocol))
    with pytest.raises(ValueError, match=r"net.pkl is a pickle .* run code .* scan_pickle"):
        load_weights(Net(), path)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_save_writes_is_refused(tmp_path: Path, net: nn.Module, zipped: bool) -> None:
    torch.save(net.state_dict(), tmp_path / "x", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="is a pickle"):
        load_weights(Net(), tmp_path / "x")


def test_a_safetensors_file_has_no_place_for_a_command() -> None:
    with pytest.raises(ValueError, match="Key `command` is invalid"):
        save({"weights": torch.zeros(1), "command": Command()})


# --- pickles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "wrap", [lambda c: c, lambda c: {"a": 1, "b": ["x", c, (c, c)]}, lambda c: (c,)]
)
def test_a_command_is_seen_in_every_protocol(tmp_path: Path, protocol: int, wrap) -> None:
    report = scan_pickle(stored(tmp_path / "x", pickle.dumps(wrap(Command()), protocol)))
    assert report.globals == (f"{os.system.__module__}.system",) == report.unexpected
    assert report.complete
    assert report.suspicious
    assert report.calls >= 1


def test_several_commands_are_listed_once_each(tmp_path: Path) -> None:
    several = [Command(), Command(exec, "0"), Command(), Command(getattr, "", "join")]
    report = scan_pickle(stored(tmp_path / "x", pickle.dumps(several)))
    assert report.globals == (f"{os.system.__module__}.system", "builtins.exec", "builtins.getattr")
    assert report.calls == 4


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@settings(max_examples=60)
@given(value=plain, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
@example(value=[["a", "a"], "posix", "system"], protocol=4)
def test_plain_values_ask_for_nothing(
    tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int
) -> None:
    path = stored(tmp_path_factory.mktemp("plain") / "x", pickle.dumps(value, protocol))
    report = scan_pickle(path)
    assert report.complete
    # before protocol 3 there are no bytes: they are written as text and a call that encodes it
    assert set(report.globals) <= (
        {"_codecs.encode", "__builtin__.bytes"} if protocol < 3 else set()
    )


@settings(max_examples=60)
@given(value=plain, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL), data=st.data())
def test_what_runs_before_a_break_is_seen(
    tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int, data: st.DataObject
) -> None:
    """A pickle that breaks off after its command has run it by then."""
    whole = pickle.dumps([Command(), value], protocol)
    start = pickle.dumps([Command()], protocol)
    cut = data.draw(st.integers(len(start) - 1, len(whole) - 1))
    report = scan_pickle(stored(tmp_path_factory.mktemp("cut") / "x", whole[:cut]))
    assert f"{os.system.__module__}.system" in report.globals
    assert report.suspicious
    assert not report.complete


@settings(max_examples=100)
@given(st.binary(max_size=60))
@example(b"R")
@example(b"\x80\x04\x93.")
@example(b"h\x05.")
@example(b"2.")
@example(b"(.")
def test_a_scan_of_anything_ends_with_a_report(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    if not content.startswith(b"PK"):
        report = scan_pickle(stored(tmp_path_factory.mktemp("any") / "x", content))
        assert report.complete or report.suspicious


def test_a_name_that_is_worked_out_at_run_time_is_unknown_and_suspicious(tmp_path: Path) -> None:
    computed = b"\x80\x04N\x8c\x06system\x93."  # None, "system", STACK_GLOBAL
    registered = b"\x80\x02\x82\x01."  # an extension code
    for content in (computed, registered):
        report = scan_pickle(stored(tmp_path / "x", content))
        assert report.globals == ("?",)
        assert report.suspicious


def test_a_name_may_come_from_the_memo(tmp_path: Path) -> None:
    stack = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93."
    assert scan_pickle(stored(tmp_path / "x", stack)).globals == ("posix.system",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_ordinary_weights_are_not_suspicious(
    tmp_path: Path, zipped: bool, dtype: torch.dtype
) -> None:
    state = OrderedDict(w=torch.zeros(3, 2).to(dtype), p=nn.Parameter(torch.ones(2)), n=3)
    path = tmp_path / "x"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    report = scan_pickle(path)
    assert not report.suspicious, report
    assert "torch._utils._rebuild_tensor_v2" in report.globals


@pytest.mark.parametrize("zipped", [True, False])
def test_a_command_among_weights_is_seen(tmp_path: Path, net: nn.Module, zipped: bool) -> None:
    path = tmp_path / "x"
    torch.save({"w": net.state_dict(), "c": Command()}, path, _use_new_zipfile_serialization=zipped)
    assert scan_pickle(path).unexpected == (f"{os.system.__module__}.system",)


def test_the_scan_agrees_with_torch_s_own(tmp_path: Path, net: nn.Module) -> None:
    """torch lists what its restricted loader refuses; ours allows a little less than torch."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    for value in (net.state_dict(), net, {"c": Command(), "d": Command(getattr, "", "join")}):
        torch.save(value, tmp_path / "x")
        theirs = set(get_unsafe_globals_in_checkpoint(tmp_path / "x"))
        ours = set(scan_pickle(tmp_path / "x").unexpected)
        assert theirs <= {name.replace("__builtin__", "builtins") for name in ours}
        assert ours - theirs <= {"__builtin__.set", "__builtin__.getattr"}


def test_an_archive_without_a_pickle_is_named(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "no weights here")
    with pytest.raises(ValueError, match=r"x\.zip is an archive without a pickle"):
        scan_pickle(tmp_path / "x.zip")
    with pytest.raises(ValueError, match=r"cut\.zip is no whole archive"):
        scan_pickle(stored(tmp_path / "cut.zip", (tmp_path / "x.zip").read_bytes()[:40]))
