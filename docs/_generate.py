"""Write the pages that say what the code says: settings, commands, the Python interface, errors' names.

Knows settings classes, click's commands and `tttnn.__all__`. Holds no sentence about any of them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import click

import tttnn
from tttnn import config, errors
from tttnn.cli.command import Command
from tttnn.cli.manual import commands_of
from tttnn.cli.program import app
from tttnn.settings import Config, describe, text_of

ROOT = Path(__file__).resolve().parents[1]

# The order in which a reader meets the public names; what is missing here stands under the last heading.
API = {
    "Texts": ("Document", "iter_corpus", "iter_jsonl", "iter_parquet", "text_digest", "TextStore", "TextStoreWriter"),
    "Retrieval": ("Embedder", "Datastore", "NeighborIndex", "Neighbor", "Retriever"),
    "Training at query time": (
        "TestTimeTrainer",
        "AdaptedModel",
        "AdaptReport",
        "AsyncTrainer",
        "TrainerRecipe",
        "WeightArena",
        "SharedWeights",
    ),
    "Measuring": ("evaluate", "read_results", "Bars"),
}


def write_all(folder: Path) -> None:
    """Write every generated page; one that would not change keeps its time, so that Sphinx does not read it anew."""
    pages = {"settings.md": settings_page(), "commands.md": commands_page(), "api.rst": api_page()}
    written = {folder / name: text.encode() for name, text in pages.items()} | dict(_records(folder))
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    for path in folder.rglob("*"):
        if path.is_file() and path not in written:
            path.unlink()


def _records(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield the records of what was measured, which pages link to: their files, at the place they have in the site."""
    for path in sorted((ROOT / "benchmarks").rglob("*")):
        if path.suffix in (".md", ".png", ".csv", ".json", ".jsonl") and path.stat().st_size < 2**20:
            yield folder / path.relative_to(ROOT), path.read_bytes()
    for path in sorted((ROOT / "docs" / "pictures").iterdir()):  # which records show, too
        yield folder / path.relative_to(ROOT), path.read_bytes()


def settings_classes() -> list[type[Config]]:
    """Return every class of settings, in the order of the file."""
    return [
        value
        for value in vars(config).values()
        if inspect.isclass(value) and issubclass(value, Config) and value is not Config
    ]


def settings_page() -> str:
    """Return the page of all settings, a table for each class."""
    lines = [
        "# All settings",
        "",
        "Made from the settings classes, whose defaults are the only ones there are. On the command line a setting is",
        "a flag (`num_neighbors` is `--num-neighbors`), in a file for `--config` a line (`num-neighbors = 5`), in",
        "Python a keyword (`tttnn.AdaptConfig(num_neighbors=5)`). *Per call*: `trainer.adapt(query, config=...)` may",
        "change it from query to query.",
        "",
    ]
    for cls in settings_classes():
        lines += [f"## {cls.__name__}", "", inspect.getdoc(cls) or "", ""]
        per_call = any("per_call" in f.metadata for f in dataclasses.fields(cls))
        marked = per_call and cls is config.AdaptConfig
        lines += ["| setting | holds | unless given | |" + (" per call |" if marked else "")]
        lines += ["| --- | --- | --- | --- |" + (" --- |" if marked else "")]
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            holds = describe(hints[field.name]).removeprefix("one of ") + _range(field)
            default = text_of(field.default) or "empty"
            row = f"| `{field.name}` | {holds} | `{default}` | {_cell(field.metadata['help'])} |"
            lines.append(row + (f" {'yes' if field.metadata['per_call'] else ''} |" if marked else ""))
        lines.append("")
    lines += ["## Presets", "", "`--preset NAME`, `tttnn.preset(name)`: what differs from the defaults.", ""]
    for name, settings in config.PRESETS.items():
        differing = settings.differing(config.AdaptConfig())
        told = ", ".join(f"`{field}={text_of(getattr(settings, field))}`" for field in differing)
        lines.append(f"- `{name}`: {told or 'nothing'}")
    return "\n".join(lines) + "\n"


def _range(field: dataclasses.Field[Any]) -> str:
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    if low is None and high is None:
        return ""
    if high is None:
        return f", at least {_number(low)}"
    return f", {'at most ' if low is None else f'{_number(low)} to '}{_number(high)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _cell(text: str) -> str:
    """Return a text as it stands in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


def commands_page() -> str:
    """Return the page of the command line, made from the commands."""
    lines = [
        "# Command line",
        "",
        "Made from the commands: what `tttnn COMMAND --help-all` prints. Results go to standard output, progress and "
        "remarks to standard error. Exit codes: 0 done, 1 failed, 2 a wrong argument or setting, 3 a damaged file, 130 "
        "Ctrl-C. Every command has `--help`; nearly every one `--json` and `--config FILE.toml`.",
        "",
        "| command | |",
        "| --- | --- |",
    ]
    found = dict(commands_of(app, click.Context(app, info_name="tttnn")))
    lines += [
        f"| [`{name}`](#{name.replace(' ', '-')}) | {inner.command.get_short_help_str(200)} |"
        for name, inner in found.items()
    ]
    for name, inner in found.items():
        command = inner.command
        usage = " ".join(command.collect_usage_pieces(inner))
        lines += ["", f"## {name}", "", "```text", f"tttnn {name} {usage}", "```", ""]
        lines += [*_prose(command.help or ""), "", *_prose(command.epilog or ""), ""]
        lines += _options(command, inner)
    return "\n".join(lines) + "\n"


def _prose(text: str) -> Iterator[str]:
    """Yield the paragraphs of a command's help; what click is told to leave as it is stands as it is."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield from ["```text", paragraph.removeprefix("\b").strip("\n"), "```", ""]
        else:
            yield from [paragraph, ""]


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield a table of options for each group of a command's help."""
    groups = command.groups() if isinstance(command, Command) else {"": command.params}
    for title, options in groups.items():
        records = [
            record
            for option in options
            if isinstance(option, click.Option) and (record := option.get_help_record(context)) is not None
        ]
        if not records:
            continue
        yield from [f"**{title or 'Common options'}**", "", "| flag | |", "| --- | --- |"]
        yield from (f"| `{flag}` | {_cell(about)} |" for flag, about in records)
        yield ""


def api_page() -> str:
    """Return the page of the Python interface: every public name with its docstring."""
    shown = {name for names in API.values() for name in names}
    groups = API | {
        "Settings": (*(cls.__name__ for cls in settings_classes() if cls.__name__ in tttnn.__all__), "preset"),
        "Errors": tuple(name for name in vars(errors) if name in tttnn.__all__),
    }
    shown |= {name for names in groups.values() for name in names}
    left = sorted(set(tttnn.__all__) - shown - {"PRESETS", "__version__", "models"})
    if left:
        groups["More"] = tuple(left)
    lines = ["Python interface", "================", ""]
    lines += [
        "Everything here is ``tttnn.NAME``; deeper paths are private and move, but for ``tttnn.server.create_app``. "
        "``tttnn.models.resolve(name)`` gives the directory of a demo model. Reports and progress go to "
        "``logging.getLogger('tttnn')`` and to the ``progress`` that a call is given.",
        "",
    ]
    for title, names in groups.items():
        lines += [title, "-" * len(title), ""]
        for name in names:
            value = getattr(tttnn, name)
            kind = "autofunction" if inspect.isfunction(value) else "autoexception" if _is_error(value) else "autoclass"
            lines += [f".. {kind}:: tttnn.{name}", ""]
            if title == "Settings" and inspect.isclass(value):
                lines[-1:] = ["   :no-members:", "", "   Its fields: :doc:`settings`.", ""]
    return "\n".join(lines) + "\n"


def _is_error(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseException)


def described_errors() -> dict[str, str]:
    """Return every error class of tttnn with the first line of its docstring, for the page that says what to do."""
    return {
        name: re.sub(r"\s+", " ", inspect.getdoc(value) or "").strip()
        for name, value in vars(errors).items()
        if _is_error(value)
    }


if __name__ == "__main__":
    write_all(Path(__file__).resolve().parent / "generated")
