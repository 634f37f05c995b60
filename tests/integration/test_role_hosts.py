# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on several hosts: how it finds the primary, what its handler does, and that a password stays secret."""

from __future__ import annotations

import os

import pytest

from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.integration.helpers.files import content, holds
from tests.integration.helpers.leftovers import all_is_well, command_line, processes
from tests.integration.helpers.plays import RoleHosts, message, reached, segment, switches


@pytest.fixture
def fleet(sandbox: Sandbox) -> RoleHosts:
    """A repository, without hosts yet."""
    return RoleHosts(sandbox)


def advance(primary: Server, *standbys: Server) -> None:
    """Let the standbys replay a part of the segment that the idle primary writes to, so that a backup ends in it."""
    primary.sql("CREATE TABLE advanced ()")
    primary.sql("CHECKPOINT")
    lsn = primary.lsn()
    for standby in standbys:
        # mypy infers no type for a lambda with a default, which binds the loop's variable.
        wait_until(
            lambda one=standby: one.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn]), f"{lsn} is replayed"
        )  # type: ignore[misc]


def test_two_clusters_and_two_standbys_in_one_play(sandbox: Sandbox, fleet: RoleHosts, major: int) -> None:
    """Each idle primary switches WAL once, even outside the play's limit.

    The first is a host of the inventory outside the limit. The second is a host of the play, whose standby logs in
    differently.
    """
    first, second = sandbox.primary(major, name="first"), sandbox.primary(major, name="second")
    standbys = [sandbox.standby(first, name="first-a"), sandbox.standby(first, name="first-b")]
    other = sandbox.standby(second, name="second-a")
    hosts = {server.name: fleet.host(server, primary="first") for server in standbys}
    hosts.update({"first": fleet.host(first), "second": fleet.host(second), "second-a": fleet.host(other, tcp=True)})
    advance(first, *standbys)
    advance(second, other)
    begun = [segment(server) for server in (first, second)]
    play = fleet.run(hosts, args=["--limit", "!first"]).ok()
    assert "first" not in play.stats
    assert sorted(switches(play, "first-a", "first-b")) == [False, True]
    assert len(switches(play, "second-a")) == 1
    assert switches(play, "second") == []
    assert segment(first) == begun[0] + 1
    # Its own backup switches WAL twice, at start and at stop; the handler runs after both.
    assert segment(second) - begun[1] == 2 + switches(play, "second-a")[0]
    assert play.stdout.count("[first-a -> first]") >= 2
    assert {fleet.one(host).parent.parent.name for host in play.stats} == {"first-a", "first-b", "second", "second-a"}
    all_is_well(sandbox, fleet.repository, first, second, *standbys, other)


def test_primary_found_over_libpq_and_the_password_kept(
    sandbox: Sandbox, fleet: RoleHosts, primary: Server, standby: Server
) -> None:
    """By address, and through a cascade; the password is in no output at -vvv, no command line and no file."""
    secret = "hunter2 %r' \u00e9 {{ x }} $HOME"
    primary.sql("ALTER ROLE postgres PASSWORD %s", [secret])
    cascade = sandbox.standby(standby, name="cascade", tcp=False)
    # By address, so that the connection to the upstream uses TCP and needs the password.
    conninfo = "host=127.0.0.1 port={} user=postgres password='{}'".format(standby.port, secret.replace("'", "\\'"))
    cascade.sql("ALTER SYSTEM SET primary_conninfo = %s", [conninfo])
    cascade.reload()
    wait_until(
        lambda: cascade.sql("SELECT 1 FROM pg_stat_wal_receiver WHERE sender_host = '127.0.0.1'"), "the cascade streams"
    )
    advance(primary, standby, cascade)
    hosts = {
        "address": fleet.host(standby, tcp=True, primary=f"127.0.0.1:{primary.port}"),
        "cascade": fleet.host(cascade, tcp=True),
    }
    for host in hosts.values():
        host["pg_backup_login_password"] = "{{ lookup('ansible.builtin.file', password_file) }}"
        host["password_file"] = str(sandbox.root / "password")
    (sandbox.root / "password").write_text(secret)
    known = set(holds(sandbox.root, "hunter2"))
    begun = segment(primary)
    running = fleet.start(hosts, args=["-vvv", "--diff"])
    seen: set[str] = set()

    def ended() -> bool:
        seen.update(line for pid in processes() if "hunter2" in (line := command_line(pid) + environment(pid)))
        return running.process.poll() is not None

    wait_until(ended, "the play ends", timeout=180, interval=0.05)
    play = running.wait().ok()
    assert seen == set()
    assert "hunter2" not in play.stdout
    assert "hunter2" not in str(play.events)
    assert sum(switches(play, "address", "cascade")) == 1
    assert segment(primary) == begun + 1
    for host in ("address", "cascade"):
        assert len(reached(play, host)) <= 10
        assert content(fleet.one(host))["start"]["from_standby"]
    # The backup of the cascading standby contains the server's configuration, and with it the server's own password.
    assert {
        path for path in set(holds(sandbox.root, "hunter2")) - known if path.name != "postgresql.auto.conf"
    } == set()
    all_is_well(sandbox, fleet.repository, primary, standby, cascade)


def test_password_that_is_part_of_names(sandbox: Sandbox, fleet: RoleHosts, primary: Server) -> None:
    """In the results the names are whole; the password is in none of them, its arguments included."""
    note = "{{ pg_backup_handle.directory }} {{ pg_backup_result.directory }}"
    noted = sandbox.root / "noted"
    copy = {"ansible.builtin.copy": {"content": note, "dest": str(noted), "mode": "0600"}}
    hook = fleet.tasks("note", copy)
    host = fleet.host(primary, login_password="repo", cluster="reports", hook_after_publish=hook)
    assert "repo" in str(fleet.repository)
    # The other one is a part of the names of all WAL files.
    zeros = fleet.host(primary, login_password="0000", cluster="zeros")
    play = fleet.run({"db": host, "zeros": zeros}).ok()
    assert fleet.one("zeros")
    backup = str(fleet.one("reports"))
    assert noted.read_text() == f"{backup} {backup}"
    assert "********" not in str(play.events)
    for password in ("repo", "0000"):
        assert f"'login_password': '{password}'" not in str(play.events)
    all_is_well(sandbox, fleet.repository, primary)


def environment(pid: int) -> str:
    """Return a process's environment, '' if it has ended."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def test_primary_that_cannot_be_used_is_refused_before_anything_starts(
    sandbox: Sandbox, fleet: RoleHosts, primary: Server, standby: Server
) -> None:
    """No server, an unreachable host, a standby, two primaries, no login at the upstream."""
    second = sandbox.standby(primary, name="promoted")
    second.promote()
    hosts = {
        "address": fleet.host(standby, primary="127.0.0.1:1"),
        "unreachable": fleet.host(standby, primary="gone"),
        "misled": fleet.host(standby, primary="address"),
        "login": fleet.host(standby, login_password="wrong", login_user="postgres"),
        "gone": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1},
    }
    play = fleet.run(hosts, args=["--limit", "!gone"])
    for host, cause in (
        ("address", "127.0.0.1:1"),
        ("unreachable", "Failed to connect to the host"),
        ("misled", "is a standby"),
        ("login", "password authentication failed"),
    ):
        text = message(play, host)
        assert cause in text, text
        for way in ("pg_backup_primary (a host of the inventory, or host:port)", "as a host of the same play",
                    "an upstream that the standby reports"):  # fmt: skip
            assert way in text
        assert not any("backup_start" in event["action"] for event in play.of(host))
        assert "three ways" in text
    assert os.listdir(fleet.repository) == []

    hosts = {
        "standby": fleet.host(standby),
        "old": fleet.host(primary, max_age="1h"),
        "new": fleet.host(second, max_age="1h"),
    }
    torn = fleet.run(hosts, check=True)
    assert "are both primaries of the cluster" in message(torn, "standby")
    assert "Name the right one: pg_backup_primary" in message(torn, "standby")
    assert torn.stats["old"]["failures"] == torn.stats["new"]["failures"] == 0
    all_is_well(sandbox, fleet.repository, primary, standby)


@pytest.mark.oldest_core
def test_failing_handler_leaves_a_stopped_backup(
    sandbox: Sandbox, fleet: RoleHosts, primary: Server, standby: Server
) -> None:
    """The privilege to switch is lost between the check and the handler. The next run publishes the same backup."""
    primary.sql("CREATE ROLE backup LOGIN")
    primary.sql("GRANT pg_monitor TO backup")
    functions = "FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean), pg_switch_wal()"
    primary.sql(f"GRANT EXECUTE ON {functions} TO backup")
    standby.catch_up()
    revoke = " ".join(
        [f"psql -X -h {primary.socket_directory} -p {primary.port} -U postgres -c",
         "'REVOKE EXECUTE ON FUNCTION pg_switch_wal() FROM backup' postgres"]
    )  # fmt: skip
    psql = primary.env["LD_LIBRARY_PATH"].removesuffix("/lib")
    revoke = f"LD_LIBRARY_PATH={psql}/lib {psql}/bin/{revoke}"
    hook = fleet.tasks("revoke", {"ansible.builtin.shell": revoke, "changed_when": True})
    noted = sandbox.root / "noted"
    note = fleet.tasks(
        "note",
        {"ansible.builtin.copy": {"content": "{{ pg_backup_result.msg }}", "dest": str(noted), "mode": "0600"}},
    )
    common = {"login_user": "backup", "primary": "primary", "hook_on_failure": note}
    hosts = {"standby": fleet.host(standby, **common, hook_before_stop=hook), "primary": fleet.host(primary)}
    begun = segment(primary)
    play = fleet.run(hosts, args=["--limit", "standby"])
    assert play.rc != 0
    text = message(play, "standby")
    (backup,) = fleet.unfinished("standby")
    assert "permission denied for function pg_switch_wal" in text
    assert f"standby: the backup {backup.name} of the cluster standby failed" in text
    assert "Switch WAL on the primary" in text
    assert "It is stopped and kept; the next run continues it." in text
    assert noted.read_text() == text
    assert content(backup)["state"] == "stopped"
    assert segment(primary) == begun
    all_is_well(sandbox, fleet.repository, primary, standby, unfinished=[backup.name])

    primary.sql(f"GRANT EXECUTE ON {functions} TO backup")
    again = fleet.run(hosts, args=["--limit", "standby"]).ok()
    assert switches(again, "standby") == [True]
    assert segment(primary) == begun + 1
    assert fleet.one("standby").name == backup.name
    all_is_well(sandbox, fleet.repository, primary, standby)


def test_two_clusters_of_one_host(sandbox: Sandbox, fleet: RoleHosts, major: int) -> None:
    """The role twice on one host, with different variables; the handler switches each primary's WAL."""
    primaries = [sandbox.primary(major, name=name) for name in ("red", "blue")]
    standbys = [sandbox.standby(primary, name=f"{primary.name}-a") for primary in primaries]
    clusters = [
        {
            "name": standby.name,
            "port": standby.port,
            "socket": str(standby.socket_directory),
            "primary": primary.name,
        }
        for primary, standby in zip(primaries, standbys, strict=True)
    ]
    host = fleet.host(standbys[0])
    for name in ("pg_backup_login_port", "pg_backup_login_unix_socket"):
        del host[name]
    play = {
        "hosts": "standbys",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.include_role": {"name": "pgfleet.basebackup.pg_backup"},
                "vars": {
                    "pg_backup_cluster": "{{ one.name }}",
                    "pg_backup_login_port": "{{ one.port }}",
                    "pg_backup_login_unix_socket": "{{ one.socket }}",
                    "pg_backup_primary": "{{ one.primary }}",
                },
                "loop": clusters,
                "loop_control": {"loop_var": "one", "label": "{{ one.name }}"},
            }
        ],
    }
    hosts = {"standbys": host, **{primary.name: fleet.host(primary) for primary in primaries}}
    for primary, standby in zip(primaries, standbys, strict=True):
        advance(primary, standby)
    begun = [segment(primary) for primary in primaries]
    done = fleet.run(hosts, playbook=[play]).ok()
    assert switches(done, "standbys") == [True, True]
    assert [segment(primary) for primary in primaries] == [number + 1 for number in begun]
    for primary, standby in zip(primaries, standbys, strict=True):
        assert content(fleet.one(standby.name))["server"]["system_identifier"] == primary.system_identifier
    all_is_well(sandbox, fleet.repository, *primaries, *standbys)
