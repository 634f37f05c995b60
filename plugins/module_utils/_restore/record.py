# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory to restore to, and the files that a restore keeps in it: its request, and the record of its end.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.control import ControlFile, read_control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import write_json
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity, identity_of, same
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.trust import trusted_users
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import NAME
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import CONTROL, RECORD, WORK, is_empty
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import fields as _wal_fields

# It exists when the old cluster has no WAL left in pg_wal.
WAL_SAVED = b"wal_saved"
REQUEST = b"request.json"
SCHEMA = 1
_LARGEST = 64 << 20  # bytes
_digest = _fields.matching(re.compile(r"[0-9a-f]{64}\Z"), "a digest")
_name = _fields.matching(NAME, "a plain name")
# The states of the target directory.
EMPTY, INTERRUPTED, CLUSTER, OTHER = "empty", "interrupted", "cluster", "other"

# The arguments that distinguish one restore from another; the others change only how it is done.
_REQUEST = (
    "repository cluster backup_id data_directory recovery_target recovery_target_time recovery_target_lsn"
    " recovery_target_xid recovery_target_name recovery_target_inclusive recovery_target_timeline"
    " recovery_target_action archive_directory restore_command tablespace_mapping tablespace_directory waldir"
    " allow_group_access restore_as primary_conninfo primary_slot_name port settings source_settings config_file"
)


class Record(t.NamedTuple):
    """A finished restore: ``restored_at`` in seconds since 1970, ``result`` that of the module."""

    digest: str
    backup_id: str
    restore_as: str
    restored_at: float
    run_id: t.Optional[str]
    result: t.Mapping[str, t.Any]


class Request(t.NamedTuple):
    """A running or interrupted restore, with the facts that the call that continues it needs; empty without one.

    ``spaces`` are the locations of the tablespaces by oid, ``save_wal_to`` is the directory for saved WAL, ``wal_from``
    are the directories with WAL that recovery uses, ``system_identifier`` is that of the backup.
    """

    digest: str = ""
    backup_id: str = ""
    spaces: t.Mapping[str, str] = {}
    save_wal_to: bytes = b""
    wal_from: t.Tuple[bytes, ...] = ()
    system_identifier: str = ""


class Destination(t.NamedTuple):
    """The data directory to restore to as it was found: ``state`` is EMPTY, INTERRUPTED, CLUSTER or OTHER."""

    data: bytes
    state: str
    record: t.Optional[Record]
    request: Request


def read_destination(findings: Findings, data: bytes) -> Destination:
    """Return the state of ``data``, a path without links."""
    state = findings.collect(OTHER, state_of, data)
    # A request in a complete cluster belongs to an earlier restore.
    request = read_request(data) if state in (EMPTY, INTERRUPTED) else Request()
    return Destination(data, state, read_record(data), request)


def digest_of(params: t.Mapping[str, t.Any]) -> str:
    """Return a digest that is equal for two calls of the same restore; it does not disclose passwords."""
    request = json.dumps({name: params[name] for name in _REQUEST.split()}, sort_keys=True)
    return hashlib.sha256(request.encode("ascii")).hexdigest()


def read_record(data: bytes) -> t.Optional[Record]:
    """Return the record of the finished restore of this directory, None when there is none that can be read.

    The record in a copy of the directory does not count, nor does that of an unfinished restore.
    """
    try:
        content = _fields.read_object(os.fsdecode(data + b"/" + RECORD), _LARGEST, trusted_users(os.fsdecode(data)))
        number = _fields.integer(0, 1 << 64)
        found = (_fields.field(content, "device", number), _fields.field(content, "inode", number))
        if not same(found, identity(data)) or not os.path.lexists(data + b"/" + CONTROL):
            return None
        return Record(
            digest=_fields.field(content, "digest", _digest),
            backup_id=_fields.field(content, "backup_id", _name),
            restore_as=_fields.field(content, "restore_as", _fields.one_of("primary", "standby", "copy")),
            restored_at=_fields.field(content, "restored_at", _fields.timestamp),
            run_id=_fields.optional(content, "run_id", _fields.text(1000)),
            result=_fields.field(content, "result", _fields.mapping_of(_fields.text(100), _fields.json_value)),
        )
    except (OSError, _fields.Wrong):
        return None


def write_record(data: bytes, record: Record) -> None:
    """Write the record of a finished restore durably; it counts once ``pg_control`` exists, too."""
    device, inode = identity_of(os.stat(data))
    content = {"schema": SCHEMA, "data_directory": os.fsdecode(data), "device": device, "inode": inode}
    write_json(os.fsdecode(data + b"/" + RECORD), {**content, **record._asdict()})


def read_request(data: bytes) -> Request:
    """Return the request of the restore that is running, or was interrupted, in ``data``."""
    path = os.fsdecode(data + b"/" + WORK + b"/" + REQUEST)
    spaces = _fields.mapping_of(lambda oid: str(_wal_fields.oid(oid)), _fields.location)
    try:
        content = _fields.read_object(path, _LARGEST, trusted_users(os.fsdecode(data)))
        return Request(
            digest=_fields.field(content, "digest", _digest),
            backup_id=_fields.field(content, "backup_id", _name),
            spaces=_fields.field(content, "spaces", spaces),
            save_wal_to=os.fsencode(_fields.field(content, "save_wal_to", _location_or_none)),
            wal_from=tuple(map(os.fsencode, _fields.field(content, "wal_from", _fields.list_of(_fields.location)))),
            system_identifier=_fields.optional(content, "system_identifier", _identifier_or_none) or "",
        )
    except (OSError, _fields.Wrong):
        return Request()


def _location_or_none(value: t.Any) -> str:
    return "" if value == "" else _fields.location(value)


def _identifier_or_none(value: t.Any) -> str:
    return "" if value == "" else _wal_fields.system_identifier(value)


def write_request(data: bytes, request: Request) -> None:
    """Write the request durably."""
    content = {
        "digest": request.digest,
        "backup_id": request.backup_id,
        "spaces": dict(request.spaces),
        "save_wal_to": os.fsdecode(request.save_wal_to),
        "wal_from": [os.fsdecode(place) for place in request.wal_from],
        "system_identifier": request.system_identifier,
    }
    write_json(os.fsdecode(data + b"/" + WORK + b"/" + REQUEST), content)


def state_of(data: bytes) -> str:
    """Return the state of a directory: EMPTY (or absent), INTERRUPTED, CLUSTER or OTHER.

    Raises BackupError, code ``unreadable``.
    """
    if is_empty(data, WORK):
        return EMPTY
    if os.path.isfile(data + b"/" + WORK + b"/" + REQUEST) and not os.path.lexists(data + b"/" + CONTROL):
        return INTERRUPTED
    return CLUSTER if os.path.lexists(data + b"/PG_VERSION") else OTHER


def control_in(data: bytes) -> t.Optional[ControlFile]:
    """Return the control file of the cluster in ``data``, None when there is no valid one."""
    try:
        return read_control(data + b"/" + CONTROL, attempts=1)
    except BackupError:
        return None
