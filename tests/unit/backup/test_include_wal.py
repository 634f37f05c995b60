# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Including the WAL: what is copied, what is not, and a crash at every step."""

from __future__ import annotations

import hashlib
import os
import pathlib
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup import include_wal as _include
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.include_wal import Inclusion
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

from tests.unit.helpers.crashes import crashes
from tests.unit.helpers.made_up_wal import segment_header

SIZE = 1 << 20
SYSTEM = 77
HISTORY = "00000002.history"


def name_of(segment: int, timeline: int = 1) -> str:
    return f"{timeline:08X}00000000{segment:08X}"


def content_of(segment: int, timeline: int = 1) -> bytes:
    """Return a segment of its header and garbage, as a recycled one has after its end."""
    first = segment_header(timeline, segment * SIZE, SYSTEM, SIZE)
    return first + bytes([segment + 1]) * (SIZE - len(first))


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, nor for a server that does not exist."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(_include, "PAUSE", 0)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """The server's ``pg_wal`` with the segments 2 to 4 and a history."""
    directory = tmp_path / "pg_wal"
    directory.mkdir()
    for segment in (2, 3, 4):
        (directory / name_of(segment)).write_bytes(content_of(segment))
    (directory / HISTORY).write_text("1\t0/400000\tno recovery target specified\n")
    return directory


def inclusion(source: pathlib.Path, target: pathlib.Path) -> Inclusion:
    return Inclusion(str(source), str(target), SIZE, SYSTEM)


def include(source: pathlib.Path, target: pathlib.Path, *names: str, end: int | None = None) -> dict[str, str]:
    job = inclusion(source, target)
    digests = {name: job.include(name, end) for name in names}
    job.make_durable()
    return digests


def below(root: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def refused(source: pathlib.Path, target: pathlib.Path, name: str, code: str) -> str:
    with pytest.raises(BackupError) as caught:
        include(source, target, name)
    assert caught.value.code == code
    assert below(target) == []
    return caught.value.msg


def test_names_contents_and_marks(tmp_path: pathlib.Path, source: pathlib.Path) -> None:
    target = tmp_path / "target"
    digests = include(source, target, name_of(2), name_of(3), HISTORY)
    assert below(target) == sorted(
        [*digests, *(f"archive_status/{name}.done" for name in (name_of(2), name_of(3), HISTORY))]
    )
    for name, digest in digests.items():
        content = (source / name).read_bytes()
        assert ((target / name).read_bytes(), hashlib.sha256(content).hexdigest()) == (content, digest)
        assert (target / name).stat().st_mode & 0o777 == 0o600
        assert (target / "archive_status" / f"{name}.done").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("used", [40, 8192, SIZE - 1, SIZE])
def test_wal_after_the_end_is_left_out(tmp_path: pathlib.Path, source: pathlib.Path, used: int) -> None:
    """Only of the segment that contains the end, not of earlier ones."""
    target = tmp_path / "target"
    digests = include(source, target, name_of(2), name_of(3), end=3 * SIZE + used)
    assert (target / name_of(2)).read_bytes() == content_of(2)
    content = (target / name_of(3)).read_bytes()
    assert content == content_of(3)[:used] + bytes(SIZE - used)
    assert digests[name_of(3)] == hashlib.sha256(content).hexdigest()


def test_removed(tmp_path: pathlib.Path, source: pathlib.Path) -> None:
    message = refused(source, tmp_path / "target", name_of(9), "wal_removed")
    assert name_of(9) in message


def test_bad_files(tmp_path: pathlib.Path, source: pathlib.Path) -> None:
    """A file whose content does not match its name is not included."""
    (source / name_of(5)).write_bytes(content_of(6))
    (source / name_of(6)).write_bytes(content_of(6)[:-1])
    (source / name_of(7)).write_bytes(segment_header(1, 7 * SIZE, SYSTEM + 1, SIZE) + bytes(SIZE))
    (source / "00000003.history").write_text("nonsense\n")
    for name, code in ((name_of(5), "bad_segment"), (name_of(6), "bad_segment"), (name_of(7), "bad_segment")):
        assert name in refused(source, tmp_path / "target", name, code)
    refused(source, tmp_path / "target", "00000003.history", "bad_history")


class Meanwhile:
    """Change the source after the first piece of a file has been read, ``times`` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, what: t.Callable[[], object], times: int) -> None:
        self.left = times
        pieces = _include.Inclusion._pieces

        def wrapped(*arguments: t.Any) -> t.Iterator[bytes]:
            for piece in pieces(*arguments):
                yield piece
                if self.left:
                    self.left -= 1
                    what()

        monkeypatch.setattr(_include.Inclusion, "_pieces", wrapped)


def test_recycled_while_it_is_read(
    tmp_path: pathlib.Path, source: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server renames the file and writes other WAL to it, so the bytes already read cannot be trusted."""
    Meanwhile(monkeypatch, lambda: os.rename(source / name_of(2), source / name_of(8)), 1)
    refused(source, tmp_path / "target", name_of(2), "wal_removed")


def test_replaced_while_it_is_read(
    tmp_path: pathlib.Path, source: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby that switches to its archive replaces the file; the second attempt finds it whole."""

    def replace() -> None:
        (source / "RECOVERYXLOG").write_bytes(content_of(2))
        os.rename(source / "RECOVERYXLOG", source / name_of(2))

    target = tmp_path / "target"
    Meanwhile(monkeypatch, replace, 1)
    include(source, target, name_of(2))
    assert (target / name_of(2)).read_bytes() == content_of(2)
    Meanwhile(monkeypatch, replace, 100)
    refused(source, tmp_path / "another", name_of(2), "wal_removed")


def test_crash_anywhere(tmp_path: pathlib.Path, source: pathlib.Path) -> None:
    """A file with its final name is whole; the next call continues, even if the server has removed the included WAL."""
    names = (name_of(2), name_of(3), HISTORY)

    def prepare(folder: pathlib.Path) -> pathlib.Path:
        return folder / "target"

    for where, target in crashes(tmp_path, prepare, lambda target: include(source, target, *names, end=4 * SIZE)):
        there = [name for name in names if (target / name).exists()]
        for name in there:
            assert (target / name).read_bytes() == (source / name).read_bytes(), where
        hidden = {name: (source / name).read_bytes() for name in there}
        for name in there:
            (source / name).unlink()
        try:
            digests = include(source, target, *names, end=4 * SIZE)
        finally:
            for name, content in hidden.items():
                (source / name).write_bytes(content)
        assert below(target) == sorted([*names, *(f"archive_status/{name}.done" for name in names)]), where
        for name in names:
            assert digests[name] == hashlib.sha256((source / name).read_bytes()).hexdigest(), where
