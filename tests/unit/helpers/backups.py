# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository with a cluster, and backups with every file that a backup may contain."""

from __future__ import annotations

import json
import os
import pathlib
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import BackupRecord
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record_file import SCHEMA, parse_backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    Repository,
)

IDENTIFIER: t.Final = "7710880042689923079"
SEGMENT: t.Final = "000000010000000000000002"


def make_cluster(folder: pathlib.Path, name: str = "main") -> Cluster:
    """Return a prepared cluster in a new repository below ``folder``."""
    path = folder / "repository"
    path.mkdir(mode=0o700, exist_ok=True)
    cluster = Repository(str(path)).cluster(name)
    cluster.prepare(IDENTIFIER)
    return cluster


def metadata(state: str = "started", **more: t.Any) -> dict[str, t.Any]:
    """Return the content of ``backup.json`` in the given state; ``more`` replaces parts of it."""
    now = time.time()
    content: dict[str, t.Any] = {
        "schema": SCHEMA,
        "backup_id": "b1",
        "cluster": "main",
        "state": state,
        "kind": "full",
        "wal": "archive",
        "host": os.uname().nodename,
        "label": "nightly",
        "created_at": now,
        "session_idle_timeout": 3600,
        "server": {
            "version": "18.3",
            "major": 18,
            "role": "primary",
            "system_identifier": IDENTIFIER,
            "data_directory": "/srv/pg",
            "stats_temp_directory": None,
            "wal_segment_size": 16 << 20,
            "block_size": 8192,
            "data_checksums": True,
            "catalog_version": 202506291,
            "config_files_outside": [],
            "port": 5432,
        },
    }
    if state in ("stopped", "complete"):
        content.update(
            start={
                "start_lsn": "0/2000028",
                "start_wal_file": SEGMENT,
                "timeline": 1,
                "from_standby": False,
                "started_at": now - 2,
            },
            stop={
                "stop_lsn": "0/2000120",
                "timeline": 1,
                "stopped_at": now - 1,
                "wal_ranges": [{"timeline": 1, "start": "0/2000028", "end": "0/2000120"}],
                "manifest_checksum": "0" * 64,
                "tablespaces": {},
            },
            copy={"by": "backup_copy", "bytes": 7, "files": 2, "seconds": 0.5},
            required_wal=[SEGMENT],
        )
    if state == "complete":
        content["wal_proof"] = proof()
    for name, value in more.items():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    return content


def record_of(content: t.Mapping[str, t.Any]) -> BackupRecord:
    """Return the record with this content."""
    return parse_backup(json.dumps(content).encode(), content["backup_id"], content["cluster"], "of a test")


def content_of(backup: Backup) -> dict[str, t.Any]:
    """Return the content of ``backup.json``, unchecked."""
    content: dict[str, t.Any] = json.loads(pathlib.Path(backup.file("backup.json")).read_text())
    return content


def edit(backup: Backup, **changes: t.Any) -> None:
    """Change ``backup.json`` without any check."""
    pathlib.Path(backup.file("backup.json")).write_text(json.dumps({**content_of(backup), **changes}))


def proof(*names: str) -> dict[str, t.Any]:
    """Return a proof as ``wal_archived`` returns it."""
    return {
        "archived": list(names or (SEGMENT,)),
        "method": "server",
        "source": "db:5432",
        "system_identifier": IDENTIFIER,
        "proven_at": time.time(),
    }


def make_backup(cluster: Cluster, backup_id: str = "b1", state: str = "started", **more: t.Any) -> Backup:
    """Return an unfinished backup with every file that it may contain, but without a process."""
    content = {**metadata(state, **more), "backup_id": backup_id, "cluster": cluster.name}
    backup = cluster.new_backup(record_of(content))
    for name, content in CONTENTS.items():
        place = pathlib.Path(backup.file(*name.split("/")))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    return backup


# The backup's files, and those of the processes that work on it.
CONTENTS: t.Final = {
    "data/PG_VERSION": "18\n",
    "data/backup_label": "label",
    "data/backup_manifest": "manifest",
    "data/global/pg_control": "control",
    "data/base/1259": "relation",
    "tablespaces/16385/2600": "space",
    "session/lock": "",
    "session/state.json": '{"state": "stopped"}',
    "copy/files.jsonl": "",
    "owner.json": '{"owner": "me", "since": 1.0, "seen": 1.0}',
    "lock": "",
}
FILES: t.Final = frozenset(name for name in CONTENTS if name.startswith(("data/", "tablespaces/")))


def files_below(root: str | pathlib.Path) -> set[str]:
    """Return the files below ``root`` by their relative paths."""
    top = pathlib.Path(root)
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_symlink() or not path.is_dir()}
