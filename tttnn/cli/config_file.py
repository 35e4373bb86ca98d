"""Defaults for flags from a TOML file: ``learning_rate = 1e-4`` for every command, or under the name of one.

Every name in the file must be a flag of some command, and every value one that the flag takes, whichever command reads
the file. Knows click. Does not know a flag, but for those that are gone.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

from ..config import AdaptConfig
from ..settings import nearest


def load_config_file(context: click.Context, _: click.Parameter, path: str | None) -> str | None:
    """Take the defaults of a command's flags from a file: the callback of ``--config``."""
    if path is None:
        return None
    root = context.find_root().command
    commands = root.commands.values() if isinstance(root, click.Group) else [context.command]
    flags = {str(command.name): _flags(command) for command in commands}
    name = str(context.command.name)
    own: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for key, value in _read_table(path).items():
        if key not in flags:
            if isinstance(value, dict):
                raise click.BadParameter(f"{path}: there is no command {key}{nearest(key, flags)}")
            options = _check(context, path, key, value, list(flags.values()))
            shared |= {
                option.name: _as_given(option, value) for option in options if option is flags[name].get(_plain(key))
            }
        elif not isinstance(value, dict):
            raise click.BadParameter(f"{path}: {key} is a command, whose flags stand below [{key}], got {value!r}")
        else:
            for inner, setting in value.items():
                options = _check(context, path, f"{key}.{inner}", setting, [flags[key]])
                own |= {str(option.name): _as_given(option, setting) for option in options if key == name}
    context.default_map = shared | own
    return path


def _read_table(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{path}: is not a TOML file ({error})") from None


def _flags(command: click.Command) -> dict[str, click.Option]:
    """Return the flags that a file may hold, by their names with _ for -."""
    return {
        _plain(flag): option
        for option in command.params
        if isinstance(option, click.Option) and not option.is_eager
        for flag in option.opts
    }


def _plain(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _as_given(option: click.Option, value: Any) -> Any:
    """Return a value of the file as the command line would give it: one that may be given again is a list."""
    return [value] if option.multiple and not isinstance(value, list) else value


def _check(
    context: click.Context, path: str, key: str, value: Any, commands: list[dict[str, click.Option]]
) -> list[click.Option]:
    """Return the flags that a key names and that take its value; a BadParameter where there is none."""
    flag = _plain(key.rpartition(".")[2])
    named = [options[flag] for options in commands if flag in options]
    if not named and flag in AdaptConfig.GONE:
        raise click.BadParameter(f"{path}: {key} is no longer a setting: {AdaptConfig.GONE[flag]}. Leave it out.")
    if not named:
        every = {name for options in commands for name in options}
        what = "a flag of a command" if len(commands) > 1 else f"a flag of tttnn {key.rpartition('.')[0]}"
        raise click.BadParameter(f"{path}: {key} is not {what}{nearest(flag, every)}")
    taking, problem = [], ""
    for option in named:
        try:
            option.type_cast_value(context, _as_given(option, value))
            taking.append(option)
        except click.BadParameter as error:
            problem = error.message.removeprefix(flag) if error.message.startswith(flag) else f": {error.message}"
        except (TypeError, ValueError):
            problem = f" cannot be {value!r}"
    if not taking:
        raise click.BadParameter(f"{path}: {key}{problem}")
    return taking
