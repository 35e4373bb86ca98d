"""The shape of the code: one import order, a core free of Python and torch, one version."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tttnn
from tttnn import _core

ROOT = Path(__file__).resolve().parents[1]

# A file may import only files to its left.
ORDER = [
    *(
        "errors",
        "version",
        "settings",
        "config",
        "precision",
        "models",
        "_core",
        "corpus",
        "store",
        "files",
        "passages",
    ),
    *("encoder_files", "encoder_tokens", "attention", "linear", "packed", "pooling", "embed", "index"),
    *(
        "segments",
        "neighbors",
        "retriever",
        "retrieval",
        "stages",
        "builder",
        "compaction",
        "estimate",
        "importer",
        "datastore",
    ),
    *("selection", "windows", "schedule", "pace", "memory"),
    *("layout", "shared", "blocks", "arena", "cuda_step", "optim"),
    *("loss", "score", "portion"),
    *("lora", "subset", "adaptation_report", "guard", "reuse", "adapt", "recipe"),
    *("statistics", "measured", "results", "result_file"),
    *("protocols", "overlap", "cases", "baselines", "evaluation", "workers", "audit"),
    *("reference", "runs", "extremes", "markup", "plots", "figures", "sections", "closeups", "markdown", "report"),
    *("demo", "harness", "flags", "terminal", "cli"),
]


def imports_of(path: Path) -> set[str]:
    """Names of tttnn's files that a file imports, at the top or inside a function; for types alone does not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and id(node) not in skipped:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("name", [n for n in ORDER if n != "_core"])
def test_imports_point_left(name: str) -> None:
    for imported in imports_of(ROOT / "tttnn" / f"{name}.py") - {"__version__"}:
        assert ORDER.index(imported) < ORDER.index(name), f"{name} imports {imported}"


def test_every_file_has_its_place() -> None:
    files = {path.stem for path in (ROOT / "tttnn").glob("*.py")} - {"__init__", "__main__"}
    assert files == set(ORDER) - {"_core"}


def test_core_knows_neither_python_nor_torch() -> None:
    for path in (ROOT / "csrc" / "core").iterdir():
        for include in re.findall(r'#include\s*[<"]([^>"]+)', path.read_text()):
            assert not re.match(r"(Python|pybind11|torch|ATen|c10)", include), f"{path.name} includes {include}"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == tttnn.__version__ == _core.build_info()["version"]


def test_import_is_light() -> None:
    code = (
        "import tttnn, sys; tttnn.AdaptConfig(); print(sorted({'torch', 'transformers', 'hnswlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_module_named_after_its_function() -> None:
    for path in (ROOT / "tttnn").glob("*.py"):
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert path.stem not in names, path.name


def test_public_names_exist() -> None:
    for name in tttnn.__all__:
        assert getattr(tttnn, name) is not None


def test_libraries_neither_print_nor_read_the_environment() -> None:
    for name in set(ORDER) - {"_core", "cli"}:
        tree = ast.parse((ROOT / "tttnn" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{name} prints"
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("environ", "getenv"), f"{name} reads the environment"
