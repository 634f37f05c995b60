# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who else has its files where a restore, or the recovery after it, would write.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import os
import struct
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import target as _target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.old_wal import directory_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import archive as _archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import path as _path
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import payload_pieces

# Recovery to an LSN also applies the record that begins there or next.
_NEXT_RECORD = 1 << 16


def holdings(plan: Plan) -> list[tuple[str, bytes]]:
    """Return what no place of a restore may overlap with: where the backups are and where the WAL is."""
    found = [("the repository", os.path.realpath(os.fsencode(plan.cluster.repository.path)))]
    if isinstance(plan.archive, _archive.DirectoryArchive):
        found.append(("the archive", os.path.realpath(os.fsencode(plan.archive.directory))))
    return found


def cluster_around(path: bytes) -> bytes:
    """Return the data directory that ``path`` lies in, empty when it lies in none; it need not be in use."""
    while len(path) > 1:
        path = os.path.dirname(path)
        # The directory of a database has a PG_VERSION, too.
        if os.path.lexists(path + b"/PG_VERSION") and os.path.lexists(path + b"/global"):
            return path
    return b""


def user_of_wal(plan: Plan, real: bytes) -> str:
    """Return who else has its WAL in a directory: a copy made by cp keeps the link to the other cluster's."""
    wanted = _paths.identity(real)
    for server in plan.servers:
        if _paths.same(server.wal, wanted) and not _is_here(plan, server):
            return f"the running server in {printable(server.data_directory)}"
    source = os.path.realpath(os.fsencode(plan.content["server"]["data_directory"]))
    return f"the cluster in {printable(source)}" if source != plan.data and directory_of(source) == real else ""


def _is_here(plan: Plan, server: _running.Running) -> bool:
    return _paths.same(server.identity, _paths.identity(plan.data))


def check_relatives(plan: Plan) -> None:
    """Refuse when replay would create a tablespace anew in the directory in which another cluster here has it.

    That is one that was created after the backup: its place comes from the WAL and cannot be mapped. Only clusters with
    the same system identifier are looked at. Raises BackupError as reading the archive does.
    """
    known = set(plan.content["stop"]["tablespaces"])
    for user, directory in _relatives(plan):
        if plan.params["restore_as"] == "primary" and directory.startswith(b"/proc/"):
            plan.warnings.append(
                f"{user[0].upper()}{user[1:]} is of the same cluster. Another primary archives to the same place, on a"
                " timeline that standbys and later restores may follow; restore_as: copy archives nothing."
            )
        if plan.target.kind == _target.IMMEDIATE:
            continue
        for oid, location in sorted(_running.tablespaces_of(directory).items()):
            if str(oid) not in known and _replays(plan, oid, location):
                plan.refuse(
                    "tablespace_created_later",
                    f"The tablespace {oid} was created after the backup; replay would create it again in"
                    f" {printable(location)}, which is in use by {user}.",
                    "Restore a newer backup, recover to before it was created, or restore on another host.",
                    oid=oid,
                )


def _relatives(plan: Plan) -> t.Iterator[tuple[str, bytes]]:
    """Yield the other clusters on this host that are, or were, the source, and where their files can be seen."""
    source = os.path.realpath(os.fsencode(plan.content["server"]["data_directory"]))
    places = [
        (server.data_directory, b"/proc/%d/cwd" % server.pid) for server in plan.servers if not _is_here(plan, server)
    ]
    if source != plan.data and source not in [place for place, _seen in places]:
        places.append((source, source))
    for place, seen in places:
        try:
            control = _control.read_control(seen + b"/global/pg_control", attempts=3)
        except BackupError:
            continue
        if str(control.system_identifier) == plan.content["server"]["system_identifier"]:
            yield f"the {'' if place == seen else 'running '}server in {printable(place)}", seen


def _replays(plan: Plan, oid: int, location: bytes) -> bool:
    """Tell whether the creation of a tablespace is, or may be, in the WAL up to the target."""
    lsn, archive = plan.choice.target_lsn, plan.archive
    if lsn is None or not isinstance(archive, _archive.DirectoryArchive):
        return True
    limit = lsn + (_NEXT_RECORD if plan.target.kind == _target.LSN else 0)
    size = plan.content["server"]["wal_segment_size"]
    # The data of the record XLOG_TBLSPC_CREATE (tablespace.h): oid and path.
    pattern = struct.pack("<I", oid) + location + b"\0"
    first = _segments.segment_of(_segments.parse_lsn(plan.content["start"]["start_lsn"]), size)
    rest = b""
    for segment in range(first, _segments.segment_of(limit, size) + 1):
        name = _path.path_segment(plan.choice.path, segment, size)
        if not archive.has(name):
            break
        for piece, lsn_of in payload_pieces(archive.read(name), segment * size):
            at = (rest + piece).find(pattern)
            if at >= 0 and (at < len(rest) or lsn_of(at - len(rest)) <= limit):
                return True
            rest = piece[-len(pattern) :]
    return False
