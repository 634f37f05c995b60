# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a WAL archive, plain or compressed, and the command that fetches one.

Private to pgfleet.basebackup. Room ``_wal``: names, records and archives of WAL; it knows no server and no backup.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import signal
import subprocess
import typing as t
import zlib

from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError

COMMAND_SECONDS = 600

OPENERS: dict[str, t.Callable[[str], t.Any]] = {
    "": io.FileIO,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}

COMMANDS = {".zst": "zstd", ".lz4": "lz4"}
SUFFIXES = tuple(OPENERS) + tuple(COMMANDS)

# What :func:`load` raises for a file that cannot be read or is damaged.
UNREADABLE = (EOFError, OSError, lzma.LZMAError, zlib.error, subprocess.SubprocessError)


class Entry(t.NamedTuple):
    """A file in an archive's directory: ``name`` is ``file`` without the ending ``suffix`` of its compression."""

    file: str
    name: str
    suffix: str
    size: int
    mtime: float


def split_suffix(file: str) -> tuple[str, str]:
    """Return a file's name without the ending of its compression, and that ending."""
    name, dot, ending = file.rpartition(".")
    return (name, dot + ending) if dot and dot + ending in SUFFIXES else (file, "")


def list_files(directory: str) -> t.Iterator[Entry]:
    """Yield the regular files of a directory. Raises OSError."""
    with os.scandir(directory) as files:
        for file in files:
            try:
                if file.is_file():
                    status = file.stat()
                    yield Entry(file.name, *split_suffix(file.name), status.st_size, status.st_mtime)
            except FileNotFoundError:
                # It was renamed or removed after the listing.
                continue


def load(path: str, suffix: str, limit: int = -1) -> bytes:
    """Return the content of a file, decompressed; at most ``limit`` bytes where that saves work.

    Raises one of UNREADABLE, or :class:`BackupError`, code ``tool_missing``, when its program is not installed.
    """
    if suffix not in COMMANDS:
        with OPENERS[suffix](path) as stream:
            return bytes(stream.read(limit))
    tool = shutil.which(COMMANDS[suffix])
    if tool is None:
        raise tool_missing(path, COMMANDS[suffix])
    # run_command decodes the output and has no time limit.
    return subprocess.run(  # pylint: disable=ansible-bad-function
        [tool, "-dcq", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=COMMAND_SECONDS
    ).stdout


def tool_missing(what: str, tool: str) -> BackupError:
    """Return the error for a compressed file whose program is not installed."""
    return BackupError(
        f"{what} is compressed and the command {tool} is not installed on this host.",
        code="tool_missing",
        hint=f"Install {tool}.",
    )


def runs(line: str, folder: str) -> bool:
    """Run a shell command and return whether it succeeded; at the time limit it is killed with its children."""
    # run_command has no time limit.
    process = subprocess.Popen(  # pylint: disable=ansible-bad-function
        ["/bin/sh", "-c", line],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(COMMAND_SECONDS) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
