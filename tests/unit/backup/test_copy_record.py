# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The work records of an unfinished backup: only checked values come out of them, whatever is in the files."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.activity import activity_of, progress_of
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.copy_record import (
    Owner,
    read_copy,
    read_owner,
    write_owner,
)
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.journal import parse_line
from ansible_collections.pgfleet.basebackup.plugins.module_utils._backup.resume import Rules, find_unfinished
from ansible_collections.pgfleet.basebackup.plugins.module_utils._repository.repository import Backup
from ansible_collections.pgfleet.basebackup.plugins.module_utils._session.session import Session

from tests.unit.helpers.backups import make_backup, make_cluster
from tests.unit.helpers.errors import code_of

DONE: t.Final[dict[str, t.Any]] = {
    "state": "done",
    "percent": 100.0,
    "control": {"size": 8192, "mtime": 1, "algorithm": "SHA256", "checksum": "00ff"},
    "special_files": [{"path": "a/b", "kind": "fifo", "target": ""}],
}


@pytest.fixture
def backup(tmp_path: pathlib.Path) -> Backup:
    return make_backup(make_cluster(tmp_path))


def write(backup: Backup, name: str, content: object) -> None:
    place = pathlib.Path(backup.file(*name.split("/")))
    place.write_text(content if isinstance(content, str) else json.dumps(content))


def test_copy(backup: Backup) -> None:
    assert read_copy(backup) == {}
    write(backup, "copy/progress.json", {**DONE, "unknown": {"of": "a newer version"}})
    assert read_copy(backup) == DONE


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "[" * 100000, {}, {**DONE, "state": "odd"}, {**DONE, "percent": "x"}, {**DONE, "files": -1},
     {**DONE, "control": {"size": 1}}, {**DONE, "special_files": [{"path": "../x", "kind": "fifo", "target": ""}]},
     {**DONE, "seconds": 1e400}, {**DONE, "pid": 1 << 40}],
)  # fmt: skip
def test_damaged_copy(backup: Backup, content: object) -> None:
    """It is no copy that a stop could finish, and not the user's own either."""
    write(backup, "copy/progress.json", content)
    assert code_of(lambda: read_copy(backup)) == "damaged_copy_record"
    assert progress_of(backup) == {}
    assert activity_of(backup).progress == {}


def test_copy_record_that_is_a_link(backup: Backup, tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").write_text(json.dumps(DONE))
    os.symlink(tmp_path / "other", backup.file("copy", "progress.json"))
    assert code_of(lambda: read_copy(backup)) == "damaged_copy_record"


def test_owner(backup: Backup) -> None:
    write_owner(backup, Owner("me", 1.0, 2.0))
    assert read_owner(backup) == Owner("me", 1.0, 2.0)
    for content in ("{", "[]", {"owner": 1}, {"owner": "me", "seen": "x"}, {"owner": "me", "seen": 1e300}):
        write(backup, "owner.json", content)
        assert read_owner(backup) == Owner(), content


@pytest.mark.parametrize(
    "line",
    ["[", "{}", '["a", 1, 1, null]', '["../x", 1, 1, null, null]', '["/x", 1, 1, null, null]',
     '["a//b", 1, 1, null, null]', '["a/./b", 1, 1, null, null]', '["", 1, 1, null, null]',
     '["a\\u0000", 1, 1, null, null]', '["a", -1, 1, null, null]', '["a", 1.5, 1, null, null]',
     '["a", true, 1, null, null]', '["a", 1, "x", null, null]', '["a", 1, 1, 5, null]',
     '["a", 1, 1, "SHA256", "x\\n"]', '[1, 1, 1, null, null]'],
)  # fmt: skip
def test_damaged_line_of_the_journal(line: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_line(line.encode())


@pytest.mark.parametrize(
    "content",
    ["{", "[]", {}, {"state": "odd"}, {"state": "running", "pid": "x"}, {"state": "running", "start_lsn": "0/x"},
     {"state": "stopped", "label_file": "zz"}, {"state": "failed", "code": "; rm"},
     {"state": "running", "tablespaces": [{"oid": 1, "name": "", "location": "../x"}]}],
)  # fmt: skip
def test_damaged_session(backup: Backup, content: object) -> None:
    """The backup is void, but it is left to the administrator."""
    write(backup, "session/state.json", content)
    session = Session(backup.file("session"))
    assert session.recorded()["code"] == "damaged_session"
    assert session.ask("status")["state"] == "failed"
    assert activity_of(backup).damaged
    found = find_unfinished(backup.cluster, Rules(resume=True))
    assert (found.backup, found.busy, list(found.dead), len(found.warnings)) == (None, None, [], 1)
