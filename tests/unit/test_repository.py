# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository: refusals, locks across processes, and a crash at every step of each change."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import select
import stat
import typing as t
from unittest import mock

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils import _repository
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import Backup, Cluster, Repository
from ansible_collections.pgfleet.basebackup.tests.unit.helpers_unit import (
    FILES,
    IDENTIFIER,
    crash_at,
    crashes,
    files_below,
    held_by_another_process,
    make_backup,
    make_cluster,
)


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: what a test lets crash is a process."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Cluster:
    return make_cluster(tmp_path)


def refused(code: str) -> t.Any:
    """Expect a refusal with this code."""

    @contextlib.contextmanager
    def expect() -> t.Iterator[pytest.ExceptionInfo[BackupError]]:
        with pytest.raises(BackupError) as caught:
            yield caught
        assert caught.value.code == code, caught.value.msg

    return expect()


# --- names and places ---


@pytest.mark.parametrize("name", ["a", "main", "db-1.example.com", "20261122T081500Z-full", "0_a", "x" * 100])
def test_good_names(name: str) -> None:
    _repository.check_name(name, "The name")


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "-x", "_x", "a/b", "a b", "a\n", "a\0", "é", "٣", "x" * 101, "../x", "a\\b"]
)
def test_bad_names(name: str, cluster: Cluster) -> None:
    with refused("bad_name"):
        cluster.repository.cluster(name)
    with refused("bad_name"):
        cluster.find(name)


@pytest.mark.parametrize("path", ["backups", "./backups", "~/backups", ""])
def test_relative_repository(path: str) -> None:
    with refused("repository_relative"):
        Repository(path)


def test_missing_repository_and_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    for name in ("no", "file"):
        with refused("repository_missing") as caught:
            Repository(str(tmp_path / name))
    assert "install -d -m 0700" in caught.value.hint


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o1777, 0o703])
def test_world_writable_repository(tmp_path: pathlib.Path, mode: int) -> None:
    place = tmp_path / "repository"
    place.mkdir()
    place.chmod(mode)
    link = tmp_path / "link"
    link.symlink_to(place)
    for path in (place, link):
        with refused("repository_world_writable"):
            Repository(str(path))


def test_repository_of_another_user(tmp_path: pathlib.Path) -> None:
    """In a child that gives up its rights: the tests may run as root, who may write everywhere."""
    place = tmp_path / "repository"
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    if os.geteuid() != 0:
        place.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents):
        if os.stat(parent).st_uid == os.geteuid() and parent != pathlib.Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            Repository(str(place), read_only=True)
            try:
                Repository(str(place))
            except BackupError as exc:
                status = 0 if exc.code == "repository_not_writable" and str(os.geteuid()) in exc.msg else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_repository_inside_the_cluster(tmp_path: pathlib.Path) -> None:
    """However the two are spelt: through links on either side."""
    data = tmp_path / "data"
    (data / "backups").mkdir(parents=True, mode=0o700)
    (tmp_path / "data2").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(data / "backups")
    (tmp_path / "other").symlink_to(data)
    inside = [data, data / "backups", tmp_path / "link", tmp_path / "other" / "backups", data / "backups" / ".."]
    for path in inside:
        for directory in (data, tmp_path / "other", data / "." / "base" / ".."):
            with refused("repository_inside_cluster"):
                Repository(str(path)).refuse_inside([b"/nowhere", os.fsencode(directory)])
    # A common beginning of the name is not a common directory.
    Repository(str(tmp_path / "data2")).refuse_inside([os.fsencode(data), os.fsencode(data / "backups")])


def test_modes_do_not_depend_on_the_umask(tmp_path: pathlib.Path) -> None:
    old = os.umask(0)
    try:
        (tmp_path / "repository").mkdir(mode=0o700)
        cluster = make_cluster(tmp_path)
        backup = cluster.new_backup("b1", {"state": "started"})
        with backup.work(), cluster.lock():
            pass
    finally:
        os.umask(old)
    for path in pathlib.Path(cluster.path).rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# --- whose cluster ---


def test_other_cluster(cluster: Cluster) -> None:
    cluster.prepare(IDENTIFIER)
    assert cluster.system_identifier() == IDENTIFIER
    for refuse in (cluster.refuse_other, cluster.prepare):
        with refused("other_cluster") as caught:
            refuse("1")
        assert IDENTIFIER in caught.value.msg


def test_new_cluster_is_anybodys(tmp_path: pathlib.Path) -> None:
    (tmp_path / "repository").mkdir(mode=0o700)
    cluster = Repository(str(tmp_path / "repository")).cluster("new")
    cluster.refuse_other("1")
    assert (cluster.system_identifier(), cluster.unfinished(), cluster.published()) == (None, [], [])
    assert list((tmp_path / "repository").iterdir()) == []


@pytest.mark.parametrize(
    "content, code",
    [
        ('{"schema": 2, "system_identifier": "1"}', "newer_schema"),
        ('{"schema": 1', "damaged_cluster"),
        ("", "damaged_cluster"),
        ("[]", "damaged_cluster"),
        ('{"schema": 1}', "damaged_cluster"),
        ('{"schema": "x", "system_identifier": "1"}', "damaged_cluster"),
        ("\udcff", "damaged_cluster"),
    ],
)
def test_damaged_cluster(cluster: Cluster, content: str, code: str) -> None:
    pathlib.Path(cluster.path, "cluster.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    for look in (cluster.system_identifier, lambda: cluster.refuse_other(IDENTIFIER), lambda: cluster.prepare("1")):
        with refused(code):
            look()


@pytest.mark.parametrize(
    "content, code",
    [
        (b'{"schema": 2, "backup_id": "b1"}', "newer_schema"),
        (b'{"schema": 1, "backup_id": "b2"}', "damaged_backup"),
        (b'{"schema": 1}', "damaged_backup"),
        (b'{"backup_id": "b1"}', "damaged_backup"),
        (b"\xff", "damaged_backup"),
        (b'{"schema": 1, "backup_id": "b1"', "damaged_backup"),
        (None, "damaged_backup"),
    ],
)
def test_damaged_backup(cluster: Cluster, content: bytes | None, code: str) -> None:
    backup = make_backup(cluster, state="complete")
    place = pathlib.Path(backup.file("backup.json"))
    place.unlink() if content is None else place.write_bytes(content)
    with refused(code) as caught:
        backup.load()
    assert backup.path in caught.value.msg
    with refused(code):
        backup.publish()
    backup.remove()
    assert cluster.unfinished() == []


def test_only_names_of_ours_are_seen(cluster: Cluster) -> None:
    make_backup(cluster)
    for name in (".hidden", "a b", "-x"):
        pathlib.Path(cluster.in_progress, name).mkdir()
        pathlib.Path(cluster.repository.path, name).mkdir()
    assert [backup.id for backup in cluster.unfinished()] == ["b1"]
    assert cluster.repository.cluster_names() == ["main"]
    found = cluster.find("b1")
    assert found is not None
    assert not found.published
    with refused("unknown_backup"):
        cluster.get("b2")


def test_json_keeps_any_path(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "x.json")
    content = {"path": os.fsdecode(b"caf\xe9"), "n": 1.5, "none": None}
    _repository.write_json(path, content)
    assert _repository.read_json(path) == content
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


# --- crashes ---


def test_json_is_replaced_as_a_whole(tmp_path: pathlib.Path) -> None:
    old, new = {"state": "old", "much": "x" * 10000}, {"state": "new"}

    def prepare(folder: pathlib.Path) -> str:
        path = str(folder / "x.json")
        _repository.write_json(path, old)
        return path

    seen = set()
    for where, path in crashes(tmp_path, prepare, lambda path: _repository.write_json(path, new)):
        content = _repository.read_json(path)
        assert content in (old, new), where
        seen.add(content["state"])
        _repository.write_json(path, new)
        assert (_repository.read_json(path), os.listdir(os.path.dirname(path))) == (new, ["x.json"]), where
    assert seen == {"old", "new"}


def test_content_is_durable_before_it_counts(tmp_path: pathlib.Path) -> None:
    """The order that a power cut does not forgive: content, then name, then the name's directory."""
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
            _repository.write_json(str(tmp_path / "x.json"), {})
            assert order == ["fsync x.json.tmp", "rename x.json.tmp x.json", f"fsync {tmp_path.name}"]
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
            with backup.work():
                backup.publish()
        assert (fresh.unfinished(), [one.id for one in fresh.published()]) == ([], ["b1"]), where
        assert files_below(fresh.get("b1").path) == wanted, where
        assert fresh.get("b1").load()["state"] == "complete", where
    assert outcomes == {False, True}


def _complete(folder: pathlib.Path) -> Cluster:
    cluster = make_cluster(folder)
    make_backup(cluster, state="complete")
    return cluster


@pytest.mark.parametrize("full", [False, True], ids=["room", "disk full"])
def test_remove_after_a_crash_anywhere(tmp_path: pathlib.Path, full: bool) -> None:
    """What is half removed can never be published, and the next removal ends it."""
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
    """Whether publish would take it: see _publish.refuse_unproven."""
    try:
        return backup.load()["state"] == "complete" and os.path.isfile(backup.file("data", "backup_label"))
    except BackupError:
        return False


@contextlib.contextmanager
def disk_full() -> t.Iterator[None]:
    """Refuse every file that would have to be written."""

    def refuse(path: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with mock.patch.object(_repository, "write_bytes", refuse):
        yield


def test_start_after_a_crash_anywhere(tmp_path: pathlib.Path) -> None:
    """A directory without its metadata has a name, is nobody's backup, and can be removed."""

    def work(cluster: Cluster) -> None:
        with cluster.lock():
            cluster.new_backup("b1", {"state": "started"})

    for where, cluster in crashes(tmp_path, make_cluster, work):
        for backup in cluster.unfinished():
            with contextlib.suppress(BackupError):
                assert backup.load()["state"] == "started"
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
    """Another run makes the same directory between the look and the making."""
    (tmp_path / "repository").mkdir(mode=0o700)
    cluster = Repository(str(tmp_path / "repository")).cluster("main")
    real = os.mkdir

    def raced(path: str, mode: int = 0o777) -> None:
        real(path, mode)
        real(path, mode)

    with mock.patch.object(os, "mkdir", raced):
        cluster.prepare(IDENTIFIER)
    assert cluster.system_identifier() == IDENTIFIER


# --- publish and remove refuse ---


@pytest.mark.parametrize("state", ["started", "stopped", "failed", None])
def test_only_the_complete_is_published(cluster: Cluster, state: str | None) -> None:
    backup = make_backup(cluster, state="complete")
    backup.save({**backup.load(), "state": state})
    with refused("not_complete"):
        backup.publish()
    assert cluster.published() == []


def test_published_is_left_alone(cluster: Cluster) -> None:
    backup = make_backup(cluster, state="complete")
    backup.publish()
    assert files_below(backup.path) == FILES | {"backup.json"}
    assert not backup.is_worked_on()
    with refused("published"):
        backup.remove()
    with refused("unknown_backup"):
        backup.publish()
    again = make_backup(cluster, state="complete")
    with refused("backup_exists"):
        again.publish()
    assert files_below(cluster.get("b1").path) == FILES | {"backup.json"}


@pytest.mark.parametrize("first", ["publish", "remove"])
def test_remove_and_publish_at_once(tmp_path: pathlib.Path, first: str) -> None:
    """Between any two steps of one the other begins: the backup is whole and published, or it is not published."""
    work = {"publish": Backup.publish, "remove": Backup.remove}
    second = work.pop("remove" if first == "publish" else "publish")
    outcomes = set()
    for step in range(1, 100):
        folder = tmp_path / str(step)
        folder.mkdir()
        cluster = _complete(folder)
        begun: list[None] = []
        with _another_process(lambda: second(cluster.get("b1"))) as begin:  # noqa: B023  # called in this turn
            with crash_at(step, lambda: begun.append(begin())):  # noqa: B023
                with contextlib.suppress(BackupError, OSError):
                    work[first](Backup(cluster, "b1", published=False))
        for backup in cluster.published():
            assert files_below(backup.path) - {"lock"} == FILES | {"backup.json"}, folder.name
            assert backup.load()["state"] == "complete", folder.name
        outcomes.add(bool(cluster.published()))
        if not begun:
            break
    assert step > 5
    assert outcomes == {False, True}


@contextlib.contextmanager
def _another_process(work: t.Callable[[], t.Any]) -> t.Iterator[t.Callable[[], None]]:
    """Give a function that has another process do ``work``.

    It returns when the work is done or has waited for something for a moment. The process is forked before anything is
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


# --- locks ---


def test_lock_of_another_process(cluster: Cluster) -> None:
    backup = make_backup(cluster)
    assert not backup.is_worked_on()
    with held_by_another_process(backup.file("lock")):
        assert backup.is_worked_on()
        with refused("busy") as caught:
            with backup.work(0.0):
                pass
        assert backup.file("lock") in caught.value.hint
    assert not backup.is_worked_on()
    with backup.work(0.0):
        assert backup.is_worked_on()
    assert not backup.is_worked_on()


def test_catalogue_lock_of_another_process(cluster: Cluster) -> None:
    with held_by_another_process(os.path.join(cluster.path, "lock")):
        with refused("catalogue_locked"):
            with cluster.lock(0.1):
                pass
    with cluster.lock(0.0):
        pass


def test_a_killed_holder_lets_go(cluster: Cluster) -> None:
    with held_by_another_process(os.path.join(cluster.path, "lock")) as pid:
        os.kill(pid, 9)
        with cluster.lock(5.0):
            pass


def test_lock_is_not_inherited(cluster: Cluster) -> None:
    with make_backup(cluster).work() as handle:
        assert not os.get_inheritable(handle)


def test_work_on_a_backup_that_is_gone(cluster: Cluster) -> None:
    backup = make_backup(cluster)
    gone = Backup(cluster, "b1", published=False)
    backup.remove()
    with refused("unknown_backup"):
        with gone.work():
            pass
    assert not gone.is_worked_on()


def test_no_lock_file_is_no_lock(tmp_path: pathlib.Path) -> None:
    assert not _repository.is_locked(str(tmp_path / "none"))


def test_error_as_result() -> None:
    error = BackupError("What.", code="why", hint="How.", free=1)
    assert error.as_result() == {"msg": "What. How.", "code": "why", "hint": "How.", "free": 1}
    assert json.dumps(error.as_result())
