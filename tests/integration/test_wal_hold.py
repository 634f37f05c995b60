# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL that is kept during a restart: by whom, until when, and that no slot is left behind."""

from __future__ import annotations

import os
import signal

from tests.harness.modules import run_module_as_server
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.integration.helpers.pairs import pair, slots, streams


def temporary(server: Server) -> list[bool]:
    """Return for each slot of a hold whether it is a temporary one."""
    return [found for (found,) in server.sql("SELECT temporary FROM pg_replication_slots WHERE slot_name ~ 'hold'")]


def test_no_slot_is_left_behind(sandbox: Sandbox) -> None:
    """Given up, ended by its deadline, or after its process was killed during the restart: by the next hold."""
    primary, standby = pair(sandbox)
    # A standby's hold is a temporary slot on its upstream, which ends with its process.
    hold = run_module_as_server("wal_hold", standby.login())
    assert temporary(primary) == [True]
    os.kill(int(hold["holders"][0].split(":")[0]), signal.SIGKILL)
    wait_until(lambda: slots(primary) == [], "the temporary slot ends with its process")

    # A server's own hold lasts through its restart, and is a temporary one afterwards.
    hold = run_module_as_server("wal_hold", primary.login())
    assert temporary(primary) == [False]
    primary.restart()
    wait_until(lambda: temporary(primary) == [True], "the slot is taken over")
    ended = run_module_as_server("wal_hold", {**primary.login(), "state": "absent", "holders": hold["holders"]})
    assert ended["changed"]
    wait_until(lambda: slots(primary) == [], "no slot is left")
    again = run_module_as_server("wal_hold", {**primary.login(), "state": "absent", "holders": hold["holders"]})
    assert not again["changed"]

    wait_until(lambda: streams(standby), "pg2 streams", timeout=60)
    run_module_as_server("wal_hold", {**primary.login(), "hold_timeout": "1 second"})
    wait_until(lambda: slots(primary) == [], "the deadline has ended it")

    hold = run_module_as_server("wal_hold", primary.login())
    os.kill(int(hold["holders"][0].split(":")[0]), signal.SIGKILL)
    left = slots(primary)
    assert len(left) == 1
    hold = run_module_as_server("wal_hold", primary.login())
    assert len(slots(primary)) == 1
    assert slots(primary) != left
    run_module_as_server("wal_hold", {**primary.login(), "state": "absent", "holders": hold["holders"]})
    wait_until(lambda: slots(primary) == [], "no slot is left")


def test_what_needs_no_hold(sandbox: Sandbox) -> None:
    """Standbys with an active slot of their own; and check mode keeps nothing."""
    primary = sandbox.primary(archive=False)
    standby = sandbox.standby(primary)
    before = slots(primary)
    for server in (primary, standby):
        found = run_module_as_server("wal_hold", server.login())
        assert (found["changed"], found["holders"], found["held"]) == (False, [], True)
    assert slots(primary) == before
