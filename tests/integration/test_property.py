# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random writes, backups and targets: after each restore the content matches the log for its target.

There is one writer, so that transactions have an order. Each transaction adds a checksum of the whole table to a log
table of the database, and the test records LSN, time and number of its commit. ``make soak`` runs this for
minutes instead of seconds: ``PGFLEET_SOAK`` is the time in seconds, ``PGFLEET_SEED`` another random seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import random
import shutil
import time
import typing as t

import pytest

from tests.harness import binaries
from tests.harness.modules import CLONE, Modules, Result
from tests.harness.sandbox import Sandbox, free_port
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_directory, own_file
from tests.integration.helpers.steps import Steps

SECONDS: t.Final = float(os.environ.get("PGFLEET_SOAK", "12"))
SEED: t.Final = int(os.environ.get("PGFLEET_SEED", "20261122"))

SCRIPT: t.Final = CLONE / "plugins" / "module_utils" / "_wal" / "pgfleet_wal.py"
CHECKSUM: t.Final = "SELECT coalesce(sum(hashtextextended(d::text, 0)), 0)::text FROM data d"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A committed transaction: its number in the log table, and where and when it committed."""

    number: int
    xid: int
    lsn: str  # the end of the log after it
    at: datetime.datetime


@dataclasses.dataclass(frozen=True)
class Point:
    """A target and the number of the last transaction that a restore to it contains."""

    number: int
    options: dict[str, t.Any]


class World:
    """A server, its repository, and its history."""

    def __init__(self, sandbox: Sandbox, major: int, chance: random.Random) -> None:
        self.sandbox = sandbox
        self.chance = chance
        self.major = major
        self.repository = sandbox.directory("repository")
        cluster = own_directory(self.repository / "main")
        self.archive = own_directory(cluster / "wal")
        script = own_file(cluster / SCRIPT.name, SCRIPT.read_text())
        # Each with a random compression: an archive may mix them.
        command = f"{binaries.server_python()} {script} archive --compress {{}} {self.archive} %p %f"
        self.commands = [command.format(kind) for kind in ("none", "gzip", "zstd")]
        self.server = sandbox.primary(
            major, archive_command=self.commands[0], track_commit_timestamp=True, max_wal_size="64MB",
            min_wal_size="32MB",
        )  # fmt: skip
        self.server.sql("CREATE TABLE data (id int PRIMARY KEY, v text)")
        self.server.sql("CREATE TABLE log (number int PRIMARY KEY, checksum text)")
        self.number = 0
        # The content of the current timeline, oldest first; entries abandoned by a restore are in none of them.
        self.entries: list[Entry] = []
        self.points: list[tuple[int, str]] = []  # named restore points with the number of the last transaction
        self.backups: list[int] = []  # the number of the last transaction that each backup certainly contains
        self.done: dict[str, int] = {}
        self.story: list[str] = []

    @property
    def modules(self) -> Modules:
        """The modules, run as the server user, with the login of the current primary."""
        return Modules(self.server, as_server=True, repository=str(self.repository), cluster="main")

    def count(self, what: str) -> None:
        """Record an action."""
        self.done[what] = self.done.get(what, 0) + 1
        self.story.append(f"{what} ({self.number})")

    # -- what happens --------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Commit some transactions."""
        with contextlib.closing(self.server.connect()) as connection, connection.cursor() as cursor:
            for _turn in range(self.chance.randrange(1, 6)):
                self.number += 1
                cursor.execute("BEGIN")
                for statement in self.statements():
                    cursor.execute(statement)
                cursor.execute(f"INSERT INTO log SELECT %s, ({CHECKSUM})", [self.number])
                cursor.execute("SELECT pg_current_xact_id()::text")
                xid = int(cursor.fetchone()[0])
                if self.chance.random() < 0.1:
                    cursor.execute("ROLLBACK")
                    self.number -= 1
                    continue
                cursor.execute("COMMIT")
                cursor.execute(
                    "SELECT pg_current_wal_insert_lsn()::text, pg_xact_commit_timestamp(%s::text::xid)", [xid]
                )
                lsn, at = cursor.fetchone()
                self.entries.append(Entry(self.number, xid, lsn, at))
        self.count("write")

    def statements(self) -> t.Iterator[str]:
        """Yield the statements of one transaction."""
        for _turn in range(self.chance.randrange(1, 4)):
            low = self.chance.randrange(2000)
            high = low + self.chance.choice((1, 10, 300))
            rows = (
                f"SELECT i, repeat(md5(i::text), {self.chance.randrange(1, 30)}) FROM generate_series({low}, {high}) i"
            )
            yield self.chance.choice((
                f"INSERT INTO data {rows} ON CONFLICT (id) DO UPDATE SET v = excluded.v || 'x'",
                f"UPDATE data SET v = reverse(v) WHERE id BETWEEN {low} AND {high}",
                f"DELETE FROM data WHERE id BETWEEN {low} AND {high}",
                "TRUNCATE data" if self.chance.random() < 0.1 else "SELECT 1",
            ))  # fmt: skip

    def disturb(self) -> None:
        """Do something that changes files or WAL."""
        what = self.chance.choice(
            ("CHECKPOINT", "VACUUM FULL data", "REINDEX TABLE data", "switch", "name", "crash", "compression")
        )
        if what == "switch":
            self.server.switch_wal()
        elif what == "compression":
            self.server.conf(archive_command=self.chance.choice(self.commands))
            self.server.reload()
        elif what == "name":
            name = f"point {self.done.get('name', 0)}"
            self.server.sql("SELECT pg_create_restore_point(%s)", [name])
            # A restore point is not flushed by itself, and a crash may follow.
            self.server.switch_wal()
            self.points.append((self.number, name))
        elif what == "crash":
            self.server.kill()
            self.server.start()
        else:
            self.server.sql(what)
        self.count(what)

    def back_up(self) -> None:
        """Take a backup during writes."""
        backup_id = f"b{len(self.backups)}"
        wal = self.chance.choice(("archive", "archive", "include"))
        steps = Steps(self.modules, self.server, backup_id)
        steps.start(wal=wal)
        self.write()
        steps.ok("backup_copy")
        self.write()
        stop = steps.ok("backup_stop")
        proof = {} if wal == "include" else {"proof": steps.archived(stop)}
        steps.ok("backup_publish", **proof)
        self.backups.append(self.number)
        self.count(f"backup {wal}")

    # -- back to some point --------------------------------------------------------------------------------------

    def point(self) -> Point:
        """Return a random target after the end of the first backup."""
        usable = [entry for entry in self.entries if entry.number > self.backups[0]]
        names = [(number, name) for number, name in self.points if number > self.backups[0]]
        kind = self.chance.choice(("end", "time", "lsn", "xid", "name", "before xid", "before time"))
        if kind == "end" or not usable or (kind == "name" and not names):
            return Point(self.entries[-1].number, {})
        if kind == "name":
            number, name = self.chance.choice(names)
            return Point(number, {"recovery_target_name": name})
        entry = self.chance.choice(usable)
        exclusive = kind.startswith("before ")
        if kind == "lsn":
            options: dict[str, t.Any] = {"recovery_target_lsn": entry.lsn}
        elif kind.endswith("xid"):
            options = {"recovery_target_xid": str(entry.xid)}
        else:
            options = {"recovery_target_time": entry.at.isoformat()}
        if exclusive:
            options["recovery_target_inclusive"] = False
        return Point(entry.number - exclusive, options)

    def restore(self) -> None:
        """Restore to a random target, compare, and sometimes continue from there with a new timeline."""
        # The end of the log is in the archive, and after every target there is one more record to stop at.
        self.write()
        point = self.point()
        if point.options:
            self.write()
        self.archive_everything()
        takes_over = bool(point.options) and self.chance.random() < 0.25
        name = f"primary-{self.done.get('timeline', 0)}" if takes_over else "restored"
        copy = Server(self.major, name, self.sandbox.directory(name), free_port())
        if not takes_over and copy.data.exists() and self.chance.random() < 0.6:
            options: dict[str, t.Any] = {"delta": True, "force": True}
        else:
            shutil.rmtree(copy.data, ignore_errors=True)
            options = {}
        result = self.restored(copy, takes_over, {**point.options, **options})
        self.sandbox.servers.append(copy)
        copy.start()
        wait_until(lambda: not copy.in_recovery, f"{point} is reached: {copy.log[-2000:]}", timeout=60)
        self.compare(copy, point, result)
        self.count("restore " + ("delta " if options else "") + (next(iter(point.options), "to the end")))
        if takes_over:
            self.go_on_with(copy, point)
        else:
            copy.stop("immediate")
            self.sandbox.servers.remove(copy)

    def restored(self, copy: Server, takes_over: bool, options: dict[str, t.Any]) -> Result:
        """Run the module; the copy archives only if it becomes the primary."""
        return self.modules.ok(
            "backup_restore",
            data_directory=str(copy.data), port=copy.port,
            restore_as="primary" if takes_over else "copy",
            settings={"unix_socket_directories": str(copy.socket_directory)}, sync=False, **options,
        )  # fmt: skip

    def archive_everything(self) -> None:
        """Finish the segment and wait for the archiver."""
        name = self.server.value("SELECT pg_walfile_name(pg_create_restore_point('end'))")
        self.server.sql("SELECT pg_switch_wal()")
        wait_until(lambda: list(self.archive.glob(f"{name}*")), f"{name} is archived: {self.server.log[-1000:]}")

    @staticmethod
    def compare(copy: Server, point: Point, result: Result) -> None:
        """Require that the copy contains exactly the transactions up to the point, and their content."""
        last = copy.value("SELECT coalesce(max(number), 0) FROM log")
        assert last == point.number, f"{last} instead of {point}: {result}"
        assert copy.value(CHECKSUM) == copy.value("SELECT checksum FROM log WHERE number = %s", [last])
        count = copy.value("SELECT count(*) FROM log")
        assert count == last, f"{count} of {last} transactions"

    def go_on_with(self, copy: Server, point: Point) -> None:
        """Make the restored server the primary, on a new timeline."""
        self.server.stop("immediate")
        self.sandbox.servers.remove(self.server)
        self.server = copy
        self.entries = [entry for entry in self.entries if entry.number <= point.number]
        self.points = [one for one in self.points if one[0] < point.number]
        self.number = point.number
        self.count("timeline")

    def refused(self) -> None:
        """A target before the first backup and one beyond the archive are refused, and nothing is created."""
        nowhere = self.sandbox.root / "nowhere"
        common = {"data_directory": str(nowhere), "restore_as": "copy"}
        future = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
        past = self.entries[0].at
        for at in (past, future):
            answer = self.modules.fails("backup_restore", recovery_target_time=at.isoformat(), **common)
            assert answer["code"] in ("target_before_backup", "target_beyond_archive"), answer
        assert not nowhere.exists()
        self.count("refused")


@pytest.mark.majors(15, 18)
@pytest.mark.timeout(SECONDS + 240)
def test_every_point_is_reached(sandbox: Sandbox, major: int) -> None:
    """Run until the time is up, in an order that the seed decides."""
    chance = random.Random(SEED + major)  # noqa: S311 - the same in every run, no secret
    world = World(sandbox, major, chance)
    deadline = time.monotonic() + SECONDS
    try:
        for step in (world.write, world.back_up, world.write, world.restore, world.refused):
            step()
        while time.monotonic() < deadline:
            steps = (world.write, world.disturb, world.back_up, world.restore)
            chance.choices(steps, weights=(5, 4, 1, 2))[0]()
    finally:
        # The time limits only the number of actions, not which ones.
        print(f"seed {SEED}, {major}: {world.done}\n{', '.join(world.story)}")
