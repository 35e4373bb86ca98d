"""What the experts of a datastore are, of all models, as plain values.

Knows files, members and which documents are there. Does not know torch, nor how experts are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..datastore.datastore import Datastore
from ..training.experts import Member
from .centers import read_centers
from .manifest import FOLDER, MANIFEST, bytes_of, folder_of, read_experts
from .members import check_members, read_members
from .rows import ExpertRows


def described_experts(datastore: Datastore, *, full: bool = False) -> list[dict[str, Any]]:
    """Describe the experts of a datastore for each model that has some, as plain values.

    Of each expert `deleted` counts documents that it saw and that are gone: it is `stale` and not used, and where it is
    the root no other one is either. `not_learned` counts documents that came after the experts were planned. `leaves`
    are the experts of clusters that there will be, `leaves_there` those that are trained.

    Args:
        datastore: whose experts.
        full: read and check their matrices too, not only what they are.

    Raises:
        IndexCorruptError: a file is damaged.
    """
    alive = set(map(int, datastore.ids))
    described = []
    for folder in sorted((datastore.path / FOLDER).glob("*")):
        if not (folder / MANIFEST).exists():
            continue
        manifest = read_experts(folder, model=folder.name)
        members, rows = read_members(folder, manifest), ExpertRows(folder, manifest)
        check_members(folder, manifest, members)
        read_centers(folder, manifest, datastore.manifest.dim)
        experts, stale = [], 0
        for entry in manifest.experts:
            if full:
                rows.row(entry.row)
            deleted = sum(member.id not in alive for member in members[entry.row])
            stale += deleted > 0
            experts.append(
                {
                    "name": entry.name,
                    "documents": entry.documents,
                    "stale": deleted > 0,
                    "deleted": deleted,
                    "loss_before": entry.loss_before,
                    "loss_after": entry.loss_after,
                }
            )
        described.append(
            {
                "model": manifest.model,
                "model_name": manifest.model_name,
                "leaves": manifest.clusters,
                "leaves_there": len(experts) - 1,
                "stale": stale,
                "not_learned": sum(number >= manifest.next_id for number in alive),
                "bytes": bytes_of(folder),
                "experts": experts,
            }
        )
    return described


def seen_by_experts(datastore: Path, model: str) -> dict[str, tuple[str, list[Member]]]:
    """Return what each expert of a model saw, by its name: the digest of the documents, and these; none: nothing.

    Args:
        datastore: its directory.
        model: the fingerprint of one.


    Raises:
        IndexCorruptError: a file is damaged.
    """
    folder = folder_of(datastore, model)
    if not (folder / MANIFEST).exists():
        return {}
    manifest = read_experts(folder, model=model)
    members = read_members(folder, manifest)
    check_members(folder, manifest, members)
    return {entry.name: (entry.members, members[entry.row]) for entry in manifest.experts}
