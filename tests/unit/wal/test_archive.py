# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive: its files, read as a directory and through a command, and the restore_command for it."""

from __future__ import annotations

import gzip
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import script as _script
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import segments as _wal
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.archive import (
    Archive,
    CommandArchive,
    DirectoryArchive,
    open_archive,
    restore_command,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal.timelines import HistoryEntry

from tests.unit.helpers.errors import code_of
from tests.unit.helpers.made_up_wal import FIRST, NUMBER, SIZE, Wal, directory_archive, put


@pytest.fixture(params=["directory", "command"])
def archive(request: pytest.FixtureRequest, tmp_path: pathlib.Path, wal: Wal) -> Archive:
    """The same archive, read as a directory and through a command."""
    put(tmp_path, wal)
    (tmp_path / "00000002.history").write_text("1\t0/350000\twhy\n")
    if request.param == "directory":
        return directory_archive(tmp_path)
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
    archive = directory_archive(tmp_path)
    assert archive.names() == {names[0], names[2], names[3], "00000002.history"}
    assert [archive.has(name) for name in names] == [True, False, True, True]
    assert sorted(archive.numbers()[1]) == [FIRST, FIRST + 2, FIRST + 3]
    assert code_of(lambda: directory_archive(tmp_path / "no").names()) == "archive_unreadable"


def test_open(tmp_path: pathlib.Path) -> None:
    assert isinstance(open_archive(str(tmp_path), None, SIZE, None), DirectoryArchive)
    assert isinstance(open_archive(None, "false", SIZE, None), CommandArchive)
    assert open_archive(None, None, SIZE, None) is None
    assert code_of(lambda: open_archive(str(tmp_path / "no"), None, SIZE, None)) == "archive_missing"


@pytest.fixture
def odd(tmp_path: pathlib.Path) -> pathlib.Path:
    """An archive in a folder with an awkward name."""
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
    command = restore_command(directory_archive(odd))
    assert "\n" not in command
    got = tmp_path / "wal" / "RECOVERYXLOG"
    for number, name in enumerate(names):
        assert fetch(command, name, tmp_path) == 0
        assert got.read_bytes() == wal.segment(FIRST + number)
    assert fetch(command, "00000002.history", tmp_path) == 1
    # An unreadable file, or an archive that is not mounted, must not pass for the end of the WAL.
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
        assert code_of(lambda: restore_command(directory_archive(tmp_path / "elsewhere"))) == "tool_missing"


def test_restore_command_of_the_role(
    tmp_path: pathlib.Path, odd: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command uses the role's script if it is installed, never one that lies beside the archive or is not ours."""
    beside = tmp_path / _script.SCRIPT
    beside.write_text("")
    scripts = tmp_path / "scripts"
    monkeypatch.setattr(_script, "default_directory", lambda: str(scripts))
    assert _script.SCRIPT not in restore_command(directory_archive(odd))
    scripts.mkdir(mode=0o700)
    script = scripts / _script.SCRIPT
    script.write_text("import sys; print(sys.argv[1:]); sys.exit(9)")
    for place, mode in ((script, 0o666), (scripts, 0o770)):
        before = place.stat().st_mode
        place.chmod(mode)
        assert _script.SCRIPT not in restore_command(directory_archive(odd))
        place.chmod(before)
    command = restore_command(DirectoryArchive(f"{odd}/", SIZE, NUMBER))
    words = shlex.split(command.partition("; ")[2])
    assert words[:4] == [sys.executable.replace("%", "%%"), "-I", str(script), "restore"]
    assert words[4:] == [f"{odd}/".replace("%", "%%"), "%f", "%p"]
    assert fetch(command, "00000002.history", tmp_path) == 9
    script.unlink()
    assert fetch(command, "00000002.history", tmp_path) == 255
    assert restore_command(CommandArchive("anything %f %p", SIZE, None)) == "anything %f %p"


@pytest.mark.parametrize(
    "name", ["x; id;", "$(touch x)", "../00000001000000000000000A", "00000001000000000000000A\n", ""]
)
def test_no_other_name_reaches_the_shell(tmp_path: pathlib.Path, name: str) -> None:
    """A restore_command is run by a shell, and the name may come from a record."""
    noted = tmp_path / "noted"
    archive = CommandArchive(f"touch {noted}; : %f %p", SIZE, NUMBER)
    assert code_of(lambda: archive.holds(name)) == "bad_wal_name"
    assert code_of(lambda: archive.read(name)) == "bad_wal_name"
    assert not noted.exists()
