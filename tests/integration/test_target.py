# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our prediction for a recovery target matches the server: it reaches the target or refuses for the same reason."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import pathlib
import shutil
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import conf as _conf
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Repository
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import choose as _choose
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import target as _target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.candidate import Choice
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import archive as _archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal

from tests.harness import binaries, checks
from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox, archive_command
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_directory, own_file
from tests.integration.helpers.steps import Steps
from tests.unit.helpers.configuration_lines import ERRORS, LINES

SIZE: t.Final = 1 << 20
TOO_EARLY: t.Final = "requested recovery stop point is before consistent recovery point"
NOT_REACHED: t.Final = "recovery ended before configured recovery target was reached"


@dataclasses.dataclass(frozen=True)
class Done:
    """A transaction that wrote ``number``: its own number, where its end was written (from, to), and when (µs)."""

    number: int
    xid: int
    start: str
    end: str
    at: int

    @property
    def when(self) -> str:
        """Its time as PostgreSQL prints it."""
        return _target.format_time(self.at)


class World:
    """A primary with small segments, its archive and its backups, and copies of it recovered to a target."""

    def __init__(self, sandbox: Sandbox, major: int) -> None:
        self.sandbox, self.major = sandbox, major
        self.repository = sandbox.directory("repository")
        self.server = sandbox.primary(
            major, initdb=["--wal-segsize=1"], track_commit_timestamp=True, max_prepared_transactions=5,
            max_wal_size="8MB", min_wal_size="4MB", bgwriter_lru_maxpages=0,
        )  # fmt: skip
        assert self.server.archive is not None
        self.archive = self.server.archive
        self.identifier = int(self.server.system_identifier)
        self.server.sql("CREATE TABLE numbers (n int)")
        self.copies = 0

    # -- what happens --------------------------------------------------------------------------------------------

    def write(self, number: int, end: str = "COMMIT", server: Server | None = None) -> Done:
        """Insert a number in its own transaction."""
        with contextlib.closing((server or self.server).connect()) as connection, connection.cursor() as cursor:
            # A write before it, so that its commit record does not begin where another record ends.
            cursor.execute("BEGIN")
            cursor.execute("INSERT INTO numbers VALUES (%s) RETURNING pg_current_xact_id()::text", [number])
            xid = int(cursor.fetchone()[0])
            if end == "PREPARED":
                cursor.execute("PREPARE TRANSACTION 'two'")
                end = "COMMIT PREPARED 'two'"
            cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
            (start,) = cursor.fetchone()
            cursor.execute(end)
            cursor.execute(
                "SELECT pg_current_wal_insert_lsn()::text, (extract(epoch FROM pg_xact_commit_timestamp(%s::text::xid))"
                " * 1000000)::bigint",
                [xid],
            )
            after, at = cursor.fetchone()
        return Done(number, xid, start, after, at or 0)

    def point(self, name: str) -> str:
        """Create a restore point and return the LSN after it."""
        return str(self.server.value("SELECT pg_create_restore_point(%s)::text", [name]))

    def backup(self, backup_id: str, server: Server | None = None, during: t.Callable[[], t.Any] = bool) -> t.Any:
        """Take a backup; call ``during`` between start and stop, and return its result."""
        source = server or self.server
        steps = Steps(Modules(source, repository=str(self.repository), cluster="main"), source, backup_id)
        steps.start()
        answer = during()
        steps.finish()
        return answer

    def archived(self, server: Server | None = None) -> None:
        """Wait until all WAL written so far is archived."""
        source = server or self.server
        name = source.value("SELECT pg_walfile_name(pg_create_restore_point('end'))")
        source.sql("SELECT pg_switch_wal()")
        wait_until((self.archive / name).exists, f"{name} is archived")

    # -- our prediction, and what the server does -----------------------------------------------------------------

    def choose(self, backup_id: str | None = None, archive: _archive.Archive | None = None, **options: t.Any) -> Choice:
        """Return the choice for recovery_target_<options>."""
        names = {f"recovery_target_{name}": value for name, value in options.items()}
        if "immediate" in options:
            names = {**names, "recovery_target": "immediate"}
        target = _target.parse_target(names)
        if archive is None:
            archive = _archive.open_archive(str(self.archive), None, SIZE, self.identifier)
        return _choose.choose_backup(Repository(str(self.repository)).cluster("main"), backup_id, target, archive)

    def refused(self, code: str, *words: str, backup_id: str | None = None, **options: t.Any) -> BackupError:
        """Require that `choose` refuses, with the words in its message."""
        with pytest.raises(BackupError) as caught:
            self.choose(backup_id, **options)
        assert caught.value.code == code, caught.value.msg
        for word in words:
            assert word in caught.value.as_result()["msg"], caught.value.as_result()
        return caught.value

    def recover(self, backup_id: str, target: _target.Target, start: bool = True) -> Server:
        """Return a server that recovers a backup to ``target``, writable."""
        self.copies += 1
        path = self.repository / "main" / "backups" / backup_id
        copy = checks.restore(self.sandbox, path, self.archive, self.major, name=f"copy{self.copies}", start=False)
        # A second target in the old configuration must not count.
        copy.conf(recovery_target_name="of another recovery")
        settings = _target.recovery_settings(target)
        own_file(copy.data / _conf.AUTO_CONF, "".join(_conf.format_setting(*item) for item in settings.items()))
        if start:
            copy.start()
            wait_until(lambda: not copy.running or not copy.in_recovery, f"recovered: {copy.log[-1000:]}")
            assert copy.running, copy.log[-1000:]
        return copy

    def reaches(self, numbers: t.Iterable[int], by: str, backup_id: str | None = None, **options: t.Any) -> Choice:
        """Require that ``by`` is chosen and that the server, so configured, recovers exactly these numbers."""
        chosen = self.choose(backup_id, **options)
        assert (chosen.backup.id, chosen.wal_missing, chosen.target_checked) == (by, [], True), chosen
        assert all(chosen_file in os.listdir(self.archive) for chosen_file in chosen.wal_needed)
        copy = self.recover(by, chosen.target)
        assert {n for (n,) in copy.sql("SELECT n FROM numbers")} == set(numbers), (options, copy.log[-2000:])
        copy.stop("immediate")
        shutil.rmtree(copy.directory)
        return chosen

    def server_refuses(self, message: str, by: str, **options: t.Any) -> None:
        """Require that the server refuses a target with these words."""
        target = _target.parse_target({f"recovery_target_{name}".rstrip("_"): value for name, value in options.items()})
        copy = self.recover(by, target, start=False)
        # It may accept connections before it gives up.
        with contextlib.suppress(AssertionError):
            copy.start()
        wait_until(lambda: not copy.running, f"the copy has given up: {copy.log[-1000:]}")
        assert message in copy.log, copy.log[-2000:]
        shutil.rmtree(copy.directory)


@pytest.fixture
def world(sandbox: Sandbox, major: int) -> World:
    """A primary with an archive, without a backup yet."""
    return World(sandbox, major)


def lsn(text: str, more: int = 0) -> str:
    return _wal.format_lsn(_wal.parse_lsn(text) + more)


@pytest.mark.majors(15, 18)
def test_targets(world: World) -> None:
    """Every kind of target, inclusive and exclusive, with two backups, compared with the server."""
    one = world.write(1)
    world.backup("b1", during=lambda: world.write(2))
    three = world.write(3)
    world.point("same")
    gone = world.write(99, "ROLLBACK")
    four = world.write(4)
    early = world.backup("b2", during=lambda: world.write(5))
    six = world.write(6)
    world.point("same")
    world.archived()
    seven = world.write(7, "PREPARED")
    world.point("last")
    last = world.write(8)
    world.archived()
    to_three, to_four = range(1, 4), range(1, 5)

    # Times: recovery stops before the first transaction that ended later (inclusive), or then or later.
    first = world.reaches(to_three, "b1", time=three.when)
    assert first.target_lsn is not None
    assert _wal.parse_lsn(gone.start) <= first.target_lsn < _wal.parse_lsn(gone.end)
    assert three.when in first.why
    world.reaches([1, 2], "b1", time=three.when, inclusive=False)
    assert world.choose(time=_target.format_time(three.at + 1), inclusive=False).target_lsn == first.target_lsn
    stop = world.choose("b2").record.stop.lsn
    ended = round(world.choose("b2").record.stop.stopped_at * 1000000)
    assert world.choose(time=_target.format_time(ended)).backup.id == "b2"
    assert world.choose(time=_target.format_time(ended - 1)).backup.id == "b1"
    world.reaches([*to_four, 5, 6], "b2", time=_target.format_time(seven.at - 1))
    newest = world.reaches([*to_four, 5, 6, 7], "b2", time=last.when, inclusive=False)
    assert newest.recoverable_until_us == last.at
    world.refused("target_beyond_archive", last.when, "newest transaction", time=last.when)
    world.server_refuses(NOT_REACHED, "b2", time=last.when)
    too_early = _target.format_time(early.at - 1)
    world.refused("target_before_backup", "b2", backup_id="b2", time=too_early)
    world.server_refuses(TOO_EARLY, "b2", time=too_early)
    refusal = world.refused("target_before_backup", "b1", time=one.when)
    assert refusal.details["earliest_backup"] == "b1"

    # LSNs: the first record that starts there or later is the last one, or the first one excluded.
    world.reaches(to_three, "b1", lsn=three.start)
    world.reaches([1, 2], "b1", lsn=three.start, inclusive=False)
    assert world.choose(lsn=lsn(three.start, 1), inclusive=False).backup.id == "b1"
    for inclusive in (True, False):
        world.reaches([*to_four, 5], "b2", lsn=_wal.format_lsn(stop), inclusive=inclusive)
    assert world.choose(lsn=_wal.format_lsn(stop - 1)).backup.id == "b1"
    world.refused("target_before_backup", backup_id="b2", lsn=early.start)
    world.server_refuses(TOO_EARLY, "b2", lsn=early.start)
    end = world.refused("target_beyond_archive", "last record", lsn="7/0").details["last_lsn"]
    world.reaches([*to_four, *range(5, 9)], "b2", lsn=end)
    world.refused("target_beyond_archive", lsn=lsn(end, 1))
    world.server_refuses(NOT_REACHED, "b2", lsn=lsn(end, 1))

    # Transactions: including aborted and prepared ones.
    world.reaches(to_three, "b1", xid=three.xid)
    world.reaches([1, 2], "b1", xid=three.xid, inclusive=False)
    world.reaches(to_three, "b1", xid=gone.xid, inclusive=False)
    prepared = world.reaches([*to_four, 5, 6, 7], "b2", xid=seven.xid)
    assert prepared.target_lsn is not None
    assert _wal.parse_lsn(seven.start) <= prepared.target_lsn < _wal.parse_lsn(seven.end)
    assert world.choose(xid=early.xid).backup.id == "b1"
    world.refused("target_before_backup", backup_id="b2", xid=early.xid)
    world.server_refuses(TOO_EARLY, "b2", xid=early.xid)
    world.refused("target_not_found", "transaction 4000000", xid=4000000)
    world.refused("target_not_found", "from the backup b1", xid=one.xid)

    # Names: the first restore point of that name after the start of the backup.
    world.reaches([*to_four, 5, 6], "b2", name="same")
    world.reaches(to_three, "b1", "b1", name="same")
    world.reaches([*to_four, 5, 6, 7], "b2", name="last", inclusive=False)
    world.refused("target_not_found", "'none'", name="none")

    # No target, and the end of the backup.
    assert world.reaches([*to_four, *range(5, 9)], "b2").target_lsn is None
    assert world.reaches([*to_four, 5], "b2", immediate=True).target_lsn == stop
    assert world.choose("b1", immediate=True).why == "The backup b1 was requested."
    assert (four.number, six.number) == (4, 6)

    what_is_missing(world, six, last)


def what_is_missing(world: World, six: Done, last: Done) -> None:
    """Damage the archive and the catalogue in every way; no server recovers here."""
    end = world.choose("b2")
    hidden = world.sandbox.directory("hidden")
    middle = _wal.segment_name(1, _wal.segment_of(_wal.parse_lsn(six.end), SIZE), SIZE)
    assert middle in end.wal_needed
    assert middle not in end.record.required_wal
    with moved([world.archive / middle], hidden):
        for options in ({}, {"time": last.when, "inclusive": False}, {"lsn": last.start}):
            refusal = world.refused("wal_incomplete", middle, **options)
            assert refusal.details["missing"] == [middle]
        assert "recovery_target_lsn=" in world.refused("wal_incomplete").hint
        assert world.refused("target_not_found", xid=last.xid).details["missing"] == [middle]
        assert world.choose(immediate=True).target.kind == "immediate"
        assert world.choose(name="same").backup.id == "b1"
    newest = max(path for path in world.archive.iterdir() if _wal.is_segment_name(path.name))
    torn = newest.with_name(f"{newest.name}.gz")
    with moved([newest], hidden):
        torn.write_bytes(gzip.compress(b"torn by a crash")[:-4])
        before = _wal.format_lsn(_wal.parse_segment_name(newest.name, SIZE)[1] * SIZE - 1)
        for options in ({}, {"time": "2100-01-01 00:00:00Z"}, {"lsn": before}):
            assert "move it out of the archive" in world.refused("bad_segment", newest.name, **options).hint
        found = world.choose("b1", immediate=True)
        assert newest.name in found.warnings[0]
        torn.unlink()
    own = [name for name in world.choose("b1").record.required_wal if name not in end.record.required_wal]
    with moved([world.archive / name for name in own], hidden):
        assert world.refused("wal_incomplete", backup_id="b1", immediate=True).details["missing"] == own
        assert world.choose(immediate=True).backup.id == "b2"
    with moved([world.repository / "main" / "backups" / "b2" / "data" / "backup_label"], hidden):
        assert world.choose().backup.id == "b1"
        world.refused("damaged_backup", "backup_label", backup_id="b2")
        with moved([world.repository / "main" / "backups" / "b1" / "backup.json"], hidden):
            world.refused("no_backup", "backup_label", "backup.json")
    world.refused("unknown_backup", backup_id="b7")
    world.refused("timeline_unknown", timeline="7")
    with pytest.raises(BackupError, match="there is no archive") as caught:
        _choose.choose_backup(Repository(str(world.repository)).cluster("main"), None, _target.parse_target({}), None)
    assert caught.value.details["missing"] == list(end.record.required_wal)

    contained(world, hidden)

    # An archive that only returns files by name: the WAL between the backup and the target is unknown.
    command = _archive.open_archive(None, f"cp {world.archive}/%f %p", SIZE, world.identifier)
    found = world.choose(archive=command, lsn=last.start)
    assert (found.backup.id, found.target_checked, found.recoverable_until_us) == ("b2", True, None)
    world.refused("target_beyond_archive", archive=command, lsn="7/0")
    blind = world.choose(archive=command, time=last.when)
    assert (blind.backup.id, blind.target_checked, blind.target_lsn) == ("b2", False, None)
    assert "is not known" in blind.warnings[0]
    assert "could not be searched for" in blind.why
    assert world.choose(archive=command).wal_needed == world.choose(archive=command, immediate=True).wal_needed
    nothing = _archive.open_archive(None, "false", SIZE, world.identifier)
    assert world.refused("wal_incomplete", archive=nothing).details["missing"] == list(end.record.required_wal)


def contained(world: World, hidden: pathlib.Path) -> None:
    """The newest backup has its own WAL, whose last segment ends where a standby's would."""
    cluster = Repository(str(world.repository)).cluster("main")
    whole = world.choose()
    own = [name for name in whole.wal_needed if name in whole.record.required_wal]
    inside = pathlib.Path(whole.backup.file("data", "pg_wal"))
    record = whole.backup.load()
    assert record.wal_proof is not None
    checksums = dict.fromkeys(record.required_wal, "0" * 64)
    whole.backup.save(record._replace(wal="include", wal_proof=record.wal_proof._replace(sha256=checksums)))
    for name in own:
        shutil.copy(world.archive / name, inside)

    def alone(**options: t.Any) -> Choice:
        return _choose.choose_backup(cluster, None, _target.parse_target(options), None)

    assert (alone().wal_needed, alone(recovery_target="immediate").target.kind) == (own, "immediate")
    with pytest.raises(BackupError, match="Without an archive only the end") as caught:
        alone(recovery_target_xid=751)
    assert caught.value.code == "target_beyond_archive"
    stop = whole.record.stop.lsn
    with moved([world.archive / name for name in own], hidden):
        assert world.choose().wal_needed == whole.wal_needed
        with (inside / own[-1]).open("r+b") as file:
            file.truncate(stop % SIZE)
            file.truncate(SIZE)
        # Recovery would end at the backup's end, silently ignoring the later WAL in the archive.
        assert world.refused("wal_incomplete", own[-1]).details["missing"] == own[-1:]
        later = [name for name in whole.wal_needed if name > own[-1]]
        with moved([world.archive / name for name in later], hidden):
            assert world.choose().wal_needed == own
    assert world.choose().wal_needed == whole.wal_needed
    assert alone(recovery_target="immediate").target.kind == ""
    for name in own:
        (inside / name).unlink()
    whole.backup.save(record)


@contextlib.contextmanager
def moved(paths: t.Iterable[pathlib.Path], place: pathlib.Path) -> t.Iterator[None]:
    """Move files elsewhere during the block."""
    moves = [(path, place / path.name) for path in paths]
    for path, other in moves:
        path.rename(other)
    try:
        yield
    finally:
        for path, other in moves:
            other.rename(path)


@pytest.mark.majors(15, 18)
def test_timelines(world: World) -> None:
    """A restore to before a mistake makes a second timeline, with a backup on either side of the branch."""
    world.backup("b1")
    one = world.write(1)
    world.write(99)
    world.backup("b2")
    world.write(2)
    world.point("lost")
    world.archived()
    chosen = world.choose(xid=one.xid)
    world.server.stop()
    # The copy is the new primary, and archives to the same directory.
    copy = world.recover("b1", chosen.target, start=False)
    copy.conf(archive_mode=True, archive_command=archive_command(world.archive)).start()
    wait_until(lambda: not copy.in_recovery, "the copy is a primary")
    two = world.write(3, server=copy)
    world.backup("b3", copy)
    three = world.write(4, server=copy)
    world.archived(copy)
    assert (world.archive / "00000002.history").exists()

    world.reaches([1, 3], "b1", time=two.when, timeline="latest")
    found = world.choose(time=three.when, inclusive=False)
    assert (found.backup.id, found.path.timeline) == ("b3", 2)
    across = world.choose("b1", lsn=three.start)
    assert across.why == "The backup b1 was requested."
    assert "00000002.history" in across.wal_needed
    assert {name[:8] for name in across.wal_needed} == {"00000001", "00000002"}
    world.reaches([1, 3, 4], "b1", "b1", lsn=three.start)
    assert "as b2 does not" in world.choose(xid=two.xid).why
    world.refused("timeline_unreachable", "timeline 1 at", backup_id="b2")
    world.server_refuses("is not a child of this server's history", "b2")

    old = world.reaches([1, 99, 2], "b2", timeline="1")
    assert (old.path.timeline, "as b3 does not" in old.why) == (1, True)
    world.reaches([1, 99, 2], "b2", "b2", timeline="current")
    world.refused("target_not_found", "along timeline 2", name="lost")
    assert world.choose(name="lost", timeline="0x1").backup.id == "b2"
    world.refused("timeline_unreachable", backup_id="b3", timeline="1")
    assert (world.choose(timeline="current").backup.id, world.choose().backup.id) == ("b3", "b3")


@pytest.mark.majors(15, 18)
def test_the_wal_ends_with_the_backup(world: World) -> None:
    """A standby's backup can end where the archive ends: PostgreSQL misses the target `immediate` there."""
    standby = world.sandbox.standby(world.server)
    world.server.sql("CHECKPOINT")
    # The restartpoint at the backup's start writes this page, and sets the end to the standby's position: nothing is
    # written after the switch.
    world.write(1)
    world.archived()
    standby.catch_up()
    steps = Steps(Modules(standby, repository=str(world.repository), cluster="main"), standby, "s1")
    steps.start()
    steps.ok("backup_copy")
    stop = steps.ok("backup_stop")
    archiver = Modules(world.server, repository=str(world.repository), cluster="main")
    steps.ok("backup_publish", proof=Steps(archiver, world.server, "s1").archived(stop))
    assert _wal.parse_lsn(stop["stop_lsn"]) % SIZE == 0

    chosen = world.reaches([1], "s1", immediate=True)
    assert (chosen.target.kind, chosen.target_lsn) == ("", _wal.parse_lsn(stop["stop_lsn"]))
    assert "end of the WAL" in chosen.warnings[0]
    world.server_refuses(NOT_REACHED, "s1", **{"": "immediate"})
    world.refused("target_beyond_archive", "one more record", immediate=True, action="pause")
    world.refused("target_beyond_archive", lsn=stop["stop_lsn"])
    world.server_refuses(NOT_REACHED, "s1", lsn=stop["stop_lsn"])

    world.write(2)
    world.archived()
    assert world.reaches([1], "s1", immediate=True).target.kind == "immediate"
    world.reaches([1], "s1", lsn=stop["stop_lsn"], inclusive=False)
    world.refused("target_before_backup", lsn=lsn(stop["stop_lsn"], -1))


@pytest.mark.majors(*binaries.MAJORS)
def test_configuration_and_control_file(sandbox: Sandbox, major: int) -> None:
    """The server reads its files as we do, and pg_controldata reads the same from pg_control."""
    settings: dict[str, t.Any] = {
        "max_connections": 37, "max_worker_processes": 9, "max_wal_senders": 11, "max_prepared_transactions": 3,
        "max_locks_per_transaction": 65,
    }  # fmt: skip
    # Another encoding would refuse to show bytes that are invalid in it.
    plain = ["--locale=C", "--encoding=SQL_ASCII"]
    server = sandbox.primary(major, archive=False, initdb=plain, wal_level="logical", **settings)
    server.sql("ALTER SYSTEM SET work_mem = '77MB'")
    found = _conf.read_settings(str(server.data / "postgresql.conf"), str(server.data), {"WORK_MEM": 5})
    for name, value in {**settings, "wal_level": "logical", "work_mem": 5, "port": server.port}.items():
        assert found[name] == str(value)

    report = dict(line.split(":", 1) for line in server.tool("pg_controldata", server.data).stdout.splitlines())
    control = _control.read_control(os.fsencode(server.data / "global" / "pg_control"))
    words = {
        "Latest checkpoint's TimeLineID": control.checkpoint_timeline,
        "Min recovery ending loc's timeline": control.min_recovery_timeline,
        "wal_level setting": ("minimal", "replica", "logical")[control.wal_level],
        "max_connections setting": control.max_connections,
        "max_worker_processes setting": control.max_worker_processes,
        "max_wal_senders setting": control.max_wal_senders,
        "max_prepared_xacts setting": control.max_prepared_xacts,
        "max_locks_per_xact setting": control.max_locks_per_xact,
    }
    assert {name: report[name].strip() for name in words} == {name: str(value) for name, value in words.items()}
    assert _conf.lowered_parameters(control, found) == []
    assert len(_conf.lowered_parameters(control, {name: str(value - 1) for name, value in settings.items()})) == 5

    # Each line in its own file: the server reports what it reads, and where it fails.
    files = own_directory(server.directory / "lines")
    for number, line in enumerate([*(line for line, _values in LINES), *ERRORS], 10):
        (files / f"{number}.conf").write_bytes(line)
    with (server.data / "postgresql.conf").open("a") as file:
        file.writelines(f"include '{files}/{number}.conf'\n" for number in range(10, 10 + len(LINES) + len(ERRORS)))
    text = "encode(convert_to({}, 'SQL_ASCII'), 'hex')"
    rows = server.sql(
        f"SELECT sourcefile, {text.format('name')}, {text.format('setting')}, error FROM pg_file_settings"
        " WHERE sourcefile LIKE %s ORDER BY seqno",
        [f"{files}/%"],
    )
    read = {
        int(pathlib.Path(path).stem): {os.fsdecode(bytes.fromhex(name)).lower(): os.fsdecode(bytes.fromhex(value))}
        for path, name, value, _error in rows
        if name is not None
    }
    assert read == {number: values for number, (_line, values) in enumerate(LINES, 10) if values}
    bad = [
        int(pathlib.Path(path).stem) - 10 - len(LINES) for path, _name, _value, error in rows if error == "syntax error"
    ]
    assert bad == list(range(len(ERRORS)))
