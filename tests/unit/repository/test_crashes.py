# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A crash at every step of each change of the repository, and two changes at once."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import select
import typing as t
from unittest import mock

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import files as _host_files
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import repository as _repository
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    Repository,
)

from tests.unit.helpers.backups import FILES, IDENTIFIER, files_below, make_backup, make_cluster, metadata, record_of
from tests.unit.helpers.crashes import crash_at, crashes


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: the tests crash processes, not machines."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_content_is_durable_before_it_counts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut requires this order: content, then name, then the name's directory."""
    order: list[str] = []
    names: dict[int, str] = {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def opened(path: str, *args: t.Any, **kwargs: t.Any) -> int:
        handle = real_open(path, *args, **kwargs)
        names[handle] = os.path.basename(path)
        return handle

    def synced(handle: int) -> None:
        order.append(f"fsync {names[handle]}")
        real_fsync(handle)

    def renamed(source: str, target: str) -> None:
        order.append(f"rename {os.path.basename(source)} {os.path.basename(target)}")
        real_rename(source, target)

    with mock.patch.object(os, "open", opened), mock.patch.object(os, "fsync", synced):
        with mock.patch.object(os, "rename", renamed):
            monkeypatch.setattr("secrets.token_hex", lambda count: "0")
            _host_files.write_json(str(tmp_path / "x.json"), {})
            assert order == ["fsync x.json.0.tmp", "rename x.json.0.tmp x.json", f"fsync {tmp_path.name}"]
            backup = make_backup(make_cluster(tmp_path), state="complete")
            order.clear()
            backup.publish()
    assert order == ["fsync b1", "rename b1 b1", "fsync backups", "fsync in_progress"]


def test_publish_after_a_crash_anywhere(tmp_path: pathlib.Path) -> None:
    wanted = FILES | {"backup.json"}
    outcomes = set()
    for where, cluster in crashes(tmp_path, _complete, lambda cluster: cluster.get("b1").publish()):
        fresh = Repository(cluster.repository.path).cluster("main")
        for published in fresh.published():
            assert files_below(published.path) == wanted, where
        backup = fresh.get("b1")
        outcomes.add(backup.published)
        if not backup.published:
            assert wanted <= files_below(backup.path), where
            with backup.hold():
                backup.publish()
        assert (fresh.unfinished(), [one.id for one in fresh.published()]) == ([], ["b1"]), where
        assert files_below(fresh.get("b1").path) == wanted, where
        assert fresh.get("b1").load().state == "complete", where
    assert outcomes == {False, True}


def _complete(folder: pathlib.Path) -> Cluster:
    cluster = make_cluster(folder)
    make_backup(cluster, state="complete")
    return cluster


@pytest.mark.parametrize("full", [False, True], ids=["room", "disk full"])
def test_remove_after_a_crash_anywhere(tmp_path: pathlib.Path, full: bool) -> None:
    """A half-removed backup can never be published, and the next removal finishes the work."""
    disk = disk_full if full else contextlib.nullcontext

    def work(cluster: Cluster) -> None:
        with disk():
            cluster.get("b1").remove()

    for where, cluster in crashes(tmp_path, _complete, work):
        fresh = Repository(cluster.repository.path).cluster("main")
        assert fresh.published() == [], where
        for backup in fresh.unfinished():
            if not files_below(backup.path) >= FILES:
                assert not _could_be_published(backup), where
            backup.remove()
        assert os.listdir(fresh.in_progress) == [], where


def _could_be_published(backup: Backup) -> bool:
    """Whether publish would accept the backup: see _publish.refuse_unproven."""
    try:
        return backup.load().state == "complete" and os.path.isfile(backup.file("data", "backup_label"))
    except BackupError:
        return False


@contextlib.contextmanager
def disk_full() -> t.Iterator[None]:
    """Fail every write to a file."""

    def refuse(path: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with mock.patch.object(_repository, "write_bytes", refuse):
        yield


def test_start_after_a_crash_anywhere(tmp_path: pathlib.Path) -> None:
    """A directory without its metadata has a name, belongs to no run, and can be removed."""

    def work(cluster: Cluster) -> None:
        with cluster.lock():
            cluster.new_backup(record_of(metadata()))

    for where, cluster in crashes(tmp_path, make_cluster, work):
        for backup in cluster.unfinished():
            with contextlib.suppress(BackupError):
                assert backup.load().state == "started"
            backup.remove()
        assert os.listdir(cluster.in_progress) == [], where
        work(cluster)


def test_first_use_after_a_crash_anywhere(tmp_path: pathlib.Path) -> None:
    def prepare(folder: pathlib.Path) -> Cluster:
        (folder / "repository").mkdir(mode=0o700)
        return Repository(str(folder / "repository")).cluster("main")

    for where, cluster in crashes(tmp_path, prepare, lambda cluster: cluster.prepare(IDENTIFIER)):
        assert cluster.system_identifier() in (None, IDENTIFIER), where
        cluster.prepare(IDENTIFIER)
        assert cluster.system_identifier() == IDENTIFIER, where


def test_first_use_by_two_at_once(tmp_path: pathlib.Path) -> None:
    """Another run creates the same directory between the check and the creation."""
    (tmp_path / "repository").mkdir(mode=0o700)
    cluster = Repository(str(tmp_path / "repository")).cluster("main")
    real = os.mkdir

    def raced(path: str, mode: int = 0o777) -> None:
        real(path, mode)
        real(path, mode)

    with mock.patch.object(os, "mkdir", raced):
        cluster.prepare(IDENTIFIER)
    assert cluster.system_identifier() == IDENTIFIER


@pytest.mark.parametrize("first", ["publish", "remove"])
def test_remove_and_publish_at_once(tmp_path: pathlib.Path, first: str) -> None:
    """One begins between any two steps of the other: the backup is whole and published, or not published."""
    work = {"publish": Backup.publish, "remove": Backup.remove}
    second = work.pop("remove" if first == "publish" else "publish")
    outcomes = set()
    for step in range(1, 100):
        folder = tmp_path / str(step)
        folder.mkdir()
        cluster = _complete(folder)
        begun: list[None] = []
        with _another_process(lambda: second(cluster.get("b1"))) as begin:  # noqa: B023  # called in this iteration
            with crash_at(step, lambda: begun.append(begin())):  # noqa: B023
                with contextlib.suppress(BackupError, OSError):
                    work[first](Backup(cluster, "b1", published=False))
        for backup in cluster.published():
            assert files_below(backup.path) - {"lock"} == FILES | {"backup.json"}, folder.name
            assert backup.load().state == "complete", folder.name
        outcomes.add(bool(cluster.published()))
        if not begun:
            break
    assert step > 5
    assert outcomes == {False, True}


@contextlib.contextmanager
def _another_process(work: t.Callable[[], t.Any]) -> t.Iterator[t.Callable[[], None]]:
    """Yield a function that runs ``work`` in another process.

    The function returns when the work is done or has waited for a moment. The process is forked before anything is
    locked, since it would inherit the lock.
    """
    go_read, go_write = os.pipe()
    alive_read, alive_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go_write)
            if os.read(go_read, 1):
                work()
        finally:
            os._exit(0)
    os.close(go_read)
    os.close(alive_write)

    def begin() -> None:
        os.write(go_write, b".")
        select.select([alive_read], [], [], 0.1)

    try:
        yield begin
    finally:
        os.close(go_write)
        os.waitpid(pid, 0)
        os.close(alive_read)
