"""What the experts of a datastore are, of all models, as plain values.

Knows files, members and which documents are there. Does not know torch, nor how experts are used.
"""

from __future__ import annotations

from typing import Any

from ..datastore.datastore import Datastore
from .manifest import FOLDER, MANIFEST, bytes_of, read_experts
from .members import read_members
from .rows import ExpertRows


def described_experts(datastore: Datastore) -> list[dict[str, Any]]:
    """Describe every expert of a datastore, of all models, as plain values. Reads and checks all of their files.

    `deleted` counts documents that it saw and that are gone: it is `stale` and not used. `not_learned` counts documents
    that came after it was trained.

    Raises:
        IndexCorruptError: a file is damaged.
    """
    alive = set(map(int, datastore.ids))
    found = []
    for folder in sorted((datastore.path / FOLDER).glob("*")):
        if not (folder / MANIFEST).exists():
            continue
        manifest = read_experts(folder, model=folder.name)
        members, rows = read_members(folder, manifest), ExpertRows(folder, manifest)
        for entry in manifest.experts:
            rows.read(entry.row)
            deleted = sum(member.id not in alive for member in members[entry.row])
            found.append(
                {
                    "model": manifest.model,
                    "model_name": manifest.model_name,
                    "name": entry.name,
                    "documents": entry.documents,
                    "stale": deleted > 0,
                    "deleted": deleted,
                    "not_learned": sum(number >= manifest.next_id for number in alive),
                    "bytes": bytes_of(folder),
                    "loss_before": entry.loss_before,
                    "loss_after": entry.loss_after,
                }
            )
    return found
