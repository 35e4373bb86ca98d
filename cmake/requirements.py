"""Print what pip has to install before tttnn itself is built: its requirements and those of the extras named.

The Makefile installs them first and then builds without isolation, so that a build finds the same tools each time and
compiles only what changed. Needs nothing but Python.
"""

import re
import sys
import tomllib
from pathlib import Path

TOOLS = ("cmake>=3.18", "ninja>=1.11")  # what scikit-build-core asks pip for where the machine has none


def requirements_of(project: dict, extra: str) -> list[str]:
    """Return the requirements of an extra, with those of the extras it names."""
    found = []
    for requirement in project["optional-dependencies"][extra]:
        named = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
        inner = named[1].split(",") if named else []
        found += [line for name in inner for line in requirements_of(project, name.strip())] or [requirement]
    return found


if __name__ == "__main__":
    settings = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    lines = [*settings["build-system"]["requires"], *TOOLS, *settings["project"]["dependencies"]]
    for extra in sys.argv[1:]:
        lines += requirements_of(settings["project"], extra)
    print("\n".join(dict.fromkeys(lines)))
