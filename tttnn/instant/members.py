"""Which documents each expert saw: members.N.bin.

Knows ids, digests and the bytes of the file. Does not know texts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

from ..errors import IndexCorruptError
from ..files import write_file
from ..training.experts import Member
from .manifest import ExpertsManifest, remedy

_HEADER = struct.Struct("<8sII32sQQ")
_ROW = struct.Struct("<IIQ16s")
_MAGIC = b"tttnmemb"
_DIGEST = 16


def members_digest(members: Sequence[Member]) -> str:
    """Return a digest of documents in their order, 32 hexadecimal digits."""
    rows = b"".join(struct.pack("<Q16s", member.id, bytes.fromhex(member.digest)) for member in members)
    return hashlib.blake2b(rows, digest_size=_DIGEST).hexdigest()


def write_members(path: Path, model: str, experts: Sequence[Sequence[Member]]) -> None:
    """Write the documents of each expert, by row."""
    rows = [
        _ROW.pack(number, 0, member.id, bytes.fromhex(member.digest))
        for number, members in enumerate(experts)
        for member in members
    ]
    content = _HEADER.pack(_MAGIC, 1, 0, bytes.fromhex(model), len(rows), 0) + b"".join(rows)
    write_file(path, content + hashlib.blake2b(content, digest_size=_DIGEST).digest())


def read_members(folder: Path, manifest: ExpertsManifest) -> list[list[Member]]:
    """Read the documents of each expert, by row: also those that an expert still to be trained will see.

    Raises:
        FileNotFoundError: the file is missing.
        IndexCorruptError: it is damaged, or not what the manifest says.
    """
    path = folder / manifest.members_file
    content = path.read_bytes()
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    count = manifest.listed or sum(entry.documents for entry in manifest.experts)
    wanted = _HEADER.pack(_MAGIC, 1, 0, bytes.fromhex(manifest.model), count, 0)
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != digest:
        raise IndexCorruptError(f"{path}: fails its checksum. {remedy()}")
    if body[: _HEADER.size] != wanted or len(body) != _HEADER.size + count * _ROW.size:
        raise IndexCorruptError(f"{path}: must hold {count} documents of its manifest's model. {remedy()}")
    experts: list[list[Member]] = [[] for _ in range(manifest.rows)]
    for expert, zero, number, text in _ROW.iter_unpack(body[_HEADER.size :]):
        if zero or expert >= len(experts):
            raise IndexCorruptError(f"{path}: expert must be below {len(experts)}, got {expert}. {remedy()}")
        experts[expert].append(Member(number, text.hex()))
    return experts


def check_members(folder: Path, manifest: ExpertsManifest, members: Sequence[Sequence[Member]]) -> None:
    """Compare what the experts that are trained saw with what the manifest says.

    Raises:
        IndexCorruptError: they differ.
    """
    for entry in manifest.experts:
        digest = members_digest(members[entry.row])
        if digest != entry.members or len(members[entry.row]) != entry.documents:
            raise IndexCorruptError(
                f"{folder / manifest.members_file}: documents of {entry.name} have the digest {digest}, expected "
                f"{entry.members}. {remedy()}"
            )
