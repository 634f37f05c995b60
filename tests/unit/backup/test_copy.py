# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy engine: exact sizes, every refusal, and the state after an interruption at any point."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import time
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import copy as _copy
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import journal as _backup_journal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import control as _control
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import manifest as _manifest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir import tree as _datadir
from ansible_collections.pgfleet.basebackup.plugins.module_utils._datadir.tree import Scan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import copier as _copyfile
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import files as _host_files
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import workers as _workers
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.plain import PlainLayout, external

MB = 1 << 20
VERSION_DIRECTORY = "PG_18_202506291"


class Bench:
    """A cluster of small files with a tablespace, a directory for its backup, and the calls under test."""

    def __init__(self, root: pathlib.Path) -> None:
        self.data = root / "live"
        self.space = root / "space"
        self.backup = root / "backup"
        self.journal = os.fsencode(root / "files.jsonl")
        for name in ("base/5", "global", "pg_wal", "pg_tblspc"):
            (self.data / name).mkdir(parents=True)
        (self.space / VERSION_DIRECTORY / "5").mkdir(parents=True)
        (self.data / "pg_tblspc/16384").symlink_to(self.space)
        self.backup.mkdir()
        self.calls: list[tuple[int, int]] = []

    def put(self, name: str, content: bytes) -> pathlib.Path:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def scan(self) -> Scan:
        return _datadir.scan(os.fsencode(self.data), 18, 202506291)

    def copy(self, scan: Scan | None = None, **options: t.Any) -> _copy.CopyResult:
        given = {"jobs": 2, "algorithm": "SHA256", "sync": False, "check": lambda: None, "progress": self.progress}
        return _copy.copy_cluster(scan or self.scan(), os.fsencode(self.backup), self.journal, **{**given, **options})

    def progress(self, done_bytes: int, done_files: int) -> None:
        self.calls.append((done_bytes, done_files))

    def copied(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.backup)): path.read_bytes()
            for path in self.backup.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def journalled(self) -> dict[bytes, _manifest.ManifestFile]:
        files = list(_backup_journal.read_journal(self.journal))
        assert len({file.path for file in files}) == len(files)
        return {file.path: file for file in files}


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> t.Iterator[Bench]:
    made = Bench(tmp_path)
    made.put("PG_VERSION", b"18\n")
    made.put("base/5/1259", os.urandom(3 * 8192))
    made.put("base/5/16400", os.urandom(9 * MB + 77))
    made.put("base/5/empty", b"")
    (made.space / VERSION_DIRECTORY / "5" / "16500").write_bytes(os.urandom(8192))
    yield made
    assert children() == []


def children() -> list[int]:
    own = f"/proc/self/task/{os.getpid()}/children"
    return [int(pid) for pid in pathlib.Path(own).read_text().split()]


def place_in(scan: Scan, path: bytes) -> bytes:
    """Return where ``path`` is in a backup, relative to its directory."""
    return PlainLayout(b"", external(scan.tablespaces)).place(path)[1:]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("algorithm", ["SHA256", "SHA512", "NONE"])
def test_copy_is_complete_and_described(bench: Bench, algorithm: str, jobs: int, sync: bool) -> None:
    old = os.umask(0o000)
    try:
        result = bench.copy(jobs=jobs, algorithm=algorithm, sync=sync)
    finally:
        os.umask(old)
    scan = bench.scan()
    copied = bench.copied()
    assert set(copied) == {os.fsdecode(place_in(scan, e.path)) for e in scan.files}
    listed = bench.journalled()
    for entry in scan.files:
        content = copied[os.fsdecode(place_in(scan, entry.path))]
        assert content == pathlib.Path(os.fsdecode(entry.source)).read_bytes()
        file = listed.pop(entry.path)
        assert (file.size, file.mtime) == (len(content), int(os.stat(entry.source).st_mtime))
        expected = None if algorithm == "NONE" else hashlib.new(algorithm, content).hexdigest()
        assert (file.checksum, file.algorithm) == (expected, None if algorithm == "NONE" else algorithm)
    assert not listed
    assert result[:2] == (5, scan.total_bytes)
    assert result[3:] == (0, 0, 0)
    assert bench.calls[-1] == (scan.total_bytes, 5)
    assert bench.calls == sorted(bench.calls)
    assert os.readlink(bench.backup / "data/pg_tblspc/16384") == "../../tablespaces/16384"
    for path in [bench.backup, *bench.backup.rglob("*")]:
        mode = os.lstat(path).st_mode
        if path != bench.backup and not stat.S_ISLNK(mode):
            assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
    assert stat.S_IMODE(os.stat(bench.journal).st_mode) == 0o600


def test_a_strict_umask_changes_nothing(bench: Bench) -> None:
    old = os.umask(0o277)
    try:
        bench.copy()
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(bench.backup / "data/base/5/1259").st_mode) == 0o600
    assert stat.S_IMODE(os.stat(bench.backup / "data/base").st_mode) == 0o700


def test_odd_names(bench: Bench) -> None:
    names = [b"caf\xe9", b'q"\\\n', "d\u00e9j\u00e0".encode()]
    for name in names:
        with open(os.fsencode(bench.data) + b"/" + name, "wb") as file:
            file.write(name)
    bench.copy()
    listed = bench.journalled()
    assert all(listed[name].checksum == sha(name) for name in names)


def test_what_vanished_is_counted_and_not_made(bench: Bench) -> None:
    scan = bench.scan()
    (bench.data / "base/5/1259").unlink()
    (bench.space / VERSION_DIRECTORY / "5" / "16500").unlink()
    result = bench.copy(scan)
    assert (result.files, result.vanished) == (3, 2)
    assert "data/base/5/1259" not in bench.copied()
    assert b"base/5/1259" not in bench.journalled()


@pytest.mark.parametrize("algorithm", ["SHA256", "NONE"])
@pytest.mark.parametrize("change", [-5 * MB - 3, 4 * MB])
def test_a_file_keeps_the_size_it_had_when_opened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, algorithm: str, change: int
) -> None:
    path = bench.data / "base/5/16400"
    before = path.read_bytes()
    created = _host_files.create

    def changed_meanwhile(target: bytes) -> int:
        if target.endswith(b"16400"):
            os.truncate(path, len(before) + change)
        return created(target)

    monkeypatch.setattr(_copyfile, "create", changed_meanwhile)
    bench.copy(algorithm=algorithm)
    expected = before if change > 0 else before[:change] + bytes(-change)
    assert bench.copied()["data/base/5/16400"] == expected
    file = bench.journalled()[b"base/5/16400"]
    assert file.size == len(before)
    assert file.checksum in (None, sha(expected))


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, 0])
def test_without_the_kernels_help(bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_args: t.Any) -> int:
        if number:
            raise OSError(number, os.strerror(number))
        return 0

    monkeypatch.setattr(os, "copy_file_range", refuse)
    bench.copy(algorithm="NONE")
    assert bench.copied()["data/base/5/16400"] == (bench.data / "base/5/16400").read_bytes()


def test_a_clone_is_cut_to_size_and_the_clone_is_hashed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(writer: int, request: int, reader: int) -> int:
        assert request == 0x40049409
        size = os.fstat(reader).st_size
        os.pwrite(writer, b"newer" + os.pread(reader, size, 0) + b"grown", 0)
        return 0

    monkeypatch.setattr(_copyfile.fcntl, "ioctl", clone)
    bench.copy()
    for path, file in bench.journalled().items():
        if file.size:
            place = place_in(bench.scan(), path)
            content = (bench.backup / os.fsdecode(place)).read_bytes()
            assert content.startswith(b"newer"[: file.size])
            assert (len(content), sha(content)) == (file.size, file.checksum)


def test_links_and_pipes_are_not_followed_nor_waited_for(bench: Bench, tmp_path: pathlib.Path) -> None:
    scan = bench.scan()
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path = bench.data / "base/5/1259"
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(BackupError) as caught:
        bench.copy(scan)
    assert caught.value.code == "unreadable"
    assert str(path) in caught.value.msg
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BackupError, match="no longer a regular file"):
        bench.copy(scan)
    assert b"base/5/1259" not in bench.journalled()


def test_a_followed_link_is_opened(bench: Bench, tmp_path: pathlib.Path) -> None:
    elsewhere = tmp_path / "postgresql.conf"
    elsewhere.write_bytes(b"port = 1\n")
    (bench.data / "postgresql.conf").symlink_to(elsewhere)
    bench.copy(_datadir.scan(os.fsencode(bench.data), 18, 202506291, follow_symlinks=True))
    assert bench.copied()["data/postgresql.conf"] == b"port = 1\n"


def test_links_in_the_destination_are_replaced(bench: Bench, tmp_path: pathlib.Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (bench.backup / "data/base/5").mkdir(parents=True)
    (bench.backup / "data/base/5/1259").symlink_to(victim)
    bench.copy()
    assert victim.read_bytes() == b"precious"
    assert not (bench.backup / "data/base/5/1259").is_symlink()


def test_a_directory_that_is_a_link_is_refused(bench: Bench, tmp_path: pathlib.Path) -> None:
    (bench.backup / "data").mkdir()
    (bench.backup / "data/base").symlink_to(tmp_path)
    with pytest.raises(BackupError) as caught:
        bench.copy()
    assert caught.value.code == "unwritable"


def failing(name: str, number: int, monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    real = getattr(os, name)
    seen = []

    def call(*args: t.Any, **kwargs: t.Any) -> t.Any:
        if isinstance(args[0], int) and os.readlink(f"/proc/self/fd/{args[0]}").endswith("/16400"):
            seen.append(1)
            if len(seen) > after:
                raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(
    "name, number, code",
    [
        ("readv", errno.EIO, "unreadable"),
        ("write", errno.EIO, "unwritable"),
        ("write", errno.ENOSPC, "disk_full"),
        ("write", errno.EDQUOT, "disk_full"),
        ("fsync", errno.EIO, "unwritable"),
    ],
)
def test_failures_name_file_and_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, number: int, code: str
) -> None:
    failing(name, number, monkeypatch, after=0 if name == "fsync" else 3)
    with pytest.raises(BackupError) as caught:
        bench.copy(sync=True)
    error = caught.value
    assert error.code == code
    assert "base/5/16400" in error.msg
    assert os.strerror(number) in error.msg
    assert error.details["errno"] == errno.errorcode[number]
    if code == "disk_full":
        assert 0 < error.details["needed"] <= bench.scan().total_bytes
        assert "iB are free" in error.hint
    if name != "fsync":
        assert b"base/5/16400" not in bench.journalled()
    monkeypatch.undo()
    bench.copy()
    assert bench.copied()["data/base/5/16400"] == (bench.data / "base/5/16400").read_bytes()


def test_a_really_full_disk(bench: Bench) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", bench.backup], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        with pytest.raises(BackupError) as caught:
            bench.copy()
        assert caught.value.code == "disk_full"
        assert caught.value.details["needed"] > 5 * MB
    finally:
        subprocess.run(["umount", bench.backup], check=True)


def test_an_unreadable_file_names_the_user(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def denied(path: t.Any, flags: int, *args: t.Any, **kwargs: t.Any) -> int:
        if isinstance(path, bytes) and path == os.fsencode(bench.data / "base/5/1259"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(BackupError) as caught:
        bench.copy()
    assert caught.value.code == "unreadable"
    assert _host_files._user() in caught.value.hint


@pytest.mark.parametrize("algorithm", ["SHA256", "NONE"])
def test_a_lost_session_stops_the_copy_inside_a_file(bench: Bench, algorithm: str) -> None:
    with open(bench.data / "base/5/huge", "wb") as file:
        os.truncate(file.fileno(), 40 << 30)
    lost: list[float] = []
    begun = time.monotonic()

    def check() -> None:
        if bench.calls and time.monotonic() > begun + 0.3:
            lost.append(time.monotonic())
            raise BackupError("the session is lost", code="session_lost")

    with pytest.raises(BackupError) as caught:
        bench.copy(algorithm=algorithm, check=check)
    assert caught.value.code == "session_lost"
    assert time.monotonic() - lost[0] < 1  # killed and reaped; does not wait until the file's pages are freed
    assert b"base/5/huge" not in bench.journalled()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_worker_that_is_killed_fails_the_copy_and_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    created = _host_files.create
    main = os.getpid()

    def die(target: bytes) -> int:
        if target.endswith(b"1259") and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return created(target)

    monkeypatch.setattr(_copyfile, "create", die)
    with pytest.raises(BackupError) as caught:
        bench.copy(jobs=jobs)
    assert caught.value.code == "copy_worker_died"
    assert "signal 9" in caught.value.msg
    finished = bench.journalled()
    assert b"base/5/1259" not in finished
    monkeypatch.undo()
    result = bench.copy()
    assert result.reused_files == len(finished)
    assert result.files + result.reused_files == 5


def test_an_unexpected_error_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: t.Any, *_args: t.Any) -> None:
        raise RuntimeError("no idea")

    monkeypatch.setattr(_copyfile.FileCopier, "copy", broken)
    with pytest.raises(BackupError, match="no idea"):
        bench.copy()


def test_finished_files_are_kept(bench: Bench) -> None:
    bench.copy()
    inodes = {path: os.stat(bench.backup / path).st_ino for path in bench.copied()}
    (bench.backup / "data/base/5/1259").write_bytes(b"torn")
    (bench.backup / "data/base/5/stray").write_bytes(b"half of a file that has vanished since")
    with open(bench.journal, "ab") as journal:
        journal.write(b'["base/5/162')
    bench.put("base/5/new", b"new")
    result = bench.copy(sync=True)
    assert (result.files, result.reused_files) == (2, 4)
    assert result.bytes + result.reused_bytes == sum(map(len, bench.copied().values()))
    assert bench.calls[-1] == (result.bytes + result.reused_bytes, 6)
    assert os.stat(bench.backup / "data/base/5/16400").st_ino == inodes["data/base/5/16400"]
    assert set(bench.copied()) == {*inodes, "data/base/5/new"}
    assert len(bench.journalled()) == 6


def test_another_algorithm_copies_again(bench: Bench) -> None:
    bench.copy(algorithm="NONE")
    assert bench.copy(algorithm="SHA256").reused_files == 0
    assert {file.algorithm for file in bench.journalled().values()} == {"SHA256"}


def test_the_journal_may_be_torn_at_any_byte(bench: Bench) -> None:
    bench.copy()
    whole = pathlib.Path(os.fsdecode(bench.journal)).read_bytes()
    for length in range(0, len(whole), 13):
        pathlib.Path(os.fsdecode(bench.journal)).write_bytes(whole[:length])
        assert len(bench.journalled()) == whole[:length].count(b"\n")


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"[1]\n", b'"text"\n', b"nonsense\n"])
def test_a_damaged_journal_is_refused(bench: Bench, line: bytes) -> None:
    pathlib.Path(os.fsdecode(bench.journal)).write_bytes(line)
    with pytest.raises(BackupError, match="damaged"):
        bench.copy()


def test_no_journal_is_an_empty_one(bench: Bench) -> None:
    assert list(_backup_journal.read_journal(bench.journal)) == []


KILLED = textwrap.dedent(
    """
    import os, sys
    from ansible_collections.pgfleet.basebackup.plugins.module_utils import _copy, _datadir
    data, backup, journal = map(os.fsencode, sys.argv[1:])
    scan = _datadir.scan(data, 18, 202506291)
    print("begun", flush=True)
    _copy.copy_cluster(scan, backup, journal, jobs=2, algorithm="SHA256", sync=False,
                       check=lambda: None, progress=lambda done, files: None)
    """
)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15, 0.3])
def test_killed_and_run_again(bench: Bench, delay: float) -> None:
    for number in range(400):
        bench.put(f"base/5/{20000 + number}", os.urandom(40_000))
    for number in range(4):
        bench.put(f"base/5/{30000 + number}", os.urandom(MB) * 20)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, bench.data, bench.backup, os.fsdecode(bench.journal)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay)
    process.kill()
    process.wait()
    process.stdout.read()  # also waits for the orphaned workers
    process.stdout.close()
    finished = bench.journalled()
    result = bench.copy()
    assert result.reused_files == len(finished)
    copied = bench.copied()
    assert len(copied) == 409
    for path, file in bench.journalled().items():
        place = place_in(bench.scan(), path)
        assert sha(copied[os.fsdecode(place)]) == file.checksum


def test_an_empty_cluster(tmp_path: pathlib.Path) -> None:
    bench = Bench(tmp_path)
    assert bench.copy(sync=True)[:2] == (0, 0)


def test_in_place_tablespaces_have_no_link(bench: Bench) -> None:
    (bench.data / "pg_tblspc/16385" / VERSION_DIRECTORY / "5").mkdir(parents=True)
    bench.put(f"pg_tblspc/16385/{VERSION_DIRECTORY}/5/1", b"one")
    bench.copy()
    assert bench.copied()[f"data/pg_tblspc/16385/{VERSION_DIRECTORY}/5/1"] == b"one"
    assert not (bench.backup / "data/pg_tblspc/16385").is_symlink()


def test_missing_files_are_hashed(bench: Bench) -> None:
    bench.copy()
    expected = bench.journalled()
    for name in ("data/pg_wal/000000010000000000000001", "data/backup_manifest"):
        (bench.backup / name).write_bytes(b"never listed")
    known = {b"base/5/1259"}
    for algorithm in ("SHA256", "NONE"):
        found = _copy.hash_missing(os.fsencode(bench.backup), known, jobs=2, algorithm=algorithm, check=lambda: None)
        got = {file.path: file for file in found}
        assert set(got) == set(expected) - known
        for path, file in got.items():
            assert file.size == expected[path].size
            assert file.checksum == (expected[path].checksum if algorithm == "SHA256" else None)


def control() -> bytes:
    body = struct.pack("<QIII", 7710880042689923079, 1800, 202506291, 6).ljust(292, b"\0")
    return (body + struct.pack("<I", _control.crc32c(body))).ljust(8192, b"\0")


def test_the_control_file(bench: Bench) -> None:
    bench.put("global/pg_control", control())
    bench.copy()
    target = bench.backup / "data/global/pg_control"
    assert not target.exists()
    for _again in range(2):
        file = _copy.copy_control(os.fsencode(bench.data), os.fsencode(bench.backup), algorithm="SHA256", sync=True)
    assert target.read_bytes() == control()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert (file.path, file.size, file.checksum) == (b"global/pg_control", 8192, sha(control()))
    # The control file of an earlier run is older than the files that the next run copies.
    bench.copy()
    assert not target.exists()


def test_an_unknown_algorithm_is_refused_before_anything_is_touched(bench: Bench) -> None:
    with pytest.raises(BackupError):
        bench.copy(algorithm="MD5")
    assert list(bench.backup.iterdir()) == []


def test_more_work_than_a_pipe_holds() -> None:
    work = [[number] for number in range(40_000)]
    counted = 0
    for report in _workers.run_workers(work, lambda _batch, _reporter: None, 2, lambda: None):
        counted += report.batches
    assert counted == 40_000


def test_large_files_come_first_and_small_ones_together() -> None:
    sizes = [10, 5 * MB, 20, 50 * MB, *[1000] * 40]
    found = _workers.batches(list(range(len(sizes))), sizes)
    assert found[:2] == [[3], [1]]
    assert found[2][:2] == [0, 2]
    assert sorted(number for batch in found for number in batch) == list(range(len(sizes)))
    assert all(len(batch) <= 32 for batch in found)


def test_journal_lines_are_json() -> None:
    line = _backup_journal.journal_line(_manifest.ManifestFile(b"a\xff", 1, 2.0, None, None))
    assert json.loads(line) == ["a\udcff", 1, 2.0, None, None]
    assert _backup_journal.parse_line(line) == (b"a\xff", 1, 2.0, None, None)
