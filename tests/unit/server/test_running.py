# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running servers and mounts, with a process that imitates a server."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import subprocess
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import paths as _paths
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import running as _live

from tests.unit.helpers.processes import wait_until


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """A data directory with a tablespace whose location is not valid UTF-8, and with pg_wal as a link."""
    made = tmp_path / "data"
    (made / "pg_tblspc").mkdir(parents=True)
    (made / "PG_VERSION").write_text("18\n")
    for name in (b"caf\xe9", b"wal"):
        os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    os.symlink(os.fsencode(tmp_path) + b"/caf\xe9", made / "pg_tblspc/16385")
    (made / "pg_wal").symlink_to(tmp_path / "wal")
    return made


@pytest.fixture
def process(tmp_path: pathlib.Path, data: pathlib.Path) -> t.Iterator[int]:
    """A process named postgres whose working directory is this data directory."""
    program = tmp_path / "postgres"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    running = subprocess.Popen([program, "60"], cwd=data)
    try:
        name = pathlib.Path(f"/proc/{running.pid}/comm")
        wait_until(lambda: name.read_text() == "postgres\n", "it runs")
        yield running.pid
    finally:
        running.kill()
        running.wait()


def test_running(tmp_path: pathlib.Path, data: pathlib.Path, process: int) -> None:
    place = os.fsencode(data)
    (server,) = [one for one in _live.running_servers() if one.pid == process]
    top = os.fsencode(tmp_path)
    assert (server.data_directory, server.identity) == (place, _paths.identity(place))
    for name in (b"", b"/caf\xe9", b"/wal", b"/wal/in_it"):
        assert server.uses(top + name), name
    assert not server.uses(top + b"/elsewhere")
    assert _paths.identity(top + b"/wal") in [one.identity for one in server.held]
    link = tmp_path / "link"
    link.symlink_to(data)
    assert _live.server_in(os.fsencode(link), [server]) == process
    assert _live.server_in(top, [server]) is None
    with pytest.raises(BackupError) as caught:
        _live.refuse_running(place)
    assert (caught.value.code, str(process) in caught.value.msg) == ("server_running", True)


@pytest.mark.parametrize("link", ["../../side/../side/space", "../detour", "{top}/detour"])
def test_links_are_resolved_by_the_kernel(tmp_path: pathlib.Path, data: pathlib.Path, process: int, link: str) -> None:
    """A relative link, and one over another link, lead to the same directory as for the server."""
    (tmp_path / "side/space").mkdir(parents=True)
    for place in (data, tmp_path):
        (place / "detour").symlink_to(tmp_path / "side/space")
    (data / "pg_tblspc/16386").symlink_to(link.format(top=tmp_path))
    (server,) = [one for one in _live.running_servers() if one.pid == process]
    assert server.uses(os.fsencode(tmp_path / "side/space"))
    assert server.uses(os.fsencode(tmp_path / "side/space/PG_18_1/5"))
    assert not server.uses(os.fsencode(tmp_path / "side/other"))


def test_not_running(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A stale postmaster.pid with the id of a living process is not a server."""
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n")
    _live.refuse_running(os.fsencode(data))
    assert _live.tablespaces_of(os.fsencode(tmp_path / "absent")) == {}
    assert _paths.identity(os.fsencode(tmp_path / "absent")) is None


def test_main_process(data: pathlib.Path, process: int) -> None:
    """postmaster.pid gives the status; the server is also found without it."""
    found = _live.find_server(str(data))
    assert found == _live.Postmaster(process, "", True)
    (data / "postmaster.pid").write_text(f"{process}\n{data}\n1\n5432\n/tmp\n\n\nready   \n")
    assert _live.find_server(os.fsencode(data)) == _live.Postmaster(process, "ready", True)
    assert _live.main_process(str(data)) == _live.Postmaster(process, "ready", True)
    assert _live.find_server(str(data.parent)) is None


def test_main_process_was_killed(data: pathlib.Path, process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its remaining children still prevent a restore, but do not form a server."""
    monkeypatch.setattr(_live, "_words", lambda _pid: [b"postgres: checkpointer "])
    assert _live.find_server(str(data)) == _live.Postmaster(process, "", False)
    assert _live.main_process(str(data)) is None
    with pytest.raises(BackupError) as caught:
        _live.refuse_running(os.fsencode(data))
    assert caught.value.code == "server_running"


@pytest.mark.parametrize("words", [[b"postgres", b"--single"], [b"postgres", b"--boot", b"-D"]])
def test_a_program_that_is_not_a_server(
    data: pathlib.Path, process: int, monkeypatch: pytest.MonkeyPatch, words: list[bytes]
) -> None:
    """A single-user session or initdb prevents a restore, but it is never signalled and never counts as started."""
    monkeypatch.setattr(_live, "_words", lambda _pid: words)
    assert _live.main_process(str(data)) is None
    with pytest.raises(BackupError) as caught:
        _live.refuse_running(os.fsencode(data))
    assert caught.value.code == "server_running"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
def test_another_accounts_process(data: pathlib.Path, process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot be inspected may be the server only if it is a postgres of the data directory's owner."""
    (data / "postmaster.pid").write_text(f"{process}\n")
    real = os.stat

    def denied(path: t.Any, **options: t.Any) -> os.stat_result:
        if os.fsdecode(path) == f"/proc/{process}/cwd":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", denied)
    monkeypatch.setattr(_live, "_named_directory", lambda _pid: b"")
    with pytest.raises(BackupError) as caught:
        _live.find_server(str(data))
    assert caught.value.code == "not_the_server_user"
    os.chown(data, 12345, -1)
    assert _live.find_server(str(data)) is None
    os.chown(data, os.geteuid(), -1)
    monkeypatch.setattr(_live, "_is_server_process", lambda _pid: False)
    assert _live.find_server(str(data)) is None


def test_unknown_directories_are_not_the_same(data: pathlib.Path) -> None:
    """A server with unreadable links shares nothing with a directory that does not exist."""
    server = _live.Running(1, b"/elsewhere", None, (_live.Held(b"relative"),))
    assert not server.uses(os.fsencode(data / "absent"))
    assert _live.server_in(os.fsencode(data / "absent"), [server]) is None
    known = _live.Running(1, b"/elsewhere", (1, 2))
    assert _live.server_in(os.fsencode(data / "absent"), [known]) is None


def test_another_account(monkeypatch: pytest.MonkeyPatch, data: pathlib.Path, process: int) -> None:
    """Only the command line of its processes can be read."""

    def denied(_path: bytes) -> os.stat_result:
        raise PermissionError

    monkeypatch.setattr(_live, "_named_directory", lambda _pid: os.fsencode(data))
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", denied)
        server = _live._server_of(process)
    assert server == _live.Running(process, os.fsencode(data), None)
    assert _live.server_in(os.fsencode(data), [server]) == process


@pytest.mark.parametrize(
    "words, expected",
    [
        ([b"postgres", b"-D", b"/data"], b"/data"),
        ([b"postgres", b"-D/data"], b"/data"),
        ([b"postgres: checkpointer "], b""),
    ],
)
def test_command_line(words: list[bytes], expected: bytes) -> None:
    command = ["/bin/sh", "-c", "echo; read word", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        # A process gets its command line a moment after its start.
        assert running.stdout
        assert running.stdout.readline()
        assert _live._named_directory(running.pid) == expected
