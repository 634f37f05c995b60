# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore writes down of itself.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import hashlib
import json
import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import read_json
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity, same
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import CONTROL, RECORD, WORK
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.old_wal import is_empty

# Says that nothing of the old cluster is in pg_wal any more.
WAL_SAVED = b"wal_saved"
# What the target directory of a restore can be.
EMPTY, INTERRUPTED, CLUSTER, OTHER = "empty", "interrupted", "cluster", "other"
WISH = "wish.json"


# What tells one restore from another; the other arguments say how it is done.
_WISH = (
    "repository cluster backup_id data_directory recovery_target recovery_target_time recovery_target_lsn"
    " recovery_target_xid recovery_target_name recovery_target_inclusive recovery_target_timeline"
    " recovery_target_action archive_directory restore_command tablespace_mapping tablespace_directory waldir"
    " allow_group_access restore_as primary_conninfo primary_slot_name port settings config_file"
)


def digest_of(params: t.Mapping[str, t.Any]) -> str:
    """Return what is the same for two calls that want the same; it does not tell passwords."""
    wish = json.dumps({name: params[name] for name in _WISH.split()}, sort_keys=True)
    return hashlib.sha256(wish.encode("ascii")).hexdigest()


def read_record(data: bytes) -> dict[str, t.Any]:
    """Return the record of the finished restore of this very directory, {} when there is none.

    That of a copy of the directory does not count, nor one of a restore that was not finished.
    """
    try:
        record = read_json(os.fsdecode(data + b"/" + RECORD))
        if not same((record["device"], record["inode"]), identity(data)):
            return {}
        return record if os.path.lexists(data + b"/" + CONTROL) else {}
    except (OSError, ValueError, KeyError):
        return {}


def read_wish(data: bytes) -> dict[str, t.Any]:
    """Return what the restore that works, or has worked, in ``data`` has written down of itself, {} when none has."""
    try:
        return read_json(os.path.join(os.fsdecode(data), os.fsdecode(WORK), WISH))
    except (OSError, ValueError):
        return {}


def state_of(data: bytes) -> str:
    """Return what the target directory is: EMPTY or absent, an INTERRUPTED restore, a CLUSTER, or OTHER."""
    if is_empty(data, WORK):
        return EMPTY
    if os.path.isfile(data + b"/" + WORK + b"/" + os.fsencode(WISH)) and not os.path.lexists(data + b"/" + CONTROL):
        return INTERRUPTED
    return CLUSTER if os.path.lexists(data + b"/PG_VERSION") else OTHER
