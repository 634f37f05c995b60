# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One backup and a recovery target: how PostgreSQL would reach the target from it, or why not.

Sources: PostgreSQL, sections "Recovering Using a Continuous Archive Backup" and "Recovery Target"; PerformWalRecovery
of xlogrecovery.c, which refuses a target that comes before the backup's end or not at all.

Private to pgfleet.basebackup: no stability is promised.
"""

from __future__ import annotations

import itertools
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.target import (
    END,
    IMMEDIATE,
    LSN,
    TIME,
    Target,
    format_time,
    in_words,
    is_applied,
    is_stop,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import archive as _archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import path as _path
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import reach as _reach
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import Path
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import RESTORE_POINT, Event, scan_segments
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import (
    format_lsn,
    is_history_name,
    is_segment_name,
    last_segment_of,
    parse_lsn,
    parse_segment_name,
    segment_name,
    segment_of,
)

# By target timeline: from where on the WAL has been searched for a transaction or a name, and what was found first.
Seen = t.Dict[int, t.Tuple[int, t.Optional[Event]]]


def time_of(stop: t.Mapping[str, t.Any]) -> str:
    """Return when a backup ended."""
    return format_time(round(stop["stopped_at"] * 1000000))


class Chosen(t.NamedTuple):
    """What to restore, why, and with which WAL.

    ``target`` is what the server is to be told: the one that was asked for, or the end of the WAL where that is the
    same and PostgreSQL would miss the other. ``target_lsn`` is the record or position at which recovery stops, None
    for the end of the WAL. ``wal_needed`` are file names, histories last; none of them is missing where that can be
    known. ``recoverable_until_us`` is the newest end of a transaction in the archive, microseconds since 1970.
    ``target_checked`` is False when the archive could not be looked into for the target.
    """

    backup: Backup
    content: dict[str, t.Any]
    why: str
    path: Path
    wal_needed: list[str]
    wal_missing: list[str]
    target_lsn: t.Optional[int]
    warnings: list[str]
    recoverable_until_us: t.Optional[int]
    target_checked: bool
    target: Target


class _Together(_archive.DirectoryArchive):
    """The WAL in a backup, and before it, as the server looks, the archive.

    The last segment in a standby's backup may end where the backup ends. Then it must not bridge a gap of the archive.
    """

    def __init__(self, directory: str, outer: t.Optional[_archive.Archive], size: int, identifier: int) -> None:
        super().__init__(directory, size, identifier)
        self.description = f"{outer.description if outer else 'what there is:'} and the WAL in the backup"
        self.can_list = outer is None or outer.can_list
        self._outer = outer

    def names(self) -> frozenset[str]:
        """Return the names of both."""
        own = super().names()
        if not isinstance(self._outer, _archive.DirectoryArchive):
            return own
        others = self._outer.names()
        last = max(filter(is_segment_name, own), default="")
        if last and last not in others and any(is_segment_name(name) and name[8:] > last[8:] for name in others):
            scans = scan_segments([(parse_segment_name(last, self.size)[1], self.read(last))], self.size)
            if next(iter(scans)).stops_at is not None:
                own -= {last}
        return own | others

    def has(self, name: str) -> bool:
        """Tell whether one of them has the file."""
        return (self._outer is not None and self._outer.has(name)) or super().has(name)

    def _content(self, name: str) -> t.Optional[bytes]:
        content = self._outer._content(name) if self._outer else None
        return super()._content(name) if content is None else content


class Attempt:
    """One backup and the target: how it would be reached, or why not.

    ``seen`` is shared between the backups of one choice, of which the newer come first.
    """

    def __init__(
        self,
        backup: Backup,
        content: dict[str, t.Any],
        target: Target,
        archive: t.Optional[_archive.Archive],
        seen: Seen,
    ) -> None:
        self._backup, self._content, self._target, self._seen = backup, content, target, seen
        self._size: int = content["server"]["wal_segment_size"]
        self._words = in_words(target)[0].upper() + in_words(target)[1:]
        self._start = parse_lsn(content["start"]["start_lsn"])
        self._stop = parse_lsn(content["stop"]["stop_lsn"])
        self._warnings: list[str] = []
        self._source = self._open(archive)
        # Without it the path would be taken for one timeline.
        histories = [name for name in content.get("required_wal") or [] if is_history_name(name)]
        unknown = [name for name in histories if not self._source.has(name)]
        if unknown:
            raise self._incomplete(unknown)
        self._path = _path.timeline_path(self._source, content["stop"]["timeline"], self._stop, target.timeline)
        ends = {LSN: self._stop, TIME: round(content["stop"]["stopped_at"] * 1000000)}
        if target.kind in ends and t.cast(int, target.value) < ends[target.kind]:
            raise self._before()
        self._reach = (
            _reach.reach(self._source, self._path, self._start)
            if isinstance(self._source, _archive.DirectoryArchive) and self._source.can_list
            else None
        )

    def _open(self, archive: t.Optional[_archive.Archive]) -> _archive.Archive:
        backup, target = self._backup, self._target
        if self._content.get("wal") != "include":
            if archive is not None:
                return archive
            raise BackupError(
                f"The backup {backup.id} does not contain the WAL that it needs, and no archive is known.",
                code="wal_incomplete",
                hint="Name archive_directory or restore_command.",
                missing=self._content["required_wal"],
            )
        if archive is None and target.kind not in (END, IMMEDIATE):
            raise BackupError(
                f"Without an archive only the end of the backup {backup.id} can be reached, not {in_words(target)}.",
                code="target_beyond_archive",
                hint="Name archive_directory or restore_command, or leave the target out.",
            )
        identifier = int(self._content["server"]["system_identifier"])
        return _Together(backup.file("data", "pg_wal"), archive, self._size, identifier)

    def run(self) -> Chosen:
        """Return how the target is reached. Raises :class:`BackupError` when it is not."""
        self._require(self._stop)
        target, checked, lsn = self._target, True, None
        end = self._stop
        if target.kind == END:
            self._refuse_false_end()
            if self._reach:
                if self._reach.gap:
                    raise self._incomplete()
                end = max(end, (self._reach.end_segment + 1) * self._size)
        elif target.kind == IMMEDIATE:
            lsn = self._stop
            end, target = self._immediate()
        elif target.kind == LSN:
            lsn = t.cast(int, target.value)
            end = self._end_of_record(lsn)
            if not end:
                raise self._beyond()
        elif self._reach is None:
            checked = False
            self._warnings.append(
                f"{self._source.description} cannot be searched, so it is not known whether {in_words(target)} can be"
                " reached."
            )
        else:
            event = self._by_time() if target.kind == TIME else self._by_search()
            lsn, end = event.lsn, event.end
        self._require(end)
        if self._reach and self._reach.damage:
            # The server reads ahead of what it replays (recovery_prefetch), and ends when the next segment is not good.
            if target.kind == END or last_segment_of(end, self._size) >= self._reach.end_segment:
                raise self._damaged()
            self._warnings.append(f"The archive is damaged behind the target: {self._reach.damage.msg}")
        return Chosen(
            self._backup,
            self._content,
            "",
            self._path,
            _path.needed_segments(self._path, self._start, end, self._size),
            [],
            lsn,
            self._warnings,
            self._reach.last_time_us if self._reach else None,
            checked,
            target,
        )

    def _require(self, end: int) -> None:
        """Raise :class:`BackupError` unless all WAL from the backup's start to ``end`` is there."""
        if self._reach and end > self._stop and end <= (self._reach.end_segment + 1) * self._size:
            return
        needed = _path.needed_segments(self._path, self._start, end, self._size)
        missing = [name for name in needed if not self._source.has(name)]
        if missing:
            raise self._incomplete(missing)

    def _refuse_false_end(self) -> None:
        """Refuse the end of the WAL where PostgreSQL would look for it on a timeline that was left.

        While it has read no segment of the newer timeline and the first one is missing, it takes the older one's of
        that number and goes on behind the fork (XLogFileReadAnyTLI of xlogrecovery.c).
        """
        for ancestor, fork in self._path.history:
            segment = segment_of(fork, self._size)
            name = _path.path_segment(self._path, segment, self._size)
            older = segment_name(ancestor, segment, self._size)
            if fork > self._start and not self._source.has(name) and self._source.has(older):
                raise BackupError(
                    f"Timeline {self._path.timeline} begins at {format_lsn(fork)}, and its first WAL file {name} is"
                    f" not in {self._source.description}. PostgreSQL would go on along timeline {ancestor}, behind the"
                    " point at which that was left.",
                    code="wal_incomplete",
                    hint=f"Have it archived (pgfleet.basebackup.wal_switch on the primary), or recover to that point:"
                    f" recovery_target_timeline={ancestor}, recovery_target_lsn={format_lsn(fork)},"
                    " recovery_target_inclusive=false.",
                    missing=[name],
                )

    def _incomplete(self, missing: t.Sequence[str] = ()) -> BackupError:
        hint = ""
        if not missing and self._reach:
            missing = self._gap()
            if self._reach.last_lsn is not None and self._reach.last_lsn >= self._stop:
                hint = f"Without them recovery can go to recovery_target_lsn={format_lsn(self._reach.last_lsn)}."
        return BackupError(
            f"For {in_words(self._target)} from the backup {self._backup.id} the WAL file {missing[0]} is missing in"
            f" {self._source.description} ({len(missing)} in all).",
            code="wal_incomplete",
            hint=hint,
            missing=list(missing),
        )

    def _damaged(self) -> BackupError:
        """Return the refusal of a target at, or behind, a file that is there and not good."""
        reach = t.cast(_reach.Reach, self._reach)
        return BackupError(
            f"For {in_words(self._target)} from the backup {self._backup.id} {reach.first_missing} is needed, or the"
            f" server may ask for it: {t.cast(BackupError, reach.damage).msg}",
            code="bad_segment",
            hint="Repair it; or move it out of the archive, and recovery ends before it.",
            missing=[reach.first_missing],
        )

    def _gap(self) -> list[str]:
        """Return what is missing between the first file and the last one that are there."""
        source, path, size = t.cast(_archive.DirectoryArchive, self._source), self._path, self._size
        names = source.names()
        segments = [parse_segment_name(name, size)[1] for name in names if is_segment_name(name)]
        last = max(one for one in segments if _path.path_segment(path, one, size) in names)
        wanted = (_path.path_segment(path, one, size) for one in range(segment_of(self._start, size), last))
        return [name for name in wanted if name not in names]

    def _immediate(self) -> tuple[int, Target]:
        """Return the end of what is needed, and the target to use.

        PostgreSQL notices that the backup's end is reached when it has the next record before it. Where there is none
        (a standby's backup that ends with its WAL), the end of the WAL is the same and is reached.
        """
        end = self._end_of_record(self._stop)
        if end:
            return end, self._target
        if self._target.action != "promote":
            raise BackupError(
                f"The WAL ends with the backup {self._backup.id}; PostgreSQL needs one more record to stop there and"
                f" {self._target.action}.",
                code="target_beyond_archive",
                hint="Leave the target out, or archive one more WAL segment.",
            )
        self._warnings.append("The WAL ends where the backup ends, so recovery goes to the end of the WAL.")
        return self._stop, self._target._replace(kind=END)

    def _end_of_record(self, lsn: int) -> int:
        """Return an LSN up to which WAL is needed for a record that starts at or behind ``lsn``; 0 without one."""
        if self._reach and (self._reach.last_lsn is None or self._reach.last_lsn < lsn):
            return 0
        first = segment_of(lsn, self._size)
        for scan in scan_segments(self._segments(first, self._reach and self._reach.end_segment), self._size):
            if scan.last_lsn is not None and scan.last_lsn >= lsn:
                return t.cast(int, scan.last_end) if scan.segment > first else lsn + 1
        return 0

    def _segments(self, first: int, last: t.Optional[int] = None) -> t.Iterator[tuple[int, bytes]]:
        """Yield segments of the path up to ``last``, without it as many as are there."""
        for segment in itertools.count(first):
            name = _path.path_segment(self._path, segment, self._size)
            if (last is not None and segment > last) or not self._source.has(name):
                return
            yield segment, self._source.read(name)

    def _before(self, where: str = "") -> BackupError:
        stop = self._content["stop"]
        ended = time_of(stop)
        return BackupError(
            f"{self._words}{where} lies before the end of the backup {self._backup.id} ({ended}, {stop['stop_lsn']}).",
            code="target_before_backup",
            hint="The earliest point that a backup can be recovered to is its end (recovery_target=immediate).",
            earliest_backup=self._backup.id,
            earliest_time=ended,
            earliest_lsn=stop["stop_lsn"],
        )

    def _beyond(self) -> BackupError:
        """Return the refusal of a target that the WAL does not reach: for a gap, or because it ends there."""
        if self._reach is None:
            newest, lsn, missing = None, None, ""
        elif self._reach.damage:
            return self._damaged()
        elif self._reach.gap:
            return self._incomplete()
        else:
            newest, lsn, missing = self._reach.last_time_us, self._reach.last_lsn, self._reach.first_missing
        ends = [f"its last record starts at {format_lsn(lsn)}"] if lsn is not None else []
        ends += [f"the newest transaction in it ended at {format_time(newest)}"] if newest is not None else []
        told = f": {', '.join(ends)}; {missing} is not there" if ends else ""
        return BackupError(
            f"{self._words} is not reached by {self._source.description}{told}.",
            code="target_beyond_archive",
            hint="Leave the target out to recover to the end of the archive, or wait until more is archived.",
            newest_time=None if newest is None else format_time(newest),
            last_lsn=None if lsn is None else format_lsn(lsn),
            first_missing=missing,
        )

    def _by_time(self) -> Event:
        """Return the record before which recovery to a time stops."""
        reach = t.cast(_reach.Reach, self._reach)
        newest = reach.last_time_us
        value = t.cast(int, self._target.value)
        if newest is None or newest < value or (newest == value and self._target.inclusive):
            raise self._beyond()
        low, high = segment_of(self._start, self._size), reach.end_segment + 1
        first = low
        # The first segment from which on nothing ends in time; what is looked for begins there or in the one before.
        while low < high:
            middle = (low + high) // 2
            if self._is_late(middle, reach.end_segment):
                high = middle
            else:
                low = middle + 1
        event = self._first_stop(max(first, low - 1), reach.end_segment, self._start)
        if event is None:
            raise self._beyond()
        if event.lsn < self._stop:
            raise self._before(f", by the WAL's own times ({format_lsn(event.lsn)}),")
        return event

    def _is_late(self, segment: int, last: int) -> bool:
        """Tell whether the first transaction that ends from a segment on ends too late for the target."""
        for scan in scan_segments(self._segments(segment, last), self._size):
            for event in scan.events:
                if event.kind != RESTORE_POINT and event.lsn >= self._start:
                    return is_stop(self._target, event)
        return True

    def _first_stop(self, first: int, last: int, start: int, limit: t.Optional[int] = None) -> t.Optional[Event]:
        """Return the first record from ``start`` to ``limit`` at which recovery stops."""
        for scan in scan_segments(self._segments(first, last), self._size):
            for event in scan.events:
                if event.lsn >= start and (limit is None or event.lsn < limit) and is_stop(self._target, event):
                    return event
        return None

    def _by_search(self) -> Event:
        """Return the record at which recovery to a transaction or a name stops: the first one from the start on."""
        reach, timeline = t.cast(_reach.Reach, self._reach), self._path.timeline
        limit, newer = self._seen.get(timeline, (None, None))
        last = reach.end_segment if limit is None else segment_of(limit, self._size)
        event = self._first_stop(segment_of(self._start, self._size), last, self._start, limit) or newer
        self._seen[timeline] = (self._start, event)
        if event is None:
            raise BackupError(
                f"{self._words} is not in the WAL from the backup {self._backup.id} ({format_lsn(self._start)}) on,"
                f" along timeline {timeline}; {reach.first_missing} and what follows"
                f" {'cannot be read' if reach.damage else 'is not'} in {self._source.description}.",
                code="target_not_found",
                hint="It may be on another timeline. A transaction that only read has no end in the WAL.",
                missing=self._gap() if reach.gap else [],
            )
        if (event.end if is_applied(self._target) else event.lsn) < self._stop:
            raise self._before(f" ({format_lsn(event.lsn)})")
        return event
