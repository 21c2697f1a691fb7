"""The shape of the house: packages match folders, arrows go one way, nothing grows past its budget."""

from __future__ import annotations

import ast
import graphlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["kernels", "targets", "toolchain"]
# the way of the data; `verify` stands before `export`, which hands out nothing that was not compared
ROOMS = [
    "core",
    "tasks",
    "tools",
    "traces",
    "knowledge",
    "teams",
    "record",
    "student",
    "distill",
    "assess",
    "quantize",
    "verify",
    "export",
    "bench",
    "report",
    "pipeline",
    "desk",
    "commands",
]
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
BESIDE = sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _packages_on_disk() -> set[str]:
    shipped = {".py", ".yaml", ".json", ".jsonl", ".gz", ".html", ".css", ".js"}
    folders = {
        path.parent
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and path.suffix in shipped and "__pycache__" not in path.parts
    }
    return {"soloist." + folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}


def test_package_list_matches_the_disk():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == _packages_on_disk()


def test_every_package_but_kernels_has_an_init():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow the package transformers imports"
    for package in _packages_on_disk() - {"soloist.kernels"}:
        assert (ROOT / package.removeprefix("soloist.").replace(".", "/") / "__init__.py").is_file(), package


def test_each_layer_is_typed():
    assert all((ROOT / layer / "py.typed").is_file() for layer in LAYERS)


def test_tests_are_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path):
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    for name in _imports(path):
        parts = name.split(".")
        assert parts[0] not in LAYERS, f"{path}: bare import of {name}"
        if parts[0] == "soloist":
            assert LAYERS.index(parts[1]) <= layer, f"{path}: imports {name}, which lies above it"


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "soloist." + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {_name(path): path for path in MODULES}


def _arrows(path: Path) -> set[str]:
    """The modules of ours that a module imports, inside functions and for types as well."""
    arrows = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            arrows |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                arrows.add(submodule if submodule in NAMES else node.module)
    return {arrow for arrow in arrows if arrow in NAMES}


def test_no_module_imports_itself_in_a_circle():
    order = graphlib.TopologicalSorter({name: _arrows(path) for name, path in NAMES.items()})
    order.prepare()  # raises CycleError, which names the circle


def _room(name: str) -> str | None:
    """The folder of `toolchain/` that a module stands in; None for the other layers and for the command itself."""
    parts = name.split(".")
    folder = parts[2] if parts[1] == "toolchain" and len(parts) > 2 else None
    return folder if folder is not None and (ROOT / "toolchain" / folder).is_dir() else None


def test_every_folder_is_a_room():
    folders = {path.name for path in (ROOT / "toolchain").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it(room):
    for name, path in NAMES.items():
        if _room(name) == room:
            for arrow in _arrows(path):
                other = _room(arrow)
                if other is None:
                    assert not arrow.startswith("soloist.toolchain"), f"{name} imports {arrow}, the command itself"
                else:
                    assert ROOMS.index(other) <= ROOMS.index(room), f"{name} imports {arrow}, a later room"


@pytest.mark.parametrize("path", MODULES + BESIDE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_size_budget(path):
    budget = 600 if path.parent == ROOT / "kernels" else 400  # a kernel reads from top to bottom in one file
    assert path.read_text().count("\n") <= budget, f"{path} is longer than {budget} lines"
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno} {node.name} is {length} lines long"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_unsafe_calls(path):
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads"), f"{path}:{node.lineno} {name}"
            if name == "torch.load":
                assert "weights_only=True" in ast.unparse(node), f"{path}:{node.lineno} torch.load unpickles"
