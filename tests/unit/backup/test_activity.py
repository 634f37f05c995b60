# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which run works on an unfinished backup: claims, and what a look reports in each state."""

from __future__ import annotations

import json
import os
import pathlib
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import activity as _work
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import Session

from tests.unit.helpers.backups import edit, make_backup, make_cluster
from tests.unit.helpers.processes import held_by_another_process


@pytest.fixture
def backup(tmp_path: pathlib.Path) -> Backup:
    """A backup that no run works on."""
    one = make_backup(make_cluster(tmp_path))
    os.unlink(one.file("owner.json"))
    return one


def owner_of(backup: Backup) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads(pathlib.Path(backup.file("owner.json")).read_text()))


def write(backup: Backup, name: str, content: t.Any) -> None:
    pathlib.Path(backup.file(*name.split("/"))).write_text(json.dumps(content))


def test_claim(backup: Backup) -> None:
    _work.claim(backup, "one")
    first = owner_of(backup)
    assert (first["owner"], first["since"]) == ("one", first["seen"])
    _work.claim(backup, "one")
    again = owner_of(backup)
    assert (again["owner"], again["since"]) == ("one", first["since"])
    assert again["seen"] >= first["seen"]


def test_claim_of_another(backup: Backup) -> None:
    _work.claim(backup, "one")
    with pytest.raises(BackupError) as caught:
        _work.claim(backup, "two")
    assert (caught.value.code, "one" in caught.value.msg, owner_of(backup)["owner"]) == ("taken_over", True, "one")
    _work.claim_locked(backup, "two", take_over=True)
    assert owner_of(backup)["owner"] == "two"
    with pytest.raises(BackupError):
        _work.claim(backup, "one")


def test_claim_without_a_name(backup: Backup) -> None:
    """Modules without a run id renew the time but check nothing."""
    _work.claim(backup, None)
    assert set(owner_of(backup)) == {"seen"}
    _work.claim(backup, "one")
    _work.claim(backup, None)
    assert owner_of(backup)["owner"] == "one"


def test_claims_at_once(backup: Backup) -> None:
    """Concurrent claims replace the same file: none may fail, and none may leave a mixture."""
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for _turn in range(20):
                    _work.claim(backup, None if number else "x" * 500)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert owner_of(backup)["owner"] == "x" * 500


def test_claim_of_a_removed_backup(backup: Backup) -> None:
    gone = Backup(backup.cluster, "b1", published=False)
    backup.remove()
    with pytest.raises(BackupError) as caught:
        _work.claim(gone, "one")
    assert caught.value.code == "unknown_backup"


def test_claim_with_a_damaged_record(backup: Backup) -> None:
    for content in ("", "[]", "{", "\0"):
        pathlib.Path(backup.file("owner.json")).write_text(content)
        _work.claim(backup, "one")
        assert owner_of(backup)["owner"] == "one"


@pytest.mark.parametrize("state", ["stopped", "complete", "failed"])
def test_look_at_recorded_states(tmp_path: pathlib.Path, state: str) -> None:
    """No session is asked: after the stop the record alone counts."""
    activity = _work.activity_of(make_backup(make_cluster(tmp_path), state=state, error="why"))
    assert (activity.state, activity.reason, activity.owner, activity.locked) == (state, "why", "me", False)
    assert (activity.stopped_at is None) == (state == "failed")


def test_look_without_a_session(backup: Backup) -> None:
    write(backup, "session/state.json", {"state": "running", "pid": 1})
    activity = _work.activity_of(backup)
    assert (activity.state, "killed" in activity.reason) == ("failed", True)
    pathlib.Path(backup.file("session", "state.json")).unlink()
    assert _work.activity_of(backup).state == "failed"


def test_look_at_a_session_that_ended(backup: Backup) -> None:
    write(backup, "session/state.json", {"state": "failed", "error": "lost", "code": "connection_lost"})
    assert _work.activity_of(backup)[:2] == ("failed", "lost")
    write(backup, "session/state.json", {"state": "stopped"})
    assert _work.activity_of(backup)[:2] == ("stopping", "")


def test_look_at_a_session_that_does_not_answer(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that holds its lock is alive and must not be cleaned up."""
    ask = Session.ask
    monkeypatch.setattr(Session, "ask", lambda self, action, renew: ask(self, action, renew, seconds=0.1))
    with held_by_another_process(backup.file("session", "lock")):
        activity = _work.activity_of(backup)
    assert (activity.state, "did not answer" in activity.reason) == ("running", True)


def test_lock_is_checked_first(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that starts its session and releases the lock during a look must not pass for a dead backup."""
    steps: list[str] = []
    monkeypatch.setattr(Backup, "is_worked_on", lambda self: steps.append("lock") or True)
    monkeypatch.setattr(_work, "_session_state", lambda *args: steps.append("session") or ("failed", ""))
    assert _work.activity_of(backup).locked
    assert steps == ["lock", "session"]


def test_look_at_something_damaged(backup: Backup) -> None:
    pathlib.Path(backup.file("backup.json")).write_text("{")
    activity = _work.activity_of(backup)
    assert (activity.state, "damaged" in activity.reason) == ("failed", True)


def test_session_of_another_host(backup: Backup) -> None:
    """A session on another host cannot be asked: it counts as alive until its lease must have expired."""
    edit(backup, host="elsewhere")
    _work.claim(backup, "one")
    assert _work.activity_of(backup)[:2] == ("running", "")
    assert not _work.activity_of(backup).here
    write(backup, "owner.json", {"owner": "one", "since": 1.0, "seen": time.time() - 3700})
    assert _work.activity_of(backup).state == "failed"
    # A running copy renews it too.
    write(backup, "copy/progress.json", {"state": "running", "percent": 1.0})
    assert _work.activity_of(backup).state == "running"


def test_progress(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_work, "_session_state", lambda *args: ("running", ""))
    _work.claim(backup, "deploy@controller")
    assert _work.activity_of(backup).state == "running"
    write(backup, "copy/progress.json", {"state": "running", "percent": 41.6})
    with held_by_another_process(backup.file("lock")):
        activity = _work.activity_of(backup)
    assert (activity.state, activity.locked, activity.copying) == ("running", True, True)
    text = activity.describe(backup)
    assert text.startswith("deploy@controller has been working on the backup b1 since 20")
    assert "42 % copied" in text
    write(backup, "copy/progress.json", {"state": "done", "percent": 100.0})
    with held_by_another_process(backup.file("lock")):
        activity = _work.activity_of(backup)
    assert (activity.state, activity.locked, activity.copying) == ("copied", True, False)
    os.unlink(backup.file("owner.json"))
    assert (
        _work.activity_of(backup)
        .describe(backup)
        .startswith("Another run has been working on the backup b1 since an unknown time")
    )
