# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One restore in this process: its arguments, and the data directory of a damaged cluster."""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
import typing as t

from ansible_collections.pgfleet.basebackup.plugins.module_utils._host.workers import Report
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import candidate as _candidate
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import target as _target
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.aside import prepare
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.layout import WRITTEN
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.plan import Plan
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.planner import make
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.record import read_record
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.restore import Restore
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore.run import RestoreJob
from ansible_collections.pgfleet.basebackup.plugins.module_utils._wal import path as _path

from tests.unit.helpers.crashes import is_killed
from tests.unit.helpers.made_up_wal import empty_segment, segment_name
from tests.unit.helpers.published import MB, Published

VERSION: t.Final = "PG_18_202506291"
DEFAULTS: t.Final[dict[str, t.Any]] = {
    "backup_id": None,
    "recovery_target": None,
    "recovery_target_time": None,
    "recovery_target_lsn": None,
    "recovery_target_xid": None,
    "recovery_target_name": None,
    "recovery_target_inclusive": True,
    "recovery_target_timeline": "latest",
    "recovery_target_action": "promote",
    "archive_directory": None,
    "restore_command": None,
    "delta": False,
    "replace": False,
    "force": False,
    "tablespace_mapping": {},
    "tablespace_directory": None,
    "waldir": None,
    "allow_group_access": False,
    "save_wal_to": None,
    "restore_as": "primary",
    "primary_conninfo": None,
    "primary_slot_name": None,
    "port": None,
    "settings": {},
    "source_settings": True,
    "config_file": None,
    "jobs": 1,
    "sync": False,
    "wait_timeout": 0,
    "run_id": None,
}


class Reporter:
    """A worker's channel that records what it receives."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.bytes = 0

    def advance(self, count: int) -> None:
        self.bytes += count

    def finish(self, line: t.Optional[bytes]) -> None:
        self.lines += [] if line is None else [line]


def in_this_process(
    work: t.Sequence[t.Sequence[t.Any]], function: t.Callable[..., None], jobs: int, check: t.Callable[[], None]
) -> t.Iterator[Report]:
    """Do the work of the workers in this process."""
    for batch in work:
        check()
        reporter = Reporter()
        function(batch, reporter)
        yield Report(reporter.bytes, len(reporter.lines), 0, 1, b"".join(reporter.lines))


class Case:
    """A published backup, and a directory to restore it to."""

    def __init__(self, folder: pathlib.Path, published: Published, **params: t.Any) -> None:
        self.published = published
        self.folder = folder
        self.data = folder / "data"
        self.space = folder / "space"
        self.params = {
            **DEFAULTS,
            "repository": published.cluster.repository.path,
            "cluster": "main",
            "data_directory": str(self.data),
            "tablespace_mapping": {"16385": str(self.space)},
            **params,
        }

    def plan(self, **params: t.Any) -> Plan:
        """Return the plan, with these arguments replaced."""
        return make(self.published.cluster, {**self.params, **params})

    def refusals(self, **params: t.Any) -> list[str]:
        """Return the codes of the refusals."""
        return [one.code for one in self.plan(**params).refusals]

    def restore(self, **params: t.Any) -> dict[str, t.Any]:
        """Restore in this process, not in the detached one."""
        plan = self.plan(**params)
        assert not plan.refusals, plan.refusals
        if plan.is_done:
            return dict(RestoreJob(plan.data, plan.digest, lambda: plan).recorded(plan.destination.record) or {})
        return self.carry_out(plan)

    def carry_out(self, plan: Plan) -> dict[str, t.Any]:
        """Carry out a plan."""
        aside = prepare(plan)
        work = Restore(plan, aside, lambda: None, lambda _bytes, _files: None)
        work.write_request()
        result = work.run()
        shutil.rmtree(self.data / "pgfleet_restore")
        return result

    @property
    def startable(self) -> bool:
        """Whether a server would start in the data directory."""
        return (self.data / "global/pg_control").exists()

    @property
    def done(self) -> bool:
        """Whether the restore counts as finished."""
        return bool(read_record(os.fsencode(self.data)))

    def is_restored(self) -> None:
        """Require that every file is in its place and that there are no others."""
        assert self.startable
        assert self.done
        wanted = {}
        for path, content in self.published.files.items():
            top, _slash, rest = path.partition("/")
            if rest.encode() not in WRITTEN:
                wanted[str(self.data / rest if top == "data" else self.space / rest.partition("/")[2])] = content
        found = {}
        for top in (self.data, self.space):
            for path in top.rglob("*"):
                if path.is_file() and not path.is_symlink() and "replaced-" not in str(path.relative_to(self.folder)):
                    found[str(path)] = path.read_bytes()
        written = {str(self.data / os.fsdecode(path)) for path in WRITTEN}
        logs = str(self.data / "log") + "/"
        extra = {path: content for path, content in found.items() if path not in written and not path.startswith(logs)}
        assert {path for path in extra if "/pg_wal/" not in path} == set(wanted)
        assert {path: extra[path] for path in wanted} == wanted
        assert (self.data / "tablespace_map").read_bytes() == b"16385 " + os.fsencode(self.space) + b"\n"
        assert os.readlink(self.data / "pg_tblspc/16385") == str(self.space)
        assert (self.data / "recovery.signal").exists()

    def old_cluster(self) -> dict[str, bytes]:
        """Create the remains of a damaged cluster, and return its WAL files that are not archived."""
        published = self.published.files
        files = {path[5:]: content for path, content in published.items() if path.startswith("data/")}
        files.update({
            "base/5/1259": b"\xff" * 8192,  # damaged
            "base/5/4711": b"surplus",
            "base/99/1": b"a dropped database",
            "standby.signal": b"",
            "postmaster.pid": b"1\n",
            "log/yesterday": b"why it died",
            f"pg_wal/{segment_name(32)}": empty_segment(32),
            f"pg_wal/archive_status/{segment_name(32)}.done": b"",
            f"pg_wal/{segment_name(33)}": empty_segment(33),
            f"pg_wal/archive_status/{segment_name(33)}.ready": b"",
            f"pg_wal/{segment_name(34)}": empty_segment(34),
            f"pg_wal/{segment_name(35)}": empty_segment(35, address=7 * MB),  # prepared for later
        })  # fmt: skip
        for path, content in files.items():
            place = self.data / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        (self.space / VERSION / "5").mkdir(parents=True)
        (self.space / VERSION / "5" / "9").write_bytes(b"space")
        (self.space / VERSION / "5" / "10").write_bytes(b"surplus")
        (self.data / "pg_tblspc/16385").symlink_to(self.space)
        return {segment_name(number): empty_segment(number) for number in (33, 34)}


def chosen(published: Published) -> t.Callable[..., _candidate.Choice]:
    """Return a choice that always selects this backup."""

    def choose(_cluster: t.Any, _backup_id: t.Any, target: _target.Target, _archive_: t.Any) -> _candidate.Choice:
        path = _path.Path(1, [])
        record = published.backup.load()
        return _candidate.Choice(published.backup, record, "the only one", path, [], [], None, [], None, True, target)

    return choose


def killed(root: pathlib.Path, prepare: t.Callable[[pathlib.Path], Case]) -> t.Iterator[Case]:
    """Yield the state after a restore was killed, once for each of its steps."""
    for step in itertools.count(1):
        folder = root / str(step)
        folder.mkdir()
        case = prepare(folder)
        if not is_killed(case.restore, step):
            break
        yield case
        shutil.rmtree(folder)
