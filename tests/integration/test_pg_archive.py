# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL archiving as a declared state: predicted, set up, proven by fetching back, unchanged the second time."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from tests.harness import binaries
from tests.harness.checks import data_checksum, restore
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_directory, own_file
from tests.integration.helpers.archives import Archives, changes, result
from tests.integration.helpers.files import listing
from tests.integration.helpers.plays import message, reached, told

# Several plays, each with several hosts.
pytestmark = pytest.mark.timeout(400)

AUTO_CONF = "postgresql.auto.conf"


@pytest.fixture
def archives(sandbox: Sandbox) -> Archives:
    """A repository, without hosts yet."""
    return Archives(sandbox)


def state(server: Server, archives: Archives) -> dict[str, t.Any]:
    """Return the state that a second run must not change."""
    auto = server.data / AUTO_CONF
    return {**listing(archives.repository), "auto": (auto.stat().st_mtime_ns, auto.read_bytes())}


def wal_of(archives: Archives, host: str) -> list[str]:
    """Return the names in a host's default archive."""
    directory = archives.repository / host / "wal"
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def recovers_by(sandbox: Sandbox, server: Server, command: str) -> None:
    """Require that a copy without WAL recovers to the same content by this restore_command alone."""
    place = sandbox.directory(f"{server.name}-backup")
    server.tool("pg_basebackup", "-D", place / "data", "-c", "fast", "--no-sync", "-X", "none")
    server.sql("CREATE TABLE later AS SELECT generate_series(1, 1000) i")
    expected = data_checksum(server)
    server.switch_wal()
    # The copy must archive nothing, and this file has the role's settings.
    own_file(place / "data" / AUTO_CONF, "")
    copy = restore(sandbox, place, None, server.major, name=f"{server.name}-copy", start=False, wal_level="replica")
    wait_until(
        lambda: server.value(
            "SELECT last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 41) FROM pg_stat_archiver"
        ),
        f"the WAL of {server.name} is archived",
    )
    copy.conf(restore_command=command).start()
    wait_until(lambda: not copy.in_recovery, f"recovered: {copy.log[-2000:]}")
    assert data_checksum(copy) == expected
    copy.stop("immediate")


def test_from_nothing_to_proven_archiving(sandbox: Sandbox, archives: Archives) -> None:
    """Predicted with a diff, restarted if allowed and reported if not, proven, unchanged; then it recovers."""
    servers = {
        "old": sandbox.primary(14, name="old", archive=False),
        "patient": sandbox.primary(15, name="patient", archive=False, wal_level="minimal", max_wal_senders=0),
        "packed": sandbox.primary(18, name="packed", archive=False),
    }
    hosts = {
        "old": archives.host(servers["old"], restart=True),
        "patient": archives.host(servers["patient"]),
        "packed": archives.host(servers["packed"], restart=True, compression="zstd"),
    }
    methods = {"old": "script", "patient": "basic_archive", "packed": "script"}

    before = [state(server, archives) for server in servers.values()]
    planned = archives.run(hosts, check=True, args=["--diff"]).ok()
    assert [state(server, archives) for server in servers.values()] == before
    for name in hosts:
        foretold = result(planned, name)
        assert (foretold["method"], foretold["changed"], foretold["proven"]) == (methods[name], True, False)
        assert foretold["restart_required"]
        assert "A restart is needed for archive_mode" in foretold["msg"]
    assert "+archive_library = 'basic_archive'" in planned.stdout
    assert "+archive_mode = 'on'" in planned.stdout

    made = archives.run(hosts).ok()
    for name in ("old", "packed"):
        found = result(made, name)
        assert (found["changed"], found["proven"], found["restart_required"]) == (True, True, False), found
        assert "fetched back by restore_command" in found["msg"]
        assert changes(made, name)[-2:] == ["Restart the server", "Enable WAL archiving and prove it"]
        assert found["segment"] + (".zst" if name == "packed" else "") in wal_of(archives, name)
        script = pathlib.Path(hosts[name]["pg_archive_script_directory"], "pgfleet_wal.py")
        assert script.stat().st_mode & 0o777 == 0o700
        assert not list(archives.repository.rglob("*.py"))
    # No restart allowed: everything else is done, and the pending restart is reported, also the second time.
    waiting = result(made, "patient")
    assert (waiting["changed"], waiting["proven"], waiting["restart_required"]) == (True, False, True)
    assert waiting["pending_restart"] == ["archive_mode", "wal_level"]
    assert "pg_archive_restart=true" in waiting["msg"]
    assert servers["patient"].value("SHOW archive_mode") == "off"

    before = [state(server, archives) for server in servers.values()]
    second = archives.run(hosts).ok()
    assert [state(server, archives) for server in servers.values()] == before
    for name in hosts:
        assert (changes(second, name), result(second, name)["changed"]) == ([], False)
        assert len(reached(second, name)) == 1
    assert result(second, "patient")["restart_required"]
    for name in ("old", "packed"):
        assert result(second, name)["proven"]
        assert result(second, name)["segment"] == result(made, name)["segment"]

    # Restarted by the administrator, the third run only proves.
    servers["patient"].conf(max_wal_senders=10).restart()
    third = archives.run({"patient": hosts["patient"]}).ok()
    assert changes(third, "patient") == ["Enable WAL archiving and prove it"]
    for name, server in servers.items():
        recovers_by(sandbox, server, result(third if name == "patient" else second, name)["restore_command"])


def test_standbys(sandbox: Sandbox, archives: Archives) -> None:
    """One will archive after its promotion, one archives now, into the same directory as the primary."""
    primary = sandbox.primary(archive=False, archive_mode=True)
    standby = sandbox.standby(primary, archive_mode="on", tcp=False)
    always = sandbox.standby(primary, name="always", archive_mode="on", tcp=False)
    standby.conf(archive_mode=True).restart()
    always.conf(archive_mode=True).restart()
    shared = str(sandbox.root / "shared wal's 100%")
    hosts = {
        "primary": archives.host(primary, directory=shared),
        "standby": archives.host(standby),
        "always": archives.host(always, directory=shared, archive_mode="always", restart=True, method="script"),
    }
    first = archives.run(hosts).ok()
    assert result(first, "primary")["proven"]
    quiet = result(first, "standby")
    assert (quiet["changed"], quiet["proven"]) == (True, False)
    assert "leaves archiving to the primary" in quiet["msg"]
    loud = result(first, "always")
    assert loud["proven"], first.stdout
    assert always.value("SHOW archive_mode") == "always"
    # Both have archived it, and it exists once.
    for server in (primary, always):
        wait_until(
            lambda server=server: server.value(
                "SELECT last_archived_wal >= %s FROM pg_stat_archiver", [loud["segment"]]
            ),
            f"{server.name} has archived {loud['segment']}",
        )
    assert sorted(path.name for path in pathlib.Path(shared).iterdir() if loud["segment"] in path.name) == [
        loud["segment"]
    ]
    second = archives.run(hosts).ok()
    assert [changes(second, host) for host in hosts] == [[], [], []]
    assert result(second, "always")["proven"]

    standby.promote()
    promoted = archives.run({"standby": hosts["standby"]}).ok()
    assert result(promoted, "standby")["proven"]
    recovers_by(sandbox, standby, result(promoted, "standby")["restore_command"])


def test_existing_archiving_is_respected(sandbox: Sandbox, archives: Archives) -> None:
    """The user's own command, one that archives nothing, a missing library, and directories that are not writable."""

    def primary(name: str, **settings: t.Any) -> Server:
        return sandbox.primary(name=name, archive=settings.pop("archive", False), archive_mode=True, **settings)

    own = primary("own", archive=True)
    broken = primary("broken", archive=True)
    broken.break_archive()
    assert own.archive
    read_only = sandbox.directory("not-writable", 0o500)
    hosts = {
        "own": archives.host(own),
        "fetched": archives.host(own, restore_command=f"cp {own.archive}/%f %p"),
        "broken": archives.host(broken, timeout=2),
        "placeholder": archives.host(primary("placeholder", archive_command="/bin/true")),
        "unset": archives.host(primary("unset"), method="own"),
        "no_library": archives.host(primary("no_library", dynamic_library_path="/nonexistent")),
        "read_only": archives.host(primary("read_only"), directory=str(read_only)),
        "inside": archives.host(server := primary("inside"), directory=str(server.data / "wal")),
        "nowhere": archives.host(primary("nowhere"), repository="/nonexistent"),
    }
    hosts["wanted"] = {**hosts["no_library"], "pg_archive_method": "basic_archive"}
    files = {server.name: (server.data / AUTO_CONF).read_bytes() for server in sandbox.servers}
    play = archives.run(hosts, args=["-f", "10"])
    assert play.rc == 2
    for host in ("own", "fetched"):
        found = result(play, host)
        assert (found["method"], found["proven"], found["directory"]) == ("own", True, ""), found
    assert "says the server" in result(play, "own")["msg"]
    assert "fetched back" in result(play, "fetched")["msg"]
    script = result(play, "no_library")
    assert (script["method"], script["proven"], script["restart_required"]) == ("script", True, False)
    failures = {
        "broken": "was not archived within 2 s",
        "placeholder": "/bin/true, which throws the WAL away",
        "unset": "only checks it",
        "read_only": f"{read_only} is not a directory that",
        "inside": "lies in the data directory",
        "nowhere": "/nonexistent does not exist",
        "wanted": "does not have the library basic_archive",
    }
    for host, text in failures.items():
        assert text in message(play, host), message(play, host)
        assert message(play, host).startswith(f"{host}: WAL archiving of the cluster {host} failed at")
    assert "last failed with 0000" in message(play, "broken")
    for server in sandbox.servers:
        if server.name != "no_library":
            assert (server.data / AUTO_CONF).read_bytes() == files[server.name], server.name
    told_only = archives.run({host: hosts[host] for host in ("placeholder", "wanted", "read_only")}, check=True).ok()
    for host in told_only.stats:
        assert failures[host] in told(told_only, host)
        assert result(told_only, host)["changed"] is False

    # After a repair it works; WAL archived before the role's method was set does not count.
    broken.break_archive(False)
    repaired = archives.run({"broken": hosts["broken"], "own": {**hosts["own"], "pg_archive_method": "script"}}).ok()
    assert result(repaired, "broken")["proven"]
    assert result(repaired, "own")["proven"]
    assert result(repaired, "own")["segment"] in wal_of(archives, "own")


@pytest.mark.oldest_core
def test_own_ways_to_restart(sandbox: Sandbox, archives: Archives) -> None:
    """A hook restarts; if a file with other content has the segment's name, the proof fails and names it."""
    server = sandbox.primary(archive=False)
    tasks = own_file(
        sandbox.root / "restart.yml",
        "- ansible.builtin.command: "
        f"{binaries.tool(server.major, 'pg_ctl')} -D {server.data} -l {server.log_file} -s -w restart\n",
        mode=0o644,
    )
    host = archives.host(server, restart=True, hook_restart=str(tasks), method="script", compression="gzip", timeout=3)
    current = server.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
    archive = own_directory(own_directory(archives.repository / "main") / "wal")
    stranger = own_file(archive / current, "x")
    failed = archives.run({"main": host})
    assert failed.rc == 2
    assert f"The WAL file {current} was not archived within 3 s" in message(failed, "main")
    assert message(failed, "main").endswith(f"pgfleet_wal.py into {archive} (gzip).")
    assert f"{stranger} has other content; it is not overwritten" in server.log
    assert server.value("SHOW archive_mode") == "on"
    stranger.unlink()
    assert result(archives.run({"main": host}).ok(), "main")["proven"]
