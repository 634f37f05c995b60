# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exclusion rules of a backup, per version, on small data directories.

tests/integration/test_pure_against_server.py shows that these are the server's rules.
"""

from __future__ import annotations

import errno
import os
import pathlib
import socket
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import tree as _datadir
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import Special, Tablespace
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

MAJORS = [14, 15, 16, 17, 18]
CATALOG = 202506291


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """A minimal data directory."""
    root = tmp_path / "data"
    for name in ("base/1", "base/5", "global", "pg_wal/archive_status", "pg_tblspc", "pg_notify"):
        (root / name).mkdir(parents=True)
    put(root, "PG_VERSION", "global/pg_control", "pg_wal/000000010000000000000001", "pg_notify/0000")
    return root


def put(root: pathlib.Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def scan(root: pathlib.Path, major: int = 18, **options: t.Any) -> _datadir.Scan:
    return _datadir.scan(os.fsencode(root), major, CATALOG, **options)


def paths(found: _datadir.Scan) -> t.Set[str]:
    names = {os.fsdecode(entry.path) for entry in found.files}
    assert len(names) == len(found.files) == found.total_files
    assert found.total_bytes == sum(entry.size for entry in found.files)
    for entry in found.files:
        assert os.stat(entry.source).st_size == entry.size
    return names


def directories(found: _datadir.Scan) -> t.Set[str]:
    names = [os.fsdecode(path) for path in found.directories]
    assert len(set(names)) == len(names)
    for name in names:
        parent = os.path.dirname(name)
        assert not parent or names.index(parent) < names.index(name)
    return set(names)


BASE = {"base", "base/1", "base/5", "global", "pg_wal", "pg_wal/archive_status", "pg_tblspc", "pg_notify"}


@pytest.mark.parametrize("major", MAJORS)
def test_the_least(data: pathlib.Path, major: int) -> None:
    found = scan(data, major)
    assert paths(found) == {"PG_VERSION"}
    assert directories(found) == BASE | ({"pg_wal/summaries"} if major >= 17 else set())
    assert found.specials == []
    assert found.tablespaces == []
    assert found.data_directory == os.fsencode(data)


@pytest.mark.parametrize("name", ["", "sub", "base", "base/5", "global", "base/pg_notify_not"])
@pytest.mark.parametrize("major", MAJORS)
def test_names_left_out_anywhere(data: pathlib.Path, major: int, name: str) -> None:
    gone = """pgsql_tmp pgsql_tmp1.0 pgsql_tmp_dir/x postgresql.auto.conf.tmp current_logfiles.tmp backup_label
        tablespace_map backup_manifest postmaster.pid postmaster.opts pg_internal.init pg_internal.init.12""".split()  # noqa: SIM905
    kept = """current_logfiles backup_label.old tablespace_map.old standby.signal recovery.signal log/x pgsql_tm
        postgresql.auto.conf postmaster.pid.old xpostmaster.pid pg_internal.ini Backup_label DS_Store""".split()  # noqa: SIM905
    (kept if major == 14 else gone).append(".DS_Store")
    put(data / name, *gone, *kept)
    assert paths(scan(data, major)) == {"PG_VERSION"} | {os.path.join(name, path) for path in kept}
    for path in gone:
        assert _datadir.is_excluded(os.fsencode(path.partition("/")[0]), major)


@pytest.mark.parametrize("name", ["", "sub", "base/5", "pg_tblspc"])
def test_directories_emptied_anywhere(data: pathlib.Path, name: str) -> None:
    emptied = "pg_stat_tmp pg_replslot pg_dynshmem pg_notify pg_serial pg_snapshots pg_subtrans".split()  # noqa: SIM905
    for directory in emptied:
        put(data / name, f"{directory}/file", f"{directory}/deep/file")
    put(data / name, "pg_stat/file", "pg_logical/file")
    (data / "links").mkdir()
    for number, directory in enumerate(emptied):
        (data / "links" / directory).symlink_to(["/tmp", "/nonexistent", "../PG_VERSION"][number % 3])
    found = scan(data)
    expected = {os.path.join(name, path) for path in ("pg_stat/file", "pg_logical/file")}
    assert paths(found) == {"PG_VERSION"} | expected
    assert {os.path.join(name, path) for path in emptied} <= directories(found)
    assert {os.path.join("links", path) for path in emptied} <= directories(found)
    assert found.specials == []


def test_a_file_with_the_name_of_an_emptied_directory(data: pathlib.Path) -> None:
    put(data, "sub/pg_notify")
    assert "sub/pg_notify" in paths(scan(data))


def test_only_the_pg_wal_of_the_cluster_is_emptied(data: pathlib.Path) -> None:
    put(data, "sub/pg_wal/kept")
    assert "sub/pg_wal/kept" in paths(scan(data))


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("dangling", [False, True])
def test_pg_wal_as_a_link(data: pathlib.Path, tmp_path: pathlib.Path, follow: bool, dangling: bool) -> None:
    (data / "pg_wal").rename(tmp_path / "wal")
    (data / "pg_wal").symlink_to(tmp_path / ("nothing" if dangling else "wal"))
    found = scan(data, follow_symlinks=follow)
    assert paths(found) == {"PG_VERSION"}
    assert directories(found) == BASE | {"pg_wal/summaries"}
    assert found.specials == []


@pytest.mark.parametrize(
    "setting, name",
    [
        (b"stats", "stats"),
        (b"./stats/", "stats"),
        (b"deep/stats", "deep/stats"),
        (b"%(data)s/stats", "stats"),
        (b"%(data)s_other/stats", None),
        (b"/var/run/stats", None),
        (b"", None),
    ],
)
@pytest.mark.parametrize("major", [14, 15])
def test_stats_temp_directory(data: pathlib.Path, major: int, setting: bytes, name: t.Optional[str]) -> None:
    put(data, "stats/db_0.stat", "deep/stats/db_0.stat", "sub/stats/db_0.stat")
    setting = setting.replace(b"%(data)s", os.fsencode(data))
    every = {"PG_VERSION", "stats/db_0.stat", "deep/stats/db_0.stat", "sub/stats/db_0.stat"}
    gone = {f"{name}/db_0.stat"} if major == 14 else set()
    found = scan(data, major, stats_temp_directory=setting)
    assert paths(found) == every - gone
    assert {"stats", "deep/stats", "sub/stats"} <= directories(found)


@pytest.mark.parametrize("major", MAJORS)
def test_unlogged_and_temporary_relations(data: pathlib.Path, major: int) -> None:
    names = ["7", "7.1", "7_fsm", "7_vm.1", "7_init", "7_init.1", "70", "8_init", "9_fsm", "7_x", "t1_7", "t1_7_init"]
    unlogged = {"7", "7.1", "7_fsm", "7_vm.1"}
    temporary = {"t1_7", "t1_7_init"}
    for directory in ("base/5", "global", "sub", "base", "base/5/sub"):
        put(data, *(f"{directory}/{name}" for name in names))
    found = paths(scan(data, major))

    def left(directory: str) -> t.Set[str]:
        return set(names) - {os.path.basename(path) for path in found if os.path.dirname(path) == directory}

    assert left("base/5") == unlogged | temporary
    assert left("global") == (unlogged if major >= 17 else set())
    assert left("sub") == left("base") == left("base/5/sub") == set()


def test_a_link_with_an_unlogged_name_counts_as_nothing(data: pathlib.Path) -> None:
    put(data, "base/5/7", "base/5/7_init")
    (data / "base/5/7_fsm").symlink_to("7")
    found = scan(data)
    assert paths(found) == {"PG_VERSION", "base/5/7_init"}
    assert found.specials == []


def make_tablespaces(data: pathlib.Path, tmp_path: pathlib.Path, major: int) -> t.List[Tablespace]:
    version = f"PG_{major}_{CATALOG}"
    outside, inside, in_place = tmp_path / "out side", data / "inside", data / "pg_tblspc/16386"
    for root in (outside, inside, in_place):
        put(root, f"{version}/5/16390", f"{version}/5/7", f"{version}/5/7_init", f"{version}/5/t3_7")
        put(root, f"{version}/pgsql_tmp/x", "stray", "PG_13_202007201/5/1")
    (data / "pg_tblspc/16384").symlink_to(outside)
    (data / "pg_tblspc/16385").symlink_to(inside)
    return [
        Tablespace(16384, os.fsencode(outside), False),
        Tablespace(16385, os.fsencode(inside), False),
        Tablespace(16386, os.fsencode(in_place), True),
    ]


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("major", MAJORS)
def test_tablespaces(data: pathlib.Path, tmp_path: pathlib.Path, major: int, follow: bool) -> None:
    expected = make_tablespaces(data, tmp_path, major)
    found = scan(data, major, follow_symlinks=follow)
    assert found.tablespaces == expected
    assert found.specials == []
    version = f"PG_{major}_{CATALOG}"
    files = {f"pg_tblspc/{oid}/{version}/5/{name}" for oid in (16384, 16385, 16386) for name in ("16390", "7_init")}
    if major < 16:
        files |= {"pg_tblspc/16386/stray", "pg_tblspc/16386/PG_13_202007201/5/1"}
    assert paths(found) == files | {"PG_VERSION"}
    assert {"inside", "pg_tblspc/16384", "pg_tblspc/16385", "pg_tblspc/16386"} <= directories(found)
    assert f"pg_tblspc/16385/{version}/5" in directories(found)
    assert not any(path.startswith("inside/") for path in directories(found))
    sources = {entry.path: entry.source for entry in found.files}
    path = os.fsencode(f"pg_tblspc/16384/{version}/5/16390")
    assert sources[path] == expected[0].location + os.fsencode(f"/{version}/5/16390")


def test_the_control_file_is_copied_apart_whatever_it_is(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(data, "sub/global/pg_control", "global/pg_control.old")
    (data / "global/pg_control").rename(tmp_path / "pg_control")
    (data / "global/pg_control").symlink_to(tmp_path / "pg_control")
    found = scan(data, follow_symlinks=True)
    assert paths(found) == {"PG_VERSION", "sub/global/pg_control", "global/pg_control.old"}
    assert found.specials == []


def test_relative_link_to_a_tablespace(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(tmp_path / "tablespaces/16384", f"PG_18_{CATALOG}/5/1")
    (data / "pg_tblspc/16384").symlink_to("../../tablespaces/16384")
    found = scan(data)
    assert found.tablespaces == [Tablespace(16384, os.fsencode(tmp_path / "tablespaces/16384"), False)]
    assert f"pg_tblspc/16384/PG_18_{CATALOG}/5/1" in paths(found)


def test_tablespace_whose_disk_is_missing(data: pathlib.Path) -> None:
    (data / "pg_tblspc/16384").symlink_to("/nonexistent/disk")
    found = scan(data, follow_symlinks=True)
    assert found.tablespaces == [Tablespace(16384, b"/nonexistent/disk", False)]
    assert found.specials == [Special(b"pg_tblspc/16384", "symlink", b"/nonexistent/disk")]
    assert "pg_tblspc/16384" in directories(found)


def test_strange_names_among_the_tablespaces(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(tmp_path / "space", f"PG_18_{CATALOG}/5/1")
    for name in ("x16384", "016384"):
        (data / "pg_tblspc" / name).symlink_to(tmp_path / "space")
    put(data, "pg_tblspc/file", "pg_tblspc/folder/file", "pg_tblspc/16385")
    found = scan(data)
    assert found.tablespaces == []
    assert {special.path for special in found.specials} == {b"pg_tblspc/x16384", b"pg_tblspc/016384"}
    assert paths(found) == {"PG_VERSION", "pg_tblspc/file", "pg_tblspc/folder/file", "pg_tblspc/16385"}


def test_special_files_are_reported(data: pathlib.Path) -> None:
    os.mkfifo(data / "fifo")
    (data / "link").symlink_to("PG_VERSION")
    (data / "sub").mkdir()
    (data / "sub/dangling").symlink_to(b"caf\xe9")
    (data / "directory").symlink_to("base")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(data / "socket"))
    # Excluded names are not reported.
    (data / "postmaster.pid").symlink_to("/nonexistent")
    os.mkfifo(data / "pgsql_tmp_fifo")
    found = scan(data)
    assert paths(found) == {"PG_VERSION"}
    assert sorted(found.specials) == [
        Special(b"directory", "symlink", b"base"),
        Special(b"fifo", "fifo", b""),
        Special(b"link", "symlink", b"PG_VERSION"),
        Special(b"socket", "socket", b""),
        Special(b"sub/dangling", "symlink", b"caf\xe9"),
    ]


def test_following_links(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(tmp_path / "elsewhere", "conf", "5/7", "5/7_init", "5/16390", "5/t3_1", "deep/file", "deep/pg_notify/x")
    (tmp_path / "elsewhere/deep/again").symlink_to("..")
    (tmp_path / "elsewhere/conf.link").symlink_to("conf")
    (data / "postgresql.conf").symlink_to(tmp_path / "elsewhere/conf.link")
    (data / "base/7").symlink_to(tmp_path / "elsewhere/5")
    (data / "folder").symlink_to(tmp_path / "elsewhere/deep")
    (data / "dangling").symlink_to("nowhere")
    (data / "loop").symlink_to("loop")
    os.mkfifo(data / "fifo")
    (data / "to_fifo").symlink_to("fifo")
    found = scan(data, follow_symlinks=True)
    assert paths(found) >= {
        "PG_VERSION", "postgresql.conf", "base/7/7_init", "base/7/16390", "folder/file", "folder/again/conf",
    }  # fmt: skip
    assert not paths(found) & {"base/7/7", "base/7/t3_1", "folder/pg_notify/x"}
    assert {"base/7", "folder", "folder/pg_notify", "folder/again"} <= directories(found)
    assert {special.path for special in found.specials} >= {b"dangling", b"loop", b"fifo", b"to_fifo"}
    followed = {os.fsdecode(entry.path) for entry in found.files if entry.followed}
    assert followed == paths(found) - {"PG_VERSION"}


def test_no_link_brings_anything_in_twice(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(data, "base/5/1259")
    make_tablespaces(data, tmp_path, 18)
    plain = scan(data)
    targets = [
        "base",
        ".",
        "..",
        "/",
        "pg_wal",
        "pg_notify",
        "pg_tblspc",
        "pg_tblspc/16384",
        "pg_tblspc/16385",
        "base/5",
    ]
    for number, target in enumerate(targets):
        (data / f"link{number}").symlink_to(target)
    found = scan(data, follow_symlinks=True)
    assert paths(found) == paths(plain)
    assert directories(found) == directories(plain)
    assert {special.path for special in found.specials} == {b"link%d" % number for number in range(len(targets))}


def test_two_links_to_one_directory(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    put(tmp_path / "elsewhere", "file")
    for name in ("a", "b"):
        (data / name).symlink_to(tmp_path / "elsewhere")
    found = scan(data, follow_symlinks=True)
    assert len(paths(found)) == 2
    assert len(found.specials) == 1


def test_odd_names(data: pathlib.Path) -> None:
    names = [b"caf\xe9", b"new\nline", b"back\\slash", b" ", b"-rf", b"\xf0\x9f\x90\x98"]
    for name in names:
        with open(os.path.join(os.fsencode(data), name), "wb"):
            pass
    assert {entry.path for entry in scan(data).files} == {b"PG_VERSION", *names}


def test_final_slashes_do_not_matter(data: pathlib.Path) -> None:
    put(data, "stats/x")
    slashed = _datadir.scan(os.fsencode(data) + b"//", 14, CATALOG, stats_temp_directory=b"stats")
    assert slashed == scan(data, 14, stats_temp_directory=b"stats")


def test_what_vanishes_is_skipped(data: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(data, "base/5/1", "base/5/2", "base/6/3", "sub/file")
    real = os.scandir

    class Vanishing:
        """A directory entry that disappears before its status is read."""

        def __init__(self, entry: t.Any) -> None:
            self.name, self.path = entry.name, entry.path
            self.is_file, self.is_dir, self.is_symlink = entry.is_file, entry.is_dir, entry.is_symlink

        def stat(self, follow_symlinks: bool = True) -> os.stat_result:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)

    class Listing(t.List[t.Any]):
        def __enter__(self) -> t.Any:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

    def scandir(path: bytes) -> t.Any:
        with real(path) as entries:
            listing = [Vanishing(entry) if entry.name == b"2" else entry for entry in entries]
        if path.endswith(b"/base"):
            (data / "base/6/3").unlink()
            (data / "base/6").rmdir()
        return Listing(listing)

    monkeypatch.setattr(os, "scandir", scandir)
    assert paths(scan(data)) == {"PG_VERSION", "base/5/1", "sub/file"}


def test_the_data_directory_itself_may_not_vanish(data: pathlib.Path) -> None:
    with pytest.raises(BackupError, match=r"Cannot read .*/nowhere/pg_tblspc: No such file") as caught:
        scan(data / "nowhere")
    assert caught.value.code == "unreadable"
    assert caught.value.details["path"].endswith("nowhere/pg_tblspc")
    (data / "pg_tblspc").rmdir()
    with pytest.raises(BackupError, match="pg_tblspc: No such file"):
        scan(data)


@pytest.mark.parametrize("name", ["base/5", "sub", "pg_tblspc/16384", ""])
def test_other_errors_are_fatal_and_named(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    put(data, "sub/file")
    put(tmp_path / "space", f"PG_18_{CATALOG}/5/1")
    (data / "pg_tblspc/16384").symlink_to(tmp_path / "space")
    broken = tmp_path / f"space/PG_18_{CATALOG}" if "16384" in name else data / name
    real = os.scandir

    def scandir(path: bytes) -> t.Any:
        if path == os.fsencode(broken):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BackupError, match=r"Cannot read .*: Permission denied") as caught:
        scan(data)
    assert caught.value.details["path"] == str(broken)


def test_an_unreadable_tablespace_is_not_an_empty_one(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "space", f"PG_18_{CATALOG}/5/1")
    (data / "pg_tblspc/16384").symlink_to(tmp_path / "space")
    real = os.stat

    def stat(path: t.Any, **options: t.Any) -> os.stat_result:
        if b"PG_18" in os.fsencode(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(BackupError, match=f"PG_18_{CATALOG}: Permission denied"):
        scan(data)


def test_a_large_database_takes_no_longer_a_file(data: pathlib.Path) -> None:
    put(data, "base/5/1_init", *(f"base/5/{number}" for number in range(1, 5001)))
    begun = time.process_time()
    found = scan(data)
    # It takes a twentieth of this; a quadratic rule takes far more.
    assert time.process_time() - begun < 1
    assert len(found.files) == 1 + 1 + 4999
