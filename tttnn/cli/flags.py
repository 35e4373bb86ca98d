"""Flags of the command line: one for each field of a settings class, and those that many commands share.

Knows click and the settings; does not know what a command does.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from ..config import PRESETS
from ..settings import Config

_Command = Callable[..., Any]


class _OrNone(click.ParamType):  # type: ignore[type-arg]
    """A number, or the word none."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self.name = {int: "integer", float: "number"}[kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None or value == "none":
            return "none"
        try:
            return self._kind(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a {self.name} nor none", param, ctx)


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers with commas between."""

    name = "integers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers like 0,5,20", param, ctx)


class _Words(click.ParamType):  # type: ignore[type-arg]
    """Texts with commas between."""

    name = "texts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return tuple(value) if isinstance(value, tuple | list) else tuple(filter(None, str(value).split(",")))


def _flag_type(hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if get_origin(hint) is tuple:
        return _Words() if str in get_args(hint) else _Numbers()
    if hint is bool:
        return click.BOOL
    if hint is str:
        return str
    kinds = get_args(hint) or (hint,)
    number = next(kind for kind in kinds if kind in (int, float))
    return _OrNone(number) if type(None) in kinds else number


def settings_flags(cls: type[Config], keyword: str, *, prefix: str = "") -> Callable[[_Command], _Command]:
    """Give a command one flag per field of `cls`; it receives a function that applies the flags given to a base."""
    names = {field.name: f"{prefix}{field.name}" for field in dataclasses.fields(cls)}

    def decorate(command: _Command) -> _Command:
        def wrapped(**arguments: Any) -> Any:
            given = {field: arguments.pop(f"flag_{flag}") for field, flag in names.items()}
            given = {field: None if v == "none" else v for field, v in given.items() if v is not None}
            return command(**arguments, **{keyword: given})

        wrapped.__doc__ = command.__doc__
        wrapped.__name__ = command.__name__
        wrapped.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
        hints = get_type_hints(cls)
        for field in reversed(dataclasses.fields(cls)):
            default = "none" if field.default is None else field.default
            if isinstance(default, tuple):
                default = ",".join(map(str, default)) or "empty"
            flag = "--" + names[field.name].replace("_", "-")
            if hints[field.name] is bool:
                flag = f"{flag}/--no-{flag[2:]}"
            click.option(
                flag,
                f"flag_{names[field.name]}",
                type=_flag_type(hints[field.name]),
                default=None,
                help=f"{field.metadata['help']}  [default: {default}]",
            )(wrapped)
        return wrapped

    return decorate


def _load_config_file(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    """Take defaults for flags from a TOML file: ``learning_rate = 1e-4``, at the top or under a command's name."""
    if value is None:
        return None
    try:
        table = tomllib.loads(Path(value).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{value}: {error}") from error
    name = context.info_name or ""
    flat = {key: v for key, v in table.items() if not isinstance(v, dict)} | table.get(name, {})
    known = {parameter.name for parameter in context.command.params}
    defaults: dict[str, Any] = {}
    for key, setting in flat.items():
        key = key.replace("-", "_")
        place = f"flag_{key}" if f"flag_{key}" in known else key
        if place in known:
            defaults[place] = setting
        elif key in table.get(name, {}):
            raise click.BadParameter(f"{value}: {key} is not a flag of tttnn {name}")
    context.default_map = defaults
    return value


config_file_flag = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_load_config_file,
    help="TOML file with defaults for these flags.",
)
as_json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
cache_dir_flag = click.option(
    "--cache-dir",
    envvar="TTTNN_CACHE",
    type=click.Path(file_okay=False),
    help="Folder of demo models  [env: TTTNN_CACHE]",
)
embedder_flag = click.option(
    "--embedder", default="minilm-l6", show_default=True, help="Demo name, hub id or directory."
)
model_flag = click.option("--model", default="smollm2-135m", show_default=True, help="Demo name, hub id or directory.")
threads_flag = click.option("--threads", type=click.IntRange(1), help="Threads of torch; all cores unless given.")
preset_flag = click.option("--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True)
