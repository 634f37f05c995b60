# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which unfinished backup a run continues, which belongs to another run, and which is cleaned up."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import activity as _work
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import launch as _launch
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import resume as _resume
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import start as _start
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.launch import NewBackup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.resume import Rules, Unfinished
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.start import Start
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup, Cluster

from tests.unit.helpers.backups import IDENTIFIER, SEGMENT, edit, make_backup, make_cluster, proof
from tests.unit.helpers.processes import held_by_another_process

SERVER = {
    "version": "18.3",
    "major": 18,
    "role": "primary",
    "system_identifier": IDENTIFIER,
    "data_directory": "/srv/pg",
    "stats_temp_directory": None,
    "wal_segment_size": 16777216,
    "block_size": 8192,
    "data_checksums": True,
    "catalog_version": 202506291,
    "config_files_outside": [],
    "port": 5432,
    "address": "db:5432",
}


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Cluster:
    return make_cluster(tmp_path)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """The states of the fake sessions, by backup; a session without one has ended."""
    states: dict[str, tuple[str, str]] = {}
    monkeypatch.setattr(_work, "_session_state", lambda backup, *rest: states.get(backup.id, ("failed", "It is gone.")))
    return states


def heard_of(backup: Backup, owner: str | None, seconds_ago: float) -> None:
    """Record which run works on a backup and when it last renewed its claim."""
    seen = time.time() - seconds_ago
    content = {"owner": owner, "since": seen, "seen": seen}
    pathlib.Path(backup.file("owner.json")).write_text(json.dumps(content))


def copying(backup: Backup) -> None:
    pathlib.Path(backup.file("copy", "progress.json")).write_text('{"state": "running", "percent": 1.0}')


def ids(choice: Unfinished) -> tuple[str | None, str | None, list[str]]:
    """Return the backup to continue, the one of another run, and the dead ones."""
    return (
        choice.backup.id if choice.backup else None,
        choice.busy[0].id if choice.busy else None,
        [backup.id for backup, _activity in choice.dead],
    )


def choose(cluster: Cluster, **rules: t.Any) -> tuple[str | None, str | None, list[str]]:
    return ids(_resume.find_unfinished(cluster, Rules(**{"resume": True, "owner": "me again", **rules})))


Sessions = t.Dict[str, t.Tuple[str, str]]


def test_nothing(cluster: Cluster, sessions: Sessions) -> None:
    assert choose(cluster) == (None, None, [])


@pytest.mark.parametrize("state", ["running", "copied", "stopping", "stopped", "complete", "connecting"])
@pytest.mark.parametrize(
    "owner, silence, locked, copies, expected",
    [
        ("one", 100, None, False, "continue"),
        ("one", 1, None, False, "busy"),
        # The same run id: the run itself, again.
        ("me again", 1, None, False, "continue"),
        (None, 100, None, False, "continue"),
        # A process works on it; only a copy continues without a run.
        ("one", 100, "lock", False, "busy"),
        ("me again", 1, "lock", False, "busy"),
        ("one", 100, "lock", True, "continue"),
        ("one", 1, "lock", True, "busy"),
        # The catalogue's lock has nothing to do with it.
        ("one", 100, "../../lock", False, "continue"),
    ],
)
def test_takeover(
    cluster: Cluster,
    sessions: Sessions,
    state: str,
    owner: str | None,
    silence: float,
    locked: str | None,
    copies: bool,
    expected: str,
) -> None:
    backup = make_backup(cluster, state=state if state in ("stopped", "complete") else "started")
    sessions["b1"] = (state, "")
    heard_of(backup, owner, silence)
    if copies:
        copying(backup)
    holder = held_by_another_process(backup.file(locked)) if locked else contextlib.nullcontext()
    with t.cast("t.ContextManager[t.Any]", holder):
        taken = (("b1", None, []), (None, "b1", []))[expected == "busy"]
        assert choose(cluster) == taken
        # resume=False never continues; patient=False never waits.
        assert choose(cluster, resume=False) == (None, "b1", [])
        assert choose(cluster, resume=False, patient=False) == (None, None, [])
        # A backup of another data directory in the same cluster: a primary and its standby.
        assert choose(cluster, source="/srv/other") == (None, "b1", [])
        assert choose(cluster, source="/srv/pg") == taken


def test_dead(cluster: Cluster, sessions: Sessions) -> None:
    backup = make_backup(cluster)
    assert choose(cluster) == (None, None, ["b1"])
    # The process that holds its lock may be about to start its session.
    with held_by_another_process(backup.file("lock")):
        assert choose(cluster) == (None, "b1", [])
    edit(backup, host="elsewhere")
    assert choose(cluster) == (None, None, [])
    edit(backup, host=_work.host_name(), kept=True)
    assert choose(cluster) == (None, None, [])


def test_dead_and_alive(cluster: Cluster, sessions: Sessions) -> None:
    for name in ("a", "b", "c"):
        heard_of(make_backup(cluster, name), "one", 100)
    sessions["b"] = ("copied", "")
    assert choose(cluster) == ("b", None, ["a", "c"])


@pytest.mark.parametrize(
    "state, age, silence, expected",
    [
        ("stopped", 7200, 100, (None, None, ["b1"])),
        ("stopped", 100, 100, ("b1", None, [])),
        # Another run waits for it, or it only has to be renamed.
        ("stopped", 7200, 1, (None, "b1", [])),
        ("complete", 7200, 100, ("b1", None, [])),
    ],
)
def test_outdated(
    cluster: Cluster, sessions: Sessions, state: str, age: float, silence: float, expected: t.Any
) -> None:
    backup = make_backup(cluster, state=state, stop={"stopped_at": time.time() - age})
    heard_of(backup, "one", silence)
    assert choose(cluster, max_age=3600.0) == expected
    assert choose(cluster) == ((None, "b1", []) if silence == 1 else ("b1", None, []))


@pytest.mark.parametrize(
    "begun, state, silence, locked, expected",
    [
        ("archive", "stopped", 100, False, (None, None, ["b1"])),
        ("none", "running", 100, False, (None, None, ["b1"])),
        ("include", "stopped", 100, False, ("b1", None, [])),
        # Its WAL is proven.
        ("archive", "complete", 100, False, ("b1", None, [])),
        # Another run works on it, or its copy is running.
        ("archive", "running", 1, False, (None, "b1", [])),
        ("archive", "running", 100, True, (None, "b1", [])),
    ],
)
def test_begun_with_another_wal(
    cluster: Cluster, sessions: Sessions, begun: str, state: str, silence: float, locked: bool, expected: t.Any
) -> None:
    more = {"wal_proof": {**proof(), "sha256": {SEGMENT: "0" * 64}}} if begun == "include" else {}
    backup = make_backup(cluster, state="started" if state == "running" else state, wal=begun, **more)
    sessions["b1"] = ("running", "")
    heard_of(backup, "one", silence)
    with held_by_another_process(backup.file("lock")) if locked else contextlib.nullcontext():
        if locked:
            copying(backup)
        assert choose(cluster, wal="include") == expected
        assert choose(cluster, wal=None) == ((None, "b1", []) if silence == 1 else ("b1", None, []))


# --- the whole call ---


def start(cluster: Cluster, problems: t.Sequence[dict[str, str]] = (), **params: t.Any) -> Start:
    """Return a call of backup_start that cannot start a session."""
    given = {
        "backup_id": None,
        "resume": True,
        "owner": "me again",
        "takeover_after": 30,
        "concurrent": "skip",
        "max_age": None,
        "wal": "archive",
        "label": None,
        "session_idle_timeout": 3600,
        "session_timeout": 86400,
        "fast": True,
        **params,
    }
    return Start(cluster, given, SERVER, problems)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Backup]:
    """The backups whose sessions would be started."""
    found: list[Backup] = []

    def launch(new: NewBackup, *_facts: t.Any) -> None:
        found.append(new.backup)
        new.lock.__exit__(None, None, None)

    monkeypatch.setattr(_start, "launch", launch)
    return found


def test_new(cluster: Cluster, sessions: Sessions, launched: list[Backup]) -> None:
    answer = start(cluster).run()
    assert [backup.id for backup in launched] == [answer["backup_id"]]
    assert answer["backup_id"].endswith("Z-full")
    record = launched[0].load()
    assert (record.state, record.kind, record.server.data_directory) == ("started", "full", "/srv/pg")
    assert json.loads(pathlib.Path(launched[0].file("owner.json")).read_text())["owner"] == "me again"


def test_ids_of_one_second(cluster: Cluster, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "utc_name", lambda: "T")
    names = []
    for _number in range(3):
        names.append(_launch.default_id(cluster, "full"))
        make_backup(cluster, names[-1])
    assert names == ["T-full", "T-full-2", "T-full-3"]


def test_problems_stop_a_new_backup_only(cluster: Cluster, sessions: Sessions, launched: list[Backup]) -> None:
    problems = [
        {"code": "archiver_failing", "msg": "It fails.", "hint": "Look."},
        {"code": "b", "msg": "B.", "hint": ""},
    ]
    for call in (start(cluster, problems).run, start(cluster, problems).predict):
        with pytest.raises(BackupError) as caught:
            call()
        assert (caught.value.code, caught.value.msg.split()) == ("archiver_failing", ["It", "fails.", "Look.", "B."])
    assert launched == cluster.unfinished() == []
    backup = make_backup(cluster, state="stopped")
    heard_of(backup, "one", 100)
    answer = start(cluster, problems).run()
    assert (answer["backup_id"], answer["resumed"], answer["changed"]) == ("b1", True, False)
    with pytest.raises(BackupError) as caught:
        _work.claim(backup, "one")
    assert caught.value.code == "taken_over"


def test_cleaning(cluster: Cluster, sessions: Sessions, launched: list[Backup]) -> None:
    make_backup(cluster, "old")
    call = start(cluster)
    call.run()
    assert [backup.id for backup in cluster.unfinished()] == [launched[0].id]
    assert call.warnings == ["The unfinished backup old could not be continued and was removed: It is gone."]
    make_backup(cluster, "old")
    start(cluster, resume=False, concurrent="allow").run()
    assert cluster.find("old") is not None


def test_cleaning_spares_a_backup_that_another_run_continued(
    cluster: Cluster, sessions: Sessions, launched: list[Backup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start happens between the decision and the cleaning, and may wait for a checkpoint."""
    backup = make_backup(cluster, "old", state="stopped", stop={"stopped_at": 1.0})
    heard_of(backup, "one", 100)
    call = start(cluster, max_age=60.0)
    real = _start.launch

    def launch(new: NewBackup, *facts: t.Any) -> None:
        _work.claim(backup, "one")
        real(new, *facts)

    monkeypatch.setattr(_start, "launch", launch)
    call.run()
    assert cluster.find("old") is not None
    assert call.warnings == []


def test_busy(cluster: Cluster, sessions: Sessions, launched: list[Backup]) -> None:
    backup = make_backup(cluster)
    sessions["b1"] = ("running", "")
    heard_of(backup, "one", 0)
    with held_by_another_process(backup.file("lock")):
        answer = start(cluster).run()
        assert (answer["skipped_busy"], answer["changed"], answer["busy"]["owner"]) == (True, False, "one")
        with pytest.raises(BackupError) as caught:
            start(cluster, concurrent="fail").run()
        assert (caught.value.code, "one has been working on the backup b1" in caught.value.msg) == ("busy", True)
        start(cluster, concurrent="allow").run()
    assert len(launched) == 1


def test_waits_for_a_run_that_may_have_died(cluster: Cluster, sessions: Sessions, launched: list[Backup]) -> None:
    backup = make_backup(cluster, state="stopped")
    heard_of(backup, "one", 0)
    begun = time.monotonic()
    answer = start(cluster, takeover_after=1).run()
    assert (answer["resumed"], 0.9 < time.monotonic() - begun < 5) == (True, True)


def test_known_id(cluster: Cluster, sessions: Sessions, launched: list[Backup]) -> None:
    backup = make_backup(cluster, state="stopped")
    heard_of(backup, "me again", 0)
    answer = start(cluster, backup_id="b1").run()
    assert (answer["changed"], answer["state"], answer["start_lsn"]) == (False, "stopped", "0/2000028")
    make_backup(cluster, "void")
    with pytest.raises(BackupError) as caught:
        start(cluster, backup_id="void").run()
    assert (caught.value.code, "backup_abort" in caught.value.hint) == ("session_lost", True)
    done = make_backup(cluster, "done", state="complete")
    done.publish()
    with pytest.raises(BackupError) as caught:
        start(cluster, backup_id="done").run()
    assert caught.value.code == "backup_exists"


def test_prediction_changes_nothing(cluster: Cluster, sessions: Sessions, launched: list[Backup]) -> None:
    make_backup(cluster, "old")
    heard_of(make_backup(cluster, "stopped", state="stopped"), "one", 100)

    def listing() -> dict[str, tuple[int, int]]:
        paths = pathlib.Path(cluster.path).rglob("*")
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}

    before = listing()
    assert start(cluster).predict()["backup_id"] == "stopped"
    assert start(cluster, resume=False).predict()["skipped_busy"]
    assert start(cluster, backup_id="new", concurrent="allow").predict()["changed"]
    assert start(cluster, backup_id="stopped").predict()["changed"] is False
    assert listing() == before
