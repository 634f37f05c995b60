# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One backup step by step: the modules in order, also in check mode, and a copy stopped in the middle."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pathlib
import signal
import time
import typing as t

from tests.harness.checks import amcheck, data_checksum, restore, verifybackup
from tests.harness.modules import Modules, Result
from tests.harness.sandbox import Sandbox
from tests.harness.servers import Server, wait_until
from tests.harness.user import own_file
from tests.integration.helpers.files import listing, read_json
from tests.integration.helpers.leftovers import descriptors, processes

# Seconds within which a copy must stop after its session was lost.
STOPS_WITHIN: t.Final = 2.0
# A name that a relation could have, in a database that exists in every version.
BIG_FILE: t.Final = "base/1/99999999"


class Background:
    """A module that runs in its own process, as a task does, and can be killed like one."""

    def __init__(self, work: t.Callable[[], Result]) -> None:
        context = multiprocessing.get_context("fork")
        self._answer, give = context.Pipe(duplex=False)
        self._process = context.Process(target=lambda: give.send(work()), daemon=True)
        self._process.start()
        give.close()

    def result(self, timeout: float = 60) -> Result:
        """Return what the module returned."""
        assert self._answer.poll(timeout), "the module does not end"
        result: Result = self._answer.recv()
        self._process.join()
        return result

    def kill(self) -> None:
        """End the module's process with SIGKILL."""
        self._process.kill()
        self._process.join()

    @property
    def running(self) -> bool:
        """Whether the module is still running."""
        return self._process.is_alive()


class Steps:
    """The modules for one backup, in the order of use."""

    def __init__(self, modules: Modules, server: Server, backup_id: str = "one") -> None:
        self.modules = modules
        self.server = server
        self.id = backup_id
        self.cluster = pathlib.Path(modules.common["repository"], modules.common["cluster"])
        self.work = self.cluster / "in_progress" / backup_id
        self.published = self.cluster / "backups" / backup_id

    def run(self, name: str, **arguments: t.Any) -> Result:
        """Run a module for this backup and return its result, failed or not."""
        return self.modules.run(name, backup_id=self.id, **arguments)

    def ok(self, name: str, **arguments: t.Any) -> Result:
        """Run a module for this backup and require success."""
        return self.modules.ok(name, backup_id=self.id, **arguments)

    def fails(self, name: str, **arguments: t.Any) -> Result:
        """Run a module for this backup and require that it fails with a message."""
        return self.modules.fails(name, backup_id=self.id, **arguments)

    def start(self, **arguments: t.Any) -> Result:
        """Start, by default with an immediate checkpoint."""
        return self.ok("backup_start", **{"fast": True, **arguments})

    def archived(self, stop: Result, **arguments: t.Any) -> dict[str, t.Any]:
        """Wait for the WAL and return the proof."""
        arguments = {"timeout": 30, "interval": 0.05, **arguments}
        answer = self.modules.ok(
            "wal_archived",
            required_wal=stop["required_wal"], system_identifier=stop["system_identifier"], **arguments,
        )  # fmt: skip
        proof: dict[str, t.Any] = answer["proof"]
        return proof

    def finish(self, archiver: Modules | None = None) -> Result:
        """Finish a started backup: copy the rest, stop, wait and publish; return the result of the stop.

        ``archiver`` has the login of the primary when a standby is backed up.
        """
        self.ok("backup_copy")
        stop = self.ok("backup_stop")
        if archiver:
            archiver.ok("wal_switch", lsn=stop["stop_lsn"], system_identifier=stop["system_identifier"])
        proof = Steps(archiver or self.modules, self.server, self.id).archived(stop)
        self.ok("backup_publish", proof=proof)
        return stop

    def whole(self, **arguments: t.Any) -> Result:
        """Take a whole backup."""
        self.start(**arguments)
        return self.finish()

    @property
    def state(self) -> dict[str, t.Any]:
        """The record of the session process."""
        return read_json(self.work / "session" / "state.json")

    @property
    def keeper(self) -> int:
        """The session process."""
        return int(self.state["pid"])

    @property
    def progress(self) -> dict[str, t.Any]:
        """The record of the copy."""
        return read_json(self.work / "copy" / "progress.json")

    def copy_processes(self) -> list[int]:
        """Return the processes that hold the lock of a running copy, the leader first."""
        lock = str(self.work / "lock")
        holders = [pid for pid in processes() if pid != os.getpid() and lock in descriptors(pid)]
        return sorted(holders, key=lambda pid: pid != self.progress.get("pid"))

    @contextlib.contextmanager
    def copying(self, size: int = 8 << 30, **arguments: t.Any) -> t.Iterator[Background]:
        """Yield a copy in the middle of a sparse file of ``size`` bytes; the source loses the file at the end."""
        big = self.big_file(size)
        copy = Background(lambda: self.run("backup_copy", **arguments))
        try:
            wait_until(lambda: self.progress.get("done_bytes"), "the copy is under way", interval=0.002)
            yield copy
        finally:
            big.unlink()

    def big_file(self, size: int) -> pathlib.Path:
        """Create the large file in the data directory and return its path."""
        path = own_file(self.server.data / BIG_FILE, "")
        os.truncate(path, size)
        return path

    @contextlib.contextmanager
    def stopped_processes(self) -> t.Iterator[list[int]]:
        """Stop the copy's processes with SIGSTOP and yield their process ids."""
        group = os.getpgid(self.copy_processes()[0])
        os.killpg(group, signal.SIGSTOP)
        try:
            yield self.copy_processes()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGCONT)

    def stops_soon(self, copy: Background) -> Result:
        """Require that a copy that just lost its session stops in time and that its module fails; return its result."""
        begun = time.monotonic()
        result = copy.result()
        assert time.monotonic() - begun < STOPS_WITHIN
        assert result["failed"], result
        wait_until(lambda: not self.copy_processes(), "the copy's processes have ended", timeout=STOPS_WITHIN)
        return result

    def void(self) -> None:
        """Require that every further step refuses the backup and that abort removes it."""
        if self.progress.get("state") != "done":
            assert self.fails("backup_copy")["msg"]
        assert self.fails("backup_stop")["msg"]
        refused = self.fails("backup_publish", proof={})
        assert refused["code"] == "not_stopped", refused
        assert self.ok("backup_abort")["state"] == "absent"
        assert not self.work.exists()
        assert not self.published.exists()


def restores(sandbox: Sandbox, steps: Steps, primary: Server, name: str = "restored") -> None:
    """Require that a published backup verifies, recovers to the end of the archive and equals the idle ``primary``."""
    assert primary.archive is not None
    expected = data_checksum(primary)
    last = primary.value("SELECT pg_walfile_name(pg_switch_wal())")
    archived = primary.archive / last
    wait_until(lambda: archived.exists() or not (primary.data / "pg_wal" / last).exists(), f"{last} is archived")
    verifybackup(steps.published / "data", primary.major, primary.archive)
    server = restore(sandbox, steps.published, primary.archive, primary.major, name=name)
    try:
        assert data_checksum(server) == expected
        amcheck(server)
    finally:
        server.stop("immediate")


class Predictor:
    """Modules in check mode, which must not change the repository."""

    def __init__(self, modules: Modules, backup_id: str) -> None:
        self._modules = modules
        self._handle = {"backup_id": backup_id}
        self._repository = pathlib.Path(modules.common["repository"])

    def __call__(self, name: str, changed: bool, **arguments: t.Any) -> Result:
        """Run ``name`` for the backup in check mode, require that it predicts ``changed``, and return the result."""
        before = listing(self._repository)
        result = self._modules.ok(name, check=True, **{**self._handle, **arguments})
        assert result["changed"] is changed, f"{name} predicted {result}"
        assert result["msg"]
        assert listing(self._repository) == before, f"{name} in check mode touched the repository"
        return result
