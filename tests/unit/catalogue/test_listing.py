# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue lists every backup, reports damaged ones, and changes nothing."""

from __future__ import annotations

import os
import pathlib
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._catalogue import listing as _catalogue
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    Repository,
)

from tests.unit.helpers.backups import IDENTIFIER, edit, make_backup, make_cluster


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Cluster:
    return make_cluster(tmp_path)


def published(cluster: Cluster, name: str, age: float, **more: t.Any) -> Backup:
    """Publish a backup that was stopped ``age`` seconds ago."""
    ended = time.time() - age
    times = {"start": {"started_at": ended - 10}, "stop": {"stopped_at": ended}}
    backup = make_backup(cluster, name, state="complete", **times, **more)
    backup.publish()
    return backup


def entry(cluster: Cluster, max_age: float | None = None, identifier: str | None = None) -> dict[str, t.Any]:
    """Return the catalogue's entry for the cluster."""
    repository = Repository(cluster.repository.path, read_only=True)
    (one,) = _catalogue.catalogue(repository, cluster.name, max_age, identifier)
    return one


def test_empty(cluster: Cluster) -> None:
    one = entry(cluster, max_age=60)
    assert (one["system_identifier"], one["backups"], one["unfinished"]) == (IDENTIFIER, [], [])
    assert (one["newest"], one["newest_age_seconds"], one["fresh"]) == (None, None, False)
    assert entry(cluster.repository.cluster("unknown"), max_age=60)["fresh"] is False


def test_published(cluster: Cluster) -> None:
    # The order follows the times, not the names.
    published(cluster, "a", 100)
    published(cluster, "b", 300)
    one = entry(cluster, max_age=150)
    assert [backup["backup_id"] for backup in one["backups"]] == ["b", "a"]
    assert (one["newest"], one["fresh"]) == ("a", True)
    assert 99 < one["newest_age_seconds"] < 150
    newest = one["backups"][-1]
    assert (newest["state"], newest["problem"], newest["wal_proven_by"]) == ("published", None, "server db:5432")
    assert newest["wal"] == "archive"
    assert (newest["start_lsn"], newest["stop_lsn"], newest["bytes"], newest["files"]) == (
        "0/2000028",
        "0/2000120",
        7,
        2,
    )
    assert newest["stopped_at"].endswith("Z")
    assert entry(cluster)["fresh"] is None
    assert entry(cluster, max_age=50)["fresh"] is False


def test_a_clock_that_was_set_back(cluster: Cluster) -> None:
    """A backup from the future does not prevent new ones forever."""
    published(cluster, "a", -1000)
    assert entry(cluster, max_age=60)["fresh"] is False


def test_backup_of_another_cluster_is_not_fresh(cluster: Cluster) -> None:
    published(cluster, "a", 1)
    assert entry(cluster, 60, IDENTIFIER)["fresh"] is True
    assert entry(cluster, 60, "1")["fresh"] is False


@pytest.mark.parametrize("name", ["PG_VERSION", "backup_label", "backup_manifest", "global/pg_control"])
def test_published_and_damaged(cluster: Cluster, name: str) -> None:
    published(cluster, "good", 100)
    os.unlink(published(cluster, "bad", 1).file("data", *name.split("/")))
    one = entry(cluster, 3600)
    assert [backup["state"] for backup in one["backups"]] == ["published", "damaged"]
    assert name in one["backups"][1]["problem"]
    assert one["newest"] == "good"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 1, "backup_id": "bad"}', '{"schema": 9, "backup_id": "bad"}', None]
)
def test_published_without_its_metadata(cluster: Cluster, content: str | None) -> None:
    place = pathlib.Path(published(cluster, "bad", 1).file("backup.json"))
    place.unlink() if content is None else place.write_text(content)
    one = entry(cluster, 3600)
    assert (one["backups"][0]["state"], one["fresh"]) == ("damaged", False)
    assert one["backups"][0]["problem"]


@pytest.mark.parametrize("field", ["start", "stop", "copy", "server", "wal_proof", "kind", "required_wal"])
def test_published_with_a_gap_in_its_metadata(cluster: Cluster, field: str) -> None:
    backup = published(cluster, "bad", 1)
    for value in (None, 5):
        edit(backup, **{field: value})
        one = entry(cluster)
        assert (one["backups"][0]["state"], field in one["backups"][0]["problem"]) == ("damaged", True)


def test_damaged_cluster(cluster: Cluster) -> None:
    published(cluster, "a", 1)
    pathlib.Path(cluster.path, "cluster.json").write_text("{")
    one = entry(cluster, 60)
    assert (one["system_identifier"], "cluster.json" in one["problem"], len(one["backups"])) == (None, True, 1)


def test_unfinished(cluster: Cluster) -> None:
    os.unlink(make_backup(cluster, "gone").file("session", "state.json"))
    make_backup(cluster, "stopping")
    make_backup(cluster, "waits", state="stopped")
    pathlib.Path(make_backup(cluster, "damaged").file("backup.json")).write_text("{")
    one = entry(cluster, 60)
    assert one["backups"] == []
    states = {backup["backup_id"]: (backup["state"], backup["working"]) for backup in one["unfinished"]}
    assert states == {
        "damaged": ("failed", False),
        "gone": ("failed", False),
        "stopping": ("stopping", False),
        "waits": ("stopped", False),
    }
    assert all(backup["age_seconds"] < 60 for backup in one["unfinished"])
    assert all(not backup["session_alive"] for backup in one["unfinished"])


def test_published_during_the_look(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backup is seen in one directory or the other; if it were in neither, a second one would be taken."""
    make_backup(cluster, "b1", state="complete")
    for name in ("_unfinished", "_published"):
        real = getattr(_catalogue, name)
        cluster.find("b1") or make_backup(cluster, "b1", state="complete")

        def look(backup: Backup, real: t.Any = real) -> t.Any:
            unfinished = Backup(cluster, "b1", published=False)
            if os.path.isdir(unfinished.path):
                unfinished.publish()
            return real(backup)

        with monkeypatch.context() as patch:
            patch.setattr(_catalogue, name, look)
            one = entry(cluster, 3600)
        assert [backup["backup_id"] for backup in one["backups"]] == ["b1"]
        assert one["unfinished"] == []


def test_all_clusters(cluster: Cluster) -> None:
    make_cluster(pathlib.Path(cluster.repository.path).parent, "another")
    pathlib.Path(cluster.repository.path, ".hidden").mkdir()
    pathlib.Path(cluster.repository.path, "file").touch()
    found = _catalogue.catalogue(cluster.repository, None, None, None)
    assert [one["name"] for one in found] == ["another", "main"]


def test_bad_name(cluster: Cluster) -> None:
    with pytest.raises(BackupError):
        _catalogue.catalogue(cluster.repository, "../main", None, None)


def test_nothing_is_written(cluster: Cluster) -> None:
    published(cluster, "a", 1)
    make_backup(cluster, "b")

    def listing() -> dict[str, tuple[int, int]]:
        paths = pathlib.Path(cluster.repository.path).rglob("*")
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}

    before = listing()
    entry(cluster, 60)
    assert listing() == before
