"""An OpenAI-compatible server: requests wait in a line, engine processes answer each from a model adapted to it.

Knows HTTP, processes and time. Does not know how a model is adapted; the HTTP process does not even load torch.
"""

from .app import create_app

__all__ = ["create_app"]
