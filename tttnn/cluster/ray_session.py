"""Ray, where it is installed: joining a cluster of it, and what must be alike in all its processes.

Knows Ray's addresses and versions. Does not know shards.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

from ..errors import ClusterError, MissingExtraError
from ..version import __version__

NAMESPACE = "tttnn"
LOCAL = "local"
"""The address of a Ray that is started here and ends with this process."""
_OBJECT_STORE_BYTES = 80 << 20  # ids, distances and a few texts travel; vectors never


def import_ray() -> Any:
    """Return the module.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"a cluster on Ray needs {error.name}: pip install 'tttnn[cluster]'") from error


def joined(address: str) -> Any:
    """Return Ray, connected; a process that is connected already stays where it is.

    Args:
        address: Of a Ray cluster, as ``ray start`` prints it; ``auto``: of the one that runs on this machine;
            ``local``: one is started here.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: There is no Ray at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        raise ClusterError(
            f"address must be that of a Ray cluster that runs, got {address!r}. Start one with: ray start --head"
        ) from error
    return ray


def versions() -> tuple[str, str]:
    """Return tttnn's version, and Python's without its patch."""
    return __version__, f"{sys.version_info.major}.{sys.version_info.minor}"


def check_versions(wanted: tuple[str, str]) -> None:
    """Refuse to work for a process of another tttnn or Python.

    Raises:
        ClusterError: One of them is another here.
    """
    for name, ours, theirs in zip(("tttnn", "Python"), versions(), wanted, strict=True):
        if ours != theirs:
            raise ClusterError(f"{name} must be the same on all machines of a cluster, got {ours} here and {theirs}")
