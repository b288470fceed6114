"""The package as a whole: which way its parts depend on each other, its size, its manners."""

import ast
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import modelsec

PACKAGE = Path(modelsec.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# What a module may import of the package: only what stands in a lower layer, or in its own folder.
LAYERS = [
    {"fetch"},
    {"intervals", "tables", "losses", "models", "data", "patients", "roc", "sign_art"},
    {"pretrained", "threat", "training", "credit", "signs"},
    {"attacks", "cleaning", "augmentation", "validation", "driving"},
    {"repair"},
    {"zoo", "claims", "plot"},
    {"audit", "check"},
    {"studies"},  # in zoo/studies: experiments may end in an audit card
    {"loading", "doctor"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part(path: Path) -> str:
    """The package's part that a file belongs to: "attacks" for attacks/gradient.py, "studies" for zoo/studies."""
    parts = path.relative_to(PACKAGE).parts
    return "studies" if "studies" in parts else parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports say the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_the_package(tree: ast.AST) -> set[str]:
    used = {name.split(".")[1] for name in imports(tree) if name.startswith("modelsec.")}
    return used - {"__version__"}


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


@each_file
def test_dependencies_point_one_way(path: Path) -> None:
    here = part(path)
    used = of_the_package(TREES[path]) - {here}
    if here == "__init__":
        assert not used
        return
    assert here in LEVEL, f"{here} is new: say in LAYERS where it stands"
    if here == "threat":
        used -= {"attacks", "repair"}  # table() imports them when it is called: the registry fills
    for other in used:
        assert LEVEL[other] < LEVEL[here] or {other, here} == {"threat", "training"}, other


@each_file
def test_no_module_imports_a_chapter_a_peer_or_another_s_internals(path: Path) -> None:
    for name in imports(TREES[path]):
        root = name.split(".")[0]
        assert root not in {"chapters", "tests", "benchmarks", "tools"}
        assert root not in {"torchattacks", "foolbox", "art", "cleverhans", "adv_lib", "cleanlab"}
        assert root not in {"tensorflow", "keras"}
        if root == "modelsec":
            last = name.split(".")[-1]
            assert not last.startswith("_") or last == "__version__", name


def test_attacks_know_nothing_of_repair_grading_or_figures() -> None:
    for path in FILES:
        if part(path) == "attacks":
            used = set(imports(TREES[path]))
            assert not {name for name in used if "matplotlib" in name}
            assert not of_the_package(TREES[path]) & {"repair", "check", "plot", "claims", "zoo"}


@each_file
def test_no_module_is_too_long_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def lines_of_code(tree: ast.AST) -> int:
    """Lines that hold code: blank lines, comments and docstrings are there for the reader."""
    stripped = ast.parse(ast.unparse(tree))
    for node in ast.walk(stripped):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return len([line for line in ast.unparse(stripped).splitlines() if line.strip()])


def test_the_package_is_small() -> None:
    """A teacher's code. The exercises' graders and the long experiments grow with the book: not counted."""
    counted = [path for path in FILES if not {"check", "studies"} & set(path.parts)]
    attacks = [path for path in counted if part(path) in {"attacks", "repair"}]
    rest = sum(lines_of_code(TREES[path]) for path in counted if path not in attacks)
    assert rest <= 5000
    # what the book teaches: about a screen and a half for each attack or repair
    assert all(lines_of_code(TREES[path]) <= 300 for path in attacks)


def public(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef, bool]]:
    """(name, node, whether it is a method) of every public function, class and method."""
    for node in TREES[path].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node, False
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner, True


@each_file
def test_what_is_public_is_explained(path: Path) -> None:
    assert ast.get_docstring(TREES[path]), "the module says what it is for"
    for name, node, _ in public(path):
        assert ast.get_docstring(node), name


LISTED = {
    (path, name)
    for path in FILES
    for node in TREES[path].body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    for name in ast.literal_eval(node.value)
}
FUNCTIONS = [
    pytest.param(node, id=f"{path.relative_to(PACKAGE)}:{name}")
    for path in FILES
    for name, node, method in public(path)
    if isinstance(node, ast.FunctionDef) and not method and (path, name) in LISTED
]


@pytest.mark.parametrize("node", FUNCTIONS)
def test_what_a_reader_calls_says_what_it_takes_and_returns(node: ast.FunctionDef) -> None:
    """Where there is more than one parameter; one alone may be named in the first sentence."""
    text = ast.get_docstring(node) or ""
    parameters = [a.arg for a in [*node.args.args, *node.args.kwonlyargs]]
    takes, _, gives = text.partition("Returns:")
    if len(parameters) > 1:
        assert "Args:" in takes
        assert [name for name in parameters if name not in takes.split("Args:")[1]] == []
        if node.returns and not ast.unparse(node.returns).startswith(("None", "Iterator")):
            assert gives, "it returns something"


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@each_file
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    forbidden = {"eval", "exec", "np.load", "numpy.load", "joblib.load"}
    assert not forbidden & set(calls(TREES[path]))
    for node in ast.walk(TREES[path]):  # a package's own .pth, of which no code is run
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in [ast.unparse(key) for key in node.keywords]
    roots = {name.split(".")[0] for name in imports(TREES[path])}
    assert not roots & {"pickle", "dill", "joblib", "shelve", "marshal"}


FACTORIES = {"zeros", "ones", "full", "empty", "eye", "arange", "linspace", "tensor", "as_tensor"}
FACTORIES |= {"rand", "randn", "randint", "randperm"}


def test_no_tensor_is_made_without_a_device() -> None:
    for path in FILES:
        if part(path) in {"attacks", "repair", "losses", "training"}:
            for node in ast.walk(TREES[path]):
                if isinstance(node, ast.Call):
                    owner, _, last = ast.unparse(node.func).rpartition(".")
                    if owner == "torch" and last in FACTORIES:
                        assert "device" in {key.arg for key in node.keywords}, ast.unparse(node)


SEEDING = ("manual_seed", "manual_seed_all", "seed", "set_rng_state", "seed_all", "seed_everything")
OWNERS = {"torch", "torch.default_generator", "torch.cuda", "torch.mps", "random", "np.random", ""}


def test_nobody_reseeds_behind_the_reader_s_back() -> None:
    """Global seeding stands in few places: where it is asked for, and where the state is put back."""
    found = set()
    for path in FILES:
        for function in ast.walk(TREES[path]):
            if isinstance(function, ast.FunctionDef):
                for name in calls(function):
                    owner, _, last = name.rpartition(".")
                    if last in SEEDING and owner in OWNERS:
                        found.add((part(path), function.name))
    put_back = {("zoo", "make"), ("check", "quiz"), ("models", "drawing_from")}
    assert found == {("__init__", "seed_everything")} | put_back


@each_file
def test_nothing_prints_or_calls_backward_where_it_must_not(path: Path) -> None:
    used = set(calls(TREES[path]))
    if part(path) not in {"claims", "__main__"}:
        assert "print" not in used
    if part(path) == "attacks":
        assert not {name for name in used if name.endswith(".backward")}


def test_seed_everything_seeds_python_numpy_and_torch() -> None:
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        draws = []
        for seed in (3, 3, 4):
            modelsec.seed_everything(seed)
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
        assert draws[0] == draws[1]
        assert all(a != b for a, b in zip(draws[1], draws[2], strict=True))
        for bad in (-1, 2**32):
            with pytest.raises(ValueError, match=r"seed must be from 0 to 2\*\*32 - 1"):
                modelsec.seed_everything(bad)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        torch.set_rng_state(state[2])


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_device_prefers_cuda_then_mps(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert modelsec.device().type == expected


def test_every_exported_name_exists() -> None:
    import importlib

    for path, name in LISTED:
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        assert hasattr(importlib.import_module(module.removesuffix(".__init__")), name), name


def test_slow_libraries_are_imported_where_they_are_used() -> None:
    """Each takes a second or more, which every notebook and every command would wait for."""
    parts = sorted(name for name in LEVEL if name not in {"studies", "__main__"})
    slow = ["torchvision", "scipy", "sklearn", "opacus", "tensorflow", "pandas", "IPython"]
    code = f"import sys, {', '.join(f'modelsec.{name}' for name in parts)}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = done.stdout.split()
    assert "modelsec.attacks.gradient" in found
    assert not set(slow) & set(found)
