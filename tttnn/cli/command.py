"""What every command has: help that shows the common flags first, the others by group, and --traceback.

Knows click. Does not know a flag of any command.
"""

from __future__ import annotations

from typing import Any

import click


class Flag(click.Option):
    """A flag that stands under a heading of the help; under none it is a common one."""

    def __init__(self, *arguments: Any, group: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


def _help_all(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        context.meta["tttnn.help_all"] = True
        click.echo(context.get_help())
        context.exit()


class Command(click.Command):
    """A command whose help fits a terminal: --help shows the common flags, --help-all those of every group too."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if len(self.groups()) > 1:
            about = "Show every flag and exit."
            flag = click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_help_all, help=about
            )
            self.params.append(flag)
        # Read by `main`, wherever it stands; declared here so that it is accepted.
        self.params.append(click.Option(["--traceback"], is_flag=True, is_eager=True, expose_value=False, hidden=True))

    def groups(self) -> dict[str, list[click.Parameter]]:
        """Return the flags by heading, the common ones first."""
        by_group: dict[str, list[click.Parameter]] = {"": []}
        for option in self.params:
            if isinstance(option, click.Option):
                by_group.setdefault(getattr(option, "group", ""), []).append(option)
        return by_group

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the common flags, then the other groups or where to see them."""
        groups = self.groups()
        groups[""] = [option for option in self.get_params(ctx) if getattr(option, "group", "") == ""]
        every = "tttnn.help_all" in ctx.meta
        for title, options in groups.items():
            if title and not every:
                continue
            records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
            with formatter.section(title or ("Common options" if len(groups) > 1 else "Options")):
                formatter.write_dl(records)
        if len(groups) > 1 and not every:
            counted = ", ".join(f"{title} ({len(options)})" for title, options in groups.items() if title)
            formatter.write_paragraph()
            formatter.write_text(f"More flags with --help-all: {counted}.")
