# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that Patroni runs are neither restarted, configured nor restored behind its back."""

from __future__ import annotations

import typing as t

import pytest

from tests.harness import systemd
from tests.harness.playbook import Play, run_playbook
from tests.harness.sandbox import Sandbox
from tests.harness.systemd import SystemdFleet
from tests.hosts.helpers.patroni import DATA, Patroni


class Pair:
    """Two nodes, and plays on them."""

    def __init__(self, sandbox: Sandbox, fleet: SystemdFleet) -> None:
        """Start the nodes."""
        self.sandbox = sandbox
        self.fleet = fleet
        self.nodes = [fleet["pt1"], fleet["pt2"]]
        for node in self.nodes:
            # Not what keeps the role from it.
            node.allow("(ALL) NOPASSWD: ALL")
        self.patroni = Patroni(*self.nodes)

    def play(self, playbook: str, *args: str, **variables: t.Any) -> Play:
        """Run a playbook on both nodes."""
        inventory = {node.name: self.fleet.host_vars(node, pipelining=True) for node in self.nodes}
        return run_playbook(playbook, inventory, directory=self.sandbox.root, args=args, extra_vars=variables)

    def state(self) -> list[str]:
        """Return which servers run, since when, and what ALTER SYSTEM has set."""
        return [
            self.patroni.server(node) + node.sh(f"cat {DATA}/postgresql.auto.conf; ls /srv/backups")
            for node in self.nodes
        ]


@pytest.fixture(scope="module")
def pair() -> t.Iterator[Pair]:
    """The nodes, started once."""
    if reason := systemd.obstacle():
        pytest.skip(reason)
    with Sandbox() as sandbox, SystemdFleet(sandbox.root / "fleet", "pt1", "pt2") as fleet:
        yield Pair(sandbox, fleet)


@pytest.mark.parametrize("args", [["--check"], []], ids=["check", "run"])
def test_archive_is_refused(pair: Pair, args: list[str]) -> None:
    """pg_archive sets nothing and restarts nothing; it names the commands of Patroni that do it."""
    before = pair.state()
    variables = {"pg_archive_hosts": "all", "pg_archive_repository": "/srv/backups", "pg_archive_restart": True}
    play = pair.play("pgfleet.basebackup.archive", *args, **variables)
    assert play.rc == 2, play.stdout
    assert pair.state() == before
    assert pair.patroni.complaints() == []
    for node in pair.nodes:
        message = play.of(node.name, "failed")[-1]["result"]["msg"]
        assert "patronictl edit-config" in message
        assert "patronictl restart" in message


@pytest.mark.parametrize("args", [["--check"], []], ids=["check", "run"])
def test_restore_is_refused(pair: Pair, args: list[str]) -> None:
    """pg_recover does not stop a server that Patroni would start again; it names Patroni's commands."""
    include = {"pg_backup_repository": "/srv/backups", "pg_backup_hosts": "pt1", "pg_backup_wal": "include"}
    pair.play("pgfleet.basebackup.backup", pg_backup_login_user="postgres", pg_backup_max_age="1 hour", **include).ok()
    before = pair.state()
    variables = {"pg_recover_hosts": "pt1", "pg_recover_repository": "/srv/backups", "pg_recover_delta": True}
    play = pair.play("pgfleet.basebackup.restore", *args, pg_recover_recovery_target="immediate", **variables)
    # In check mode the plan reports what would stop it, and does not fail.
    assert play.rc == (0 if args else 2), play.stdout
    assert pair.state() == before
    assert pair.patroni.complaints() == []
    assert "managed by patroni" in play.stdout
    assert "patronictl pause" in play.stdout
