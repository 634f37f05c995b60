# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stopping and starting servers under systemd: as Debian's packages and PostgreSQL's RPMs run them, and users."""

from __future__ import annotations

import dataclasses
import time
import typing as t

import pytest

from tests.harness import systemd
from tests.harness.debian import MAJOR
from tests.harness.playbook import Play, run_playbook
from tests.harness.sandbox import Sandbox
from tests.hosts.helpers.clusters import PROGRAMS, Cluster, complaints
from tests.hosts.helpers.world import RPM_PORT, World

ANY_AS_POSTGRES: t.Final = "(postgres) NOPASSWD: ALL"
USER_UNIT: t.Final = f"""\
[Service]
Type=notify
ExecStart={PROGRAMS}/postgres -D %h/mine -p 5444
"""


@dataclasses.dataclass
class Place:
    """One host with two servers."""

    sandbox: Sandbox
    fleet: systemd.SystemdFleet
    debian: Cluster
    rpm: Cluster

    @property
    def host(self) -> systemd.SystemdHost:
        """The host."""
        return self.fleet["pg1"]

    def role(self, cluster: Cluster | str, *steps: str, check: bool = False, **variables: t.Any) -> Play:
        """Include the private role with each of ``steps`` for a server, as postgres."""
        data = cluster if isinstance(cluster, str) else cluster.data
        connection = {name: value for name, value in variables.items() if name.startswith("ansible_")}
        given = {f"_server_{name}": value for name, value in variables.items() if name not in connection}
        tasks = [
            {
                "ansible.builtin.include_role": {"name": "pgfleet.basebackup._server", "tasks_from": step},
                "vars": {"_server_data_directory": data, **given},
            }
            for step in steps
        ]
        play = {"hosts": "all", "gather_facts": False, "become": True, "become_user": "postgres", "tasks": tasks}
        inventory = {"pg1": {**self.fleet.host_vars(self.host, pipelining=True), **connection}}
        return run_playbook([play], inventory, directory=self.sandbox.root, check=check)

    def main_pid(self, cluster: Cluster) -> str:
        """Return the main process of its unit."""
        return self.host.run(["systemctl", "show", "--property=MainPID", "--value", cluster.unit]).strip()


@pytest.fixture(scope="module")
def booted() -> t.Iterator[Place]:
    """The host, booted once."""
    if reason := systemd.obstacle():
        pytest.skip(reason)
    with Sandbox() as sandbox, systemd.SystemdFleet(sandbox.root / "fleet", "pg1") as fleet:
        data = f"/var/lib/pgsql/{MAJOR}/data"
        rpm = Cluster(fleet["pg1"], f"postgresql-{MAJOR}.service", data, data, RPM_PORT)
        yield Place(sandbox, fleet, Cluster(fleet["pg1"]).create(), rpm.create())


@pytest.fixture
def place(booted: Place) -> t.Iterator[Place]:
    """Both servers are up under their units before and after the test."""
    booted.host.allow(*World.sudo())
    assert complaints([booted.debian, booted.rpm]) == []
    yield booted
    assert complaints([booted.debian, booted.rpm]) == []


def test_units_of_both_families(place: Place) -> None:
    """Whatever is done with a server, afterwards it runs under its unit."""
    for cluster in (place.debian, place.rpm):
        before = place.main_pid(cluster)
        place.role(cluster, "restart").ok()
        restarted = place.main_pid(cluster)
        assert restarted != before
        assert complaints([place.debian, place.rpm]) == []
        place.role(cluster, "stop", "start").ok()
        assert place.main_pid(cluster) not in ("0", restarted)


def test_a_missing_right_is_refused_with_the_line_that_mends_it(place: Place) -> None:
    """Before anything is changed, and in check mode, too; sudo asks for a password where the rule has one."""
    before = place.main_pid(place.debian)
    unit = place.debian.unit[: -len(".service")]
    commands = [f"/usr/bin/systemctl {verb} {unit}" for verb in ("stop", "start")]
    line = f"ansible ALL=(root) NOPASSWD: {', '.join(commands)}"
    for rule in ([], [f"(root) PASSWD: {', '.join(commands)}"]):
        place.host.allow(ANY_AS_POSTGRES, *rule)
        for check in (True, False):
            play = place.role(place.debian, "rights", check=check, states=["stopped", "started"])
            (failed,) = play.of("pg1", "failed")
            assert failed["result"]["code"] == "no_right_to_unit"
            assert failed["result"]["sudoers"] == line
    assert place.main_pid(place.debian) == before
    place.host.allow(ANY_AS_POSTGRES, line[len("ansible ALL=") :])
    place.role(place.debian, "rights", "stop", "start", states=["stopped", "started"]).ok()
    assert place.main_pid(place.debian) != before


def test_become_with_a_password(place: Place) -> None:
    """A login user who may do all with a password needs no rule for the unit."""
    place.host.run(["chpasswd"], stdin="ansible:of the login user\n")
    place.host.allow("(ALL) ALL", ANY_AS_POSTGRES)
    before = place.main_pid(place.rpm)
    place.role(place.rpm, "restart", ansible_become_password="of the login user").ok()
    assert place.main_pid(place.rpm) != before
    (failed,) = place.role(place.rpm, "restart").of("pg1", "failed")
    assert failed["result"]["code"] == "no_right_to_unit"


def test_a_unit_of_another_server_is_refused(place: Place) -> None:
    """Whether the server runs or not."""
    before = place.main_pid(place.debian)
    for step in ("restart", "stop"):
        (failed,) = place.role(place.debian, step, service=place.rpm.unit).of("pg1", "failed")
        assert failed["result"]["code"] == "wrong_unit"
    assert place.main_pid(place.debian) == before
    place.debian.systemctl("stop")
    (failed,) = place.role(place.debian, "start", service=place.rpm.unit).of("pg1", "failed")
    assert failed["result"]["code"] == "wrong_unit"
    place.debian.systemctl("start")


@pytest.mark.parametrize("name", ["debian", "rpm"])
def test_a_server_that_was_started_by_hand_returns_to_its_unit(place: Place, name: str) -> None:
    """Its unit is found by the data directory that it leads to."""
    cluster: Cluster = getattr(place, name)
    cluster.systemctl("stop")
    options = f"-c config_file={cluster.etc}/postgresql.conf"
    start = [f"{PROGRAMS}/pg_ctl", "start", "-D", cluster.data, "-w", "-l", "/tmp/by-hand.log", "-o", options]
    place.host.run(start, user="postgres")
    assert complaints([cluster]) != []
    place.role(cluster, "stop", "start").ok()


def test_a_long_recovery_does_not_hold_the_start(place: Place) -> None:
    """Type=notify is ready only after recovery; systemctl start waits for that, and the role does not."""
    data = place.rpm.data
    place.rpm.systemctl("stop")
    place.host.sh(
        f"touch {data}/recovery.signal; echo \"restore_command = 'sleep 60; false'\" >>{data}/postgresql.auto.conf",
        user="postgres",
    )
    begun = time.monotonic()
    place.role(place.rpm, "start").ok()
    took = time.monotonic() - begun
    state = place.host.run(["systemctl", "show", "--property=ActiveState", "--value", place.rpm.unit]).strip()
    place.host.run(["pkill", "-x", "sleep"], check=False)
    place.host.sh(f"sed -i /restore_command/d {data}/postgresql.auto.conf; rm -f {data}/recovery.signal")
    place.rpm.systemctl("restart")
    assert (state, took < 50) == ("activating", True), took


def test_a_unit_of_a_user(place: Place) -> None:
    """The manager of the server's own account needs no sudo."""
    place.host.sh("systemctl start user@$(id -u postgres)")
    home = "/var/lib/postgresql"
    place.host.sh(f"{PROGRAMS}/initdb --no-sync -D {home}/mine", user="postgres")
    place.host.write(f"{home}/.config/systemd/user/mine.service", USER_UNIT, owner="postgres")
    place.host.sh(f"chown -R postgres: {home}/.config")
    manager = "XDG_RUNTIME_DIR=/run/user/$(id -u) systemctl --user"
    place.host.sh(f"{manager} daemon-reload; {manager} start mine", user="postgres")
    try:
        place.role(f"{home}/mine", "restart", "stop", "start").ok()
        assert place.host.sh(f"{manager} is-active mine", user="postgres").strip() == "active"
    finally:
        place.host.sh(f"{manager} stop mine", user="postgres")
