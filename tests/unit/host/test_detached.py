# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detached work: it outlives its caller, holds its lock, and always records how it ended."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import signal
import time
import types
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import detached as _job
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host import fields as _fields
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.detached import Job, Recorder, Step
from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.locks import is_locked

from tests.unit.helpers.processes import held_by_another_process, wait_until

Work = t.Callable[[Recorder], t.Mapping[str, t.Any]]


class Restoring(Job):
    """A job that runs a given function."""

    noun = "restore"
    verb = "restoring"
    again = "Run it again."
    fields = types.MappingProxyType(dict.fromkeys(("phase", "files", "pids", "cwd", "open"), _fields.json_value))

    def __init__(self, folder: str, given: Work, lock: str | None = None) -> None:
        super().__init__(folder, "the directory /srv", lock)
        self.given = given

    def prepare(self) -> None:
        self.make_folder()

    def work(self, recorder: Recorder) -> t.Mapping[str, t.Any]:
        return self.given(recorder)


class Bench:
    """A job and methods to begin it; its work can wait for ``go``."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder / "job"
        self.go = folder / "go"
        self.job = Restoring(str(self.folder), self.waiting)

    def launch(self, work: Work) -> None:
        self.job.given = work
        self.job.make_folder()
        with self.job.hold() as lock:
            self.job.launch(lock)

    def waiting(self, recorder: Recorder) -> dict[str, t.Any]:
        recorder.content.update(total_bytes=100, phase="copy")
        deadline = time.monotonic() + 20
        while not self.go.exists() and time.monotonic() < deadline:
            recorder.progress(40, 4)
            time.sleep(0.01)
        return {"files": 10, "pids": [os.getpid(), os.getppid(), os.getsid(0)], "cwd": os.getcwd()}


@pytest.fixture
def bench(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Bench]:
    monkeypatch.setattr(_job, "RECORD_INTERVAL", 0.02)
    monkeypatch.setattr(_job, "POLL_INTERVAL", 0.01)
    made = Bench(tmp_path)
    yield made
    made.go.touch()
    wait_until(lambda: not is_locked(made.job.lock), "the work has ended")


def failure(bench: Bench, seconds: float = 10) -> BackupError:
    with pytest.raises(BackupError) as caught:
        bench.job.wait(seconds)
    return caught.value


def test_from_begin_to_end(bench: Bench) -> None:
    """The job reports progress and then its result; it is detached from the caller and holds the lock."""
    assert bench.job.read() == {}
    bench.launch(bench.waiting)
    assert bench.job.wait(0.05) is None
    assert bench.job.is_running()
    record = wait_until(lambda: (one := bench.job.read()).get("percent") and one, "progress is recorded")
    assert (record["state"], record["percent"], record["phase"]) == ("running", 40.0, "copy")
    told = Step(None, record).progress("restored")
    assert (told["finished"], told["msg"], set(told["progress"])) == (False, "40.0 % restored.", set(_job.PROGRESS))
    with pytest.raises(BackupError) as busy, bench.job.hold(0.05):
        pass
    assert busy.value.code == "busy"
    assert str(bench.folder) in busy.value.hint
    bench.go.touch()
    done = bench.job.wait(10)
    assert done is not None
    assert (done["state"], done["percent"], done["seconds_left"], done["files"]) == ("done", 100.0, 0, 10)
    leader, parent, session = done["pids"]
    assert os.getpid() not in (leader, parent)
    assert session != os.getsid(0)
    assert (done["pid"], done["cwd"]) == (leader, "/")
    wait_until(lambda: not bench.job.is_running(), "it has ended")
    assert oct(bench.folder.stat().st_mode & 0o777) == "0o700"
    assert not (bench.folder / "reserve").exists()


def test_no_descriptor_is_kept(bench: Bench, tmp_path: pathlib.Path) -> None:
    """Neither the task's output, which would keep the task waiting, nor its open files."""

    def work(recorder: Recorder) -> dict[str, t.Any]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f"/proc/self/fd/{name}"))
        return {"open": sorted(found)}

    with (tmp_path / "open").open("w"):
        bench.launch(work)
    done = bench.job.wait(10)
    assert done is not None
    assert done["open"] == sorted(["/dev/null", bench.job.lock])


def test_failure(bench: Bench) -> None:
    """Message, code, hint and details arrive; for "path" Ansible would add the state of that file to the result."""

    def work(recorder: Recorder) -> dict[str, t.Any]:
        raise BackupError("disk is full", code="disk_full", hint="Buy one.", free=5, path="/srv/x")

    bench.launch(work)
    error = failure(bench)
    assert error.msg == "The restore of the directory /srv failed: disk is full"
    assert (error.code, error.hint, error.details["free"]) == ("disk_full", "Buy one.", 5)
    assert "path" not in error.details
    # Another attempt begins with its own record.
    bench.go.touch()
    bench.launch(bench.waiting)
    assert bench.job.wait(10) is not None


def test_bug(bench: Bench) -> None:
    bench.launch(lambda recorder: {"x": 1 / 0})
    error = failure(bench)
    assert error.code == "restore_failed"
    assert "ZeroDivisionError" in error.msg


def test_killed(bench: Bench) -> None:
    bench.launch(bench.waiting)
    wait_until(lambda: bench.job.read().get("phase"), "it runs")
    os.kill(bench.job.read()["pid"], signal.SIGKILL)
    error = failure(bench)
    assert (error.code, error.hint) == ("restore_killed", "Run it again.")
    assert error.msg.startswith("The process restoring the directory /srv ended without recording a result")
    assert error.details["progress"]["percent"] == 40.0


def test_another_process_holds_the_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginning work gets time to record itself; another process that holds the lock is not mistaken for it."""
    monkeypatch.setattr(_job, "BEGIN_SECONDS", 0.1)
    bench.job.make_folder()
    with held_by_another_process(bench.job.lock):
        with pytest.raises(BackupError) as caught:
            bench.job.is_running()
    assert caught.value.code == "busy"
    assert "not a restore" in caught.value.msg
    assert not bench.job.is_running()


def test_last_words_of_the_one_before(bench: Bench) -> None:
    """While another process holds the lock, a recorded failure is not final."""
    bench.launch(lambda recorder: {"x": 1 / 0})
    failure(bench)
    with held_by_another_process(bench.job.lock):
        assert bench.job.wait(0.1) is None
    failure(bench)


def test_lock_elsewhere(tmp_path: pathlib.Path) -> None:
    lock = tmp_path / "lock"
    job = Restoring(str(tmp_path / "copy"), lambda recorder: {}, str(lock))
    with job.hold() as handle:
        job.launch(handle)
    assert job.wait(10) is not None
    assert lock.exists()
    assert not (tmp_path / "copy" / "lock").exists()


# --- one call ---


def test_steps(bench: Bench) -> None:
    """The first call begins, the next ones join; later calls find the result and begin nothing."""
    first = bench.job.step(0.05)
    assert (first.result, first.began, first.record["state"]) == (None, True, "running")
    other = Restoring(str(bench.folder), lambda recorder: {"files": 0})
    assert other.step(0.05).result is None
    bench.go.touch()
    last = other.step(10)
    assert last.result is not None
    assert (last.result["files"], last.began) == (10, True)
    wait_until(lambda: not is_locked(bench.job.lock), "it has ended")
    again = other.step(10)
    assert again.result is not None
    assert (again.result["files"], again.began) == (10, False)


def test_failed_work_is_begun_again(bench: Bench) -> None:
    bench.job.given = lambda recorder: {"x": 1 / 0}
    with pytest.raises(BackupError) as caught:
        bench.job.step(10)
    assert caught.value.code == "restore_failed"
    bench.job.given = lambda recorder: {"files": 3}
    found = bench.job.step(10).result
    assert found is not None
    assert found["files"] == 3


def test_refused_before_it_begins(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused call creates nothing and does not join another call's work."""

    def refuse() -> None:
        raise BackupError("no", code="refused")

    monkeypatch.setattr(bench.job, "done_before", refuse)
    monkeypatch.setattr(bench.job, "join", refuse)
    with pytest.raises(BackupError):
        bench.job.step(10)
    assert not bench.folder.exists()
    bench.launch(bench.waiting)
    with pytest.raises(BackupError) as caught:
        bench.job.step(10)
    assert caught.value.code == "refused"


def test_another_call_was_faster(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other call began between the look and the lock: its work is joined."""
    other = Restoring(str(bench.folder), lambda recorder: {"files": 0})
    begin = other.prepare

    def overtaken() -> None:
        begin()
        bench.launch(bench.waiting)

    monkeypatch.setattr(other, "prepare", overtaken)
    monkeypatch.setattr(other, "hold", functools.partial(other.hold, 0.05))
    assert other.step(0.05).result is None
    bench.go.touch()
    found = other.step(10).result
    assert found is not None
    assert found["files"] == 10


def test_another_call_has_done_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other call began and ended between the look and the lock: nothing begins again."""
    other = Restoring(str(bench.folder), lambda recorder: {"files": 0})
    begin = other.prepare

    def overtaken() -> None:
        begin()
        bench.go.touch()
        bench.launch(bench.waiting)
        assert bench.job.wait(10)

    monkeypatch.setattr(other, "prepare", overtaken)
    found = other.step(10).result
    assert found is not None
    assert found["files"] == 10


def test_a_folder_that_is_removed_at_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is removed with the folder; the result is kept elsewhere."""
    kept = bench.folder.parent / "kept"

    def work(recorder: Recorder) -> dict[str, t.Any]:
        kept.write_text("12")
        return {}

    waits = bench.job.wait

    def late(seconds: float) -> t.Any:
        wait_until(lambda: kept.exists() and not bench.folder.exists(), "the folder is removed")
        return waits(seconds)

    bench.job.given = work
    monkeypatch.setattr(bench.job, "wait", late)
    monkeypatch.setattr(bench.job, "removes_folder", True)
    monkeypatch.setattr(bench.job, "result", lambda: {"files": kept.read_text()} if kept.exists() else None)
    assert bench.job.step(10).result == {"files": "12"}
