"""The manifest: every planted change is named, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelsec.cleaning import provenance
from modelsec.cleaning.provenance import (
    Changes,
    manifest,
    read_manifest,
    verify,
    write_manifest,
)
from modelsec.data import Data


def tiny(n: int = 6, seed: int = 0) -> Data:
    x = torch.rand(n + 2, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    y = torch.arange(n + 2) % 3
    return Data("tiny", x[:n], y[:n], x[n:], y[n:], ("a", "b", "c"), "here", "free")


DATA, KNOWN = tiny(), manifest(tiny())


def with_train(x=None, y=None) -> Data:
    return replace(
        DATA, x_train=DATA.x_train if x is None else x, y_train=DATA.y_train if y is None else y
    )


def test_unchanged_data_are_unchanged() -> None:
    found = verify(tiny(), KNOWN)
    assert not found
    assert found == Changes()
    assert str(found) == "nothing changed"
    assert manifest(tiny()).fingerprint == KNOWN.fingerprint
    assert set(KNOWN.entries) == {"classes", *(f"train/{i}" for i in range(6)), "test/0", "test/1"}


@given(index=st.integers(0, 5), pixel=st.integers(0, 3), bit=st.integers(0, 31))
def test_every_single_bit_of_an_image_counts(index, pixel, bit) -> None:
    x = DATA.x_train.clone()
    bits = x.view(torch.int32).view(6, 4)
    mask = 1 << bit if bit < 31 else -(1 << 31)
    bits[index, pixel] ^= mask
    found = verify(with_train(x), KNOWN)
    assert found == Changes(altered=(f"train/{index}",))
    assert manifest(with_train(x)).fingerprint != KNOWN.fingerprint


@given(index=st.integers(0, 5), label=st.integers(0, 2))
def test_a_changed_label_is_told_from_a_changed_image(index, label) -> None:
    y = DATA.y_train.clone()
    y[index] = label
    same = label == int(DATA.y_train[index])
    assert verify(with_train(y=y), KNOWN) == Changes(relabelled=() if same else (f"train/{index}",))


@given(index=st.integers(0, 5))
def test_a_removed_sample_is_named_and_those_behind_it_have_moved(index) -> None:
    rest = torch.arange(6) != index
    found = verify(with_train(DATA.x_train[rest], DATA.y_train[rest]), KNOWN)
    assert found.removed == (f"train/{index}",)
    assert found.moved == tuple(f"train/{i}" for i in range(index + 1, 6))
    assert not found.added + found.altered + found.relabelled


@given(place=st.integers(0, 6))
def test_an_added_sample_is_named(place) -> None:
    new = torch.full((1, 1, 2, 2), 0.5)
    x = torch.cat([DATA.x_train[:place], new, DATA.x_train[place:]])
    y = torch.cat([DATA.y_train[:place], torch.tensor([2]), DATA.y_train[place:]])
    found = verify(with_train(x, y), KNOWN)
    assert (*found.added, *found.altered) == (f"train/{place}",) or found.added == ("train/6",)
    assert len(found.added) == 1
    assert not found.removed + found.relabelled


def test_a_second_copy_of_a_sample_is_an_added_one() -> None:
    x, y = torch.cat([DATA.x_train, DATA.x_train[:1]]), torch.cat([DATA.y_train, DATA.y_train[:1]])
    assert verify(with_train(x, y), KNOWN) == Changes(added=("train/6",))


def test_a_new_order_is_told_from_new_content() -> None:
    order = torch.tensor([1, 0, 2, 3, 5, 4])
    found = verify(with_train(DATA.x_train[order], DATA.y_train[order]), KNOWN)
    assert found == Changes(moved=("train/0", "train/1", "train/4", "train/5"))
    assert found  # the order is a change too


def test_two_labels_that_change_places_are_two_wrong_labels() -> None:
    y = DATA.y_train.clone()
    y[0], y[1] = DATA.y_train[1], DATA.y_train[0]
    assert verify(with_train(y=y), KNOWN) == Changes(relabelled=("train/0", "train/1"))


def test_a_label_changed_behind_a_removed_sample_is_still_found() -> None:
    x, y = DATA.x_train[1:], DATA.y_train[1:].clone()
    y[-1] = (y[-1] + 1) % 3
    found = verify(with_train(x, y), KNOWN)
    assert (found.removed, found.relabelled) == (("train/0",), ("train/4",))


def test_a_leak_from_test_to_train_and_renamed_classes_are_seen() -> None:
    x, y = torch.cat([DATA.x_train, DATA.x_test]), torch.cat([DATA.y_train, DATA.y_test])
    assert verify(with_train(x, y), KNOWN).added == ("train/6", "train/7")
    swapped = replace(DATA, classes=("a", "c", "b"))
    assert verify(swapped, KNOWN) == Changes(altered=("classes",))


def test_the_summary_names_three_and_counts_all() -> None:
    y = (DATA.y_train + 1) % 3
    assert str(verify(with_train(y=y), KNOWN)) == "6 relabelled: train/0, train/1, train/2, ..."


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "deep").mkdir(parents=True)
    for name in ("a.bin", "b.bin", "deep/c.bin"):
        (root / name).write_bytes(name.encode() * 3)
    return root


def test_a_folder_s_files_are_taken_down_at_any_depth(folder: Path) -> None:
    known = manifest(folder)
    assert set(known.entries) == {"a.bin", "b.bin", "deep/c.bin"}
    assert not verify(str(folder), known)


def test_every_change_of_a_folder_is_named(folder: Path) -> None:
    known = manifest(folder)
    content = bytearray((folder / "a.bin").read_bytes())
    content[0] ^= 1
    (folder / "a.bin").write_bytes(content)
    assert verify(folder, known) == Changes(altered=("a.bin",))
    (folder / "b.bin").unlink()
    (folder / "new.bin").write_bytes(b"new")
    assert verify(folder, known) == Changes(
        added=("new.bin",), removed=("b.bin",), altered=("a.bin",)
    )


def test_a_renamed_file_has_moved(folder: Path) -> None:
    known = manifest(folder)
    (folder / "b.bin").rename(folder / "z.bin")
    assert verify(folder, known) == Changes(moved=("b.bin",))


def test_the_manifest_may_lie_in_the_folder(folder: Path) -> None:
    path = folder / "manifest.json"
    write_manifest(manifest(folder), path)
    known = read_manifest(path)
    assert not verify(folder, known, leave_out=path)
    assert verify(folder, known) == Changes(added=("manifest.json",))


def test_links_and_missing_folders_are_refused(folder: Path) -> None:
    with pytest.raises(NotADirectoryError, match="is no folder"):
        manifest(folder / "nowhere")
    (folder / "link").symlink_to(folder / "a.bin")
    with pytest.raises(ValueError, match="is a link"):
        manifest(folder)


# --- the file -------------------------------------------------------------------------------------


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    assert write_manifest(KNOWN, path) == KNOWN.fingerprint
    assert read_manifest(path) == KNOWN
    assert read_manifest(path, KNOWN.fingerprint) == KNOWN
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def test_a_damaged_manifest_is_noticed_and_a_rewritten_one_by_its_fingerprint(tmp_path) -> None:
    path = tmp_path / "m.json"
    write_manifest(KNOWN, path)
    content = json.loads(path.read_text())
    content["entries"]["train/0"] = content["entries"]["train/1"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was changed or damaged"):
        read_manifest(path)
    forged = with_train(y=(DATA.y_train + 1) % 3)  # labels changed, and the manifest made anew
    write_manifest(manifest(forged), path)
    assert not verify(forged, read_manifest(path))
    with pytest.raises(ValueError, match="was changed or damaged"):
        read_manifest(path, KNOWN.fingerprint)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "entries": 2, "fingerprint": 3}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no manifest"):
        read_manifest(path)


def test_a_failed_write_leaves_the_old_manifest(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "m.json"
    write_manifest(KNOWN, path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(provenance.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_manifest(manifest(tiny(seed=1)), path)
    assert read_manifest(path) == KNOWN
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]
