# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server is started on its own directory and no other, whatever the configuration says."""

from __future__ import annotations

import pathlib
import shutil
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import process as _process

from tests.harness import binaries
from tests.harness.modules import Result, run_module_as_server
from tests.harness.sandbox import Sandbox, free_port
from tests.harness.servers import Server
from tests.harness.user import own_file, popen, run


class Debian(t.NamedTuple):
    """A server whose configuration is outside its data directory and names it, as Debian's packages do."""

    live: Server
    folder: pathlib.Path
    config_file: pathlib.Path
    pid_file: pathlib.Path


@pytest.fixture
def debian(sandbox: Sandbox, major: int) -> Debian:
    """It is stopped; every file that it uses is named in its configuration."""
    live = sandbox.primary(major, archive=False)
    live.stop()
    folder = sandbox.directory("etc")
    for name in ("pg_hba.conf", "pg_ident.conf"):
        own_file(folder / name, (live.data / name).read_text())
    pid_file = sandbox.root / "run" / "live.pid"
    sandbox.directory("run")
    text = (live.data / "postgresql.conf").read_text()
    text += f"data_directory = '{live.data}'\nhba_file = '{folder}/pg_hba.conf'\n"
    text += f"ident_file = '{folder}/pg_ident.conf'\nexternal_pid_file = '{pid_file}'\n"
    return Debian(live, folder, own_file(folder / "postgresql.conf", text), pid_file)


def copy_of(sandbox: Sandbox, live: Server, name: str = "copy") -> pathlib.Path:
    """Copy a stopped server's directory; the copy listens on another port."""
    place = sandbox.root / name
    run(["cp", "-a", live.data, place])
    sandbox.on_close(lambda: state(live.major, place, "stopped", mode="immediate"))
    own_file(place / "postgresql.auto.conf", f"port = {free_port()}\n")
    return place


def state(major: int, place: pathlib.Path, state: str, **arguments: t.Any) -> Result:
    """Call the module as the server's user."""
    programs = str(binaries.prefix(major) / "bin")
    given = {"data_directory": str(place), "state": state, "bin_directory": programs, **arguments}
    return run_module_as_server("server_state", given)


@pytest.mark.majors(14, 18)
@pytest.mark.parametrize("up", [False, True])
def test_the_copy_is_started_and_not_the_live_directory(sandbox: Sandbox, debian: Debian, up: bool) -> None:
    """The live server's configuration names the live directory, which beats -D; its pid file is not the copy's."""
    place = copy_of(sandbox, debian.live)
    if up:
        assert state(debian.live.major, debian.live.data, "started", config_file=str(debian.config_file))["changed"]
        assert debian.pid_file.read_text().strip() == str(debian.live.pid)
    before = debian.live.pid
    done = state(debian.live.major, place, "started", config_file=str(debian.config_file))
    assert (done.get("failed"), done.get("changed")) == (None, True), done
    assert debian.live.pid == before
    found = _process.server_process(str(place))
    assert found is not None
    assert (found.data_directory, found.config_file) == (str(place), str(debian.config_file))
    assert (found.hba_file, found.external_pid_file) == (f"{debian.folder}/pg_hba.conf", "")
    assert debian.pid_file.exists() is up
    assert state(debian.live.major, place, "restarted")["changed"]
    assert debian.live.pid == before
    assert state(debian.live.major, place, "stopped")["changed"]
    assert debian.live.pid == before


def test_a_server_on_another_directory_is_stopped_again(
    sandbox: Sandbox, debian: Debian, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What started is looked at, however it came to run elsewhere: here the start does not name the directory."""
    from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import pg_ctl as _pg_ctl

    place = copy_of(sandbox, debian.live)
    monkeypatch.setattr(_pg_ctl, "naming", lambda places, *_given: ["-c", f"config_file={places['config_file']}"])
    failed = state(debian.live.major, place, "started", config_file=str(debian.config_file))
    assert failed["code"] == "other_directory"
    assert str(debian.live.data) in failed["msg"]
    assert debian.live.pid is None
    assert _process.server_process(str(debian.live.data)) is None


def test_no_shell_reads_a_name(sandbox: Sandbox, major: int) -> None:
    """Nor does it matter for the server."""
    live = sandbox.primary(major, archive=False)
    live.stop()
    touched = sandbox.root / "touched"
    place = sandbox.root / f"$(touch${{IFS}}{touched.name})`id`;'\" copy"
    run(["cp", "-a", live.data, place])
    sandbox.on_close(lambda: state(major, place, "stopped", mode="immediate"))
    log = sandbox.root / "log $(id)"
    assert state(major, place, "started", log_file=str(log))["changed"], log.read_text()
    assert state(major, place, "restarted")["changed"]
    assert state(major, place, "stopped")["changed"]
    assert not list(sandbox.root.rglob("touched"))
    shutil.rmtree(place)


def test_a_stale_process_id_of_a_process_in_the_directory(sandbox: Sandbox, major: int) -> None:
    """A person's shell stands in the data directory, and its number is that of a server that died with the machine."""
    live = sandbox.primary(major, archive=False)
    lines = (live.data / "postmaster.pid").read_text().split("\n", 1)
    live.kill()
    with popen(["sleep", "60"], cwd=live.data) as shell:
        own_file(live.data / "postmaster.pid", f"{shell.pid}\n{lines[1]}")
        assert state(major, live.data, "stopped", mode="immediate")["changed"] is False
        assert shell.poll() is None
        shell.kill()
