"""Downloads, from a server on this machine: taken up again, checked, and nothing half of a file trusted."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from torchvision import datasets

from modelsec import fetch as module
from modelsec.fetch import DataSet, FetchError, File, fetch, fetch_files, intact, sets

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """Its folders behave differently; it notes what it was asked for."""

    address: str
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def file(self, *folders: str) -> File:
        urls = tuple(f"{self.address}/{folder}/digits.gz" for folder in folders)
        return File("some/digits.gz", urls, "sha256", DIGEST)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        folder, wanted = self.path.split("/")[1], self.headers["Range"]
        self.server.asked.append((folder, wanted))  # type: ignore[attr-defined]
        if folder == "missing":
            return self.send_error(404, "Not Found")
        if folder == "moved":
            self.send_response(302)
            self.send_header("Location", "/range/digits.gz")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = b"<!DOCTYPE html>" * 9000 if folder.startswith("page") else CONTENT
        start = 0
        if wanted and folder not in {"plain", "plain-short", "page-short", "chunks"}:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        rest = content[start:]
        if folder != "chunks":
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if folder in {"short", "plain-short", "page-short"}:
            rest = rest[:100_000]
        if folder == "slow":
            for begin in range(0, len(rest), 1000):
                self.wfile.write(rest[begin : begin + 1000])
                time.sleep(0.05)
            return None
        self.wfile.write(rest)
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found = Server(f"http://127.0.0.1:{http.server_port}")
        http.asked = found.asked  # type: ignore[attr-defined]
        Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield found
        http.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "some").iterdir()}


@pytest.mark.parametrize("folder", ["range", "plain", "chunks", "moved"])
def test_a_file_arrives_under_its_own_name(server: Server, folder: str, tmp_path: Path) -> None:
    file = server.file(folder)
    assert not intact(file, tmp_path)
    assert fetch_files([file], tmp_path) == [tmp_path / "some" / "digits.gz"]
    assert contents(tmp_path) == {"digits.gz": CONTENT}
    assert intact(file, tmp_path)


def test_what_is_there_whole_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    fetch_files([server.file("range")], tmp_path)
    assert fetch_files([server.file("range")], tmp_path) == []
    assert len(server.asked) == 1


def test_a_damaged_file_is_replaced(server: Server, tmp_path: Path) -> None:
    fetch_files([server.file("range")], tmp_path)
    (tmp_path / "some" / "digits.gz").write_bytes(CONTENT[:-1])
    assert len(fetch_files([server.file("range")], tmp_path)) == 1
    assert contents(tmp_path) == {"digits.gz": CONTENT}


def test_a_damaged_file_stays_until_the_right_one_is_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "digits.gz").write_bytes(b"damaged")
    with pytest.raises(FetchError):
        fetch_files([server.file("missing")], tmp_path)
    assert contents(tmp_path) == {"digits.gz": b"damaged"}


def begin(folder: Path, content: bytes) -> Path:
    part = folder / "some" / "digits.gz.part"
    part.parent.mkdir()
    part.write_bytes(content)
    return part


def test_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    begin(tmp_path, CONTENT[:5000])
    fetch_files([server.file("range")], tmp_path)
    assert contents(tmp_path) == {"digits.gz": CONTENT}
    assert server.asked == [("range", "bytes=5000-")]


def test_begins_anew_where_the_server_cannot_send_a_rest(server: Server, tmp_path: Path) -> None:
    begin(tmp_path, CONTENT[:5000])
    fetch_files([server.file("plain")], tmp_path)
    assert contents(tmp_path) == {"digits.gz": CONTENT}
    assert server.asked == [("plain", "bytes=5000-")]


def test_all_of_it_under_the_wrong_name_needs_no_server(tmp_path: Path) -> None:
    begin(tmp_path, CONTENT)
    fetch_files([File("some/digits.gz", (f"{closed()}/x",), "sha256", DIGEST)], tmp_path)
    assert contents(tmp_path) == {"digits.gz": CONTENT}


@pytest.mark.parametrize(
    "leftover",
    [b"something else", CONTENT + b"and more", bytes(len(CONTENT))],
    ids=["another beginning", "too much", "as long, but wrong"],
)
def test_what_does_not_belong_to_the_file_is_dropped(
    server: Server, leftover: bytes, tmp_path: Path
) -> None:
    begin(tmp_path, leftover)
    fetch_files([server.file("range")], tmp_path)
    assert contents(tmp_path) == {"digits.gz": CONTENT}
    assert server.asked == [("range", f"bytes={len(leftover)}-"), ("range", None)]


def test_a_transfer_that_breaks_off_again_and_again_gets_there(
    server: Server, tmp_path: Path
) -> None:
    fetch_files([server.file("short")], tmp_path)
    assert contents(tmp_path) == {"digits.gz": CONTENT}
    assert server.asked == [
        ("short", None),
        ("short", "bytes=100000-"),
        ("short", "bytes=200000-"),
    ]


def test_a_transfer_that_gets_no_further_is_given_up_and_kept(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match=r"broke off, 156,000 bytes are missing"):
        fetch_files([server.file("plain-short")], tmp_path)
    assert contents(tmp_path) == {"digits.gz.part": CONTENT[:100_000]}
    assert not intact(server.file(), tmp_path)
    fetch_files([server.file("range")], tmp_path)
    assert server.asked[-1] == ("range", "bytes=100000-")
    assert contents(tmp_path) == {"digits.gz": CONTENT}


@pytest.mark.parametrize("first", ["missing", "page", "plain-short", "page-short"])
def test_the_second_mirror_takes_over(server: Server, first: str, tmp_path: Path) -> None:
    fetch_files([server.file(first, "range")], tmp_path)
    assert contents(tmp_path) == {"digits.gz": CONTENT}
    assert [folder for folder, _ in server.asked].count("range") in {1, 2}


@pytest.mark.parametrize("leftover", [b"", b"<!DOCTYPE html>"])
def test_another_file_is_refused_and_leaves_nothing(
    server: Server, leftover: bytes, tmp_path: Path
) -> None:
    if leftover:
        begin(tmp_path, leftover)
    with pytest.raises(FetchError, match=r"/page/digits.gz: sent another file \(sha256 is wrong\)"):
        fetch_files([server.file("page")], tmp_path)
    assert contents(tmp_path) == {}


def closed() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_says_what_each_mirror_answered_and_what_to_do(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File(
        "some/digits.gz",
        (f"{server.address}/missing/x", f"{closed()}/x", "http://nowhere.invalid/x"),
        "sha256",
        DIGEST,
    )

    def resolve(host: str, *rest: object, real: Callable = socket.getaddrinfo) -> object:
        if host == "nowhere.invalid":  # a name is not looked up outside, not even this one
            raise socket.gaierror(-2, "Name or service not known")
        return real(host, *rest)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(FetchError) as error:
        fetch_files([file], tmp_path)
    first, missing, refused, unknown, advice = str(error.value).splitlines()
    assert first == "digits.gz could not be fetched:"
    assert missing.endswith("/missing/x: HTTP 404 Not Found")
    assert "Connection refused" in refused
    assert "Name or service not known" in unknown
    assert str(tmp_path / "some" / "digits.gz") in advice
    assert contents(tmp_path) == {}


def test_a_server_that_falls_silent_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/x"
        with pytest.raises(FetchError, match=r"no answer within 0\.2 s"):
            fetch_files([File("x", (url,), "sha256", DIGEST)], tmp_path)


def test_a_full_disk_is_not_the_mirror_s_fault(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left") as error:
        fetch_files([server.file("range", "plain")], tmp_path)
    assert not isinstance(error.value, FetchError)
    assert len(server.asked) == 1


def test_shows_a_bar_only_if_asked(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("MODELSEC_PROGRESS", "0")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    fetch_files([server.file("range")], tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    fetch_files([server.file("range")], tmp_path / "b", progress=True)
    out, err = capfd.readouterr()
    assert (out, "digits.gz" in err) == ("", True)


PROGRAM = """
import sys
from modelsec.fetch import File, fetch_files
fetch_files([File("some/digits.gz", (sys.argv[1],), "sha256", sys.argv[2])], sys.argv[3])
"""


def test_control_c_leaves_what_the_next_call_goes_on_with(server: Server, tmp_path: Path) -> None:
    url = f"{server.address}/slow/digits.gz"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, DIGEST, str(tmp_path)],
        env=os.environ | {"MODELSEC_PROGRESS": "0"},
        stderr=subprocess.DEVNULL,
    )
    part = tmp_path / "some" / "digits.gz.part"
    until = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0
    (name,) = contents(tmp_path)
    assert name == "digits.gz.part"
    have = part.stat().st_size
    assert CONTENT.startswith(part.read_bytes())
    assert 0 < have < len(CONTENT)
    fetch_files([server.file("range")], tmp_path)
    assert contents(tmp_path) == {"digits.gz": CONTENT}
    assert server.asked[-1] == ("range", f"bytes={have}-")


# --- the data sets ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
def test_torchvision_says_what_to_fetch_and_finds_it_there(name: str, kind: str) -> None:
    files = sets[name].files()
    dataset = getattr(datasets, kind)
    assert [(Path(file.path).name, file.digest) for file in files] == dataset.resources
    for file in files:
        assert file.path == f"{kind}/raw/{Path(file.path).name}"
        assert file.urls == tuple(mirror + Path(file.path).name for mirror in dataset.mirrors)
        assert all(url.startswith(("https://", "http://")) for url in file.urls)


def test_a_set_is_fetched_by_its_name(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sets, "some", DataSet("a test", 1, lambda: [server.file("range")]))
    assert fetch("some", tmp_path) == [tmp_path / "some" / "digits.gz"]
    assert fetch("some", tmp_path) == []


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data set 'cifar'.*there are \['fashion', 'mnist'\]"):
        fetch("cifar", tmp_path)
