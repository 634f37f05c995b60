# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The work records of an unfinished backup, parsed once into checked values: ``copy/progress.json``, ``owner.json``.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.
"""

from __future__ import annotations

import re
import types
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import detached as _detached
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import write_json
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup

_ALGORITHM = re.compile(r"[A-Z0-9]{1,20}\Z")
_LARGEST_OWNER = 1 << 16


class Owner(t.NamedTuple):
    """The run that works on a backup; times in seconds since the epoch. All None when it is not known."""

    owner: t.Optional[str] = None
    since: t.Optional[float] = None
    seen: t.Optional[float] = None


class Control(t.TypedDict):
    """The copied ``pg_control``, as in a manifest."""

    size: int
    mtime: int
    algorithm: t.Optional[str]
    checksum: t.Optional[str]


def read_owner(backup: Backup) -> Owner:
    """Return who works on ``backup``. A record that cannot be read says nothing; then only time shows what lives."""
    checks = {"owner": _fields.text(), "since": _fields.timestamp, "seen": _fields.timestamp}
    try:
        content = _fields.read_object(backup.file("owner.json"), _LARGEST_OWNER, backup.cluster.repository.users)
        return Owner(**_fields.known(content, **checks))
    except (OSError, _fields.Wrong):
        return Owner()


def write_owner(backup: Backup, owner: Owner) -> None:
    """Write the record durably. Raises OSError."""
    write_json(backup.file("owner.json"), {name: value for name, value in owner._asdict().items() if value is not None})


def read_copy(backup: Backup) -> t.Dict[str, t.Any]:
    """Return the record of the copy, with the checked values of COPY_FIELDS when it is done; ``{}`` without a copy.

    Raises :class:`BackupError`, code ``damaged_copy_record``.
    """
    try:
        return _detached.read_progress(backup.file("copy"), COPY_FIELDS)
    except (OSError, _fields.Wrong) as exc:
        raise BackupError(
            f"The record of the copy of the backup {backup.id}, {backup.file('copy', _detached.RECORD)}, cannot be"
            f" read: {exc}.",
            code="damaged_copy_record",
            hint="Run pgfleet.basebackup.backup_copy again; it keeps the files that are complete.",
        ) from exc


def _control(content: t.Any) -> Control:
    return Control(
        size=_fields.field(content, "size", _fields.byte_count),
        mtime=_fields.field(content, "mtime", _fields.byte_count),
        algorithm=_fields.optional(content, "algorithm", _fields.matching(_ALGORITHM, "an algorithm")),
        checksum=_fields.optional(content, "checksum", _fields.hexadecimal),
    )


def _special_file(content: t.Any) -> t.Dict[str, str]:
    return {
        "path": _fields.field(content, "path", _fields.path_below),
        "kind": _fields.field(content, "kind", _fields.one_of("symlink", "fifo", "socket", "device")),
        "target": _fields.field(content, "target", _fields.text(_fields.LONGEST_PATH)),
    }


def _list(check: _fields.Check[t.Any]) -> _fields.Check[t.List[t.Any]]:
    return lambda value: list(_fields.list_of(check)(value))


# What the copy adds to its record when it is done.
COPY_FIELDS: t.Mapping[str, _fields.Check[t.Any]] = types.MappingProxyType(
    {
        "control": _control,
        "checksum_algorithm": _fields.matching(_ALGORITHM, "an algorithm"),
        "files": _fields.byte_count,
        "bytes": _fields.byte_count,
        "seconds": _fields.seconds,
        "reused_files": _fields.byte_count,
        "reused_bytes": _fields.byte_count,
        "vanished_files": _fields.byte_count,
        "special_files": _list(_special_file),
        "tablespace_oids": _list(_fields.integer(1, 0xFFFFFFFF)),
    }
)
