"""The version of the package, which stands here alone: the build, the extension and the site read it from this file."""

__version__ = "0.1.0"
