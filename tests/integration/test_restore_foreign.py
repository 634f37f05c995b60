# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A delta restore never puts one cluster's files over another's, whatever the records in the repository say."""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.harness.modules import Modules
from tests.harness.sandbox import Sandbox
from tests.harness.user import run
from tests.integration.helpers.files import untouched
from tests.integration.helpers.source import Source, numbers
from tests.integration.helpers.steps import Steps

pytestmark = pytest.mark.majors(14, 18)


def rewrite(path: pathlib.Path, **changes: str) -> None:
    """Change values of a JSON file at any depth, as somebody with an editor would."""

    def changed(value: object) -> object:
        if isinstance(value, dict):
            return {name: changes.get(name, changed(one)) for name, one in value.items()}
        return value

    path.write_text(json.dumps(changed(json.loads(path.read_text()))))


def test_a_backup_below_another_cluster(sandbox: Sandbox, major: int) -> None:
    """A backup of a, copied below b/backups, is not restored over b, with any of the records edited."""
    source = Source(sandbox, major)
    source.backup("mine", wal="include")
    other = sandbox.primary(major, name="other", initdb=["--wal-segsize=1"])
    other.sql("CREATE TABLE numbers AS SELECT 7 AS n")
    theirs = Steps(Modules(other, as_server=True, repository=str(source.repository), cluster="b"), other, "theirs")
    theirs.start()
    theirs.finish()
    run(["cp", "-a", source.cluster / "backups" / "mine", source.repository / "b" / "backups" / "mine"])
    identifier, mine = other.system_identifier, source.server.system_identifier
    other.stop()
    modules = Modules(other, as_server=True, repository=str(source.repository), cluster="b")
    wish = {
        "backup_id": "mine", "delta": True, "restore_as": "primary", "data_directory": str(other.data),
        "recovery_target": "immediate", "sync": False,
    }  # fmt: skip
    record = source.repository / "b" / "backups" / "mine" / "backup.json"
    cluster = source.repository / "b" / "cluster.json"

    def is_refused(code: str = "other_cluster") -> None:
        planned = modules.run("backup_restore", check=True, **wish)
        assert planned["restorable"] is False, planned
        answer = modules.run("backup_restore", **wish)
        assert answer["code"] == code, answer

    with untouched(other.data):
        is_refused("damaged_backup")
        rewrite(record, cluster="b")
        is_refused()
        rewrite(record, system_identifier=identifier)
        # The WAL in the backup shows it.
        is_refused("bad_segment")
        rewrite(record, system_identifier=mine)
        rewrite(cluster, system_identifier=mine)
        is_refused()
        cluster.unlink()
        is_refused("unknown_cluster")
    assert numbers(other.start()) == {7}


def test_a_data_directory_without_control_file(sandbox: Sandbox, major: int) -> None:
    """Its WAL says whose it is; without that it is unknown, and delta is refused."""
    source = Source(sandbox, major)
    server = source.server
    server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup()
    source.archived()
    other = sandbox.primary(major, name="other", initdb=["--wal-segsize=1"])
    wish = {"delta": True, "restore_as": "primary", "port": None}
    for one in (server, other):
        one.stop()
        (one.data / "global" / "pg_control").unlink()
    source.refused(other, "other_cluster", data_directory=str(other.data), **wish)
    for path in (other.data / "pg_wal").glob("0*"):
        path.unlink()
    source.refused(other, "unknown_cluster", data_directory=str(other.data), **wish)
    source.restored(server, data_directory=str(server.data), **wish)
    assert numbers(source.started(server)) == {1}
