"""What holds of every command: flags, bars, lines where there is no terminal, and one sentence for whatever is odd."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from rich.console import Console

import tttnn
from tests.conftest import tiny_gpt2
from tests.encoders import save_encoder
from tests.test_importer import write_flat
from tttnn.cli import exit_codes
from tttnn.cli import program as cli
from tttnn.cli.bars import Bars
from tttnn.dispatch.engine_link import engine_command
from tttnn.store.corpus import iter_corpus

ROWS = [{"text": f"document {i} of {'ab'[i % 2]} " + f"word{i} " * 12, "meta": {"n": i}} for i in range(12)]


@dataclass(frozen=True)
class Place:
    """A folder with a model, an encoder, a corpus, a datastore of two segments with a deletion, and results."""

    folder: Path

    def __truediv__(self, name: str) -> str:
        return str(self.folder / name)


def run(*arguments: str) -> int:
    """Run the command line in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tttnn", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return int(caught.value.code or 0)


def output_of(*arguments: str, stderr: io.StringIO | None = None) -> str:
    """Run a command that succeeds; return what it printed."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(stderr or io.StringIO()) as err:
        assert run(*arguments) == 0, err.getvalue()
    out.flush()
    return out.buffer.getvalue().decode()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Place:
    """Make the folder."""
    made = Place(tmp_path_factory.mktemp("commands"))
    tiny_gpt2().save_pretrained(made / "model")
    tokenizer.save_pretrained(made / "model")
    save_encoder(made.folder / "encoder")
    lines = [json.dumps(row) + "\n" for row in ROWS]
    (made.folder / "corpus.jsonl").write_text("".join(lines[:8]))
    (made.folder / "more.jsonl").write_text("".join(lines[8:]))
    output_of("build", made / "corpus.jsonl", made / "store", "--embedder", made / "encoder")
    output_of("append", made / "more.jsonl", made / "store")
    output_of("delete", made / "store", "3")
    output_of("import", made / "corpus.jsonl", made / "texts.zst")
    report = output_of("generate", made / "store", "a query", *adapting(made), "--json")
    (made.folder / "report.json").write_text(report)
    output_of(*evaluating(made, "results.jsonl"))
    return made


def adapting(place: Place) -> list[str]:
    return ["--model", place / "model", "--num-neighbors", "2", "--max-new-tokens", "3"]


def evaluating(place: Place, out: str) -> list[str]:
    lengths = ["--query-tokens", "40", "--scored-tokens", "40", "--num-neighbors", "2", "--curve", "0,2"]
    return ["eval", place / "store", place / "corpus.jsonl", "--model", place / "model", "--out", place / out, *lengths]


def invocations(place: Place, folder: Path) -> dict[str, list[str]]:
    """Return a call of every command that can take long."""
    vectors = write_flat(folder / "flat.index", np.ones((8, 16), np.float32))
    encoder = ["--embedder", place / "encoder"]
    documents = ["--documents", place / "corpus.jsonl", "--model", place / "model"]
    return {
        "build": ["build", place / "corpus.jsonl", str(folder / "built"), *encoder],
        "dry run": ["build", place / "corpus.jsonl", str(folder / "dry"), "--dry-run", *encoder],
        "append": ["append", place / "more.jsonl", str(folder / "copy")],
        "compact": ["compact", str(folder / "copy")],
        "import": ["import", place / "corpus.jsonl", str(folder / "imported")],
        "import --faiss": ["import", place / "corpus.jsonl", str(folder / "flat"), "--faiss", str(vectors)],
        "export": ["export", place / "store", str(folder / "exported")],
        "export -": ["export", place / "store", "-"],
        "repair": ["repair", place / "texts.zst", str(folder / "repaired")],
        "verify": ["verify", place / "store"],
        "generate": ["generate", place / "store", "a query", *adapting(place)],
        "generate --queries": ["generate", place / "store", "--queries", str(folder / "queries"), *adapting(place)],
        "search --queries": ["search", place / "store", "--queries", str(folder / "queries")],
        "replay": ["replay", place / "report.json", place / "store", "--model", place / "model"],
        "eval": evaluating(place, f"{folder.name}.jsonl"),
        "audit": ["audit", place / "results.jsonl", "--datastore", place / "store", *documents],
    }


LONG = ("build", "dry run", "append", "compact", "import", "import --faiss", "export", "export -", "repair", "verify")
LONG += ("generate", "generate --queries", "search --queries", "replay", "eval", "audit")


@pytest.fixture
def calls(place: Place, tmp_path: Path) -> dict[str, list[str]]:
    shutil.copytree(place / "store", tmp_path / "copy", symlinks=True)
    (tmp_path / "queries").write_text("a query\nanother\n")
    return invocations(place, tmp_path)


@pytest.mark.parametrize("name", LONG)
def test_a_long_command_says_how_far_it_is_without_a_terminal(
    calls: dict[str, list[str]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each step took half a minute: every command must tell a stage, its count and its total or seconds."""
    now = iter(range(0, 10**9, 30))
    original = Bars.__init__
    monkeypatch.setattr(
        Bars, "__init__", lambda self, report=None: original(self, report, clock=lambda: float(next(now)))
    )
    err = io.StringIO()
    out = output_of(*calls[name], stderr=err)
    told = re.compile(r"[a-z ()]+: [\d,]+( of [\d,]+ \(\d+%\))?, ")
    lines = [line for line in err.getvalue().splitlines() if told.match(line)]
    assert lines, err.getvalue()
    assert any("(100%)" in line or " of " not in line for line in lines)
    assert "\x1b" not in out + err.getvalue()
    assert "\r" not in out + err.getvalue()


@pytest.mark.parametrize("name", LONG)
def test_a_bar_of_a_command_only_goes_forward_and_ends(
    calls: dict[str, list[str]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int, int | None]] = []
    original = Bars.__call__

    def watched(self: Bars, stage: str, done: int, total: int | None) -> None:
        steps.append((stage, done, total))
        original(self, stage, done, total)

    monkeypatch.setattr(Bars, "__call__", watched)
    output_of(*calls[name])
    monkeypatch.undo()
    assert steps
    last = {stage: (done, total) for stage, done, total in steps}
    for stage, (end, whole) in last.items():
        done = [step for name, step, _ in steps if name == stage]
        assert done == sorted(done), stage
        assert whole is None or end == whole, stage
    for width in (60, 80, 120):
        drawn = io.StringIO()
        with Bars(console=Console(file=drawn, force_terminal=True, width=width, color_system=None)) as bars:
            for stage, count, total in steps:
                bars(stage, count, total)
        lines = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", drawn.getvalue()) if "\u2501" in line]
        assert max(map(len, lines)) <= width
        for stage, (end, whole) in last.items():
            count_shown = f"{end}/{'?' if whole is None else whole}"
            assert any(line.startswith(stage) and count_shown in line for line in lines), (stage, width)


@pytest.mark.parametrize("name", sorted(cli.app.commands))
def test_a_command_that_loads_a_model_says_where_and_how(name: str) -> None:
    options = [option for option in cli.app.commands[name].params if isinstance(option, click.Option)]
    every = {flag for option in options for flag in option.opts}
    loading = {flag for option in options if getattr(option, "group", "") == "Models" for flag in option.opts}
    embeds = "--embedder" in every or name in ("append", "demo", "replay")
    # audit reads texts with the tokenizer of a model; lm-eval hands its arguments on (see `TttnnLM`).
    trains = ("--model" in every and name != "audit") or name == "demo"
    assert ({"--device", "--threads"} <= loading) == (embeds or trains)
    # Experts are trained in float32 alone, and are those of the weights in it.
    assert ("--dtype" in loading) == (trains and name not in ("precompute", "export-expert", "build", "search"))


@pytest.mark.parametrize("name", ["build", "append", "search", "generate", "replay", "eval", "demo", "serve"])
def test_an_absent_device_is_named_before_anything_is_loaded(
    name: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tttnn.models, "resolve", lambda *_, **__: pytest.fail("a model was looked for"))
    arguments = {
        "build": ["build", place / "corpus.jsonl", str(tmp_path / "d")],
        "append": ["append", place / "more.jsonl", place / "store"],
        "search": ["search", place / "store", "a"],
        "generate": ["generate", place / "store", "a"],
        "replay": ["replay", place / "report.json", place / "store"],
        "eval": ["eval", place / "store", place / "corpus.jsonl", "--out", str(tmp_path / "r")],
        "demo": ["demo", "--out", str(tmp_path / "demo")],
        "serve": ["serve", place / "store", "--port", "0"],
    }[name]
    # The server's own process loads no model; its engine ends with the same sentence.
    assert run(*arguments, "--device", "cdua") == (exit_codes.FAILED if name == "serve" else exit_codes.USAGE)
    assert "device must be one of torch's, like cpu or cuda:0, got 'cdua'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_many_queries_are_answered_from_a_file_and_from_standard_input(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"query": "document 1"}, {"query": "document 2", "id": "ignored"}]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command, extra in (("search", ["-k", "1"]), ("generate", adapting(place))):
        told = [output_of(command, place / "store", "--queries", str(tmp_path / "queries.jsonl"), *extra)]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"document 1\n\ndocument 2\n")))
        told.append(output_of(command, place / "store", "--queries", "-", *extra))
        answers = [[json.loads(line) for line in text.splitlines()] for text in told]
        assert [answer["line"] for answer in answers[0]] == [1, 2]
        assert [answer["line"] for answer in answers[1]] == [1, 3]
        for first, second in zip(*answers, strict=True):
            assert first["query"] == second["query"]
            assert first.get("adapted", first.get("neighbors")) == second.get("adapted", second.get("neighbors"))
        single = output_of(command, place / "store", "document 2", *extra, "--json")
        held = json.loads(single)
        key = "adapted" if command == "generate" else "neighbors"
        assert answers[0][1][key] == (held["adapted"] if command == "generate" else held)


def test_what_was_deleted_is_not_exported(place: Place, tmp_path: Path) -> None:
    output_of("export", place / "store", str(tmp_path / "live.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "live.jsonl").read_text().splitlines()]
    assert [row["meta"]["n"] for row in rows] == [n for n in range(12) if n != 3]
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(printed):
        assert run("export", place / "store", "-") == 0
    assert printed.buffer.getvalue() == (tmp_path / "live.jsonl").read_bytes()


def test_a_dry_run_lists_what_would_be_left_out_and_flags_may_be_given_again(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "sub").mkdir(parents=True)
    for name, content in {"a.py": b"a = 1", "b.md": b"b", "c.txt": b"c", "d.py": b"\xff\0", "sub/e.py": b"e"}.items():
        (corpus / name).write_bytes(content)
    build = ["build", str(corpus), str(tmp_path / "d"), "--embedder", place / "encoder", "--dry-run", "--json"]
    assert run(*build, "--rejects", str(tmp_path / "rejects")) == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out)["documents"], json.loads(shown.out)["rejected"]) == (4, 1)
    assert "left out d.py: is binary" in shown.err
    assert json.loads((tmp_path / "rejects").read_text())["where"] == "d.py"
    for flags, documents in (
        (["--include", "*.py", "--include", "*.md"], 3),
        (["--include", "*.py,*.md"], 3),
        (["--exclude", "*.md", "--exclude", "sub"], 2),
        (["--include", "*.py", "--exclude", "sub", "--exclude", "d*"], 1),
    ):
        assert run(*build, *flags) == 0
        assert json.loads(capsys.readouterr().out)["documents"] == documents
    assert not (tmp_path / "d").exists()


def test_other_fields_are_read_wherever_documents_are(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """eval, audit, report and the task of lm-eval find the same text under another name."""
    documents = tmp_path / "other.jsonl"
    documents.write_text("".join(json.dumps({"body": row["text"], "forum": "x"}) + "\n" for row in ROWS[:3]))
    fields = ["--text-field", "body", "--source-field", "forum"]
    out = str(tmp_path / "r.jsonl")
    call = evaluating(place, "x")
    call[2], call[call.index("--out") + 1] = str(documents), out
    assert {row["group"] for row in json.loads(output_of(*call, *fields, "--json"))["rows"]} == {"x", "all"}
    audit = ["audit", out, "--datastore", place / "store", "--documents", str(documents), "--model", place / "model"]
    # The documents are those of the datastore: their near copies are found, but every text has the digest on record.
    run(*audit, *fields, "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["documents"] == 3
    assert not any("digest" in finding["what"] for finding in report["findings"])
    page = tmp_path / "page.html"
    output_of("report", out, "-o", str(page), "--documents", str(documents), *fields)
    held = page.read_text(encoding="utf-8")
    assert "document 0 of a" in held
    assert "--text-field body --source-field forum" in held
    from tttnn.evaluation.tasks import jsonl

    pytest.importorskip("datasets")
    rows = jsonl.load(str(documents), text_field="body", source_field="forum")["test"]
    assert rows["text"] == [row["text"] for row in ROWS[:3]]
    assert set(rows["group"]) == {"x"}


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Be another user for a while, where this is the superuser, to whom every file can be read."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_cannot_be_read_in_a_folder_is_left_out_with_its_reason() -> None:
    with tempfile.TemporaryDirectory() as held:  # pytest's own folders are closed to other users
        folder = Path(held)
        folder.chmod(0o755)
        (folder / "a.txt").write_text("readable")
        (folder / "b.txt").write_text("secret")
        (folder / "closed").mkdir()
        (folder / "closed" / "c.txt").write_text("secret")
        for name in ("null", "zero"):
            (folder / name).symlink_to(f"/dev/{name}")
        with contextlib.suppress(PermissionError):
            os.mknod(folder / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        (folder / "b.txt").chmod(0)
        (folder / "closed").chmod(0)
        with without_privileges():
            corpus = iter_corpus(folder)
            assert [document.text for document in corpus] == ["readable"]
            with pytest.raises(PermissionError, match=r"b\.txt"):
                list(iter_corpus(folder / "b.txt"))
            closed = iter_corpus(folder / "closed")
            assert list(closed) == []
        reasons = dict(corpus.rejected)
        assert reasons.pop("device", "is a device, not a regular file") == "is a device, not a regular file"
        assert reasons == {
            "b.txt": "cannot be read: Permission denied",
            "closed": "cannot be read: Permission denied",
            "null": "is a device, not a regular file",
            "zero": "is a device, not a regular file",
        }
        assert [reason for _, reason in closed.rejected] == ["cannot be read: Permission denied"]
        (folder / "closed").chmod(0o700)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_missing(place: Place, closed: str) -> None:
    command = shlex.join([sys.executable, "-m", "tttnn", "info", place / "store"])
    done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("11 documents" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_a_full_standard_output_is_named(place: Place) -> None:
    command = shlex.join([sys.executable, "-m", "tttnn", "info", place / "store"])
    done = subprocess.run(["sh", "-c", f"{command} > /dev/full"], capture_output=True, text=True, check=False)
    assert done.returncode == exit_codes.FAILED
    assert done.stderr == "tttnn: standard output: No space left on device\n"


ODD_JSON = (b"", b"{}", b"[]", b"3", b"null", b'"x"', b"{", b"[" * 5000, b"\xff\xfe", b"\0\0", b"NaN")
ODD_JSON += (b'{"text": 3}\n', b'{"tttnn": 3}\n', b'{"format": 99, "digest": "x"}', b'{"report": {"settings": 1}}')
ODD_JSON += (b'{"a": 1}\n[2]\n',)
NO_RESULTS = tuple(content for content in ODD_JSON if content not in (b"", b"{"))  # a run that was cut off is continued
ODD_TOML = (b"x", b"= 1", b"nosuch = 1", b"num_neighbors = {a = 1}", b"num_neighbors = [[1]]", b"[generate]\nx = 1")
ODD_TOML += (b"generate = 3", b"[nosuch]\n", b"learning_rate = 'x'", b"num_neighbors = 1979-05-27", b"\xff", b"\0")
ODD_TOML += (b"num_neighbors = inf", b"device = [1, 2]\nnum_neighbors = -1", b"a" * 5000, b"[generate]\n[generate]\n")
ODD_TOML += (b"[[generate]]\n",)
ODD_NUMBERS = ("", " ", "-1", "x", "nan", "inf", "1e999", "0x10", "1_0e", "\udcff", "--")
ODD_QUERIES = ("", " \n", "caf\udce9", "\udcff\udcfe", "\t")


class Oddities:
    """Draws invocations of which at least one argument is wrong: seeded, so that a failure can be repeated."""

    def __init__(self, place: Place, folder: Path, seed: int) -> None:
        self.place, self.folder = place, folder
        self.random = random.Random(seed)
        self.count = 0

    def file(self, contents: tuple[bytes, ...]) -> str:
        self.count += 1
        path = self.folder / f"odd{self.count}"
        path.write_bytes(self.random.choice(contents))
        return str(path)

    def rows(self) -> str:
        """A file of rows, none of which is a document."""
        path = Path(self.file(ODD_JSON))
        return str(path.rename(path.with_suffix(".jsonl")))

    def no_file(self) -> str:
        """Something that is no file that can be read."""
        kind = self.random.choice(("missing", "folder", "below a file", "long", "bytes", "loop"))
        self.count += 1
        path = self.folder / f"no{self.count}"
        if kind == "folder":
            path.mkdir()
        if kind == "loop":
            path.symlink_to(path)
        names = {"below a file": self.place / "corpus.jsonl/x", "long": str(path) + "x" * 300, "bytes": "\udce9\udcff"}
        return names.get(kind, str(path))

    def json(self) -> str:
        return self.file(ODD_JSON) if self.random.random() < 0.7 else self.no_file()

    def datastore(self) -> str:
        """A folder that is no datastore, or no folder."""
        if self.random.random() < 0.3:
            return self.file(ODD_JSON)
        self.count += 1
        folder = self.folder / f"store{self.count}"
        folder.mkdir()
        name = self.random.choice(("manifest.json", "texts.zst", "other"))
        (folder / name).write_bytes(self.random.choice(ODD_JSON))
        return str(folder)

    def broken_datastore(self) -> str:
        """A datastore of which one file is cut, gone or replaced by a folder."""
        self.count += 1
        folder = self.folder / f"broken{self.count}"
        shutil.copytree(self.place / "store", folder, symlinks=True)
        files = sorted(p for p in folder.rglob("*") if p.name in ("manifest.json", "texts.zst", "index.json"))
        path = self.random.choice([p for p in files if not p.is_symlink()])
        how = self.random.choice(("gone", "folder", "empty", "half", "odd"))
        held = path.read_bytes()
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how != "gone":
            path.write_bytes({"empty": b"", "half": held[: len(held) // 2]}.get(how, self.random.choice(ODD_JSON)))
        return str(folder)

    def target(self) -> str:
        """Where nothing can be written without more being said."""
        taken = self.file((b"mine",))
        return self.random.choice((taken, taken + "/below", self.folder / "no" / "folder", "/dev/null", self.folder))  # type: ignore[return-value]

    def arguments(self) -> list[str]:
        place, pick = self.place, self.random.choice
        store, corpus, model = place / "store", place / "corpus.jsonl", ["--model", place / "model"]
        new = str(self.folder / f"new{self.count}")
        makers = (
            lambda: ["replay", self.json(), store, *model],
            lambda: ["replay", place / "report.json", self.datastore(), *model],
            lambda: ["generate", store, "a", *model, "--config", pick((self.file(ODD_TOML), self.no_file()))],
            lambda: ["generate", store, pick(ODD_QUERIES), *model],
            lambda: ["generate", store, "a", *model, pick(("--num-neighbors", "--deadline-ms")), pick(ODD_NUMBERS)],
            lambda: ["generate", store, "a", "--model", pick((self.no_file(), self.datastore()))],
            lambda: ["search", pick((self.datastore(), self.broken_datastore())), "a"],
            lambda: ["search", store, pick(ODD_QUERIES)],
            lambda: ["search", store, "a", pick(("-k", "--ef", "--threads")), pick(ODD_NUMBERS)],
            lambda: ["search", store, "--queries", self.no_file()],
            lambda: ["search", store, "a", "--embedder", pick((self.no_file(), self.datastore(), place / "model"))],
            lambda: ["search", store, "a", "--source", pick(("", "nosuch", "\udcff"))],
            lambda: ["info", pick((self.datastore(), self.no_file(), self.broken_datastore()))],
            lambda: ["verify", pick((self.datastore(), self.no_file(), self.broken_datastore()))],
            lambda: ["export", self.datastore(), new],
            lambda: ["export", store, str(self.target())],
            lambda: ["repair", self.json(), new],
            lambda: ["import", pick((self.rows(), self.no_file())), new],
            lambda: ["import", corpus, str(self.target())],
            lambda: ["import", corpus, new, "--faiss", self.file(ODD_JSON)],
            lambda: ["import", corpus, new, "--level", pick(ODD_NUMBERS)],
            lambda: ["build", corpus, new, "--embedder", pick((self.no_file(), self.datastore()))],
            lambda: ["build", self.no_file(), new, "--embedder", place / "encoder"],
            lambda: ["append", self.no_file(), store],
            lambda: ["append", corpus, self.datastore()],
            lambda: ["delete", store, pick(("99", "-1", "x", "9" * 30))],
            lambda: ["delete", pick((self.datastore(), self.broken_datastore())), "--source", "nosuch"],
            lambda: ["compact", self.datastore()],
            lambda: ["eval", store, self.rows(), *model, "--out", new, "--num-neighbors", "1"],
            lambda: ["eval", store, corpus, *model, "--out", self.file(NO_RESULTS), "--num-neighbors", "1"],
            lambda: ["eval", store, corpus, *model, "--out", new, "--methods", pick(("x", "base,,y", "\udcff"))],
            lambda: ["audit", self.json(), "--datastore", store, "--documents", corpus, *model],
            lambda: ["report", self.json(), "-o", new],
            lambda: ["report", place / "results.jsonl", "-o", new, "--documents", self.json(), "--datastore", store],
            lambda: ["serve", pick((self.datastore(), self.no_file())), *model, "--port", pick(("-1", "x", "99999"))],
            lambda: [pick(("", "serach", "\udcff", "--nosuch"))],
        )
        return [str(argument) for argument in pick(makers)()]


@pytest.mark.parametrize("seed", range(24))
def test_an_odd_invocation_is_one_sentence(
    seed: int, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oddities = Oddities(place, tmp_path, seed)
    for _ in range(12):
        arguments = oddities.arguments()
        try:
            code = run(*arguments)
        except BaseException as error:
            pytest.fail(f"{arguments}: {error!r}")
        said = capsys.readouterr().err
        assert code in (exit_codes.FAILED, exit_codes.USAGE, exit_codes.DAMAGED), f"{arguments}: {said}"
        assert "Traceback" not in said, arguments
        # An error of a class that nobody expected is told with its name and where to see more.
        assert "--traceback" not in said, (arguments, said)
        sentences = [line for line in said.splitlines() if line.startswith(("tttnn: ", "Error: "))]
        assert len(sentences) == 1, (arguments, said)
        assert said.splitlines()[-1] == sentences[0] or sentences[0].startswith("Error: "), (arguments, said)


def test_modules_of_the_working_directory_take_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine, like pip, imports random, and not the random.py of somebody's project."""
    (tmp_path / "random.py").write_text("raise SystemExit('the random.py of a project')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(tttnn.__file__).parents[1]))
    command = engine_command()
    tried = [*command[: command.index("-m")], "-c", "import random, tttnn; print(random.random() < 1)"]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
    monkeypatch.chdir(Path(tttnn.__file__).parents[1])
    assert "-P" not in engine_command()
