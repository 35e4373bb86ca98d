"""The version of the package; `pyproject.toml` and the extension state the same, which a test compares."""

__version__ = "0.1.0"
