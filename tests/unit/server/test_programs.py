# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding PostgreSQL's programs, with scripts that print a version."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest
from ansible_collections.pgfleet.basebackup.plugins.module_utils._errors import BackupError
from ansible_collections.pgfleet.basebackup.plugins.module_utils._server import programs as _programs


def program(folder: pathlib.Path, text: str, name: str = "pg_ctl") -> str:
    """Create a program that answers --version with ``text``, and return its directory."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{text}'\n")
    (folder / name).chmod(0o755)
    return str(folder)


@pytest.fixture(autouse=True)
def _no_packages(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find no PostgreSQL outside the test's own directory."""
    monkeypatch.setattr(_programs, "PACKAGED", (f"{tmp_path}/package-{{}}",))
    monkeypatch.setenv("PATH", f"{tmp_path}/path:/usr/bin:/bin")


@pytest.mark.parametrize("version", ["18.1", "18devel", "18beta1", "18.1 (Debian 18.1-1)"])
def test_version(tmp_path: pathlib.Path, version: str) -> None:
    place = program(tmp_path / "given", f"pg_ctl (PostgreSQL) {version}")
    assert _programs.find("pg_ctl", 18, place) == f"{place}/pg_ctl"
    with pytest.raises(BackupError):
        _programs.find("pg_ctl", 1, place)


def test_order(tmp_path: pathlib.Path) -> None:
    """The running server's directory, PATH, the packages' directories; programs of another version are skipped."""
    packaged = program(tmp_path / "package-18", "pg_ctl (PostgreSQL) 18.1")
    assert _programs.find("pg_ctl", 18) == f"{packaged}/pg_ctl"
    path = program(tmp_path / "path", "pg_ctl (PostgreSQL) 17.2")
    assert _programs.find("pg_ctl", 18) == f"{packaged}/pg_ctl"
    program(tmp_path / "path", "pg_ctl (PostgreSQL) 18.2")
    assert _programs.find("pg_ctl", 18) == f"{path}/pg_ctl"
    own = program(tmp_path / "own", "pg_ctl (PostgreSQL) 18.3")
    shutil.copy(shutil.which("sleep") or "", tmp_path / "own" / "postgres")
    with subprocess.Popen([tmp_path / "own" / "postgres", "60"]) as server:
        try:
            assert _programs.find("pg_ctl", 18, pid=server.pid) == f"{own}/pg_ctl"
            # As a package upgrade does.
            os.unlink(tmp_path / "own" / "postgres")
            assert _programs.find("pg_ctl", 18, pid=server.pid) == f"{own}/pg_ctl"
        finally:
            server.kill()
    assert _programs.find("pg_ctl", 18, pid=server.pid) == f"{path}/pg_ctl"


def test_only_where_it_was_named(tmp_path: pathlib.Path) -> None:
    program(tmp_path / "path", "pg_amcheck (PostgreSQL) 18.2", "pg_amcheck")
    other = program(tmp_path / "given", "pg_amcheck (PostgreSQL) 17.2", "pg_amcheck")
    with pytest.raises(BackupError) as caught:
        _programs.find("pg_amcheck", 18, other)
    assert caught.value.code == "programs_missing"
    assert f"{other}/pg_amcheck is of version 17" in caught.value.msg
    assert "bin_directory" in caught.value.hint
    with pytest.raises(BackupError) as caught:
        _programs.find("pg_amcheck", 18, str(tmp_path / "absent"))
    assert caught.value.msg == f"There is no pg_amcheck of PostgreSQL 18 in {tmp_path}/absent."
