# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishing: what the proof must cover, and a crash at every step."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import abort as _abort
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import publish as _publish
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    Repository,
)

from tests.unit.helpers.backups import FILES, SEGMENT, content_of, edit, files_below, make_backup, make_cluster, proof
from tests.unit.helpers.crashes import crashes
from tests.unit.helpers.processes import held_by_another_process


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: the tests crash processes, not machines."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def backup(tmp_path: pathlib.Path) -> Backup:
    return make_backup(make_cluster(tmp_path), state="stopped")


def refused(backup: Backup, given: dict[str, t.Any] | None) -> BackupError:
    """Return why ``given`` is not a proof; require that nothing is published."""
    with pytest.raises(BackupError) as caught:
        _publish.publish(backup, given)
    assert backup.cluster.published() == []
    return caught.value


def test_publish(backup: Backup) -> None:
    other = "000000010000000000000003"
    _publish.publish(backup, proof(SEGMENT, other))
    content = content_of(backup.cluster.get("b1"))
    assert (content["state"], content["wal_proof"]["archived"]) == ("complete", [SEGMENT, other])
    assert files_below(backup.path) == FILES | {"backup.json"}


@pytest.mark.parametrize(
    "given",
    [[], ["000000010000000000000003"], ["00000002.history"]],
)
def test_a_file_is_not_proven(backup: Backup, given: list[str]) -> None:
    error = refused(backup, {**proof(), "archived": given})
    assert (error.code, error.details["missing"], SEGMENT in error.msg) == ("wal_not_proven", [SEGMENT], True)


@pytest.mark.parametrize(
    "given",
    [
        {"archived": f"not {SEGMENT}"},
        {"archived": None},
        {"archived": {SEGMENT: 0}},
        {"archived": [SEGMENT, SEGMENT + "x"]},
        {"archived": [SEGMENT, f"../{SEGMENT}"]},
        {"method": 1},
        {"source": None},
        {"system_identifier": None},
        {"system_identifier": 7710880042689923079},
        {"proven_at": "now"},
    ],
)
def test_no_proof_at_all(backup: Backup, given: dict[str, t.Any]) -> None:
    """A name within a text is not a name in a list, and the catalogue shows how the WAL was proven."""
    assert refused(backup, {**proof(), **given}).code == "bad_proof"


def test_no_proof(backup: Backup) -> None:
    """Without a proof only a backup with wal=none, or one proven earlier, is published."""
    error = refused(backup, None)
    assert (error.code, error.details["missing"]) == ("wal_not_proven", [SEGMENT])
    edit(backup, state="complete", wal_proof=proof())
    assert _publish.publish(backup, None)


def test_included(backup: Backup) -> None:
    included = {**proof(), "method": "included", "source": "pg_wal", "sha256": {SEGMENT: "0" * 64}}
    edit(backup, wal="include", wal_proof=included)
    error = refused(backup, proof())
    assert (error.code, SEGMENT in error.msg) == ("damaged_backup", True)
    pathlib.Path(backup.file("data", "pg_wal")).mkdir()
    pathlib.Path(backup.file("data", "pg_wal", SEGMENT)).touch()
    assert _publish.publish(backup, None)
    assert content_of(backup.cluster.get("b1"))["wal_proof"] == included


def test_nothing_is_proven(backup: Backup) -> None:
    edit(backup, wal="none", wal_proof={**proof(), "method": "none", "source": "", "archived": []})
    assert _publish.publish(backup, None)
    assert content_of(backup.cluster.get("b1"))["wal_proof"]["method"] == "none"


def test_proof_of_another_cluster(backup: Backup) -> None:
    assert refused(backup, {**proof(), "system_identifier": "1"}).code == "other_cluster"


@pytest.mark.parametrize("state", ["started", "failed"])
def test_state(tmp_path: pathlib.Path, state: str) -> None:
    backup = make_backup(make_cluster(tmp_path), state="stopped")
    edit(backup, state=state)
    assert refused(backup, proof()).code == "not_stopped"


@pytest.mark.parametrize("name", ["PG_VERSION", "backup_label", "backup_manifest", "global/pg_control"])
def test_damaged(backup: Backup, name: str) -> None:
    os.unlink(backup.file("data", *name.split("/")))
    error = refused(backup, proof())
    assert (error.code, name in error.msg) == ("damaged_backup", True)


def test_another_process_works_on_it(backup: Backup) -> None:
    with held_by_another_process(backup.file("lock")):
        with pytest.raises(BackupError) as caught:
            with backup.hold(0.1):
                pass
    assert caught.value.code == "busy"


def test_crash_anywhere(tmp_path: pathlib.Path) -> None:
    def prepare(folder: pathlib.Path) -> Cluster:
        cluster = make_cluster(folder)
        make_backup(cluster, state="stopped")
        return cluster

    outcomes = set()
    for where, cluster in crashes(tmp_path, prepare, lambda cluster: _publish.publish(cluster.get("b1"), proof())):
        fresh = Repository(cluster.repository.path).cluster("main")
        backup = fresh.get("b1")
        outcomes.add((backup.published, backup.load().state))
        if not backup.published:
            _publish.publish(backup, proof())
        assert files_below(fresh.get("b1").path) == FILES | {"backup.json"}, where
        assert (fresh.get("b1").published, fresh.unfinished()) == (True, []), where
        assert SEGMENT in content_of(fresh.get("b1"))["wal_proof"]["archived"], where
    assert outcomes == {(False, "stopped"), (False, "complete"), (True, "complete")}


@pytest.mark.parametrize("keep", [False, True])
def test_given_up_is_never_published(tmp_path: pathlib.Path, keep: bool) -> None:
    def prepare(folder: pathlib.Path) -> Cluster:
        cluster = make_cluster(folder)
        make_backup(cluster, state="complete")
        return cluster

    for where, cluster in crashes(tmp_path, prepare, lambda cluster: _abort.abort(cluster.get("b1"), keep, 1.0)):
        assert cluster.published() == [], where
        for backup in cluster.unfinished():
            _abort.abort(backup, keep, 1.0)
            if keep:
                content = content_of(backup)
                assert (content["state"], content["kept"]) == ("failed", True), where
                assert refused(backup, proof()).code == "not_stopped", where
        assert len(cluster.unfinished()) == (1 if keep else 0), where
