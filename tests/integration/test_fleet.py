# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarts of the nodes of a cluster: one at a time, standbys first, each back and streaming before the next."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import typing as t

import psycopg2
import pytest

from tests.harness.playbook import Play, run_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_file
from tests.integration.helpers.archives import Archives, changes, result
from tests.integration.helpers.pairs import PG1, PG2, TINY, pair, slots, streams
from tests.integration.helpers.plays import message, reached, told

pytestmark = pytest.mark.timeout(500)


@pytest.fixture
def archives(sandbox: Sandbox) -> Archives:
    """A repository, without hosts yet."""
    return Archives(sandbox)


def started(server: Server) -> float:
    """Return when a server was started."""
    return float(server.value("SELECT extract(epoch FROM pg_postmaster_start_time())::float8"))


@contextlib.contextmanager
def writing(primary: Server) -> t.Iterator[None]:
    """Write much WAL without a pause, also right after a restart."""
    # With pages to write a checkpoint takes seconds. One that takes none removes WAL that a standby is about to fetch.
    primary.sql("CREATE TABLE IF NOT EXISTS load (i int)")
    over = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not over.is_set():
            with contextlib.suppress(psycopg2.Error), contextlib.closing(primary.connect()) as connection:
                while not over.is_set():
                    with connection.cursor() as cursor:
                        cursor.execute("INSERT INTO load SELECT generate_series(1, 2000)")
                        cursor.execute("SELECT pg_logical_emit_message(false, 'load', repeat('x', 300000))")
                    written += 1
                    time.sleep(0.12)

    threads = [threading.Thread(target=write, daemon=True) for _number in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: written > 20, "WAL is written")
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(20)


def run_hosts(archives: Archives, hosts: dict[str, dict[str, t.Any]], **play: t.Any) -> Play:
    """Run the role on all hosts in a play with the keywords ``play``; those of `run_playbook` begin with ``run_``."""
    options = {name[4:]: play.pop(name) for name in list(play) if name.startswith("run_")}
    content = {
        "hosts": "all",
        "gather_facts": False,
        "environment": "{{ environment_of_server }}",
        "roles": [{"role": "pgfleet.basebackup.pg_archive"}],
        "tasks": [{"name": "result", "ansible.builtin.debug": {"var": "pg_archive_result"}}],
        **play,
    }
    return run_playbook([content], hosts, directory=archives.sandbox.root, timeout=300, **options)


def restarts(play: Play) -> list[str]:
    """Return the hosts in the order of their restarts."""
    return [
        event["host"]
        for event in play.events
        if event["task"].endswith("restart | Restart the server")
        and event["action"].startswith("pgfleet.")
        and event["outcome"] == "ok"
        and event["changed"]
        and not event["result"]["msg"].endswith("would be restarted.")
    ]


@pytest.mark.oldest_core
def test_standbys_first_and_the_primary_last(sandbox: Sandbox, archives: Archives) -> None:
    """Predicted, done under load on a primary that removes WAL at once, streaming afterwards, unchanged then."""
    primary, standby = pair(sandbox)
    hosts = {server.name: archives.host(server, restart=True) for server in (primary, standby)}
    before = {server.name: started(server) for server in (primary, standby)}

    planned = run_hosts(archives, hosts, run_check=True).ok()
    assert {server.name: started(server) for server in (primary, standby)} == before
    for host in hosts:
        assert "Restarts in this order, each after the one before is well: pg2 (standby), pg1 (primary)" in told(
            planned, host
        )
    assert list(archives.repository.iterdir()) == []

    with writing(primary):
        play = run_hosts(archives, hosts).ok()
    assert restarts(play) == [PG2, PG1]
    assert before[PG1] < started(primary) > started(standby) > before[PG2]
    standby.catch_up()
    assert streams(standby)
    assert "has already been removed" not in standby.log
    assert result(play, PG1)["proven"]
    assert slots(primary) == []

    second = run_hosts(archives, hosts).ok()
    assert [(changes(second, host), len(reached(second, host))) for host in hosts] == [([], 1), ([], 1)]


def test_again_and_again(sandbox: Sandbox, archives: Archives) -> None:
    """Each restart of both nodes under load ends with a standby that streams; PGFLEET_ROUNDS are tried."""
    primary, standby = pair(sandbox)
    hosts = {server.name: archives.host(server, restart=True) for server in (primary, standby)}
    run_hosts(archives, hosts).ok()
    with writing(primary):
        for number in range(int(os.environ.get("PGFLEET_ROUNDS", "3"))):
            mode = "always" if number % 2 == 0 else "on"
            for host in hosts.values():
                host["pg_archive_archive_mode"] = mode
            assert restarts(run_hosts(archives, hosts).ok()) == [PG2, PG1], number
            assert streams(standby), standby.log[-2000:]
    standby.catch_up()
    assert "has already been removed" not in standby.log
    assert slots(primary) == []


def test_the_first_failure_stops_the_rest(sandbox: Sandbox, archives: Archives) -> None:
    """A standby that does not start again: the others keep running, and each reports it."""
    primary, standby = pair(sandbox)
    third = sandbox.standby(primary, name="pg3", **TINY)
    # It needs more memory than the machine has, once it restarts.
    standby.sql("ALTER SYSTEM SET shared_buffers = '4TB'")
    servers = (primary, standby, third)
    hosts = {one.name: archives.host(one, restart=True, timeout=10) for one in servers}
    before = {one.name: started(one) for one in (primary, third)}
    play = run_hosts(archives, hosts)
    assert play.rc == 2
    assert not standby.running
    assert {one.name: started(one) for one in (primary, third)} == before
    assert "does not start" in message(play, PG2)
    for host in (PG1, "pg3"):
        assert "pg2 had its turn before and is not back and well" in message(play, host).replace("pg2, pg3", "pg2")
    assert primary.value("SHOW archive_mode") == "off"

    # The WAL is kept for the standby meanwhile; repaired, the same command does the rest.
    assert [name for name in slots(primary) if name.startswith("pgfleet_hold")]
    primary.sql("SELECT pg_logical_emit_message(false, 'load', repeat('x', 900000)) FROM generate_series(1, 20)")
    primary.sql("CHECKPOINT")
    own_file(
        standby.data / "postgresql.auto.conf",
        (standby.data / "postgresql.auto.conf").read_text() + "shared_buffers = '16MB'\n",
    )
    standby.start()
    wait_until(lambda: streams(standby), "pg2 streams")
    again = run_hosts(archives, hosts).ok()
    assert restarts(again) == ["pg3", PG1]
    assert all(result(again, host)["archive_mode"] == "on" for host in hosts)


def test_a_primary_whose_standby_is_down(sandbox: Sandbox, archives: Archives) -> None:
    """Refused before anything is changed, whether the standby is a host of the play or not; unless allowed."""
    primary = sandbox.primary(name=PG1, archive=False)
    standby = sandbox.standby(primary, name=PG2)
    hosts = {server.name: archives.host(server, restart=True) for server in (primary, standby)}
    auto = primary.data / "postgresql.auto.conf"
    content, at = auto.read_bytes(), started(primary)
    standby.stop()
    for inventory in (hosts, {PG1: hosts[PG1]}):
        for check in (True, False):
            play = run_hosts(archives, inventory, run_check=check)
            assert play.rc == 2
            text = message(play, PG1)
            assert "No node of this cluster is restarted" in text
            assert "pg_archive_restart_degraded=true" in text
            assert ("pg2 cannot be reached or failed" if PG2 in inventory else "slots pg2") in text, text
            assert (auto.read_bytes(), started(primary)) == (content, at)
    assert list(archives.repository.iterdir()) == []
    allowed = {host: {**variables, "pg_archive_restart_degraded": True} for host, variables in hosts.items()}
    play = run_hosts(archives, allowed)
    assert restarts(play) == [PG1]
    assert result(play, PG1)["proven"]

    # Another one, whose standby is up and does not stream.
    primary.sql("ALTER SYSTEM SET archive_mode = off")
    primary.restart()
    standby.start()
    wait_until(lambda: streams(standby), "pg2 streams")
    standby.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'")
    standby.reload()
    wait_until(lambda: not streams(standby), "pg2 does not stream")
    play = run_hosts(archives, hosts)
    assert play.rc == 2
    assert "pg2 is a standby that does not stream" in message(play, PG1)
    assert "pg2 is a standby that does not stream" in message(play, PG2)
    assert restarts(play) == []


@pytest.mark.parametrize("strategy", ["free", "host_pinned"])
def test_hosts_out_of_step(sandbox: Sandbox, archives: Archives, strategy: str) -> None:
    """Where the hosts run apart, two nodes are never restarted at the same time, and none after an unwell one."""
    primary, standby = pair(sandbox)
    hosts = {server.name: archives.host(server, restart=True) for server in (primary, standby)}
    with writing(primary):
        play = run_hosts(archives, hosts, strategy=strategy)
    assert streams(standby)
    assert restarts(play) in ([], [PG2], [PG2, PG1])
    if restarts(play) != [PG2, PG1]:
        assert play.rc == 2
        text = " ".join(message(play, host) for host in hosts if play.of(host, "failed"))
        assert "do not run in step" in text or "had its turn before" in text, text
    assert "has already been removed" not in standby.log


def test_batches(sandbox: Sandbox, archives: Archives) -> None:
    """One host at a time: the primary is refused while its standby may be to come, and restarted after it."""
    primary, standby = pair(sandbox)
    alone = sandbox.primary(name="alone", archive=False)
    hosts = {server.name: archives.host(server, restart=True) for server in (alone, primary, standby)}
    # Ansible ends a play after a batch in which every host has failed.
    first = run_hosts(archives, hosts, serial=1)
    assert restarts(first) == ["alone"]
    assert "put the nodes of a cluster into one batch" in message(first, PG1)
    second = run_hosts(archives, hosts, serial=1, order="reverse_inventory").ok()
    assert restarts(second) == [PG2, PG1]
    standby.catch_up()


def test_what_waits_for_a_restart(sandbox: Sandbox, archives: Archives) -> None:
    """By default nothing restarts, and each node reports the ones of its cluster that wait, in their order."""
    primary, standby = pair(sandbox)
    hosts = {server.name: archives.host(server, method="script") for server in (primary, standby)}
    before = started(primary), started(standby)
    play = run_hosts(archives, hosts).ok()
    assert (started(primary), started(standby)) == before
    for host in hosts:
        text = result(play, host)["msg"]
        assert "Nodes of this cluster that wait for a restart, in the order to restart them: pg2 (standby), pg1" in text


def test_one_node_of_a_cluster(sandbox: Sandbox, archives: Archives) -> None:
    """A standby that is no host of the play is held, and streams before and after; the same for an absent primary."""
    primary, standby = pair(sandbox)
    hosts = {server.name: archives.host(server, restart=True) for server in (primary, standby)}
    with writing(primary):
        assert restarts(run_hosts(archives, {PG2: hosts[PG2]}).ok()) == [PG2]
        assert streams(standby)
        assert restarts(run_hosts(archives, {PG1: hosts[PG1]}).ok()) == [PG1]
        assert streams(standby)
    standby.catch_up()
    assert "has already been removed" not in standby.log


def test_a_cascade(sandbox: Sandbox, archives: Archives) -> None:
    """The standby of a standby comes first."""
    primary = sandbox.primary(name=PG1, archive=False, initdb=["--wal-segsize=1"], **TINY)
    middle = sandbox.standby(primary, name=PG2, **TINY)
    last = sandbox.standby(middle, name="pg3", **TINY)
    hosts = {one.name: archives.host(one, restart=True) for one in (primary, middle, last)}
    with writing(primary):
        assert restarts(run_hosts(archives, hosts).ok()) == ["pg3", PG2, PG1]
        assert streams(last)
        assert streams(middle)


def test_a_rebuilt_node_archives_into_its_own_directory(sandbox: Sandbox, archives: Archives) -> None:
    """A copy of the primary's files has the primary's setting; the next run repairs it."""
    primary = sandbox.primary(name=PG1, archive=False)
    hosts = {PG1: archives.host(primary, restart=True)}
    run_hosts(archives, hosts).ok()
    rebuilt = sandbox.standby(primary, name=PG2)
    setting = "SHOW basic_archive.archive_directory"
    assert rebuilt.value(setting) == str(archives.repository / PG1 / "wal")
    rebuilt.sql("ALTER SYSTEM SET archive_mode = on")
    rebuilt.conf(archive_mode=True).restart()
    hosts[PG2] = archives.host(rebuilt)
    play = run_hosts(archives, hosts).ok()
    assert "which is not the archive of this server" in result(play, PG2)["msg"]
    assert rebuilt.value(setting) == str(archives.repository / PG2 / "wal")
    assert result(run_hosts(archives, hosts).ok(), PG2)["changed"] is False
    rebuilt.promote()
    assert result(run_hosts(archives, {PG2: hosts[PG2]}).ok(), PG2)["proven"]


def test_a_configuration_that_patroni_manages(sandbox: Sandbox, archives: Archives) -> None:
    """Refused with Patroni's commands and the values to set; what Patroni has set is only checked."""
    server = sandbox.primary(name=PG1, archive=False)
    own_file(server.data / "patroni.dynamic.json", "{}")
    auto = (server.data / "postgresql.auto.conf").read_bytes()
    for restart in (True, False):
        play = run_hosts(archives, {PG1: archives.host(server, restart=restart)})
        assert play.rc == 2
        text = message(play, PG1)
        assert "is managed by Patroni" in text
        assert "patronictl edit-config" in text
        assert "archive_mode: 'on'" in text
    assert (server.data / "postgresql.auto.conf").read_bytes() == auto
    assert server.value("SHOW archive_mode") == "off"


def test_hosts_must_be_named(sandbox: Sandbox) -> None:
    """No playbook has the whole inventory as its default."""
    for name in ("archive", "backup", "drill", "restore"):
        play = run_playbook(f"playbooks/{name}.yml", {"web1": {"ansible_connection": "local"}}, directory=sandbox.root)
        assert play.rc != 0
        assert "Name the hosts" in play.stdout
        assert play.events == []
