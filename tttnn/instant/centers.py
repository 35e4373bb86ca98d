"""The centers of the clusters that have an expert: centers.N.bin.

Knows the bytes of the file. Does not know how clusters are found.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import IndexCorruptError
from ..files import write_file
from .manifest import ExpertsManifest, remedy

_HEADER = struct.Struct("<8sII32sQQ")
_MAGIC = b"tttncent"
_DIGEST = 16


def write_centers(path: Path, model: str, centers: NDArray[np.float32]) -> None:
    """Write centers, (clusters, dim)."""
    content = _HEADER.pack(_MAGIC, 1, 0, bytes.fromhex(model), *centers.shape) + centers.astype("<f4").tobytes()
    write_file(path, content + hashlib.blake2b(content, digest_size=_DIGEST).digest())


def read_centers(folder: Path, manifest: ExpertsManifest, dim: int) -> NDArray[np.float32]:
    """Read the centers that a manifest names, (clusters, dim); without clusters there is no file.

    Raises:
        FileNotFoundError: the file is missing.
        IndexCorruptError: it is damaged, or not what the manifest says.
    """
    if manifest.clusters == 0:
        return np.zeros((0, dim), np.float32)
    path = folder / manifest.centers_file
    content = path.read_bytes()
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != digest:
        raise IndexCorruptError(f"{path}: fails its checksum. {remedy()}")
    wanted = _HEADER.pack(_MAGIC, 1, 0, bytes.fromhex(manifest.model), manifest.clusters, dim)
    if body[: _HEADER.size] != wanted or len(body) != _HEADER.size + manifest.clusters * dim * 4:
        raise IndexCorruptError(f"{path}: must hold {manifest.clusters} centers of {dim} dimensions. {remedy()}")
    centers = np.frombuffer(body, "<f4", offset=_HEADER.size).reshape(manifest.clusters, dim)
    return centers.astype(np.float32)
