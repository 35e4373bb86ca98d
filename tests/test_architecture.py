"""The shape of the code: one import order, a core free of Python and torch, one version."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tttnn
from tttnn import _core

ROOT = Path(__file__).resolve().parents[1]

# What a package may import, beside the single files at the top (`SINGLE`), in the order of the data.
MAY_IMPORT = {
    "kernels": set(),
    "formats": set(),
    "store": {"formats"},
    "embedding": {"kernels"},
    "retrieval": {"store"},
    "datastore": {"store", "embedding", "retrieval"},
    "weights": set(),
    "lm": {"kernels", "retrieval"},
    "training": {"kernels", "retrieval", "weights", "lm"},
    "instant": {"retrieval", "datastore", "weights", "lm", "training"},
    "cluster": {"store", "embedding", "retrieval", "datastore"},
    "recipe": {"kernels", "store", "embedding", "retrieval", "datastore", "weights", "lm", "training", "instant"}
    | {"cluster"},
    "evaluation": {"store", "retrieval", "lm", "training", "recipe"},
    "report": {"evaluation"},
    "engines": {"kernels", "embedding", "retrieval", "weights", "lm", "training", "instant", "recipe"},
    "dispatch": {"recipe", "engines"},
    "server": {"recipe", "engines", "dispatch"},
    "cli": {"kernels", "store", "embedding", "retrieval", "datastore", "weights", "lm", "training", "instant", "recipe"}
    | {"cluster", "evaluation", "report", "engines", "dispatch", "server"},
}

# Single files: each may import those before it, and every package any of them.
SINGLE = (
    "errors",
    "version",
    "stages",
    "undone",
    "processes",
    "worker_pool",
    "settings",
    "config",
    "files",
    "model_folder",
    "models",
)

# Files that need one package more than theirs, for one thing.
ALSO = {
    "evaluation/workers": {"weights"},  # the pristine weights that worker processes share
    "dispatch/async_trainer": {"retrieval"},  # the filter that a query may have
    "server/asked": {"retrieval"},
    "report/extremes": {"store", "datastore"},  # the texts of documents that were harmed
}

# Names that other programs import from a package itself, each from the one file that makes it; elsewhere a package's
# `__init__.py` holds a docstring alone. An application that mounts the server should not depend on the server's files.
PUBLIC = {"server": "from .app import create_app\n__all__ = ['create_app']"}

FILES = sorted((ROOT / "tttnn").rglob("*.py"))


def place_of(path: Path) -> str:
    """The package of a file, or the file's own name where it stands alone."""
    return path.relative_to(ROOT / "tttnn").with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Packages and single files that a file imports, anywhere in it; for types alone does not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = ["tttnn", *path.relative_to(ROOT / "tttnn").parts[:-1]]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tttnn.")}
        if not isinstance(node, ast.ImportFrom) or id(node) in skipped:
            continue
        base = package[: len(package) + 1 - node.level] if node.level else []
        target = [*base, *(node.module.split(".") if node.module else [])]
        if target[:1] == ["tttnn"]:
            found |= {target[1]} if len(target) > 1 else {alias.name for alias in node.names}
    return found - {"_core"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "tttnn")))
def test_a_file_imports_what_its_package_may(path: Path) -> None:
    place = place_of(path)
    if place in ("__init__", "__main__"):
        return
    found = imports_of(path) - {place}
    if place in SINGLE:
        allowed = set(SINGLE[: SINGLE.index(place)])
    else:
        name = str(path.relative_to(ROOT / "tttnn").with_suffix(""))
        allowed = {*SINGLE, *MAY_IMPORT[place], *ALSO.get(name, set())}
    assert found <= allowed, f"{path.name} imports {', '.join(sorted(found - allowed))}"


def test_packages_point_one_way() -> None:
    order = list(MAY_IMPORT)
    for place, allowed in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(place) for other in allowed), place
    assert {place_of(path) for path in FILES} == {*MAY_IMPORT, *SINGLE, "__init__", "__main__"}


def test_files_of_a_package_import_each_other_without_a_circle() -> None:
    for package in MAY_IMPORT:
        arrows = {path.stem: siblings_of(path) for path in (ROOT / "tttnn" / package).glob("*.py")}
        done: set[str] = set()
        while arrows:
            free = [name for name, needed in arrows.items() if needed <= done]
            assert free, f"{package}: a circle among {', '.join(sorted(arrows))}"
            done |= set(free)
            arrows = {name: needed for name, needed in arrows.items() if name not in done}


def siblings_of(path: Path) -> set[str]:
    """Files of its own package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


def test_packages_are_flat_and_begin_with_a_docstring_and_public_names_only() -> None:
    for package in {*MAY_IMPORT} - {"recipe"}:
        folder = ROOT / "tttnn" / package
        assert {child.name for child in folder.iterdir() if child.is_dir()} <= {"tasks", "web", "__pycache__"}, package
        body = ast.parse((folder / "__init__.py").read_text()).body
        assert isinstance(body[0], ast.Expr), package
        assert "\n".join(map(ast.unparse, body[1:])) == PUBLIC.get(package, ""), package


def test_core_knows_neither_python_nor_torch() -> None:
    for path in (ROOT / "csrc" / "core").iterdir():
        for include in re.findall(r'#include\s*[<"]([^>"]+)', path.read_text()):
            assert not re.match(r"(Python|pybind11|torch|ATen|c10)", include), f"{path.name} includes {include}"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert tttnn.__version__ == _core.build_info()["version"]
    assert f"\nversion: {tttnn.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{tttnn.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_import_is_light() -> None:
    code = (
        "import tttnn, sys; tttnn.AdaptConfig(); print(sorted({'torch', 'transformers', 'hnswlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_module_named_after_its_function() -> None:
    for path in FILES:
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert path.stem not in names, path.name


def test_public_names_exist() -> None:
    for name in tttnn.__all__:
        assert getattr(tttnn, name) is not None


def test_libraries_neither_print_nor_read_the_environment() -> None:
    for path in FILES:
        if place_of(path) == "cli":
            continue
        name, tree = path.name, ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{name} prints"
            if isinstance(node, ast.Attribute):
                # One variable, $TTTNN_CACHE, means the same to the library and to its command line.
                assert name == "models.py" or node.attr not in ("environ", "getenv"), f"{name} reads the environment"


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
@pytest.mark.parametrize(
    ("order", "free_threaded", "said"),
    [("LITTLE_ENDIAN", 0, ""), ("BIG_ENDIAN", 0, "little-endian processor"), ("LITTLE_ENDIAN", 1, "free-threaded one")],
)
def test_what_it_is_not_built_for_is_refused_when_configured(order: str, free_threaded: int, said: str) -> None:
    given = [f"-DTTTNN_BYTE_ORDER={order}", f"-DTTTNN_FREE_THREADED={free_threaded}"]
    command = ["cmake", *given, "-P", str(ROOT / "cmake" / "platform.cmake")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == bool(said)
    assert said in " ".join(done.stderr.split())
