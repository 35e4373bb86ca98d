"""Flags of the command line: one for each field of a settings class, and those that many commands share.

Knows click and the settings; does not know what a command does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, get_type_hints

import click
from click.core import ParameterSource

from ..config import PRESETS
from ..errors import ConfigError
from ..settings import Config, check, read, text_of
from .config_file import load_config_file

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
            found = read(self._hint, value, name)
            return check(self._hint, found, name, minimum=limits["minimum"], maximum=limits["maximum"])
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class _Switch(_Value, click.types.BoolParamType):
    """The same for a field that is true or false: click asks for its own class of those."""


def settings_flags(cls: type[Config], keyword: str, *, prefix: str = "") -> Callable[[_Command], _Command]:
    """Give a command one flag per field of `cls`; it receives those that were given, as `keyword`."""
    names = {field.name: f"{prefix}{field.name}" for field in dataclasses.fields(cls)}

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)  # its flags too: click keeps them in the function's dictionary
        def wrapped(**arguments: Any) -> Any:
            source = click.get_current_context().get_parameter_source
            values = {field: arguments.pop(f"flag_{flag}") for field, flag in names.items()}
            given = {f: v for f, v in values.items() if source(f"flag_{names[f]}") is not ParameterSource.DEFAULT}
            return command(**arguments, **{keyword: given})

        hints = get_type_hints(cls)
        for field in reversed(dataclasses.fields(cls)):
            flag = "--" + names[field.name].replace("_", "-")
            switch = hints[field.name] is bool
            click.option(
                f"{flag}/--no-{flag[2:]}" if switch else flag,
                f"flag_{names[field.name]}",
                type=(_Switch if switch else _Value)(field, hints[field.name]),
                default=None,
                help=f"{field.metadata['help']}  [default: {text_of(field.default) or 'empty'}]",
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
