# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishing a backup: the proof that all needed WAL is archived or included, then the rename.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import (
    ARCHIVE,
    COMPLETE,
    INCLUDE,
    NONE,
    STOPPED,
    BackupRecord,
    WalProof,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record_file import parse_proof
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup


def wal_sentence(record: BackupRecord) -> str:
    """Return a sentence on the WAL of a stopped backup for a message, empty when the WAL is to be archived."""
    names = record.required_wal
    if record.wal == INCLUDE:
        return f" It holds the WAL that a restore needs ({len(names)} files)."
    if record.wal == NONE:
        return f" It needs {', '.join(names[:3])}{'...' if names[3:] else ''}; nothing ensures that this WAL is kept."
    return ""


def refuse_unproven(backup: Backup, record: BackupRecord, given: t.Optional[t.Mapping[str, t.Any]]) -> WalProof:
    """Return the proof to record: for a backup that was started with ``wal=archive`` the ``given`` one.

    Raises :class:`BackupError` unless ``backup`` is stopped and whole, and the proof covers every WAL file that it
    needs, or the backup includes them all, or it was started with ``wal=none``.
    """
    if record.state not in (STOPPED, COMPLETE):
        raise BackupError(
            f"The backup {backup.id} is not stopped (state {record.state}).",
            code="not_stopped",
            hint="Run pgfleet.basebackup.backup_stop first.",
        )
    if record.wal_proof is not None and (record.wal != ARCHIVE or record.state == COMPLETE):
        # Its WAL is not to be archived, or a run proved it and died before it published the backup.
        included = record.required_wal if record.wal == INCLUDE else ()
        _refuse_incomplete(backup, [b"pg_wal/" + name.encode("ascii") for name in included])
        return record.wal_proof
    if given is None:
        raise BackupError(
            f"The backup {backup.id} was started with {option('wal')}={ARCHIVE}, and there is no proof that its WAL"
            " is archived.",
            code="wal_not_proven",
            hint="Run pgfleet.basebackup.wal_archived with the required_wal of backup_stop, and pass on its proof.",
            missing=list(record.required_wal),
        )
    proof = parse_proof(given)
    if proof.system_identifier != record.server.system_identifier:
        raise BackupError(
            f"The proof is for the cluster {proof.system_identifier}, the backup {backup.id} is of"
            f" {record.server.system_identifier}.",
            code="other_cluster",
            hint="Ask the archiver of the cluster that was backed up.",
        )
    archived = set(proof.archived)
    missing = [name for name in record.required_wal if name not in archived]
    if missing:
        raise BackupError(
            f"The WAL file {missing[0]} of the backup {backup.id} is not proven to be archived"
            f" ({len(missing)} in all).",
            code="wal_not_proven",
            hint="Run pgfleet.basebackup.wal_archived with the required_wal of backup_stop.",
            missing=missing,
        )
    _refuse_incomplete(backup, [])
    return proof


def _refuse_incomplete(backup: Backup, more: t.Sequence[bytes]) -> None:
    lost = [printable(path) for path in backup.layout().lost(more)]
    if lost:
        raise BackupError(
            f"The backup {backup.id} lacks {', '.join(lost)}, which was removed after the copy.",
            code="damaged_backup",
            hint="Take a new backup.",
        )


def publish(backup: Backup, proof: t.Optional[t.Mapping[str, t.Any]]) -> bool:
    """Record how the WAL is proven and publish ``backup``; after a crash at any point the same call continues.

    Return whether that changed anything: another run may have published it already.
    """
    try:
        _publish(backup, proof)
    except BackupError:
        found = backup.cluster.find(backup.id)
        if found is None or not found.published:
            raise
        backup.published = True
        return False
    return True


def _publish(backup: Backup, given: t.Optional[t.Mapping[str, t.Any]]) -> None:
    with backup.hold():
        record = backup.load()
        proof = refuse_unproven(backup, record, given)
        if record.state == STOPPED:
            backup.save(record.completed(proof, time.time()))
        backup.publish()
