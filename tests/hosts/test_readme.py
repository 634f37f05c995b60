# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's commands, word for word, on Debian hosts with systemd; the servers must survive each of them.

In the order of the README: each test uses what those before it have set up, and creates that when it runs alone.
"""

from __future__ import annotations

import pytest

from tests.hosts.helpers.world import World, backup, command

DATABASES = ("pg1", "pg2", "pg3", "pg3rpm")


@pytest.fixture
def archived(world: World) -> World:
    """The fleet with WAL archiving, by the README's command."""
    world.once("archive", lambda: world.play(*command("pgfleet.basebackup.archive")).ok())
    return world


@pytest.fixture
def backed_up(archived: World) -> World:
    """The fleet with backups, by the README's playbook."""
    archived.once("backup", lambda: archived.play(*backup()).ok())
    return archived


def test_archive_with_restarts(world: World) -> None:
    """The README's first command restarts every server and leaves all of them up; the second time it changes nothing."""
    starts = world.starts()
    play = world.play(*command("pgfleet.basebackup.archive"))
    world.healthy()
    play.ok()
    now = world.starts()
    assert all(now[name] != starts[name] for name in DATABASES)
    again = world.play(*command("pgfleet.basebackup.archive")).ok()
    assert [again.stats[name]["changed"] for name in DATABASES] == [0, 0, 0, 0]
    assert world.starts() == now


def test_backup(archived: World) -> None:
    """The playbook's check mode finds nothing that would stop it; it backs up and verifies; then it changes nothing."""
    archived.play(*backup("--check")).ok()
    assert not any(archived.backups(name) for name in DATABASES)
    archived.play(*backup()).ok()
    assert all(len(archived.backups(name)) == 1 for name in DATABASES)
    again = archived.play(*backup()).ok()
    assert [again.stats[name]["changed"] for name in DATABASES] == [0, 0, 0, 0]


def test_drill(backed_up: World) -> None:
    """Every backup is proven beside the live servers, and nothing of the drills remains."""
    backed_up.play(*command("pgfleet.basebackup.drill")).ok()
    for host in backed_up.hosts():
        assert host.sh("ls -A /srv/drills") == ""
