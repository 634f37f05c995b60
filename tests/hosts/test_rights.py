# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the login user may not do is found before anything is changed; the message has the line that sudo needs."""

from __future__ import annotations

import re
import typing as t

import pytest

from tests.hosts.helpers import pages
from tests.hosts.helpers.world import World

ARCHIVE: t.Final = "pgfleet.basebackup.archive"
AS_POSTGRES: t.Final = "(postgres) NOPASSWD: ALL"
NAMES: t.Final = ("pg1", "pg2", "pg3", "pg3rpm")

check_and_run = pytest.mark.parametrize("check", [True, False], ids=["check", "run"])


@pytest.fixture
def unprivileged(world: World) -> t.Iterator[World]:
    """The fleet, where the login user may only become postgres; afterwards also use the units."""
    for host in world.hosts():
        host.allow(AS_POSTGRES)
    yield world
    for host in world.hosts():
        host.allow(*world.sudo())


def sudo_lines(message: str) -> list[str]:
    """Return sudo's lines for the user ansible in a message, without his name."""
    command = r"/usr/bin/systemctl \w+ [\w@.-]+"
    return [
        line.rstrip(".") for line in re.findall(rf"ansible ALL=(\(root\) NOPASSWD: {command}(?:, {command})*)", message)
    ]


@check_and_run
def test_archive_without_the_right_to_restart(unprivileged: World, check: bool) -> None:
    """Nothing is set and nothing restarted on any host."""
    before = unprivileged.starts(), unprivileged.settings()
    play = unprivileged.play(*pages.of_readme(ARCHIVE, check=check))
    assert play.rc == 2, play.stdout
    assert (unprivileged.starts(), unprivileged.settings()) == before
    for name in NAMES:
        message = play.of(name, "failed")[-1]["result"]["msg"]
        unit = unprivileged.cluster(name).unit
        assert any(unit.removesuffix(".service") in line for line in sudo_lines(message)), message


@check_and_run
def test_restore_without_the_right_to_stop(unprivileged: World, check: bool) -> None:
    """The server runs on."""
    source = {"pg_backup_repository": "/srv/backups", "pg_backup_login_user": "postgres", "pg_backup_wal": "include"}
    unprivileged.play("pgfleet.basebackup.backup", pg_backup_hosts="pg3", pg_backup_max_age="1 hour", **source).ok()
    before = unprivileged.starts()
    options = ["-e", "pg_recover_recovery_target=immediate", "-e", "pg_recover_delta=true"]
    play = unprivileged.play(*pages.restore("pg3", options, check=check))
    # In check mode the plan reports what would stop it, and does not fail.
    assert play.rc == (0 if check else 2), play.stdout
    assert unprivileged.starts() == before
    assert sudo_lines(play.stdout)


def test_another_unit_is_refused(world: World) -> None:
    """A service that is not the one that runs the server is named; nothing is restarted."""
    before = world.starts(), world.settings()
    play = world.play(*pages.of_readme(ARCHIVE), "-l", "pg3", pg_archive_service="postgresql@17-other")
    assert play.rc == 2, play.stdout
    assert (world.starts(), world.settings()) == before
    message = play.of("pg3", "failed")[-1]["result"]["msg"]
    assert "postgresql@17-other" in message
    assert "postgresql@17-main.service" in message


def test_the_line_of_the_refusal_is_enough(unprivileged: World) -> None:
    """With just the lines of the refusals in sudoers the same command restarts the servers, in either layout."""
    names = ("pg3", "pg3rpm")
    words = pages.of_readme(ARCHIVE, "-l", ",".join(names))
    refused = unprivileged.play(*words)
    lines = [line for name in names for line in sudo_lines(refused.of(name, "failed")[-1]["result"]["msg"])]
    unprivileged.fleet["pg3"].allow(AS_POSTGRES, *lines)
    before = unprivileged.starts()
    play = unprivileged.play(*words)
    unprivileged.healthy()
    play.ok()
    now = unprivileged.starts()
    assert [name for name in NAMES if now[name] != before[name]] == list(names)


def test_sudo_with_a_password(world: World) -> None:
    """A login user who may do all with his password, which Ansible has, needs no line for the unit."""
    host = world.fleet["pg3"]
    host.run(["chpasswd"], stdin="ansible:secret\n")
    host.allow("(ALL) ALL")
    try:
        world.pg3.sql("ALTER SYSTEM SET archive_mode = off")
        before = world.pg3.sql("SELECT pg_postmaster_start_time()")
        world.pg3.systemctl("restart")
        play = world.play(*pages.of_readme(ARCHIVE), "-l", "pg3,pg3rpm", ansible_become_password="secret")
        play.ok()
        assert world.pg3.sql("SELECT pg_postmaster_start_time()") != before
        assert world.pg3.sql("SHOW archive_mode") == "on"
    finally:
        host.allow(*world.sudo())
