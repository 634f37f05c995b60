# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of backup_copy: slices, progress, and the meaning of each end of a slice."""

from __future__ import annotations

import os
import types
import typing as t

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.pgfleet.basebackup.plugins.action import backup_copy
from ansible_collections.pgfleet.basebackup.plugins.plugin_utils import _slices

Result = t.Dict[str, t.Any]


class Run:
    """A task with given answers of its module; the clock advances by the length of each slice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, t.Any]] = []
        self.wrapped: list[bool] = []
        self.shown: list[str] = []
        self.answers: list[t.Any] = []
        self.clock = 0.0
        monkeypatch.setattr(ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
        monkeypatch.setattr(_slices.display, "display", lambda text, *args, **kwargs: self.shown.append(text))
        monkeypatch.setattr(_slices.time, "monotonic", lambda: self.clock)

    def __call__(self, *answers: t.Any, check: bool = False, async_val: int = 0, **arguments: t.Any) -> Result:
        """Run the task; raises an answer that is an exception."""
        self.answers = list(answers)
        plugin = backup_copy.ActionModule.__new__(backup_copy.ActionModule)
        arguments = {"repository": "/r", "cluster": "main", "backup_id": "b1", **arguments}
        plugin._task = types.SimpleNamespace(args=arguments, check_mode=check, async_val=async_val)
        plugin._execute_module = self._execute  # type: ignore[method-assign]
        result = plugin.run(None, {"inventory_hostname": "db1"})
        assert self.answers == [], "not all slices were asked for"
        return result

    def _execute(self, module_args: dict[str, t.Any], task_vars: dict[str, t.Any], wrap_async: bool = False) -> Result:
        self.calls.append(dict(module_args))
        self.wrapped.append(wrap_async)
        self.clock += float(module_args.get("wait_timeout", 0))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return t.cast("Result", answer)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def part(percent: float, **more: t.Any) -> Result:
    """Return the module's result while the copy is running."""
    progress = {"percent": percent, "done_bytes": 3 << 30, "total_bytes": 7 << 40, "bytes_per_second": 1536, **more}
    return {"changed": True, "finished": False, "progress": progress, "msg": f"{percent} % copied."}


DONE = {"changed": True, "finished": True, "files": 2, "msg": "2 files"}
DONE_BEFORE = {"changed": False, "finished": True, "files": 2, "msg": "2 files are copied already."}


def test_at_once(run: Run) -> None:
    assert run(DONE) == DONE
    assert run(DONE_BEFORE) == DONE_BEFORE
    assert [call["wait_timeout"] for call in run.calls] == [10, 10]
    assert run.shown == []


def test_slices(run: Run) -> None:
    """The last answer is the result; it is changed if any slice was."""
    assert run(part(10), part(50), DONE_BEFORE) == {**DONE_BEFORE, "changed": True}
    assert len(run.calls) == 3
    assert run.shown == [f"[db1] b1: {percent} %, 3.0 GiB of 7.0 TiB, 1.5 KiB/s" for percent in (10, 50)]


@pytest.mark.parametrize(
    "interval, slices, lines",
    [
        (0, 10, 0),
        (1, 1, 6),
        (10, 10, 6),
        (30, 10, 2),
        ("30", 10, 2),
        ("0.5 min", 10, 2),
        ("200ms", 1, 6),
        (None, 10, 6),
    ],
)
def test_interval(run: Run, interval: t.Any, slices: int, lines: int) -> None:
    """Even if progress is rarely shown, the run renews its claim often enough not to count as dead."""
    run(*[part(1)] * 6, DONE, progress_interval=interval)
    assert {call["wait_timeout"] for call in run.calls} == {slices}
    assert len(run.shown) == lines


@pytest.mark.parametrize("interval", ["often", [1], -1, "1h 5m"])
def test_bad_interval(run: Run, interval: t.Any) -> None:
    """The module refuses a bad interval in one call."""
    refused = {"failed": True, "code": "bad_duration"}
    assert run(refused, progress_interval=interval) == refused
    assert [call["progress_interval"] for call in run.calls] == [interval]


def test_what_is_shown() -> None:
    describe = _slices.describe
    assert describe("h", "b", {}) == "[h] b: 0 %, 0 B of 0 B"
    assert describe("h", "b", {"percent": None, "done_bytes": None, "seconds_left": None}) == "[h] b: 0 %, 0 B of 0 B"
    text = describe("h", "b", {"percent": 99.96, "done_bytes": 1023, "total_bytes": 1024, "seconds_left": 3725})
    assert text == "[h] b: 100 %, 1023 B of 1.0 KiB, about 62:05 min left"


def test_module_fails(run: Run) -> None:
    failure = {"failed": True, "msg": "The session is over.", "code": "connection_lost", "changed": True}
    assert run(part(10), failure) == {**failure, "changed": False}


def test_module_breaks(run: Run) -> None:
    """No answer from the module itself: a traceback, or a missing interpreter."""
    broken = {"failed": True, "msg": "MODULE FAILURE", "rc": 1}
    assert run(part(10), broken)["msg"] == "MODULE FAILURE"
    assert run({"msg": "something else"})["msg"] == "something else"


def test_connection_lost(run: Run) -> None:
    """The host becomes unreachable; the copy continues there and the next run finds it."""
    with pytest.raises(AnsibleConnectionFailure):
        run(part(10), AnsibleConnectionFailure("gone"))


def test_controller_gone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [100, 1]
    monkeypatch.setattr(os, "getppid", lambda: parents.pop(0))
    with pytest.raises(AnsibleActionFail, match="continues on the host"):
        run(part(10))
    assert len(run.calls) == 1


def test_check_mode_is_the_modules(run: Run) -> None:
    answer = {"changed": True, "finished": False, "msg": "would"}
    assert run(answer, check=True) == answer
    assert "wait_timeout" not in run.calls[0]


def test_async(run: Run) -> None:
    started = {"started": 1, "ansible_job_id": "1.2"}
    assert run(started, async_val=60) == started
    assert (run.wrapped, "wait_timeout" in run.calls[0]) == ([True], False)


def test_own_polling(run: Run) -> None:
    """A user who sets wait_timeout gets each answer unchanged."""
    assert run(part(10), wait_timeout=3) == part(10)
    assert [call["wait_timeout"] for call in run.calls] == [3]


def test_arguments_are_passed_on(run: Run) -> None:
    run(DONE, jobs=4, owner="me", progress_interval=60)
    assert run.calls == [
        {"repository": "/r", "cluster": "main", "backup_id": "b1", "jobs": 4, "owner": "me"}
        | {"progress_interval": 60, "wait_timeout": 10}
    ]
