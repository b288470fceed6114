"""`make execute` stores the same bytes twice, and nothing at all when a cell fails."""

import base64

import execute
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from test_notebooks import png


@pytest.fixture
def notebook(tmp_path):
    """Return a function that writes a notebook of the given cells and returns its path."""

    def write(*sources, **metadata):
        path = tmp_path / "sample.ipynb"
        cells = [new_code_cell(source) for source in sources]
        nbformat.write(new_notebook(cells=cells, metadata=metadata), path)
        return path

    return write


def test_running_twice_gives_the_same_bytes(notebook, capsys):
    path = notebook(
        "import os, sys, time",
        "for n in range(3):\n    print(n)\n    sys.stdout.flush()\n    time.sleep(0.3)",
        'os.getcwd().endswith(os.path.basename(os.getcwd())), os.environ["OMP_NUM_THREADS"]',
        kernelspec={"name": "python3", "display_name": "my own", "language": "python"},
        widgets={"state": {}},
    )
    assert execute.main([str(path)]) == 0
    first = path.read_bytes()
    assert execute.main([str(path)]) == 0
    assert path.read_bytes() == first
    assert "unchanged" in capsys.readouterr().out
    stored = nbformat.read(path, as_version=4)
    assert stored.metadata == execute.METADATA
    assert [cell.execution_count for cell in stored.cells] == [1, 2, 3]
    # Three pieces of one stream are stored as one.
    assert [output.text for output in stored.cells[1].outputs] == ["0\n1\n2\n"]
    assert stored.cells[2].outputs[0].data["text/plain"] == "(True, '1')"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("tags", [[], ["raises-exception"]], ids=["plain", "tagged"])
def test_a_failing_cell_stores_nothing(notebook, capsys, tags):
    path = notebook("print(1)", "1 / 0")
    spoilt = nbformat.read(path, as_version=4)
    spoilt.cells[1].metadata.tags = tags
    nbformat.write(spoilt, path)
    before = path.read_bytes()
    assert execute.main([str(path)]) == 1
    assert path.read_bytes() == before
    message = capsys.readouterr().err
    assert "1 / 0" in message
    assert "nothing is stored" in message


def test_figures_lose_the_name_of_what_drew_them():
    figure = new_output("display_data", {"image/png": png()})
    assert b"Software" in base64.b64decode(figure.data["image/png"])
    kept = base64.b64decode(execute.plain(figure).data["image/png"])
    assert b"Software" not in kept
    assert kept.startswith(execute.PNG_START)
    assert all(kind in kept for kind in (b"IHDR", b"IDAT", b"IEND"))


def test_identifiers_are_given_once_and_kept():
    notebook = new_notebook(cells=[new_code_cell("x = 1"), new_code_cell("x = 1")])
    del notebook.cells[0]["id"]
    notebook.cells[1]["id"] = "mine"
    ids = [cell.id for cell in execute.normalised(notebook).cells]
    assert ids == [cell.id for cell in execute.normalised(notebook).cells]
    assert ids[1] == "mine"
    assert ids[0] != "mine"


def test_names_of_notebooks(tmp_path):
    chapter = tmp_path / "chapters" / "attacks" / "gradient.ipynb"
    copy = tmp_path / "chapters" / ".ipynb_checkpoints" / "gradient.ipynb"
    for path in (chapter, copy):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    for name in ("chapters", "attacks/gradient", "chapters/attacks/gradient.ipynb", str(chapter)):
        assert execute.notebooks(name, tmp_path) == [chapter]
    with pytest.raises(FileNotFoundError, match="NB=gradients is neither"):
        execute.notebooks("gradients", tmp_path)
    assert execute.main(["gradients"]) == 1
