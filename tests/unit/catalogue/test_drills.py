# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Results of drills: recorded once, the newest ten kept, reported by the catalogue, never lost by a crash."""

from __future__ import annotations

import os
import pathlib
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._catalogue import drills as _proven
from ansible_collections.pgfleet.basebackup.plugins.module_utils._catalogue.listing import catalogue
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.clock import utc
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record import Drill
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.record_file import (
    drill_result,
    parse_drill,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup, Repository

from tests.unit.helpers.backups import FILES, edit, files_below, make_backup, make_cluster
from tests.unit.helpers.crashes import crashes


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: the tests crash processes, not machines."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def published(folder: pathlib.Path, name: str = "b1") -> Backup:
    backup = make_backup(make_cluster(folder), name, state="complete")
    backup.publish()
    return backup


def drill(age: float = 0, ok: bool = True) -> Drill:
    at = utc(time.time() - age)
    return parse_drill({"at": at, "ok": ok, "by": "me", "host": "db", "last_transaction_at": f"data {age}"})


def entry(backup: Backup, proven_max_age: float | None = None) -> dict[str, t.Any]:
    """Return the catalogue's entry for the backup's cluster."""
    repository = Repository(backup.cluster.repository.path, read_only=True)
    (one,) = catalogue(repository, "main", None, None, proven_max_age)
    return one


def test_recorded_once(tmp_path: pathlib.Path) -> None:
    backup = published(tmp_path)
    before = backup.load()
    assert _proven.record(backup, drill(), check_mode=True) is True
    assert backup.load() == before
    one = drill()
    assert _proven.record(backup, one) is True
    for check_mode in (True, False):
        assert _proven.record(backup, one._replace(ok=False), check_mode) is False
    assert backup.load() == before._replace(drills=(one,))
    assert _proven.record(backup, one._replace(host="elsewhere")) is True
    assert files_below(backup.path) == FILES | {"backup.json"}


def test_the_newest_are_kept(tmp_path: pathlib.Path) -> None:
    backup = published(tmp_path)
    ages = [1000, 10, 900, 20, 800, 30, 700, 40, 600, 50, 500, 60]
    for age in ages:
        _proven.record(backup, drill(age))
    kept = [one.last_transaction_at for one in backup.load().drills]
    assert kept == [f"data {age}" for age in sorted(ages, reverse=True)[-_proven.KEPT_DRILLS :]]


def test_catalogue(tmp_path: pathlib.Path) -> None:
    backup = published(tmp_path)
    make_backup(backup.cluster, "b2", state="complete").publish()
    assert entry(backup)["proven_recently"] is None
    one = entry(backup, 60)
    assert one["proven_recently"] is False
    names = ("proven_at", "proven_by", "proven_until", "last_drill")
    assert [one["backups"][0][name] for name in names] == [None] * 4

    good, bad = drill(100), drill(0, ok=False)
    _proven.record(backup, good)
    _proven.record(backup, bad)
    one = entry(backup, 200)
    # A later failure does not revoke an earlier success; both are reported.
    assert [one["backups"][0][name] for name in names] == [good.at, "me on db", "data 100", drill_result(bad)]
    assert one["proven_recently"] is True
    assert [backup["proven_recently"] for backup in one["backups"]] == [True, False]
    assert entry(backup, 50)["proven_recently"] is False


@pytest.mark.parametrize("drills", [1, {"at": 1}, [1, None], [{"at": "yesterday", "ok": True}]])
def test_nonsense_in_the_record(tmp_path: pathlib.Path, drills: t.Any) -> None:
    """A bad record is damage like any other, and does not stop the listing."""
    backup = published(tmp_path)
    edit(backup, drills=drills)
    one = entry(backup, 60)
    assert (one["proven_recently"], one["backups"][0]["state"]) == (False, "damaged")
    assert "drills" in one["backups"][0]["problem"]


def test_refused(tmp_path: pathlib.Path) -> None:
    unfinished = make_backup(make_cluster(tmp_path), "b1", state="complete")
    with pytest.raises(BackupError) as caught:
        _proven.record(unfinished, drill())
    assert caught.value.code == "not_published"
    unfinished.publish()
    pathlib.Path(unfinished.file("backup.json")).write_text("{")
    with pytest.raises(BackupError) as caught:
        _proven.record(unfinished, drill())
    assert caught.value.code == "damaged_backup"


def test_crash_anywhere(tmp_path: pathlib.Path) -> None:
    """The record is either the old or the new one, and the backup stays published."""
    one = drill()
    found = set()
    for where, backup in crashes(tmp_path, published, lambda backup: _proven.record(backup, one)):
        record = backup.load()
        found.add(len(record.drills))
        assert (record.state, record.wal_proof is not None) == ("complete", True), where
        _proven.record(backup, one)
        assert backup.load().drills == (one,), where
    assert found == {0, 1}
