# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write load on a server during a test."""

from __future__ import annotations

import contextlib
import subprocess
import typing as t

from tests.harness import binaries
from tests.harness.servers import Server, wait_until
from tests.harness.user import popen


@contextlib.contextmanager
def load(server: Server, *options: str) -> t.Iterator[None]:
    """Keep pgbench (initialised before) writing to ``server``; yields after its first writes."""
    command = [binaries.tool(server.major, "pgbench"), "-n", "-c", "2", "-T", "120", *options]
    process = popen(command, env=server.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: server.value("SELECT count(*) FROM pgbench_history"), "pgbench writes")
        yield
        assert process.poll() is None, "pgbench has ended early"
    finally:
        process.terminate()
        process.wait()
        wait_until(
            lambda: not server.sql("SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgbench'"),
            "pgbench has ended",
        )


def pgbench_adds_up(server: Server) -> None:
    """Require the invariant of pgbench's transactions: the balances and the history have the same sum."""
    sums = server.sql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
        " (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
    )[0]
    assert len(set(sums)) == 1, sums


def spread_the_next_checkpoint(primary: Server) -> None:
    """Make the next spread checkpoint take about two seconds: a tenth of a second for each page to write."""
    primary.conf(checkpoint_timeout="1h", checkpoint_completion_target="0.9").reload()
    primary.sql("CREATE TABLE dirty (i int)")
    primary.sql("CHECKPOINT")
    primary.sql("INSERT INTO dirty SELECT generate_series(1, 4000)")
