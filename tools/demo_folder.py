# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's folder, and the processes in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import signal
import typing as t

from tests.harness import binaries
from tests.harness.modules import CLONE
from tests.harness.servers import is_alive, wait_until
from tests.harness.user import run, server_user

# A Unix socket's path has at most 107 bytes; Ansible's is <folder>/tmp/pymp-12345678/listener-12345678
LONGEST_PATH: t.Final = 70


class DemoError(Exception):
    """A step failed; the message says why."""


def places() -> tuple[pathlib.Path, pathlib.Path]:
    """Return where the demo's folder may be: in the clone, or in the cache under a name unique to the clone."""
    name = "demo-" + hashlib.sha256(os.fsencode(CLONE)).hexdigest()[:8]
    return CLONE / "demo-sandbox", binaries.cache_directory() / name


def choose_folder() -> pathlib.Path:
    """Return the first place that the server user can reach and whose socket paths are short enough."""
    for path in places():
        path.mkdir()
        path.chmod(0o755)
        if len(os.fsencode(path)) <= LONGEST_PATH and run(["ls", path], check=False).returncode == 0:
            return path
        path.rmdir()
    raise DemoError(
        f"{' and '.join(map(str, places()))} are too long for a socket's path, or {server_user().name} cannot enter"
        " them. Name another folder: PGFLEET_CACHE=/var/tmp/pgfleet make demo"
    )


def processes(folder: pathlib.Path) -> list[int]:
    """Return the demo's processes: those with the folder, or a path in it, as an argument."""
    mine = {os.geteuid(), server_user().uid}
    found = []
    for proc in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            arguments = (proc / "cmdline").read_bytes().split(b"\0")
            if proc.stat().st_uid in mine and any(
                argument == os.fsencode(folder) or argument.startswith(os.fsencode(folder) + b"/")
                for argument in arguments
            ):
                found.append(int(proc.name))
        except OSError:
            continue  # It has ended.
    return [pid for pid in found if is_alive(pid) and pid not in _ancestors()]


def _ancestors() -> set[int]:
    """Return this process and its ancestors: the user's shell may have the folder as an argument, too."""
    pids = {pid := os.getpid()}
    while pid > 1:
        pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        pids.add(pid)
    return pids


def end_processes(folder: pathlib.Path) -> None:
    """End every process in the folder."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes(folder):
            with contextlib.suppress(OSError):
                # An immediate shutdown: SIGTERM would wait for the clients, SIGKILL does not remove the shared memory.
                server = pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"
                os.kill(pid, signal.SIGQUIT if server and number == signal.SIGTERM else number)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not processes(folder), f"nothing runs in {folder}", timeout=20)
            return
    raise DemoError(f"Processes {', '.join(map(str, processes(folder)))} in {folder} do not end.")


def down() -> list[pathlib.Path]:
    """End and remove every demo of this clone; return the folders removed."""
    there = [path for path in places() if path.exists()]
    for path in there:
        end_processes(path)
        _remove(path)
    return there


def _remove(path: pathlib.Path) -> None:
    def removed() -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()

    # The last processes of a killed server may still write for a moment.
    wait_until(removed, f"{path} is removed", timeout=20)
