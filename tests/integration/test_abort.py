# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Aborting a backup in every state."""

from __future__ import annotations

import os
import pathlib
import signal
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import Session

from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, is_alive, wait_until
from tests.integration.helpers.leftovers import all_is_well
from tests.integration.helpers.load import spread_the_next_checkpoint
from tests.integration.helpers.steps import Background, Steps


@pytest.fixture
def steps(sandbox: Sandbox, modules: Modules, primary: Server, repository: pathlib.Path) -> t.Iterator[Steps]:
    """The steps of a backup of the primary; nothing of it may remain at the end."""
    yield Steps(modules, primary)
    all_is_well(sandbox, repository, primary)


def gone(steps: Steps) -> None:
    """Require that abort predicts the removal, removes the backup, and is changed only once."""
    predicted = steps.ok("backup_abort", check=True)
    assert predicted["changed"]
    assert steps.work.exists()
    result = steps.ok("backup_abort")
    assert (result["changed"], result["state"]) == (True, "absent")
    assert not steps.work.exists()
    again = steps.ok("backup_abort")
    assert (again["changed"], again["state"]) == (False, "absent")


@pytest.mark.majors(15, 18)
def test_starting(steps: Steps, primary: Server) -> None:
    """Abort does not wait for the checkpoint that start waits for."""
    spread_the_next_checkpoint(primary)
    start = Background(lambda: steps.run("backup_start", fast=False))
    wait_until(lambda: steps.state.get("state") == "starting", "start waits for the checkpoint")
    result = steps.ok("backup_abort")
    assert (result["changed"], result["state"]) == (True, "absent")
    failed = start.result(5)
    assert failed["failed"]
    assert failed["code"] == "aborted"
    assert "aborted on request" in failed["msg"]


def test_running(steps: Steps) -> None:
    """Only the session exists."""
    steps.start()
    gone(steps)


@pytest.mark.majors(15, 18)
def test_copying(steps: Steps) -> None:
    """The copy stops at once and reports why."""
    steps.start()
    with steps.copying() as copy:
        assert steps.ok("backup_abort")["state"] == "absent"
        result = steps.stops_soon(copy)
    assert "abort" in result["msg"] or "ended without recording a result" in result["msg"]


def test_copied(steps: Steps) -> None:
    """Everything is copied and the session waits."""
    steps.start()
    steps.ok("backup_copy")
    gone(steps)


def test_stopped(steps: Steps) -> None:
    """Only the proof is missing."""
    steps.start()
    steps.ok("backup_copy")
    steps.ok("backup_stop")
    gone(steps)


def test_failed(steps: Steps) -> None:
    """The session has failed."""
    steps.start()
    keeper = steps.keeper
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not is_alive(keeper), "the session process is dead")
    gone(steps)


def test_unknown(steps: Steps, repository: pathlib.Path) -> None:
    """The backup or the cluster does not exist."""
    result = steps.ok("backup_abort")
    assert (result["changed"], result["state"]) == (False, "absent")
    assert not os.listdir(repository)


def test_damaged(steps: Steps) -> None:
    """A backup that cannot be read can be removed."""
    steps.start()
    (steps.work / "backup.json").write_text("{")
    gone(steps)


def test_published(steps: Steps) -> None:
    """A published backup is never touched."""
    steps.whole()
    result = steps.ok("backup_abort")
    assert (result["changed"], result["state"]) == (False, "published")
    assert (steps.published / "data" / "backup_manifest").is_file()


def test_kept_for_inspection(steps: Steps) -> None:
    """The files stay for inspection, no step continues with them, and a later abort removes them."""
    steps.start()
    steps.ok("backup_copy")
    result = steps.ok("backup_abort", keep=True)
    assert (result["changed"], result["state"]) == (True, "failed")
    assert (steps.work / "data" / "global" / "pg_control").is_file()
    again = steps.ok("backup_abort", keep=True)
    assert (again["changed"], again["state"]) == (False, "failed")
    (entry,) = steps.modules.ok("backup_info")["clusters"][0]["unfinished"]
    assert (entry["state"], entry["session_alive"]) == ("failed", False)
    assert "was aborted" in entry["problem"]
    for name in ("backup_start", "backup_stop"):
        assert "aborted" in steps.fails(name)["msg"]
    gone(steps)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSTOP], ids=["ends", "hangs"])
def test_session_process_hangs(steps: Steps, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names a session process that does not answer, with a hint."""
    # Shortens the wait for an answer that never comes.
    monkeypatch.setattr(Session.ask, "__defaults__", (True, 1.0))
    steps.start()
    keeper = steps.keeper
    if number == signal.SIGSTOP:
        os.kill(keeper, signal.SIGSTOP)
        try:
            result = steps.fails("backup_abort", timeout=1)
        finally:
            os.kill(keeper, signal.SIGCONT)
        assert result["code"] in ("session_silent", "session_stuck")
        assert str(steps.work) in result["msg"]
        wait_until(lambda: not is_alive(keeper), "it ends when it is woken")
    else:
        os.kill(keeper, number)
    assert steps.ok("backup_abort")["state"] == "absent"
