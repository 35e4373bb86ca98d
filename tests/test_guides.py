"""What the documentation shows is so: every code block of it runs as it stands, every error and setting is described.

Each page runs in a folder of its own that holds what its reader has: a corpus, documents to ask about, a datastore. The
demo models' names stand for tiny random models there, so a page is run as written, within seconds; the first hour is
run with the real ones, too.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import tttnn
from tests.conftest import byte_tokenizer, save_model, tiny_gpt2
from tests.encoders import save_encoder
from tests.served import Server
from tests.test_importer import write_flat
from tttnn import errors
from tttnn.cli import program
from tttnn.models import DEMO_MODELS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

SERVER_PAGE = "serving.md"
ELSEWHERE = {"json.md": "tests/test_json_outputs.py compares every output with its shapes"}
"""Pages whose blocks another file of tests reads."""

NEVER = {
    "--watch": "ends with Ctrl-C alone",
    "--workers": "processes, which tests/test_leaves.py runs",
    "--update": "needs documents that came or went, which tests/test_leaves.py has",
    "tttnn serve": "ends with a signal alone; its server runs beside this page",
    "make serve": "fetches the demo's models",
    "pip install": "installs from the network",
    "lm-eval run": "tests/test_server.py asks a server so",
}
"""Commands that are left out wherever they stand, by a part of them, and why."""

OF_OTHERS = {"--help", "--model_args", "--tasks", "--metadata", "--limit", "--model", "--config-settings"}
"""Flags of click, lm-evaluation-harness and pip."""

PAGES = sorted(path for path in DOCS.glob("*.md") if path.name not in ELSEWHERE)


def blocks_of(page: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yield the blocks of code of a page: language, text, and why it is not run; None where it is."""
    text = page.read_text(encoding="utf-8")
    pattern = r"(?:<!-- not run: ([^\n]*?) -->\n)?^```(\{?\w*\}?)[^\n]*\n(.*?)^```$"
    for found in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        if not found[2].startswith("{"):
            yield found[2], found[3], found[1]


def commands_of(block: str) -> Iterator[str]:
    """Yield the commands of a block for a shell, those over several lines as one."""
    command = ""
    for line in block.splitlines():
        command += line + "\n"
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quotation that the next line closes
            continue
        if not line.endswith("\\"):
            if words:
                yield command.strip()
            command = ""
    assert not command, f"a quotation stays open: {command}"


def run_command(command: str) -> None:
    """Run one command: ours in this process, where no shell is needed, else by a shell."""
    words = shlex.split(command, comments=True)
    if words[0] == "tttnn" and not {"|", ">", ";"} & set(words):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                program.main()
        assert not ended.value.code, command
        return
    # The environment of the tests need not be an activated one.
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def run_python(block: str, names: dict[str, Any]) -> None:
    """Run a block of Python with the names that the page's earlier blocks made; it may await."""
    code = compile(block, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, names))
    else:
        exec(code, names)


def run_page(page: Path, *, port: int | None = None) -> int:
    """Run the blocks of a page in the working directory; return how many ran."""
    names: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    for language, block, reason in blocks_of(page):
        if reason is not None or language == "text":
            continue
        if port is not None:
            block = block.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        if language in ("", "sh"):
            for command in commands_of(block):
                if not any(part in command for part in NEVER):
                    run_command(re.sub(r"^curl ", "curl -sS --fail-with-body ", command))
        elif language == "python":
            run_python(block, names)
        elif language == "toml":
            tomllib.loads(block)
            Path(re.match(r"# (\S+)", block)[1]).write_text(block)  # type: ignore[index]
        elif language == "yaml":
            yaml.safe_load(block)
        else:
            assert language in ("ini",), f"{page.name}: nothing is known of {language}"
        ran += 1
    for value in names.values():
        if isinstance(value, tttnn.TestTimeTrainer):
            value.release()
    return ran


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what a reader of any page has, and the demo models' names for tiny models."""
    folder, cache = tmp_path_factory.mktemp("reader"), tmp_path_factory.mktemp("cache")
    places = {name: cache / "models" / f"{name}-{model.sha256[:12]}" for name, model in DEMO_MODELS.items()}
    for place in places.values():
        place.mkdir(parents=True)
    save_model(places["smollm2-135m"], tiny_gpt2(n_positions=512), byte_tokenizer())
    save_encoder(places["minilm-l6"])
    shutil.copytree(places["smollm2-135m"], folder / "my-model")
    shutil.copytree(places["minilm-l6"], folder / "my-encoder")
    drawn = random.Random(0)
    words = [f"{a}{b}" for a in ("ka", "lo", "mi", "ter", "so") for b in ("ran", "vel", "dit", "mos", "pel", "gur")]
    texts = [" ".join(drawn.choices(words, k=24)) for _ in range(20)]  # which share no eight words: an audit is clean
    rows = [
        json.dumps({"text": text, "meta": {"pile_set_name": ["Github", "Books"][i % 2]}}) + "\n"
        for i, text in enumerate(texts)
    ]
    parts = {"all": rows, "train": rows[:14], "val": rows[14:16], "test": rows[16:], "asked": rows[:2]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(part))
    (folder / "corpus").mkdir()
    for i, text in enumerate(texts[:8]):
        (folder / "corpus" / f"{i}.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTTNN_CACHE", str(cache))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.chdir(folder)
        embedder = tttnn.Embedder.load("minilm-l6")
        tttnn.Datastore.build("pile-00", tttnn.iter_jsonl("train.jsonl"), embedder).close()
        write_flat(folder / "vectors.index", embedder.embed(texts[:14]))
        measured = "--methods ttt-nn,in-context --num-neighbors 2 --curve 0,2 --out results.jsonl"
        run_command(f"tttnn eval pile-00 val.jsonl {measured}")
        yield folder


@pytest.fixture
def reader(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, in which this process works."""
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != SERVER_PAGE], ids=lambda page: page.stem)
def test_every_block_runs(page: Path, reader: Path) -> None:
    if page.name == "first-hour.md":  # as written: in an empty folder
        for name in reader.iterdir():
            shutil.rmtree(name) if name.is_dir() else name.unlink()
    elif "--out results.jsonl" in page.read_text(encoding="utf-8"):
        (reader / "results.jsonl").unlink()
        (reader / "results.jsonl.seconds").unlink()
    run_page(page)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_block_of_the_server_runs(reader: Path) -> None:
    server = Server.__new__(Server)
    server.log = reader / "log"
    command = shlex.split("-m tttnn serve pile-00 --model smollm2-135m --port 0 --threads 1 --max-length 64")
    server.started([sys.executable, *command, "--num-neighbors", "2"])
    try:
        server.wait_ready()
        assert run_page(DOCS / SERVER_PAGE, port=server.port) > 6
    finally:
        assert server.stop() == 0


@pytest.mark.models
@pytest.mark.slow
def test_the_first_hour_with_the_real_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(DOCS / "first-hour.md")


def generator() -> Any:
    """The program that makes pages of the code."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "_generate.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_generated_pages_name_everything() -> None:
    made = generator()
    api, settings, commands = made.api_page(), made.settings_page(), made.commands_page()
    for name in set(tttnn.__all__) - {"PRESETS", "__version__", "models"}:
        assert f":: tttnn.{name}\n" in api, name
    for cls in made.settings_classes():
        for name in cls().to_dict():
            assert f"| `{name}` |" in settings.split(f"## {cls.__name__}\n")[1].split("\n## ")[0], name
    for name, command in program.app.commands.items():
        part = commands.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for option in command.params:
            if not getattr(option, "hidden", False):
                assert all(f"`{flag}" in part or f" {flag}" in part for flag in option.opts if flag[:2] == "--"), option


def test_every_error_is_explained() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    explained = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert explained == list(generator().described_errors())
    told = re.findall(r"^\| `(\w+)` \| \d+ \|", page, re.MULTILINE)
    (listed,) = re.findall(r"code: why, in a word: ([^.]*)\.", inspect.getdoc(errors.RefusedError) or "")
    assert told == listed.split(", ")


def every_command(group: click.Group) -> Iterator[click.Command]:
    """Yield the commands of a group, those of groups in it too."""
    for command in group.commands.values():
        yield from every_command(command) if isinstance(command, click.Group) else [command]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_flags_that_are_named_are_there(page: Path) -> None:
    ours = {
        flag
        for command in [program.app, *every_command(program.app)]
        for option in command.params
        for flag in (*option.opts, *option.secondary_opts)
    }
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"))
    named = {
        flag
        for code in re.findall(r"`(-[^`\n]*)`|^(tttnn [^\n]*)$", text, re.MULTILINE)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", "".join(code).split(" #")[0])
    }
    assert named <= ours | OF_OTHERS, sorted(named - ours - OF_OTHERS)


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, reader: Path) -> None:
    """From its first cell to its last, with bars and tables as HTML; it is kept without what it printed."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cells = nbformat.read(notebook, as_version=4)
    code = [cell for cell in cells.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    nbclient.NotebookClient(cells, timeout=300, resources={"metadata": {"path": str(reader)}}).execute()
    outputs = [output for cell in code for output in cell.outputs]
    # tqdm tells of bars that it could draw with another package; nothing of ours complains.
    told = [output.text for output in outputs if output.get("name") == "stderr"]
    assert [text for text in told if "TqdmWarning" not in text] == []
    html = "".join(output.data.get("text/html", "") for output in outputs if "data" in output)
    if notebook.stem == "researcher":
        for part in ("<progress value=", "loss before its steps", "ratio [95 % interval]", "of 3 neighbors"):
            assert part in html, part
    assert len(outputs) >= 3, outputs


def test_badges_are_true() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"![Python {project['requires-python'].removeprefix('>=')} or newer]" in page
    assert f"![{project['license']}]" in page
    for target in re.findall(r"\]\(((?!https?:|#)[^)\s#]+)", page):
        assert (ROOT / target).exists(), target
