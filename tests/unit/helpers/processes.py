# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other processes: one that holds a lock, a condition to wait for, a search by command line."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import time
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import locks as _locks

T = t.TypeVar("T")


@contextlib.contextmanager
def held_by_another_process(path: str | pathlib.Path) -> t.Iterator[int]:
    """Hold the flock on ``path`` in a child process; yields its process id."""
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready_read)
            if _locks.take_lock(str(path), 5.0) is not None:
                os.write(ready_write, b".")
                signal.pause()
        finally:
            os._exit(1)
    os.close(ready_write)
    try:
        assert os.read(ready_read, 1) == b".", "the lock could not be taken"
        yield pid
    finally:
        os.close(ready_read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def wait_until(condition: t.Callable[[], T], what: str, seconds: float = 10.0) -> T:
    """Poll until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def processes_with(text: str) -> list[int]:
    """Return the processes whose command line has ``text`` in it."""
    found = []
    for place in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in place.read_bytes():
                found.append(int(place.parent.name))
    return found
