# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role pg_recover on a cluster with live nodes: it says what they are before it stops anything."""

from __future__ import annotations

import shutil
import typing as t

import pytest

from tests.harness.playbook import Play, host_vars
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.integration.helpers.growing_primary import GrowingPrimary
from tests.integration.helpers.plays import message, told

pytestmark = pytest.mark.majors(18)


class Pair:
    """A primary with a backup and its standby, the hosts pg1 and pg2 of one group, beside a host without a server."""

    def __init__(self, sandbox: Sandbox, major: int) -> None:
        self.pg1 = sandbox.primary(major, name="pg1", tablespaces=[])
        self.world = GrowingPrimary(sandbox, self.pg1)
        self.world.write(1, 2)
        self.world.back_up("one")
        self.world.write(3)
        self.pg1.sql("SELECT pg_create_restore_point('three')")
        self.world.write(4)
        self.world.archive_all()
        self.pg2 = sandbox.standby(self.pg1, name="pg2")

    def restore(self, server: Server, *, check: bool = False, **variables: t.Any) -> Play:
        """Run the playbook for the host of a server; the others are only in the inventory."""
        own = self.world.host("pg_recover", restore_as="primary", delta=True, sync=False, log_file=str(server.log_file))
        login = {"login_port": server.port, "login_unix_socket": str(server.socket_directory)}
        own.update({f"pg_recover_{name}": one for name, one in {**login, **variables}.items()})
        hosts = {one.name: host_vars(one) for one in (self.pg1, self.pg2)}
        hosts[server.name].update({**own, "pg_recover_data_directory": str(server.data)})
        hosts["web"] = {"ansible_connection": "local", "ansible_python_interpreter": "/nonexistent"}
        return self.world.run(
            "restore", hosts, check=check, extra_vars={"pg_recover_hosts": server.name}, groups={"db": ["pg1", "pg2"]}
        )


@pytest.fixture
def pair(sandbox: Sandbox, major: int) -> Pair:
    """A primary and its standby."""
    return Pair(sandbox, major)


def test_a_primary_with_a_live_standby(pair: Pair) -> None:
    """Refused while it runs, with the standby's name and LSN; nothing is stopped or written."""
    process = pair.pg1.pid
    planned = pair.restore(pair.pg1, check=True, recovery_target_name="three")
    assert "pg2 is a live standby of this cluster at 0/" in told(planned, "pg1")
    assert "What would stop it: live_standby" in told(planned, "pg1")
    refused = pair.restore(pair.pg1, recovery_target_name="three")
    assert "promote it instead?" in message(refused, "pg1")
    assert "Nothing was changed." in message(refused, "pg1")
    assert pair.pg1.pid == process
    pair.pg2.catch_up()


def test_a_lost_primary_with_a_live_standby(pair: Pair) -> None:
    """Refused, too; only the user can decide to lose the standby, or that it must not be asked."""
    pair.pg2.catch_up()
    pair.pg1.stop("immediate")
    shutil.rmtree(pair.pg1.data)
    refused = pair.restore(pair.pg1)
    assert f"pg2 is a live standby of this cluster at {pair.pg2.lsn()}" in message(refused, "pg1")
    assert not pair.pg1.data.exists()
    # Somebody else's inventory does not know the group.
    alone = pair.restore(pair.pg1, check=True, nodes=["web"])
    assert "Live nodes of the cluster: none (no answer: web)" in told(alone, "pg1")

    pair.restore(pair.pg1, replace_primary=True).ok()
    assert [row[0] for row in pair.pg1.sql("SELECT i FROM numbers ORDER BY i")] == [1, 2, 3, 4]


def test_a_standby_with_a_live_primary(pair: Pair) -> None:
    """Restored as a primary it would be a second one, whether it runs or not; as a standby and as a copy it may be."""
    for _state in ("running", "stopped", "lost"):
        refused = pair.restore(pair.pg2)
        assert "is a live primary of this cluster" in message(refused, "pg2")
        assert "Nothing was changed." in message(refused, "pg2")
        pair.pg2.stop()
        if _state == "stopped":
            # Asked only through the standby's own connection to it.
            refused = pair.restore(pair.pg2, nodes=["pg2"])
            assert f"The upstream 127.0.0.1:{pair.pg1.port} is a live primary" in message(refused, "pg2")
            shutil.rmtree(pair.pg2.data)
    conninfo = f"host=127.0.0.1 port={pair.pg1.port} user=postgres password={pair.pg1.password}"
    settings = {"unix_socket_directories": str(pair.pg2.socket_directory)}
    own = {"primary_conninfo": conninfo, "port": pair.pg2.port, "settings": settings}
    pair.restore(pair.pg2, restore_as="standby", **own).ok()
    pair.pg2.catch_up()
