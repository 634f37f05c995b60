# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other clusters on this host, whose files a restore, or the recovery after it, could overwrite.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import struct
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import printable
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.findings import Findings
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.target import IMMEDIATE, LSN, Target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _running
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import archive as _archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import path as _path
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import payload_pieces

# Recovery to an LSN also applies the record that begins there or next.
_NEXT_RECORD = 1 << 16


class Surroundings(t.NamedTuple):
    """The surroundings of the data directory ``data``.

    ``servers`` run on this host. No place of a restore may overlap with ``holdings`` (name, path without links), which
    hold the backups and the WAL.
    """

    data: bytes
    servers: t.Sequence[_running.Running]
    holdings: t.Sequence[tuple[str, bytes]]

    def others(self) -> list[_running.Running]:
        """Return the servers that run in other directories."""
        here = _paths.identity(self.data)
        return [server for server in self.servers if not _paths.same(server.identity, here)]


def surroundings_of(data: bytes, repository: str, archive: t.Optional[_archive.Archive]) -> Surroundings:
    """Return the surroundings of a data directory."""
    holdings = [("the repository", os.path.realpath(os.fsencode(repository)))]
    if isinstance(archive, _archive.DirectoryArchive):
        holdings.append(("the archive", os.path.realpath(os.fsencode(archive.directory))))
    return Surroundings(data, _running.running_servers(), holdings)


def source_of(choice: Choice) -> bytes:
    """Return the data directory of the backup's server, as this host resolves it."""
    return os.path.realpath(os.fsencode(choice.record.server.data_directory))


def user_of(around: Surroundings, real: bytes) -> str:
    """Return which other running server has its data or its WAL at, in or below a place, "" for none."""
    users = [server for server in around.others() if server.uses(real)]
    return f"the running server in {printable(users[0].data_directory)}" if users else ""


def user_of_wal(around: Surroundings, source: bytes, real: bytes) -> str:
    """Return which other cluster has its WAL in a directory, "" for none: a copy made by cp keeps the link to it.

    ``source`` is the data directory of the backup's server.
    """
    user = user_of(around, real)
    if not user and source != around.data and _paths.same(_paths.identity(source + b"/pg_wal"), _paths.identity(real)):
        user = f"the cluster in {printable(source)}"
    return user


def check_relatives(
    findings: Findings,
    around: Surroundings,
    choice: Choice,
    archive: t.Optional[_archive.Archive],
    target: Target,
    restore_as: str,
) -> None:
    """Refuse when replay would create a tablespace again in a directory that another cluster on this host uses.

    This happens with a tablespace that was created after the backup: its location comes from the WAL and cannot be
    mapped. Only clusters with the same system identifier are checked. Raises BackupError as reading the archive does.
    """
    known = choice.record.stop.tablespaces
    for user, directory in _relatives(around, choice):
        if restore_as == "primary" and directory.startswith(b"/proc/"):
            findings.warn(
                f"{user[0].upper()}{user[1:]} is of the same cluster. Another primary archives to the same place, on a"
                f" timeline that standbys and later restores may follow; {option('restore_as')}=copy archives nothing."
            )
        if target.kind == IMMEDIATE:
            continue
        for oid, location in sorted(_running.tablespaces_of(directory).items()):
            if oid not in known and _replays(choice, archive, target, oid, location):
                findings.refuse(
                    "tablespace_created_later",
                    f"The tablespace {oid} was created after the backup; replay would create it again in"
                    f" {printable(location)}, which is in use by {user}.",
                    "Restore a newer backup, recover to before it was created, or restore on another host.",
                    oid=oid,
                )


def _relatives(around: Surroundings, choice: Choice) -> t.Iterator[tuple[str, bytes]]:
    """Yield the other clusters on this host that are, or were, the source, and where their files can be read."""
    source = source_of(choice)
    places = [(server.data_directory, b"/proc/%d/cwd" % server.pid) for server in around.others()]
    if source != around.data and source not in [place for place, _seen in places]:
        places.append((source, source))
    for place, seen in places:
        if _is_of_cluster(seen, choice):
            yield f"the {'' if place == seen else 'running '}server in {printable(place)}", seen


def check_strangers(
    findings: Findings,
    around: Surroundings,
    choice: Choice,
    archive: t.Optional[_archive.Archive],
    target: Target,
) -> None:
    """Refuse when replay would create a tablespace in a directory that a server of another cluster uses for one.

    The files in it are named by numbers, so replay would replace files of that server. Raises BackupError as reading
    the archive does.
    """
    used: dict[bytes, bytes] = {}
    for server in around.others():
        seen = b"/proc/%d/cwd" % server.pid
        if _is_of_cluster(seen, choice):
            continue
        for location in _running.tablespaces_of(seen).values():
            used.update(
                {location + b"\0": server.data_directory, os.path.realpath(location) + b"\0": server.data_directory}
            )
    if not used or target.kind == IMMEDIATE or archive is None:
        return
    if not isinstance(archive, _archive.DirectoryArchive):
        findings.warn(
            "Whether replay would create a tablespace in a directory of another server on this host cannot be seen in"
            f" an archive that only {option('restore_command')} reaches."
        )
        return
    for pattern in sorted(_find(choice, archive, _limit(choice, target), tuple(used))):
        findings.refuse(
            "tablespace_created_later",
            f"A tablespace in {printable(pattern[:-1])} was created after the backup; replay would create it again,"
            f" over the tablespace of the running server in {printable(used[pattern])}.",
            "Restore a newer backup, recover to before it was created, or restore on another host.",
        )


def _is_of_cluster(data: bytes, choice: Choice) -> bool:
    try:
        control = _control.read_control(data + b"/global/pg_control", attempts=3)
    except BackupError:
        return False
    return str(control.system_identifier) == choice.record.server.system_identifier


def _replays(choice: Choice, archive: t.Optional[_archive.Archive], target: Target, oid: int, location: bytes) -> bool:
    """Return whether the WAL up to the target creates a tablespace, or may do so."""
    if choice.target_lsn is None or not isinstance(archive, _archive.DirectoryArchive):
        return True
    # The data of the record XLOG_TBLSPC_CREATE (tablespace.h): oid and path.
    pattern = struct.pack("<I", oid) + location + b"\0"
    return bool(_find(choice, archive, _limit(choice, target), [pattern]))


def _limit(choice: Choice, target: Target) -> t.Optional[int]:
    """Return the last position that is replayed, None for the end of the WAL."""
    return choice.target_lsn and choice.target_lsn + (_NEXT_RECORD if target.kind == LSN else 0)


def _find(
    choice: Choice, archive: _archive.DirectoryArchive, limit: t.Optional[int], patterns: t.Sequence[bytes]
) -> set[bytes]:
    """Return which of the patterns are in the WAL from the backup's start to ``limit``."""
    size = choice.record.server.wal_segment_size
    segment = _segments.segment_of(choice.record.start.lsn, size)
    keep = max(map(len, patterns))
    found: set[bytes] = set()
    rest = b""
    while limit is None or segment <= _segments.segment_of(limit, size):
        name = _path.path_segment(choice.path, segment, size)
        if not archive.has(name):
            break
        for piece, lsn_of in payload_pieces(archive.read(name), segment * size):
            for pattern in patterns:
                at = (rest + piece).find(pattern)
                if at >= 0 and (limit is None or at < len(rest) or lsn_of(at - len(rest)) <= limit):
                    found.add(pattern)
            rest = piece[-keep:]
        segment += 1
    return found
