# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore drills on the live source's host: what they prove and report, and that they never touch the source."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import typing as t
from xml.etree import ElementTree

import pytest

from tests.harness import binaries
from tests.harness.modules import Modules, run_module_as_server
from tests.harness.playbook import Play
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import me, own_directory, own_file, run
from tests.integration.helpers.files import listing
from tests.integration.helpers.growing_primary import GrowingPrimary
from tests.integration.helpers.plays import message, told
from tests.integration.helpers.steps import Steps
from tests.integration.helpers.traps import BAIT, TRAP

# Files that an idle live server changes by itself.
RESTLESS: t.Final = ("/pg_wal", "/pg_stat_tmp", "/log")


class Drills:
    """A primary whose drills run on its own host, where its tablespace and archive are in the way."""

    def __init__(self, sandbox: Sandbox, primary: Server) -> None:
        self.world = GrowingPrimary(sandbox, primary)
        self.primary = primary
        self.directory = sandbox.directory("drills")
        self.sockets = own_directory(pathlib.Path(tempfile.mkdtemp(prefix="pgd-", dir="/tmp")))
        sandbox.on_close(lambda: run(["rm", "-rf", self.sockets], user=me()))
        self.scratch = self.directory / "main.drill"

    def host(self, **variables: t.Any) -> dict[str, t.Any]:
        """Return the variables of a drill host."""
        common = {"directory": str(self.directory), "socket_parent": str(self.sockets), "by": "a test"}
        return self.world.host("pg_drill", **{**common, **variables})

    def run(self, hosts: t.Mapping[str, dict[str, t.Any]] | None = None, **options: t.Any) -> Play:
        """Run the playbook, by default for one host named ``db``."""
        return self.world.run("drill", hosts or {"db": self.host()}, **options)

    def live(self) -> dict[str, tuple[int, ...]]:
        """Return everything that a drill must not touch: data directory, tablespaces, archive, backups."""
        found: dict[str, tuple[int, ...]] = {}
        assert self.primary.archive is not None
        for place in (self.primary.data, self.primary.directory / "tablespaces", self.primary.archive):
            found.update(listing(place))
        for backup in (self.world.repository / "main" / "backups").iterdir():
            found.update(listing(backup / "data"))
            found.update(listing(backup / "tablespaces"))
        data = str(self.primary.data)
        return {
            path: state
            for path, state in found.items()
            if path != data and not path.removeprefix(data).startswith(RESTLESS)
        }

    def nothing_is_left(self) -> None:
        """Require that no file and no server of a drill remains."""
        assert list(self.directory.iterdir()) == []
        assert list(self.sockets.iterdir()) == []
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                place = os.readlink(process / "cwd")
            except OSError:
                continue
            assert not place.startswith(str(self.directory)), process


@pytest.fixture
def drills(sandbox: Sandbox, primary: Server) -> Drills:
    """A primary with a tablespace, an archive and one backup, and rows written after its end."""
    drills = Drills(sandbox, primary)
    drills.world.write(1, 2, 3)
    # The restored server must obey none of these, wherever the source sets them.
    primary.sql("ALTER SYSTEM SET archive_cleanup_command = 'touch %s'" % (sandbox.root / "cleaned"))
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = ''")
    drills.world.back_up("one")
    drills.world.write(4)
    drills.world.archive_all()
    primary.sql("CHECKPOINT")
    return drills


@pytest.mark.majors(14, 18)
def test_drill_next_to_the_source(sandbox: Sandbox, drills: Drills) -> None:
    """Check mode, a drill with every check, its reports, and a maximum age for the proof."""
    reports = sandbox.root / "reports"
    checks = [
        {"name": "rows", "query": "SELECT count(*) FROM numbers", "expected": 3},
        {"name": "tablespace", "query": "SELECT count(*) FROM in_extra", "expected": 1000},
        {"name": '<odd> "name" & \u0007', "query": "SELECT 1 < 2"},
    ]
    host = drills.host(checks=checks, report_directory=str(reports), max_age="1 hour")
    before, record = drills.live(), (drills.world.repository / "main/backups/one/backup.json").read_text()

    planned = drills.run({"db": host}, check=True).ok()
    assert planned.stats["db"]["changed"] == 1
    assert "the backup one of the cluster main would be restored" in told(planned, "db")
    assert "What would stop it: nothing" in told(planned, "db")
    assert drills.live() == before
    assert (drills.world.repository / "main/backups/one/backup.json").read_text() == record
    assert not reports.exists()
    drills.nothing_is_left()

    first = drills.run({"db": host}).ok()
    assert drills.live() == before
    assert not (sandbox.root / "cleaned").exists()
    drills.nothing_is_left()
    entry = drills.world.record("one")
    drill = entry["last_drill"]
    assert (entry["proven_at"], entry["proven_by"], entry["proven_recently"]) == (drill["at"], "a test on db", True)
    assert drill["ok"] is True
    names = ["restore and recovery", "pg_amcheck", "pg_checksums", *(check["name"] for check in checks)]
    assert [check["name"] for check in drill["checks"]] == names
    # Data checksums are the default since version 18.
    assert [check["ok"] for check in drill["checks"]] == [
        True,
        True,
        True if drills.primary.major >= 18 else None,
        *[True] * 3,
    ]
    assert drill["timeline"] == 2
    assert drill["recovered_to_lsn"] in told(first, "db")

    suite = ElementTree.parse(reports / "db-main.xml").getroot()[0]  # noqa: S314 - written by the role
    assert (suite.get("tests"), suite.get("failures")) == ("6", "0")
    assert suite.get("skipped") == ("0" if drills.primary.major >= 18 else "1")
    assert [case.get("name") for case in suite.iter("testcase")][-1] == '<odd> "name" & ?'
    told_json = json.loads((reports / "db-main.json").read_text())
    assert (told_json["ok"], told_json["backup_id"], told_json["checks"]) == (True, "one", drill["checks"])

    second = drills.run({"db": host}).ok()
    assert second.stats["db"]["changed"] == 0
    assert "was proven less than 1 hour ago" in told(second, "db")
    assert drills.world.record("one")["last_drill"] == drill


def test_what_is_not_proven(sandbox: Sandbox, drills: Drills) -> None:
    """As hosts of one play: every kind of damage is found, other kinds of backups are proven, nothing is harmed."""
    primary, world = drills.primary, drills.world
    common = dict(world.modules.common)
    standby = sandbox.standby(primary)
    from_standby = Modules(standby, as_server=True, **{**common, **standby.login(), "cluster": "standby"})
    steps = Steps(from_standby, standby)
    steps.start()
    steps.finish(archiver=world.modules)
    standby.stop()
    included = Steps(Modules(as_server=True, **{**common, "cluster": "included"}), primary)
    included.start(wal="include")
    for name in ("backup_copy", "backup_stop", "backup_publish"):
        included.ok(name)

    # A page that went bad on the source's disk: the copy is faithful, and so is its checksum.
    primary.sql("CREATE TABLE victim AS SELECT i, md5(i::text) FROM generate_series(1, 1000) i")
    primary.sql("VACUUM victim")
    primary.sql("CHECKPOINT")
    with (primary.data / primary.value("SELECT pg_relation_filepath('victim')")).open("r+b") as file:
        file.seek(24)
        # Line pointers to rows far after the page's end; with other flags they would count as dead and valid.
        file.write(b"\xff\xff\xfe\xff" * 10)
    Steps(Modules(as_server=True, **{**common, "cluster": "rotten"}), primary).whole()
    # And one that went bad on the backup's disk.
    run(["cp", "-a", world.repository / "main", world.repository / "broken"])
    records = sorted((world.repository / "broken" / "backups").glob("*/backup.json"))
    run(["sed", "-i", 's/"cluster": "main"/"cluster": "broken"/', *records])
    bad = world.repository / "broken/backups/one/data/global/pg_filenode.map"
    bad.write_bytes(b"\xff" + bad.read_bytes()[1:])

    # Replaying its creation would attach the drill to the live directory.
    primary.tablespace("later")
    world.archive_all()
    primary.sql("CHECKPOINT")
    before = drills.live()
    foreign = sandbox.directory("foreign")
    own_file(own_directory(foreign / "main.drill") / "precious", "x")
    special: dict[str, dict[str, t.Any]] = {
        "standby": {"cluster": "standby"},
        "included": {"cluster": "included", "archive_directory": ""},
        "rotten": {"cluster": "rotten"},
        "broken": {"cluster": "broken"},
        "later": {"recovery_target": ""},
        "wrong": {"checks": [{"query": "SELECT count(*) FROM numbers", "expected": 7}]},
        "foreign": {"directory": str(foreign)},
        "unknown": {"backup_id": "unknown"},
    }
    hosts = {}
    for name, variables in special.items():
        # Each with its own directory, because it holds one scratch directory per cluster.
        place = own_directory(drills.directory / name)
        hosts[name] = drills.host(**{"directory": str(place), **variables})
    play = drills.run(hosts)
    assert drills.live() == before
    assert not (sandbox.root / "cleaned").exists()
    failed = {name: message(play, name) for name in hosts if play.stats[name]["failures"]}
    expected = {
        "rotten": ["is not proven: pg_amcheck: ", "victim"],
        "broken": ["global/pg_filenode.map"],
        "later": ["was created after"],
        "wrong": ["SELECT count(*) FROM numbers: '3' instead of 7"],
        "foreign": ["main.drill is not the scratch directory of a drill"],
        "unknown": ["There is no backup unknown"],
    }
    assert set(failed) == set(expected), play.stdout[-6000:]
    for name, words in expected.items():
        for word in words:
            assert word in failed[name], (word, failed[name])
    if primary.major >= 18:
        assert "pg_checksums: " in failed["rotten"]
    assert (foreign / "main.drill" / "precious").exists()
    for place in drills.directory.iterdir():
        assert list(place.iterdir()) == [], place
        place.rmdir()
    drills.nothing_is_left()

    (catalogue,) = Modules(as_server=True, **{**common, "cluster": "standby"}).ok("backup_info")["clusters"]
    assert catalogue["backups"][0]["last_drill"]["ok"] is True
    assert {check["ok"] for check in catalogue["backups"][0]["last_drill"]["checks"]} <= {True, None}
    failures = world.record("one")
    assert failures["proven_at"] is None
    assert failures["last_drill"]["ok"] is False


def test_sealed_against_a_tablespace_made_later(sandbox: Sandbox, drills: Drills) -> None:
    """If its creation is replayed nevertheless, recovery stops instead of using the live directory."""
    primary = drills.primary
    common = {"directory": str(drills.directory), "cluster": "main", "run": "by hand"}
    scratch = run_module_as_server("drill_scratch", {**common, "socket_parent": str(drills.sockets)})
    copy = Server(primary.major, "copy", drills.scratch, 5432)
    mapping = f"{primary.directory}/tablespaces/extra={scratch['tablespace_directory']}/extra"
    own_directory(drills.scratch / "tablespaces")
    primary.tool("pg_basebackup", "-D", copy.data, "-T", mapping, "-c", "fast", "-X", "none", "--no-sync")
    primary.tablespace("later")
    drills.world.archive_all()
    primary.sql("CHECKPOINT")
    before = drills.live()
    copy.conf(listen_addresses="", unix_socket_directories=scratch["socket_directory"], archive_mode=False, port=5432)
    copy.conf(restore_command=f'cp {primary.archive}/%f "%p"')
    own_file(copy.data / "recovery.signal", "")
    assert run_module_as_server("drill_scratch", {**common, "state": "sealed"})["changed"] is True
    where = {name: scratch[name] for name in ("data_directory", "log_file")}
    programs = str(binaries.prefix(primary.major) / "bin")
    run_module_as_server("server_state", {**where, "state": "started", "bin_directory": programs})
    login = {"login_unix_socket": scratch["socket_directory"], "login_user": "postgres", "wait_for": "target"}
    ended = run_module_as_server("recovery_info", {**where, **login, "timeout": 60})
    assert ended["code"] == "server_gone", ended
    assert "pg_tblspc" in ended["msg"]
    assert "Permission denied" in ended["msg"]
    assert drills.live() == before
    assert run_module_as_server("drill_scratch", {**common, "state": "absent"})["changed"] is True
    drills.nothing_is_left()


@pytest.mark.oldest_core
def test_after_a_killed_controller(drills: Drills) -> None:
    """The drill's server survives; the next run stops it, removes its files, and proves the backup."""
    play = drills.world.start("drill", {"db": drills.host()})
    pid_file = drills.scratch / "data" / "postmaster.pid"
    wait_until(lambda: pid_file.exists() or play.process.poll() is not None, "the drill's server runs", timeout=90)
    play.signal(group=True)
    play.process.wait()
    pid = wait_until(lambda: pid_file.read_text().split("\n")[0], "it has written its process id")
    assert os.readlink(f"/proc/{pid}/cwd") == str(drills.scratch / "data")
    before = drills.live()
    planned = drills.run(check=True).ok()
    assert "What would stop it: nothing" in told(planned, "db")
    drills.run().ok()
    assert drills.live() == before
    drills.nothing_is_left()
    assert drills.world.record("one")["last_drill"]["ok"] is True


@pytest.mark.majors(14, 18)
def test_traps_of_the_source(sandbox: Sandbox, primary: Server) -> None:
    """Views, settings of roles and databases, and its postgresql.auto.conf: the drill proves, and runs nothing."""
    caught = sandbox.directory("caught") / "it"
    drills = Drills(sandbox, primary)
    # The source has it; where the drill loads it, no connection succeeds.
    library = sandbox.directory("library") / "evil.so"
    shutil.copy(binaries.prefix(primary.major) / "lib/auto_explain.so", library)
    library.chmod(0o755)
    primary.sql(TRAP.format(f"touch {caught}"))
    primary.sql("CREATE DATABASE shop")
    quiet = "-c session_preload_libraries= -c local_preload_libraries= -c statement_timeout=0"
    for setting in (
        "ROLE postgres SET session_preload_libraries = '{1}'",
        "DATABASE shop SET session_preload_libraries = '{1}'",
        "ROLE ALL SET local_preload_libraries = 'evil'",
        "DATABASE shop SET statement_timeout = '1ms'",
        "DATABASE postgres SET role = 'mallory'",
        "SYSTEM SET work_mem = '77MB'",
        "SYSTEM SET max_connections = 70",
        "SYSTEM SET archive_cleanup_command = 'touch {0}'",
        "SYSTEM SET recovery_end_command = 'touch {0}'",
        "SYSTEM SET jit_provider = 'evil'",
    ):
        with contextlib.closing(primary.connect(options=f"{quiet} -c role=none")) as connection:
            connection.cursor().execute(f"ALTER {setting.format(caught, library)}")
    drills.world.back_up("one")
    library.unlink()
    checks = [
        {"name": "settings", "query": "SHOW work_mem", "expected": "4MB"},
        {"name": "slow", "query": "SELECT pg_sleep(0.1) IS NOT NULL", "database": "shop"},
        {
            "name": "rights",
            "query": "SELECT count(*) FROM pg_roles WHERE rolsuper AND rolname = session_user",
            "expected": 0,
        },
    ]
    play = drills.run({"db": drills.host(checks=checks)}).ok()
    assert "passed" in told(play, "db")
    found = {check["name"]: check["ok"] for check in drills.world.record("one")["last_drill"]["checks"]}
    assert (found["pg_amcheck"], found["settings"], found["slow"], found["rights"]) == (True, True, True, True)
    play = drills.run({"db": drills.host(checks=[BAIT])})
    assert "bait: PostgreSQL" in message(play, "db")
    assert not caught.exists()
    drills.nothing_is_left()
