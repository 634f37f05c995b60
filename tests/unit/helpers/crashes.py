# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Crash a function at every step: by an exception, and by SIGKILL."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import signal
import typing as t
from unittest import mock

# Calls that change a file system; a process can die between any two of them.
STEPS: t.Final = ("open", "fsync", "rename", "unlink", "rmdir", "mkdir", "chmod")
T = t.TypeVar("T")


class Crash(BaseException):
    """The end of a process, seen from inside: only ``finally`` may handle it."""


@contextlib.contextmanager
def crash_at(step: int, crash: t.Callable[[], t.Any]) -> t.Iterator[None]:
    """Call ``crash`` instead of the ``step``-th call, counted from 1, that changes the file system."""
    count = itertools.count(1)

    def wrap(function: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def call(*args: t.Any, **kwargs: t.Any) -> t.Any:
            if next(count) == step:
                crash()
            return function(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for name in STEPS:
            stack.enter_context(mock.patch.object(os, name, wrap(getattr(os, name))))
        yield


def is_ended(work: t.Callable[[], t.Any], step: int) -> bool:
    def crash() -> None:
        raise Crash

    try:
        with crash_at(step, crash):
            work()
    except Crash:
        return True
    return False


def is_killed(work: t.Callable[[], t.Any], step: int) -> bool:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with crash_at(step, die):
                work()
            status = 0
        finally:
            os._exit(status)
    _pid, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), f"the work failed: {status}"
    return status != 0


def crashes(
    root: pathlib.Path, prepare: t.Callable[[pathlib.Path], T], work: t.Callable[[T], t.Any]
) -> t.Iterator[tuple[str, T]]:
    """Yield the result of ``prepare`` after a crash of ``work`` on it, once for each of its steps.

    Each step crashes twice: by an exception, after which ``finally`` still runs, and by SIGKILL.
    """
    for crash in (is_ended, is_killed):
        for step in itertools.count(1):
            folder = root / f"{crash.__name__}{step}"
            folder.mkdir()
            state = prepare(folder)
            if not crash(lambda: work(state), step):  # noqa: B023  # called here and now
                assert step > 1, "nothing was tried"
                break
            yield folder.name, state
