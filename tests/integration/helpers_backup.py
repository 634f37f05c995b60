# Copyright (c) 2026, pgfleet.basebackup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the main path share: check mode, layout and order of a backup, a load on the server."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import stat
import subprocess
import typing as t

from tests.harness import binaries
from tests.harness.modules import Modules, Result
from tests.harness.servers import Server, wait_until
from tests.harness.user import me, popen, run

# What stop writes, after the copy.
WRITTEN_BY_STOP: t.Final = frozenset(("backup_label", "tablespace_map", "backup_manifest"))


def listing(root: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Return all that lies under ``root`` with what any change of it would alter: type, mode, inode, size, mtime."""
    found: dict[str, tuple[int, ...]] = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)
    return found


class Predictor:
    """Modules in check mode, each of which must leave the repository as it is."""

    def __init__(self, modules: Modules, backup_id: str) -> None:
        self._modules = modules
        self._handle = {"backup_id": backup_id}
        self._repository = pathlib.Path(modules.common["repository"])

    def __call__(self, name: str, changed: bool, **arguments: t.Any) -> Result:
        """Run ``name`` for the backup in check mode, require the prediction ``changed``, and return the result."""
        before = listing(self._repository)
        result = self._modules.ok(name, check=True, **{**self._handle, **arguments})
        assert result["changed"] is changed, f"{name} predicted {result}"
        assert result["msg"]
        assert listing(self._repository) == before, f"{name} in check mode touched the repository"
        return result


@contextlib.contextmanager
def load(server: Server, *options: str) -> t.Iterator[None]:
    """Keep pgbench (initialised before) writing to ``server``; at the return it has written something."""
    command = [binaries.tool(server.major, "pgbench"), "-n", "-c", "2", "-T", "120", *options]
    process = popen(command, env=server.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: server.value("SELECT count(*) FROM pgbench_history"), "pgbench writes")
        yield
        assert process.poll() is None, "pgbench has ended early"
    finally:
        process.terminate()
        process.wait()
        wait_until(
            lambda: not server.sql("SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgbench'"),
            "pgbench is gone",
        )


def pgbench_adds_up(server: Server) -> None:
    """Require what every transaction of pgbench keeps true: the balances and the history have the same sum."""
    sums = server.sql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
        " (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
    )[0]
    assert len(set(sums)) == 1, sums


def files_and_directories(root: pathlib.Path) -> tuple[dict[str, int], set[str]]:
    """Return a backup's files with their sizes and its directories, links to tablespaces followed."""
    files, directories = {}, set()
    for directory, names, file_names in os.walk(root, followlinks=True):
        relative = os.path.relpath(directory, root)
        directories.add(relative)
        directories.update(os.path.join(relative, name) for name in names)
        for name in file_names:
            files[os.path.normpath(os.path.join(relative, name))] = os.stat(os.path.join(directory, name)).st_size
    return files, {os.path.normpath(name) for name in directories}


def is_private(root: pathlib.Path) -> None:
    """Require mode 0700 of every directory and 0600 of every file, and links that lead no further than the backup."""
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            assert not os.path.isabs(os.readlink(path)), path
            assert path.resolve().is_relative_to(root.resolve()), path
        else:
            wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            assert stat.S_IMODE(status.st_mode) == wanted, f"{path}: {status.st_mode:o}"


def control_came_last(data: pathlib.Path) -> None:
    """Require that ``global/pg_control`` was written after every other file of the copy."""
    control = (data / "global" / "pg_control").stat()
    others = [path for path in data.rglob("*") if path.is_file() and path.name not in WRITTEN_BY_STOP]
    newest = max((path for path in others if path.name != "pg_control"), key=lambda path: path.stat().st_mtime_ns)
    assert control.st_mtime_ns >= newest.stat().st_mtime_ns, f"{newest} was copied after pg_control"


def manifest(data: pathlib.Path) -> dict[str, t.Any]:
    """Return the content of ``backup_manifest``."""
    content: dict[str, t.Any] = json.loads((data / "backup_manifest").read_bytes())
    return content


def copy_data_directory(server: Server, backup: pathlib.Path) -> None:
    """Copy a server with cp alone, as a user's own copy step would: PGDATA to ``data``, tablespaces to their oids."""
    run(["cp", "-a", server.data, backup / "data"], user=me())
    run(["mkdir", "-p", backup / "tablespaces"], user=me())
    for link in (server.data / "pg_tblspc").iterdir():
        if link.is_symlink():
            run(["cp", "-a", link.resolve(), backup / "tablespaces" / link.name], user=me())
