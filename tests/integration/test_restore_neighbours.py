# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore never touches what another live server of this host uses, whatever its links look like."""

from __future__ import annotations

import os
import pathlib
import subprocess
import typing as t

import pytest

from tests.harness import binaries
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server
from tests.harness.user import me, own_directory, run, server_user
from tests.integration.helpers.files import untouched
from tests.integration.helpers.source import Source


class Neighbour(t.NamedTuple):
    """Another live server, and its directories that the restore is told to use by mistake."""

    server: Server
    space: pathlib.Path
    wal: pathlib.Path


def beside(sandbox: Sandbox, major: int) -> Neighbour:
    """Start a server whose links to its tablespace and its WAL are relative, one over a detour."""
    server = sandbox.primary(major, name="neighbour", archive=False, tablespaces=["precious"])
    server.stop()
    space, wal = server.directory / "tablespaces" / "precious", server.directory / "wal"
    (link,) = (server.data / "pg_tblspc").iterdir()
    link.unlink()
    (server.directory / "detour").symlink_to(server.directory / "tablespaces")
    link.symlink_to("../../detour/precious")
    run(["mv", server.data / "pg_wal", wal])
    (server.data / "pg_wal").symlink_to("../wal")
    server.start()
    assert server.value("SELECT count(*) FROM in_precious") == 1000
    return Neighbour(server, space, wal)


def is_refused(source: Source, place: Server, **options: t.Any) -> None:
    """Require a refusal by the plan and by the run."""
    planned = source.run(place, check=True, **options)
    assert planned.get("restorable") is False, planned
    answer = source.run(place, **options)
    assert answer.get("failed"), answer
    assert "Traceback" not in str(answer.get("exception", "")), answer


@pytest.mark.majors(14, 18)
def test_links_of_a_live_neighbour(sandbox: Sandbox, major: int) -> None:
    """No place of a restore may be, contain or lie in a directory of the neighbour, with delta or replace."""
    source = Source(sandbox, major, tablespaces=["extra"])
    source.backup()
    oid = source.server.value("SELECT oid::text FROM pg_tablespace WHERE spcname = 'extra'")
    server, space, wal = beside(sandbox, major)
    place = source.place()
    with untouched(space):
        for how in ({"delta": True}, {"replace": True}):
            for path in (space, space.parent.parent / "detour" / "precious", next(space.glob("PG_*")) / "x"):
                is_refused(source, place, tablespace_mapping={oid: str(path)}, **how)
            for path in (space, space.parent, server.directory, wal, wal / "x"):
                is_refused(source, place, data_directory=str(path), **how)
            for path in (space / "x", space, wal, wal / "x"):
                is_refused(source, place, waldir=str(path), **how)
    assert server.value("SELECT count(*) FROM in_precious") == 1000
    server.restart()
    assert server.value("SELECT count(*) FROM in_precious") == 1000


@pytest.mark.majors(18)
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a bind mount in a mount namespace")
def test_a_neighbour_behind_a_bind_mount(sandbox: Sandbox, major: int) -> None:
    """The neighbour runs in a mount namespace, where its directories have paths that mean nothing here."""
    source = Source(sandbox, major, tablespaces=["extra"])
    source.backup()
    oid = source.server.value("SELECT oid::text FROM pg_tablespace WHERE spcname = 'extra'")
    server = sandbox.primary(major, name="neighbour", archive=False, tablespaces=["precious"])
    server.stop()
    space = server.directory / "tablespaces" / "precious"
    inside = own_directory(sandbox.root / "inside")
    (link,) = (server.data / "pg_tblspc").iterdir()
    link.unlink()
    link.symlink_to(inside / "precious")
    ready = f"mount --bind {space.parent} {inside} && echo ready && read end"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", ready], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        user = server_user()
        enter = ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt"]
        enter += ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
        start = [binaries.tool(major, "pg_ctl"), "-D", server.data, "-l", server.log_file, "-s", "-w", "start"]
        run([*enter, *start], user=me(), env=server.env)
        assert server.value("SELECT count(*) FROM in_precious") == 1000
        with untouched(space):
            for how in ({"delta": True}, {"replace": True}):
                is_refused(source, source.place(), tablespace_mapping={oid: str(space)}, **how)
                is_refused(source, source.place(), data_directory=str(space), **how)
        server.stop()
        holder.communicate(b"\n")
