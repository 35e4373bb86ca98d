"""How Sphinx builds the site: `make docs`. Pages are Markdown; those under `generated/` are made before each build."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import tttnn

HERE = Path(__file__).resolve().parent
project = "tttnn"
release = version = tttnn.__version__
author = "tttnn maintainers"
copyright = "tttnn maintainers, MIT"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "README.md"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_sphinx = False
html_static_path = ["pictures"]
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # records begin a part at the third level
highlight_language = "none"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "__new__,__init__"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def setup(app: Any) -> None:
    """Make the generated pages before Sphinx looks for pages."""
    spec = importlib.util.spec_from_file_location("tttnn_docs_generate", HERE / "_generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    generate.write_all(HERE / "generated")
    app.connect("source-read", _inside)


def _inside(app: Any, name: str, source: list[str]) -> None:
    """Point links that leave this folder, as they stand for who reads the files, to the same page of the site."""
    if "/" not in name:
        source[0] = source[0].replace("](../benchmarks/", "](generated/benchmarks/")
