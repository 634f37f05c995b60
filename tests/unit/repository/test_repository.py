# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository: what it refuses, and its locks across processes."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import stat
import subprocess
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository import repository as _repository
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import (
    Backup,
    Cluster,
    Repository,
)

from tests.unit.helpers.backups import (
    FILES,
    IDENTIFIER,
    edit,
    files_below,
    make_backup,
    make_cluster,
    metadata,
    record_of,
)
from tests.unit.helpers.processes import held_by_another_process


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: the tests crash processes, not machines."""
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


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o1777, 0o703, 0o770, 0o720])
@pytest.mark.parametrize("name", ["repository", "repository/main", "repository/main/in_progress",
                                  "repository/main/backups", "repository/main/wal", "."])  # fmt: skip
def test_writable_for_others(tmp_path: pathlib.Path, name: str, mode: int) -> None:
    """The repository, each directory of a cluster, and what leads to it, where only a sticky one is good enough."""
    cluster = make_cluster(tmp_path)
    os.mkdir(cluster.archive, 0o700)
    place = tmp_path / name
    place.chmod(mode)
    if name == "." and mode == 0o1777:
        assert Repository(cluster.repository.path).cluster("main").unfinished() == []
        return
    with refused("unsafe_directory") as caught:
        Repository(cluster.repository.path).cluster("main")
    assert f"mode {mode:04o}" in caught.value.msg
    assert caught.value.hint == f"chmod go-w {place}"
    subprocess.run(caught.value.hint.split(), check=True)
    Repository(cluster.repository.path).cluster("main")


@pytest.mark.parametrize("name", ["repository", "repository/main", "repository/main/in_progress",
                                  "repository/main/backups", "repository/main/wal"])  # fmt: skip
def test_links_to_directories(tmp_path: pathlib.Path, name: str) -> None:
    cluster = make_cluster(tmp_path)
    os.mkdir(cluster.archive, 0o700)
    (tmp_path / name).rename(tmp_path / "real")
    (tmp_path / name).symlink_to(tmp_path / "real")
    with refused("unsafe_directory") as caught:
        Repository(str(tmp_path / "repository")).cluster("main")
    assert f"{tmp_path / name} is a symbolic link" in caught.value.msg
    assert str(tmp_path / "real") in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("name", ["repository/main", "repository/main/in_progress", "repository/main/backups",
                                  "repository/main/wal", "link", "."])  # fmt: skip
def test_owned_by_another_user(tmp_path: pathlib.Path, name: str) -> None:
    """A link that leads to the repository counts, too: its owner can make it lead elsewhere."""
    cluster = make_cluster(tmp_path)
    os.mkdir(cluster.archive, 0o700)
    (tmp_path / "link").symlink_to(".")
    os.lchown(tmp_path / name, 65534, 65534)
    with refused("unsafe_directory") as caught:
        Repository(str(tmp_path / "link" / "repository")).cluster("main")
    assert str(tmp_path / name) in caught.value.msg
    os.lchown(tmp_path / name, 0, 0)
    Repository(str(tmp_path / "link" / "repository")).cluster("main")


def test_repository_of_another_user(tmp_path: pathlib.Path) -> None:
    """In a child process without root's privileges: the tests may run as root, who can write anywhere."""
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
    """However the two paths are written, with links in either of them."""
    data = tmp_path / "data"
    (data / "backups").mkdir(parents=True, mode=0o700)
    (tmp_path / "data2").mkdir(mode=0o700)
    (tmp_path / "other").symlink_to(data)
    inside = [data, data / "backups", tmp_path / "other" / "backups", data / "backups" / ".."]
    for path in inside:
        for directory in (data, tmp_path / "other", data / "." / "base" / ".."):
            with refused("repository_inside_cluster"):
                Repository(str(path)).cluster("main").refuse_inside([b"/nowhere", os.fsencode(directory)])
    # A common prefix of the names is not a common directory.
    other = Repository(str(tmp_path / "data2")).cluster("main")
    other.refuse_inside([os.fsencode(data), os.fsencode(data / "backups")])


def test_modes_do_not_depend_on_the_umask(tmp_path: pathlib.Path) -> None:
    old = os.umask(0)
    try:
        (tmp_path / "repository").mkdir(mode=0o700)
        cluster = make_cluster(tmp_path)
        backup = cluster.new_backup(record_of(metadata()))
        with backup.hold(), cluster.lock():
            pass
    finally:
        os.umask(old)
    for path in pathlib.Path(cluster.path).rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# --- the cluster's identity ---


def test_other_cluster(cluster: Cluster) -> None:
    cluster.prepare(IDENTIFIER)
    assert cluster.system_identifier() == IDENTIFIER
    for refuse in (cluster.refuse_other, cluster.prepare):
        with refused("other_cluster") as caught:
            refuse("1")
        assert IDENTIFIER in caught.value.msg


def test_new_cluster_accepts_any_server(tmp_path: pathlib.Path) -> None:
    (tmp_path / "repository").mkdir(mode=0o700)
    cluster = Repository(str(tmp_path / "repository")).cluster("new")
    cluster.refuse_other("1")
    assert (cluster.system_identifier(), cluster.unfinished(), cluster.published()) == (None, [], [])
    assert list((tmp_path / "repository").iterdir()) == []


@pytest.mark.parametrize("content", ["{", '{"schema": 2}', "\udcff"])
def test_damaged_cluster(cluster: Cluster, content: str) -> None:
    """Damage stops everything that depends on the cluster's identity."""
    pathlib.Path(cluster.path, "cluster.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    for look in (cluster.system_identifier, lambda: cluster.refuse_other(IDENTIFIER), lambda: cluster.prepare("1")):
        with refused("damaged_cluster"):
            look()


@pytest.mark.parametrize("content", [b"{", b'{"schema": 2}'])
def test_damaged_backup(cluster: Cluster, content: bytes) -> None:
    backup = make_backup(cluster, state="complete")
    pathlib.Path(backup.file("backup.json")).write_bytes(content)
    with refused("damaged_backup") as caught:
        backup.load()
    assert backup.path in caught.value.msg
    with refused("damaged_backup"):
        backup.publish()
    backup.remove()
    assert cluster.unfinished() == []


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "huge"])
def test_record_that_is_not_an_ordinary_file(cluster: Cluster, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = make_backup(cluster, state="complete")
    place = pathlib.Path(backup.file("backup.json"))
    if kind == "huge":
        monkeypatch.setattr(_repository, "LARGEST_FILE", place.stat().st_size - 1)
    else:
        content = place.rename(place.with_name("elsewhere"))
        {"link": lambda: place.symlink_to(content), "pipe": lambda: os.mkfifo(place), "directory": place.mkdir}[kind]()
    with refused("damaged_backup"):
        backup.load()


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


# --- publish and remove refuse ---


@pytest.mark.parametrize("state", ["started", "stopped", "failed"])
def test_only_the_complete_is_published(cluster: Cluster, state: str) -> None:
    backup = make_backup(cluster, state="complete")
    edit(backup, state=state)
    with refused("not_complete"):
        backup.publish()
    assert cluster.published() == []


@pytest.mark.parametrize("state", ["started", "stopped", "failed"])
def test_published_and_not_complete(cluster: Cluster, state: str) -> None:
    backup = make_backup(cluster, state="complete")
    backup.publish()
    edit(backup, state=state)
    with refused("damaged_backup") as caught:
        backup.load()
    assert f"state is {state}" in caught.value.msg


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


# --- locks ---


def test_lock_of_another_process(cluster: Cluster) -> None:
    backup = make_backup(cluster)
    assert not backup.is_worked_on()
    with held_by_another_process(backup.file("lock")):
        assert backup.is_worked_on()
        with refused("busy") as caught:
            with backup.hold(0.0):
                pass
        assert backup.file("lock") in caught.value.hint
    assert not backup.is_worked_on()
    with backup.hold(0.0):
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
    with make_backup(cluster).hold() as handle:
        assert not os.get_inheritable(handle)


def test_work_on_a_removed_backup(cluster: Cluster) -> None:
    backup = make_backup(cluster)
    gone = Backup(cluster, "b1", published=False)
    backup.remove()
    with refused("unknown_backup"):
        with gone.hold():
            pass
    assert not gone.is_worked_on()


def test_error_as_result() -> None:
    error = BackupError("What.", code="why", hint="How.", free=1)
    assert error.as_result() == {"msg": "What. How.", "code": "why", "hint": "How.", "free": 1}
    assert json.dumps(error.as_result())
