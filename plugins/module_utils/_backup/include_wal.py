# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Including the WAL: the files that a restore needs, copied from the server's ``pg_wal`` into the backup's.

Private to pgfleet.basebackup. Room ``_backup``: the steps of a backup, from start to publish; it knows no restore.

The result is what ``pg_basebackup --wal-method=fetch`` makes: segments and timeline histories under their own names,
and an empty ``archive_status/<name>.done`` for each, so that the restored server does not archive them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.files import (
    fsync_path,
    remove_temporary,
    replacing,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.paths import identity, identity_of, same
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Server
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines

PIECE = 1 << 20

# A standby replaces a segment by one that it fetches from the archive, which has the same content.
ATTEMPTS = 3
PAUSE = 0.2  # seconds


# Seconds between two renewals of the session that keeps the WAL during its copy.
RENEW_SECONDS = 10.0


def include_wal(
    server: Server,
    target: str,
    required: t.Iterable[str],
    ranges: t.Sequence[_timelines.WalRange],
    end: t.Optional[int],
    renew: t.Callable[[], None],
) -> dict[str, str]:
    """Copy the ``required`` WAL files and some useful ones to ``target``, and return the SHA-256 of each by its name.

    The last timeline's segments are included up to the LSN ``end``, or as a whole; ``ranges`` are those of the backup,
    the newest first. ``renew`` is called every ``RENEW_SECONDS``. Raises :class:`BackupError` as
    :meth:`Inclusion.include`.
    """
    size, wal = server.wal_segment_size, os.path.join(server.data_directory, "pg_wal")
    files: dict[str, t.Optional[int]] = dict.fromkeys(required, end)
    # As pg_basebackup does, if they exist: without the history file a promoted copy would not know the ancestor of its
    # timeline, and pg_verifybackup requires the last segment of an older timeline from that timeline.
    more: dict[str, t.Optional[int]] = {_segments.history_name(one.timeline): None for one in ranges}
    for one in ranges[1:]:
        more[_segments.segment_name(one.timeline, _segments.last_segment_of(one.end, size), size)] = one.end
    files.update({name: until for name, until in more.items() if name not in files and os.path.exists(f"{wal}/{name}")})
    job = Inclusion(wal, target, size, int(server.system_identifier))
    renewed, digests = 0.0, {}
    for name, until in files.items():
        if time.monotonic() - renewed > RENEW_SECONDS:
            renewed = time.monotonic()
            renew()
        digests[name] = job.include(name, until)
    job.make_durable()
    return digests


class Inclusion:
    """Copies from ``source``, a server's ``pg_wal``, to ``target``; after a crash the same calls continue the work.

    ``size`` is the segment size in bytes.
    """

    def __init__(self, source: str, target: str, size: int, system_identifier: int) -> None:
        self._source = source
        self._target = target
        self._size = size
        self._system_identifier = system_identifier
        self._status = os.path.join(target, "archive_status")
        os.makedirs(self._status, mode=0o700, exist_ok=True)
        remove_temporary(target)

    def include(self, name: str, end: t.Optional[int] = None) -> str:
        """Copy one file, unless it is already copied, and return its SHA-256 in hexadecimal digits.

        WAL after the LSN ``end`` is replaced by zeros, at which replay ends. Raises :class:`BackupError`:
        ``wal_removed`` when the server no longer has the file, ``bad_segment`` or ``bad_history`` when its content
        contradicts its name.
        """
        target = os.path.join(self._target, name)
        # A file gets its name only when it is whole.
        digest = _digest(target) if os.path.exists(target) else self._copy(name, end, target)
        os.close(os.open(os.path.join(self._status, name + ".done"), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        return digest

    def make_durable(self) -> None:
        """Flush the names; the contents are flushed already."""
        for directory in (self._status, self._target, os.path.dirname(self._target)):
            fsync_path(directory)

    def _copy(self, name: str, end: t.Optional[int], target: str) -> str:
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            with contextlib.suppress(FileNotFoundError):
                return self._copy_once(name, end, target)
        raise BackupError(
            f"The WAL file {name} was removed from {self._source} before it was copied into the backup, which is void.",
            code="wal_removed",
            hint=f"The session that kept it has ended, by max_slot_wal_keep_size, {option('session_timeout')},"
            f" {option('session_idle_timeout')} or a restart of the server; see its log. Take a new backup.",
        )

    def _copy_once(self, name: str, end: t.Optional[int], target: str) -> str:
        """Copy, and return the SHA-256. Raises FileNotFoundError when the source was replaced by another file."""
        source = os.path.join(self._source, name)
        digest = hashlib.sha256()
        with replacing(target) as copy, open(source, "rb", buffering=0) as stream:
            for piece in self._pieces(stream, name, end):
                digest.update(piece)
                copy.write(piece)
            # The server renames a segment before it writes to it again. While the name still leads to the file that was
            # read, its content has not changed.
            if not same(identity(source), identity_of(os.fstat(stream.fileno()))):
                raise FileNotFoundError(source)
        return digest.hexdigest()

    def _pieces(self, stream: t.Any, name: str, end: t.Optional[int]) -> t.Iterator[bytes]:
        if _segments.is_history_name(name):
            content = stream.read()
            _timelines.parse_history(content.decode("ascii", "replace"))
            yield content
            return
        used = self._used(name, end)
        left = used
        while left:
            piece = stream.read(min(PIECE, left))
            if not piece:
                raise BackupError(f"WAL segment {name} in {self._source} is too short.", code="bad_segment")
            if left == used:
                _segments.check_segment(piece, name, self._size, self._system_identifier)
            left -= len(piece)
            yield piece
        for begin in range(used, self._size, PIECE):
            yield bytes(min(PIECE, self._size - begin))

    def _used(self, name: str, end: t.Optional[int]) -> int:
        if end is None:
            return self._size
        _timeline, segment = _segments.parse_segment_name(name, self._size)
        return min(self._size, end - segment * self._size)


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while True:
            piece = stream.read(PIECE)
            if not piece:
                return digest.hexdigest()
            digest.update(piece)
