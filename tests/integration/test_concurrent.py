# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several backups at once, and runs that find what other runs have left."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import signal
import time
import typing as t

import pytest

from tests.harness.modules import Modules, Result
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, is_alive, wait_until
from tests.integration.helpers.leftovers import all_is_well, sessions
from tests.integration.helpers.steps import Background, Steps, restores

BOTH: t.Final = pytest.mark.majors(15, 18)


@pytest.fixture
def steps(sandbox: Sandbox, modules: Modules, primary: Server, repository: pathlib.Path) -> t.Iterator[Steps]:
    """The steps of a backup of the primary; nothing of it may remain at the end."""
    yield Steps(modules, primary)
    all_is_well(sandbox, repository, primary)


@pytest.fixture
def second(steps: Steps) -> Steps:
    """The steps of another backup of the same server."""
    return Steps(steps.modules, steps.server, "two")


@BOTH
def test_two_backups_at_once(sandbox: Sandbox, steps: Steps, second: Steps, primary: Server) -> None:
    """Each backup has its own session; both are good."""
    starts = [steps.start(concurrent="allow"), second.start(concurrent="allow")]
    assert [one["changed"] for one in starts] == [True, True]
    assert starts[0]["start_lsn"] != starts[1]["start_lsn"]
    assert len(sessions(primary)) == 2
    # mypy infers no type for a lambda with a default, which binds the loop's variable.
    copies = [Background(lambda one=one: one.run("backup_copy")) for one in (steps, second)]  # type: ignore[misc]
    assert [copy.result()["finished"] for copy in copies] == [True, True]
    stop = steps.ok("backup_stop")
    assert len(sessions(primary)) == 1
    second.finish()
    steps.ok("backup_publish", proof=steps.archived(stop))
    for one in (steps, second):
        restores(sandbox, one, primary, f"restored-{one.id}")


@BOTH
def test_same_id_again(steps: Steps, primary: Server) -> None:
    """The same id gives the same session and start; not after the backup is dead or published."""
    first = steps.start()
    keeper = steps.keeper
    again = steps.ok("backup_start")
    assert (first["changed"], again["changed"]) == (True, False)
    assert again["start_lsn"] == first["start_lsn"]
    assert steps.keeper == keeper
    assert len(sessions(primary)) == 1
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not is_alive(keeper), "the session process is dead")
    assert steps.fails("backup_start")["code"] == "session_lost"
    steps.void()
    steps.whole()
    assert steps.fails("backup_start")["code"] == "backup_exists"


@BOTH
def test_another_run_is_at_work(steps: Steps, second: Steps, primary: Server) -> None:
    """Skip starts none and reports the other run, its start and its progress; fail fails; allow starts one more."""
    steps.start(owner="the first run")
    with steps.copying() as copy:
        skipped = second.ok("backup_start", concurrent="skip", owner="the second run")
        assert (skipped["changed"], skipped["skipped_busy"], skipped["backup_id"]) == (False, True, "one")
        assert "the first run has been working on the backup one since 20" in skipped["msg"]
        assert "% copied" in skipped["msg"]
        assert skipped["busy"]["owner"] == "the first run"
        failed = second.fails("backup_start", concurrent="fail", owner="the second run")
        assert failed["code"] == "busy"
        assert "the first run has been working on the backup one" in failed["msg"]
        assert not second.work.exists()
        assert second.start(concurrent="allow", owner="the second run")["changed"]
        assert len(sessions(primary)) == 2
        assert steps.ok("backup_abort")["state"] == "absent"
        steps.stops_soon(copy)
    second.finish()


def at_once(count: int, work: t.Callable[[int], Result]) -> list[Result]:
    """Run ``work`` in ``count`` processes that begin together."""
    barrier = multiprocessing.get_context("fork").Barrier(count)

    def run(number: int) -> Result:
        barrier.wait()
        return work(number)

    # mypy infers no type for a lambda with a default, which binds the loop's variable.
    return [one.result() for one in [Background(lambda n=n: run(n)) for n in range(count)]]  # type: ignore[misc]


@pytest.mark.parametrize("mode", ["skip", "fail"])
@BOTH
def test_starts_at_the_same_moment(steps: Steps, primary: Server, mode: str) -> None:
    """Exactly one starts."""
    results = at_once(3, lambda n: steps.modules.run("backup_start", fast=True, concurrent=mode, owner=f"run {n}"))
    started = [one for one in results if one.get("changed")]
    others = [one for one in results if not one.get("changed")]
    assert len(started) == 1, results
    for one in others:
        assert one["code"] == "busy" if mode == "fail" else one["skipped_busy"]
    assert len(sessions(primary)) == 1
    one = Steps(steps.modules, primary, started[0]["backup_id"])
    one.finish()


@BOTH
def test_same_id_at_the_same_moment(steps: Steps, primary: Server) -> None:
    """One call starts it, and the others find it started."""
    results = at_once(3, lambda n: steps.run("backup_start", fast=True))
    assert not [one for one in results if one.get("failed")], results
    assert sorted(one["changed"] for one in results) == [False, False, True]
    assert len({one["start_lsn"] for one in results}) == 1
    assert len(sessions(primary)) == 1
    steps.finish()


def resume(steps: Steps, **arguments: t.Any) -> Result:
    """Start as a run that continues an unfinished backup."""
    arguments = {"fast": True, "resume": True, "concurrent": "skip", "owner": "B", "takeover_after": 1, **arguments}
    return steps.modules.ok("backup_start", **arguments)


@BOTH
def test_dead_backups_are_cleaned_up(steps: Steps, second: Steps) -> None:
    """An unfinished backup that cannot be completed is removed with a warning that says why; a new one starts."""
    for one in (steps, second):
        one.start(concurrent="allow", owner="A")
    steps.ok("backup_copy", owner="A")
    keepers = [steps.keeper, second.keeper]
    os.kill(keepers[0], signal.SIGKILL)
    os.kill(keepers[1], signal.SIGTERM)
    wait_until(lambda: not any(is_alive(keeper) for keeper in keepers), "the session processes are dead")
    result = resume(steps)
    assert (result["changed"], result["resumed"]) == (True, False)
    assert not steps.work.exists()
    assert not second.work.exists()
    # Earlier tests in this process may have left their own warnings.
    warnings = [str(warning) for warning in result["warnings"]]
    first, other = (next(one for one in warnings if f"backup {name} could" in one) for name in ("one", "two"))
    assert "The unfinished backup one could not be continued and was removed" in first
    assert "killed" in first
    assert "The unfinished backup two could not be continued and was removed" in other
    assert "signal 15" in other
    Steps(steps.modules, steps.server, result["backup_id"]).finish()


@BOTH
def test_silent_run_is_taken_over(steps: Steps) -> None:
    """After a time of silence another run continues; the old one is refused, and its abort leaves the backup alone."""
    start = steps.start(owner="A")
    begun = time.time()
    result = resume(steps)
    assert time.time() - begun < 3
    assert (result["changed"], result["resumed"], result["backup_id"]) == (False, True, "one")
    assert result["start_lsn"] == start["start_lsn"]
    for name in ("backup_copy", "backup_stop"):
        refused = steps.fails(name, owner="A")
        assert refused["code"] == "taken_over"
        assert "taken over by B" in refused["msg"]
    aborted = steps.ok("backup_abort", owner="A")
    assert (aborted["changed"], aborted["state"]) == (False, "taken_over")
    steps.modules.common["owner"] = "B"
    steps.finish()


def test_living_run_is_not_taken_over(steps: Steps) -> None:
    """If a run may just have died the other waits; once the first renews its claim, the other leaves it alone."""
    steps.start(owner="A")
    other = Background(lambda: resume(steps, takeover_after=60))
    wait_until(lambda: sessions_asked(steps) > 1, "the other run looks")
    assert other.running
    steps.ok("backup_copy", owner="A")
    result = other.result(5)
    assert (result["changed"], result["skipped_busy"], result["busy"]["owner"]) == (False, True, "A")
    steps.modules.common["owner"] = "A"
    steps.finish()


def sessions_asked(steps: Steps) -> float:
    """Return the seconds since the first run's last sign of life: enough for the other one to have looked."""
    return time.time() - (steps.work / "owner.json").stat().st_mtime


def test_own_backup_is_continued_at_once(steps: Steps) -> None:
    """The same run continues without a time of silence."""
    steps.start(owner="A")
    begun = time.monotonic()
    result = resume(steps, owner="A", takeover_after=60)
    assert time.monotonic() - begun < 2
    assert result["resumed"]
    steps.finish()


def test_running_copy_is_taken_over(steps: Steps) -> None:
    """The copy needs no run: it continues, and the run that takes over waits for it."""
    steps.start(owner="A")
    with steps.copying(512 << 20, owner="A") as copy:
        copy.kill()
        leader = steps.progress["pid"]
        result = resume(steps)
        assert (result["resumed"], result["backup_id"]) == (True, "one")
        assert steps.ok("backup_copy", owner="B")["reused_files"] == 0
    assert steps.progress["pid"] == leader
    steps.modules.common["owner"] = "B"
    steps.finish()


def test_stopped_backup_is_continued(steps: Steps) -> None:
    """Only the wait for the archive remains, which needs no session."""
    steps.start(owner="A")
    steps.ok("backup_copy")
    stop = steps.ok("backup_stop")
    result = resume(steps)
    assert (result["resumed"], result["state"]) == (True, "stopped")
    assert result["start_lsn"] == stop["start_lsn"]
    again = steps.ok("backup_stop")
    assert (again["changed"], again["required_wal"]) == (False, stop["required_wal"])
    steps.ok("backup_publish", proof=steps.archived(again))


def test_copy_is_not_started_twice(steps: Steps) -> None:
    """Two runs that start the copy at the same moment get one copy."""
    steps.start()
    results = at_once(3, lambda n: steps.run("backup_copy"))
    assert not [one for one in results if one.get("failed")], results
    assert len({one["files"] for one in results}) == 1
    steps.finish()


def test_stops_at_the_same_moment(steps: Steps) -> None:
    """One call stops it, and the others find it stopped."""
    steps.start()
    steps.ok("backup_copy")
    results = at_once(3, lambda n: steps.run("backup_stop"))
    assert not [one for one in results if one.get("failed")], results
    assert sorted(one["changed"] for one in results) == [False, False, True]
    assert len({one["stop_lsn"] for one in results}) == 1
    steps.finish()
