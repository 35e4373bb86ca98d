"""Flags of the command line: one for each field of a settings class, and those that many commands share.

Knows click and the settings; does not know what a command does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from ..config import PRESETS
from ..errors import ConfigError
from ..files import check_target
from ..recipe import RUNNING
from ..settings import Config, check, read, text_of
from .command import Command, Flag
from .config_file import load_config_file
from .loading import Loading

_Command = Callable[..., Any]


class _Value(click.ParamType):  # type: ignore[type-arg]
    """What a field of a settings class may hold, read and checked as the field is."""

    def __init__(self, field: dataclasses.Field[Any], hint: Any) -> None:
        self._field, self._hint = field, hint
        self.name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        limits = self._field.metadata
        name = self._field.name
        try:
            parsed = read(self._hint, value, name)
            return check(self._hint, parsed, name, minimum=limits["minimum"], maximum=limits["maximum"])
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class _Switch(_Value, click.types.BoolParamType):
    """The same for a field that is true or false: click asks for its own class of those."""


def _is_words(hint: Any) -> bool:
    """Say whether a field holds several words, so that its flag may be given again."""
    return get_origin(hint) is tuple and str in get_args(hint)


def settings_flags(cls: type[Config], keyword: str, *, prefix: str = "") -> Callable[[_Command], _Command]:
    """Give a command one flag per field of `cls`; it receives those that were given, as `keyword`."""
    names = {field.name: field.metadata["flag"] or f"{prefix}{field.name}" for field in dataclasses.fields(cls)}

    hints = get_type_hints(cls)

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)  # its flags too: click keeps them in the function's dictionary
        def wrapped(**arguments: Any) -> Any:
            source = click.get_current_context().get_parameter_source
            values = {field: arguments.pop(f"flag_{flag}") for field, flag in names.items()}
            values |= {f: tuple(chain(*values[f])) for f in names if _is_words(hints[f]) and values[f] is not None}
            given = {f: v for f, v in values.items() if source(f"flag_{names[f]}") is not ParameterSource.DEFAULT}
            return command(**arguments, **{keyword: given})

        for field in reversed(dataclasses.fields(cls)):
            flag = "--" + names[field.name].replace("_", "-")
            switch = hints[field.name] is bool
            click.option(
                f"{flag}/--no-{flag[2:]}" if switch else flag,
                f"flag_{names[field.name]}",
                type=(_Switch if switch else _Value)(field, hints[field.name]),
                multiple=_is_words(hints[field.name]),
                cls=Flag,
                group=(field.metadata["group"] or cls.GROUP).removeprefix("common"),
                default=None,
                help=f"{field.metadata['help']}  [default: {text_of(field.default) or 'empty'}]",
            )(wrapped)
        return wrapped

    return decorate


def as_typed(values: dict[str, Any]) -> list[str]:
    """Return settings that were given as the flags that give them, for a command to be shown."""
    typed = []
    for name, value in values.items():
        for entry in value if isinstance(value, tuple) else (value,):
            typed += ["--" + name.replace("_", "-"), text_of(entry)]
    return typed


def writes(*names: str, makes_folder: bool = False, others_too: bool = False) -> Callable[[_Command], _Command]:
    """Give a command --force: without it, none of the files that these arguments name may be there already.

    Put nearest to the function. An argument of None is no file; no file that another argument names is replaced.

    Args:
        names: arguments of the command.
        makes_folder: whether the command makes the folder of what it writes.
        others_too: whether the command receives `force`, for files whose names it finds later.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def wrapped(force: bool, **arguments: Any) -> Any:
            for name in names:
                if arguments[name] is not None and not (makes_folder and not Path(arguments[name]).parent.exists()):
                    others = [value for key, value in arguments.items() if key not in names]
                    check_target(Path(arguments[name]), force=force, inputs=_paths_in(others))
            return command(**arguments, **({"force": force} if others_too else {}))

        click.option("--force", is_flag=True, help="Replace a file that is there.")(wrapped)
        return wrapped

    return decorate


def _paths_in(values: list[Any]) -> list[Path]:
    flat = [entry for value in values for entry in (value if isinstance(value, tuple) else (value,))]
    return [Path(entry) for entry in flat if isinstance(entry, str) and "\0" not in entry and len(entry) < 4096]


class Query(click.ParamType):  # type: ignore[type-arg]
    """A text to search with: refused before anything is loaded where it holds none."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"query must be UTF-8, got {value!r}", param, ctx)
        if not value.strip():
            self.fail(f"query must hold some text, got {value!r}", param, ctx)
        return value


class DatastorePlace(click.Path):
    """A directory of a datastore or a cluster, or ``ray:NAME`` for a cluster that runs."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the place."""
        return value if str(value).startswith(RUNNING) else super().convert(value, param, ctx)


class ClusterCommand(Command):
    """A command whose DATASTORE may be left out for --cluster NAME, a cluster that runs."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        about = "Instead of DATASTORE: a cluster that runs, by its name."
        self.params.append(Flag(["--cluster"], metavar="NAME", expose_value=False, group="Cluster", help=about))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read --cluster NAME as the first argument."""
        for i, word in enumerate(args):
            if word == "--":
                break
            if word == "--cluster" and i + 1 < len(args):
                return super().parse_args(ctx, [f"{RUNNING}{args[i + 1]}", *args[:i], *args[i + 2 :]])
            if word.startswith("--cluster="):
                return super().parse_args(ctx, [f"{RUNNING}{word.partition('=')[2]}", *args[:i], *args[i + 1 :]])
        return super().parse_args(ctx, args)


class DocumentIdText(click.ParamType):  # type: ignore[type-arg]
    """A document's id: a number, or ``shard:id`` in a cluster."""

    name = "id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the id."""
        from ..cluster.document_id import DocumentId

        try:
            return DocumentId.read(value) if ":" in value else int(click.IntRange(0)(value, param, ctx))
        except (ValueError, IndexError) as error:
            self.fail(str(error), param, ctx)


def loading_flags(*, dtype: bool = True) -> Callable[[_Command], _Command]:
    """Give a command the flags that say how its models are loaded; it receives a `Loading`.

    Args:
        dtype: whether one of the models is a language model, whose weights may have another type.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def wrapped(
            device: str, threads: int | None, cache_dir: str | None, dtype: str = "float32", **arguments: Any
        ) -> Any:
            return command(**arguments, loading=Loading(device, dtype, threads, cache_dir))

        group = "Models"
        cache_dir_flag(wrapped)
        click.option(
            "--threads", cls=Flag, group=group, type=click.IntRange(1), help="Threads of torch; all cores unless given."
        )(wrapped)
        if dtype:
            click.option(
                "--dtype",
                cls=Flag,
                group=group,
                type=click.Choice(["float32", "bfloat16", "float16"]),
                default="float32",
                show_default=True,
                help="Type of the language model's weights.",
            )(wrapped)
        click.option(
            "--device", cls=Flag, group=group, default="cpu", show_default=True, help="Device of torch, like cuda:0."
        )(wrapped)
        return wrapped

    return decorate


config_file_flag = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=load_config_file,
    help="TOML file with defaults for these flags.",
)
as_json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON, with everything.")
queries_flag = click.option(
    "--queries",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="File of queries, - for standard input: one a line, or JSON lines with a query in each. Prints JSON lines.",
)
cache_dir_flag = click.option(
    "--cache-dir",
    cls=Flag,
    group="Models",
    envvar="TTTNN_CACHE",
    type=click.Path(file_okay=False),
    help="Folder of demo models  [env: TTTNN_CACHE]",
)
embedder_flag = click.option(
    "--embedder", default="minilm-l6", show_default=True, help="Demo name, hub id or directory."
)
other_embedder_flag = click.option("--embedder", help="Instead of the one the datastore was built with.")
model_flag = click.option("--model", default="smollm2-135m", show_default=True, help="Demo name, hub id or directory.")
preset_flag = click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="default",
    show_default=True,
    help="Settings to begin with; paper-: those of Hardt & Sun.",
)
corpus_argument = click.argument(
    "corpus", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True), metavar="CORPUS..."
)
rejects_flag = click.option(
    "--rejects", type=click.Path(dir_okay=False), help="File that lists what was left out, and why."
)
