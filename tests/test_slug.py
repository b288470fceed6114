"""The repository's address stands in one place, is the same everywhere, and changes everywhere or nowhere."""

import re
import shutil

import pytest
import slug

NEW = "some-owner/the.book_2"


@pytest.fixture
def copy(root, tmp_path):
    """Return a copy of every file that names the repository."""
    for path in slug.files(root):
        target = tmp_path / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_name_the_same_repository(root):
    """No file names another GitHub repository of ours, and those that must name it do."""
    wanted = slug.current(root)
    for name in slug.REQUIRED:
        assert wanted in (root / name).read_text(encoding="utf-8"), f"{name} does not name {wanted}"
    name = wanted.split("/")[1]
    for path in slug.files(root):
        text = path.read_text(encoding="utf-8")
        for owner in re.findall(rf"([\w.-]+)/{re.escape(name)}(?![\w-])", text):
            assert owner in {wanted.split("/")[0], f"{wanted.split('/')[0]}.github.io"}, path


def test_renaming_there_and_back_restores_every_byte(copy):
    (copy / "docs.md").write_text(
        "[site](https://modelsec.example.github.io/model-security-in-practice/)"
    )
    before, old = contents(copy), slug.current(copy)
    changed = slug.rename(NEW, copy)
    assert {copy / name for name in slug.REQUIRED} <= set(changed)
    assert slug.current(copy) == NEW
    assert not any(old.encode() in data for data in contents(copy).values())
    if old == "modelsec.example/model-security-in-practice":
        assert "some-owner.github.io/the.book_2/" in (copy / "docs.md").read_text()
    assert set(contents(copy)) == set(before), "a temporary file is left"
    # The placeholder is no name that GitHub allows, so the way back needs the check out of the way.
    for path in changed:
        path.write_text(slug.rewritten(path.read_text("utf-8"), NEW, old), "utf-8")
    assert contents(copy) == before


def test_notebooks_install_from_the_new_repository(copy):
    notebooks = [path for path in slug.files(copy) if path.suffix == ".ipynb"]
    assert notebooks
    slug.rename(NEW, copy)
    line = f'modelsec @ git+https://github.com/{NEW}\\"'
    for path in notebooks:
        assert line in path.read_text(encoding="utf-8"), path


BAD = [
    "",
    "owner",
    "owner/",
    "/name",
    "a/b/c",
    "-a/b",
    "a--b/c",
    "a.b/c",
    "a b/c",
    "a/b.git",
    "a/..",
]
BAD += ["ü/b", "https://github.com/a/b", "a/b\n", f"{'a' * 40}/b", "a/b c", 'a/b"']


@pytest.mark.parametrize("bad", BAD)
def test_bad_names_are_refused_and_change_nothing(copy, bad):
    before = contents(copy)
    with pytest.raises(
        ValueError, match="REPO must be a GitHub repository such as REPO=owner/name"
    ):
        slug.rename(bad, copy)
    assert contents(copy) == before


@pytest.mark.parametrize("good", ["a/b", "A-b-1/c.d_e-f", "octo/octo.github.io", f"{'a' * 39}/b"])
def test_good_names(good):
    assert slug.check(good) == good


def test_a_file_that_lost_its_address_stops_it(copy):
    readme = copy / "README.md"
    readme.write_text("# Nothing here\n")
    before = contents(copy)
    with pytest.raises(ValueError, match=r"should name .* and do not: README\.md"):
        slug.rename(NEW, copy)
    assert contents(copy) == before


def test_a_failure_half_way_undoes_all(copy, monkeypatch):
    before, replace, calls = contents(copy), slug.replace, []

    def fails_at_the_third(path, data):
        calls.append(path)
        if len(calls) == 3:
            raise OSError("no space left")
        replace(path, data)

    monkeypatch.setattr(slug, "replace", fails_at_the_third)
    with pytest.raises(OSError, match="no space left"):
        slug.rename(NEW, copy)
    assert len(calls) > 3, "what was written has to be written back"
    assert contents(copy) == before


def test_only_whole_names_change():
    text = "a/b xa/b a/bc a/b-c a/b.git (a/b) https://github.com/a/b/issues a.github.io/b/ z.a/b"
    expected = (
        "N/m xa/b a/bc a/b-c N/m.git (N/m) https://github.com/N/m/issues n.github.io/m/ z.a/b"
    )
    assert slug.rewritten(text, "a/b", "N/m") == expected
