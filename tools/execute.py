"""Run notebooks from top to bottom and store their outputs: `make execute [NB=...]`.

What is stored depends on the notebook alone: no times, no library versions, no output in scattered pieces, so that
running twice gives the same bytes. A notebook in which a cell fails is left as it was.
"""

import base64
import hashlib
import os
import struct
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
# One thread and no progress bars; the kernels inherit this.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MODELSEC_PROGRESS": "0",
    "TQDM_DISABLE": "1",
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}
# What editors leave in cells: it tells a reader nothing and changes from run to run.
EDITOR_KEYS = {"ExecuteTime", "collapsed", "colab", "execution", "id", "outputId", "scrolled"}
CELL_SECONDS = 180
BUDGET_SECONDS = 90
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = {b"tEXt", b"iTXt", b"zTXt", b"tIME", b"eXIf"}


def main(names: list[str]) -> int:
    """Execute each notebook named; return 1 if one of them failed."""
    os.environ.update(ENVIRONMENT)
    try:
        paths = [path for name in names for path in notebooks(name)]
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    if not paths:
        print("There is no notebook to execute.", file=sys.stderr)
        return 1
    return max(execute(path) for path in paths)


def notebooks(name: str, root: Path = ROOT) -> list[Path]:
    """Find what NB= means: a file, a folder, or a chapter's bare name such as `loss` or `attacks/gradient`."""
    for path in (root / name, root / "chapters" / f"{name}.ipynb"):
        if path.is_dir():
            found = path.resolve().rglob("*.ipynb")
            return sorted(p for p in found if ".ipynb_checkpoints" not in p.parts)
        if path.suffix == ".ipynb" and path.is_file():
            return [path.resolve()]
    raise FileNotFoundError(f"NB={name} is neither a notebook, nor a folder, nor a chapter's name.")


def execute(path: Path) -> int:
    """Run one notebook and store it; return 1, with the notebook untouched, if a cell failed."""
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    print(f"{shown} ...", flush=True)
    start = time.monotonic()
    try:
        notebook = run(path)
    except (CellExecutionError, CellTimeoutError, DeadKernelError, ValueError) as error:
        print(f"{error}\n{shown}: nothing is stored.", file=sys.stderr)
        return 1
    stored = store(notebook, path)
    took = time.monotonic() - start
    note = f" That is over the budget of {BUDGET_SECONDS} s." if took > BUDGET_SECONDS else ""
    print(f"{shown}: {took:.0f} s, {'stored' if stored else 'unchanged'}.{note}", flush=True)
    return 0


def run(path: Path) -> NotebookNode:
    """Return the notebook with fresh outputs, in the form in which it is stored."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_SECONDS,
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    # The reader's own IPython start-up files and history must not leak into what is stored.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = folder
        client.execute()
    # A cell tagged `raises-exception` does not stop the run, but an error is no output to store either.
    for cell in notebook.cells:
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            raise ValueError(f"This cell ended in an error:\n{cell.source}")
    return normalised(notebook)


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Remove what differs between two runs of the same notebook, or between two editors."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata.pop("widgets", None)
    notebook.metadata.update(METADATA)
    for number, cell in enumerate(notebook.cells):
        if "id" not in cell:
            cell.id = hashlib.sha256(f"{number}{cell.source}".encode()).hexdigest()[:8]
        for key in EDITOR_KEYS.intersection(cell.metadata):
            del cell.metadata[key]
        if cell.cell_type == "code":
            cell.outputs = [plain(output) for output in merged(cell.outputs)]
    return notebook


def merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring pieces of one stream: where they break is a matter of timing."""
    result: list[NotebookNode] = []
    for output in outputs:
        last = result[-1] if result else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            result.append(output)
    return result


def plain(output: NotebookNode) -> NotebookNode:
    """Take the name and version of the library that drew a figure out of its PNG."""
    data = output.get("data", {})
    if "image/png" in data:
        png = without_text(base64.b64decode(data["image/png"]))
        data["image/png"] = base64.b64encode(png).decode() + "\n"
    return output


def without_text(png: bytes) -> bytes:
    """Return a PNG without its text, time and camera chunks; the pixels stay as they are."""
    if not png.startswith(PNG_START):
        raise ValueError("An output that calls itself image/png is none.")
    kept, position = [PNG_START], len(PNG_START)
    while position < len(png):
        # A chunk is its data's length, four letters of type, the data, and four bytes of checksum.
        length, kind = struct.unpack(">I4s", png[position : position + 8])
        end = position + 12 + length
        if kind not in PNG_TEXT:
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def store(notebook: NotebookNode, path: Path) -> bool:
    """Write the notebook in one step, unless the file holds these bytes already; tell whether it was written."""
    nbformat.validate(notebook)
    data = (nbformat.writes(notebook) + "\n").encode("utf-8")
    if path.read_bytes() == data:
        return False
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["chapters"]))
