# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One backup and a recovery target: how PostgreSQL would reach the target from it, or why not.

Sources: PostgreSQL, sections "Recovering Using a Continuous Archive Backup" and "Recovery Target"; PerformWalRecovery
of xlogrecovery.c, which refuses a target that comes before the backup's end or never.

Private to pgfleet.basebackup. Room ``_restore``: which backup, the plan, the restore; it knows nothing of ``_backup``.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError, option
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import BackupRecord
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.archives import ArchiveAndBackup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.search import Search, Searched
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.target import (
    END,
    IMMEDIATE,
    LSN,
    TIME,
    Target,
    format_time,
    in_words,
    is_applied,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import Archive, DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import (
    Path,
    needed_segments,
    path_segment,
    timeline_path,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.reach import Reach, reach
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import Event
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import (
    format_lsn,
    is_history_name,
    last_segment_of,
    segment_name,
    segment_of,
)


def stopped_us(record: BackupRecord) -> int:
    """Return when a backup ended, in microseconds since 1970."""
    return round(record.stop.stopped_at * 1000000)


class Choice(t.NamedTuple):
    """What to restore, why, and with which WAL.

    ``target`` is the target that the server is configured with: the requested one, or the end of the WAL when that is
    the same point and PostgreSQL would miss the requested one. ``target_lsn`` is the record or position at which
    recovery stops, None for the end of the WAL. ``wal_needed`` are file names, histories last; none of them is missing
    if the archive can be listed. ``recoverable_until_us`` is the newest end of a transaction in the archive,
    microseconds since 1970. ``target_checked`` is False when the archive could not be searched for the target.
    """

    backup: Backup
    record: BackupRecord
    why: str
    path: Path
    wal_needed: list[str]
    wal_missing: list[str]
    target_lsn: t.Optional[int]
    warnings: list[str]
    recoverable_until_us: t.Optional[int]
    target_checked: bool
    target: Target


class _StopPoint(t.NamedTuple):
    """Where recovery stops: at ``lsn``, for which WAL up to ``end`` is needed; ``target`` makes the server stop there.

    ``checked`` is False when it is not known whether that point exists.
    """

    end: int
    lsn: t.Optional[int]
    target: Target
    checked: bool = True


class Candidate:
    """One backup from which a target may be reached.

    ``searched`` is shared between the candidates of one choice, of which the newer come first. Raises
    :class:`BackupError` when it is clear without a search that the target is not reached.
    """

    def __init__(
        self,
        backup: Backup,
        record: BackupRecord,
        target: Target,
        archive: t.Optional[Archive],
        searched: Searched,
    ) -> None:
        self._backup, self._record, self._target, self._searched = backup, record, target, searched
        self._size = record.server.wal_segment_size
        self._start = record.start.lsn
        self._stop = record.stop.lsn
        self._warnings: list[str] = []
        self._source = self._open(archive)
        # Without it the path would be taken for a single timeline.
        histories = [name for name in record.required_wal if is_history_name(name)]
        unknown = [name for name in histories if not self._source.has(name)]
        if unknown:
            raise self._incomplete(unknown)
        self._path = timeline_path(self._source, record.stop.timeline, self._stop, target.timeline)
        ends = {LSN: self._stop, TIME: stopped_us(record)}
        if target.kind in ends and t.cast(int, target.value) < ends[target.kind]:
            raise self._before()
        self._reach = self._measure()
        self._search = Search(self._source, self._path, self._start, self._size, self._reach)

    def _open(self, archive: t.Optional[Archive]) -> Archive:
        """Return the archive, combined with the WAL in the backup if there is any."""
        backup, target = self._backup, self._target
        if not self._record.includes_wal:
            if archive is not None:
                return archive
            raise BackupError(
                f"The backup {backup.id} does not contain the WAL that it needs, and there is no archive.",
                code="wal_incomplete",
                hint=f"Set {option('archive_directory')} or {option('restore_command')}.",
                missing=list(self._record.required_wal),
            )
        if archive is None and target.kind not in (END, IMMEDIATE):
            raise BackupError(
                f"Without an archive only the end of the backup {backup.id} can be reached, not {in_words(target)}.",
                code="target_beyond_archive",
                hint=f"Set {option('archive_directory')} or {option('restore_command')}, or leave the target out.",
            )
        identifier = int(self._record.server.system_identifier)
        return ArchiveAndBackup(os.fsdecode(backup.layout().place(b"pg_wal")), archive, self._size, identifier)

    def _measure(self) -> t.Optional[Reach]:
        """Return how far the archive goes, None when it cannot be listed."""
        if isinstance(self._source, DirectoryArchive) and self._source.can_list:
            return reach(self._source, self._path, self._start)
        return None

    def judge(self) -> Choice:
        """Return how the target is reached. Raises :class:`BackupError` when it cannot be reached."""
        self._require(self._stop)
        point = self._stop_point()
        self._require(point.end)
        self._check_damage(point)
        return Choice(
            self._backup,
            self._record,
            "",
            self._path,
            needed_segments(self._path, self._start, point.end, self._size),
            [],
            point.lsn,
            self._warnings,
            self._reach.last_time_us if self._reach else None,
            point.checked,
            point.target,
        )

    # -- where recovery stops --------------------------------------------------------------------------------------

    def _stop_point(self) -> _StopPoint:
        kind = self._target.kind
        if kind == END:
            return self._end_of_wal()
        if kind == IMMEDIATE:
            return self._end_of_backup()
        if kind == LSN:
            lsn = t.cast(int, self._target.value)
            end = self._search.end_of_record(lsn)
            if not end:
                raise self._beyond()
            return _StopPoint(end, lsn, self._target)
        if self._reach is None:
            self._warnings.append(
                f"{self._source.description} cannot be searched, so it is not known whether {in_words(self._target)}"
                " can be reached."
            )
            return _StopPoint(self._stop, None, self._target, checked=False)
        event = self._by_time() if kind == TIME else self._by_content(self._reach)
        return _StopPoint(event.end, event.lsn, self._target)

    def _end_of_wal(self) -> _StopPoint:
        self._refuse_false_end()
        end = self._stop
        if self._reach:
            if self._reach.gap:
                raise self._incomplete()
            end = max(end, (self._reach.end_segment + 1) * self._size)
        return _StopPoint(end, None, self._target)

    def _end_of_backup(self) -> _StopPoint:
        """Return the end of the backup as the point to stop at.

        PostgreSQL notices the backup's end when it has read the next record. Where there is none (a standby's backup
        that ends with its WAL), the end of the WAL is the same point and is reached.
        """
        end = self._search.end_of_record(self._stop)
        if end:
            return _StopPoint(end, self._stop, self._target)
        if self._target.action != "promote":
            raise BackupError(
                f"The WAL ends with the backup {self._backup.id}; PostgreSQL needs one more record to stop there and"
                f" {self._target.action}.",
                code="target_beyond_archive",
                hint="Leave the target out, or archive one more WAL segment.",
            )
        self._warnings.append("The WAL ends where the backup ends, so recovery goes to the end of the WAL.")
        return _StopPoint(self._stop, self._stop, self._target._replace(kind=END))

    def _by_time(self) -> Event:
        event = self._search.by_time(self._target)
        if event is None:
            raise self._beyond()
        if event.lsn < self._stop:
            raise self._before(f", by the WAL's own times ({format_lsn(event.lsn)}),")
        return event

    def _by_content(self, reach: Reach) -> Event:
        event = self._search.by_content(self._target, self._searched)
        if event is None:
            raise BackupError(
                f"{self._words} is not in the WAL from the backup {self._backup.id} ({format_lsn(self._start)}) on,"
                f" along timeline {self._path.timeline}; {self._source.description}"
                f" {'has a damaged' if reach.damage else 'does not have the'} file {reach.first_missing}.",
                code="target_not_found",
                hint="It may be on another timeline. A transaction that only read data has no record in the WAL.",
                missing=self._search.gap() if reach.gap else [],
            )
        if (event.end if is_applied(self._target) else event.lsn) < self._stop:
            raise self._before(f" ({format_lsn(event.lsn)})")
        return event

    # -- what the WAL must have ------------------------------------------------------------------------------------

    def _require(self, end: int) -> None:
        """Raise :class:`BackupError` unless the archive has all WAL from the backup's start to ``end``."""
        if self._reach and end > self._stop and end <= (self._reach.end_segment + 1) * self._size:
            return
        needed = needed_segments(self._path, self._start, end, self._size)
        missing = [name for name in needed if not self._source.has(name)]
        if missing:
            raise self._incomplete(missing)

    def _check_damage(self, point: _StopPoint) -> None:
        """Refuse a damaged file that the server may read, and warn of a later one."""
        if self._reach is None or self._reach.damage is None:
            return
        # The server reads ahead of replay (recovery_prefetch), and ends when the next segment is damaged.
        if point.target.kind == END or last_segment_of(point.end, self._size) >= self._reach.end_segment:
            raise self._damaged(self._reach, self._reach.damage)
        self._warnings.append(f"The archive is damaged after the target: {self._reach.damage.msg}")

    def _refuse_false_end(self) -> None:
        """Refuse the end of the WAL where PostgreSQL would follow an older timeline past the fork.

        When the first segment of the newer timeline is missing, it reads the older timeline's segment of that number
        and continues past the fork (XLogFileReadAnyTLI of xlogrecovery.c).
        """
        for ancestor, fork in self._path.history:
            segment = segment_of(fork, self._size)
            name = path_segment(self._path, segment, self._size)
            older = segment_name(ancestor, segment, self._size)
            if fork > self._start and not self._source.has(name) and self._source.has(older):
                raise BackupError(
                    f"Timeline {self._path.timeline} begins at {format_lsn(fork)}, and its first WAL file {name} is"
                    f" not in {self._source.description}. PostgreSQL would continue along timeline {ancestor}, past the"
                    " fork.",
                    code="wal_incomplete",
                    hint=f"Have it archived (pgfleet.basebackup.wal_switch on the primary), or recover to the fork:"
                    f" {option('recovery_target_timeline')}={ancestor},"
                    f" {option('recovery_target_lsn')}={format_lsn(fork)},"
                    f" {option('recovery_target_inclusive')}=false.",
                    missing=[name],
                )

    # -- refusals --------------------------------------------------------------------------------------------------

    @property
    def _words(self) -> str:
        words = in_words(self._target)
        return words[0].upper() + words[1:]

    def _incomplete(self, missing: t.Sequence[str] = ()) -> BackupError:
        hint = ""
        if not missing and self._reach:
            missing = self._search.gap()
            if self._reach.last_lsn is not None and self._reach.last_lsn >= self._stop:
                last = format_lsn(self._reach.last_lsn)
                hint = f"Without them recovery can go to {option('recovery_target_lsn')}={last}."
        return BackupError(
            f"To reach {in_words(self._target)} from the backup {self._backup.id} the WAL file {missing[0]} is needed;"
            f" it is missing in {self._source.description} ({len(missing)} in all).",
            code="wal_incomplete",
            hint=hint,
            missing=list(missing),
        )

    def _damaged(self, reach: Reach, damage: BackupError) -> BackupError:
        """Return the refusal of a target in or after a damaged file."""
        return BackupError(
            f"To reach {in_words(self._target)} from the backup {self._backup.id} the server needs or may read"
            f" {reach.first_missing}: {damage.msg}",
            code="bad_segment",
            hint="Repair it, or move it out of the archive: recovery then ends before it.",
            missing=[reach.first_missing],
        )

    def _before(self, where: str = "") -> BackupError:
        ended, stop_lsn = format_time(stopped_us(self._record)), format_lsn(self._stop)
        return BackupError(
            f"{self._words}{where} lies before the end of the backup {self._backup.id} ({ended}, {stop_lsn}).",
            code="target_before_backup",
            hint=f"A backup can be recovered to its end at the earliest ({option('recovery_target')}=immediate).",
            earliest_backup=self._backup.id,
            earliest_time=ended,
            earliest_lsn=stop_lsn,
        )

    def _beyond(self) -> BackupError:
        """Return the refusal of a target that the WAL does not reach, because of a gap or of its end."""
        if self._reach is None:
            newest, lsn, missing = None, None, ""
        elif self._reach.damage:
            return self._damaged(self._reach, self._reach.damage)
        elif self._reach.gap:
            return self._incomplete()
        else:
            newest, lsn, missing = self._reach.last_time_us, self._reach.last_lsn, self._reach.first_missing
        ends = [f"its last record starts at {format_lsn(lsn)}"] if lsn is not None else []
        ends += [f"the newest transaction in it ended at {format_time(newest)}"] if newest is not None else []
        detail = f": {', '.join(ends)}; {missing} is missing" if ends else ""
        return BackupError(
            f"{self._words} is not reached by {self._source.description}{detail}.",
            code="target_beyond_archive",
            hint="Leave the target out to recover to the end of the archive, or wait until more is archived.",
            newest_time=None if newest is None else format_time(newest),
            last_lsn=None if lsn is None else format_lsn(lsn),
            first_missing=missing,
        )
