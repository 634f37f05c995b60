# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a test must not leave: processes, sessions, files of an unfinished backup."""

from __future__ import annotations

import contextlib
import os
import pathlib
import typing as t

from tests.harness.binaries import cache_directory
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.integration.helpers.files import read_json


def processes() -> list[int]:
    """Return all process ids."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descriptors(pid: int) -> set[str]:
    """Return the files that a process has open; none if it has ended or may not be inspected."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def command_line(pid: int) -> str:
    """Return a process's command line, '' if it has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def left_behind(root: pathlib.Path) -> dict[int, str]:
    """Return the processes, except PostgreSQL's, that name ``root`` on their command line or have a file in it open."""
    found = {}
    for pid in processes():
        try:
            program = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            continue
        if pid == os.getpid() or program.startswith(str(cache_directory() / "postgresql-")):
            continue
        if str(root) in command_line(pid) or any(name.startswith(f"{root}/") for name in descriptors(pid)):
            found[pid] = command_line(pid)
    return found


def sessions(server: Server) -> list[tuple[t.Any, ...]]:
    """Return pid and state of the collection's sessions in the server."""
    return server.sql(
        "SELECT pid, application_name, state FROM pg_stat_activity WHERE application_name LIKE 'pgfleet.basebackup%'"
    )


def all_is_well(sandbox: Sandbox, repository: pathlib.Path, *servers: Server, unfinished: t.Sequence[str] = ()) -> None:
    """Require that servers, repository and machine are as a backup must leave them, whether it succeeded or failed."""
    for server in servers:
        # mypy infers no type for a lambda with a default, which binds the loop's variable.
        wait_until(lambda server=server: not sessions(server), f"{server.name} has no session of ours", timeout=10)  # type: ignore[misc]
        assert not (server.data / "backup_label").exists()
        assert not (server.data / "tablespace_map").exists()
        if not server.in_recovery:
            server.sql("CHECKPOINT")
    wait_until(lambda: not left_behind(sandbox.root), f"left behind: {left_behind(sandbox.root)}", timeout=10)
    for cluster in repository.iterdir():
        assert sorted(os.listdir(cluster / "in_progress")) == sorted(unfinished)
        for backup in (cluster / "backups").iterdir():
            assert read_json(backup / "backup.json")["state"] == "complete"
            assert {path.name for path in backup.iterdir()} == {"backup.json", "data", "tablespaces"}
            for name in ("backup_label", "backup_manifest", "global/pg_control"):
                assert (backup / "data" / name).is_file()
