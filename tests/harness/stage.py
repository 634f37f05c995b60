# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the demo lies and how it is shown: its folder, the processes in it, headings and tables."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shlex
import shutil
import signal
import time
import typing as t

from . import binaries
from .modules import CLONE
from .servers import is_alive, wait_until
from .user import run, server_user

# The path of a Unix socket has at most 107 bytes; Ansible's is <folder>/tmp/pymp-12345678/listener-12345678
LONGEST_PATH: t.Final = 70


class DemoError(Exception):
    """A step went wrong; the text says what to do."""


# -- the folder ------------------------------------------------------------------------------------------------------


def places() -> tuple[pathlib.Path, pathlib.Path]:
    """Return where the demo's folder may be: in the clone, and in the cache under a name that is the clone's own."""
    name = "demo-" + hashlib.sha256(os.fsencode(CLONE)).hexdigest()[:8]
    return CLONE / "demo-sandbox", binaries.cache_directory() / name


def choose_folder() -> pathlib.Path:
    """Return the first place that the server user can reach and whose sockets have short enough paths."""
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
    """Return the demo's processes: those that name the folder, or something in it, as an argument."""
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
            continue  # It has ended meanwhile.
    return [pid for pid in found if is_alive(pid) and pid not in _ancestors()]


def _ancestors() -> set[int]:
    """Return this process and those that it was started by: somebody's shell may name the folder, too."""
    pids = {pid := os.getpid()}
    while pid > 1:
        pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        pids.add(pid)
    return pids


def end_processes(folder: pathlib.Path) -> None:
    """End whatever runs in the folder."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes(folder):
            with contextlib.suppress(OSError):
                # An immediate shutdown: SIGTERM would wait for the clients, SIGKILL leaves shared memory behind.
                server = pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"
                os.kill(pid, signal.SIGQUIT if server and number == signal.SIGTERM else number)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not processes(folder), f"nothing runs in {folder}", timeout=10)
            return


def down() -> list[pathlib.Path]:
    """End and remove every demo of this clone; return the folders that there were."""
    there = [path for path in places() if path.exists()]
    for path in there:
        end_processes(path)
        shutil.rmtree(path)
    return there


# -- what is shown ---------------------------------------------------------------------------------------------------


class Show:
    """Numbered headings and indented lines."""

    def __init__(self) -> None:
        self.step = 0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self.started

    def heading(self, text: str) -> None:
        """Begin the next step."""
        self.step += 1
        print(f"\n{self.step}. {text}  [{self.seconds:.0f} s]", flush=True)

    @staticmethod
    def say(text: str = "") -> None:
        """Print something of this step."""
        for line in text.splitlines() or [""]:
            print(f"   {line}".rstrip(), flush=True)

    def command(self, *args: str | os.PathLike[str]) -> None:
        """Print a command that could be repeated by hand."""
        self.say(f"$ {shlex.join([os.fspath(arg) for arg in args])}")


def table(rows: t.Sequence[t.Sequence[str]]) -> str:
    """Return rows, the first of them a heading, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def shortened(path: str | os.PathLike[str]) -> str:
    """Return a path relative to the clone, in which the commands shown are run, if it is in there."""
    absolute = pathlib.Path(path)
    return str(absolute.relative_to(CLONE)) if absolute.is_relative_to(CLONE) else str(absolute)
