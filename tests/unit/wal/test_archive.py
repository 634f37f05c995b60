# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive: what it gives, along which timelines, how far, and the command that a server is given for it."""

from __future__ import annotations

import gzip
import itertools
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import archive as _archive
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import timelines as _timelines
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import (
    Archive,
    CommandArchive,
    DirectoryArchive,
    open_archive,
    restore_command,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.path import (
    Path,
    needed_segments,
    path_segment,
    timeline_path,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.reach import reach
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import HistoryEntry

from tests.unit.helpers.backups import IDENTIFIER
from tests.unit.helpers.made_up_wal import FIRST, NOW_US, SIZE, Wal

NUMBER: t.Final = int(IDENTIFIER)


def put(folder: pathlib.Path, wal: Wal, timeline: int = 1, numbers: t.Iterable[int] | None = None) -> list[str]:
    """Archive what is complete of a log; return the names."""
    names = []
    for number in wal.segments if numbers is None else numbers:
        names.append(_wal.segment_name(timeline, number, SIZE))
        (folder / names[-1]).write_bytes(wal.segment(number))
    return names


def directory(folder: pathlib.Path) -> DirectoryArchive:
    return DirectoryArchive(str(folder), SIZE, NUMBER)


def code_of(work: t.Callable[[], t.Any]) -> str:
    with pytest.raises(BackupError) as caught:
        work()
    return caught.value.code


@pytest.fixture
def wal() -> Wal:
    """Three segments with a transaction at the begin of each, and one record in a fourth."""
    made = Wal()
    for number in range(3):
        made.commit(number + 1)
        made.switch()
    made.other(10)
    return made


@pytest.fixture(params=["directory", "command"])
def archive(request: pytest.FixtureRequest, tmp_path: pathlib.Path, wal: Wal) -> Archive:
    """The same archive, looked into and asked."""
    put(tmp_path, wal)
    (tmp_path / "00000002.history").write_text("1\t0/350000\twhy\n")
    if request.param == "directory":
        return directory(tmp_path)
    return CommandArchive(f"cp {tmp_path}/%f %p", SIZE, NUMBER)


def test_asking(archive: Archive, tmp_path: pathlib.Path, wal: Wal) -> None:
    name, missing = _wal.segment_name(1, FIRST, SIZE), _wal.segment_name(1, 99, SIZE)
    assert (archive.has(name), archive.holds(name), archive.has(missing), archive.holds(missing)) == (1, 1, 0, 0)
    assert archive.read(name) == wal.segment(FIRST)
    assert archive.history(2) == [HistoryEntry(1, 0x350000)]
    assert archive.history(1) == []
    assert code_of(lambda: archive.read(missing)) == "wal_missing"
    assert code_of(lambda: archive.history(3)) == "history_missing"
    for text in ("", "3\t0/300000\tx\n", "nothing\n"):
        (tmp_path / "00000003.history").write_text(text)
        assert code_of(lambda: archive.history(3)) in ("bad_history", "bad_segment")
    for content in (wal.segment(FIRST)[:-1], wal.segment(FIRST) + b"x", wal.segment(FIRST + 1), b"x" * SIZE):
        (tmp_path / name).write_bytes(content)
        assert code_of(lambda: archive.read(name)) == "bad_segment"
    archive.system_identifier = 7
    assert code_of(lambda: archive.read(_wal.segment_name(1, FIRST + 1, SIZE))) == "bad_segment"
    archive.system_identifier = None
    assert archive.read(_wal.segment_name(1, FIRST + 1, SIZE)) == wal.segment(FIRST + 1)


def test_listing(tmp_path: pathlib.Path, wal: Wal) -> None:
    names = put(tmp_path, wal)
    (tmp_path / "00000002.history").write_text("1\t0/350000\twhy\n")
    (tmp_path / "00000003.history").write_text("")
    (tmp_path / (names[0] + ".gz")).write_bytes(gzip.compress(wal.segment(FIRST)))
    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).write_bytes(b"half")
    for name in ("readme", names[2] + ".partial", names[2] + ".00000028.backup", "0" * 24, "00000001000000000000FFFF"):
        (tmp_path / name).write_bytes(b"x" * SIZE)
    (tmp_path / _wal.segment_name(1, 77, SIZE)).mkdir()
    archive = directory(tmp_path)
    assert archive.names() == {names[0], names[2], names[3], "00000002.history"}
    assert [archive.has(name) for name in names] == [True, False, True, True]
    assert sorted(archive.numbers()[1]) == [FIRST, FIRST + 2, FIRST + 3]
    assert code_of(lambda: directory(tmp_path / "no").names()) == "archive_unreadable"


def test_open(tmp_path: pathlib.Path) -> None:
    assert isinstance(open_archive(str(tmp_path), None, SIZE, None), DirectoryArchive)
    assert isinstance(open_archive(None, "false", SIZE, None), CommandArchive)
    assert open_archive(None, None, SIZE, None) is None
    assert code_of(lambda: open_archive(str(tmp_path / "no"), None, SIZE, None)) == "archive_missing"


# --- timelines ---


@pytest.fixture
def family(tmp_path: pathlib.Path) -> DirectoryArchive:
    """Timeline 2 leaves 1 at 0/500000, 3 leaves 1 at 0/700000, 4 leaves 3, 6 leaves 2, and of 5 there is nothing."""
    for timeline, text in {
        2: "1\t0/500000\tx\n",
        3: "1\t0/700000\tx\n",
        4: "1\t0/700000\tx\n3\t0/900010\tx\n",
        6: "1\t0/500000\tx\n2\t0/800000\tx\n",
    }.items():
        (tmp_path / _wal.history_name(timeline)).write_text(text)
    return directory(tmp_path)


@pytest.mark.parametrize(
    "timeline, lsn, wanted, found",
    [
        (1, 0x400000, "latest", 4),
        (1, 0x400000, "current", 1),
        (1, 0x400000, "1", 1),
        (1, 0x400000, "2", 2),
        (1, 0x400000, "0x6", 6),
        (1, 0x600000, "latest", 4),
        (1, 0x600000, "2", "timeline_unreachable"),
        (1, 0x700000, "latest", 4),
        (1, 0x700001, "latest", "timeline_unreachable"),
        (1, 0x700001, "current", 1),
        (2, 0x600000, "current", 2),
        (2, 0x500000, "current", 2),
        (2, 0x4FFFFF, "current", "timeline_unreachable"),
        (2, 0x600000, "latest", "timeline_unreachable"),
        (2, 0x600000, "6", 6),
        (2, 0x600000, "1", "timeline_unreachable"),
        (3, 0x800000, "latest", 4),
        (4, 0xA00000, "latest", 4),
        (1, 0x400000, "5", "timeline_unknown"),
        (5, 0x400000, "current", 5),
        (5, 0x400000, "latest", "timeline_unreachable"),
        (9, 0x400000, "latest", 9),
        (1, 0x400000, "0", "bad_timeline"),
        (1, 0x400000, "-1", "bad_timeline"),
        (1, 0x400000, "newest", "bad_timeline"),
        (1, 0x400000, "0x100000000", "bad_timeline"),
    ],
)
def test_timeline_path(family: DirectoryArchive, timeline: int, lsn: int, wanted: str, found: int | str) -> None:
    if isinstance(found, str):
        assert code_of(lambda: timeline_path(family, timeline, lsn, wanted)) == found
    else:
        path = timeline_path(family, timeline, lsn, wanted)
        assert path.timeline == found
        assert path.history == (family.history(found) if found not in (5, 9) else [])


def test_unreachable_is_explained(family: DirectoryArchive) -> None:
    with pytest.raises(BackupError) as caught:
        timeline_path(family, 2, 0x600000, "latest")
    assert "it left timeline 1 at 0/700000, it left timeline 3 at 0/900010" in caught.value.msg


@pytest.mark.parametrize("switch", [0x500000, 0x500008, 0x5FFFF8])
def test_needed_segments(switch: int) -> None:
    """As the proof of a backup lists them, wherever the range begins and ends."""
    path = Path(3, [HistoryEntry(1, switch), HistoryEntry(2, 0x7F0000)])
    for start, end in itertools.combinations(range(0x400028, 0x900000, 0x3FFF8), 2):
        names = needed_segments(path, start, end, SIZE)
        assert names[-1] == "00000003.history"
        assert names[:-1] == [
            path_segment(path, number, SIZE) for number in range(start // SIZE, (end - 1) // SIZE + 1)
        ]
        if start < switch and end > 0x7F0000:
            ranges = _timelines.wal_ranges(1, start, 3, end, path.history)
            assert names[:-1] == [one for one in _timelines.required_wal(ranges, SIZE) if _wal.is_segment_name(one)]
    # Before the switch, in its segment: only the newer timeline's file is sure to be archived.
    assert needed_segments(path, 0x7E0000, 0x7EFF00, SIZE)[0][:8] == "00000003"
    assert needed_segments(Path(1, []), 0x400028, 0x500000, SIZE) == [_wal.segment_name(1, 4, SIZE)]


# --- reach ---


def test_reach(tmp_path: pathlib.Path, wal: Wal) -> None:
    names = put(tmp_path, wal)
    path, start = Path(1, []), FIRST * SIZE + 40
    found = reach(directory(tmp_path), path, start)
    assert (found.segments, found.end_segment, found.gap) == (4, FIRST + 3, False)
    assert found.first_missing == _wal.segment_name(1, FIRST + 4, SIZE)
    assert (found.last_lsn, found.last_time_us) == (wal.previous, NOW_US + 3)
    (tmp_path / names[1]).unlink()
    found = reach(directory(tmp_path), path, start)
    assert (found.segments, found.first_missing, found.gap) == (1, names[1], True)
    assert (found.last_lsn, found.last_time_us) == (FIRST * SIZE + 40 + 40, NOW_US + 1)
    # Behind the only transaction.
    found = reach(directory(tmp_path), path, start + 8)
    assert (found.last_lsn, found.last_time_us) == (start + 40, None)
    (tmp_path / names[0]).unlink()
    found = reach(directory(tmp_path), path, start)
    assert found == (0, names[0], FIRST - 1, None, None, True, None)
    put(tmp_path, wal)
    assert reach(directory(tmp_path), path, start, times=False)[3:5] == (None, None)
    for damaged in (3, 2, 1, 0):
        (tmp_path / names[damaged]).write_bytes(b"x" * SIZE)
        found = reach(directory(tmp_path), path, start)
        assert (found.segments, found.end_segment, found.first_missing) == (
            damaged,
            FIRST + damaged - 1,
            names[damaged],
        )
        assert found.damage is not None
        assert found.damage.code == "bad_segment"
        assert found.gap is False
    assert (found.last_lsn, found.last_time_us) == (None, None)


@pytest.mark.parametrize("length", [100, SIZE // 2, 2 * SIZE + 100, 4 * SIZE])
def test_reach_through_a_long_record(tmp_path: pathlib.Path, length: int) -> None:
    """The last transaction ends in another segment than it begins, with nothing else behind it."""
    wal = Wal()
    wal.commit(1)
    wal.fill((FIRST + 1) * SIZE - 64)
    last = wal.commit(2, padding=length)
    put(tmp_path, wal)
    found = reach(directory(tmp_path), Path(1, []), FIRST * SIZE + 40)
    assert (found.last_lsn, found.last_time_us) == (last, NOW_US + 2)
    # Cut off, it does not count.
    (tmp_path / _wal.segment_name(1, wal.last, SIZE)).unlink()
    assert reach(directory(tmp_path), Path(1, []), FIRST * SIZE + 40).last_time_us == NOW_US + 1


def test_reach_across_timelines(tmp_path: pathlib.Path, wal: Wal) -> None:
    """The segment of the switch is there on the newer timeline only."""
    put(tmp_path, wal, 1, [FIRST])
    put(tmp_path, wal, 2, [FIRST + 1, FIRST + 2])
    path = Path(2, [HistoryEntry(1, (FIRST + 1) * SIZE + 4000)])
    found = reach(directory(tmp_path), path, FIRST * SIZE + 40)
    assert (found.segments, found.first_missing) == (3, _wal.segment_name(2, FIRST + 3, SIZE))
    assert reach(directory(tmp_path), Path(1, []), FIRST * SIZE + 40).gap is False


@pytest.mark.parametrize("switch", [0x500000, 0x500008, 0x5FFFF8, 0x600000])
def test_reach_as_path_segment_says(tmp_path: pathlib.Path, switch: int) -> None:
    path = Path(3, [HistoryEntry(1, switch), HistoryEntry(2, 0x7F0000)])
    names = [path_segment(path, number, SIZE) for number in range(4, 11)]
    for name in names:
        with (tmp_path / name).open("wb") as file:
            file.truncate(SIZE)
    for number, name in enumerate(names[:-1], 4):
        assert reach(directory(tmp_path), path, 0x400028, times=False).segments == 7
        (tmp_path / name).rename(tmp_path / "away")
        found = reach(directory(tmp_path), path, 0x400028, times=False)
        assert (found.segments, found.first_missing, found.gap) == (number - 4, name, True)
        (tmp_path / "away").rename(tmp_path / name)


# --- restore_command ---


@pytest.fixture
def odd(tmp_path: pathlib.Path) -> pathlib.Path:
    """An archive in a folder with a name that nobody wants."""
    folder = tmp_path / "100% 'it\"s' $HOME"
    folder.mkdir()
    return folder


def fetch(command: str, name: str, target: pathlib.Path) -> int:
    """Run a restore_command as the server does and return its exit code."""
    line = command.replace("%%", "\0").replace("%f", name).replace("%p", "wal/RECOVERYXLOG").replace("\0", "%")
    (target / "wal").mkdir(exist_ok=True)
    return subprocess.run(["sh", "-c", line], cwd=target, stderr=subprocess.DEVNULL, check=False).returncode


@pytest.mark.parametrize(
    "suffix, tool", [("", "cp"), (".gz", "gzip"), (".zst", "zstd"), (".xz", "xz"), (".lz4", "lz4")]
)
def test_restore_command(
    tmp_path: pathlib.Path, odd: pathlib.Path, wal: Wal, suffix: str, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    names = put(odd, wal)
    if suffix:
        with (odd / (names[0] + suffix)).open("wb") as file:
            subprocess.run([tool, "-qc"], input=wal.segment(FIRST), stdout=file, check=True)
        (odd / names[0]).unlink()
    command = restore_command(directory(odd))
    assert "\n" not in command
    got = tmp_path / "wal" / "RECOVERYXLOG"
    for number, name in enumerate(names):
        assert fetch(command, name, tmp_path) == 0
        assert got.read_bytes() == wal.segment(FIRST + number)
    assert fetch(command, "00000002.history", tmp_path) == 1
    # What is there and cannot be had, or an archive that is not mounted, must not look like the end of the WAL.
    (tmp_path / "wal" / "RECOVERYXLOG").unlink()
    got.mkdir()
    (got / names[0]).mkdir()
    (got / (names[0] + suffix)).mkdir(exist_ok=True)
    assert fetch(command, names[0], tmp_path) == 255
    if suffix:
        (odd / (names[0] + suffix)).write_bytes(b"damaged")
        assert fetch(command, names[0], tmp_path) == 255
    os.rename(odd, tmp_path / "elsewhere")
    assert fetch(command, names[0], tmp_path) == fetch(command, "00000002.history", tmp_path) == 255
    if suffix:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert code_of(lambda: restore_command(directory(tmp_path / "elsewhere"))) == "tool_missing"


def test_restore_command_of_the_role(tmp_path: pathlib.Path, odd: pathlib.Path) -> None:
    """Where the role has put its script, this is asked."""
    script = tmp_path / _archive.SCRIPT
    script.write_text("import sys; print(sys.argv[1:]); sys.exit(9)")
    command = restore_command(DirectoryArchive(f"{odd}/", SIZE, NUMBER))
    words = shlex.split(command.partition("; ")[2])
    assert words[:4] == [sys.executable.replace("%", "%%"), "-I", str(script), "restore"]
    assert words[4:] == [f"{odd}/".replace("%", "%%"), "%f", "%p"]
    assert fetch(command, "00000002.history", tmp_path) == 9
    script.unlink()
    assert fetch(command, "00000002.history", tmp_path) == 255
    assert restore_command(CommandArchive("anything %f %p", SIZE, None)) == "anything %f %p"
