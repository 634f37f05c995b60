# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The harness: its question finds what it asks for, and nothing remains of a killed run."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import typing as t

import pytest

from tests.harness import systemd
from tests.harness.modules import CLONE
from tests.harness.sandbox import Sandbox
from tests.harness.servers import wait_until
from tests.hosts.helpers.clusters import PROGRAMS, Cluster, complaints

HELD = """\
import pathlib, sys, time
from tests.harness.systemd import SystemdFleet
with SystemdFleet(pathlib.Path(sys.argv[1]), "pg1") as fleet:
    print(fleet["pg1"].init, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def cluster() -> t.Iterator[Cluster]:
    """A cluster on one host."""
    if reason := systemd.obstacle():
        pytest.skip(reason)
    with Sandbox() as sandbox, systemd.SystemdFleet(sandbox.root / "fleet", "pg1") as fleet:
        yield Cluster(fleet["pg1"]).create()


def test_what_is_wrong_is_found(cluster: Cluster) -> None:
    """A server that runs outside its unit, one that is down, and a stranger are each named."""
    assert complaints([cluster]) == []
    cluster.systemctl("stop")
    assert complaints([cluster]) == [f"pg1: {cluster.unit} is inactive (dead)"]
    start = f"{PROGRAMS}/pg_ctl start -D {cluster.data} -l /tmp/log -o '-c config_file={cluster.etc}/postgresql.conf'"
    cluster.host.run(["sh", "-c", start], user="postgres")
    assert complaints([cluster]) == [
        f"pg1: {cluster.unit} is inactive (dead)",
        f"pg1: another server runs in {cluster.data}",
    ]


def test_nothing_remains_of_a_killed_run(tmp_path: pathlib.Path) -> None:
    """Processes, control groups and files of a run that was killed vanish with it."""
    if reason := systemd.obstacle():
        pytest.skip(reason)
    root = systemd.control_groups()
    assert root
    with Sandbox() as sandbox:
        directory = sandbox.root / "fleet"
        run = subprocess.Popen(
            [sys.executable, "-c", HELD, directory],
            cwd=CLONE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert run.stdout
        init = pathlib.Path("/proc", run.stdout.readline().strip())
        groups = root / f"pgfleet-{run.pid}-{sandbox.root.name}"
        assert init.exists()
        assert groups.exists()
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
        wait_until(lambda: not (init.exists() or groups.exists() or directory.exists()), "nothing remains")
