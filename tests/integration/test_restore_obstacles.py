# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore cannot remove or replace is found before anything is touched, and named."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._restore import planner as _planner

from tests.harness.sandbox import Sandbox
from tests.harness.user import me, own_directory, own_file, run, server_user
from tests.integration.helpers.files import untouched
from tests.integration.helpers.source import Source, numbers

pytestmark = [
    pytest.mark.majors(14, 18),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes files of root in a data directory"),
]

Obstruct = t.Callable[[pathlib.Path], t.Tuple[pathlib.Path, t.Callable[[], object]]]


def of_root(data: pathlib.Path) -> tuple[pathlib.Path, t.Callable[[], object]]:
    """Make a directory of root with a file in it."""
    place = data / "base" / "monitoring"
    place.mkdir()
    place.chmod(0o755)
    (place / "state").write_text("x")
    return place, lambda: run(["rm", "-r", place], user=me())


def of_root_and_hidden(data: pathlib.Path) -> tuple[pathlib.Path, t.Callable[[], object]]:
    """Make a directory of root, deep in a surplus one, that its user cannot even read."""
    place = own_directory(own_directory(data / "surplus") / "inner") / "secret"
    place.mkdir(mode=0o700)
    (place / "state").write_text("x")
    return place, lambda: run(["rm", "-r", data / "surplus"], user=me())


def given_to_root(data: pathlib.Path) -> tuple[pathlib.Path, t.Callable[[], object]]:
    """Give a directory of the server to root."""
    place = data / "pg_xact"
    os.chown(place, 0, 0)
    user = server_user()
    return place, lambda: os.chown(place, user.uid, user.gid)


def without_write(data: pathlib.Path) -> tuple[pathlib.Path, t.Callable[[], object]]:
    """Take the right to write from a surplus directory of the server's user."""
    place = own_directory(data / "surplus")
    own_file(place / "state", "x")
    place.chmod(0o500)
    return place, lambda: place.chmod(0o700)


def immutable(data: pathlib.Path) -> tuple[pathlib.Path, t.Callable[[], object]]:
    """Make a file of the server immutable."""
    place = data / "global" / "pg_filenode.map"
    if subprocess.run(["chattr", "+i", place], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable files")
    return place, lambda: run(["chattr", "-i", place], user=me())


def mounted(data: pathlib.Path) -> tuple[pathlib.Path, t.Callable[[], object]]:
    """Mount a file system read-only on a directory of the server."""
    place = data / "pg_wal" / "archive_status"
    run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], user=me())
    return place, lambda: run(["umount", place], user=me())


@pytest.mark.parametrize("obstruct", [of_root, of_root_and_hidden, given_to_root, without_write, immutable, mounted])
def test_found_before_anything_is_touched(sandbox: Sandbox, major: int, obstruct: Obstruct) -> None:
    """The plan and the run name the file, the server's files stay; when it is cured the same call succeeds."""
    source = Source(sandbox, major)
    server = source.server
    server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup()
    source.archived()
    server.stop()
    wish = {"data_directory": str(server.data), "restore_as": "primary", "port": None, "delta": True}
    place, cure = obstruct(server.data)
    with contextlib.ExitStack() as cured:
        cured.callback(cure)
        with untouched(server.data):
            planned = source.run(server, check=True, **wish)
            assert planned["restorable"] is False, planned
            answer = source.run(server, **wish)
        assert answer.get("failed"), answer
        for text in (answer["msg"], *[one["msg"] for one in planned["plan"]["refusals"]][:1]):
            assert str(place) in text, text
        assert (server.data / "global" / "pg_control").exists()
    source.restored(server, **wish)
    assert numbers(source.started(server)) == {1}


def test_a_log_of_root_stays(sandbox: Sandbox, major: int) -> None:
    """The server's log directory may hold a file that only root can read; it is no obstacle, and it stays."""
    source = Source(sandbox, major)
    source.server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup()
    source.archived()
    source.server.stop()
    log = own_directory(source.server.data / "log") / "audit"
    log.write_text("x")
    log.chmod(0o600)
    wish = {"data_directory": str(source.server.data), "restore_as": "primary", "port": None, "delta": True}
    source.restored(source.server, sync=True, **wish)
    assert log.read_text() == "x"


def test_what_happens_midway_is_named(sandbox: Sandbox, major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An obstacle that comes after the plan is named with its whole path, and the next plan finds it."""
    source = Source(sandbox, major)
    source.server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
    source.backup()
    source.archived()
    source.server.stop()
    wish = {"data_directory": str(source.server.data), "restore_as": "primary", "port": None, "delta": True}
    place, cure = of_root(source.server.data)
    with monkeypatch.context() as blind:
        blind.setattr(_planner, "check_changeable", lambda *_arguments: None)
        answer = source.run(source.server, **wish)
    assert answer["code"] == "unwritable", answer
    assert str(place / "state") in answer["msg"], answer
    again = source.run(source.server, **wish)
    assert again["code"] == "cannot_change", again
    assert str(place) in again["msg"], again
    cure()
    source.restored(source.server, **wish)
    assert numbers(source.started(source.server)) == {1}
