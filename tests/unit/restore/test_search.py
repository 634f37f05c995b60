# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The search in the WAL for the record at which recovery stops, without a backup."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import target as _target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.search import Search, Searched
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import CommandArchive, DirectoryArchive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import Path
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.reach import reach
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.segments import segment_name

from tests.unit.helpers.backups import IDENTIFIER
from tests.unit.helpers.made_up_wal import FIRST, SIZE, Wal

START = FIRST * SIZE


class Log:
    """Six segments with two commits each, 10n + 1 and 10n + 2, a restore point between them."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.wal = Wal()
        self.commits: dict[int, int] = {}
        self.times: dict[int, int] = {}
        for number in range(1, 7):
            self._commit(10 * number + 1)
            self.wal.restore_point(b"point")
            self._commit(10 * number + 2)
            self.wal.switch()
        self.wal.other(10)
        for number in self.wal.segments:
            self.path(number).write_bytes(self.wal.segment(number))

    def _commit(self, xid: int) -> None:
        self.commits[xid] = self.wal.commit(xid)
        self.times[xid] = self.wal.now_us

    def path(self, segment: int) -> pathlib.Path:
        return self.folder / segment_name(1, segment, SIZE)

    def search(self, start: int = START) -> Search:
        archive, path = DirectoryArchive(str(self.folder), SIZE, int(IDENTIFIER)), Path(1, [])
        return Search(archive, path, start, SIZE, reach(archive, path, start))

    def time(self, xid: int, later: int = 0) -> _target.Target:
        """Return the time of a commit as a target, or microseconds ``later``."""
        return _target.parse_target({"recovery_target_time": _target.format_time(self.times[xid] + later)})


@pytest.fixture
def log(tmp_path: pathlib.Path) -> Log:
    return Log(tmp_path)


def xid(number: int) -> _target.Target:
    return _target.parse_target({"recovery_target_xid": number})


@pytest.mark.parametrize("number, following", [(11, 12), (12, 21), (31, 32), (42, 51), (61, 62)])
def test_a_time(log: Log, number: int, following: int) -> None:
    """An inclusive target stops before the next commit, the other before that one."""
    inclusive = log.time(number)
    found = log.search().by_time(inclusive)
    assert found is not None
    assert found.lsn == log.commits[following]
    found = log.search().by_time(inclusive._replace(inclusive=False))
    assert found is not None
    assert found.lsn == log.commits[number]


def test_a_time_that_the_wal_does_not_reach(log: Log) -> None:
    assert log.search().by_time(log.time(62)) is None
    assert log.search().by_time(log.time(62)._replace(inclusive=False)) is not None
    assert log.search().by_time(log.time(62, later=1)._replace(inclusive=False)) is None


def test_a_transaction(log: Log) -> None:
    found = log.search().by_content(xid(42), {})
    assert found is not None
    assert found.lsn == log.commits[42]
    assert log.search().by_content(xid(99), {}) is None
    assert log.search(log.commits[51]).by_content(xid(42), {}) is None


def test_an_earlier_search_is_continued(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search from an older backup reads only the WAL before the newer one."""
    searched: Searched = {}
    later = log.commits[51]
    assert log.search(later).by_content(xid(42), searched) is None
    assert searched == {1: (later, None)}
    search = log.search()
    read: list[str] = []
    monkeypatch.setattr(DirectoryArchive, "read", _recorded(read, DirectoryArchive.read))
    found = search.by_content(xid(42), searched)
    assert found is not None
    assert found.lsn == log.commits[42]
    assert search.by_content(xid(99), {1: (later, None)}) is None
    assert log.path(later // SIZE).name in read
    assert log.path(later // SIZE + 1).name not in read
    # A record found by the earlier search counts if there is none before it.
    assert search.by_content(xid(99), {1: (later, found)}) == found


def _recorded(read: list[str], function: object) -> object:
    def record(self: DirectoryArchive, name: str) -> bytes:
        read.append(name)
        return function(self, name)

    return record


def test_the_first_restore_point_of_a_name(log: Log) -> None:
    target = _target.parse_target({"recovery_target_name": "point"})
    for start, commit in ((START, 11), (log.commits[31], 31)):
        found = log.search(start).by_content(target, {})
        assert found is not None
        assert log.commits[commit] < found.lsn < log.commits[commit + 1]


def test_the_end_of_a_record(log: Log) -> None:
    search = log.search()
    assert search.end_of_record(log.commits[31]) == log.commits[31] + 1
    assert search.end_of_record(log.wal.at) == 0
    # Without a listing, segment by segment.
    command = CommandArchive(f"cp {log.folder}/%f %p", SIZE, int(IDENTIFIER))
    blind = Search(command, Path(1, []), START, SIZE, None)
    assert blind.end_of_record(log.commits[31]) == log.commits[31] + 1
    assert blind.end_of_record(log.wal.at) == 0
    # A switch is the last record of its segment: the next record is in another one.
    switched = log.commits[21] - SIZE // 2
    assert blind.end_of_record(switched) > log.commits[21]


def test_a_gap(log: Log) -> None:
    assert log.search().gap() == []
    log.path(FIRST + 2).unlink()
    log.path(FIRST + 3).unlink()
    assert log.search().gap() == [log.path(FIRST + number).name for number in (2, 3)]
