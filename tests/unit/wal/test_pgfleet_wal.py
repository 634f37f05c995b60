# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive script: no file may be lost or replaced, and its exit codes mean the right thing to the server."""

from __future__ import annotations

import bz2
import errno
import gzip
import importlib.util
import lzma
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time
import typing as t
from unittest import mock

import pytest

from tests.unit.helpers import crashes as crashing
from tests.unit.helpers.crashes import crashes
from tests.unit.helpers.processes import held_by_another_process

SCRIPT: t.Final = pathlib.Path(__file__).resolve().parents[3] / "plugins/module_utils/_wal/pgfleet_wal.py"
NAME: t.Final = "00000001000000020000000A"
HISTORY: t.Final = "00000002.history"
SIZE: t.Final = 1 << 20
ALL: t.Final = ("none", "gzip", "zstd")
STORED: t.Final = {"none": NAME, "gzip": NAME + ".gz", "zstd": NAME + ".zst"}

needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="the command zstd is not installed")


def _load() -> t.Any:
    spec = importlib.util.spec_from_file_location("pgfleet_wal", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wal = _load()


def segment(name: str = NAME, size: int = SIZE, seed: bytes = b"wal") -> bytes:
    """Return a file with the header of the segment ``name``, partly random so that it does not compress well."""
    number = int(name[8:16], 16) * ((1 << 32) // size) + int(name[16:], 16)
    head = struct.pack("=HHIQI4xQII", 0xD110, 2, int(name[:8], 16), number * size, 0, 7, size, 8192)
    return (head + (seed * (size // len(seed) + 1))[: size // 2] + os.urandom(size))[:size]


def zstd(content: bytes) -> bytes:
    """Return compressed content with its checksum at the end; nonsense if the command is missing."""
    if shutil.which("zstd") is None:
        return b"nonsense"
    return subprocess.run(["zstd", "-qc"], input=content, stdout=subprocess.PIPE, check=True).stdout


def flipped(content: bytes, at: int) -> bytes:
    """Return content with one bit changed at ``at``, which only a checksum detects there."""
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


class Place:
    """An archive, a server's pg_wal with one segment, and the path to which the server restores files."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.archive = folder / "archive"
        self.archive.mkdir()
        self.content = segment()
        self.source = folder / NAME
        self.source.write_bytes(self.content)
        self.target = folder / "RECOVERYXLOG"

    def put(self, compress: str = "none", name: str = NAME) -> int:
        """Archive the source."""
        return int(wal.main(["archive", "--compress", compress, str(self.archive), str(self.source), name]))

    def get(self, name: str = NAME) -> int:
        """Restore."""
        return int(wal.main(["restore", str(self.archive), name, str(self.target)]))

    def names(self) -> list[str]:
        """Return the names in the archive, without the lock."""
        return sorted(set(os.listdir(self.archive)) - {".pgfleet_wal.lock"})


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    """An empty archive and one segment."""
    return Place(tmp_path)


@pytest.fixture(params=[pytest.param(name, marks=needs_zstd if name == "zstd" else ()) for name in ALL])
def compress(request: pytest.FixtureRequest) -> str:
    """Each compression."""
    return str(request.param)


def test_there_and_back(place: Place, compress: str) -> None:
    assert (place.put(compress), place.names()) == (0, [STORED[compress]])
    stored = place.archive / STORED[compress]
    assert stored.stat().st_mode & 0o777 == 0o600
    assert (stored.stat().st_size < SIZE) is (compress != "none")
    assert (place.get(), place.target.read_bytes()) == (0, place.content)
    # The same content again, in any compression, succeeds; other content is refused.
    before = stored.stat()
    for other in ALL:
        assert place.put(other) == 0
    place.source.write_bytes(segment(seed=b"other"))
    for other in ALL:
        assert place.put(other) == 1
    place.source.write_bytes(place.content[:-1])
    assert place.put() == 1
    assert (stored.stat(), place.names()) == (before, [STORED[compress]])


def test_small_files_stay_readable(place: Place, compress: str) -> None:
    place.source.write_text("1\t0/3000000\tno recovery target specified\n")
    names = [HISTORY, f"{NAME}.00000028.backup", f"{NAME}.partial"]
    assert [place.put(compress, name) for name in names] == [0, 0, 0]
    assert place.names() == sorted(names)
    assert (place.get(HISTORY), place.target.read_bytes()) == (0, place.source.read_bytes())


@pytest.mark.parametrize("name", ["", "x", "../x", NAME + ".gz", NAME.lower() + "g", NAME + "\n", "0" * 65])
def test_strange_names_are_not_stored(place: Place, name: str) -> None:
    assert (place.put(name=name), place.names()) == (1, [])


def test_exit_codes_of_restore(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """1 means the end of the WAL. Every other error must stop the recovery: above 125."""
    assert (place.get(), place.get(HISTORY), capfd.readouterr().err) == (1, 1, "")
    assert not place.target.exists()
    archive = place.archive
    damaged: list[tuple[str, bytes]] = [
        (NAME, b""),
        (NAME, place.content[: SIZE // 2]),
        (NAME, place.content + b"x"),
        (NAME, segment("00000001000000020000000B")),
        (NAME, segment("00000002000000020000000A")),
        (NAME + ".gz", gzip.compress(place.content)[:-100]),
        (NAME + ".gz", b"nonsense"),
        (NAME + ".xz", lzma.compress(place.content)[:-100]),
        (NAME + ".gz", flipped(gzip.compress(place.content), -6)),
        (NAME + ".zst", b"nonsense"),
        (NAME + ".zst", flipped(zstd(place.content), -1)),
        (HISTORY, b""),
    ]
    for name, content in damaged:
        stored = archive / name
        stored.write_bytes(content)
        assert place.get(name[: len(HISTORY)] if name == HISTORY else NAME) > 125, (name, content[:8])
        assert name[:8] in capfd.readouterr().err
        assert not place.target.exists()
        stored.unlink()
    (archive / NAME).symlink_to("nowhere")
    assert place.get() > 125
    (archive / NAME).unlink()
    (archive / NAME).mkdir()
    assert place.get() > 125
    assert wal.main(["restore", str(archive / "not mounted"), NAME, str(place.target)]) > 125
    for arguments in (
        ["restore"],
        ["restore", "a"],
        ["restore", "a", "b", "c", "d"],
        ["restore", "--x", "a", "b", "c"],
    ):
        assert wal.main(arguments) > 125
    # Such a code would restart the archiver without a failure in pg_stat_archiver.
    for arguments in ([], ["archive"], ["archive", str(archive / "not mounted"), str(place.source), NAME]):
        assert wal.main(arguments) == 1


def test_parent_timeline_in_the_header(place: Place) -> None:
    """A new timeline's first segment begins as a copy of its parent's."""
    (place.archive / f"00000003{NAME[8:]}").write_bytes(place.content)
    assert place.get(f"00000003{NAME[8:]}") == 0


def test_what_other_programs_stored(place: Place) -> None:
    for suffix, content in ((".bz2", bz2.compress(place.content)), (".xz", lzma.compress(place.content))):
        stored = place.archive / (NAME + suffix)
        stored.write_bytes(content)
        assert (place.get(), place.target.read_bytes()) == (0, place.content)
        assert (place.put(), place.names()) == (0, [NAME + suffix])
        stored.unlink()


@pytest.fixture
def crash_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process also die at link and write, and do not wait for the disk."""
    monkeypatch.setattr(crashing, "STEPS", (*crashing.STEPS, "link", "fdopen"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.usefixtures("crash_points")
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_crash_anywhere(tmp_path: pathlib.Path, compress: str, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name has no file or the whole one; the next attempt succeeds and leaves no other file."""
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    outcomes = set()
    for where, place in crashes(tmp_path, Place, lambda place: place.put(compress)):
        there = STORED[compress] in place.names()
        outcomes.add(there)
        assert place.get() == (0 if there else 1), where
        assert len(place.names()) <= 2, where
        # Another file is archived first, as if another server had archived this one.
        if there:
            assert place.put(compress) == 0
            other = "0000000100000002000000FF"
            stored = {"none": other, "gzip": f"{other}.gz", "zstd": f"{other}.zst"}[compress]
            assert place.put(compress, other) == 0
            (place.archive / stored).unlink()
        assert place.put(compress) == 0, where
        assert (place.names(), place.get(), place.target.read_bytes()) == ([STORED[compress]], 0, place.content), where
    assert outcomes == {False, True}


def _no_links(source: str, target: str) -> None:
    raise PermissionError(errno.EPERM, "no hard links here")


def test_durable_before_it_counts(place: Place) -> None:
    """A power cut requires this order: content, then name, then the name's directory."""
    order: list[str] = []
    real_link, real_fsync = os.link, os.fsync

    def synced(handle: int) -> None:
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")).replace(os.uname().nodename, "host"))
        real_fsync(handle)

    def linked(source: str, target: str) -> None:
        order.append("link")
        real_link(source, target)

    with mock.patch.object(os, "fsync", synced), mock.patch.object(os, "link", linked):
        assert place.put() == 0
        assert order == [".pgfleet_wal.host.tmp", "link", "archive"]
        order.clear()
        # Already stored, but perhaps only in memory: the crash came before the flush.
        assert place.put() == 0
        assert order == [NAME, "archive"]


def test_stored_by_another_host(place: Place) -> None:
    """A host outside the lock's reach stores the same name: its file stays."""
    real_link = os.link

    def beaten(source: str, target: str) -> None:
        pathlib.Path(target).write_bytes(b"theirs")
        real_link(source, target)

    with mock.patch.object(os, "link", beaten):
        assert place.put() == 1
    assert (place.names(), (place.archive / NAME).read_bytes()) == ([NAME], b"theirs")


def test_two_archivers_of_one_file(tmp_path: pathlib.Path, compress: str) -> None:
    """A primary and a standby with archive_mode=always, many times: both succeed and leave exactly one file."""
    place = Place(tmp_path)
    command = [sys.executable, "-I", str(SCRIPT), "archive", "--compress", compress, str(place.archive)]
    for _round in range(2):
        both = [subprocess.Popen([*command, str(place.source), NAME]) for _one in range(4)]
        assert [one.wait() for one in both] == [0, 0, 0, 0]
        assert (place.names(), place.get(), place.target.read_bytes()) == ([STORED[compress]], 0, place.content)
        (place.archive / STORED[compress]).unlink()


def test_lock_held_for_long(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "LOCK_SECONDS", 0.1)
    with held_by_another_process(place.archive / ".pgfleet_wal.lock"):
        assert (place.put(), place.names()) == (1, [])
    assert place.put() == 0


@needs_zstd
def test_killed_while_zstd_runs(place: Place) -> None:
    """A process orphaned by a kill does not write into the file of the next attempt."""
    fifo = place.source.with_name("slow")
    os.mkfifo(fifo)
    command = [sys.executable, "-I", str(SCRIPT), "archive", "--compress", "zstd", str(place.archive), str(fifo), NAME]
    with subprocess.Popen(command) as process:
        with open(fifo, "wb", buffering=0) as stream:
            stream.write(b"other")
            deadline = time.monotonic() + 20
            while not place.names():
                assert time.monotonic() < deadline, "the copy does not begin"
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert place.put("zstd") == 0
        assert (place.names(), place.get(), place.target.read_bytes()) == ([STORED["zstd"]], 0, place.content)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
def test_full_disk(tmp_path: pathlib.Path, compress: str) -> None:
    """No file under the name and no remains; with space again archiving succeeds."""
    place = Place(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "none", str(place.archive)], check=True)
    try:
        filler = place.archive / "filler"
        filler.write_bytes(b"x" * (900 << 10))
        assert (place.put(compress), place.names()) == (1, ["filler"])
        assert place.get() == 1
        filler.unlink()
        assert (place.put(compress), place.names(), place.get()) == (0, [STORED[compress]], 0)
    finally:
        subprocess.run(["umount", str(place.archive)], check=True)


def test_missing_program(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert (place.put("zstd"), place.names()) == (1, [])
    (place.archive / STORED["zstd"]).write_bytes(b"")
    assert place.get() > 125


def test_oldest_python(place: Place) -> None:
    """Archive and restore with the oldest interpreter found, isolated as the server runs it."""
    found = sorted(pathlib.Path("~").expanduser().glob(".pyenv/versions/3.8.*/bin/python3"))
    python = str(found[0]) if found else sys.executable
    run = [python, "-I", str(SCRIPT)]
    archive = [*run, "archive", "--compress", "gzip", str(place.archive), str(place.source), NAME]
    for _twice in range(2):
        assert subprocess.run(archive, check=False).returncode == 0
    restore = [*run, "restore", str(place.archive)]
    assert subprocess.run([*restore, NAME, str(place.target)], check=False).returncode == 0
    assert place.target.read_bytes() == place.content
    assert subprocess.run([*restore, HISTORY, str(place.target)], check=False).returncode == 1
