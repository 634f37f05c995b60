# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof that WAL is archived: the server's rule on given answers, and files in every form."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import pathlib
import shutil
import struct
import subprocess
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import archiver as _archived
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import archived as _wal_archived
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import files as _walfile

from tests.unit.helpers.backups import IDENTIFIER

SIZE = 1 << 20
NAMES = [f"0000000200000000000000{number:02X}" for number in range(6)]
HISTORY = "00000002.history"


class MadeUpServer:
    """The content of a server's two directories, and its write position; it answers three queries."""

    def __init__(self, files: t.Iterable[str], status: t.Iterable[str], current: str = "0/500028") -> None:
        self.files, self.status, self.current = set(files), set(status), current
        self.later: t.Callable[[], None] = lambda: None

    def rows(self, query: str, parameters: t.Sequence[t.Any] = ()) -> list[dict[str, t.Any]]:
        if "pg_ls_archive_statusdir" in query:
            found = [{"name": name} for name in parameters[0] if name in self.status]
            self.later()
            return found
        if "pg_ls_waldir" in query:
            return [{"name": name} for name in parameters[0] if name in self.files]
        raise AssertionError(query)

    def value(self, query: str, parameters: t.Sequence[t.Any] = ()) -> t.Any:
        assert query == "SELECT pg_current_wal_insert_lsn()::text"
        return self.current

    def row(self, query: str, parameters: t.Sequence[t.Any] = ()) -> dict[str, t.Any]:
        assert "pg_last_wal_receive_lsn" in query
        return {"a": self.current, "b": None}

    def missing(self, names: t.Sequence[str], **info: t.Any) -> list[str]:
        facts = {"role": "primary", "timeline": 2, "wal_segment_size": SIZE, "address": "db:5432"}
        facts["archiving"] = {"mode": info.pop("mode", "on")}
        return _archived.missing_on_server(t.cast(t.Any, self), {**facts, **info}, names)


@pytest.mark.parametrize(
    "status, present, archived",
    [
        (".done", True, True),
        (".done", False, True),
        (".ready", True, False),
        (".ready", False, False),
        (None, True, False),
        # Recycled, which happens only after archiving.
        (None, False, True),
    ],
)
@pytest.mark.parametrize("name", [NAMES[3], HISTORY])
def test_decision(name: str, status: str | None, present: bool, archived: bool) -> None:
    server = MadeUpServer([name] if present else [], [name + status] if status else [])
    assert server.missing([name]) == ([] if archived else [name])


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_the_future_is_not_archived(role: str) -> None:
    """Segments not yet written are in no list, and neither are recycled ones."""
    server = MadeUpServer([], [], current="0/300000")
    wanted = [*NAMES, HISTORY, "00000003.history", "000000030000000000000001"]
    assert server.missing(wanted, role=role, mode="always") == [*NAMES[3:], "00000003.history", wanted[-1]]
    # At the boundary the previous segment is finished; one byte earlier it is not.
    assert MadeUpServer([], [], current="0/2FFFFF").missing(NAMES[:3], role=role, mode="always") == [NAMES[2]]


def test_a_standby_that_has_received_nothing() -> None:
    server = MadeUpServer([], [])
    server.current = ""
    assert server.missing(NAMES[:2], role="standby", mode="always") == NAMES[:2]


def test_status_of_an_unfinished_segment() -> None:
    """A file for a later segment does not count, even if its status is done."""
    server = MadeUpServer(NAMES, [name + ".done" for name in NAMES], current="0/400000")
    assert server.missing(NAMES) == NAMES[4:]


@pytest.mark.parametrize("then, archived", [(".done", True), (".ready", False), (None, True)])
def test_between_two_looks(then: str | None, archived: bool) -> None:
    """Ready at the first look; done, still ready, or done and recycled at the second."""
    name = NAMES[1]
    server = MadeUpServer([name], [name + ".ready"])

    def change() -> None:
        server.status = {name + then} if then else set()
        server.files = {name} if then else set()

    server.later = change
    missing = server.missing([name])
    # A segment that was ready counts as missing until its status is done: the next look decides.
    assert missing == ([] if then == ".done" else [name])
    server.later = lambda: None
    assert server.missing([name]) == ([] if archived else [name])


def test_order_is_kept() -> None:
    server = MadeUpServer([], [NAMES[4] + ".ready", NAMES[1] + ".ready"], current="0/500000")
    assert server.missing([HISTORY, NAMES[5], NAMES[4], NAMES[0], NAMES[1]]) == [NAMES[5], NAMES[4], NAMES[1]]


def test_server_that_does_not_know() -> None:
    """With archive_mode=off no segment has a status, and a recycled one would pass for archived."""
    server = MadeUpServer([], [])
    with pytest.raises(BackupError) as caught:
        server.missing(NAMES[:1], mode="off")
    assert caught.value.code == "not_the_archiver"
    older = "000000010000000000000001"
    server = MadeUpServer([older], [older + ".done"])
    with pytest.raises(BackupError) as caught:
        server.missing([NAMES[1], older])
    assert (caught.value.code, caught.value.details["missing"]) == ("older_timeline", [older])


def test_waiting() -> None:
    answers = [["a", "b"], ["b"], []]
    assert _wal_archived.wait_archived(lambda _names: answers.pop(0), ["a", "b"], 10, 0.01) == []
    assert _wal_archived.wait_archived(lambda _names: ["b"], ["a", "b"], 0, 10) == ["b"]
    assert _wal_archived.wait_archived(lambda _names: ["b"], ["a", "b"], 0.05, 10) == ["b"]


# --- files ---


def segment(number: int = 3, timeline: int = 2, identifier: int = int(IDENTIFIER), size: int = SIZE) -> bytes:
    """Return a WAL segment with a valid header."""
    header = struct.pack("<HHIQI4xQII", 0xD116, 0x0002, timeline, number * SIZE, 0, identifier, size, 8192)
    return header.ljust(SIZE, b"\0")


def command(name: str) -> t.Callable[[bytes], bytes]:
    """Return the function that compresses with this command; skip the test if it is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return lambda content: subprocess.run([name, "-qc"], input=content, stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture(params=["", ".gz", ".xz", ".bz2", ".zst", ".lz4"])
def shape(request: pytest.FixtureRequest) -> tuple[str, t.Callable[[bytes], bytes]]:
    """A file name's suffix, and the function that makes the content."""
    makers: dict[str, t.Callable[[bytes], bytes]] = {
        "": lambda content: content,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
    }
    suffix = request.param
    return suffix, makers[suffix] if suffix in makers else command({".zst": "zstd", ".lz4": "lz4"}[suffix])


Shape = t.Tuple[str, t.Callable[[bytes], bytes]]


def missing(folder: pathlib.Path, name: str) -> list[str]:
    return _wal_archived.missing_in_directory(str(folder), [name], SIZE, int(IDENTIFIER))


def test_good_segment(tmp_path: pathlib.Path, shape: Shape) -> None:
    suffix, make = shape
    assert missing(tmp_path, NAMES[3]) == [NAMES[3]]
    (tmp_path / (NAMES[3] + suffix)).write_bytes(make(segment()))
    assert missing(tmp_path, NAMES[3]) == []
    # A new timeline's first segment may begin as a copy of its parent's.
    (tmp_path / (NAMES[3] + suffix)).write_bytes(make(segment(timeline=1)))
    assert missing(tmp_path, NAMES[3]) == []


def test_segment_that_is_still_being_written(tmp_path: pathlib.Path, shape: Shape) -> None:
    """A truncated segment is missing, not an error: it may be whole at the next look."""
    suffix, make = shape
    content = make(segment())
    for length in (0, 1, 10, len(content) // 2, len(content) - 1):
        (tmp_path / (NAMES[3] + suffix)).write_bytes(content[:length])
        assert missing(tmp_path, NAMES[3]) == [NAMES[3]], length
    (tmp_path / (NAMES[3] + suffix)).write_bytes(make(segment()[:-1]))
    assert missing(tmp_path, NAMES[3]) == [NAMES[3]]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(segment(identifier=1), id="another cluster"),
        pytest.param(segment(number=4), id="another position"),
        pytest.param(segment(timeline=3), id="another timeline"),
        pytest.param(segment(size=2 * SIZE), id="another size"),
        pytest.param(segment() + b"\0", id="too long"),
        pytest.param(b"x" * SIZE, id="no WAL"),
    ],
)
def test_segment_of_something_else(tmp_path: pathlib.Path, shape: Shape, content: bytes) -> None:
    """Waiting cannot correct a foreign segment."""
    suffix, make = shape
    (tmp_path / (NAMES[3] + suffix)).write_bytes(make(content))
    with pytest.raises(BackupError) as caught:
        missing(tmp_path, NAMES[3])
    assert caught.value.code == "bad_segment"


def test_damaged_compression(tmp_path: pathlib.Path, shape: Shape) -> None:
    suffix, make = shape
    if not suffix:
        return
    content = bytearray(make(os.urandom(1000) + segment()[1000:]))
    content[len(content) // 2 :: 7] = bytes(len(content[len(content) // 2 :: 7]))
    (tmp_path / (NAMES[3] + suffix)).write_bytes(content)
    # Damaged or, if the damage is not noticed, not a segment; never archived, never a traceback.
    with contextlib.suppress(BackupError):
        assert missing(tmp_path, NAMES[3]) == [NAMES[3]]


def test_partial_is_not_the_segment(tmp_path: pathlib.Path) -> None:
    (tmp_path / (NAMES[3] + ".partial")).write_bytes(segment())
    (tmp_path / (NAMES[3] + ".gz")).mkdir()
    assert missing(tmp_path, NAMES[3]) == [NAMES[3]]


def test_missing_tool(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / (NAMES[3] + ".zst")).write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError) as caught:
        missing(tmp_path, NAMES[3])
    assert (caught.value.code, "zstd" in caught.value.hint) == ("tool_missing", True)


def test_history(tmp_path: pathlib.Path, shape: Shape) -> None:
    suffix, make = shape
    place = tmp_path / (HISTORY + suffix)
    place.write_bytes(make(b""))
    assert missing(tmp_path, HISTORY) == [HISTORY]
    place.write_bytes(make(b"1\t0/3000000\tno recovery target specified\n"))
    assert missing(tmp_path, HISTORY) == []
    place.write_bytes(make(b"something else\n"))
    with pytest.raises(BackupError) as caught:
        missing(tmp_path, HISTORY)
    assert caught.value.code == "bad_history"


def test_long_history(tmp_path: pathlib.Path) -> None:
    """The history of hundreds of failovers does not fit into one page."""
    lines = [f"{number}\t0/{number:X}000000\tno recovery target specified\n" for number in range(1, 255)]
    (tmp_path / "000000FF.history").write_text("".join(lines))
    assert missing(tmp_path, "000000FF.history") == []


def test_restore_command(tmp_path: pathlib.Path) -> None:
    archive = tmp_path / "arch ive"
    archive.mkdir()
    (archive / NAMES[3]).write_bytes(segment())

    def fetch(line: str) -> list[str]:
        return _wal_archived.missing_by_command(line, [NAMES[3], NAMES[4]], SIZE, int(IDENTIFIER))

    assert fetch(f'cp "{archive}/%f" "%p"') == [NAMES[4]]
    assert fetch(f'echo 100%% > {tmp_path}/said; cp "{archive}/%f" %p') == [NAMES[4]]
    assert (tmp_path / "said").read_text() == "100%\n"
    assert (
        fetch("true") == fetch("exit 3") == fetch("no_such_command_here") == fetch("kill -9 $$") == [NAMES[3], NAMES[4]]
    )
    assert fetch(f'head -c 100 "{archive}/{NAMES[3]}" > %p') == [NAMES[3], NAMES[4]]
    (archive / NAMES[4]).write_bytes(segment(identifier=1))
    with pytest.raises(BackupError) as caught:
        fetch(f'cp "{archive}/%f" "%p"')
    assert NAMES[4] in caught.value.msg


def test_restore_command_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_walfile, "COMMAND_SECONDS", 0.1)
    assert _wal_archived.missing_by_command("exec sleep 5", NAMES[3:4], SIZE, int(IDENTIFIER)) == NAMES[3:4]
