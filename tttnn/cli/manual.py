"""The manual page of the command, made from the commands themselves.

Knows click's description of a command and the macros of man. Does not know a command.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from .command import Command


def man_page(app: click.Group, version: str) -> str:
    """Return the manual page of a group of commands, for `man -l` or a folder man1."""
    context = click.Context(app, info_name=app.name)
    about, *rest = inspect.cleandoc(app.help or "").split("\n\n")
    lines = [f'.TH {(app.name or "").upper()} 1 "" "{app.name} {version}" "User Commands"']
    lines += [".SH NAME", f"{app.name} \\- {_plain(about).rstrip('.')}"]
    lines += [".SH SYNOPSIS", f".B {app.name}", ".I COMMAND", "[OPTIONS] [ARGUMENTS]"]
    lines += [".SH DESCRIPTION", *_paragraphs(rest), ".SH OPTIONS", *_options(app.params, context)]
    lines += [".SH COMMANDS"]
    for name, inner in commands_of(app, context):
        command = inner.command
        usage = " ".join(command.collect_usage_pieces(inner))
        lines += [f".SS {_plain(f'{app.name} {name} {usage}')}", *_paragraphs(_told(command.help))]
        lines += _paragraphs(_told(command.epilog))
        for title, options in _groups(command).items():
            lines += [".PP", f".B {_plain(title)}"] if title else []
            lines += _options(options, inner)
    lines += [".SH EXIT STATUS", "0 done, 1 failed, 2 a wrong argument or setting, 3 a damaged file, 130 Ctrl-C."]
    lines += [".SH ENVIRONMENT", ".TP", "TTTNN_CACHE", "Where demo models are kept.", ".TP", "NO_COLOR", "No colours."]
    return "\n".join(lines) + "\n"


def commands_of(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Context]]:
    """Yield the commands of a group by name, after a group in it those of that one."""
    for name in group.list_commands(context):
        command = group.commands[name]
        if command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        yield name, inner
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", one) for below, one in commands_of(command, inner))


def _told(text: str | None) -> list[str]:
    return inspect.cleandoc(text or "").split("\n\n")


def _groups(command: click.Command) -> dict[str, list[click.Parameter]]:
    return command.groups() if isinstance(command, Command) else {"": command.params}


def _paragraphs(texts: list[str]) -> Iterator[str]:
    """Yield paragraphs; what click is told to leave as it is stands as it is."""
    for text in texts:
        if text.startswith("\b"):
            yield from [".PP", ".nf", *map(_plain, text.removeprefix("\b").strip("\n").splitlines()), ".fi"]
        elif text.strip():
            yield from [".PP", _plain(" ".join(text.split()))]


def _options(options: list[click.Parameter], context: click.Context) -> Iterator[str]:
    for option in options:
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record is not None:
            yield from [".TP", f".B {_plain(record[0])}", _plain(record[1])]


def _plain(line: str) -> str:
    """Return a line as text that no macro or escape is read in."""
    escaped = line.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
