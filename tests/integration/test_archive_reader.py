# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The WAL reader agrees with pg_waldump, through crashes and promotions."""

from __future__ import annotations

import calendar
import contextlib
import itertools
import pathlib
import re
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import path_segment, timeline_path
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.reach import reach
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.records import Event, SegmentScan, scan_segments

from tests.harness import binaries
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import me, run

RECORD: t.Final = re.compile(
    r"rmgr: (\S+) +len .*?, tx: +(\d+), lsn: (\S+), prev \S+, desc: ([A-Z_]+) ?(.*?)(?:; .*)?$"
)
ENDS: t.Final = {"COMMIT": "commit", "ABORT": "abort", "COMMIT_PREPARED": "commit", "ABORT_PREPARED": "abort"}


class Dumped(t.NamedTuple):
    """A record as pg_waldump prints it, and as an event that ends where the next record begins."""

    lsn: int
    what: str
    event: Event | None


def microseconds(text: str) -> int:
    day, clock, _zone = text.split()
    whole, _dot, fraction = clock.partition(".")
    seconds = calendar.timegm(time.strptime(f"{day} {whole}", "%Y-%m-%d %H:%M:%S"))
    return seconds * 1000000 + int(fraction.ljust(6, "0"))


def dump(major: int, archive: pathlib.Path, first: str, last: str) -> list[Dumped]:
    """Return the complete records from ``first`` to ``last``; the program fails at the end of the WAL."""
    command = [binaries.tool(major, "pg_waldump"), "-p", archive, "-t", str(int(first[:8], 16)), first, last]
    done = run(command, env={**binaries.environment(major), "TZ": "UTC"}, user=me(), check=False)
    lines = [match for match in map(RECORD.match, done.stdout.splitlines()) if match]
    assert len(lines) == done.stdout.count("rmgr: ") > 0, done
    records = []
    for match in lines:
        manager, xid, lsn, what, text = match.groups()
        event = None
        if manager == "Transaction" and what in ENDS:
            prepared, _colon, rest = text.partition(": ") if what.endswith("PREPARED") else (xid, "", text)
            event = Event(_wal.parse_lsn(lsn), 0, ENDS[what], int(prepared), microseconds(rest), b"")
        elif what == "RESTORE_POINT":
            event = Event(_wal.parse_lsn(lsn), 0, "restore_point", 0, 0, text.encode())
        records.append(Dumped(_wal.parse_lsn(lsn), what, event))
    return records


def scan(archive: pathlib.Path, names: t.Sequence[str], size: int) -> list[SegmentScan]:
    return list(
        scan_segments(((_wal.parse_segment_name(name, size)[1], (archive / name).read_bytes()) for name in names), size)
    )


def agree(major: int, archive: pathlib.Path, names: t.Sequence[str], size: int) -> list[Event]:
    """Require that both read the same in these consecutive segments of one timeline, and return the events."""
    dumped = dump(major, archive, names[0], names[-1])
    scans = scan(archive, names, size)
    events = [event for one in scans for event in one.events]
    assert [event._replace(end=0) for event in events if event.kind != "restore_point"] == [
        record.event for record in dumped if record.event and record.event.kind != "restore_point"
    ]
    assert [(event.lsn, event.name) for event in events if event.kind == "restore_point"] == [
        (record.lsn, record.event.name) for record in dumped if record.event and record.event.kind == "restore_point"
    ]
    after = {record.lsn: following.lsn for record, following in itertools.pairwise(dumped)}
    for event in events:
        if event.lsn in after:
            headers = 0 if event.end % 8192 else 24 if event.end % size else 40
            assert event.end + headers == after[event.lsn], event
    # The last complete record in each segment: the next one begins right after it, or after the next header.
    ends: dict[int, int] = {}
    for record in dumped[:-1]:
        switch = record.what == "SWITCH"
        ends[record.lsn // size if switch else (after[record.lsn] - 41) // size] = record.lsn
    for one in scans[:-1]:
        assert one.last_lsn == ends.get(one.segment), one
        assert one.stops_at is None
    assert scans[-1].last_lsn == dumped[-1].lsn
    return events


def write_everything(server: Server) -> None:
    """Write every kind of record that matters, short and long, in one session."""
    options = "-c lock_timeout=20s"
    with contextlib.closing(server.connect(options=options)) as connection, connection.cursor() as cursor:

        def say(*commands: str) -> None:
            for command in commands:
                cursor.execute(command)

        say("CREATE TABLE a (i int, t text)", "CREATE TABLE b (i int)", "INSERT INTO a SELECT 1, repeat('x', 3000)")
        # Subtransactions, committed and rolled back, more than fit into one page of a commit record.
        say("BEGIN", *("SAVEPOINT s; INSERT INTO b VALUES (1)" for _number in range(300)), "COMMIT")
        say("BEGIN", *("SAVEPOINT s; INSERT INTO b VALUES (1)" for _number in range(50)), "ROLLBACK")
        say("BEGIN", "INSERT INTO b VALUES (2)", "PREPARE TRANSACTION 'kept'", "INSERT INTO b VALUES (2)")
        say("BEGIN", "SAVEPOINT s", "DROP TABLE a", "CREATE TABLE c (i int)", "INSERT INTO c VALUES (1)")
        say("PREPARE TRANSACTION 'with everything'", "COMMIT PREPARED 'kept'", "COMMIT PREPARED 'with everything'")
        say("BEGIN", "SAVEPOINT s", "CREATE TABLE d (i int)", "INSERT INTO d VALUES (1)", "DROP TABLE c")
        say("PREPARE TRANSACTION 'not'", "ROLLBACK PREPARED 'not'", "BEGIN", "CREATE TABLE e (i int)", "ROLLBACK")
        say("SELECT pg_create_restore_point('before the change')", "SELECT pg_create_restore_point(repeat('n', 63))")
        say("SELECT pg_replication_origin_create('o')", "SELECT pg_replication_origin_session_setup('o')")
        say("BEGIN", "SELECT pg_replication_origin_xact_setup('0/1', now())", "INSERT INTO b VALUES (3)", "COMMIT")
        say("SELECT pg_replication_origin_session_reset()")
        for length in (10, 8000, 70_000, 2_600_000):
            say(f"SELECT pg_logical_emit_message(true, 'p', repeat('m', {length}))", "INSERT INTO b VALUES (4)")
        say("CREATE TABLE f AS SELECT i, md5(i::text) FROM generate_series(1, 30000) i", "CHECKPOINT")
        say("UPDATE f SET i = i + 1", "DELETE FROM b", "VACUUM f", "DROP TABLE f")


def segments(server: Server, timeline: int = 1) -> list[str]:
    assert server.archive
    return sorted(
        file.name
        for file in server.archive.iterdir()
        if _wal.is_segment_name(file.name) and file.name.startswith(f"{timeline:08X}")
    )


def finish_segment(server: Server) -> str:
    """Switch WAL and wait for the archiver; return the segment's name."""
    assert server.archive
    lsn = server.value("SELECT pg_create_restore_point('last')")
    name = str(server.value("SELECT pg_walfile_name(%s::pg_lsn - 1)", [lsn]))
    server.sql("SELECT pg_switch_wal()")
    wait_until((server.archive / name).exists, f"{name} in the archive")
    return name


def overwrite(server: Server, size: int) -> None:
    """Crash a server within a record that crosses into the next segment, which is lost."""
    server.break_archive()
    server.sql("SELECT pg_switch_wal()")
    begin = server.lsn()
    server.sql("SELECT pg_logical_emit_message(false, 'p', repeat('m', %s))", [size * 3 // 2])
    server.sql("CREATE TABLE lost (i int)")
    server.stop("immediate")
    first = _wal.segment_of(_wal.parse_lsn(begin), size)
    for file in (server.data / "pg_wal").iterdir():
        if _wal.is_segment_name(file.name) and _wal.parse_segment_name(file.name, size)[1] > first:
            file.unlink()
    server.start()
    server.break_archive(False)


@pytest.mark.majors(14, 15, 16, 17, 18)
def test_as_pg_waldump(sandbox: Sandbox, major: int) -> None:
    """Small segments: long records span one, two or three of them, and a crash leaves one record unfinished."""
    size = 1 << 20
    primary = sandbox.primary(
        major, initdb=["--wal-segsize=1"], wal_level="logical", wal_compression=True, max_prepared_transactions=5
    )
    assert primary.archive
    write_everything(primary)
    overwrite(primary, size)
    primary.sql("CREATE TABLE after_crash (i int)")
    last = finish_segment(primary)
    names = segments(primary)
    assert names[-1] == last
    events = agree(major, primary.archive, names, size)
    assert {event.kind for event in events} == {"commit", "abort", "restore_point"}
    assert {b"before the change", b"n" * 63} <= {event.name for event in events}
    assert events[-1].name == b"last"
    # A reader that begins anywhere misses only records that began earlier.
    for number in range(1, len(names)):
        part = [event for one in scan(primary.archive, names[number:], size) for event in one.events]
        begin = _wal.parse_segment_name(names[number], size)[1] * size
        assert part == [event for event in events if event.lsn >= begin]


@pytest.mark.majors(15, 18)
def test_across_a_promotion(sandbox: Sandbox, major: int) -> None:
    """The new timeline's first segment begins as a copy of the old one's; its records continue from there."""
    size = 16 << 20
    primary = sandbox.primary(major, track_commit_timestamp=True, max_prepared_transactions=5)
    standby = sandbox.standby(primary)
    assert primary.archive
    start = _wal.parse_lsn(primary.lsn())
    write_everything(primary)
    primary.sql("CREATE TABLE last_on_one (i int)")
    (committed,) = primary.sql("SELECT xid::text::int FROM pg_last_committed_xact()")[0]
    standby.catch_up()
    primary.stop("immediate")
    standby.promote()
    standby.sql("CREATE TABLE first_on_two (i int)")
    xid, last_time = standby.sql(
        "SELECT xid::text::int, (extract(epoch FROM timestamp) * 1000000)::bigint FROM pg_last_committed_xact()"
    )[0]
    name = finish_segment(standby)

    archive = DirectoryArchive(str(primary.archive), size, int(standby.system_identifier))
    path = timeline_path(archive, 1, start, "latest")
    switch = path.history[0].end
    assert (path.timeline, path.history[0].timeline, start < switch) == (2, 1, True)
    assert switch % size, "the switch must be within a segment"
    newest = segments(standby, 2)
    assert newest == [path_segment(path, switch // size, size)] == [name]
    second = agree(major, primary.archive, newest, size)
    names = [path_segment(path, number, size) for number in range(start // size, switch // size + 1)]
    events = [event for one in scan(primary.archive, names, size) for event in one.events if event.lsn >= start]
    assert [event.lsn for event in events] == sorted({event.lsn for event in events})
    assert {event.lsn for event in second if event.lsn >= start} <= {event.lsn for event in events}
    ends = {event.xid: event for event in events if event.kind == "commit"}
    assert ends[committed].end <= switch <= ends[xid].lsn
    found = reach(archive, path, start)
    assert (found.segments, found.gap, found.last_time_us) == (len(names), False, last_time)
    assert found.first_missing == path_segment(path, switch // size + 1, size)
    assert found.last_lsn == scan(primary.archive, newest, size)[-1].last_lsn
